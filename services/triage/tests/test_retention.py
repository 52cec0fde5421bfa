"""Closed cases are forgotten when their time is over, once, and no others. Time passes in the database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import ValidationError

import triage
from backstop_contracts import (
    EVENTS,
    Actor,
    Block,
    BlockApplied,
    BlockRequested,
    CaseExpired,
    CaseUpdated,
    Category,
    Conclusion,
    Delivery,
    Folder,
    Message,
    MessageReported,
    ReportedAs,
    SubmissionCreated,
    SubmissionRequested,
    VerdictReady,
)
from chassis.postgres import Database
from chassis.testing import deliver
from conftest import JUDGED
from triage import cases, handlers, store
from triage.app import Settings
from triage.http import make_router
from triage.retention import CASES, Retention, expire_due, fitting
from triage.rules import Policy

MODELS = {model.topic(): model for model in EVENTS}
TABLES = ("cases", "case_keys", "reports", "timeline", "blocks")
ADMIN = Actor(kind="user", id="admin")
AUTO = Policy.model_validate({"rule": [{"name": "auto", "then": {"submit": "as-reported", "block": "sender"}}]})
DEFAULT = Retention()


@pytest.fixture
async def connect(database: str) -> AsyncIterator[Callable[..., Any]]:
    """Open triage's own database, as often as there are replicas."""
    opened = []

    async def connect() -> Database:
        db = Database(database, schema="triage")
        await db.open(Path(triage.__file__).parent / "migrations")
        opened.append(db)
        return db

    yield connect
    for db in opened:
        await db.close()


@pytest.fixture
async def db(connect: Any) -> Database:
    """Triage's own database."""
    opened: Database = await connect()
    return opened


def report(tenant_id: UUID, message_id: str) -> MessageReported:
    """Make a report."""
    return MessageReported(
        tenant_id=tenant_id,
        report_id=uuid4(),
        reporter="user@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.INBOX,
        channel="api",
        reported_at=datetime.now(UTC),
        message=Message(
            sha256="0" * 64,
            size=1,
            internet_message_id=message_id,
            fingerprint=f"v1:what {message_id} says",
            sender="bad@fabrikam.example",
            sender_domain="fabrikam.example",
            delivery=Delivery(dmarc="pass", header_from="fabrikam.example"),
        ),
    )


async def take(db: Database, *reports: MessageReported, policy: Policy | None = None) -> list[Any]:
    """Handle reports as one batch; return what was emitted."""
    await hear(db, *reports, policy=policy)
    return await emitted(db)


async def hear(db: Database, *events: Any, policy: Policy | None = None) -> None:
    """Hand events to triage as Kafka would."""
    await deliver(handlers.router, db, *events, policy=policy or Policy())


async def emitted(db: Database) -> list[Any]:
    """Take what lies in the outbox."""
    rows = await db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
    return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]


def of(events: list[Any], model: type[Any]) -> list[Any]:
    """Pick the events of one kind."""
    return [event for event in events if isinstance(event, model)]


async def open_case(db: Database, tenant_id: UUID, message_id: str | None = None) -> UUID:
    """Open a case."""
    (opened,) = await take(db, report(tenant_id, message_id or f"<{uuid4()}@fabrikam.example>"))
    return UUID(str(opened.case_id))


async def dismiss(db: Database, case_id: UUID) -> UUID:
    """Have an admin dismiss a case."""
    async with db.transaction() as tx:
        await cases.dismiss(tx, (await store.lock_cases(tx, [case_id]))[case_id], by=ADMIN, note=None, cause=None)
    await emitted(db)
    return case_id


async def pass_days(db: Database, days: int) -> None:
    """Let time pass for everything that there is."""
    past = timedelta(days=days)
    await db.pool.execute(
        "UPDATE cases SET quiet_since = quiet_since - $1::interval, opened_at = opened_at - $1::interval", past
    )
    await db.pool.execute("UPDATE timeline SET at = at - $1::interval", past)


async def expire(db: Database, retention: Retention = DEFAULT) -> set[UUID]:
    """Work until nothing is due; return the cases that were told to have expired, each once."""
    while await expire_due(db, retention):
        pass
    told = await emitted(db)
    assert {type(event) for event in told} <= {CaseExpired}
    assert len({event.case_id for event in told}) == len(told)
    return {event.case_id for event in told}


async def left(db: Database) -> dict[str, int]:
    """Count what is kept."""
    return {table: await db.pool.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


async def submitted(db: Database, tenant_id: UUID) -> SubmissionRequested:
    """Open a case that the policy submits, and blocks the sender of."""
    request: SubmissionRequested
    (request,) = of(
        await take(db, report(tenant_id, f"<{uuid4()}@fabrikam.example>"), policy=AUTO), SubmissionRequested
    )
    return request


async def judge(db: Database, request: SubmissionRequested) -> list[Any]:
    """Let Microsoft's verdict arrive; return what was emitted."""
    verdict = VerdictReady(
        **JUDGED,
        tenant_id=request.tenant_id,
        submission_id=request.submission_id,
        case_id=request.case_id,
        graph_id="g",
        conclusion=Conclusion.THREAT,
        verdict="threatsFound",
        settings_read=True,
        read_at=datetime.now(UTC),
    )
    await hear(db, verdict)
    return await emitted(db)


async def test_a_closed_case_is_forgotten_with_all_that_belongs_to_it(
    db: Database, tenant_id: UUID, call: Any, token: Any
) -> None:
    """After 30 days nothing of it is left, others hear of it, and over HTTP it is as unknown as any other id."""
    request = await submitted(db, tenant_id)
    await judge(db, request)
    assert all((await left(db)).values())

    await pass_days(db, 29)
    assert await expire(db) == set()
    await pass_days(db, 2)
    assert await expire_due(db, DEFAULT) == 1
    (event,) = await emitted(db)
    assert await expire_due(db, DEFAULT) == 0

    assert (event.tenant_id, event.case_id, event.report_count) == (tenant_id, request.case_id, 1)
    assert timedelta(days=30) < event.expired_at - event.last_active_at < timedelta(days=32)
    assert not any((await left(db)).values())
    client = await call(make_router(db))
    status, gone = await client("GET", f"/v1/cases/{request.case_id}", token("SecurityReader"))
    _, unknown = await client("GET", f"/v1/cases/{uuid4()}", token("SecurityReader"))
    assert (status, gone["type"]) == (404, unknown["type"])
    status, _ = await client(
        "POST", f"/v1/cases/{request.case_id}/decisions", token("SecurityAdministrator"), json={"action": "dismiss"}
    )
    assert status == 404


async def test_a_case_that_is_open_or_submitted_never_expires(db: Database, tenant_id: UUID) -> None:
    """However old: somebody still has to decide, or Microsoft has to answer."""
    await open_case(db, tenant_id)
    await submitted(db, tenant_id)
    before = await left(db)
    await pass_days(db, 4000)

    assert await expire(db, Retention(15)) == set()
    assert await left(db) == before


async def test_a_case_is_kept_as_long_as_something_happens_to_it(db: Database, tenant_id: UUID) -> None:
    """An outcome counts as much as its closing; a later report is another case's affair."""
    told, blocked = await dismiss(db, await open_case(db, tenant_id, "<m@x.example>")), await submitted(db, tenant_id)
    await judge(db, blocked)
    quiet = await dismiss(db, await open_case(db, tenant_id))
    await pass_days(db, 29)
    await take(db, report(tenant_id, "<m@x.example>"))
    wish = Block(block_id=uuid4(), scope="tenant", kind="sender", value="b@x.example", case_id=blocked.case_id)
    applied = BlockApplied(tenant_id=tenant_id, block=wish, already_present=False, applied_at=datetime.now(UTC))
    await hear(db, applied)
    await emitted(db)

    await pass_days(db, 2)
    assert await expire(db) == {quiet, told}
    await pass_days(db, 27)
    assert await expire(db) == set()
    await pass_days(db, 2)
    assert await expire(db) == {blocked.case_id}


async def test_each_tenant_has_its_own_days(db: Database) -> None:
    """Also a tenant that is not served any more."""
    usual, long, short = uuid4(), uuid4(), uuid4()
    cases = {tenant: await dismiss(db, await open_case(db, tenant)) for tenant in (usual, long, short)}
    retention = Retention(30, {long: 365, short: 15})

    for days, gone in ((14, set()), (2, {short}), (13, set()), (2, {usual}), (333, set()), (2, {long})):
        await pass_days(db, days)
        assert await expire(db, retention) == {cases[tenant] for tenant in gone}


async def test_a_mail_that_is_reported_again_after_its_case_expired_opens_another_case(
    db: Database, tenant_id: UUID
) -> None:
    """Same mail, even the same report, but no id is used twice: what is late about the old case meets nobody."""
    old = await submitted(db, tenant_id)
    await judge(db, old)
    await pass_days(db, 31)
    await expire(db)
    again = report(tenant_id, str(old.message.internet_message_id))
    events = await take(db, again, policy=AUTO)

    (opened, *_), (new,), (block,) = (
        of(events, CaseUpdated),
        of(events, SubmissionRequested),
        of(events, BlockRequested),
    )
    assert (opened.change, opened.report_count) == ("opened", 1)
    assert new.case_id == block.block.case_id == opened.case_id != old.case_id
    assert new.submission_id != old.submission_id


async def test_a_report_that_comes_while_its_case_is_forgotten_opens_another_that_can_be_joined(
    db: Database, tenant_id: UUID
) -> None:
    """It waits for its turn and finds the old case gone, keys included."""
    old = await dismiss(db, await open_case(db, tenant_id, "<m@x.example>"))
    await pass_days(db, 31)
    async with held(db) as release:
        expiring = asyncio.create_task(expire_due(db, DEFAULT))
        await waiting(db, 1)
        reporting = asyncio.create_task(take(db, report(tenant_id, "<m@x.example>")))
        await waiting(db, 2)
        await release()
        await expiring
    opened = of(await reporting, CaseUpdated)[0]
    (joined,) = await take(db, report(tenant_id, "<m@x.example>"))

    assert (opened.change, opened.case_id == old) == ("opened", False)
    assert (joined.change, joined.case_id) == ("joined", opened.case_id)


async def test_killed_in_the_middle_nothing_has_happened_and_the_next_run_does_it(
    db: Database, tenant_id: UUID
) -> None:
    """No half-forgotten case, and no event of one that is still there."""
    case_id = await dismiss(db, await open_case(db, tenant_id))
    await pass_days(db, 31)
    before = await left(db)
    async with held(db):
        expiring = asyncio.create_task(expire_due(db, DEFAULT))
        await waiting(db, 1)
        expiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await expiring

    assert (await left(db), await emitted(db)) == (before, [])
    assert await expire(db) == {case_id}


async def test_replicas_that_work_at_once_tell_each_case_once(connect: Any, tenant_id: UUID) -> None:
    """In bounded batches, until none is left."""
    replicas = [await connect() for _ in range(2)]
    db = replicas[0]
    count = CASES + 50
    await take(db, *(report(tenant_id, f"<{number}@x.example>") for number in range(count)))
    await db.pool.execute("UPDATE cases SET status = 'resolved'")
    await pass_days(db, 31)

    async def work(replica: Database) -> None:
        while handled := await expire_due(replica, DEFAULT):
            assert handled <= CASES

    await asyncio.gather(*map(work, replicas))
    assert len(await expire(db)) == count
    assert not any((await left(db)).values())


async def test_what_is_late_about_an_expired_case_changes_nothing(db: Database, tenant_id: UUID) -> None:
    """Verdicts, submissions and blocks of it may be read from their topics again."""
    request = await submitted(db, tenant_id)
    await judge(db, request)
    await pass_days(db, 31)
    await expire(db)

    created = SubmissionCreated(
        **request.model_dump(include={"tenant_id", "submission_id", "case_id", "recipient", "message"}),
        category=Category.PHISHING,
        graph_id="g",
        adopted=False,
        created_at=datetime.now(UTC),
    )
    wish = Block(block_id=uuid4(), scope="tenant", kind="sender", value="b@x.example", case_id=request.case_id)
    applied = BlockApplied(tenant_id=tenant_id, block=wish, already_present=False, applied_at=datetime.now(UTC))
    assert await judge(db, request) == []
    await hear(db, created)
    await hear(db, applied)

    assert await emitted(db) == []
    assert not any((await left(db)).values())


def test_a_batch_is_bounded_by_its_reports_but_takes_one_case_in_any_case() -> None:
    """Ten thousand reports of one campaign are one batch."""
    first, second, third = uuid4(), uuid4(), uuid4()
    assert fitting({first: 3, second: 4, third: 5}, 7) == [first, second]
    assert fitting({first: 10_000, second: 1}, 7) == [first]
    assert fitting({}, 7) == []


REQUIRED = {
    "api_audience": "a",
    "tenants": "3f2b6f0e-8c1d-4a57-9e64-2d0b7a95c318",
    "postgres_dsn": "postgresql:///x",
    "kafka_bootstrap": "localhost:9092",
}
TENANT = UUID("3f2b6f0e-8c1d-4a57-9e64-2d0b7a95c318")


def test_the_retention_is_30_days_unless_the_settings_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """In general, and by tenant."""
    for name, value in REQUIRED.items():
        monkeypatch.setenv(f"BACKSTOP_{name.upper()}", value)
    assert Settings().retention().of(TENANT) == timedelta(days=30)

    monkeypatch.setenv("BACKSTOP_RETENTION_DAYS", "60")
    monkeypatch.setenv("BACKSTOP_RETENTION_DAYS_BY_TENANT", f"{TENANT}=365, {uuid4()}=15")
    assert Settings().retention().of(TENANT) == timedelta(days=365)
    assert Settings().retention().of(uuid4()) == timedelta(days=60)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RETENTION_DAYS", "0", "15 days are the least: Kafka may hold the events of a case for 14 days"),
        ("RETENTION_DAYS", "14", "would be reported, submitted and blocked once more"),
        ("RETENTION_DAYS", "a month", "valid integer"),
        ("RETENTION_DAYS_BY_TENANT", f"{TENANT}=7", "the retention is too short; 15 days are the least"),
        ("RETENTION_DAYS_BY_TENANT", f"{TENANT}:60", "write it as tenant=days,tenant=days"),
        ("RETENTION_DAYS_BY_TENANT", f"{TENANT}=60,{TENANT}=90", "a tenant is named twice"),
        ("RETENTION_DAYS_BY_TENANT", "contoso=60", "valid UUID"),
    ],
)
def test_a_retention_that_cannot_be_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    """With the reason."""
    for required, given in REQUIRED.items():
        monkeypatch.setenv(f"BACKSTOP_{required.upper()}", given)
    monkeypatch.setenv(f"BACKSTOP_{name}", value)
    with pytest.raises(ValidationError, match=complaint):
        Settings()


class held:  # noqa: N801 - reads as `async with held(db) as release`
    """Hold every report's row, so that whoever deletes it stands still in the middle of its transaction."""

    def __init__(self, db: Database) -> None:
        self._pool = db.pool

    async def __aenter__(self) -> Any:
        self._connection = await self._pool.acquire()
        self._transaction: asyncpg.transaction.Transaction | None = self._connection.transaction()
        await self._transaction.start()
        await self._connection.execute("SELECT FROM reports FOR UPDATE")
        return self._release

    async def _release(self) -> None:
        if self._transaction:
            await self._transaction.rollback()
            self._transaction = None

    async def __aexit__(self, *_: object) -> None:
        await self._release()
        await self._pool.release(self._connection)


async def waiting(db: Database, count: int) -> None:
    """Wait until so many of this database's sessions wait for a lock."""
    async with asyncio.timeout(30):
        while count != await db.pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)
