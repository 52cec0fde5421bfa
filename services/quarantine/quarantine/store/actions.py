"""The SQL of `actions`: what somebody requested for a quarantined message, and the outcome."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from backstop_contracts import Actor, AdminDecision
from chassis.postgres import Reads, Tx
from quarantine.rules import ActionKind
from quarantine.store.messages import SELECT_MESSAGE, QuarantinedMessage, read_message


@dataclass(frozen=True, slots=True)
class Action:
    """A row of `actions`."""

    action_id: UUID
    message_id: UUID
    kind: ActionKind
    variant: str
    generation: int
    reported_as: str | None
    decision: AdminDecision | None
    reason: str | None
    requested_by: Actor
    state: str
    already_done: bool
    failure: str | None
    detail: str | None
    report_id: UUID | None
    requested_at: datetime
    settled_at: datetime | None
    attempts: int
    in_doubt: bool
    traceparent: str | None


def _read_action(row: Any) -> Action:
    parsed = ("kind", "decision", "requested_by")
    return Action(
        **{name: row[name] for name in Action.__slots__ if name not in parsed},
        kind=ActionKind(row["kind"]),
        decision=AdminDecision.model_validate_json(row["decision"]) if row["decision"] else None,
        requested_by=Actor.model_validate_json(row["requested_by"]),
    )


async def find_latest_actions(
    tx: Tx, message_ids: Collection[UUID], kind: ActionKind, variant: str
) -> dict[UUID, Action]:
    """Return the latest action of this kind and variant for each of the messages."""
    rows = await tx.fetch(
        "SELECT DISTINCT ON (message_id) * FROM actions WHERE message_id = ANY($1::uuid[]) AND kind = $2"
        " AND variant = $3 ORDER BY message_id, generation DESC",
        list(message_ids),
        kind,
        variant,
    )
    return {row["message_id"]: _read_action(row) for row in rows}


async def record_actions(
    tx: Tx,
    messages: Sequence[QuarantinedMessage],
    action_ids: Sequence[UUID],
    generations: Sequence[int],
    *,
    kind: ActionKind,
    variant: str,
    reported_as: str | None,
    decision: AdminDecision | None,
    reason: str | None,
    by: Actor,
    traceparent: str | None,
) -> None:
    """Store an action for each message, unless another request has just stored the same one."""
    await tx.execute(
        "INSERT INTO actions (action_id, tenant_id, message_id, generation, kind, variant, reported_as, decision,"
        " reason, requested_by, traceparent)"
        " SELECT action_id, tenant_id, message_id, generation, $5, $6, $7, $8, $9, $10, $11"
        " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int[]) AS new (action_id, tenant_id,"
        " message_id, generation) ON CONFLICT DO NOTHING",
        list(action_ids),
        [message.tenant_id for message in messages],
        [message.message_id for message in messages],
        list(generations),
        kind,
        variant,
        reported_as,
        decision.model_dump_json() if decision else None,
        reason,
        by.model_dump_json(),
        traceparent,
    )


async def find_actions(db: Reads, tenant_id: UUID, action_ids: Collection[UUID]) -> list[Action]:
    """Return actions of a tenant, in the order of *action_ids*."""
    rows = await db.fetch(
        "SELECT * FROM actions WHERE tenant_id = $1 AND action_id = ANY($2::uuid[])"
        " ORDER BY array_position($2::uuid[], action_id)",
        tenant_id,
        list(action_ids),
    )
    return [_read_action(row) for row in rows]


async def claim_actions(tx: Tx, lease: timedelta, limit: int) -> list[tuple[Action, QuarantinedMessage]]:
    """Claim due actions with their messages for *lease*. They come due again unless they are settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT * FROM actions WHERE state = 'pending' AND due_at <= now() ORDER BY due_at LIMIT $2"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE actions SET due_at = now() + $1::interval, attempts = due.attempts + 1, in_doubt = true FROM due"
        " WHERE actions.action_id = due.action_id RETURNING actions.*, due.in_doubt AS was_in_doubt",
        lease,
        limit,
    )
    actions = [replace(_read_action(row), in_doubt=row["was_in_doubt"]) for row in rows]
    ids = [action.message_id for action in actions]
    found = await tx.fetch(f"{SELECT_MESSAGE} WHERE message_id = ANY($1::uuid[])", ids)
    messages = {row["message_id"]: read_message(row) for row in found}
    return [(action, messages[action.message_id]) for action in actions]


async def postpone_action(tx: Tx, action_id: UUID, due_at: datetime, *, in_doubt: bool, detail: str | None) -> None:
    """Retry an action at *due_at*. It is *in_doubt* if the last call may have taken effect."""
    await tx.execute(
        "UPDATE actions SET due_at = $2, in_doubt = $3, detail = $4 WHERE action_id = $1 AND state = 'pending'",
        action_id,
        due_at,
        in_doubt,
        detail,
    )


async def settle_action(
    tx: Tx,
    action_id: UUID,
    *,
    succeeded: bool,
    already_done: bool = False,
    failure: str | None = None,
    detail: str | None = None,
    report_id: UUID | None = None,
) -> bool:
    """Record the outcome of an action; return False if it has one already."""
    return bool(
        await tx.fetchval(
            "UPDATE actions SET state = $2, already_done = $3, failure = $4, detail = $5, report_id = $6,"
            " settled_at = now(), in_doubt = false WHERE action_id = $1 AND state = 'pending' RETURNING true",
            action_id,
            "succeeded" if succeeded else "failed",
            already_done,
            failure,
            detail,
            report_id,
        )
    )
