"""The SQL of `messages`: what Exchange lists, one row for each message and recipient."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chassis.postgres import Reads, Tx
from quarantine.exchange_rows import ListedMessage
from quarantine.quarantine_policies import Permissions, effective_permissions
from quarantine.rules import MessageStatus, message_id

STATUS_LAG = timedelta(minutes=15)
"""How long Exchange may still list the old status of a message after we changed it."""

_HELD = "('not-released', 'requested', 'preparing', 'denied', 'error')"


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """A row of `messages`, with what its quarantine policy grants users."""

    message_id: UUID
    tenant_id: UUID
    identity: str
    recipient: str
    recipient_count: int
    network_message_id: str
    internet_message_id: str | None
    sender: str | None
    sender_domain: str | None
    subject: str | None
    size: int
    quarantine_type: str
    policy_type: str
    policy_name: str
    quarantine_policy: str
    direction: str
    received_at: datetime
    expires_at: datetime
    status: MessageStatus
    status_changed_at: datetime
    granted: Permissions

    @property
    def permitted(self) -> Permissions:
        """What the recipient may do with the message."""
        return effective_permissions(self.granted, self.quarantine_type)


SELECT_MESSAGE = (
    "SELECT messages.*, coalesce(policies.permissions, 0) AS granted FROM messages"
    " LEFT JOIN policies ON policies.tenant_id = messages.tenant_id AND policies.name = messages.quarantine_policy"
)


def read_message(row: Any) -> QuarantinedMessage:
    """Return a row that was read with SELECT_MESSAGE."""
    names = QuarantinedMessage.__slots__
    return QuarantinedMessage(
        **{name: row[name] for name in names if name not in ("status", "granted")},
        status=MessageStatus(row["status"]),
        granted=Permissions(row["granted"]),
    )


async def record_messages(tx: Tx, tenant_id: UUID, listed: Sequence[ListedMessage], sweep: int) -> None:
    """
    Store what Exchange lists. A status that we changed is kept until Exchange has had time to show it.

    A message that is listed again is no longer deleted or expired.
    """
    await tx.execute(
        "INSERT INTO messages AS known (message_id, tenant_id, identity, recipient, recipient_count,"
        " network_message_id, internet_message_id, sender, sender_domain, subject, size,"
        " quarantine_type, policy_type, policy_name, quarantine_policy, direction, received_at, expires_at, status,"
        " released_by, sweep)"
        " SELECT message_id, $1, identity, recipient, recipient_count, network_message_id, internet_message_id, sender,"
        " sender_domain, subject, size, quarantine_type, policy_type, policy_name, quarantine_policy, direction,"
        " received_at, expires_at, status, string_to_array(released_by, E'\\n'), $2"
        " FROM unnest($3::uuid[], $4::text[], $5::text[], $6::int[], $7::text[], $8::text[], $9::text[], $10::text[],"
        " $11::text[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],"
        " $18::timestamptz[], $19::timestamptz[], $20::text[], $21::text[]) AS new (message_id, identity, recipient,"
        " recipient_count, network_message_id, internet_message_id, sender, sender_domain, subject, size,"
        " quarantine_type, policy_type, policy_name, quarantine_policy, direction, received_at, expires_at, status,"
        " released_by)"
        " ON CONFLICT (message_id) DO UPDATE SET sweep = excluded.sweep, expires_at = excluded.expires_at,"
        " quarantine_type = excluded.quarantine_type,"
        " quarantine_policy = excluded.quarantine_policy, released_by = excluded.released_by,"
        " status = CASE WHEN known.acted_at > now() - $22::interval THEN known.status ELSE excluded.status END,"
        " status_changed_at = CASE WHEN known.status = excluded.status OR known.acted_at > now() - $22::interval"
        " THEN known.status_changed_at ELSE now() END",
        tenant_id,
        sweep,
        [message_id(tenant_id, message.identity, message.recipient) for message in listed],
        [message.identity for message in listed],
        [message.recipient for message in listed],
        [message.recipient_count for message in listed],
        [message.network_message_id for message in listed],
        [message.internet_message_id for message in listed],
        [message.sender for message in listed],
        [message.sender_domain for message in listed],
        [message.subject for message in listed],
        [message.size for message in listed],
        [message.quarantine_type for message in listed],
        [message.policy_type for message in listed],
        [message.policy_name for message in listed],
        [message.quarantine_policy for message in listed],
        [message.direction for message in listed],
        [message.received_at for message in listed],
        [message.expires_at for message in listed],
        [message.status for message in listed],
        ["\n".join(message.released_by) for message in listed],
        STATUS_LAG,
    )


async def set_messages_expired(tx: Tx, tenant_id: UUID) -> None:
    """Set held messages whose time in quarantine is over to `expired`."""
    await tx.execute(
        "UPDATE messages SET status = 'expired', status_changed_at = now()"
        f" WHERE tenant_id = $1 AND expires_at <= now() AND status IN {_HELD}",
        tenant_id,
    )


async def set_messages_deleted(tx: Tx, tenant_id: UUID, sweep: int) -> None:
    """
    Set held messages that neither *sweep* nor the one before it found to `deleted`.

    A single sweep may miss a message: a deletion during the sweep moves other messages to earlier pages.
    """
    await tx.execute(
        "UPDATE messages SET status = 'deleted', status_changed_at = now()"
        f" WHERE tenant_id = $1 AND sweep < $2 - 1 AND status IN {_HELD}",
        tenant_id,
        sweep,
    )


async def set_message_status(tx: Tx, message_id: UUID, status: MessageStatus) -> None:
    """Record the effect of an action before Exchange lists it."""
    await tx.execute(
        "UPDATE messages SET status = $2, status_changed_at = now(), acted_at = now() WHERE message_id = $1",
        message_id,
        status,
    )


async def find_messages(db: Reads, tenant_id: UUID, message_ids: Collection[UUID]) -> list[QuarantinedMessage]:
    """Return the known messages of a tenant among *message_ids*, in that order."""
    rows = await db.fetch(
        f"{SELECT_MESSAGE} WHERE messages.tenant_id = $1 AND message_id = ANY($2::uuid[])"
        " ORDER BY array_position($2::uuid[], message_id)",
        tenant_id,
        list(message_ids),
    )
    return [read_message(row) for row in rows]


async def find_message(db: Reads, tenant_id: UUID, message_id: UUID) -> QuarantinedMessage | None:
    """Return one message of a tenant; None if there is no such message."""
    return next(iter(await find_messages(db, tenant_id, [message_id])), None)


async def find_copies(db: Reads, tenant_id: UUID, message_ids: Collection[UUID]) -> list[QuarantinedMessage]:
    """Return the messages *message_ids* and their copies for all other recipients."""
    rows = await db.fetch(
        f"{SELECT_MESSAGE} WHERE messages.tenant_id = $1 AND network_message_id IN"
        " (SELECT network_message_id FROM messages WHERE tenant_id = $1 AND message_id = ANY($2::uuid[]))"
        " ORDER BY network_message_id, recipient, message_id",
        tenant_id,
        list(message_ids),
    )
    return [read_message(row) for row in rows]


async def list_messages(
    db: Reads,
    tenant_id: UUID,
    *,
    filters: Mapping[str, Any],
    after: tuple[bool, datetime, UUID] | None,
    limit: int,
) -> list[QuarantinedMessage]:
    """
    Return the page of messages after the position *after*: pending release requests first, then the latest.

    *filters* maps columns to values; `received_after`, `received_before` and `subject` (a substring) are also allowed.
    """
    conditions, values = ["messages.tenant_id = $1"], [tenant_id, limit]
    for name, value in filters.items():
        if value is None:
            continue
        values.append(value)
        conditions.append(_FILTERS.get(name, f"messages.{name} = ${{}}").format(len(values)))
    if after:
        values.extend(after)
        position = ", ".join(f"${len(values) - offset}" for offset in (2, 1, 0))
        conditions.append(f"((status = 'requested'), received_at, message_id) < ({position})")
    rows = await db.fetch(
        f"{SELECT_MESSAGE} WHERE {' AND '.join(conditions)}"
        " ORDER BY (status = 'requested') DESC, received_at DESC, message_id DESC LIMIT $2",
        *values,
    )
    return [read_message(row) for row in rows]


_FILTERS = {
    "received_after": "received_at >= ${}",
    "received_before": "received_at < ${}",
    "subject": "position(lower(${}) in lower(subject)) > 0",
    "status": "status = ANY(${}::text[])",
    "quarantine_type": "lower(${}) = ANY(string_to_array(lower(quarantine_type), ', '))",
}


async def purge_messages(tx: Tx, age: timedelta, limit: int) -> int:
    """Delete messages, actions and reports that left the quarantine or expired more than *age* ago."""
    return int(
        await tx.fetchval(
            "WITH old AS (SELECT message_id FROM messages WHERE greatest(expires_at, status_changed_at)"
            " < now() - $1::interval AND NOT EXISTS (SELECT FROM actions WHERE actions.message_id = messages.message_id"
            " AND state = 'pending') ORDER BY message_id LIMIT $2 FOR UPDATE SKIP LOCKED),"
            " acts AS (DELETE FROM actions USING old WHERE actions.message_id = old.message_id),"
            " reported AS (DELETE FROM reports USING old WHERE reports.message_id = old.message_id),"
            " gone AS (DELETE FROM messages USING old WHERE messages.message_id = old.message_id RETURNING 1)"
            " SELECT count(*) FROM gone",
            age,
            limit,
        )
    )
