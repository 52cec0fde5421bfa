"""The policy submits and blocks without an admin: once, by people, and no innocent sender."""

from typing import Any
from uuid import UUID

import pytest

from backstop_contracts import BlockRequested, CaseUpdated, Delivery, ReportedAs, SubmissionRequested
from chassis.postgres import Database
from triage.rules import Policy


async def test_the_policy_submits_and_blocks_once(world: Any, tenant_id: UUID) -> None:
    """Later reports of the case find it decided."""
    events = await world.take(world.report(tenant_id), policy=world.auto)
    later = await world.take(world.report(tenant_id), policy=world.auto)

    (request,), (block,) = world.of(events, SubmissionRequested), world.of(events, BlockRequested)
    assert request.requested_by.kind == block.requested_by.kind == "policy"
    assert block.block.value == "bad@fabrikam.example"
    assert request.case_id == block.block.case_id == world.of(events, CaseUpdated)[0].case_id
    assert [type(event) for event in later] == [CaseUpdated]


async def test_a_message_without_a_sender_is_submitted_but_not_blocked(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """The block is skipped, and the timeline says so."""
    events = await world.take(world.report(tenant_id, sender=None, sender_domain=None), policy=world.auto)
    assert len(world.of(events, SubmissionRequested)) == 1
    assert world.of(events, BlockRequested) == []
    assert await db.pool.fetchval("SELECT count(*) FROM timeline WHERE kind = 'block.skipped'") == 1


CAMPAIGN = Policy.model_validate(
    {"rule": [{"name": "campaign", "when": {"min_reports": 3}, "then": {"submit": "spam", "block": "sender"}}]}
)


@pytest.mark.parametrize(
    ("reporters", "people"),
    [
        ([("ann", None), ("ben", None), ("cleo", None)], 3),
        ([("ann", "1"), ("ben", "2"), ("cleo", None)], 3),
        ([("ann", None), ("ann", None), ("ANN", None)], 1),
        ([("ann", "1"), ("ann", None), ("ben", "2")], 2),
        ([("ann", "1"), ("ann.new", "1"), ("ann.old", "1")], 1),
        ([("ann", None), ("ben", "2"), ("ann", "1"), ("ben.new", "2")], 2),
    ],
    ids=[
        "an add-in's users",
        "signed in or not",
        "one address",
        "one person by two ways",
        "one person's addresses",
        "all of it",
    ],
)
@pytest.mark.parametrize("one_by_one", [True, False])
async def test_a_policy_counts_people_not_reports(
    world: Any, tenant_id: UUID, reporters: list[tuple[str, str | None]], people: int, one_by_one: bool
) -> None:
    """Otherwise one employee could get anybody blocked by reporting a forged file several times."""
    reports = [
        world.report(tenant_id, reporter=f"{name}@contoso.example", reporter_id=oid, reported_as=word)
        for (name, oid), word in zip(reporters, ReportedAs, strict=False)
    ]
    events: list[Any] = []
    for batch in reports if one_by_one else [reports]:
        events += await world.take(*(batch if isinstance(batch, list) else [batch]), policy=CAMPAIGN)

    assert len(world.of(events, SubmissionRequested)) == len(world.of(events, BlockRequested)) == (people == 3)


async def test_a_forged_file_does_not_get_the_sender_of_a_campaign_blocked(world: Any, tenant_id: UUID) -> None:
    """An insider first reports a copy of the campaign in a customer's name, with forged results that say it passed."""
    words = {"fingerprint": "v1:campaign"}
    customer = {"sender": "a@customer.example", "sender_domain": "customer.example"}
    passed = Delivery(dmarc="pass", header_from="customer.example")
    failed = Delivery(dmarc="fail", header_from="customer.example")
    events = await world.take(world.report(tenant_id, "<1@x>", **words, **customer, delivery=passed), policy=CAMPAIGN)
    for number, name in enumerate(("ann", "ben", "cleo")):
        honest = {"reporter": f"{name}@contoso.example", **words, **customer, "delivery": failed}
        events += await world.take(world.report(tenant_id, f"<{number}@y>", **honest), policy=CAMPAIGN)

    assert len(world.of(events, SubmissionRequested)) == 1
    assert world.of(events, BlockRequested) == []


AUTHENTICATED = Delivery(dmarc="pass", header_from="fabrikam.example")
FORGED = [
    Delivery(),
    Delivery(spf="fail", dmarc="fail", compauth="fail", header_from="fabrikam.example"),
    Delivery(spf="pass", dkim="pass", dmarc="none", compauth="softpass", header_from="fabrikam.example"),
    Delivery(dmarc="bestguesspass", header_from="fabrikam.example"),
    # It passed, and nobody knows for whom.
    Delivery(dmarc="pass"),
]


@pytest.mark.parametrize("delivery", FORGED)
async def test_a_policy_blocks_no_sender_that_may_be_forged(
    world: Any, tenant_id: UUID, client: Any, token: Any, delivery: Delivery
) -> None:
    """It still submits the message. An admin may block the sender, and is warned."""
    events = await world.take(world.report(tenant_id, delivery=delivery), policy=world.auto)
    (submitted,) = world.of(events, SubmissionRequested)
    path, admin = f"/v1/cases/{submitted.case_id}", token("SecurityAdministrator")
    _, case = await client("GET", path, admin)
    assert world.of(events, BlockRequested) == []
    assert "forged" in next(entry for entry in case["timeline"] if entry["kind"] == "block.skipped")["detail"]["why"]

    status, case = await client("POST", f"{path}/decisions", admin, json={"action": "block", "blocks": [{}]})
    asked = next(entry for entry in case["timeline"] if entry["kind"] == "block.requested")
    assert (status, "forged" in asked["detail"]["warning"]) == (202, True)


@pytest.mark.parametrize("delivery", [AUTHENTICATED, Delivery(compauth="pass", header_from="fabrikam.example")])
async def test_a_policy_blocks_an_authenticated_sender(world: Any, tenant_id: UUID, delivery: Delivery) -> None:
    """The domain passed DMARC or composite authentication."""
    assert world.of(await world.take(world.report(tenant_id, delivery=delivery), policy=world.auto), BlockRequested)


async def test_a_domain_that_a_message_only_pretends_to_come_from_cannot_be_blocked(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """From: "alerts@bank.example", <news@sender.example>: Microsoft reads one address, mail programs show the other."""
    pretending = Delivery(dmarc="pass", compauth="pass", header_from="sender.example")
    events = await world.take(world.report(tenant_id, delivery=pretending), policy=world.auto)
    path = f"/v1/cases/{world.of(events, CaseUpdated)[0].case_id}/decisions"
    for kind in ("sender", "domain"):
        block = {"action": "block", "blocks": [{"kind": kind}]}
        status, problem = await client("POST", path, token("SecurityAdministrator"), json=block)
        assert (status, "sender.example" in problem["detail"]) == (409, True)
    assert world.of(events + await world.emitted(), BlockRequested) == []
