"""Rows are purged when their case expires."""

from datetime import UTC, datetime, timedelta
from typing import Any

from backstop_contracts import BlockRemoved
from blocklist import store

SET = "exchange.Set-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
LEASE = timedelta(minutes=4)
DAY = timedelta(days=1)


async def test_ended_blocks_are_purged_with_their_case(world: Any) -> None:
    """Failed and removed ones and those with a kept entry, with their entries and verdicts; other cases stay."""
    world.add_by_hand("kept@fabrikam.example")
    failed, removals = world.request("mail.example"), world.request()
    kept, other = world.request("kept@fabrikam.example"), world.request("mail.example")
    await world.consume(failed, removals, kept)
    await world.settle()
    await world.consume(world.verdict(removals), world.verdict(kept))
    await world.settle()
    assert await world.row_counts() == {"blocks": 3, "entries": 3, "clean_verdicts": 2}

    await world.consume(other)
    await world.settle()
    await world.expire_cases(failed, removals, kept)
    assert await world.row_counts() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}
    assert len(world.ledger("removals")) == 1
    assert await world.settle() == []


async def test_a_block_in_force_outlives_its_case_and_is_purged_when_it_ends(world: Any) -> None:
    """Its removal is still published."""
    request = world.request(lasts=60 * DAY)
    await world.consume(request)
    await world.settle()
    await world.pass_time(40 * DAY)
    await world.expire_cases(request)
    assert await world.row_counts() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}
    assert await world.settle() == []

    await world.pass_time(21 * DAY)
    (removed,) = await world.settle()
    assert isinstance(removed, BlockRemoved)
    assert (removed.block, removed.reason) == (request.block, "expired")
    assert await world.row_counts() == {"blocks": 0, "entries": 0, "clean_verdicts": 0}


async def test_a_block_that_never_ends_is_never_purged(world: Any) -> None:
    """It is in force, and only this row says whose it is."""
    request = world.request(lasts=None)
    await world.consume(request)
    await world.settle()
    await world.expire_cases(request)
    await world.pass_time(4000 * DAY)
    assert await world.settle() == []
    assert await world.row_counts() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}


async def test_the_block_that_made_an_entry_is_kept_while_another_needs_the_entry(world: Any) -> None:
    """The entry names that block: without its row, the entry would look like somebody else's and stay for ever."""
    maker, later = world.request(lasts=20 * DAY), world.request(lasts=60 * DAY)
    await world.consume(maker)
    await world.settle()
    await world.consume(later)
    await world.settle()
    await world.pass_time(40 * DAY)
    await world.expire_cases(maker)
    await world.consume(world.verdict(later))
    events = await world.settle()

    assert {event.block.block_id for event in events if isinstance(event, BlockRemoved)} == {
        maker.block.block_id,
        later.block.block_id,
    }
    assert SENDER not in world.sender_entries()
    assert await world.row_counts() == {"blocks": 1, "entries": 1, "clean_verdicts": 1}
    await world.expire_cases(later)
    assert await world.row_counts() == {"blocks": 0, "entries": 0, "clean_verdicts": 0}


async def test_nothing_is_purged_while_the_entry_is_in_doubt(world: Any) -> None:
    """The call may have added an entry, and the next attempt must recognise it as ours."""
    request = world.request()
    await world.consume(request)
    async with world.db.transaction() as tx:
        await store.claim(tx, LEASE, 1)
    await world.db.pool.execute("UPDATE blocks SET state = 'failed'")
    await world.expire_cases(request)
    assert await world.row_counts() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}

    await world.pass_time()
    await world.settle()
    assert await world.row_counts() == {"blocks": 0, "entries": 0, "clean_verdicts": 0}


async def test_a_block_for_a_mailbox_belongs_to_no_case(world: Any) -> None:
    """It stays, whichever case expires."""
    own = world.request(mailbox="user@contoso.example")
    await world.consume(own)
    await world.settle()
    await world.expire_cases(own, world.request())
    assert (await world.row_counts())["blocks"] == 1


async def test_a_clean_verdict_that_arrives_after_its_case_expired_is_purged_by_age(world: Any) -> None:
    """Its topic is retained longer than a case has to be kept."""
    request = world.request()
    await world.expire_cases(request)
    await world.consume(world.verdict(request), world.verdict(world.request(), read_at=datetime.now(UTC) - 61 * DAY))
    await world.worker().purge_verdicts()
    assert await world.row_counts() == {"blocks": 0, "entries": 0, "clean_verdicts": 1}
