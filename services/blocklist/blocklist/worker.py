"""Settle due entries: make each list entry in Exchange Online once, and remove it when its last block ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import structlog

from backstop_contracts import BlockApplied, BlockFailed, BlockFailure, BlockRemoval, BlockRemoved, Event
from blocklist import rules, store
from blocklist.exchange_lists import ExchangeLists, UnexpectedAnswerError
from blocklist.rules import Refusal, TenantListEntry
from blocklist.store import Entry, StoredBlock
from chassis import outbox
from chassis.postgres import Database, Tx
from chassis.worker import Lease, backoff, run_all
from m365 import M365Error, Refused, Throttled, Unavailable

log = structlog.get_logger()

GIVE_UP_AFTER = timedelta(hours=24)
VERDICTS_KEPT = timedelta(days=60)
"""Longer than the verdicts' topic is retained, and much longer than that of the blocks which they withdraw."""
BLOCK_PAUSE_SECONDS = 300.0
"""Longest pause between attempts to block."""
REMOVAL_PAUSE_SECONDS = 3600.0
"""Longest pause between attempts to remove an entry. Removal is never given up, because it stops legitimate mail."""

Ending = Literal["removed", "entry_kept"]


class _UnverifiedError(Exception):
    """A call took effect, but checking its result failed with `cause`."""

    def __init__(self, cause: M365Error) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Applied:
    """The value is blocked. `made_for` is the block whose entry it is, None if somebody else made it."""

    made_for: UUID | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The result of settling an entry: refused blocks, whether the other pending ones were applied, and how it ended.

    `ending` is None while a block still needs the entry, and `entry_kept` if somebody else's entry goes on blocking.
    """

    refused: Mapping[UUID, Refusal]
    applied: Applied | None = None
    ending: Ending | None = None


class Worker:
    """Settles due entries, at most *batch* at a time, each claimed for *lease*."""

    def __init__(
        self, db: Database, lists: ExchangeLists, never_block: frozenset[str], batch: int, lease: Lease
    ) -> None:
        self._db = db
        self._lists = lists
        self._never_block = never_block
        self._batch = batch
        self._lease = lease
        self._paused_until: dict[UUID, datetime] = {}

    async def settle_due(self) -> int:
        """Make, extend or remove the entries that are due. Returns how many were claimed."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            entries = await store.claim(tx, self._lease.length, self._batch)
        await run_all(*(self._settle(entry, deadline) for entry in entries))
        return len(entries)

    async def purge_verdicts(self) -> int:
        """Delete clean verdicts that are too old to withdraw any block."""
        async with self._db.transaction() as tx:
            await store.purge_old_verdicts(tx, VERDICTS_KEPT)
        return 0

    async def _settle(self, entry: Entry, deadline: float) -> None:
        paused_until = self._paused_until.get(entry.tenant_id)
        if paused_until and paused_until > datetime.now(UTC):
            async with self._db.transaction() as tx:
                if await store.lock_claimed(tx, entry):
                    await store.postpone(tx, entry.key, paused_until, in_doubt=entry.in_doubt)
            return
        try:
            async with self._lists.before(deadline):
                outcome = await self._update_exchange(entry)
        except _UnverifiedError as error:
            await self._postpone(replace(entry, in_doubt=True), error.cause)
        except (M365Error, TimeoutError, UnexpectedAnswerError) as error:
            await self._postpone(entry, error)
        else:
            await self._record(entry, outcome)

    async def _update_exchange(self, entry: Entry) -> Outcome:
        """Call Exchange until its list agrees with the entry's blocks."""
        refused = {
            block.block_id: refusal for block in entry.pending if (refusal := await self._refusal_for(entry, block))
        }
        pending = [block for block in entry.pending if block.block_id not in refused]
        if pending:
            result = await self._block(entry, pending)
            if isinstance(result, Applied):
                return Outcome(refused, applied=result)
            return Outcome(refused | {block.block_id: result for block in pending})
        if entry.in_force or not (entry.ended or entry.in_doubt):
            return Outcome(refused)
        return Outcome(refused, ending=await self._unblock(entry))

    async def _refusal_for(self, entry: Entry, block: StoredBlock) -> Refusal | None:
        if block.expired:
            return Refusal(BlockFailure.GAVE_UP, "the block expired before it could be made")
        refusal = rules.refusal_for(block.block, self._never_block)
        return refusal or rules.own_domain_refusal(block.block, await self._lists.accepted_domains(entry.tenant_id))

    async def _block(self, entry: Entry, pending: Sequence[StoredBlock]) -> Applied | Refusal:
        try:
            if entry.mailbox:
                return await self._block_for_mailbox(entry, pending[0])
            return await self._block_for_tenant(entry, pending)
        except Refused as error:
            return rules.classify_refusal(error.reason)

    async def _block_for_tenant(self, entry: Entry, pending: Sequence[StoredBlock]) -> Applied | Refusal:
        """Add the entry, or use the existing one and extend it to the latest end of any block."""
        first = pending[0].block
        end = rules.latest_end(block.block.expires_at for block in (*pending, *entry.in_force))
        existing = await self._find(entry) if entry.in_doubt or entry.in_force or entry.ended else None
        if existing is None:
            try:
                await self._lists.add_entry(entry.tenant_id, entry.value, first, end)
            except Refused as error:
                existing = await self._find(entry)
                if existing is None and rules.is_duplicate(error.reason):
                    raise UnexpectedAnswerError(
                        f"Exchange refuses a duplicate but does not list the entry: {error.reason}"
                    ) from None
                if existing is None:
                    raise
            else:
                return Applied(first.block_id)
        if not existing.is_block:
            return Refusal(
                BlockFailure.REFUSED, "the Tenant Allow/Block List allows this value: remove the allow entry first"
            )
        if rules.ends_before(existing.expires_at, end):
            if not _is_ours(existing, entry):
                await self._set_extension(entry, existing, end)
            await self._lists.set_end(entry.tenant_id, entry.value, existing.identity, end)
        return Applied(existing.made_for if _is_ours(existing, entry) else None)

    async def _block_for_mailbox(self, entry: Entry, block: StoredBlock) -> Applied | Refusal:
        if await self._lists.mailbox_blocks(entry.tenant_id, entry.mailbox, entry.value):
            # The list has no notes: after a call in doubt, the entry is most likely ours.
            return Applied(block.block_id if entry.in_doubt else None)
        await self._lists.add_to_mailbox(entry.tenant_id, entry.mailbox, entry.value)
        try:
            is_blocked = await self._lists.mailbox_blocks(entry.tenant_id, entry.mailbox, entry.value)
        except M365Error as error:
            raise _UnverifiedError(error) from error
        if is_blocked:
            return Applied(block.block_id)
        # Exchange reports no error (Microsoft Learn, "Configure junk email settings on Exchange Online mailboxes").
        return Refusal(
            BlockFailure.LIMIT, "Exchange accepted the entry and dropped it: the mailbox's safelist collection is full"
        )

    async def _unblock(self, entry: Entry) -> Ending:
        """Remove the entry if it is ours; restore the end of somebody else's entry that was extended."""
        existing = None if entry.mailbox else await self._find(entry)
        if existing is None or not existing.is_block:
            return "removed"
        if not _is_ours(existing, entry):
            if entry.original_end is None or not rules.is_same_end(existing.expires_at, entry.extended_end):
                return "entry_kept"
            if entry.original_end > datetime.now(UTC):
                await self._lists.set_end(entry.tenant_id, entry.value, existing.identity, entry.original_end)
                return "entry_kept"
            # Without our extension it would have expired by now.
        try:
            await self._lists.remove_entry(entry.tenant_id, entry.value, existing.identity)
        except Refused:
            if await self._find(entry):
                raise
        return "removed"

    async def _set_extension(self, entry: Entry, existing: TenantListEntry, end: datetime | None) -> None:
        """Record the original end of somebody else's entry before it is extended."""
        is_extended = entry.original_end and rules.is_same_end(existing.expires_at, entry.extended_end)
        original = entry.original_end if is_extended else existing.expires_at
        async with self._db.transaction() as tx:
            await store.set_extension(tx, entry.key, original, end)

    async def _find(self, entry: Entry) -> TenantListEntry | None:
        return await self._lists.find_entry(entry.tenant_id, entry.value)

    async def _record(self, entry: Entry, outcome: Outcome) -> None:
        refused = [block for block in entry.pending if block.block_id in outcome.refused]
        failures = [(block, _failed(entry, block, outcome.refused[block.block_id])) for block in refused]
        async with self._db.transaction() as tx:
            await store.lock_tenant(tx, entry.tenant_id)
            await _settle_blocks(tx, "failed", failures)
            if applied := outcome.applied:
                blocked = [block for block in entry.pending if block not in refused]
                await _settle_blocks(tx, "applied", [(block, _applied(entry, block, applied)) for block in blocked])
            if outcome.ending == "removed":
                await _settle_blocks(tx, "removed", [(block, _removed(entry, block)) for block in entry.ended])
            elif outcome.ending == "entry_kept":
                await _settle_blocks(tx, "entry_kept", [(block, None) for block in entry.ended])
            if not await store.lock_claimed(tx, entry):
                # The new holder of the claim has read the list and releases the entry.
                return
            if outcome.ending:
                await store.set_extension(tx, entry.key, None, None)
            await store.release(tx, entry.key)
            await store.purge_ended(tx, [entry.key])

    async def _postpone(self, entry: Entry, error: Exception) -> None:
        """Retry later. Fail blocks that have waited for a day, unless the error is throttling."""
        now = datetime.now(UTC)
        most = BLOCK_PAUSE_SECONDS if entry.pending else REMOVAL_PAUSE_SECONDS
        retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
        due_at = now + (timedelta(seconds=retry_after) if retry_after else backoff(entry.attempts, most=most))
        late: list[StoredBlock] = []
        if isinstance(error, Throttled):
            self._paused_until[entry.tenant_id] = due_at
        else:
            late = [block for block in entry.pending if now - block.recorded_at > GIVE_UP_AFTER]
        unanswered = isinstance(error, TimeoutError) or (isinstance(error, Unavailable) and error.may_have_happened)
        log.warning(
            "entry.postponed",
            tenant_id=entry.tenant_id,
            error=str(error) if isinstance(error, M365Error) else type(error).__name__,
            attempts=entry.attempts,
            due_at=due_at,
        )
        async with self._db.transaction() as tx:
            await store.lock_tenant(tx, entry.tenant_id)
            if not await store.lock_claimed(tx, entry):
                return
            await _settle_blocks(tx, "failed", [(block, _failed(entry, block, _gave_up(error))) for block in late])
            await store.postpone(tx, entry.key, due_at, in_doubt=entry.in_doubt or unanswered)


def _is_ours(existing: TenantListEntry, entry: Entry) -> bool:
    return existing.made_for in {block.block_id for block in entry.blocks}


def _gave_up(error: Exception) -> Refusal:
    reason = getattr(error, "reason", "")
    message = str(error) or type(error).__name__
    return Refusal(BlockFailure.GAVE_UP, f"not possible for 24 hours: {message}{reason and f': {reason}'}")


def _applied(entry: Entry, block: StoredBlock, applied: Applied) -> BlockApplied:
    return BlockApplied(
        tenant_id=entry.tenant_id,
        block=block.block,
        already_present=block.block_id != applied.made_for,
        entry=entry.value if entry.mailbox else rules.list_entry(entry.value),
        applied_at=datetime.now(UTC),
    )


def _failed(entry: Entry, block: StoredBlock, refusal: Refusal) -> BlockFailed:
    return BlockFailed(
        tenant_id=entry.tenant_id,
        block=block.block,
        reason=refusal.reason,
        detail=refusal.detail[:500],
        failed_at=datetime.now(UTC),
    )


def _removed(entry: Entry, block: StoredBlock) -> BlockRemoved:
    reason = BlockRemoval.VERDICT_CLEAN if block.state == "withdrawn" else BlockRemoval.EXPIRED
    return BlockRemoved(tenant_id=entry.tenant_id, block=block.block, reason=reason, removed_at=datetime.now(UTC))


async def _settle_blocks(
    tx: Tx, after: Literal["applied", "failed"] | Ending, outcomes: Sequence[tuple[StoredBlock, Event | None]]
) -> None:
    """Move blocks to the state *after* and publish their events, except for blocks that were settled meanwhile."""
    before = ("applied", "withdrawn") if after in ("removed", "entry_kept") else ("pending",)
    moved = await store.settle(tx, [block.block_id for block, _ in outcomes], before, after)
    await outbox.emit(
        tx, [(event, block.traceparent) for block, event in outcomes if event and block.block_id in moved]
    )
    for block_id in moved:
        log.info("block.settled", block_id=block_id, state=after)
