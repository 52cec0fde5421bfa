"""What quarantine does with events: it remembers what became of what was reported and blocked from here."""

from faststream.kafka import KafkaRouter

from backstop_contracts import BlockApplied, BlockFailed, BlockRemoved, CaseExpired, CaseUpdated, VerdictReady
from chassis.events import BATCH, Received, Tx
from quarantine import store

router = KafkaRouter()


@router.subscriber("case-updated", **BATCH)
async def on_case_updated(updates: list[Received[CaseUpdated]], tx: Tx) -> None:
    """Remember which case each report belongs to, and how far the case is."""
    events = sorted((received.event for received in updates), key=lambda event: event.changed_at)
    await store.assign_cases(tx, {report_id: event.case_id for event in events for report_id in event.report_ids})
    await store.record_cases(tx, list({event.case_id: event for event in events}.values()))


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """Remember what Microsoft concluded about cases."""
    events = sorted((received.event for received in verdicts), key=lambda event: event.read_at)
    await store.record_verdicts(tx, list({event.case_id: event for event in events}.values()))


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Remember that senders are blocked."""
    await store.settle_blocks(tx, {received.event.block.block_id: ("applied", None, None) for received in applied})


@router.subscriber("block-failed", **BATCH)
async def on_block_failed(failed: list[Received[BlockFailed]], tx: Tx) -> None:
    """Remember why senders will not be blocked."""
    await store.settle_blocks(tx, {r.event.block.block_id: ("failed", r.event.reason, r.event.detail) for r in failed})


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Remember that senders are not blocked any more."""
    await store.settle_blocks(
        tx, {received.event.block.block_id: ("removed", received.event.reason, None) for received in removed}
    )


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Forget what became of reports whose case is no more.

    The topics are read side by side. What is read of such a case afterwards finds none of its reports: case-updated is
    dropped, and what a verdict leaves is swept up.
    """
    await store.forget_cases(tx, [received.event.case_id for received in expired])
