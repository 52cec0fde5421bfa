"""What reporter does with events: it remembers what its reporters will be told. It publishes nothing from here."""

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
        for report_id in await store.record_other_channels(tx, others):
            log.error("mail.may_be_missing", report_id=report_id)


@router.subscriber("case-updated", **BATCH)
async def on_case_updated(updates: list[Received[CaseUpdated]], tx: Tx) -> None:
    """Record which case each report belongs to, and how far triage is with it: the reporter's status page says so."""
    events = [received.event for received in updates]
    await store.assign_cases(tx, events)
    await outcomes.record_cases(tx, events)


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """Record Microsoft's verdicts, which end what reporters are told."""
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
    Forget cases and their reports, and make the mails due that they leave behind; the worker deletes them.

    The topics are read side by side. What is read of such a case afterwards finds none of its reports: case-updated is
    dropped, and what a verdict leaves is swept up. A report that triage has put into another case by now stays, and so
    does its mail. Blocks stay: they are the mailbox's setting, and their rounds make a later wish a new one.
    """
    await store.purge_cases(tx, [received.event.case_id for received in expired])
