"""The SQL of `periods` and `digests`: which digests are planned, and whether they were sent."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from chassis.postgres import Reads, Tx
from quarantine.rules import DigestFrequency
from quarantine.store.messages import SELECT_MESSAGE, QuarantinedMessage, read_message


async def record_period(tx: Tx, tenant_id: UUID, every: DigestFrequency, ended_at: datetime) -> bool:
    """
    Record that a period is planned; return False if it was planned before.

    Of two workers that plan the same period, one waits for the other's transaction.
    """
    return bool(
        await tx.fetchval(
            "INSERT INTO periods VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true", tenant_id, every, ended_at
        )
    )


async def lock_messages_without_digest(tx: Tx, tenant_id: UUID, before: datetime) -> list[tuple[UUID, str, str]]:
    """
    Return the held messages without a digest and lock them: id, recipient, quarantine policy.

    Messages whose policy is not known yet are left for a later digest: what their recipient may do is not known either.
    """
    rows = await tx.fetch(
        "SELECT message_id, recipient, quarantine_policy FROM messages JOIN policies"
        " ON policies.tenant_id = messages.tenant_id AND policies.name = quarantine_policy"
        " WHERE messages.tenant_id = $1 AND digest_id IS NULL"
        " AND status = 'not-released' AND first_seen_at < $2 AND expires_at > now() AND direction <> 'Outbound'"
        " FOR UPDATE OF messages",
        tenant_id,
        before,
    )
    return [(row["message_id"], row["recipient"], row["quarantine_policy"]) for row in rows]


async def assign_digests(tx: Tx, digests: Mapping[UUID, UUID]) -> None:
    """Record which digest (value) lists which message (key)."""
    await tx.execute(
        "UPDATE messages SET digest_id = new.digest_id FROM unnest($1::uuid[], $2::uuid[])"
        " AS new (message_id, digest_id) WHERE messages.message_id = new.message_id",
        list(digests),
        list(digests.values()),
    )


async def defer_messages(tx: Tx, digest_ids: Collection[UUID]) -> None:
    """Defer messages whose quarantine policy is no longer known to a later digest."""
    await tx.execute(
        "UPDATE messages SET digest_id = NULL WHERE digest_id = ANY($1::uuid[]) AND NOT EXISTS (SELECT FROM policies"
        " WHERE policies.tenant_id = messages.tenant_id AND policies.name = quarantine_policy)",
        list(digest_ids),
    )


async def record_digests(
    tx: Tx, tenant_id: UUID, every: DigestFrequency, ended_at: datetime, recipients: Mapping[UUID, str]
) -> None:
    """Store the digests of a period; *recipients* has their ids as keys."""
    await tx.execute(
        "INSERT INTO digests (digest_id, tenant_id, recipient, every, ended_at)"
        " SELECT digest_id, $1, recipient, $2, $3 FROM unnest($4::uuid[], $5::text[]) AS new (digest_id, recipient)"
        " ON CONFLICT DO NOTHING",
        tenant_id,
        every,
        ended_at,
        list(recipients),
        list(recipients.values()),
    )


@dataclass(frozen=True, slots=True)
class Digest:
    """A claimed row of `digests`."""

    digest_id: UUID
    tenant_id: UUID
    recipient: str
    ended_at: datetime
    draft_id: str | None
    planned_at: datetime
    attempts: int


async def claim_digests(tx: Tx, tenant_ids: Collection[UUID], lease: timedelta, limit: int) -> list[Digest]:
    """Claim due digests for *lease*."""
    rows = await tx.fetch(
        "WITH due AS (SELECT digest_id FROM digests WHERE state = 'pending' AND due_at <= now()"
        " AND tenant_id = ANY($1::uuid[]) ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " UPDATE digests SET due_at = now() + $2::interval, attempts = attempts + 1 FROM due"
        " WHERE digests.digest_id = due.digest_id RETURNING digests.*",
        list(tenant_ids),
        lease,
        limit,
    )
    return [Digest(**{name: row[name] for name in Digest.__slots__}) for row in rows]


async def find_digest_messages(db: Reads, digest_id: UUID) -> list[QuarantinedMessage]:
    """Return the messages that a digest lists and that are still held, the latest first."""
    rows = await db.fetch(
        f"{SELECT_MESSAGE} WHERE digest_id = $1 AND status = 'not-released' AND expires_at > now()"
        " ORDER BY received_at DESC",
        digest_id,
    )
    return [read_message(row) for row in rows]


async def record_draft(tx: Tx, digest: Digest, draft_id: str) -> bool:
    """Record the one draft that may be sent for a digest; return False if there is another one."""
    return bool(
        await tx.fetchval(
            "UPDATE digests SET draft_id = $2 WHERE digest_id = $1 AND state = 'pending'"
            " AND coalesce(draft_id, $2) = $2 RETURNING true",
            digest.digest_id,
            draft_id,
        )
    )


async def settle_digest(tx: Tx, digest_id: UUID, state: str, detail: str | None = None) -> None:
    """Record the outcome of a digest."""
    await tx.execute(
        "UPDATE digests SET state = $2, detail = $3, settled_at = now() WHERE digest_id = $1 AND state = 'pending'",
        digest_id,
        state,
        detail,
    )


async def postpone_digest(tx: Tx, digest_id: UUID, wait: timedelta, detail: str | None) -> None:
    """Retry a digest after *wait*."""
    await tx.execute(
        "UPDATE digests SET due_at = now() + $2::interval, detail = $3 WHERE digest_id = $1 AND state = 'pending'",
        digest_id,
        wait,
        detail,
    )


async def purge_digests(tx: Tx, age: timedelta) -> None:
    """Delete digests that were settled, and periods that ended, more than *age* ago."""
    await tx.execute("DELETE FROM digests WHERE state <> 'pending' AND settled_at < now() - $1::interval", age)
    await tx.execute("DELETE FROM periods WHERE ended_at < now() - $1::interval", age)
