"""Bring Exchange to what the blocks want: one entry per sender, looked for before it is repeated, lifted if ours."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import structlog

from backstop_contracts import (
    BlockApplied,
    BlockFailed,
    BlockFailure,
    BlockRemoval,
    BlockRemoved,
    Event,
)
from blocklist import rules, store
from blocklist.rules import AcceptedDomain, Found, Refusal, Rows
from blocklist.store import Entry, Wish
from chassis import outbox
from chassis.postgres import Database, Tx
from chassis.worker import Lease, backoff, run_all
from m365 import Exchange, M365Error, Refused, Throttled, Unavailable, hashtable, until

log = structlog.get_logger()

GIVE_UP_AFTER = timedelta(hours=24)
ACCEPTED_DOMAINS_LIVE = timedelta(minutes=10)
VERDICTS_LIVE = timedelta(days=60)
"""Longer than the topic of verdicts keeps them, and much longer than that of the blocks which they withdraw."""
BLOCK_PAUSE_SECONDS = 300.0
"""Longest pause between attempts to block."""
LIFT_PAUSE_SECONDS = 3600.0
"""Longest pause between attempts to lift. That is never given up: somebody's good mail is at stake."""


class _OddAnswerError(Exception):
    """Exchange's answers do not fit together; later ones may."""


class _UncheckedError(Exception):
    """A call took effect, and what came of it could not be read: `why`."""

    def __init__(self, why: M365Error) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(frozen=True, slots=True)
class Made:
    """The sender is blocked. `maker` is the block whose entry it is, None when somebody else made it."""

    maker: UUID | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What a round of calls came to: the blocks that will not be made, what the others have now, and what was lifted.

    `ended` is None when the entry is still wanted, and `kept` when an entry of somebody else goes on blocking.
    """

    refused: Mapping[UUID, Refusal]
    made: Made | None = None
    ended: Literal["removed", "kept"] | None = None


class Worker:
    """Keeps Exchange as the blocks want it, at most *batch* entries at a time, each held for *lease*."""

    def __init__(self, db: Database, exchange: Exchange, never_block: frozenset[str], batch: int, lease: Lease) -> None:
        self._db = db
        self._exchange = exchange
        self._never_block = never_block
        self._batch = batch
        self._lease = lease
        self._accepted: dict[UUID, tuple[Sequence[AcceptedDomain], datetime]] = {}
        self._asking: defaultdict[UUID, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._quiet_until: dict[UUID, datetime] = {}

    async def settle_due(self) -> int:
        """Make, extend or lift the entries that are due. Returns how many there were."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            entries = await store.claim(tx, self._lease.length, self._batch)
        await run_all(*(self._settle(entry, deadline) for entry in entries))
        return len(entries)

    async def forget_verdicts(self) -> int:
        """Delete clean verdicts that no block can run into any more."""
        async with self._db.transaction() as tx:
            await store.forget_old_verdicts(tx, VERDICTS_LIVE)
        return 0

    async def _settle(self, entry: Entry, deadline: float) -> None:
        quiet_until = self._quiet_until.get(entry.tenant_id)
        if quiet_until and quiet_until > datetime.now(UTC):
            async with self._db.transaction() as tx:
                if await store.holds(tx, entry):
                    await store.postpone(tx, entry.place, quiet_until, unanswered=entry.unanswered)
            return
        try:
            async with until(deadline):
                outcome = await self._bring_about(entry)
        except _UncheckedError as error:
            await self._postpone(replace(entry, unanswered=True), error.why)
        except (M365Error, TimeoutError, _OddAnswerError) as error:
            await self._postpone(entry, error)
        else:
            await self._record(entry, outcome)

    async def _bring_about(self, entry: Entry) -> Outcome:
        """Call Exchange until it has what the blocks want."""
        refused = {wish.block_id: why for wish in entry.pending if (why := await self._refuse(entry, wish))}
        pending = [wish for wish in entry.pending if wish.block_id not in refused]
        if pending:
            answer = await self._block(entry, pending)
            if isinstance(answer, Made):
                return Outcome(refused, made=answer)
            return Outcome(refused | {wish.block_id: answer for wish in pending})
        if entry.standing or not (entry.ended or entry.unanswered):
            return Outcome(refused)
        return Outcome(refused, ended=await self._lift(entry))

    async def _refuse(self, entry: Entry, wish: Wish) -> Refusal | None:
        if wish.over:
            return Refusal(BlockFailure.GAVE_UP, "the end of the block came before it could be made")
        refusal = rules.refuse(wish.block, self._never_block)
        return refusal or rules.refuse_own(wish.block, await self._accepted_domains(entry.tenant_id))

    async def _accepted_domains(self, tenant_id: UUID) -> Sequence[AcceptedDomain]:
        async with self._asking[tenant_id]:
            now = datetime.now(UTC)
            if tenant_id not in self._accepted or now - self._accepted[tenant_id][1] > ACCEPTED_DOMAINS_LIVE:
                accepted = rules.read_accepted_domains(await self._exchange.invoke(tenant_id, "Get-AcceptedDomain"))
                if not accepted:
                    # Each tenant has one; without knowing it, we might block the tenant's own mail.
                    raise _OddAnswerError("Exchange lists no accepted domain")
                self._accepted[tenant_id] = accepted, now
            return self._accepted[tenant_id][0]

    async def _block(self, entry: Entry, pending: Sequence[Wish]) -> Made | Refusal:
        try:
            if entry.mailbox:
                return await self._block_for_mailbox(entry, pending[0])
            return await self._block_for_tenant(entry, pending)
        except Refused as error:
            return rules.read_refusal(error.reason)

    async def _block_for_tenant(self, entry: Entry, pending: Sequence[Wish]) -> Made | Refusal:
        """Make the entry, or take the one that is there and have it last as long as any block wants it."""
        first = pending[0].block
        until = rules.latest(wish.block.expires_at for wish in (*pending, *entry.standing))
        found = await self._find(entry) if entry.unanswered or entry.standing or entry.ended else None
        if found is None:
            try:
                await self._exchange.invoke(
                    entry.tenant_id,
                    "New-TenantAllowBlockListItems",
                    ListType=rules.list_of(entry.value),
                    Block=True,
                    Entries=[rules.entry_of(entry.value)],
                    Notes=rules.notes_of(first),
                    **_expiry(until),
                )
            except Refused as error:
                found = await self._find(entry)
                if found is None and rules.says_duplicate(error.reason):
                    raise _OddAnswerError(f"Exchange does not list what it refuses: {error.reason}") from None
                if found is None:
                    raise
            else:
                return Made(first.block_id)
        if not found.blocks:
            return Refusal(
                BlockFailure.REFUSED, "the Tenant Allow/Block List allows this value: remove that entry first"
            )
        if rules.ends_before(found.ends, until):
            if not _is_ours(found, entry):
                await self._note_extension(entry, found, until)
            await self._set_end(entry, found, until)
        return Made(found.maker if _is_ours(found, entry) else None)

    async def _block_for_mailbox(self, entry: Entry, wish: Wish) -> Made | Refusal:
        if rules.is_blocked(await self._junk_settings(entry), entry.value):
            # The list keeps no notes: after a call without an answer it is most likely our own.
            return Made(wish.block_id if entry.unanswered else None)
        await self._exchange.invoke(
            entry.tenant_id,
            "Set-MailboxJunkEmailConfiguration",
            Identity=entry.mailbox,
            BlockedSendersAndDomains=hashtable(add=[entry.value]),
        )
        try:
            junk_settings = await self._junk_settings(entry)
        except M365Error as error:
            raise _UncheckedError(error) from error
        if rules.is_blocked(junk_settings, entry.value):
            return Made(wish.block_id)
        # Microsoft Learn, "Configure junk email settings on Exchange Online mailboxes": no error tells it.
        return Refusal(
            BlockFailure.LIMIT, "Exchange took the entry and dropped it: the mailbox's safelist collection is full"
        )

    async def _lift(self, entry: Entry) -> Literal["removed", "kept"]:
        """Remove the entry if it is ours, and leave somebody else's as it was."""
        found = None if entry.mailbox else await self._find(entry)
        if found is None or not found.blocks:
            return "removed"
        if not _is_ours(found, entry):
            if entry.extended_from is None or not rules.is_same_end(found.ends, entry.extended_to):
                return "kept"
            if entry.extended_from > datetime.now(UTC):
                await self._set_end(entry, found, entry.extended_from)
                return "kept"
            # It would have ended by now, but for us.
        try:
            await self._exchange.invoke(
                entry.tenant_id,
                "Remove-TenantAllowBlockListItems",
                ListType=rules.list_of(entry.value),
                Ids=[found.identity],
            )
        except Refused:
            if await self._find(entry):
                raise
        return "removed"

    async def _note_extension(self, entry: Entry, found: Found, until: datetime | None) -> None:
        """Remember the end that somebody else's entry has of itself, before it gets another."""
        as_we_left_it = entry.extended_from and rules.is_same_end(found.ends, entry.extended_to)
        async with self._db.transaction() as tx:
            await store.note_extension(tx, entry.place, entry.extended_from if as_we_left_it else found.ends, until)

    async def _find(self, entry: Entry) -> Found | None:
        value = rules.entry_of(entry.value)
        rows = await self._exchange.invoke(
            entry.tenant_id, "Get-TenantAllowBlockListItems", ListType=rules.list_of(entry.value), Entry=value
        )
        return rules.read_entry(rows, entry.value)

    async def _set_end(self, entry: Entry, found: Found, end: datetime | None) -> None:
        await self._exchange.invoke(
            entry.tenant_id,
            "Set-TenantAllowBlockListItems",
            ListType=rules.list_of(entry.value),
            Ids=[found.identity],
            **_expiry(end),
        )

    async def _junk_settings(self, entry: Entry) -> Rows:
        return await self._exchange.invoke(entry.tenant_id, "Get-MailboxJunkEmailConfiguration", Identity=entry.mailbox)

    async def _record(self, entry: Entry, outcome: Outcome) -> None:
        refused = [wish for wish in entry.pending if wish.block_id in outcome.refused]
        async with self._db.transaction() as tx:
            await store.take_turn(tx, entry.tenant_id)
            await _tell(
                tx, "failed", [(wish, _failed(entry, wish, outcome.refused[wish.block_id])) for wish in refused]
            )
            if made := outcome.made:
                blocked = [wish for wish in entry.pending if wish not in refused]
                await _tell(tx, "applied", [(wish, _applied(entry, wish, made)) for wish in blocked])
            if outcome.ended == "removed":
                await _tell(tx, "removed", [(wish, _removed(entry, wish)) for wish in entry.ended])
            elif outcome.ended == "kept":
                await _tell(tx, "kept", [(wish, None) for wish in entry.ended])
            if not await store.holds(tx, entry):
                # Whoever holds it now has looked, and says when there is something to be done again.
                return
            if outcome.ended:
                await store.note_extension(tx, entry.place, None, None)
            await store.rest(tx, entry.place)
            await store.forget(tx, [entry.place])

    async def _postpone(self, entry: Entry, error: Exception) -> None:
        """Come back later, and give up blocks that have waited for a day; being throttled is no reason for that."""
        now = datetime.now(UTC)
        most = BLOCK_PAUSE_SECONDS if entry.pending else LIFT_PAUSE_SECONDS
        retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
        until = now + (timedelta(seconds=retry_after) if retry_after else backoff(entry.attempts, most=most))
        late: list[Wish] = []
        if isinstance(error, Throttled):
            self._quiet_until[entry.tenant_id] = until
        else:
            late = [wish for wish in entry.pending if now - wish.recorded_at > GIVE_UP_AFTER]
        lost = isinstance(error, TimeoutError) or (isinstance(error, Unavailable) and error.may_have_happened)
        log.warning(
            "entry.postponed",
            tenant_id=entry.tenant_id,
            error=str(error) if isinstance(error, M365Error) else type(error).__name__,
            attempts=entry.attempts,
            until=until,
        )
        async with self._db.transaction() as tx:
            await store.take_turn(tx, entry.tenant_id)
            if not await store.holds(tx, entry):
                return
            await _tell(tx, "failed", [(wish, _failed(entry, wish, _gave_up(error))) for wish in late])
            await store.postpone(tx, entry.place, until, unanswered=entry.unanswered or lost)


def _expiry(until: datetime | None) -> dict[str, Any]:
    return {"ExpirationDate": until} if until else {"NoExpiration": True}


def _is_ours(found: Found, entry: Entry) -> bool:
    return found.maker in {wish.block_id for wish in entry.wishes}


def _gave_up(error: Exception) -> Refusal:
    words = getattr(error, "reason", "")
    return Refusal(
        BlockFailure.GAVE_UP, f"not possible for 24 hours: {str(error) or type(error).__name__}{words and f': {words}'}"
    )


def _applied(entry: Entry, wish: Wish, made: Made) -> BlockApplied:
    return BlockApplied(
        tenant_id=entry.tenant_id,
        block=wish.block,
        already_present=wish.block_id != made.maker,
        entry=entry.value if entry.mailbox else rules.entry_of(entry.value),
        applied_at=datetime.now(UTC),
    )


def _failed(entry: Entry, wish: Wish, refusal: Refusal) -> BlockFailed:
    return BlockFailed(
        tenant_id=entry.tenant_id,
        block=wish.block,
        reason=refusal.reason,
        detail=refusal.detail[:500],
        failed_at=datetime.now(UTC),
    )


def _removed(entry: Entry, wish: Wish) -> BlockRemoved:
    reason = BlockRemoval.VERDICT_CLEAN if wish.state == "lifting" else BlockRemoval.EXPIRED
    return BlockRemoved(tenant_id=entry.tenant_id, block=wish.block, reason=reason, removed_at=datetime.now(UTC))


async def _tell(
    tx: Tx, after: Literal["applied", "failed", "removed", "kept"], told: Sequence[tuple[Wish, Event | None]]
) -> None:
    """Move blocks to the state *after* and publish that, except of blocks that have gone elsewhere meanwhile."""
    before = ("applied", "lifting") if after in ("removed", "kept") else ("pending",)
    moved = await store.settle(tx, [wish.block_id for wish, _ in told], before, after)
    await outbox.emit(tx, [(event, wish.traceparent) for wish, event in told if event and wish.block_id in moved])
    for block_id in moved:
        log.info("block.settled", block_id=block_id, state=after)
