"""Calls whose answer was lost: the next attempt checks before it repeats them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from blocklist import store

NEW = "exchange.New-TenantAllowBlockListItems"
GET = "exchange.Get-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
LEASE = timedelta(minutes=4)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize("kind", ["drop_after_effect", "timeout"])
async def test_an_entry_whose_answer_was_lost_is_adopted(world: Any, kind: str) -> None:
    """The next attempt finds it by its notes before it repeats the call."""
    world.fault(NEW, kind, seconds=600)
    await world.consume(world.request())
    async with asyncio.timeout(60):
        while not world.ledger("tenant_blocks"):
            await world.pass_time()
            assert await world.settle(world.worker(timeout=0.5)) == []

    await world.pass_time()
    (applied,) = await world.settle()
    assert (applied.already_present, world.calls(NEW)) == (False, 1)
    assert len(world.ledger("tenant_blocks")) == 1


async def test_a_call_that_never_arrived_is_repeated(world: Any) -> None:
    """After the list has been read without finding the entry."""
    world.fault(NEW, "drop_before_effect")
    await world.consume(world.request())
    assert await world.settle() == []

    await world.pass_time()
    (applied,) = await world.settle()
    assert (applied.already_present, world.calls(GET), world.calls(NEW)) == (False, 1, 2)
    assert len(world.ledger("tenant_blocks")) == 1


async def test_an_entry_made_before_a_crash_is_adopted(world: Any) -> None:
    """The lease expires, and the next worker reads the list first."""
    world.fault(NEW, "timeout", seconds=600)
    await world.consume(world.request())
    crash = asyncio.create_task(world.worker().settle_due())
    await world.wait_for(lambda: world.ledger("tenant_blocks"))
    crash.cancel()
    await asyncio.wait([crash])
    assert await world.settle() == []

    await world.pass_time(LEASE)
    (applied,) = await world.settle()
    assert (applied.already_present, world.calls(NEW)) == (False, 1)


async def test_a_call_ends_before_its_claim_does(world: Any) -> None:
    """When an entry comes due again, no call about it is still running."""
    world.fault(NEW, "timeout", seconds=600)
    await world.consume(world.request())
    async with asyncio.timeout(60):
        while not world.ledger("tenant_blocks"):
            await world.pass_time()
            await world.worker(timeout=600, lease=timedelta(seconds=2)).settle_due()

    await world.pass_time()
    (applied,) = await world.settle()
    assert (applied.already_present, world.calls(NEW)) == (False, 1)


async def test_a_worker_that_lost_its_claim_does_not_postpone_the_entry(world: Any) -> None:
    """A suspended process may resume after another one has claimed the entry."""
    world.fault(NEW, "error", status=503)
    await world.consume(world.request())
    zombie = world.worker()
    async with world.db.transaction() as tx:
        (stale,) = await store.claim(tx, LEASE, 1)
    await world.pass_time(LEASE)
    async with world.db.transaction() as tx:
        (held,) = await store.claim(tx, LEASE, 1)
    await zombie._settle(stale, LEASE.total_seconds() + asyncio.get_running_loop().time())

    async with world.db.transaction() as tx:
        assert await store.lock_claimed(tx, held)
        assert not await store.lock_claimed(tx, stale)


async def test_a_block_that_is_given_up_leaves_no_entry_behind(world: Any) -> None:
    """An unanswered call may have added an entry although block-failed was published."""
    world.fault(NEW, "drop_after_effect")
    await world.consume(world.request())
    await world.pass_time(25 * HOUR)
    (failed,) = await world.settle()
    assert (failed.reason, list(world.sender_entries())) == ("gave-up", [SENDER])

    await world.pass_time()
    assert await world.settle() == []
    assert world.sender_entries() == {}


async def test_a_clean_verdict_removes_an_entry_that_is_in_doubt(world: Any) -> None:
    """The list is read although no block-applied was published."""
    world.fault(NEW, "drop_after_effect")
    request = world.request()
    await world.consume(request)
    assert await world.settle() == []
    await world.consume(world.verdict(request))
    await world.pass_time()
    (removed,) = await world.settle()

    assert (removed.reason, world.sender_entries()) == ("verdict-clean", {})
