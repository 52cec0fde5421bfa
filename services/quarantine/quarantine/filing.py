"""Take in what somebody wants, each wish once however often it is said; wait for what becomes of it."""

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from uuid import UUID

from backstop_contracts import Actor, AdminDecision, Channel
from chassis import outbox, telemetry
from chassis.postgres import Database, Tx
from outcomes import MailboxBlock, last_block, request_block
from quarantine import rules, store
from quarantine.rules import DONE, Kind
from quarantine.store import Action, QuarantinedMessage

LOOK_SECONDS = 0.1


async def file(
    tx: Tx,
    messages: Sequence[QuarantinedMessage],
    kind: Kind,
    *,
    by: Actor,
    reason: str | None = None,
    variant: str | None = None,
    reported_as: str | None = None,
    decision: AdminDecision | None = None,
) -> list[UUID]:
    """
    Store a wish for each of *messages*, for the worker to carry out; returns their ids.

    A wish that still waits, or whose fulfilment still holds, is joined; one that failed or was overtaken is made anew.
    Wishes of another *variant* are others.
    """
    variant = variant or reported_as or ""
    if decision:
        variant = hashlib.sha256(decision.model_dump_json(exclude={"decided_by"}).encode()).hexdigest()[:16]
    last = await store.last_actions(tx, [message.message_id for message in messages], kind, variant)
    ids, rounds = [], []
    for message in messages:
        known = last.get(message.message_id)
        round_ = known.round + (not _stands(known, message)) if known else 1
        rounds.append(round_)
        ids.append(rules.action_id(message.message_id, kind, variant, round_))
    await store.record_actions(
        tx,
        messages,
        ids,
        rounds,
        kind=kind,
        variant=variant,
        reported_as=reported_as,
        decision=decision,
        reason=reason,
        by=by,
        traceparent=telemetry.current_traceparent(),
    )
    return ids


def _stands(action: Action, message: QuarantinedMessage) -> bool:
    if action.state == "succeeded":
        return message.status in DONE.get(action.kind, frozenset()) or action.kind in (Kind.REPORT, Kind.SUBMIT)
    return action.state == "pending"


async def block_sender(tx: Tx, message: QuarantinedMessage, sender: str, *, by: Actor) -> MailboxBlock:
    """Ask for a block of *sender* for the recipient's mailbox, unless one stands or is on its way."""
    block, requested = await request_block(
        tx, message.tenant_id, channel=Channel.QUARANTINE, mailbox=message.recipient, sender=sender, by=by
    )
    if requested:
        await outbox.emit(tx, [(requested, telemetry.current_traceparent())])
    return block


async def outcomes(
    db: Database,
    tenant_id: UUID,
    action_ids: Collection[UUID],
    patience: timedelta,
    *,
    enough: Callable[[Action], bool] = lambda action: action.state != "pending",
) -> list[Action]:
    """Return wishes as soon as there is *enough* of each of them, and at the latest after *patience*."""
    deadline = asyncio.get_running_loop().time() + patience.total_seconds()
    while True:
        actions = await store.find_actions(db.pool, tenant_id, action_ids)
        if all(map(enough, actions)) or asyncio.get_running_loop().time() > deadline:
            return actions
        await asyncio.sleep(LOOK_SECONDS)


async def cases_known(db: Database, actions: Sequence[Action], patience: timedelta) -> None:
    """Wait until the cases of what was reported are known, for *patience* at most."""
    reports = {action.report_id for action in actions if action.report_id}
    messages = {action.message_id for action in actions if action.report_id}
    deadline = asyncio.get_running_loop().time() + patience.total_seconds()
    while reports and asyncio.get_running_loop().time() < deadline:
        found = await store.submissions(db.pool, messages)
        if all(one.case_id for one in found if one.report_id in reports):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def block_outcome(db: Database, tenant_id: UUID, block: MailboxBlock, patience: timedelta) -> MailboxBlock:
    """Return a block as soon as its outcome is known, and at the latest after *patience*."""
    deadline = asyncio.get_running_loop().time() + patience.total_seconds()
    while True:
        found = await last_block(db.pool, tenant_id, block.mailbox, block.sender) or block
        if found.status != "requested" or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(LOOK_SECONDS)
