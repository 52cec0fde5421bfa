"""Microsoft's quota holds across replicas, and a throttled tenant is left alone."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import SubmissionCreated, SubmissionDelayed
from chassis.postgres import Database
from simulator import Simulator
from simulator.tenant import TenantSettings
from submitter.rules import Quota

CREATE = "graph.emailThreats.create"


async def test_the_quota_holds_across_replicas_and_each_delay_is_published_once(
    world: Any, microsoft: Simulator
) -> None:
    """Submissions over the quota wait, and Microsoft never has to throttle."""
    for _ in range(6):
        await world.request()
    quota = Quota(4, 3, timedelta(minutes=15))
    async with world.start(quota, batch=2) as one, world.start(quota, batch=2) as other:
        while sum(await asyncio.gather(one.submit_due(), other.submit_due())):
            pass
        events = await world.emitted()
        await world.make_due()
        await one.submit_due()
    delayed = [event for event in events if isinstance(event, SubmissionDelayed)]

    assert len(world.made()) == 4
    assert [event.reason for event in delayed] == ["quota", "quota"]
    assert all(event.retry_at > datetime.now(UTC) + timedelta(minutes=14) for event in delayed)
    assert await world.emitted() == []
    assert microsoft.state.ledger.contents()["throttled"] == {}


@pytest.mark.parametrize("retry_after", [7, None], ids=["with Retry-After", "without"])
async def test_a_throttled_submission_waits_and_is_made_later(
    world: Any, db: Database, retry_after: int | None
) -> None:
    """It waits for Retry-After, or for an increasing pause of our own."""
    await world.request()
    world.order_fault(kind="throttle", **({"retry_after": retry_after} if retry_after else {}))
    async with world.start() as worker:
        before = datetime.now(UTC)
        await worker.submit_due()
        after = datetime.now(UTC)
        due_at = await db.pool.fetchval("SELECT due_at FROM submissions")
        await world.make_due()
        await worker.submit_due()
    delayed, created = await world.emitted()

    assert (delayed.reason, delayed.retry_at) == ("throttled", due_at)
    if retry_after:
        assert before <= due_at - timedelta(seconds=retry_after) <= after
    assert isinstance(created, SubmissionCreated)
    assert len(world.made()) == 1


@pytest.mark.parametrize("route", [CREATE, "graph.emailThreats.list"])
async def test_no_replica_calls_about_a_throttled_tenant_while_other_tenants_go_on(
    world: Any, db: Database, microsoft: Simulator, tenant_id: UUID, route: str
) -> None:
    """Throttled calls count, so submissions that come due meanwhile wait for Retry-After, too."""
    for _ in range(3):
        await world.request()
    if route != CREATE:
        await db.pool.execute("UPDATE submissions SET sent_at = now()")
    world.order_fault(route=route, kind="throttle", retry_after=600)
    async with world.start(batch=1) as one, world.start(batch=1) as other:
        while sum([await one.submit_due(), await other.submit_due()]):
            pass
        await world.request()
        neighbour = microsoft.state.add_tenant(TenantSettings(id=str(uuid4())))
        await world.request(tenant_id=UUID(neighbour.id))
        while sum([await one.submit_due(), await other.submit_due()]):
            pass
    answers = microsoft.state.ledger.contents()["answers"]
    delays = [event for event in await world.emitted() if isinstance(event, SubmissionDelayed)]

    assert answers[route]["429"] == 1
    assert [entry["tenant"] for entry in world.made()] == [neighbour.id]
    assert [(event.tenant_id, event.reason) for event in delays] == [(tenant_id, "throttled")] * 4
    assert all(event.retry_at > datetime.now(UTC) + timedelta(minutes=9) for event in delays)


async def test_a_throttled_item_delays_no_other_item(world: Any) -> None:
    """Microsoft asks for a day when somebody else has submitted the item three times."""
    await world.request()
    world.order_fault(kind="throttle", retry_after=24 * 3600)
    async with world.start() as worker:
        await worker.submit_due()
        other = await world.request()
        await worker.submit_due()
    assert [entry["internet_message_id"] for entry in world.made()] == [other.message.internet_message_id]
