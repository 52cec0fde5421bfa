"""Watches and blocks are purged when their case expires."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from backstop_contracts import Block, BlockApplied, BlockRemoved, CaseExpired
from verdict_poller.worker import BLOCKS_KEPT


async def test_a_block_removed_after_its_case_expired_is_purged_by_age(world: Any) -> None:
    """The usual order: by default, both a block and a closed case last 30 days."""
    block = Block(block_id=uuid4(), scope="tenant", kind="sender", value="a@b.example", case_id=uuid4())
    removed = BlockRemoved(tenant_id=world.tenant_id, block=block, reason="expired", removed_at=datetime.now(UTC))
    await world.consume(removed)
    await world.explainer.purge_blocks()
    assert await world.db.pool.fetchval("SELECT count(*) FROM blocks") == 1

    await world.db.pool.execute("UPDATE blocks SET recorded_at = now() - $1::interval", BLOCKS_KEPT)
    await world.explainer.purge_blocks()
    assert await world.db.pool.fetchval("SELECT count(*) FROM blocks") == 0


async def test_a_verdict_after_its_case_expired_still_lists_the_blocks(world: Any) -> None:
    """The watch continues, and its blocks are kept for it."""
    submission_id = await world.watch()
    case_id = await world.db.pool.fetchval("SELECT case_id FROM watches")
    now = datetime.now(UTC)
    block = Block(block_id=uuid4(), scope="tenant", kind="sender", value="a@b.example", case_id=case_id)
    applied = BlockApplied(tenant_id=world.tenant_id, block=block, already_present=False, applied_at=now)
    expired = CaseExpired(
        tenant_id=world.tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now
    )
    await world.consume(applied, expired)
    await world.answer(submission_id, "phishing", "none")
    await world.explainer.explain_due()

    assert [one.block_id for one in (await world.published())[0].blocks] == [block.block_id]


async def test_a_published_watch_is_purged_with_its_case_and_a_waiting_one_continues(world: Any) -> None:
    """A duplicate expiry, or one of an unknown case, changes nothing; other cases stay."""
    expired_one, other = await world.watch(), await world.watch()
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    cases = {verdict.submission_id: verdict.case_id for verdict in await world.published()}
    waiting = await world.watch()
    case_of_waiting = await world.db.pool.fetchval("SELECT case_id FROM watches WHERE submission_id = $1", waiting)
    now = datetime.now(UTC)
    events = [
        CaseExpired(tenant_id=world.tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now)
        for case_id in (cases[expired_one], case_of_waiting, uuid4())
    ]
    for _ in range(2):
        await world.consume(*events)

    left = {row["submission_id"] for row in await world.db.pool.fetch("SELECT submission_id FROM watches")}
    assert left == {other, waiting}
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    assert [verdict.submission_id for verdict in await world.published()] == [waiting]
