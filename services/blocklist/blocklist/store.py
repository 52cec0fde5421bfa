"""Blocklist's SQL: one function per statement. Callers hold the transaction."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from backstop_contracts import Block, BlockRequested, VerdictReady
from blocklist.rules import entry_key
from chassis.postgres import Tx

DUE = "SELECT due_at FROM entries WHERE due_at < 'infinity'"

EntryKey = tuple[UUID, str, str]
"""The key of an entry: tenant, mailbox (empty for the Tenant Allow/Block List) and value."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A row of `blocks`. `expired` is True once the block's end has passed."""

    block: Block
    state: str
    expired: bool
    recorded_at: datetime
    traceparent: str | None

    @property
    def block_id(self) -> UUID:
        """The block's id."""
        return self.block.block_id


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A claimed row of `entries`, with all its blocks.

    `claimed_until` is the end of the claim. `in_doubt` is True if an earlier call may have taken effect.
    """

    tenant_id: UUID
    mailbox: str
    value: str
    claimed_until: datetime
    attempts: int
    in_doubt: bool
    original_end: datetime | None
    extended_end: datetime | None
    blocks: tuple[StoredBlock, ...]

    @property
    def key(self) -> EntryKey:
        """The primary key."""
        return self.tenant_id, self.mailbox, self.value

    @property
    def pending(self) -> tuple[StoredBlock, ...]:
        """The blocks that have no published outcome yet."""
        return tuple(block for block in self.blocks if block.state == "pending")

    @property
    def in_force(self) -> tuple[StoredBlock, ...]:
        """The applied blocks that still need the entry."""
        return tuple(block for block in self.blocks if block.state == "applied" and not block.expired)

    @property
    def ended(self) -> tuple[StoredBlock, ...]:
        """The withdrawn or expired blocks whose removal is not published yet."""
        return tuple(
            block for block in self.blocks if block.state == "withdrawn" or (block.state == "applied" and block.expired)
        )


async def lock_tenant(tx: Tx, tenant_id: UUID) -> None:
    """
    Serialise changes to the blocks of a tenant until the transaction ends.

    A verdict and the block that it withdraws arrive on two topics, and a request may arrive while its entry is being
    settled.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('blocklist'), hashtext($1))", str(tenant_id))


async def record(tx: Tx, requests: Sequence[tuple[BlockRequested, str | None]]) -> list[EntryKey]:
    """
    Record requested blocks that are not known yet, and return the keys of their entries.

    A block requested before a clean verdict that has already arrived is recorded as withdrawn.
    """
    events = [event for event, _ in requests]
    lists_and_values = [entry_key(event.block) for event in events]
    rows = await tx.fetch(
        "INSERT INTO blocks (block_id, tenant_id, mailbox, value, block, case_id, expires_at, requested_at,"
        " traceparent, state) SELECT new.*, CASE WHEN EXISTS (SELECT FROM clean_verdicts AS clean WHERE"
        " clean.tenant_id = new.tenant_id AND clean.case_id = new.case_id AND clean.read_at >= new.requested_at)"
        " THEN 'withdrawn' ELSE 'pending' END FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[],"
        " $6::uuid[], $7::timestamptz[], $8::timestamptz[], $9::text[]) AS new (block_id, tenant_id, mailbox, value,"
        " block, case_id, expires_at, requested_at, traceparent)"
        " ON CONFLICT DO NOTHING RETURNING tenant_id, mailbox, value",
        [event.block.block_id for event in events],
        [event.tenant_id for event in events],
        [mailbox for mailbox, _ in lists_and_values],
        [value for _, value in lists_and_values],
        [event.block.model_dump_json() for event in events],
        [event.block.case_id for event in events],
        [event.block.expires_at for event in events],
        [event.requested_at for event in events],
        [traceparent for _, traceparent in requests],
    )
    return [(row["tenant_id"], row["mailbox"], row["value"]) for row in rows]


async def record_clean_verdicts(tx: Tx, verdicts: Sequence[VerdictReady]) -> None:
    """Record clean verdicts, at most one per case; a later recorded verdict is kept."""
    await tx.execute(
        "INSERT INTO clean_verdicts SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[])"
        " ON CONFLICT (tenant_id, case_id) DO UPDATE SET read_at = excluded.read_at"
        " WHERE clean_verdicts.read_at < excluded.read_at",
        [verdict.tenant_id for verdict in verdicts],
        [verdict.case_id for verdict in verdicts],
        [verdict.read_at for verdict in verdicts],
    )


async def withdraw_blocks(tx: Tx, verdicts: Sequence[VerdictReady]) -> list[EntryKey]:
    """Withdraw the tenant-wide blocks that were requested before these verdicts; return the keys of their entries."""
    rows = await tx.fetch(
        "UPDATE blocks SET state = 'withdrawn'"
        " FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS clean (tenant_id, case_id, read_at)"
        " WHERE blocks.tenant_id = clean.tenant_id AND blocks.case_id = clean.case_id AND blocks.mailbox = ''"
        " AND blocks.requested_at <= clean.read_at AND blocks.state IN ('pending', 'applied')"
        " RETURNING blocks.tenant_id, blocks.mailbox, blocks.value",
        [verdict.tenant_id for verdict in verdicts],
        [verdict.case_id for verdict in verdicts],
        [verdict.read_at for verdict in verdicts],
    )
    return [(row["tenant_id"], row["mailbox"], row["value"]) for row in rows]


async def make_due(tx: Tx, keys: Iterable[EntryKey]) -> None:
    """Make entries due now. A claimed entry stays as it is: whoever settles it sees the change."""
    distinct = sorted(set(keys))
    if not distinct:
        return
    await tx.execute(
        "INSERT INTO entries (tenant_id, mailbox, value) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])"
        " ON CONFLICT (tenant_id, mailbox, value) DO UPDATE SET due_at = least(entries.due_at, now())"
        " WHERE NOT entries.in_doubt",
        *map(list, zip(*distinct, strict=True)),
    )


async def claim(tx: Tx, lease: timedelta, limit: int) -> list[Entry]:
    """Claim due entries, with their blocks, for *lease*; an entry that is not settled by then comes due again."""
    rows = await tx.fetch(
        "WITH due AS (SELECT * FROM entries WHERE due_at <= now() AND due_at < 'infinity' ORDER BY due_at LIMIT $2"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE entries SET due_at = now() + $1::interval, attempts = due.attempts + 1, in_doubt = true FROM due"
        " WHERE entries.tenant_id = due.tenant_id AND entries.mailbox = due.mailbox AND entries.value = due.value"
        " RETURNING entries.*, due.in_doubt AS was_in_doubt",
        lease,
        limit,
    )
    blocks = await _blocks_by_entry(tx, rows)
    return [
        Entry(
            tenant_id=row["tenant_id"],
            mailbox=row["mailbox"],
            value=row["value"],
            claimed_until=row["due_at"],
            attempts=row["attempts"],
            in_doubt=row["was_in_doubt"],
            original_end=row["original_end"],
            extended_end=row["extended_end"],
            blocks=tuple(blocks[row["tenant_id"], row["mailbox"], row["value"]]),
        )
        for row in rows
    ]


async def lock_claimed(tx: Tx, entry: Entry) -> bool:
    """Lock an entry's row. Return True if the claim still holds, False if the entry was claimed again."""
    return bool(
        await tx.fetchval(
            "SELECT true FROM entries WHERE tenant_id = $1 AND mailbox = $2 AND value = $3 AND due_at = $4 FOR UPDATE",
            *entry.key,
            entry.claimed_until,
        )
    )


async def _blocks_by_entry(tx: Tx, entries: Sequence[asyncpg.Record]) -> defaultdict[EntryKey, list[StoredBlock]]:
    rows = await tx.fetch(
        "SELECT blocks.*, coalesce(expires_at <= now(), false) AS expired FROM blocks"
        " JOIN unnest($1::uuid[], $2::text[], $3::text[]) AS claimed (tenant_id, mailbox, value)"
        " USING (tenant_id, mailbox, value) ORDER BY seq",
        [entry["tenant_id"] for entry in entries],
        [entry["mailbox"] for entry in entries],
        [entry["value"] for entry in entries],
    )
    blocks: defaultdict[EntryKey, list[StoredBlock]] = defaultdict(list)
    for row in rows:
        stored = StoredBlock(
            block=Block.model_validate_json(row["block"]),
            state=row["state"],
            expired=row["expired"],
            recorded_at=row["recorded_at"],
            traceparent=row["traceparent"],
        )
        blocks[row["tenant_id"], row["mailbox"], row["value"]].append(stored)
    return blocks


async def settle(tx: Tx, block_ids: Collection[UUID], before: Collection[str], after: str) -> set[UUID]:
    """Move blocks from one of the states *before* to *after*; return the ids of the blocks that were moved."""
    rows = await tx.fetch(
        "UPDATE blocks SET state = $3 WHERE block_id = ANY($1::uuid[]) AND state = ANY($2::text[]) RETURNING block_id",
        list(block_ids),
        list(before),
        after,
    )
    return {row["block_id"] for row in rows}


async def set_extension(tx: Tx, key: EntryKey, original: datetime | None, extended: datetime | None) -> None:
    """Record the end that somebody else's entry had, and the end that it is about to be given."""
    await tx.execute(
        "UPDATE entries SET original_end = $4, extended_end = $5 WHERE tenant_id = $1 AND mailbox = $2 AND value = $3",
        *key,
        original,
        extended,
    )


async def release(tx: Tx, key: EntryKey) -> None:
    """
    Release an entry whose outcome is recorded, and set when it is due again.

    It is due at once if a block was requested or withdrawn in the meantime, otherwise when the next block in force
    ends. Blocks that have ended wait for the last one.
    """
    await tx.execute(
        "UPDATE entries SET attempts = 0, in_doubt = false, due_at = (SELECT CASE"
        " WHEN bool_or(state = 'pending') THEN now()"
        " WHEN bool_or(state = 'applied' AND coalesce(expires_at > now(), true))"
        " THEN coalesce(min(expires_at) FILTER (WHERE state = 'applied' AND expires_at > now()), 'infinity')"
        " WHEN bool_or(state IN ('applied', 'withdrawn')) THEN now() ELSE 'infinity' END"
        " FROM blocks WHERE tenant_id = $1 AND mailbox = $2 AND value = $3)"
        " WHERE tenant_id = $1 AND mailbox = $2 AND value = $3",
        *key,
    )


async def postpone(tx: Tx, key: EntryKey, due_at: datetime, *, in_doubt: bool) -> None:
    """Retry an entry at *due_at*; *in_doubt* says that the last call may have taken effect."""
    await tx.execute(
        "UPDATE entries SET due_at = $4, in_doubt = $5 WHERE tenant_id = $1 AND mailbox = $2 AND value = $3",
        *key,
        due_at,
        in_doubt,
    )


async def set_case_expired(tx: Tx, tenant_id: UUID, case_ids: Sequence[UUID]) -> list[EntryKey]:
    """Mark the blocks of expired cases for deletion; return the keys of their entries."""
    rows = await tx.fetch(
        "UPDATE blocks SET case_expired = true WHERE tenant_id = $1 AND case_id = ANY($2::uuid[])"
        " RETURNING tenant_id, mailbox, value",
        tenant_id,
        case_ids,
    )
    return [(row["tenant_id"], row["mailbox"], row["value"]) for row in rows]


async def purge_ended(tx: Tx, keys: Iterable[EntryKey]) -> None:
    """
    Delete the ended blocks of expired cases, and entries without blocks.

    The blocks of an entry are deleted together, when the last of them has ended and no call is in doubt: an entry in
    Exchange names the block that made it, and only that block's row shows that the entry is ours to remove.
    """
    distinct = sorted(set(keys))
    if not distinct:
        return
    purged = "unnest($1::uuid[], $2::text[], $3::text[]) AS purged (tenant_id, mailbox, value)"
    same_key = "{0}.tenant_id = purged.tenant_id AND {0}.mailbox = purged.mailbox AND {0}.value = purged.value"
    await tx.execute(
        f"DELETE FROM blocks USING {purged} WHERE {same_key.format('blocks')} AND case_expired"
        f" AND NOT EXISTS (SELECT FROM blocks AS other WHERE {same_key.format('other')}"
        " AND other.state IN ('pending', 'applied', 'withdrawn'))"
        f" AND NOT EXISTS (SELECT FROM entries WHERE {same_key.format('entries')} AND in_doubt)",
        *map(list, zip(*distinct, strict=True)),
    )
    await tx.execute(
        f"DELETE FROM entries USING {purged} WHERE {same_key.format('entries')} AND NOT in_doubt"
        f" AND NOT EXISTS (SELECT FROM blocks WHERE {same_key.format('blocks')})",
        *map(list, zip(*distinct, strict=True)),
    )


async def purge_verdicts(tx: Tx, tenant_id: UUID, case_ids: Sequence[UUID]) -> None:
    """Delete the clean verdicts of cases."""
    await tx.execute(
        "DELETE FROM clean_verdicts WHERE tenant_id = $1 AND case_id = ANY($2::uuid[])", tenant_id, case_ids
    )


async def purge_old_verdicts(tx: Tx, age: timedelta) -> None:
    """Delete clean verdicts that were read more than *age* ago."""
    await tx.execute("DELETE FROM clean_verdicts WHERE read_at < now() - $1::interval", age)
