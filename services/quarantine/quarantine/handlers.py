"""Record what other services publish about reports and blocks made from the quarantine."""

from faststream.kafka import KafkaRouter

import outcomes
from backstop_contracts import BlockApplied, BlockFailed, BlockRemoved, CaseExpired, CaseUpdated, VerdictReady
from chassis.subscribing import BATCH, Received, Tx
from quarantine import store

router = KafkaRouter()


@router.subscriber("case-updated", **BATCH)
async def on_case_updated(updates: list[Received[CaseUpdated]], tx: Tx) -> None:
    """Record which case each reported quarantined message is in, and how far triage is with it."""
    events = [received.event for received in updates]
    await outcomes.assign_cases(tx, outcomes.cases_of(events))
    await outcomes.record_cases(tx, events)


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """Record Microsoft's verdicts, for admins who read a quarantined message."""
    await outcomes.record_verdicts(tx, [received.event for received in verdicts])


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Record that users' blocks are in force."""
    await outcomes.settle_blocks(tx, [received.event for received in applied])


@router.subscriber("block-failed", **BATCH)
async def on_block_failed(failed: list[Received[BlockFailed]], tx: Tx) -> None:
    """Record why users' blocks will not be made."""
    await outcomes.settle_blocks(tx, [received.event for received in failed])


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Record that users' blocks have ended."""
    await outcomes.settle_blocks(tx, [received.event for received in removed])


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Delete expired cases and their reports.

    Topics are consumed side by side, so older events of such a case may follow. They find none of its reports: a
    case-updated then changes nothing, and the row that a verdict leaves is purged later.
    """
    await store.purge_expired_cases(tx, [received.event.case_id for received in expired])
