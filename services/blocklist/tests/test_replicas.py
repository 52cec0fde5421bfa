"""Several workers share the entries."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from backstop_contracts import Envelope
from blocklist import handlers, store
from chassis.subscribing import Received

NEW = "exchange.New-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LEASE = timedelta(minutes=4)


async def test_two_workers_never_claim_the_same_entry(world: Any) -> None:
    """A claimed entry is skipped by the other worker, before and after the claim is committed."""
    await world.consume(*(world.request(f"bad{number}@fabrikam.example") for number in range(10)))
    async with world.db.transaction() as one, world.db.transaction() as other:
        first, second = await store.claim(one, LEASE, 6), await store.claim(other, LEASE, 6)

    assert {len(first), len(second)} == {6, 4}
    assert not {entry.value for entry in first} & {entry.value for entry in second}
    assert await world.settle() == []


async def test_concurrent_workers_add_each_entry_once(world: Any) -> None:
    """However many there are."""
    await world.consume(*(world.request(f"bad{number}@fabrikam.example") for number in range(30)))
    workers = [world.worker(batch=4) for _ in range(3)]
    results = await asyncio.gather(*(world.settle(worker) for worker in workers))

    assert sum(map(len, results)) == len(world.ledger("tenant_blocks")) == world.calls(NEW) == 30


async def test_a_request_for_a_claimed_entry_waits_for_its_release(world: Any) -> None:
    """Two cases, two workers, one entry."""
    world.fault(NEW, "timeout", seconds=600)
    first, second = world.request(), world.request()
    await world.consume(first)
    settling = asyncio.create_task(world.worker().settle_due())
    await world.wait_for(lambda: world.ledger("tenant_blocks"))
    await world.consume(second)
    assert await world.worker().settle_due() == 0

    world.state.faults.release()
    await settling
    events = await world.settle()
    assert {event.block.block_id: event.already_present for event in events} == {
        first.block.block_id: False,
        second.block.block_id: True,
    }
    assert world.calls(NEW) == 1


async def test_a_request_recorded_while_its_entry_is_being_settled_is_not_lost(world: Any) -> None:
    """The two transactions are serialised: the later one sees the other."""
    world.fault(NEW, "timeout", seconds=600)
    first, second = world.request(), world.request()
    await world.consume(first)
    settling = asyncio.create_task(world.worker().settle_due())
    await world.wait_for(lambda: world.ledger("tenant_blocks"))
    async with world.db.transaction() as tx:
        envelope = Envelope(str(uuid4()), "/test", "test", datetime.now(UTC), TRACE)
        await handlers.on_block_requested([Received(second, envelope)], tx)
        world.state.faults.release()
        async with asyncio.timeout(20):
            while not await world.db.pool.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.01)
    await settling
    events = await world.settle()

    assert {event.block.block_id for event in events} == {first.block.block_id, second.block.block_id}


async def test_a_failure_with_one_entry_does_not_stop_the_others(world: Any) -> None:
    """One outcome cannot be stored; the others are recorded, and the one comes due again."""
    await world.consume(world.request(), world.request("other@fabrikam.example"))
    await world.db.pool.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF new.value = 'bad@fabrikam.example' THEN RAISE 'broken'; END IF; RETURN new; END $$;"
        " CREATE TRIGGER fail BEFORE UPDATE ON blocks FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    with pytest.raises(asyncpg.RaiseError):
        await world.worker().settle_due()
    (applied,) = await world.emitted()
    assert applied.block.value == "other@fabrikam.example"

    await world.db.pool.execute("DROP TRIGGER fail ON blocks")
    await world.pass_time(LEASE)
    (applied,) = await world.settle()
    assert (applied.block.value, applied.already_present, world.calls(NEW)) == (SENDER, False, 2)
