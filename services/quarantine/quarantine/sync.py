"""Sync the database with each tenant's quarantine: new messages, changed statuses, deletions."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from chassis.postgres import Database, Tx
from chassis.worker import Lease, backoff
from m365 import Exchange, M365Error, Throttled, Unavailable
from quarantine import exchange_rows, store
from quarantine.exchange_rows import ExchangeRow, ListedMessage
from quarantine.message_source import find_row
from quarantine.quarantine_policies import PolicyDoubt, parse_policies, policy_warning
from quarantine.store import Sync

log = structlog.get_logger()

LEASE = Lease(timedelta(seconds=60))
"""Extended before each call. After a crash, another replica goes on when it ends."""
MAX_PAGES = 1000
"""The highest Page that Get-QuarantineMessage accepts."""


class _LostLeaseError(Exception):
    """Another worker has claimed the tenant."""


class SyncWorker:
    """
    Syncs the quarantine of *tenants*, each by one replica at a time.

    A sync runs *every* so often. It reads the messages received since the last one and all messages that somebody has
    acted on. Once in *sweep_every*, it is a sweep, which reads all 30 days to find any other change. *page_size* must
    be below 1,000: larger pages are truncated, with a link that cannot be relied on.
    """

    def __init__(
        self,
        db: Database,
        exchange: Exchange,
        tenants: Collection[UUID],
        *,
        every: timedelta,
        sweep_every: timedelta,
        page_size: int = 500,
        lease: Lease = LEASE,
    ) -> None:
        self._db = db
        self._exchange = exchange
        self._tenants = tenants
        self._every = every
        self._sweep_every = sweep_every
        self._page_size = page_size
        self._lease = lease
        self._tenants_added = False

    async def sync_due(self) -> int:
        """Sync one tenant that is due; return the number of tenants (0 or 1). May run several times side by side."""
        async with self._db.transaction() as tx:
            if not self._tenants_added:
                await store.add_tenants(tx, self._tenants)
            syncs = await store.claim_syncs(tx, self._tenants, self._lease.length, 1)
        self._tenants_added = True
        for sync in syncs:
            await self._sync(sync)
        return len(syncs)

    async def _sync(self, sync: Sync) -> None:
        try:
            await self._read_quarantine(sync)
        except _LostLeaseError:
            log.warning("sync.overtaken", tenant_id=sync.tenant_id)
        except (M365Error, TimeoutError) as error:
            retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
            wait = timedelta(seconds=retry_after) if retry_after else backoff(sync.attempts)
            warning = f"{error} {getattr(error, 'reason', '')}".strip() or type(error).__name__
            log.warning("sync.postponed", tenant_id=sync.tenant_id, error=str(error), attempts=sync.attempts)
            async with self._db.transaction() as tx:
                await store.postpone_sync(tx, sync, wait, warning[:500])

    async def _read_quarantine(self, sync: Sync) -> None:
        now = datetime.now(UTC)
        sweeping = sync.swept_at is None or now - sync.swept_at >= self._sweep_every
        if sweeping:
            sync = replace(sync, sweep=sync.sweep + 1)
        warning = await self._read_policies(sync)
        for start, end in exchange_rows.day_windows(None if sweeping else sync.read_until, now):
            await self._read_messages(sync, StartReceivedDate=start, EndReceivedDate=end)
        earliest = now - timedelta(days=exchange_rows.QUARANTINE_DAYS)
        for status in () if sweeping else exchange_rows.CHANGED_STATUSES:
            await self._read_messages(sync, StartReceivedDate=earliest, ReleaseStatus=status)
        async with self._db.transaction() as tx:
            await self._extend_lease(tx, sync)
            await store.set_messages_expired(tx, sync.tenant_id)
            if sweeping:
                await store.set_messages_deleted(tx, sync.tenant_id, sync.sweep)
            await store.settle_sync(tx, sync, read_until=now, swept=sweeping, due_in=self._every, warning=warning)
        log.info("sync.done", tenant_id=sync.tenant_id, swept=sweeping)

    async def _read_policies(self, sync: Sync) -> str | None:
        """Store the quarantine policies; return a warning about those that could not be parsed."""
        async with self._exchange.before(self._lease.deadline()):
            policies = parse_policies(await self._exchange.invoke(sync.tenant_id, "Get-QuarantinePolicy"))
        async with self._db.transaction() as tx:
            await self._extend_lease(tx, sync)
            # An unreadable policy is treated as unknown, so that digests wait with its messages until it can be read.
            known = [policy for policy in policies if policy.doubt is not PolicyDoubt.UNREADABLE]
            await store.record_policies(tx, sync.tenant_id, known)
        warning = policy_warning(policies)
        if warning:
            log.warning("policies.not_understood", tenant_id=sync.tenant_id, warning=warning)
        return warning

    async def _read_messages(self, sync: Sync, **filters: Any) -> None:
        """Store the messages that match *filters*, each page in its own transaction."""
        async for page in self._pages(sync, filters):
            messages = await self._parse_page(sync, page)
            async with self._db.transaction() as tx:
                await self._extend_lease(tx, sync)
                await store.record_messages(tx, sync.tenant_id, messages, sync.sweep)

    async def _pages(self, sync: Sync, filters: dict[str, Any]) -> AsyncIterator[Sequence[ExchangeRow]]:
        """Yield the pages of a query; the last one is not full."""
        for number in range(1, MAX_PAGES + 1):
            await self._extend_lease_and_commit(sync)
            async with self._exchange.before(self._lease.deadline()):
                page: Sequence[ExchangeRow] = await self._exchange.invoke(
                    sync.tenant_id, "Get-QuarantineMessage", **filters, Page=number, PageSize=self._page_size
                )
            if page:
                yield page
            if len(page) < self._page_size:
                return
        log.warning("sync.window_too_large", tenant_id=sync.tenant_id, page_size=self._page_size)

    async def _parse_page(self, sync: Sync, page: Sequence[ExchangeRow]) -> list[ListedMessage]:
        """Parse a page. A row that only some of its recipients have received is read again, to learn who has."""
        messages = {}
        for row in page:
            detailed: ExchangeRow | None = None
            if exchange_rows.is_partly_released(row):
                await self._extend_lease_and_commit(sync)
                async with self._exchange.before(self._lease.deadline()):
                    detailed = await find_row(self._exchange, sync.tenant_id, str(row["Identity"]))
            for message in exchange_rows.parse_row(detailed or row):
                messages[message.identity.lower(), message.recipient] = message
        return list(messages.values())

    async def _extend_lease_and_commit(self, sync: Sync) -> None:
        async with self._db.transaction() as tx:
            await self._extend_lease(tx, sync)

    async def _extend_lease(self, tx: Tx, sync: Sync) -> None:
        if not await store.extend_lease(tx, sync, self._lease.length):
            raise _LostLeaseError
