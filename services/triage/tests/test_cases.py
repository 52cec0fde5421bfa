"""From reports to cases, decisions and outcomes, on a real PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import orjson
import pytest

import triage
from backstop_contracts import (
    EVENTS,
    Actor,
    AdminDecision,
    Block,
    BlockApplied,
    BlockFailed,
    BlockRequested,
    CaseUpdated,
    Category,
    Cause,
    Conclusion,
    DecidedBlock,
    Delivery,
    Envelope,
    Folder,
    Message,
    MessageReported,
    ReleaseDecided,
    ReportedAs,
    SubmissionCreated,
    SubmissionFailed,
    SubmissionRequested,
    VerdictReady,
)
from chassis.events import Received
from chassis.postgres import Database
from chassis.testing import deliver
from conftest import JUDGED
from triage import handlers
from triage.http import make_router
from triage.rules import Policy

MODELS = {model.topic(): model for model in EVENTS}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
AUTO = Policy.model_validate(
    {"rule": [{"name": "auto", "when": {"folder": ["inbox"]}, "then": {"submit": "as-reported", "block": "sender"}}]}
)


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    """Triage's own database."""
    db = Database(database, schema="triage")
    await db.open(Path(triage.__file__).parent / "migrations")
    yield db
    await db.close()


@pytest.fixture
async def client(db: Database, call: Any) -> Any:
    """Triage's API."""
    return await call(make_router(db))


def received(event: Any) -> Received[Any]:
    """Wrap an event as Kafka delivers it."""
    return Received(event, Envelope(str(uuid4()), "/test", "test", datetime.now(UTC), TRACE))


AUTHENTICATED = Delivery(dmarc="pass", header_from="fabrikam.example")


def report(tenant_id: UUID, message_id: str = "<a@fabrikam.example>", **facts: Any) -> MessageReported:
    """Make a report of a mail that DMARC has passed."""
    about = ("report_id", "reporter", "reporter_id", "reported_as", "folder", "decision")
    said = {name: facts.pop(name) for name in about if name in facts}
    sender = {"sender": "bad@fabrikam.example", "sender_domain": "fabrikam.example", "delivery": AUTHENTICATED}
    return MessageReported.model_validate(
        {
            "tenant_id": tenant_id,
            "report_id": uuid4(),
            "reporter": "user@contoso.example",
            "reported_as": ReportedAs.PHISHING,
            "folder": Folder.INBOX,
            "channel": "api",
            "reported_at": datetime.now(UTC),
            "message": Message(**{"sha256": "0" * 64, "size": 1, "internet_message_id": message_id, **sender, **facts}),
            **said,
        }
    )


async def take(db: Database, *reports: MessageReported, policy: Policy | None = None) -> list[Any]:
    """Handle reports as one batch; return what was emitted."""
    await hear(db, *reports, policy=policy)
    return await emitted(db)


async def hear(db: Database, *events: Any, policy: Policy | None = None, time: datetime | None = None) -> None:
    """Hand events to triage as Kafka would."""
    await deliver(handlers.router, db, *events, policy=policy or Policy(), traceparent=TRACE, time=time)


async def emitted(db: Database) -> list[Any]:
    """Take what lies in the outbox."""
    rows = await db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
    assert all(orjson.loads(row["headers"])["traceparent"] for row in rows)
    return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]


def of(events: Sequence[Any], model: type[Any]) -> list[Any]:
    """Pick the events of one kind."""
    return [event for event in events if isinstance(event, model)]


async def open_case(db: Database, tenant_id: UUID, **facts: Any) -> UUID:
    """Open a case; return its id."""
    events = await take(db, report(tenant_id, f"<{uuid4()}@fabrikam.example>", **facts))
    return UUID(str(of(events, CaseUpdated)[-1].case_id))


async def test_the_first_report_opens_a_case_and_others_join_it(db: Database, tenant_id: UUID) -> None:
    """One mail, one case, however many report it."""
    (opened,) = await take(db, report(tenant_id), report(tenant_id, folder=Folder.JUNK))
    (joined,) = await take(db, report(tenant_id, reported_as=ReportedAs.JUNK))

    assert (opened.change, opened.report_count, len(opened.report_ids)) == ("opened", 2, 2)
    assert (joined.change, joined.report_count, joined.case_id) == ("joined", 3, opened.case_id)


ADMIN = Actor(kind="user", id="7a6b5c4d-3e2f-4a1b-9c8d-7e6f5a4b3c2d", name="admin@contoso.example")
DECISION = AdminDecision(
    category=Category.PHISHING,
    blocks=(DecidedBlock(kind="sender"), DecidedBlock(kind="url", url="https://pay.phish.example/1")),
    note="seen in quarantine",
    decided_by=ADMIN,
)


async def test_what_an_admin_wants_while_reporting_is_done_like_a_decision(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Submitted once, sender and URL blocked once, in the admin's name; the policy has no say any more."""
    wanting = report(tenant_id, decision=DECISION)
    events = await take(db, wanting, policy=AUTO)
    again = await take(db, wanting, policy=AUTO)

    (requested,) = of(events, SubmissionRequested)
    sender, url = of(events, BlockRequested)
    assert (requested.category, requested.requested_by) == (Category.PHISHING, ADMIN)
    assert (sender.block.value, sender.requested_by, sender.note) == ("bad@fabrikam.example", ADMIN, DECISION.note)
    assert (url.block.kind, url.block.value) == ("url", "https://pay.phish.example/1")
    assert again == []
    _, case = await client("GET", f"/v1/cases/{requested.case_id}", token("SecurityReader"))
    assert case["status"] == "submitted"
    assert {block["kind"] for block in case["blocks"]} == {"sender", "url"}


async def test_what_a_case_does_not_allow_is_told_in_its_timeline(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """A second admin wants the same of the same mail: it is not submitted or blocked twice."""
    first = await take(db, report(tenant_id, decision=DECISION))
    second = await take(db, report(tenant_id, reporter="other@contoso.example", decision=DECISION))

    assert [type(event) for event in second] == [CaseUpdated]
    _, case = await client("GET", f"/v1/cases/{of(first, CaseUpdated)[0].case_id}", token("SecurityReader"))
    kinds = [entry["kind"] for entry in case["timeline"]]
    assert kinds.count("block.skipped") == 2
    assert kinds.count("submit.skipped") == 1


async def test_a_release_is_told_in_the_case_of_the_mail(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Once; a mail without a case is nobody's affair here."""
    case_id = await open_case(db, tenant_id)
    (message_id,) = await db.pool.fetchrow("SELECT message->>'internet_message_id' FROM cases")

    def decided(internet_message_id: str) -> ReleaseDecided:
        return ReleaseDecided(
            tenant_id=tenant_id,
            decision_id=uuid5(tenant_id, internet_message_id),
            message_id=UUID(int=2),
            network_message_id="n",
            internet_message_id=internet_message_id,
            identity="n\\r",
            recipient="user@contoso.example",
            decision="release",
            succeeded=True,
            decided_by=ADMIN,
            decided_at=datetime.now(UTC),
        )

    for _ in range(2):
        await hear(db, decided(message_id), decided("<other@fabrikam.example>"))
    _, case = await client("GET", f"/v1/cases/{case_id}", token("SecurityReader"))
    (entry,) = [entry for entry in case["timeline"] if entry["kind"] == "release.decided"]
    assert (entry["detail"]["decision"], entry["detail"]["succeeded"]) == ("release", True)


async def test_a_junk_report_joins_the_case_that_others_opened_from_inbox(db: Database, tenant_id: UUID) -> None:
    """Same content, other Message-ID, other folder: the same case."""
    (opened,) = await take(db, report(tenant_id, "<1@x.example>", fingerprint="v1:f"))
    (joined,) = await take(db, report(tenant_id, "<2@y.example>", fingerprint="v1:f", folder=Folder.JUNK))
    assert joined.case_id == opened.case_id


async def test_a_report_that_is_delivered_again_changes_nothing(db: Database, tenant_id: UUID) -> None:
    """Within a batch and in a later one."""
    once = report(tenant_id)
    first = await take(db, once, once, policy=AUTO)
    again = await take(db, once, policy=AUTO)

    assert of(first, CaseUpdated)[0].report_count == 1
    assert len(of(first, SubmissionRequested)) == 1
    assert again == []


async def test_the_same_mail_in_two_tenants_is_two_cases(db: Database, tenant_id: UUID) -> None:
    """Tenants share nothing."""
    first, second = await take(db, report(tenant_id), report(uuid4()))
    assert first.case_id != second.case_id


async def test_the_policy_submits_and_blocks_once(db: Database, tenant_id: UUID) -> None:
    """Later reports of the case find it decided."""
    events = await take(db, report(tenant_id), policy=AUTO)
    later = await take(db, report(tenant_id), policy=AUTO)

    (request,), (block,) = of(events, SubmissionRequested), of(events, BlockRequested)
    assert request.requested_by.kind == block.requested_by.kind == "policy"
    assert block.block.value == "bad@fabrikam.example"
    assert request.case_id == block.block.case_id == of(events, CaseUpdated)[0].case_id
    assert [type(event) for event in later] == [CaseUpdated]


async def test_a_policy_that_would_block_a_mail_without_sender_still_submits_it(db: Database, tenant_id: UUID) -> None:
    """The block is skipped, and the timeline says so."""
    events = await take(db, report(tenant_id, sender=None, sender_domain=None), policy=AUTO)
    assert len(of(events, SubmissionRequested)) == 1
    assert of(events, BlockRequested) == []
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
async def test_a_policy_counts_people_and_not_reports(
    db: Database, tenant_id: UUID, reporters: list[tuple[str, str | None]], people: int, one_by_one: bool
) -> None:
    """Else one employee with a forged file blocks whomever they like."""
    reports = [
        report(tenant_id, reporter=f"{name}@contoso.example", reporter_id=oid, reported_as=word)
        for (name, oid), word in zip(reporters, ReportedAs, strict=False)
    ]
    events: list[Any] = []
    for batch in reports if one_by_one else [reports]:
        events += await take(db, *(batch if isinstance(batch, list) else [batch]), policy=CAMPAIGN)

    assert len(of(events, SubmissionRequested)) == len(of(events, BlockRequested)) == (people == 3)


async def test_a_forged_file_does_not_decide_whom_honest_people_block(db: Database, tenant_id: UUID) -> None:
    """An insider files the words of a campaign under a customer's name first, with results that say it passed."""
    words = {"fingerprint": "v1:campaign"}
    customer = {"sender": "a@customer.example", "sender_domain": "customer.example"}
    passed = Delivery(dmarc="pass", header_from="customer.example")
    failed = Delivery(dmarc="fail", header_from="customer.example")
    events = await take(db, report(tenant_id, "<1@x>", **words, **customer, delivery=passed), policy=CAMPAIGN)
    for number, name in enumerate(("ann", "ben", "cleo")):
        honest = {"reporter": f"{name}@contoso.example", **words, **customer, "delivery": failed}
        events += await take(db, report(tenant_id, f"<{number}@y>", **honest), policy=CAMPAIGN)

    assert len(of(events, SubmissionRequested)) == 1
    assert of(events, BlockRequested) == []


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
    db: Database, tenant_id: UUID, client: Any, token: Any, delivery: Delivery
) -> None:
    """It submits all the same; an admin may block, and is warned."""
    events = await take(db, report(tenant_id, delivery=delivery), policy=AUTO)
    (submitted,) = of(events, SubmissionRequested)
    path, admin = f"/v1/cases/{submitted.case_id}", token("SecurityAdministrator")
    _, case = await client("GET", path, admin)
    assert of(events, BlockRequested) == []
    assert "forged" in next(entry for entry in case["timeline"] if entry["kind"] == "block.skipped")["detail"]["why"]

    status, case = await client("POST", f"{path}/decisions", admin, json={"action": "block", "blocks": [{}]})
    asked = next(entry for entry in case["timeline"] if entry["kind"] == "block.requested")
    assert (status, "forged" in asked["detail"]["warning"]) == (202, True)


@pytest.mark.parametrize("delivery", [AUTHENTICATED, Delivery(compauth="pass", header_from="fabrikam.example")])
async def test_a_policy_blocks_a_sender_that_is_authenticated(
    db: Database, tenant_id: UUID, delivery: Delivery
) -> None:
    """By DMARC or by composite authentication."""
    assert of(await take(db, report(tenant_id, delivery=delivery), policy=AUTO), BlockRequested)


async def test_nobody_blocks_the_domain_that_a_mail_only_pretends_to_come_from(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """From: "alerts@bank.example", <news@sender.example>: Microsoft reads one, mail programs show the other."""
    pretending = Delivery(dmarc="pass", compauth="pass", header_from="sender.example")
    events = await take(db, report(tenant_id, delivery=pretending), policy=AUTO)
    path = f"/v1/cases/{of(events, CaseUpdated)[0].case_id}/decisions"
    for kind in ("sender", "domain"):
        block = {"action": "block", "blocks": [{"kind": kind}]}
        status, problem = await client("POST", path, token("SecurityAdministrator"), json=block)
        assert (status, "sender.example" in problem["detail"]) == (409, True)
    assert of(events + await emitted(db), BlockRequested) == []


async def test_a_case_shows_the_entry_that_was_made(db: Database, tenant_id: UUID, client: Any, token: Any) -> None:
    """A URL loses its query, and may have been wrapped: what Exchange holds is what counts."""
    await take(db, report(tenant_id, decision=DECISION))
    rows = await db.pool.fetch("SELECT block_id, case_id FROM blocks WHERE kind = 'url'")
    wish = Block(scope="tenant", kind="url", value="https://pay.phish.example/1", **dict(rows[0]))
    applied = BlockApplied(
        tenant_id=tenant_id, block=wish, already_present=False, entry="phish.example/1", applied_at=datetime.now(UTC)
    )
    await hear(db, applied)
    _, case = await client("GET", f"/v1/cases/{wish.case_id}", token("SecurityReader"))
    assert {(block["kind"], block["status"], block["entry"]) for block in case["blocks"]} == {
        ("sender", "requested", None),
        ("url", "applied", "phish.example/1"),
    }


async def test_a_large_batch_needs_no_more_statements_than_a_small_one(db: Database, tenant_id: UUID) -> None:
    """New cases, standing ones, submissions and blocks: what a batch costs PostgreSQL does not grow with its size."""
    counts = []
    for size in (2, 40):
        standing = [report(tenant_id, f"<{uuid4()}@fabrikam.example>") for _ in range(size)]
        await take(db, *standing)
        again = [one.model_copy(update={"report_id": uuid4()}) for one in standing]
        new = [report(tenant_id, f"<{uuid4()}@fabrikam.example>") for _ in range(size)]
        nameless = [report(tenant_id, f"<{uuid4()}@x.example>", sender=None) for _ in range(size)]
        statements: list[Any] = []
        async with db.transaction() as tx:
            tx.add_query_logger(statements.append)
            batch = [received(one) for one in (*again, *new, *nameless)]
            await handlers.on_message_reported(batch, tx, AUTO)
            tx.remove_query_logger(statements.append)
        events = await emitted(db)
        assert [len(of(events, kind)) for kind in (SubmissionRequested, BlockRequested)] == [3 * size, 2 * size]
        counts.append(len(statements))
    assert counts[0] == counts[1] > 0


async def test_an_admin_submits_and_blocks_in_one_decision(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Both are asked for, by whom and when is kept, and the case is submitted."""
    case_id = await open_case(db, tenant_id)
    decision = {"action": "submit", "category": "phishing", "note": "looks bad", "blocks": [{"kind": "domain"}]}
    admin = token("SecurityAdministrator", oid="admin-oid", preferred_username="admin@contoso.example")
    status, case = await client("POST", f"/v1/cases/{case_id}/decisions", admin, json=decision)
    events = await emitted(db)

    assert (status, case["status"]) == (202, "submitted")
    (request,), (block,) = of(events, SubmissionRequested), of(events, BlockRequested)
    assert (request.category, request.requested_by.id) == ("phishing", "admin-oid")
    assert (block.block.kind, block.block.value) == ("domain", "fabrikam.example")
    assert timedelta(days=30) < block.block.expires_at - datetime.now(UTC) <= timedelta(days=31)  # type: ignore[operator]
    kinds = [entry["kind"] for entry in case["timeline"]]
    assert kinds == ["message.reported", "block.requested", "case.submitted"]
    assert case["timeline"][2]["actor"]["name"] == "admin@contoso.example"


async def test_an_admin_blocks_several_things_of_a_case_or_none_of_them(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """The sender and a link of the message, each once; one that is blocked already keeps the others from happening."""
    admin, case_id = token("SecurityAdministrator"), await open_case(db, tenant_id)
    path, link = f"/v1/cases/{case_id}/decisions", {"kind": "url", "url": "https://pay.phish.example/1"}
    status, case = await client(
        "POST", path, admin, json={"action": "block", "blocks": [{}, link], "note": "a campaign"}
    )
    requested = of(await emitted(db), BlockRequested)
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
    assert await emitted(db) == []


async def test_what_a_later_producer_decides_is_done_with_care(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """An actor of an unknown kind has no admin's rights over a forged sender; an unknown kind of block is noted."""
    robot = Actor(kind="automation", id="robot")
    blocks = (DecidedBlock(kind="sender"), DecidedBlock(kind="ip"))
    decision = AdminDecision(category=None, blocks=blocks, decided_by=robot)
    forged = Delivery(dmarc="fail", header_from="fabrikam.example")
    events = await take(db, report(tenant_id, decision=decision, delivery=forged))
    (opened,) = of(events, CaseUpdated)
    _, case = await client("GET", f"/v1/cases/{opened.case_id}", token("SecurityReader"))

    assert of(events, BlockRequested) == []
    skipped = [entry["detail"] for entry in case["timeline"] if entry["kind"] == "block.skipped"]
    assert [entry["kind"] for entry in skipped] == ["sender", "ip"]
    assert "only an admin blocks it" in skipped[0]["why"]
    assert "does not know" in skipped[1]["why"]


async def test_a_filter_that_does_not_exist_is_refused(db: Database, tenant_id: UUID, client: Any, token: Any) -> None:
    """A filter with a typo would otherwise list every case."""
    await open_case(db, tenant_id)
    status, problem = await client("GET", "/v1/cases?stauts=open&limit=5", token("SecurityReader"))

    assert (status, problem["errors"]) == (422, [{"where": "query.stauts", "what": "Unknown parameter"}])


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
async def test_a_malformed_decision_is_refused_and_changes_nothing(
    db: Database, tenant_id: UUID, client: Any, token: Any, decision: dict[str, Any], where: str
) -> None:
    """The answer names the field."""
    case_id = await open_case(db, tenant_id)
    status, problem = await client(
        "POST", f"/v1/cases/{case_id}/decisions", token("SecurityAdministrator"), json=decision
    )

    assert status == 422
    assert any(where in error["where"] for error in problem["errors"])
    assert await emitted(db) == []


async def test_a_decision_that_the_case_does_not_allow_is_refused(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """A closed case is not submitted or dismissed again; a sender is not blocked twice."""
    admin, case_id = token("SecurityAdministrator"), await open_case(db, tenant_id)
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

    path = f"/v1/cases/{await open_case(db, tenant_id)}/decisions"
    assert (await client("POST", path, admin, json={"action": "block", "blocks": [{}]}))[0] == 202
    assert (await client("POST", path, admin, json={"action": "block", "blocks": [{}]}))[0] == 409


async def test_a_refused_block_undoes_the_whole_decision(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """All of a decision or nothing."""
    case_id = await open_case(db, tenant_id, sender=None, sender_domain=None)
    decision = {"action": "submit", "category": "phishing", "blocks": [{}]}
    status, problem = await client(
        "POST", f"/v1/cases/{case_id}/decisions", token("SecurityAdministrator"), json=decision
    )

    assert (status, "names no sender" in problem["detail"]) == (409, True)
    assert await emitted(db) == []


async def test_an_unknown_case_and_one_of_another_tenant_look_the_same(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Nobody learns what exists elsewhere."""
    del tenant_id
    foreign = await open_case(db, uuid4())
    for case_id in (foreign, uuid4()):
        assert (await client("GET", f"/v1/cases/{case_id}", token("SecurityReader")))[0] == 404
        decision = {"action": "dismiss"}
        assert (await client("POST", f"/v1/cases/{case_id}/decisions", token("SecurityAdministrator"), json=decision))[
            0
        ] == 404
    assert (await client("GET", "/v1/cases/not-a-uuid", token("SecurityReader")))[0] == 422


async def test_roles_decide_who_reads_and_who_decides(db: Database, tenant_id: UUID, client: Any, token: Any) -> None:
    """Readers read, administrators decide, reporters do neither."""
    case_id = await open_case(db, tenant_id)
    assert (await client("GET", "/v1/cases"))[0] == 401
    assert (await client("GET", "/v1/cases", token("Reporter")))[0] == 403
    assert (await client("GET", "/v1/cases", token("SecurityReader")))[0] == 200
    path = f"/v1/cases/{case_id}/decisions"
    assert (await client("POST", path, token("SecurityReader"), json={"action": "dismiss"}))[0] == 403


async def test_pages_show_every_case_once_newest_first(db: Database, tenant_id: UUID, client: Any, token: Any) -> None:
    """The cursor of an answer leads to the next page."""
    opened = [str(await open_case(db, tenant_id)) for _ in range(7)]
    listed: list[str] = []
    cursor = ""
    while cursor is not None:
        status, page = await client("GET", f"/v1/cases?limit=3&cursor={cursor}", token("SecurityReader"))
        assert status == 200
        listed += [item["case_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert listed == opened[::-1]


async def test_filters_narrow_the_list(db: Database, tenant_id: UUID, client: Any, token: Any) -> None:
    """By status, sender, domain, what was said and where."""
    odd = str(
        await open_case(db, tenant_id, sender="odd@adatum.example", sender_domain="adatum.example", folder=Folder.JUNK)
    )
    await open_case(db, tenant_id)
    for query in ("sender=ODD@adatum.example", "sender_domain=adatum.example", "folder=junk"):
        _, page = await client("GET", f"/v1/cases?{query}", token("SecurityReader"))
        assert [item["case_id"] for item in page["items"]] == [odd], query
    for query, count in (
        ("status=open", 2),
        ("status=resolved", 0),
        ("reported_as=phishing", 2),
        ("conclusion=threat", 0),
    ):
        _, page = await client("GET", f"/v1/cases?{query}", token("SecurityReader"))
        assert len(page["items"]) == count, query


@pytest.mark.parametrize(
    "query", ["cursor=nonsense", "cursor=MjAyNg==", "cursor=eCB5", "limit=0", "limit=201", "status=odd", "limit=x"]
)
async def test_a_malformed_query_is_refused(db: Database, client: Any, token: Any, query: str) -> None:
    """Never an empty list in place of an error."""
    del db
    assert (await client("GET", f"/v1/cases?{query}", token("SecurityReader")))[0] == 422


async def submitted(db: Database, tenant_id: UUID) -> SubmissionRequested:
    """Open a case that the policy submits."""
    events = await take(db, report(tenant_id, f"<{uuid4()}@fabrikam.example>"), policy=AUTO)
    return of(events, SubmissionRequested)[0]


def verdict(request: SubmissionRequested, conclusion: Conclusion, override: str | None = None) -> VerdictReady:
    """Make the verdict of a submission."""
    return VerdictReady(
        **JUDGED,
        tenant_id=request.tenant_id,
        submission_id=request.submission_id,
        case_id=request.case_id,
        graph_id="g",
        conclusion=conclusion,
        override=override,
        verdict="threatsFound",
        causes=(Cause(rule="R17", title="The filter missed it", evidence=("result threatsFound",)),),
        settings_read=True,
        read_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    ("conclusion", "override", "status", "change"),
    [
        (Conclusion.THREAT, None, "resolved", "resolved"),
        (Conclusion.CLEAN, None, "resolved", "resolved"),
        (Conclusion.SIMULATION, None, "resolved", "resolved"),
        (Conclusion.UNKNOWN, None, "open", "reopened"),
        (Conclusion.UNKNOWN, "allowed", "resolved", "resolved"),
        (Conclusion.UNKNOWN, "blocked", "resolved", "resolved"),
        (Conclusion.UNKNOWN, "a word of a later version", "open", "reopened"),
    ],
)
async def test_a_verdict_ends_the_submission(
    db: Database,
    tenant_id: UUID,
    client: Any,
    token: Any,
    conclusion: Conclusion,
    override: str | None,
    status: str,
    change: str,
) -> None:
    """A case is resolved by what Microsoft says of the mail or of a setting, and open again when it says nothing."""
    request = await submitted(db, tenant_id)
    for _ in range(2):
        await hear(db, verdict(request, conclusion, override))
    _, case = await client("GET", f"/v1/cases/{request.case_id}", token("SecurityReader"))

    assert [event.change for event in await emitted(db)] == [change]
    assert (case["status"], case["conclusion"]) == (status, conclusion)
    assert [entry["kind"] for entry in case["timeline"]].count("verdict.ready") == 1
    assert case["verdict"]["causes"][0]["rule"] == "R17"


async def test_outcomes_that_arrive_in_any_order_leave_the_same_case(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Topics are not ordered against each other; times are."""
    request = await submitted(db, tenant_id)
    created = SubmissionCreated(
        **request.model_dump(include={"tenant_id", "submission_id", "case_id", "category", "recipient", "message"}),
        graph_id="g",
        adopted=False,
        created_at=datetime.now(UTC),
    )
    early = datetime.now(UTC)
    await hear(db, verdict(request, Conclusion.THREAT))
    await hear(db, created, time=early)
    _, case = await client("GET", f"/v1/cases/{request.case_id}", token("SecurityReader"))

    assert case["status"] == "resolved"
    assert [entry["kind"] for entry in case["timeline"]][-2:] == ["submission.created", "verdict.ready"]


async def test_a_failed_submission_reopens_the_case_and_it_can_be_submitted_again(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """The second submission is another one; what is late about the first changes nothing."""
    first = await submitted(db, tenant_id)
    failed = SubmissionFailed(
        tenant_id=tenant_id,
        submission_id=first.submission_id,
        case_id=first.case_id,
        reason="refused",
        detail="the mail is too large",
        failed_at=datetime.now(UTC),
    )
    await hear(db, failed)
    assert [event.change for event in await emitted(db)] == ["reopened"]
    decision = {"action": "submit", "category": "phishing"}
    assert (
        await client("POST", f"/v1/cases/{first.case_id}/decisions", token("SecurityAdministrator"), json=decision)
    )[0] == 202
    (second,) = of(await emitted(db), SubmissionRequested)
    await hear(db, verdict(first, Conclusion.CLEAN))
    _, case = await client("GET", f"/v1/cases/{first.case_id}", token("SecurityReader"))

    assert second.submission_id != first.submission_id
    assert (case["status"], await emitted(db)) == ("submitted", [])


async def test_what_became_of_a_block_is_told_and_it_can_be_wanted_again_after_a_failure(
    db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Refusals are visible in the case; a mailbox's own block is not triage's affair."""
    admin, case_id = token("SecurityAdministrator"), await open_case(db, tenant_id)
    path = f"/v1/cases/{case_id}/decisions"
    await client("POST", path, admin, json={"action": "block", "blocks": [{}]})
    (wanted,) = of(await emitted(db), BlockRequested)
    failed = BlockFailed(
        tenant_id=tenant_id, block=wanted.block, reason="limit", detail="the list is full", failed_at=datetime.now(UTC)
    )
    own = Block(block_id=uuid4(), scope="mailbox", kind="sender", value="a@b.example", mailbox="m", report_id=uuid4())
    applied = BlockApplied(tenant_id=tenant_id, block=own, already_present=False, applied_at=datetime.now(UTC))
    await hear(db, failed)
    await hear(db, applied)
    status, case = await client("POST", path, admin, json={"action": "block", "blocks": [{}]})
    (again,) = of(await emitted(db), BlockRequested)

    assert status == 202
    assert again.block.block_id != wanted.block.block_id
    assert [block["status"] for block in case["blocks"]] == ["failed", "requested"]
    assert "the list is full" in str(case["timeline"])
