"""Record requested actions and blocks, each once however often it is requested, and wait for their outcome."""

import asyncio
import hashlib
from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from backstop_contracts import Actor, AdminDecision, Channel
from chassis import outbox, telemetry
from chassis.postgres import Database, Tx
from outcomes import MailboxBlock, last_block, request_block
from quarantine import rules, store
from quarantine.rules import ACHIEVED_STATUSES, ActionKind
from quarantine.store import Action, QuarantinedMessage

POLL_SECONDS = 0.1


async def request_actions(
    tx: Tx,
    messages: Sequence[QuarantinedMessage],
    kind: ActionKind,
    *,
    by: Actor,
    reason: str | None = None,
    variant: str | None = None,
    reported_as: str | None = None,
    decision: AdminDecision | None = None,
) -> list[UUID]:
    """
    Record an action for each of *messages*, for the worker to run; return the ids of the actions.

    A request joins an action that is pending, or whose effect still holds. If the last action failed or was undone, a
    new one is recorded. Actions of another *variant* are independent.
    """
    variant = variant or reported_as or ""
    if decision:
        variant = hashlib.sha256(decision.model_dump_json(exclude={"decided_by"}).encode()).hexdigest()[:16]
    latest = await store.find_latest_actions(tx, [message.message_id for message in messages], kind, variant)
    ids, generations = [], []
    for message in messages:
        known = latest.get(message.message_id)
        generation = known.generation + (not _can_be_joined(known, message)) if known else 1
        generations.append(generation)
        ids.append(rules.action_id(message.message_id, kind, variant, generation))
    await store.record_actions(
        tx,
        messages,
        ids,
        generations,
        kind=kind,
        variant=variant,
        reported_as=reported_as,
        decision=decision,
        reason=reason,
        by=by,
        traceparent=telemetry.current_traceparent(),
    )
    return ids


def _can_be_joined(action: Action, message: QuarantinedMessage) -> bool:
    if action.state == "succeeded":
        reports = action.kind in (ActionKind.REPORT, ActionKind.SUBMIT)
        return reports or message.status in ACHIEVED_STATUSES[action.kind]
    return action.state == "pending"


async def request_sender_block(tx: Tx, message: QuarantinedMessage, sender: str, *, by: Actor) -> MailboxBlock:
    """Request a block of *sender* for the recipient's mailbox, unless it is in force or already requested."""
    block, requested = await request_block(
        tx, message.tenant_id, channel=Channel.QUARANTINE, mailbox=message.recipient, sender=sender, by=by
    )
    if requested:
        await outbox.emit(tx, [(requested, telemetry.current_traceparent())])
    return block


async def wait_for_actions(
    db: Database, tenant_id: UUID, action_ids: Collection[UUID], max_wait: timedelta
) -> list[Action]:
    """Return actions as soon as all of them are settled, and after *max_wait* at the latest."""
    deadline = _deadline(max_wait)
    while True:
        actions = await store.find_actions(db.pool, tenant_id, action_ids)
        if all(action.state != "pending" for action in actions) or _is_over(deadline):
            return actions
        await asyncio.sleep(POLL_SECONDS)


async def wait_for_cases(db: Database, actions: Sequence[Action], max_wait: timedelta) -> None:
    """Wait until the cases of all reports made by *actions* are known, for *max_wait* at most."""
    reports = {action.report_id for action in actions if action.report_id}
    messages = {action.message_id for action in actions if action.report_id}
    deadline = _deadline(max_wait)
    while reports and not _is_over(deadline):
        found = await store.find_reports(db.pool, messages)
        if all(report.case_id for report in found if report.report_id in reports):
            return
        await asyncio.sleep(POLL_SECONDS)


async def wait_for_block(db: Database, tenant_id: UUID, block: MailboxBlock, max_wait: timedelta) -> MailboxBlock:
    """Return a block as soon as its outcome is known, and after *max_wait* at the latest."""
    deadline = _deadline(max_wait)
    while True:
        found = await last_block(db.pool, tenant_id, block.mailbox, block.sender) or block
        if found.status != "requested" or _is_over(deadline):
            return found
        await asyncio.sleep(POLL_SECONDS)


def _deadline(max_wait: timedelta) -> float:
    return asyncio.get_running_loop().time() + max_wait.total_seconds()


def _is_over(deadline: float) -> bool:
    return asyncio.get_running_loop().time() > deadline
