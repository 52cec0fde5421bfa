"""What reporter does with events: it remembers what its reporters will be told. It publishes nothing from here."""

import structlog
from faststream.kafka import KafkaRouter

from backstop_contracts import (
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    CaseExpired,
    CaseUpdated,
    Channel,
    MessageReported,
    VerdictReady,
)
from chassis.events import BATCH, Received, Tx
from reporter import store

log = structlog.get_logger()
router = KafkaRouter()


@router.subscriber("message-reported", **BATCH)
async def on_message_reported(reports: list[Received[MessageReported]], tx: Tx) -> None:
    """
    Keep the reports of other channels beside our own: as long as they stand, nobody deletes their mails.

    Their channel has put the mail into the store before, without holding it. Should the same mail, of a case that has
    expired, be deleted in just these seconds, the log says so, and the submission will say that its mail is missing.
    """
    others = [received.event for received in reports if received.event.channel != Channel.API]
    if others:
        for report_id in await store.record_others(tx, others):
            log.error("mail.may_be_missing", report_id=report_id)


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
    await store.settle_blocks(tx, {received.event.block.block_id: ("applied", None) for received in applied})


@router.subscriber("block-failed", **BATCH)
async def on_block_failed(failed: list[Received[BlockFailed]], tx: Tx) -> None:
    """Remember why senders will not be blocked."""
    await store.settle_blocks(
        tx, {received.event.block.block_id: ("failed", received.event.reason) for received in failed}
    )


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Remember that senders are not blocked any more."""
    await store.settle_blocks(
        tx, {received.event.block.block_id: ("removed", received.event.reason) for received in removed}
    )


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Forget cases and their reports, and make the mails due that they leave behind; the worker deletes them.

    The topics are read side by side. What is read of such a case afterwards finds none of its reports: case-updated is
    dropped, and what a verdict leaves is swept up. A report that triage has put into another case by now stays, and so
    does its mail. Blocks stay: they are the mailbox's setting, and their rounds make a later wish a new one.
    """
    await store.forget_cases(tx, [received.event.case_id for received in expired])
