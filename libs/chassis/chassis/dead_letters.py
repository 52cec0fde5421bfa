"""
Dead letters: events that a service could not handle, as rows of its schema, until somebody replays or drops them.

A letter is known by its record's place: topic, Kafka's id of that topic, partition, offset. A record that is delivered
again is parked once. What was not committed is delivered again: if it can be handled then, its letter is forgotten in
the same transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID

from aiokafka import ConsumerRecord
from pydantic import ValidationError

from backstop_contracts import NotAnEventError
from chassis.postgres import Database, Reads, Tx
from chassis.topics import EVENT_BYTES

KEPT = timedelta(days=30)
"""How long a letter is kept after it was replayed or dropped."""
REPLAYABLE = timedelta(days=7)
"""
How long a letter can be replayed without more ado. Other services may have handled its event, and know it by a key that
goes with its case, 15 days after that at the earliest. An event waits in its topic for 7 days at the most, and its
letter for 7.
"""
PURGED_AT_ONCE = 500
OVERHEAD_BYTES = 1_000
"""What a record takes beside its key, value and headers, with some to spare."""

State: TypeAlias = Literal["unresolved", "replayed", "dropped"]

_LISTED = (
    'id, topic, partition, "offset", key, header_names, header_values, octet_length(value) AS size, error, reason,'
    " parked_at, state, resolved_by, resolved_at"
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter without its value, of which only the length is read: None is no value at all."""

    id: int
    topic: str
    partition: int
    offset: int
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    size: int | None
    error: str
    reason: str
    parked_at: datetime
    state: State
    resolved_by: str | None
    resolved_at: datetime | None

    def header(self, name: str) -> str | None:
        """Return the value of a header; None when there is none, or it is no text."""
        try:
            return (dict(self.headers).get(name) or b"").decode() or None
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter for dead letters; None matches all. *reason* is a case-insensitive substring."""

    tenant_id: UUID | None = None
    state: State | None = "unresolved"
    topic: str | None = None
    error: str | None = None
    reason: str | None = None

    def where(self) -> tuple[str, list[Any]]:
        """Return the condition, with $1 and so on, and its parameters."""
        conditions = {
            "tenant_id = ${}": self.tenant_id,
            "state = ${}": self.state,
            "topic = ${}": self.topic,
            "error = ${}": self.error,
            "strpos(lower(reason), lower(${})) > 0": self.reason,
        }
        given = [(condition, value) for condition, value in conditions.items() if value is not None]
        where = [condition.format(number) for number, (condition, _) in enumerate(given, start=1)]
        return " AND ".join(where) or "true", [value for _, value in given]


def reason_of(error: Exception) -> str:
    """Write down what was wrong without repeating the data, which may be private."""
    if isinstance(error, ValidationError):
        parts = [f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['type']}" for e in error.errors(include_input=False)]
        text = "; ".join(parts)
    else:
        text = str(error) if isinstance(error, NotAnEventError) else type(error).__name__
    return text[:500].replace("\0", "\ufffd").encode(errors="replace").decode()


async def park(
    tx: Tx, record: ConsumerRecord, error: Exception, *, topic: str, topic_id: UUID, tenant_id: UUID | None
) -> int | None:
    """Keep *record* as it is, with the reason; return the letter's id, or None when it was resolved before."""
    parked: int | None = await tx.fetchval(
        'INSERT INTO dead_letters (topic, topic_id, partition, "offset", key, value, header_names, header_values,'
        " tenant_id, error, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        ' ON CONFLICT (topic, topic_id, partition, "offset") DO UPDATE SET error = excluded.error,'
        " reason = excluded.reason, parked_at = excluded.parked_at WHERE dead_letters.state = 'unresolved'"
        " RETURNING id",
        topic,
        topic_id,
        record.partition,
        record.offset,
        record.key,
        record.value,
        [name.encode() for name, _ in record.headers],
        [value for _, value in record.headers],
        tenant_id,
        type(error).__name__,
        reason_of(error),
    )
    return parked


async def discard_handled(tx: Tx, records: Sequence[ConsumerRecord], *, topic: str, topic_id: UUID) -> None:
    """Delete the unresolved letters of *records*, which this transaction has handled."""
    await tx.execute(
        "DELETE FROM dead_letters AS letter USING unnest($3::int[], $4::bigint[]) AS record (partition, position)"
        " WHERE topic = $1 AND topic_id = $2 AND state = 'unresolved'"
        ' AND letter.partition = record.partition AND letter."offset" = record.position',
        topic,
        topic_id,
        [record.partition for record in records],
        [record.offset for record in records],
    )


async def read(reads: Reads, wanted: Wanted, *, after: int = 0, limit: int = 500) -> list[DeadLetter]:
    """Return the letters that match *wanted* and whose ids are greater than *after*, in the order of their ids."""
    where, values = wanted.where()
    count = len(values)
    rows = await reads.fetch(
        f"SELECT {_LISTED} FROM dead_letters WHERE {where} AND id > ${count + 1} ORDER BY id LIMIT ${count + 2}",
        *values,
        after,
        limit,
    )
    return [_letter(row) for row in rows]


async def find(
    reads: Reads, letter_id: int, *, tenant_id: UUID | None = None
) -> tuple[DeadLetter, bytes | None] | None:
    """Return a letter (of *tenant_id*, if given) and its value; None when there is none with this id."""
    where, values = Wanted(tenant_id=tenant_id, state=None).where()
    row = await reads.fetchrow(
        f"SELECT {_LISTED}, value FROM dead_letters WHERE {where} AND id = ${len(values) + 1}", *values, letter_id
    )
    return (_letter(row), row["value"]) if row else None


async def replay(tx: Tx, wanted: Wanted, by: str, *, ids: Sequence[int] | None = None, old: bool = False) -> list[int]:
    """
    Publish the letters that match *wanted* again, unchanged, through the outbox; return their ids.

    Skips resolved letters, letters larger than an event may be (the original was compressed) and, unless *old*, letters
    parked longer than REPLAYABLE ago.
    """
    where, values = _where_unresolved(wanted, ids)
    if not old:
        values.append(REPLAYABLE)
        where += f" AND parked_at > now() - ${len(values)}::interval"
    count = len(values)
    rows = await tx.fetch(
        f"WITH chosen AS (SELECT id FROM dead_letters WHERE {where} AND {_SIZE} <= ${count + 1} FOR UPDATE),"
        f" settled AS (UPDATE dead_letters SET state = 'replayed', resolved_by = ${count + 2}, resolved_at = now()"
        "  WHERE id IN (SELECT id FROM chosen) RETURNING id, topic, key, value, header_names, header_values),"
        " published AS (INSERT INTO outbox (topic, key, payload, header_names, header_values)"
        "  SELECT topic, key, value, header_names, header_values FROM settled ORDER BY id)"
        " SELECT id FROM settled ORDER BY id",
        *values,
        EVENT_BYTES - OVERHEAD_BYTES,
        by,
    )
    return [row["id"] for row in rows]


_SIZE = (
    "(coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0)"
    " + (SELECT coalesce(sum(octet_length(part) + 10), 0) FROM unnest(header_names || header_values) AS part))"
)


async def drop(tx: Tx, wanted: Wanted, by: str, *, ids: Sequence[int] | None = None) -> list[int]:
    """Settle the unresolved letters that match *wanted* without having them handled; return their ids."""
    where, values = _where_unresolved(wanted, ids)
    rows = await tx.fetch(
        f"UPDATE dead_letters SET state = 'dropped', resolved_by = ${len(values) + 1}, resolved_at = now()"
        f" WHERE {where} RETURNING id",
        *values,
        by,
    )
    return sorted(row["id"] for row in rows)


async def purge(database: Database) -> int:
    """Delete letters that were resolved long ago, some at a time; return how many there were."""
    async with database.transaction() as tx:
        rows = await tx.fetch(
            "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters WHERE state <> 'unresolved'"
            " AND resolved_at < now() - $1::interval LIMIT $2) RETURNING id",
            KEPT,
            PURGED_AT_ONCE,
        )
    return len(rows)


def _where_unresolved(wanted: Wanted, ids: Sequence[int] | None) -> tuple[str, list[Any]]:
    where, values = wanted.where()
    if ids is not None:
        values.append(list(ids))
        where += f" AND id = ANY(${len(values)}::bigint[])"
    return f"{where} AND state = 'unresolved'", values


def _letter(row: Any) -> DeadLetter:
    names, values = row["header_names"], row["header_values"]
    return DeadLetter(
        **{name: row[name] for name in DeadLetter.__slots__ if name != "headers"},
        headers=tuple((name.decode(errors="replace"), value) for name, value in zip(names, values, strict=True)),
    )
