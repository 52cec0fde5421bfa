"""Closed cases are deleted when their retention is over, once, and no others. Time passes in the database."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from backstop_contracts import (
    Actor,
    Block,
    BlockApplied,
    BlockRequested,
    CaseExpired,
    CaseUpdated,
    Category,
    Conclusion,
    SubmissionCreated,
    SubmissionRequested,
)
from chassis.postgres import Database
from triage import cases, store
from triage.http import make_router
from triage.retention import CASES, Retention, expire_due, fitting

TABLES = ("cases", "case_keys", "reports", "timeline", "blocks")
ADMIN = Actor(kind="user", id="admin")
DEFAULT = Retention()


async def dismiss(world: Any, case_id: UUID) -> UUID:
    """Have an admin dismiss a case."""
    async with world.db.transaction() as tx:
        case = (await store.lock_cases(tx, [case_id]))[case_id]
        await cases.dismiss(tx, case, by=ADMIN, note=None, cause=world.trace)
    await world.emitted()
    return case_id


async def pass_days(db: Database, days: int) -> None:
    """Let time pass for everything that there is."""
    past = timedelta(days=days)
    await db.pool.execute(
        "UPDATE cases SET quiet_since = quiet_since - $1::interval, opened_at = opened_at - $1::interval", past
    )
    await db.pool.execute("UPDATE timeline SET at = at - $1::interval", past)


async def expire(world: Any, retention: Retention = DEFAULT) -> set[UUID]:
    """Work until nothing is due; return the cases whose expiry was published, each once."""
    while await expire_due(world.db, retention):
        pass
    published = await world.emitted()
    assert {type(event) for event in published} <= {CaseExpired}
    assert len({event.case_id for event in published}) == len(published)
    return {event.case_id for event in published}


async def left(db: Database) -> dict[str, int]:
    """Count what is left in each table."""
    return {table: await db.pool.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


async def judge(world: Any, request: SubmissionRequested) -> list[Any]:
    """Deliver Microsoft's verdict of a submission; return what was emitted."""
    await world.consume(world.verdict(request, Conclusion.THREAT))
    emitted: list[Any] = await world.emitted()
    return emitted


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


async def test_an_expired_case_is_deleted_with_everything_that_belongs_to_it(
    world: Any, db: Database, tenant_id: UUID, call: Any, token: Any
) -> None:
    """After 30 days nothing of it is left, its expiry is published, and over HTTP it is as unknown as any other id."""
    request = await world.submitted(tenant_id)
    await judge(world, request)
    assert all((await left(db)).values())

    await pass_days(db, 29)
    assert await expire(world) == set()
    await pass_days(db, 2)
    assert await expire_due(db, DEFAULT) == 1
    (event,) = await world.emitted()
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


async def test_an_open_or_submitted_case_never_expires(world: Any, db: Database, tenant_id: UUID) -> None:
    """However old it is, an admin still has to decide, or Microsoft has to answer."""
    await world.open_case(tenant_id)
    await world.submitted(tenant_id)
    before = await left(db)
    await pass_days(db, 4000)

    assert await expire(world, Retention(15)) == set()
    assert await left(db) == before


async def test_an_outcome_prolongs_the_retention_of_a_case(world: Any, db: Database, tenant_id: UUID) -> None:
    """A later report does not, because it belongs to another case."""
    told, blocked = (
        await dismiss(world, await world.open_case(tenant_id, "<m@x.example>")),
        await world.submitted(tenant_id),
    )
    await judge(world, blocked)
    quiet = await dismiss(world, await world.open_case(tenant_id))
    await pass_days(db, 29)
    await world.take(world.report(tenant_id, "<m@x.example>"))
    wish = Block(block_id=uuid4(), scope="tenant", kind="sender", value="b@x.example", case_id=blocked.case_id)
    applied = BlockApplied(tenant_id=tenant_id, block=wish, already_present=False, applied_at=datetime.now(UTC))
    await world.consume(applied)
    await world.emitted()

    await pass_days(db, 2)
    assert await expire(world) == {quiet, told}
    await pass_days(db, 27)
    assert await expire(world) == set()
    await pass_days(db, 2)
    assert await expire(world) == {blocked.case_id}


async def test_each_tenant_has_its_own_retention(world: Any, db: Database) -> None:
    """Cases of tenants that are no longer served expire, too."""
    usual, long, short = uuid4(), uuid4(), uuid4()
    cases = {tenant: await dismiss(world, await world.open_case(tenant)) for tenant in (usual, long, short)}
    retention = Retention(30, {long: 365, short: 15})

    for days, gone in ((14, set()), (2, {short}), (13, set()), (2, {usual}), (333, set()), (2, {long})):
        await pass_days(db, days)
        assert await expire(world, retention) == {cases[tenant] for tenant in gone}


async def test_a_message_reported_again_after_its_case_expired_opens_a_new_case(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """No id is used twice, even if the report is the same: late events about the old case match nothing."""
    old = await world.submitted(tenant_id)
    await judge(world, old)
    await pass_days(db, 31)
    await expire(world)
    again = world.report(tenant_id, str(old.message.internet_message_id))
    events = await world.take(again, policy=world.auto)

    (opened, *_), (new,), (block,) = (
        world.of(events, CaseUpdated),
        world.of(events, SubmissionRequested),
        world.of(events, BlockRequested),
    )
    assert (opened.change, opened.report_count) == ("opened", 1)
    assert new.case_id == block.block.case_id == opened.case_id != old.case_id
    assert new.submission_id != old.submission_id


async def test_a_report_that_arrives_while_its_case_is_deleted_opens_a_new_case(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """It waits for the lock and finds the old case gone, keys included. Later reports join the new case."""
    old = await dismiss(world, await world.open_case(tenant_id, "<m@x.example>"))
    await pass_days(db, 31)
    async with held(db) as release:
        expiring = asyncio.create_task(expire_due(db, DEFAULT))
        await waiting(db, 1)
        reporting = asyncio.create_task(world.take(world.report(tenant_id, "<m@x.example>")))
        await waiting(db, 2)
        await release()
        await expiring
    opened = world.of(await reporting, CaseUpdated)[0]
    (joined,) = await world.take(world.report(tenant_id, "<m@x.example>"))

    assert (opened.change, opened.case_id == old) == ("opened", False)
    assert (joined.change, joined.case_id) == ("joined", opened.case_id)


async def test_a_killed_expiry_changes_nothing_and_the_next_run_completes_it(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """No case is half deleted, and no event announces the expiry of a case that is still there."""
    case_id = await dismiss(world, await world.open_case(tenant_id))
    await pass_days(db, 31)
    before = await left(db)
    async with held(db):
        expiring = asyncio.create_task(expire_due(db, DEFAULT))
        await waiting(db, 1)
        expiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await expiring

    assert (await left(db), await world.emitted()) == (before, [])
    assert await expire(world) == {case_id}


async def test_concurrent_replicas_publish_each_expiry_once(world: Any, connect: Any, tenant_id: UUID) -> None:
    """They work in bounded batches until no expired case is left."""
    replicas = [await connect() for _ in range(2)]
    db = replicas[0]
    count = CASES + 50
    await world.take(*(world.report(tenant_id, f"<{number}@x.example>") for number in range(count)))
    await db.pool.execute("UPDATE cases SET status = 'resolved'")
    await pass_days(db, 31)

    async def work(replica: Database) -> None:
        while handled := await expire_due(replica, DEFAULT):
            assert handled <= CASES

    await asyncio.gather(*map(work, replicas))
    assert len(await expire(world)) == count
    assert not any((await left(db)).values())


async def test_late_events_about_an_expired_case_change_nothing(world: Any, db: Database, tenant_id: UUID) -> None:
    """Verdicts, submissions and blocks of it may be read from their topics again."""
    request = await world.submitted(tenant_id)
    await judge(world, request)
    await pass_days(db, 31)
    await expire(world)

    created = SubmissionCreated(
        **request.model_dump(include={"tenant_id", "submission_id", "case_id", "recipient", "message"}),
        category=Category.PHISHING,
        graph_id="g",
        adopted=False,
        created_at=datetime.now(UTC),
    )
    wish = Block(block_id=uuid4(), scope="tenant", kind="sender", value="b@x.example", case_id=request.case_id)
    applied = BlockApplied(tenant_id=tenant_id, block=wish, already_present=False, applied_at=datetime.now(UTC))
    assert await judge(world, request) == []
    await world.consume(created)
    await world.consume(applied)

    assert await world.emitted() == []
    assert not any((await left(db)).values())


def test_a_batch_is_bounded_by_its_reports_but_holds_at_least_one_case() -> None:
    """Even a case of ten thousand reports is deleted."""
    first, second, third = uuid4(), uuid4(), uuid4()
    assert fitting({first: 3, second: 4, third: 5}, 7) == [first, second]
    assert fitting({first: 10_000, second: 1}, 7) == [first]
    assert fitting({}, 7) == []
