"""Verdict-poller's SQL: one function per statement. Callers hold the transaction."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from backstop_contracts import AppliedBlock, Category, Message, SubmissionCreated
from chassis.postgres import Tx

WATCHING_DUE = "SELECT due_at FROM watches WHERE state = 'watching'"
ANSWERED_DUE = "SELECT due_at FROM watches WHERE state = 'answered'"


@dataclass(frozen=True, slots=True)
class Watch:
    """A row of `watches`."""

    submission_id: UUID
    tenant_id: UUID
    case_id: UUID
    graph_id: str
    category: Category
    recipient: str
    folders: tuple[str, ...]
    message: Message
    traceparent: str | None
    created_at: datetime
    watched_since: datetime
    attempts: int
    result: Mapping[str, Any] | None


def _watch(row: asyncpg.Record) -> Watch:
    return Watch(
        submission_id=row["submission_id"],
        tenant_id=row["tenant_id"],
        case_id=row["case_id"],
        graph_id=row["graph_id"],
        category=Category(row["category"]),
        recipient=row["recipient"],
        folders=tuple(row["folders"]),
        message=Message.model_validate(row["message"]),
        traceparent=row["traceparent"],
        created_at=row["created_at"],
        watched_since=row["watched_since"],
        attempts=row["attempts"],
        result=row["result"],
    )


async def record(tx: Tx, created: Sequence[tuple[SubmissionCreated, str | None]], first_due: datetime) -> None:
    """Record submissions to watch; known ones are left unchanged."""
    events = [event for event, _ in created]
    await tx.execute(
        "INSERT INTO watches (submission_id, tenant_id, case_id, graph_id, recipient, message, created_at, traceparent,"
        " category, folders, due_at)"
        " SELECT submission_id, tenant_id, case_id, graph_id, recipient, message, created_at, traceparent, category,"
        " string_to_array(folders, ','), $11::timestamptz"
        " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::jsonb[], $7::timestamptz[],"
        " $8::text[], $9::text[], $10::text[]) AS new (submission_id, tenant_id, case_id, graph_id, recipient, message,"
        " created_at, traceparent, category, folders) ON CONFLICT DO NOTHING",
        [event.submission_id for event in events],
        [event.tenant_id for event in events],
        [event.case_id for event in events],
        [event.graph_id for event in events],
        [event.recipient for event in events],
        [event.message.model_dump(mode="json") for event in events],
        [event.created_at for event in events],
        [traceparent for _, traceparent in created],
        [event.category for event in events],
        [",".join(event.folders) for event in events],
        first_due,
    )


async def claim(tx: Tx, state: str, lease: timedelta, limit: int) -> list[Watch]:
    """Claim due watches of *state* for *lease*; a watch that is not settled by then comes due again."""
    rows = await tx.fetch(
        "WITH due AS (SELECT submission_id FROM watches WHERE state = $1 AND due_at <= now() ORDER BY due_at LIMIT $3"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE watches SET due_at = now() + $2::interval, attempts = attempts + 1 FROM due"
        " WHERE watches.submission_id = due.submission_id RETURNING watches.*",
        state,
        lease,
        limit,
    )
    return [_watch(row) for row in rows]


async def postpone(tx: Tx, state: str, dues: Sequence[tuple[Watch, datetime]]) -> None:
    """Set when watches are due again, unless they have left *state* or were claimed again."""
    await tx.execute(
        "UPDATE watches SET due_at = new.due_at FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[])"
        " AS new (submission_id, attempts, due_at)"
        " WHERE watches.submission_id = new.submission_id AND watches.attempts = new.attempts AND state = $4",
        [watch.submission_id for watch, _ in dues],
        [watch.attempts for watch, _ in dues],
        [due for _, due in dues],
        state,
    )


async def record_results(tx: Tx, results: Mapping[UUID, Mapping[str, Any]]) -> None:
    """Record Microsoft's answers, which are due for an explanation at once."""
    await tx.execute(
        "UPDATE watches SET state = 'answered', result = new.result, due_at = now(), attempts = 0"
        " FROM unnest($1::uuid[], $2::jsonb[]) AS new (submission_id, result)"
        " WHERE watches.submission_id = new.submission_id AND state = 'watching'",
        list(results),
        list(results.values()),
    )


async def settle(tx: Tx, submission_ids: Sequence[UUID]) -> set[UUID]:
    """Mark watches as published; return the ids of those that were not before."""
    rows = await tx.fetch(
        "UPDATE watches SET state = 'published' WHERE submission_id = ANY($1::uuid[]) AND state = 'answered'"
        " RETURNING submission_id",
        submission_ids,
    )
    return {row["submission_id"] for row in rows}


async def record_blocks(tx: Tx, blocks: Mapping[UUID, tuple[UUID, AppliedBlock | None]]) -> None:
    """Record blocks, by id with their case, as applied, or as removed if the block itself is None."""
    ids = sorted(blocks)
    await tx.execute(
        "INSERT INTO blocks (block_id, case_id, block, removed) SELECT block_id, case_id, block, block IS NULL"
        " FROM unnest($1::uuid[], $2::uuid[], $3::jsonb[]) AS new (block_id, case_id, block)"
        " ON CONFLICT (block_id) DO UPDATE SET block = coalesce(excluded.block, blocks.block),"
        " removed = blocks.removed OR excluded.removed",
        ids,
        [blocks[block_id][0] for block_id in ids],
        [block.model_dump(mode="json") if (block := blocks[block_id][1]) else None for block_id in ids],
    )


async def list_blocks_in_force(tx: Tx, case_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[AppliedBlock]]:
    """Return the blocks in force, by case."""
    rows = await tx.fetch(
        "SELECT case_id, block FROM blocks WHERE case_id = ANY($1::uuid[]) AND NOT removed"
        " AND coalesce((block->>'expires_at')::timestamptz, 'infinity') > now() ORDER BY block_id",
        case_ids,
    )
    found: defaultdict[UUID, list[AppliedBlock]] = defaultdict(list)
    for row in rows:
        found[row["case_id"]].append(AppliedBlock.model_validate(row["block"]))
    return found


async def purge_expired_cases(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Delete the published watches of expired cases, and the blocks of those that await no verdict."""
    await tx.execute("DELETE FROM watches WHERE case_id = ANY($1::uuid[]) AND state = 'published'", case_ids)
    await tx.execute(
        "DELETE FROM blocks WHERE case_id = ANY($1::uuid[])"
        " AND NOT EXISTS (SELECT FROM watches WHERE watches.case_id = blocks.case_id)",
        case_ids,
    )


async def purge_blocks(tx: Tx, age: timedelta) -> None:
    """Delete removed blocks that were recorded more than *age* ago."""
    await tx.execute("DELETE FROM blocks WHERE removed AND recorded_at < now() - $1::interval", age)
