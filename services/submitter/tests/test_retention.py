"""Calls that no longer count and submissions of expired cases are deleted."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from backstop_contracts import CaseExpired
from chassis.postgres import Database


async def test_calls_that_no_longer_count_are_deleted(world: Any, db: Database) -> None:
    """The table of calls does not grow for ever."""
    await db.pool.execute(
        "INSERT INTO calls SELECT gen_random_uuid(), gen_random_uuid(), 'x', now() - hours * interval '1 hour'"
        " FROM unnest(ARRAY[1, 47, 49]) AS hours"
    )
    async with world.start() as worker:
        await worker.purge_calls()
    assert await db.pool.fetchval("SELECT count(*) FROM calls") == 2


async def test_an_expired_case_loses_its_ended_submissions_and_keeps_a_due_one(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """An expiry that comes twice, or for an unknown case, changes nothing; other cases stay."""
    made_one, other = await world.request(), await world.request()
    failed = await world.request(stored=False)
    async with world.start() as worker:
        await worker.submit_due()
        due = await world.request()
        gone = [made_one.case_id, failed.case_id, due.case_id, uuid4()]
        now = datetime.now(UTC)
        events = [
            CaseExpired(tenant_id=tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now)
            for case_id in gone
        ]
        for _ in range(2):
            await world.consume(*events)
        left = {row["case_id"]: row["state"] for row in await db.pool.fetch("SELECT case_id, state FROM submissions")}
        assert left == {other.case_id: "created", due.case_id: "due"}
        await worker.submit_due()
    assert len(world.made()) == 3
