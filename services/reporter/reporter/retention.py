"""
Delete raw messages from the mail store when no report refers to them. Nothing else deletes any.

A message is stored under its hash, so a new report of it may arrive at any moment and find it already stored.
docs/adr/0005-retention.md explains why no report can lose its message.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

import structlog

from chassis.postgres import Database, Tx
from mail import MailStore
from outcomes import purge_unreported_cases

log = structlog.get_logger()

Mail: TypeAlias = tuple[UUID, str]
"""A raw message in the mail store: tenant and SHA-256."""

BATCH = 100
DELETION_TIMEOUT = timedelta(seconds=45)
"""Longest time that the deletions of a batch may take: reports of these messages wait meanwhile."""
LEASE = timedelta(minutes=5)
"""Lease on claimed messages, longer than DELETION_TIMEOUT: what is still claimed then was left behind by a crash."""
REMEMBERED = timedelta(days=1)
"""How long a deletion is remembered: longer than a report can take from storing its message to its transaction."""
UNREPORTED = timedelta(days=30)
"""Age at which a message is deleted that never became a report, because its request broke off."""
UNKNOWN = timedelta(days=60)
"""Age at which a verdict is deleted whose case has no report here; longer than the retention of its topic."""


class Retention:
    """Deletes messages from the mail store once no report refers to them."""

    def __init__(self, db: Database, mails: MailStore) -> None:
        self._db = db
        self._mails = mails

    async def delete_expired_messages(self) -> int:
        """
        Delete the messages that are due and to which no report refers. Return how many were due.

        Killed at any point, it leaves rows that come due again.
        """
        # The claim is committed before anything is deleted: it makes new reports store their message again.
        async with self._db.transaction() as tx:
            due = await _claim_expired_messages(tx, LEASE, BATCH)
        if due:
            await self._delete(due)
        return len(due)

    async def _delete(self, due: list[Mail]) -> None:
        async with self._db.transaction() as tx:
            locked = await _lock_messages(tx, due)
            released = await _release_messages(tx, locked)
            expired = [message for message in locked if message not in released]
            async with asyncio.timeout(DELETION_TIMEOUT.total_seconds()):
                outcomes = await asyncio.gather(
                    *(self._mails.delete(*message) for message in expired), return_exceptions=True
                )
            failures = [outcome for outcome in outcomes if outcome is not None]
            deleted = [message for message, outcome in zip(expired, outcomes, strict=True) if outcome is None]
            await _record_deleted_messages(tx, deleted, REMEMBERED)
        if deleted:
            log.info("messages.deleted", messages=len(deleted))
        for failure in failures:
            raise failure

    async def sweep(self) -> int:
        """Make messages due that were never reported, and delete verdicts of cases that have no report here."""
        async for page in self._mails.older(UNREPORTED):
            async with self._db.transaction() as tx:
                await _expire_unreported(tx, page)
        async with self._db.transaction() as tx:
            await _purge_early_cases(tx, UNKNOWN)
            await purge_unreported_cases(tx, UNKNOWN)
        return 0


async def _claim_expired_messages(tx: Tx, lease: timedelta, limit: int) -> list[Mail]:
    """Claim messages that are due for *lease*, after which they come due again unless they are settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT tenant_id, sha256 FROM expired_messages WHERE due_at <= now() ORDER BY due_at LIMIT $2"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE expired_messages AS message SET due_at = now() + $1::interval, attempts = attempts + 1 FROM due"
        " WHERE message.tenant_id = due.tenant_id AND message.sha256 = due.sha256"
        " RETURNING message.tenant_id, message.sha256",
        lease,
        limit,
    )
    return [(row["tenant_id"], row["sha256"]) for row in rows]


async def _lock_messages(tx: Tx, messages: Sequence[Mail]) -> list[Mail]:
    """
    Keep *messages* from being reported until the transaction ends; return those that nobody else holds.

    It waits for no lock. Check for references in a later statement: only that one sees all commits.
    """
    rows = await tx.fetch(
        # Locked before the join: within it, PostgreSQL may try the lock of every row of the table.
        "WITH due AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::text[]) AS due (tenant_id, sha256)"
        " WHERE pg_try_advisory_xact_lock(message_lock(tenant_id, sha256)))"
        " SELECT message.tenant_id, message.sha256 FROM expired_messages AS message JOIN due USING (tenant_id, sha256)"
        " FOR UPDATE OF message SKIP LOCKED",
        [tenant_id for tenant_id, _ in messages],
        [sha256 for _, sha256 in messages],
    )
    return [(row["tenant_id"], row["sha256"]) for row in rows]


async def _release_messages(tx: Tx, messages: Sequence[Mail]) -> set[Mail]:
    """Remove and return the locked *messages* that a report refers to, or that are deleted already."""
    rows = await tx.fetch(
        "DELETE FROM expired_messages AS message USING unnest($1::uuid[], $2::text[]) AS held (tenant_id, sha256)"
        " WHERE message.tenant_id = held.tenant_id AND message.sha256 = held.sha256 AND (message.deleted OR EXISTS"
        " (SELECT FROM reports WHERE reports.tenant_id = message.tenant_id AND reports.sha256 = message.sha256))"
        " RETURNING message.tenant_id, message.sha256",
        [tenant_id for tenant_id, _ in messages],
        [sha256 for _, sha256 in messages],
    )
    return {(row["tenant_id"], row["sha256"]) for row in rows}


async def _record_deleted_messages(tx: Tx, messages: Sequence[Mail], remembered: timedelta) -> None:
    """Record that messages are deleted, and remember it for a while."""
    await tx.execute(
        "UPDATE expired_messages AS message SET deleted = true, due_at = now() + $3::interval"
        " FROM unnest($1::uuid[], $2::text[]) AS held (tenant_id, sha256)"
        " WHERE message.tenant_id = held.tenant_id AND message.sha256 = held.sha256",
        [tenant_id for tenant_id, _ in messages],
        [sha256 for _, sha256 in messages],
        remembered,
    )


async def _expire_unreported(tx: Tx, messages: Sequence[Mail]) -> None:
    """Make the *messages* due that no report refers to."""
    await tx.execute(
        "INSERT INTO expired_messages (tenant_id, sha256)"
        " SELECT * FROM unnest($1::uuid[], $2::text[]) AS message (tenant_id, sha256) WHERE NOT EXISTS"
        " (SELECT FROM reports WHERE reports.tenant_id = message.tenant_id AND reports.sha256 = message.sha256)"
        " ON CONFLICT DO NOTHING",
        [tenant_id for tenant_id, _ in messages],
        [sha256 for _, sha256 in messages],
    )


async def _purge_early_cases(tx: Tx, age: timedelta) -> None:
    """Delete what has been known for longer than *age* about reports that never came."""
    await tx.execute("DELETE FROM early_cases WHERE noted_at < now() - $1::interval", age)
