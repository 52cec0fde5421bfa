"""Entries are removed when their last block ends."""

import asyncio
from datetime import timedelta
from typing import Any

GET = "exchange.Get-TenantAllowBlockListItems"
REMOVE = "exchange.Remove-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
DAY = timedelta(days=1)


async def test_removing_an_entry_that_is_already_gone_succeeds(world: Any) -> None:
    """An administrator has removed it."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    world.tenant.allow_block_list.remove(world.sender_entries()[SENDER])
    await world.consume(world.verdict(request))
    (removed,) = await world.settle()
    assert removed.reason == "verdict-clean"


async def test_removing_an_entry_that_disappears_after_it_was_found_succeeds(world: Any) -> None:
    """Exchange refuses to remove it; reading the list again shows why."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    world.fault(GET, "timeout", seconds=600)
    await world.consume(world.verdict(request))
    removing = asyncio.create_task(world.worker().settle_due())
    await world.wait_for(lambda: world.state.ledger.contents()["answers"].get(GET))
    world.tenant.allow_block_list.remove(world.sender_entries()[SENDER])
    world.state.faults.release()
    await removing
    (removed,) = await world.emitted()

    assert (removed.reason, world.calls(REMOVE)) == ("verdict-clean", 1)


async def test_a_removal_whose_answer_was_lost_happens_once(world: Any) -> None:
    """The next attempt finds nothing to remove."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    world.fault(REMOVE, "drop_after_effect")
    await world.consume(world.verdict(request))
    assert await world.settle() == []

    await world.pass_time()
    (removed,) = await world.settle()
    assert removed.reason == "verdict-clean"
    assert len(world.ledger("removals")) == world.calls(REMOVE) == 1


async def test_removal_is_never_given_up(world: Any) -> None:
    """However long Exchange refuses or is unavailable."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    world.fault(REMOVE, "refuse", times=2)
    await world.consume(world.verdict(request))
    assert await world.settle() == []
    await world.pass_time(7 * DAY)
    assert await world.settle() == []

    await world.pass_time()
    (removed,) = await world.settle()
    assert (removed.reason, world.sender_entries()) == ("verdict-clean", {})


async def test_an_expired_block_is_published_without_a_removal_call(world: Any) -> None:
    """Exchange removes an entry by itself when it expires."""
    request = world.request(lasts=7 * DAY)
    await world.consume(request)
    await world.settle()
    assert 6 * DAY < await world.time_until_due() <= 7 * DAY

    await world.pass_time(8 * DAY)
    (removed,) = await world.settle()
    assert (removed.block, removed.reason) == (request.block, "expired")
    assert world.ledger("removals") == []


async def test_an_expired_block_waits_for_blocks_that_last_longer(world: Any) -> None:
    """The sender stays blocked until the last of them ends."""
    short, long = world.request(lasts=7 * DAY), world.request(lasts=30 * DAY)
    await world.consume(short, long)
    await world.settle()
    await world.pass_time(8 * DAY)
    assert await world.settle() == []
    assert SENDER in world.sender_entries()

    await world.pass_time(30 * DAY)
    removed = await world.settle()
    assert [event.reason for event in removed] == ["expired", "expired"]
    assert world.sender_entries() == {}


async def test_an_entry_that_outlives_the_block_it_was_extended_for_is_removed(world: Any) -> None:
    """The block without an end was withdrawn, and the one for a week has expired."""
    short, ever = world.request(lasts=7 * DAY), world.request(lasts=None)
    await world.consume(short, ever)
    await world.settle()
    await world.consume(world.verdict(ever))
    assert await world.settle() == []

    await world.pass_time(8 * DAY)
    removed = await world.settle()
    assert [event.reason for event in removed] == ["expired", "verdict-clean"]
    assert world.sender_entries() == {}


async def test_a_sender_can_be_blocked_again_after_the_block_has_ended(world: Any) -> None:
    """A new request makes a new entry."""
    first, second = world.request(), world.request()
    await world.consume(first)
    await world.settle()
    await world.consume(world.verdict(first))
    await world.settle()
    await world.consume(second)
    (applied,) = await world.settle()

    assert (applied.block, applied.already_present) == (second.block, False)
    assert SENDER in world.sender_entries()
