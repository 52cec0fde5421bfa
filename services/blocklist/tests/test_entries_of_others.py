"""Entries that somebody else has made in the Tenant Allow/Block List."""

from datetime import timedelta
from typing import Any

from backstop_contracts import BlockFailed, BlockRemoved

SET = "exchange.Set-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


async def test_an_entry_of_somebody_else_counts_as_already_present(world: Any) -> None:
    """Nothing is added or changed if it lasts long enough."""
    entry = world.add_by_hand(SENDER)
    request = world.request()
    await world.consume(request)
    (applied,) = await world.settle()

    assert applied.already_present
    assert world.ledger("tenant_blocks") == world.ledger("changes") == []
    assert world.sender_entries()[SENDER] is entry


async def test_an_entry_of_somebody_else_survives_a_clean_verdict(world: Any) -> None:
    """The sender is still blocked, so no event says otherwise."""
    world.add_by_hand(SENDER)
    request = world.request()
    await world.consume(request)
    await world.settle()
    await world.consume(world.verdict(request))

    assert await world.settle() == []
    assert world.ledger("removals") == []
    assert SENDER in world.sender_entries()


async def test_an_entry_of_somebody_else_gets_its_own_end_back(world: Any) -> None:
    """It is extended for the duration of the block, and restored afterwards."""
    world.add_by_hand(SENDER, lasts=7 * DAY)
    request = world.request(lasts=None)
    await world.consume(request)
    (applied,) = await world.settle()
    assert (applied.already_present, world.sender_entries()[SENDER].expires) == (True, None)

    await world.consume(world.verdict(request))
    assert await world.settle() == []
    expires = world.sender_entries()[SENDER].expires
    assert expires
    assert abs(expires - world.state.clock.now() - 7 * DAY) < HOUR
    assert world.sender_entries()[SENDER].notes == "by hand"


async def test_an_entry_of_somebody_else_that_was_extended_twice_gets_its_own_end_back(world: Any) -> None:
    """Not the end that the first extension gave it."""
    world.add_by_hand(SENDER, lasts=7 * DAY)
    first, second = world.request(lasts=30 * DAY), world.request(lasts=60 * DAY)
    for request in (first, second):
        await world.consume(request)
        await world.settle()
    await world.consume(world.verdict(first), world.verdict(second))
    await world.settle()

    expires = world.sender_entries()[SENDER].expires
    assert expires
    assert abs(expires - world.state.clock.now() - 7 * DAY) < HOUR


async def test_an_entry_of_somebody_else_that_only_our_extension_kept_alive_is_removed(world: Any) -> None:
    """Without the extension it would have expired by now."""
    world.add_by_hand(SENDER, lasts=DAY)
    request = world.request(lasts=None)
    await world.consume(request)
    await world.settle()
    await world.pass_time(2 * DAY)
    await world.consume(world.verdict(request))
    (removed,) = await world.settle()

    assert isinstance(removed, BlockRemoved)
    assert world.sender_entries() == {}


async def test_an_entry_that_an_administrator_has_changed_since_stays_as_it_is(world: Any) -> None:
    """Only an end that Backstop set is restored."""
    entry = world.add_by_hand(SENDER, lasts=7 * DAY)
    request = world.request(lasts=30 * DAY)
    await world.consume(request)
    await world.settle()
    entry.expires = None
    await world.consume(world.verdict(request))

    assert await world.settle() == []
    assert world.sender_entries()[SENDER].expires is None


async def test_a_sender_that_the_tenant_allows_is_not_blocked(world: Any) -> None:
    """A value can have only one entry, and the administrator's allow entry wins."""
    world.add_by_hand(SENDER, action="Allow", lasts=DAY)
    await world.consume(world.request())
    (failed,) = await world.settle()

    assert isinstance(failed, BlockFailed)
    assert failed.reason == "refused"
    assert "allow" in failed.detail
    assert world.sender_entries()[SENDER].action == "Allow"


async def test_a_lost_answer_to_an_extension_does_not_lose_the_original_end(world: Any) -> None:
    """Somebody else's entry is still restored."""
    world.add_by_hand(SENDER, lasts=7 * DAY)
    world.fault(SET, "drop_after_effect")
    request = world.request(lasts=None)
    await world.consume(request)
    assert await world.settle() == []
    await world.pass_time()
    (applied,) = await world.settle()
    assert applied.already_present

    await world.consume(world.verdict(request))
    await world.settle()
    expires = world.sender_entries()[SENDER].expires
    assert expires
    assert abs(expires - world.state.clock.now() - 7 * DAY) < HOUR
