"""The SQL of blocklist: one function per statement. Callers hold the transaction."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from backstop_contracts import Block, BlockRequested, VerdictReady
from blocklist.rules import place_of
from chassis.postgres import Tx

DUE = "SELECT due_at FROM entries WHERE due_at < 'infinity'"

Place = tuple[UUID, str, str]
"""The key of an entry: tenant, mailbox (empty: the Tenant Allow/Block List) and value."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A row of `blocks`. `over` tells whether its end has come."""

    block: Block
    state: str
    over: bool
    recorded_at: datetime
    traceparent: str | None

    @property
    def block_id(self) -> UUID:
        """The block's id."""
        return self.block.block_id


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A row of `entries` as it was claimed, with all its blocks.

    `held_until` is when the claim ends. `unanswered`: an earlier call may have happened.
    """

    tenant_id: UUID
    mailbox: str
    value: str
    held_until: datetime
    attempts: int
    unanswered: bool
    extended_from: datetime | None
    extended_to: datetime | None
    wishes: tuple[Wish, ...]

    @property
    def place(self) -> Place:
        """The key."""
        return self.tenant_id, self.mailbox, self.value

    @property
    def pending(self) -> tuple[Wish, ...]:
        """The blocks that nobody has been told about yet."""
        return tuple(wish for wish in self.wishes if wish.state == "pending")

    @property
    def standing(self) -> tuple[Wish, ...]:
        """The applied blocks that still want the entry."""
        return tuple(wish for wish in self.wishes if wish.state == "applied" and not wish.over)

    @property
    def ended(self) -> tuple[Wish, ...]:
        """The blocks that want the entry no more, and of which nobody has been told so."""
        return tuple(wish for wish in self.wishes if wish.state == "lifting" or (wish.state == "applied" and wish.over))


async def take_turn(tx: Tx, tenant_id: UUID) -> None:
    """
    Let one transaction at a time change the blocks of a tenant.

    A verdict and the block that it withdraws lie on two topics, and a wish may come while its entry is being settled.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('blocklist'), hashtext($1))", str(tenant_id))


async def record(tx: Tx, wishes: Sequence[tuple[BlockRequested, str | None]]) -> list[Place]:
    """
    Store wishes; one that is known already changes nothing. Returns the entries that new ones want.

    A wish that a clean verdict has overtaken is withdrawn from the start.
    """
    events = [event for event, _ in wishes]
    places = [place_of(event.block) for event in events]
    rows = await tx.fetch(
        "INSERT INTO blocks (block_id, tenant_id, mailbox, value, block, case_id, expires_at, requested_at,"
        " traceparent, state) SELECT new.*, CASE WHEN EXISTS (SELECT FROM clean_verdicts AS clean WHERE"
        " clean.tenant_id = new.tenant_id AND clean.case_id = new.case_id AND clean.read_at >= new.requested_at)"
        " THEN 'lifting' ELSE 'pending' END FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[],"
        " $6::uuid[], $7::timestamptz[], $8::timestamptz[], $9::text[]) AS new (block_id, tenant_id, mailbox, value,"
        " block, case_id, expires_at, requested_at, traceparent)"
        " ON CONFLICT DO NOTHING RETURNING tenant_id, mailbox, value",
        [event.block.block_id for event in events],
        [event.tenant_id for event in events],
        [mailbox for mailbox, _ in places],
        [value for _, value in places],
        [event.block.model_dump_json() for event in events],
        [event.block.case_id for event in events],
        [event.block.expires_at for event in events],
        [event.requested_at for event in events],
        [traceparent for _, traceparent in wishes],
    )
    return [(row["tenant_id"], row["mailbox"], row["value"]) for row in rows]


async def record_clean(tx: Tx, verdicts: Sequence[VerdictReady]) -> None:
    """Remember which cases are clean, one verdict each, unless a later one is known."""
    await tx.execute(
        "INSERT INTO clean_verdicts SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[])"
        " ON CONFLICT (tenant_id, case_id) DO UPDATE SET read_at = excluded.read_at"
        " WHERE clean_verdicts.read_at < excluded.read_at",
        [verdict.tenant_id for verdict in verdicts],
        [verdict.case_id for verdict in verdicts],
        [verdict.read_at for verdict in verdicts],
    )


async def withdraw(tx: Tx, verdicts: Sequence[VerdictReady]) -> list[Place]:
    """Withdraw the tenant's blocks that were asked for before these verdicts; return the entries that they want."""
    rows = await tx.fetch(
        "UPDATE blocks SET state = 'lifting'"
        " FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS clean (tenant_id, case_id, read_at)"
        " WHERE blocks.tenant_id = clean.tenant_id AND blocks.case_id = clean.case_id AND blocks.mailbox = ''"
        " AND blocks.requested_at <= clean.read_at AND blocks.state IN ('pending', 'applied')"
        " RETURNING blocks.tenant_id, blocks.mailbox, blocks.value",
        [verdict.tenant_id for verdict in verdicts],
        [verdict.case_id for verdict in verdicts],
        [verdict.read_at for verdict in verdicts],
    )
    return [(row["tenant_id"], row["mailbox"], row["value"]) for row in rows]


async def touch(tx: Tx, places: Iterable[Place]) -> None:
    """Make entries due now. One that is in somebody's hands is looked at again when that one settles it."""
    keys = sorted(set(places))
    if not keys:
        return
    await tx.execute(
        "INSERT INTO entries (tenant_id, mailbox, value) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])"
        " ON CONFLICT (tenant_id, mailbox, value) DO UPDATE SET due_at = least(entries.due_at, now())"
        " WHERE NOT entries.unanswered",
        *map(list, zip(*keys, strict=True)),
    )


async def claim(tx: Tx, lease: timedelta, limit: int) -> list[Entry]:
    """Take entries that are due, with their blocks, for *lease*: then they come due again unless they are settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT * FROM entries WHERE due_at <= now() AND due_at < 'infinity' ORDER BY due_at LIMIT $2"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE entries SET due_at = now() + $1::interval, attempts = due.attempts + 1, unanswered = true FROM due"
        " WHERE entries.tenant_id = due.tenant_id AND entries.mailbox = due.mailbox AND entries.value = due.value"
        " RETURNING entries.*, due.unanswered AS was_unanswered",
        lease,
        limit,
    )
    wishes = await _wishes(tx, rows)
    return [
        Entry(
            tenant_id=row["tenant_id"],
            mailbox=row["mailbox"],
            value=row["value"],
            held_until=row["due_at"],
            attempts=row["attempts"],
            unanswered=row["was_unanswered"],
            extended_from=row["extended_from"],
            extended_to=row["extended_to"],
            wishes=tuple(wishes[row["tenant_id"], row["mailbox"], row["value"]]),
        )
        for row in rows
    ]


async def holds(tx: Tx, entry: Entry) -> bool:
    """Lock an entry and tell whether nobody has claimed it since *entry* was."""
    return bool(
        await tx.fetchval(
            "SELECT true FROM entries WHERE tenant_id = $1 AND mailbox = $2 AND value = $3 AND due_at = $4 FOR UPDATE",
            *entry.place,
            entry.held_until,
        )
    )


async def _wishes(tx: Tx, entries: Sequence[asyncpg.Record]) -> defaultdict[Place, list[Wish]]:
    rows = await tx.fetch(
        "SELECT blocks.*, coalesce(expires_at <= now(), false) AS over FROM blocks"
        " JOIN unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (tenant_id, mailbox, value)"
        " USING (tenant_id, mailbox, value) ORDER BY seq",
        [entry["tenant_id"] for entry in entries],
        [entry["mailbox"] for entry in entries],
        [entry["value"] for entry in entries],
    )
    wishes: defaultdict[Place, list[Wish]] = defaultdict(list)
    for row in rows:
        wish = Wish(
            block=Block.model_validate_json(row["block"]),
            state=row["state"],
            over=row["over"],
            recorded_at=row["recorded_at"],
            traceparent=row["traceparent"],
        )
        wishes[row["tenant_id"], row["mailbox"], row["value"]].append(wish)
    return wishes


async def settle(tx: Tx, block_ids: Collection[UUID], before: Collection[str], after: str) -> set[UUID]:
    """Move blocks from one of the states *before* to *after*; return those that were still in one of them."""
    rows = await tx.fetch(
        "UPDATE blocks SET state = $3 WHERE block_id = ANY($1::uuid[]) AND state = ANY($2::text[]) RETURNING block_id",
        list(block_ids),
        list(before),
        after,
    )
    return {row["block_id"] for row in rows}


async def note_extension(tx: Tx, place: Place, was: datetime | None, now: datetime | None) -> None:
    """Note the end that somebody else's entry had, and the one that we are about to give it."""
    await tx.execute(
        "UPDATE entries SET extended_from = $4, extended_to = $5 WHERE tenant_id = $1 AND mailbox = $2 AND value = $3",
        *place,
        was,
        now,
    )


async def rest(tx: Tx, place: Place) -> None:
    """
    Let go of an entry whose outcome is recorded, until something is to be done about it again.

    That is now, when a block has come or was withdrawn meanwhile; else when a block that wants it ends. Blocks that
    have ended wait for the others.
    """
    await tx.execute(
        "UPDATE entries SET attempts = 0, unanswered = false, due_at = (SELECT CASE"
        " WHEN bool_or(state = 'pending') THEN now()"
        " WHEN bool_or(state = 'applied' AND coalesce(expires_at > now(), true))"
        " THEN coalesce(min(expires_at) FILTER (WHERE state = 'applied' AND expires_at > now()), 'infinity')"
        " WHEN bool_or(state IN ('applied', 'lifting')) THEN now() ELSE 'infinity' END"
        " FROM blocks WHERE tenant_id = $1 AND mailbox = $2 AND value = $3)"
        " WHERE tenant_id = $1 AND mailbox = $2 AND value = $3",
        *place,
    )


async def postpone(tx: Tx, place: Place, until: datetime, *, unanswered: bool) -> None:
    """Try an entry again at *until*; *unanswered* when the last call may have happened."""
    await tx.execute(
        "UPDATE entries SET due_at = $4, unanswered = $5 WHERE tenant_id = $1 AND mailbox = $2 AND value = $3",
        *place,
        until,
        unanswered,
    )


async def mark_expired(tx: Tx, tenant_id: UUID, case_ids: Sequence[UUID]) -> list[Place]:
    """Note that the cases of blocks are gone; return the entries that these blocks want or wanted."""
    rows = await tx.fetch(
        "UPDATE blocks SET case_expired = true WHERE tenant_id = $1 AND case_id = ANY($2::uuid[])"
        " RETURNING tenant_id, mailbox, value",
        tenant_id,
        case_ids,
    )
    return [(row["tenant_id"], row["mailbox"], row["value"]) for row in rows]


async def forget(tx: Tx, places: Iterable[Place]) -> None:
    """
    Delete the blocks of expired cases that have ended, and the entries of which no block is left.

    An entry carries the id of the block that made it, so all blocks of an entry stay until the last of them has ended
    and nobody calls Exchange about it: who made the entry, and so whether it may be removed, is known by their rows.
    """
    keys = sorted(set(places))
    if not keys:
        return
    places_of = "unnest($1::uuid[], $2::text[], $3::text[]) AS place (tenant_id, mailbox, value)"
    at = "{0}.tenant_id = place.tenant_id AND {0}.mailbox = place.mailbox AND {0}.value = place.value"
    await tx.execute(
        f"DELETE FROM blocks USING {places_of} WHERE {at.format('blocks')} AND case_expired"
        f" AND NOT EXISTS (SELECT FROM blocks AS wish WHERE {at.format('wish')}"
        " AND wish.state IN ('pending', 'applied', 'lifting'))"
        f" AND NOT EXISTS (SELECT FROM entries WHERE {at.format('entries')} AND unanswered)",
        *map(list, zip(*keys, strict=True)),
    )
    await tx.execute(
        f"DELETE FROM entries USING {places_of} WHERE {at.format('entries')} AND NOT unanswered"
        f" AND NOT EXISTS (SELECT FROM blocks WHERE {at.format('blocks')})",
        *map(list, zip(*keys, strict=True)),
    )


async def forget_verdicts(tx: Tx, tenant_id: UUID, case_ids: Sequence[UUID]) -> None:
    """Delete the clean verdicts of cases."""
    await tx.execute(
        "DELETE FROM clean_verdicts WHERE tenant_id = $1 AND case_id = ANY($2::uuid[])", tenant_id, case_ids
    )


async def forget_old_verdicts(tx: Tx, age: timedelta) -> None:
    """Delete clean verdicts that are older than any block that could still come."""
    await tx.execute("DELETE FROM clean_verdicts WHERE read_at < now() - $1::interval", age)
