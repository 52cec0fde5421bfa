"""Blocks for a tenant become entries in its Tenant Allow/Block List."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backstop_contracts import BlockApplied, BlockRemoved

NEW = "exchange.New-TenantAllowBlockListItems"
GET = "exchange.Get-TenantAllowBlockListItems"
SET_JUNK = "exchange.Set-MailboxJunkEmailConfiguration"
SENDER = "bad@fabrikam.example"
DAY = timedelta(days=1)


async def test_a_request_becomes_one_entry(world: Any) -> None:
    """The entry has the requested end, and notes by which it is recognised."""
    request = world.request()
    await world.consume(request)
    (applied,) = await world.settle()

    assert isinstance(applied, BlockApplied)
    assert (applied.block, applied.already_present) == (request.block, False)
    (entry,) = world.ledger("tenant_blocks")
    assert (entry["list_type"], entry["value"], entry["action"]) == ("Sender", SENDER, "Block")
    assert str(request.block.block_id) in entry["notes"]
    assert str(request.block.case_id) in entry["notes"]
    assert request.block.expires_at
    assert abs(datetime.fromisoformat(entry["expires"]) - request.block.expires_at) < timedelta(seconds=1)
    assert world.calls(GET) == 0


async def test_a_request_without_an_end_never_expires(world: Any) -> None:
    """Exchange's own default would be 30 days."""
    await world.consume(world.request("fabrikam.example", lasts=None))
    await world.settle()
    assert world.ledger("tenant_blocks")[0]["expires"] is None


async def test_an_address_with_special_characters_is_encoded(world: Any) -> None:
    """The Tenant Allow/Block List requires it; the entry is found again by the same spelling."""
    first, second = world.request("a+b@fabrikam.example"), world.request("a+b@fabrikam.example")
    await world.consume(first)
    await world.settle()
    await world.consume(second)
    (applied,) = await world.settle()

    assert applied.already_present
    assert [entry["value"] for entry in world.ledger("tenant_blocks")] == ["a%2Bb@fabrikam.example"]


async def test_events_that_are_delivered_again_act_once(world: Any) -> None:
    """Within a batch, in a later batch, and after the outcome."""
    request = world.request()
    await world.consume(request, request)
    await world.consume(request)
    first = await world.settle()
    await world.consume(request)
    again = await world.settle()
    await world.consume(world.verdict(request), world.verdict(request))
    removals = await world.settle()
    await world.consume(world.verdict(request))
    await world.consume(request)

    assert ([type(event) for event in first], again) == ([BlockApplied], [])
    assert [type(event) for event in removals] == [BlockRemoved]
    assert await world.settle() == []
    assert len(world.ledger("tenant_blocks")) == len(world.ledger("removals")) == 1


async def test_two_cases_that_block_the_same_sender_make_one_entry(world: Any) -> None:
    """Requested at once or one after the other: the second block finds the entry."""
    first, second, third = world.request(), world.request("BAD@fabrikam.example"), world.request()
    await world.consume(first, second)
    at_once = await world.settle()
    await world.consume(third)
    later = await world.settle()

    assert {event.block.block_id: event.already_present for event in at_once + later} == {
        first.block.block_id: False,
        second.block.block_id: True,
        third.block.block_id: True,
    }
    assert len(world.ledger("tenant_blocks")) == 1


async def test_the_entry_lasts_until_the_latest_end_of_its_blocks(world: Any) -> None:
    """It is extended for a later end, and left alone for an earlier one."""
    await world.consume(world.request(lasts=7 * DAY))
    await world.settle()
    await world.consume(world.request(lasts=DAY))
    await world.settle()
    assert world.ledger("changes") == []

    await world.consume(world.request(lasts=30 * DAY))
    await world.settle()
    (change,) = world.ledger("changes")
    left = datetime.fromisoformat(change["expires"]) - datetime.now(UTC)
    assert 29 * DAY < left < 31 * DAY

    await world.consume(world.request(lasts=None))
    await world.settle()
    assert world.ledger("changes")[-1]["expires"] is None


async def test_a_vanished_entry_is_added_again_with_the_latest_end_of_its_blocks(world: Any) -> None:
    """Not with the end of the block that discovered it."""
    await world.consume(world.request(lasts=30 * DAY))
    await world.settle()
    world.tenant.allow_block_list.remove(world.sender_entries()[SENDER])
    await world.consume(world.request(lasts=DAY))
    (applied,) = await world.settle()

    assert not applied.already_present
    left = datetime.fromisoformat(world.ledger("tenant_blocks")[-1]["expires"]) - datetime.now(UTC)
    assert 29 * DAY < left < 31 * DAY


@pytest.mark.parametrize("mailbox", [None, "user@contoso.example"])
async def test_a_block_that_would_hit_bystanders_fails_without_a_call(world: Any, mailbox: str | None) -> None:
    """Exchange is not asked to add it, and it does not come due again."""
    reasons = {
        "contoso.example": "own-domain",
        "ceo@contoso.example": "own-domain",
        "mail.example": "protected-domain",
        "not an address@fabrikam.example": "invalid",
        "\x07@fabrikam.example": "invalid",
        "x" * 10_000 + "@fabrikam.example": "invalid",
        "localhost": "invalid",
    }
    requests = [world.request(value, mailbox=mailbox) if mailbox else world.request(value) for value in reasons]
    await world.consume(*requests)
    failed = await world.settle()

    assert {event.block.value: event.reason for event in failed} == reasons
    assert sorted(event.block.block_id for event in failed) == sorted(request.block.block_id for request in requests)
    assert world.calls(NEW) == world.calls(SET_JUNK) == 0
    await world.pass_time()
    assert await world.settle() == []


async def test_a_refused_request_does_not_affect_another_for_the_same_value(world: Any) -> None:
    """One request calls the address a domain, the other does not."""
    wrong, right = world.request(kind="domain"), world.request()
    await world.consume(wrong, right)
    failed, applied = await world.settle()

    assert (failed.block.block_id, failed.reason) == (wrong.block.block_id, "invalid")
    assert (applied.block.block_id, applied.already_present) == (right.block.block_id, False)


async def test_accepted_domains_are_read_once_for_many_blocks(world: Any) -> None:
    """They rarely change."""
    await world.consume(*(world.request(f"bad{number}@fabrikam.example") for number in range(20)))
    events = await world.settle()

    assert len(events) == len(world.ledger("tenant_blocks")) == 20
    assert world.calls("exchange.Get-AcceptedDomain") == 1


async def test_nothing_is_blocked_while_the_accepted_domains_are_unknown(world: Any) -> None:
    """An empty list is no answer: every tenant has a domain."""
    world.tenant.settings.cmdlets["Get-AcceptedDomain"] = []
    await world.consume(world.request())

    assert await world.settle() == []
    assert world.calls(NEW) == 0

    del world.tenant.settings.cmdlets["Get-AcceptedDomain"]
    await world.pass_time()
    (applied,) = await world.settle()
    assert isinstance(applied, BlockApplied)
