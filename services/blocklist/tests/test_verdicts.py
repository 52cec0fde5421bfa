"""Clean verdicts withdraw the blocks of their case."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from backstop_contracts import Conclusion

NEW = "exchange.New-TenantAllowBlockListItems"
SENDER = "bad@fabrikam.example"
HOUR = timedelta(hours=1)


async def test_a_clean_verdict_removes_the_entry(world: Any) -> None:
    """The block stopped legitimate mail."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    await world.consume(world.verdict(request))
    (removed,) = await world.settle()

    assert (removed.block, removed.reason) == (request.block, "verdict-clean")
    assert [entry["value"] for entry in world.ledger("removals")] == [SENDER]
    assert world.sender_entries() == {}


@pytest.mark.parametrize("conclusion", [Conclusion.THREAT, Conclusion.SIMULATION, Conclusion.UNKNOWN])
async def test_any_other_verdict_leaves_the_entry(world: Any, conclusion: Conclusion) -> None:
    """Only a clean verdict says that the block was wrong."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    await world.consume(world.verdict(request, conclusion))

    assert await world.settle() == []
    assert SENDER in world.sender_entries()


async def test_a_clean_verdict_that_overtakes_the_request_prevents_the_block(world: Any) -> None:
    """They arrive on two topics."""
    request = world.request()
    await world.consume(world.verdict(request))
    await world.consume(request)
    (removed,) = await world.settle()

    assert (removed.block, removed.reason) == (request.block, "verdict-clean")
    assert world.ledger("tenant_blocks") == []


async def test_a_clean_verdict_before_the_worker_runs_prevents_the_block(world: Any) -> None:
    """The request is recorded, but Exchange has not been called yet."""
    request = world.request()
    await world.consume(request)
    await world.consume(world.verdict(request))
    (removed,) = await world.settle()

    assert removed.reason == "verdict-clean"
    assert world.ledger("tenant_blocks") == []


async def test_a_clean_verdict_during_the_call_removes_the_entry(world: Any) -> None:
    """No block-applied is published."""
    world.fault(NEW, "timeout", seconds=600)
    request = world.request()
    await world.consume(request)
    settling = asyncio.create_task(world.worker().settle_due())
    await world.wait_for(lambda: world.ledger("tenant_blocks"))
    await world.consume(world.verdict(request))
    world.state.faults.release()
    await settling
    (removed,) = await world.settle()

    assert (removed.reason, world.sender_entries()) == ("verdict-clean", {})


async def test_a_block_requested_after_a_clean_verdict_stays(world: Any) -> None:
    """It was requested with the verdict known; a redelivered verdict does not withdraw it."""
    first = world.request()
    verdict = world.verdict(first, read_at=datetime.now(UTC) + HOUR)
    await world.consume(first)
    await world.consume(verdict)
    await world.settle()
    renewed = world.request(case_id=first.block.case_id, requested_at=verdict.read_at + HOUR)
    await world.consume(renewed)
    (applied,) = await world.settle()
    await world.consume(verdict)

    assert (applied.block, await world.settle()) == (renewed.block, [])
    assert SENDER in world.sender_entries()


async def test_a_clean_verdict_leaves_an_entry_that_another_case_needs(world: Any) -> None:
    """The entry is removed with its last block; then both removals are published."""
    clean, other = world.request(), world.request()
    await world.consume(clean)
    await world.settle()
    await world.consume(other)
    await world.consume(world.verdict(clean))
    (applied,) = await world.settle()
    assert (applied.block, applied.already_present) == (other.block, True)
    assert SENDER in world.sender_entries()

    await world.consume(world.verdict(other))
    removed = await world.settle()
    assert {(event.block.block_id, event.reason) for event in removed} == {
        (clean.block.block_id, "verdict-clean"),
        (other.block.block_id, "verdict-clean"),
    }
    assert world.sender_entries() == {}


async def test_a_clean_verdict_of_another_tenant_changes_nothing(world: Any) -> None:
    """Tenants share nothing, not even case ids."""
    request = world.request()
    await world.consume(request)
    await world.settle()
    await world.consume(world.verdict(request).model_copy(update={"tenant_id": uuid4()}))

    assert await world.settle() == []
    assert SENDER in world.sender_entries()
