"""What quarantine does with events: it remembers what became of what was reported and blocked from here."""

from collections.abc import Sequence

from backstop_contracts import BlockApplied, BlockFailed, BlockRemoved, CaseExpired, CaseUpdated, VerdictReady
from chassis.kafka import Received
from chassis.postgres import Tx
from quarantine import store


async def on_case_updated(tx: Tx, updates: Sequence[Received[CaseUpdated]]) -> None:
    """Remember which case each report belongs to, and how far the case is."""
    events = sorted((received.event for received in updates), key=lambda event: event.changed_at)
    await store.assign_cases(tx, {report_id: event.case_id for event in events for report_id in event.report_ids})
    await store.record_cases(tx, list({event.case_id: event for event in events}.values()))


async def on_verdict_ready(tx: Tx, verdicts: Sequence[Received[VerdictReady]]) -> None:
    """Remember what Microsoft concluded about cases."""
    events = sorted((received.event for received in verdicts), key=lambda event: event.read_at)
    await store.record_verdicts(tx, list({event.case_id: event for event in events}.values()))


async def on_block_applied(tx: Tx, applied: Sequence[Received[BlockApplied]]) -> None:
    """Remember that senders are blocked."""
    await store.settle_blocks(tx, {received.event.block.block_id: ("applied", None, None) for received in applied})


async def on_block_failed(tx: Tx, failed: Sequence[Received[BlockFailed]]) -> None:
    """Remember why senders will not be blocked."""
    await store.settle_blocks(tx, {r.event.block.block_id: ("failed", r.event.reason, r.event.detail) for r in failed})


async def on_block_removed(tx: Tx, removed: Sequence[Received[BlockRemoved]]) -> None:
    """Remember that senders are not blocked any more."""
    await store.settle_blocks(
        tx, {received.event.block.block_id: ("removed", received.event.reason, None) for received in removed}
    )


async def on_case_expired(tx: Tx, expired: Sequence[Received[CaseExpired]]) -> None:
    """Forget what became of reports whose case is no more."""
    await store.forget_cases(tx, [received.event.case_id for received in expired])
