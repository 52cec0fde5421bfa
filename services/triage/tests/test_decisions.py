"""Admins decide on cases, over HTTP or while reporting."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from backstop_contracts import (
    Actor,
    AdminDecision,
    Block,
    BlockApplied,
    BlockRequested,
    CaseUpdated,
    Category,
    DecidedBlock,
    Delivery,
    SubmissionRequested,
)
from chassis.postgres import Database

ADMIN = Actor(kind="user", id="7a6b5c4d-3e2f-4a1b-9c8d-7e6f5a4b3c2d", name="admin@contoso.example")
DECISION = AdminDecision(
    category=Category.PHISHING,
    blocks=(DecidedBlock(kind="sender"), DecidedBlock(kind="url", url="https://pay.phish.example/1")),
    note="seen in quarantine",
    decided_by=ADMIN,
)


async def test_a_decision_sent_with_a_report_is_applied_like_any_other(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Submitted once, sender and URL blocked once, in the admin's name; the policy no longer applies."""
    wanting = world.report(tenant_id, decision=DECISION)
    events = await world.take(wanting, policy=world.auto)
    again = await world.take(wanting, policy=world.auto)

    (requested,) = world.of(events, SubmissionRequested)
    sender, url = world.of(events, BlockRequested)
    assert (requested.category, requested.requested_by) == (Category.PHISHING, ADMIN)
    assert (sender.block.value, sender.requested_by, sender.note) == ("bad@fabrikam.example", ADMIN, DECISION.note)
    assert (url.block.kind, url.block.value) == ("url", "https://pay.phish.example/1")
    assert again == []
    _, case = await client("GET", f"/v1/cases/{requested.case_id}", token("SecurityReader"))
    assert case["status"] == "submitted"
    assert {block["kind"] for block in case["blocks"]} == {"sender", "url"}


async def test_the_timeline_notes_which_parts_of_a_decision_are_not_possible(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """A second admin decides the same about the same message: it is neither submitted nor blocked twice."""
    first = await world.take(world.report(tenant_id, decision=DECISION))
    second = await world.take(world.report(tenant_id, reporter="other@contoso.example", decision=DECISION))

    assert [type(event) for event in second] == [CaseUpdated]
    _, case = await client("GET", f"/v1/cases/{world.of(first, CaseUpdated)[0].case_id}", token("SecurityReader"))
    kinds = [entry["kind"] for entry in case["timeline"]]
    assert kinds.count("block.skipped") == 2
    assert kinds.count("submit.skipped") == 1


async def test_a_case_shows_the_entry_that_was_made_for_a_block(
    world: Any, db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """A URL loses its query, and perhaps a wrapper: the case shows what Exchange has."""
    await world.take(world.report(tenant_id, decision=DECISION))
    rows = await db.pool.fetch("SELECT block_id, case_id FROM blocks WHERE kind = 'url'")
    wish = Block(scope="tenant", kind="url", value="https://pay.phish.example/1", **dict(rows[0]))
    applied = BlockApplied(
        tenant_id=tenant_id, block=wish, already_present=False, entry="phish.example/1", applied_at=datetime.now(UTC)
    )
    await world.consume(applied)
    _, case = await client("GET", f"/v1/cases/{wish.case_id}", token("SecurityReader"))
    assert {(block["kind"], block["status"], block["entry"]) for block in case["blocks"]} == {
        ("sender", "requested", None),
        ("url", "applied", "phish.example/1"),
    }


async def test_a_decision_with_unknown_values_is_applied_with_care(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """An actor of an unknown kind may not block a forged sender as an admin may; an unknown kind of block is noted."""
    robot = Actor(kind="automation", id="robot")
    blocks = (DecidedBlock(kind="sender"), DecidedBlock(kind="ip"))
    decision = AdminDecision(category=None, blocks=blocks, decided_by=robot)
    forged = Delivery(dmarc="fail", header_from="fabrikam.example")
    events = await world.take(world.report(tenant_id, decision=decision, delivery=forged))
    (opened,) = world.of(events, CaseUpdated)
    _, case = await client("GET", f"/v1/cases/{opened.case_id}", token("SecurityReader"))

    assert world.of(events, BlockRequested) == []
    skipped = [entry["detail"] for entry in case["timeline"] if entry["kind"] == "block.skipped"]
    assert [entry["kind"] for entry in skipped] == ["sender", "ip"]
    assert "only an admin blocks it" in skipped[0]["why"]
    assert "does not know" in skipped[1]["why"]


async def test_an_admin_submits_and_blocks_in_one_decision(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Both are requested, the timeline says by whom and when, and the case is submitted."""
    case_id = await world.open_case(tenant_id)
    decision = {"action": "submit", "category": "phishing", "note": "looks bad", "blocks": [{"kind": "domain"}]}
    admin = token("SecurityAdministrator", oid="admin-oid", preferred_username="admin@contoso.example")
    status, case = await client("POST", f"/v1/cases/{case_id}/decisions", admin, json=decision)
    events = await world.emitted()

    assert (status, case["status"]) == (202, "submitted")
    (request,), (block,) = world.of(events, SubmissionRequested), world.of(events, BlockRequested)
    assert (request.category, request.requested_by.id) == ("phishing", "admin-oid")
    assert (block.block.kind, block.block.value) == ("domain", "fabrikam.example")
    assert timedelta(days=30) < block.block.expires_at - datetime.now(UTC) <= timedelta(days=31)  # type: ignore[operator]
    kinds = [entry["kind"] for entry in case["timeline"]]
    assert kinds == ["message.reported", "block.requested", "case.submitted"]
    assert case["timeline"][2]["actor"]["name"] == "admin@contoso.example"


async def test_an_admin_blocks_several_indicators_of_a_case_or_none_of_them(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """The sender and a URL of the message, each once; if one is already blocked, the others are not."""
    admin, case_id = token("SecurityAdministrator"), await world.open_case(tenant_id)
    path, link = f"/v1/cases/{case_id}/decisions", {"kind": "url", "url": "https://pay.phish.example/1"}
    status, case = await client(
        "POST", path, admin, json={"action": "block", "blocks": [{}, link], "note": "a campaign"}
    )
    requested = world.of(await world.emitted(), BlockRequested)
    again, problem = await client("POST", path, admin, json={"action": "block", "blocks": [{"kind": "domain"}, link]})

    assert status == 202
    assert [(one.block.kind, one.block.value, one.note) for one in requested] == [
        ("sender", "bad@fabrikam.example", "a campaign"),
        ("url", "https://pay.phish.example/1", "a campaign"),
    ]
    assert [(block["scope"], block["kind"], block["status"]) for block in case["blocks"]] == [
        ("tenant", "sender", "requested"),
        ("tenant", "url", "requested"),
    ]
    assert (again, "already blocked that URL" in problem["detail"]) == (409, True)
    assert await world.emitted() == []


@pytest.mark.parametrize(
    ("decision", "where"),
    [
        ({}, "body"),
        ({"action": "ignore"}, "body"),
        ({"action": "submit"}, "category"),
        ({"action": "submit", "category": "not-junk"}, "category"),
        ({"action": "submit", "category": "spam", "force": True}, "force"),
        ({"action": "block"}, "blocks"),
        ({"action": "block", "blocks": []}, "blocks"),
        ({"action": "block", "blocks": [{"kind": "country"}]}, "kind"),
        ({"action": "dismiss", "note": "x" * 501}, "note"),
    ],
)
async def test_a_malformed_decision_is_rejected_and_changes_nothing(
    world: Any, tenant_id: UUID, client: Any, token: Any, decision: dict[str, Any], where: str
) -> None:
    """The answer names the field."""
    case_id = await world.open_case(tenant_id)
    status, problem = await client(
        "POST", f"/v1/cases/{case_id}/decisions", token("SecurityAdministrator"), json=decision
    )

    assert status == 422
    assert any(where in error["where"] for error in problem["errors"])
    assert await world.emitted() == []


async def test_a_decision_that_the_case_does_not_allow_is_rejected(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """A dismissed case is neither submitted, dismissed nor blocked again; a sender is not blocked twice."""
    admin, case_id = token("SecurityAdministrator"), await world.open_case(tenant_id)
    path = f"/v1/cases/{case_id}/decisions"
    assert (await client("POST", path, admin, json={"action": "dismiss"}))[0] == 202
    for closed in (
        {"action": "dismiss"},
        {"action": "submit", "category": "spam"},
        {"action": "block", "blocks": [{}]},
    ):
        status, problem = await client("POST", path, admin, json=closed)
        assert status == 409
        assert "dismissed" in problem["detail"]

    path = f"/v1/cases/{await world.open_case(tenant_id)}/decisions"
    assert (await client("POST", path, admin, json={"action": "block", "blocks": [{}]}))[0] == 202
    assert (await client("POST", path, admin, json={"action": "block", "blocks": [{}]}))[0] == 409


async def test_a_decision_is_applied_as_a_whole_or_not_at_all(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """If its block is not possible, nothing is submitted either."""
    case_id = await world.open_case(tenant_id, sender=None, sender_domain=None)
    decision = {"action": "submit", "category": "phishing", "blocks": [{}]}
    status, problem = await client(
        "POST", f"/v1/cases/{case_id}/decisions", token("SecurityAdministrator"), json=decision
    )

    assert (status, "names no sender" in problem["detail"]) == (409, True)
    assert await world.emitted() == []
