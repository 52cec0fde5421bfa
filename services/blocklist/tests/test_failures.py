"""Blocks that Exchange refuses, throttles or cannot make now."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backstop_contracts import BlockApplied
from chassis.worker import backoff

NEW = "exchange.New-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


async def test_a_full_list_fails_with_reason_limit(world: Any) -> None:
    """With Exchange's message: an administrator has to make room."""
    world.state.settings.list_block_limit = 0
    await world.consume(world.request())
    (failed,) = await world.settle()

    assert (failed.reason, "limit of 0 Block entries" in failed.detail) == ("limit", True)


async def test_a_block_that_exchange_refuses_fails_with_its_message(world: Any) -> None:
    """Repeating the call would not help."""
    world.fault(NEW, "refuse", message="The value can't be blocked.", times=None)
    await world.consume(world.request())
    (failed,) = await world.settle()

    assert (failed.reason, failed.detail) == ("refused", "The value can't be blocked.")
    assert world.calls(NEW) == 1


async def test_a_duplicate_that_is_not_listed_yet_is_looked_for_again(world: Any) -> None:
    """Exchange's list may lag; a duplicate is no failure."""
    world.fault(NEW, "refuse", message=f"Invalid value to add: {SENDER} - Duplicate value.")
    await world.consume(world.request())
    assert await world.settle() == []

    world.add_by_hand(SENDER)
    await world.pass_time()
    (applied,) = await world.settle()
    assert (applied.already_present, world.ledger("tenant_blocks")) == (True, [])


async def test_a_throttled_block_waits_for_retry_after(world: Any) -> None:
    """No other call is made for the tenant in the meantime."""
    world.fault(NEW, "throttle", retry_after=120)
    worker = world.worker()
    await world.consume(world.request())
    assert await world.settle(worker) == []
    assert timedelta(seconds=110) < await world.time_until_due() <= timedelta(seconds=120)

    await world.consume(world.request("other@fabrikam.example"))
    assert await world.settle(worker) == []
    assert world.calls(NEW) == 1

    await world.pass_time()
    events = await world.settle()
    assert [(type(event), event.already_present) for event in events] == [(BlockApplied, False)] * 2


async def test_a_throttled_block_without_retry_after_backs_off(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of Microsoft's services send no Retry-After."""
    monkeypatch.setattr("blocklist.worker.backoff", backoff)
    world.fault(NEW, "throttle")
    await world.consume(world.request())
    before = datetime.now(UTC)
    assert await world.worker().settle_due() == 1
    due_at = await world.db.pool.fetchval("SELECT due_at FROM entries")
    assert await world.emitted() == []
    assert timedelta(0) < due_at - before
    assert due_at - datetime.now(UTC) <= timedelta(seconds=2)

    await world.pass_time()
    (applied,) = await world.settle()
    assert isinstance(applied, BlockApplied)


async def test_a_throttled_block_is_not_given_up(world: Any) -> None:
    """Even after more than a day."""
    world.fault(NEW, "throttle", retry_after=600)
    await world.consume(world.request())
    await world.pass_time(2 * DAY)
    assert await world.settle() == []

    await world.pass_time()
    (applied,) = await world.settle()
    assert isinstance(applied, BlockApplied)


async def test_a_block_is_given_up_after_a_day_without_exchange(world: Any) -> None:
    """Until then it is retried."""
    world.fault("exchange.*", "error", times=None)
    await world.consume(world.request())
    await world.pass_time(23 * HOUR)
    assert await world.settle() == []

    await world.pass_time(2 * HOUR)
    (failed,) = await world.settle()
    assert (failed.reason, "503" in failed.detail) == ("gave-up", True)


async def test_a_block_that_expires_before_it_could_be_made_is_given_up(world: Any) -> None:
    """There is nothing left to block."""
    world.fault(NEW, "error")
    await world.consume(world.request(lasts=HOUR))
    assert await world.settle() == []

    await world.pass_time(2 * HOUR)
    (failed,) = await world.settle()
    assert (failed.reason, world.ledger("tenant_blocks")) == ("gave-up", [])


async def test_a_block_waits_for_a_missing_permission(world: Any) -> None:
    """It is made once an administrator has granted the role."""
    world.tenant.settings.apps[0].exchange_role = False
    await world.consume(world.request())
    assert await world.settle() == []

    world.tenant.settings.apps[0].exchange_role = True
    await world.pass_time()
    (applied,) = await world.settle()
    assert isinstance(applied, BlockApplied)
