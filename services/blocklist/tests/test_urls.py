"""Blocks of URLs."""

from typing import Any

import pytest

from backstop_contracts import BlockApplied, BlockFailed, BlockRemoved

NEW = "exchange.New-TenantAllowBlockListItems"


async def test_a_url_becomes_an_entry_in_the_list_of_urls(world: Any) -> None:
    """It is removed like any other block, and is independent of a block of its domain."""
    domain = world.request("pay.phish.example")
    url, page = (
        world.request("https://pay.phish.example/?id=anna"),
        world.request("https://Pay.Phish.example/a/B?x#y"),
    )
    await world.consume(url, page, domain)
    outcomes = {event.block.block_id: event for event in await world.settle()}

    assert outcomes.keys() == {request.block.block_id for request in (url, page, domain)}
    assert all(isinstance(outcome, BlockApplied) for outcome in outcomes.values())
    assert outcomes[url.block.block_id].block == url.block
    assert sorted((entry["list_type"], entry["value"]) for entry in world.ledger("tenant_blocks")) == [
        ("Sender", "pay.phish.example"),
        ("Url", "pay.phish.example"),
        ("Url", "pay.phish.example/a/b"),
    ]
    await world.consume(world.verdict(url))
    (removed,) = await world.settle()
    assert isinstance(removed, BlockRemoved)
    assert [entry["list_type"] for entry in world.ledger("removals")] == ["Url"]


async def test_a_url_entry_whose_answer_was_lost_is_adopted(world: Any) -> None:
    """It is added once, and recognised as ours."""
    world.fault(NEW, "drop_after_effect")
    await world.consume(world.request("https://pay.phish.example/1"))
    assert await world.settle() == []
    await world.pass_time()
    (applied,) = await world.settle()
    assert isinstance(applied, BlockApplied)
    assert not applied.already_present
    assert len(world.ledger("tenant_blocks")) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://portal.contoso.example/x", "own-domain"),
        ("https://mail.example/", "protected-domain"),
        ("https://docs.google.com/", "protected-domain"),
        ("ftp://phish.example/", "invalid"),
    ],
)
async def test_a_url_that_must_not_be_blocked_is_refused(world: Any, url: str, reason: str) -> None:
    """Own sites, sites shared by millions of people, and what the list cannot hold."""
    rows = [{"DomainName": "contoso.example", "MatchSubDomains": True}]
    world.tenant.settings.cmdlets["Get-AcceptedDomain"] = rows
    await world.consume(world.request(url))
    (failed,) = await world.settle()
    assert isinstance(failed, BlockFailed)
    assert failed.reason == reason
    assert world.ledger("tenant_blocks") == []
