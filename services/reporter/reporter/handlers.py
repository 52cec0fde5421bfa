"""Consume other services' events: they are what reporters are shown. Nothing is published from here."""

import structlog
from faststream.kafka import KafkaRouter

import outcomes
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
from chassis.subscribing import BATCH, Received, Tx
from reporter import store

log = structlog.get_logger()
router = KafkaRouter()


@router.subscriber("message-reported", **BATCH)
async def on_message_reported(reports: list[Received[MessageReported]], tx: Tx) -> None:
    """
    Store the reports of other channels beside our own: as long as a report exists, its message is not deleted.

    The other channel stored the message before, without locking it. If the same message, of a case that has expired, is
    deleted at just that moment, the log says so, and the submission fails because its message is missing.
    """
    others = [received.event for received in reports if received.event.channel != Channel.API]
    if others:
        for report_id in await store.record_other_channels(tx, others):
            log.error("message.may_be_missing", report_id=report_id)


@router.subscriber("case-updated", **BATCH)
async def on_case_updated(updates: list[Received[CaseUpdated]], tx: Tx) -> None:
    """Record which case each report belongs to, and the status of that case, which reporters can read."""
    events = [received.event for received in updates]
    await store.assign_cases(tx, events)
    await outcomes.record_cases(tx, events)


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """Record Microsoft's verdicts, which decide what reporters are shown in the end."""
    await outcomes.record_verdicts(tx, [received.event for received in verdicts])


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Record that senders are blocked for their reporters' mailboxes."""
    await outcomes.settle_blocks(tx, [received.event for received in applied])


@router.subscriber("block-failed", **BATCH)
async def on_block_failed(failed: list[Received[BlockFailed]], tx: Tx) -> None:
    """Record why senders will not be blocked."""
    await outcomes.settle_blocks(tx, [received.event for received in failed])


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Record that blocks have ended."""
    await outcomes.settle_blocks(tx, [received.event for received in removed])


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Delete cases and their reports, and make their messages due; the worker deletes those.

    Topics are read in parallel. Later events of such a case find none of its reports: case-updated is dropped, and what
    a verdict leaves is swept up. A report that triage has moved to another case meanwhile stays, and so does its
    message. Blocks stay, because they are the mailbox's setting; their generations make a later request a new block.
    """
    await store.purge_expired_cases(tx, [received.event.case_id for received in expired])
