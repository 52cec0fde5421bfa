"""The SQL of submitter: one function per statement. Callers hold the transaction."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from backstop_contracts import Category, MailboxMessage, Message, SubmissionRequested
from chassis.postgres import Reads, Tx
from submitter.rules import DAY, Calls, Due, Used, Wait, item_of

DUE = "SELECT due_at FROM submissions WHERE state = 'due'"


@dataclass(frozen=True, slots=True)
class Submission:
    """A row of `submissions`."""

    submission_id: UUID
    tenant_id: UUID
    case_id: UUID
    category: Category
    recipient: str
    folders: tuple[str, ...]
    message: Message
    mailbox_message: MailboxMessage | None
    traceparent: str | None
    requested_at: datetime
    item: str
    attempts: int
    sent_at: datetime | None
    unanswered_at: datetime | None
    failing_since: datetime | None
    delays_published: tuple[str, ...]


def _submission(row: asyncpg.Record) -> Submission:
    return Submission(
        submission_id=row["submission_id"],
        tenant_id=row["tenant_id"],
        case_id=row["case_id"],
        category=Category(row["category"]),
        recipient=row["recipient"],
        folders=tuple(row["folders"]),
        message=Message.model_validate(row["message"]),
        mailbox_message=MailboxMessage.model_validate(row["mailbox_message"]) if row["mailbox_message"] else None,
        traceparent=row["traceparent"],
        requested_at=row["requested_at"],
        item=row["item"],
        attempts=row["attempts"],
        sent_at=row["sent_at"],
        unanswered_at=row["unanswered_at"],
        failing_since=row["failing_since"],
        delays_published=tuple(row["delays_published"]),
    )


async def record(tx: Tx, requests: Sequence[tuple[SubmissionRequested, str | None]]) -> None:
    """Store the requested submissions, due now; a request that is already known changes nothing."""
    events = [event for event, _ in requests]
    await tx.execute(
        "INSERT INTO submissions (submission_id, tenant_id, case_id, category, recipient, message, mailbox_message,"
        " traceparent, requested_at, item, folders)"
        " SELECT submission_id, tenant_id, case_id, category, recipient, message, mailbox_message, traceparent,"
        " requested_at, item, string_to_array(folders, ',')"
        " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::jsonb[], $7::jsonb[],"
        " $8::text[], $9::timestamptz[], $10::text[], $11::text[]) AS new (submission_id, tenant_id, case_id, category,"
        " recipient, message, mailbox_message, traceparent, requested_at, item, folders) ON CONFLICT DO NOTHING",
        [event.submission_id for event in events],
        [event.tenant_id for event in events],
        [event.case_id for event in events],
        [event.category for event in events],
        [event.recipient for event in events],
        [event.message.model_dump(mode="json") for event in events],
        [event.mailbox_message.model_dump() if event.mailbox_message else None for event in events],
        [traceparent for _, traceparent in requests],
        [event.requested_at for event in events],
        [item_of(event.message, event.recipient) for event in events],
        [",".join(event.folders) for event in events],
    )


async def lock_quota(tx: Tx) -> None:
    """Let one replica at a time count against the quota."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('submitter'), hashtext('quota'))")


async def lock_due(tx: Tx, limit: int) -> list[Submission]:
    """Lock and return submissions that are due, the longest waiting first."""
    rows = await tx.fetch(
        "SELECT * FROM submissions WHERE state = 'due' AND due_at <= now() ORDER BY due_at LIMIT $1"
        " FOR UPDATE SKIP LOCKED",
        limit,
    )
    return [_submission(row) for row in rows]


async def count_calls(tx: Tx, wanted: Sequence[Due], window: timedelta) -> Calls:
    """Return the calls that count against the quota of *wanted*, and which of their tenants are throttled."""
    tenants, items = {one.tenant_id for one in wanted}, {one.item for one in wanted}
    counted = await tx.fetch(
        "SELECT tenant_id, count(*) AS calls, min(at) AS first FROM calls"
        " WHERE tenant_id = ANY($1::uuid[]) AND at > now() - $2::interval GROUP BY tenant_id",
        list(tenants),
        window,
    )
    of_tenant = {row["tenant_id"]: Used(row["calls"], row["first"]) for row in counted}
    of_item: defaultdict[tuple[UUID, str], list[datetime]] = defaultdict(list)
    for row in await tx.fetch(
        "SELECT tenant_id, item, at FROM calls WHERE tenant_id = ANY($1::uuid[]) AND item = ANY($2::text[])"
        " AND at > now() - $3::interval",
        list(tenants),
        list(items),
        DAY,
    ):
        of_item[row["tenant_id"], row["item"]].append(row["at"])
    quiet = await tx.fetch(
        "SELECT tenant_id, until FROM throttled WHERE tenant_id = ANY($1::uuid[]) AND until > now()", list(tenants)
    )
    return Calls(of_tenant, of_item, {row["tenant_id"]: row["until"] for row in quiet})


async def pause_tenant(tx: Tx, tenant_id: UUID, until: datetime) -> None:
    """Keep every replica from calling about a tenant before *until*."""
    await tx.execute(
        "INSERT INTO throttled VALUES ($1, $2)"
        " ON CONFLICT (tenant_id) DO UPDATE SET until = greatest(throttled.until, excluded.until)",
        tenant_id,
        until,
    )


async def claim(tx: Tx, submission_ids: Sequence[UUID], lease: timedelta) -> None:
    """Claim submissions for a call: they come due again after *lease* unless they are settled before."""
    await tx.execute(
        "WITH claimed AS (UPDATE submissions SET due_at = now() + $2::interval, attempts = attempts + 1,"
        " sent_at = now() WHERE submission_id = ANY($1::uuid[]) RETURNING submission_id, tenant_id, item)"
        " INSERT INTO calls SELECT submission_id, tenant_id, item, now() FROM claimed",
        submission_ids,
        lease,
    )


async def claim_lookup(tx: Tx, submission_ids: Sequence[UUID], length: timedelta) -> None:
    """
    Claim submissions for a lookup: they come due again after *length* unless they are settled before.

    Their calls count as unanswered from now on, so that each later attempt begins with a lookup, too.
    """
    await tx.execute(
        "UPDATE submissions SET due_at = now() + $2::interval, attempts = attempts + 1, unanswered_at = sent_at"
        " WHERE submission_id = ANY($1::uuid[])",
        submission_ids,
        length,
    )


async def is_still_claimed(tx: Tx, submission_id: UUID, attempts: int) -> bool:
    """Lock a submission; return True if it is still due and has not been claimed since its *attempts*-th claim."""
    return bool(
        await tx.fetchval(
            "SELECT true FROM submissions WHERE submission_id = $1 AND attempts = $2 AND state = 'due' FOR UPDATE",
            submission_id,
            attempts,
        )
    )


async def postpone_lookup(tx: Tx, submission_id: UUID, until: datetime) -> None:
    """Postpone a submission whose call may still appear in Microsoft's list."""
    await tx.execute("UPDATE submissions SET due_at = $2 WHERE submission_id = $1", submission_id, until)


async def record_waits(tx: Tx, waits: Sequence[Wait]) -> None:
    """Postpone submissions that may not be made or looked for now, and record that the delay is published."""
    await tx.execute(
        "UPDATE submissions SET due_at = new.until, failing_since = NULL,"
        " sent_at = coalesce(sent_at, unanswered_at),"
        " delays_published = array_append(array_remove(delays_published, new.reason), new.reason)"
        " FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS new (submission_id, until, reason)"
        " WHERE submissions.submission_id = new.submission_id",
        [one.submission_id for one in waits],
        [one.until for one in waits],
        [one.reason for one in waits],
    )


async def postpone(
    tx: Tx, submission_id: UUID, until: datetime, reason: str, *, failing: bool, unanswered: bool
) -> None:
    """Postpone a submission after a call: *failing* if it failed, *unanswered* if it may have happened."""
    await tx.execute(
        "UPDATE submissions SET due_at = $2, sent_at = CASE WHEN $5 THEN sent_at ELSE unanswered_at END,"
        " failing_since = CASE WHEN $4 THEN coalesce(failing_since, now()) END,"
        " delays_published = array_append(array_remove(delays_published, $3), $3) WHERE submission_id = $1",
        submission_id,
        until,
        reason,
        failing,
        unanswered,
    )


async def make_due(tx: Tx, submission_id: UUID, *, without_link: bool = False) -> None:
    """Make a submission due now, for a call without another lookup: as far as is known, none has made it."""
    await tx.execute(
        "UPDATE submissions SET due_at = now(), sent_at = NULL,"
        " mailbox_message = CASE WHEN $2 THEN NULL ELSE mailbox_message END WHERE submission_id = $1",
        submission_id,
        without_link,
    )


async def release_item(tx: Tx, submission_id: UUID) -> None:
    """Free the item of a submission whose calls are known not to have happened; they still count for the tenant."""
    await tx.execute("UPDATE calls SET item = NULL WHERE submission_id = $1", submission_id)


async def record_stray(tx: Tx, submission_id: UUID, graph_id: str, item: str) -> None:
    """Record that a call submitted the wrong message, *item*, instead of the requested one."""
    await tx.execute("UPDATE submissions SET stray_graph_id = $2 WHERE submission_id = $1", submission_id, graph_id)
    await tx.execute("UPDATE calls SET item = $2 WHERE submission_id = $1 AND item IS NOT NULL", submission_id, item)


async def settle(tx: Tx, submission_id: UUID, state: str, graph_id: str | None = None) -> bool:
    """End a submission; return False if it had already ended."""
    return bool(
        await tx.fetchval(
            "UPDATE submissions SET state = $2, graph_id = $3, sent_at = NULL"
            " WHERE submission_id = $1 AND state = 'due' RETURNING true",
            submission_id,
            state,
            graph_id,
        )
    )


async def find_known_graph_ids(db: Reads, tenant_id: UUID, graph_ids: Sequence[str]) -> set[str]:
    """Return those of *graph_ids* that are known: as ours, or as submissions of messages that nobody reported."""
    rows = await db.fetch(
        "SELECT graph_id FROM submissions WHERE tenant_id = $1 AND graph_id = ANY($2::text[])"
        " UNION SELECT stray_graph_id FROM submissions WHERE tenant_id = $1 AND stray_graph_id = ANY($2::text[])",
        tenant_id,
        graph_ids,
    )
    return {row["graph_id"] for row in rows}


async def purge_calls(tx: Tx) -> None:
    """Delete calls that no longer count, and pauses that are over."""
    await tx.execute("DELETE FROM calls WHERE at < now() - $1::interval", 2 * DAY)
    await tx.execute("DELETE FROM throttled WHERE until < now()")


async def purge_expired_cases(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Delete those submissions of cases that were made or have failed."""
    await tx.execute("DELETE FROM submissions WHERE case_id = ANY($1::uuid[]) AND state <> 'due'", case_ids)
