"""Keep a copy of each tenant's quarantine: what is new, what became of the rest, what is gone."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from chassis.postgres import Database
from chassis.worker import Lease, backoff
from m365 import Exchange, M365Error, Throttled, Truncated, Unavailable, until
from quarantine import rules, store
from quarantine.rules import Doubt, Quarantined, Row
from quarantine.store import Sync

log = structlog.get_logger()

LEASE = Lease(timedelta(seconds=60))
"""It is prolonged before each call. After a crash, somebody else goes on when it is over."""
REMEMBERED = timedelta(days=30)
"""How long mails are remembered that left the quarantine; longer than Kafka may bring an event of theirs again."""
FORGOTTEN_AT_ONCE = 500
MOST_PAGES = 1000
"""The highest Page that Get-QuarantineMessage takes."""


class _LostTurnError(Exception):
    """Somebody else mirrors the tenant by now."""


class Mirror:
    """
    Mirrors the quarantine of *tenants*, each by one replica at a time.

    Each round, *every* so often, reads what was received since the last one and every mail about which something was
    done; each *sweep_every* it reads all 30 days, for whatever changed unnoticed. *page_size* is below 1,000: from
    there on Exchange answers a part and a link that cannot be relied on.
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
        self._known = False

    async def sync_due(self) -> int:
        """Bring one mirror that is due up to date; several of these may run. Returns how many there were."""
        async with self._db.transaction() as tx:
            if not self._known:
                await store.add_tenants(tx, self._tenants)
            syncs = await store.claim_syncs(tx, self._tenants, self._lease.length, 1)
        self._known = True
        for sync in syncs:
            await self._sync(sync)
        return len(syncs)

    async def _sync(self, sync: Sync) -> None:
        try:
            await self._read(sync)
        except _LostTurnError:
            log.warning("sync.overtaken", tenant_id=sync.tenant_id)
        except (M365Error, TimeoutError) as error:
            retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
            wait = timedelta(seconds=retry_after) if retry_after else backoff(sync.attempts)
            words = f"{error} {getattr(error, 'reason', '')}".strip() or type(error).__name__
            log.warning("sync.postponed", tenant_id=sync.tenant_id, error=str(error), attempts=sync.attempts)
            async with self._db.transaction() as tx:
                await store.postpone_sync(tx, sync, wait, words[:500])

    async def _read(self, sync: Sync) -> None:
        now = datetime.now(UTC)
        sweeping = sync.swept_at is None or now - sync.swept_at >= self._sweep_every
        if sweeping:
            sync = replace(sync, sweep=sync.sweep + 1)
        async with until(self._lease.deadline()):
            policies = rules.read_policies(await self._exchange.invoke(sync.tenant_id, "Get-QuarantinePolicy"))
        async with self._db.transaction() as tx:
            await self._hold(tx, sync)
            # One that cannot be read is kept as one that is not known yet: its mail waits to be told of.
            known = [policy for policy in policies if policy.doubt is not Doubt.UNREADABLE]
            await store.record_policies(tx, sync.tenant_id, known)
        warning = rules.policy_warning(policies)
        if warning:
            log.warning("policies.not_understood", tenant_id=sync.tenant_id, warning=warning)
        for start, end in rules.windows(None if sweeping else sync.read_until, now):
            await self._record(sync, StartReceivedDate=start, EndReceivedDate=end)
        earliest = now - timedelta(days=rules.LONGEST_DAYS)
        for status in () if sweeping else rules.DECIDED:
            await self._record(sync, StartReceivedDate=earliest, ReleaseStatus=status)
        async with self._db.transaction() as tx:
            await self._hold(tx, sync)
            await store.expire(tx, sync.tenant_id)
            if sweeping:
                await store.miss(tx, sync.tenant_id, sync.sweep)
            await store.settle_sync(tx, sync, read_until=now, swept=sweeping, due_in=self._every, warning=warning)
        log.info("sync.done", tenant_id=sync.tenant_id, swept=sweeping)

    async def _record(self, sync: Sync, **window: Any) -> None:
        """Store one window, page by page, each in a transaction of its own."""
        async for rows in self._pages(sync, window):
            mails = await self._mails(sync, rows)
            async with self._db.transaction() as tx:
                await self._hold(tx, sync)
                await store.record(tx, sync.tenant_id, mails, sync.sweep)

    async def _pages(self, sync: Sync, window: dict[str, Any]) -> AsyncIterator[Sequence[Row]]:
        """Read a window; a short page is its last."""
        for page in range(1, MOST_PAGES + 1):
            await self._prolong(sync)
            async with until(self._lease.deadline()):
                rows: Sequence[Row] = await self._exchange.invoke(
                    sync.tenant_id, "Get-QuarantineMessage", **window, Page=page, PageSize=self._page_size
                )
            if rows:
                yield rows
            if len(rows) < self._page_size:
                return
        log.warning("sync.window_too_large", tenant_id=sync.tenant_id, page_size=self._page_size)

    async def _mails(self, sync: Sync, rows: Sequence[Row]) -> list[Quarantined]:
        """Read rows; one that several recipients share is looked at closely when only some of them have the mail."""
        mails = {}
        for row in rows:
            found: Row | None = None
            if rules.is_partly_released(row):
                await self._prolong(sync)
                async with until(self._lease.deadline()):
                    found = await look(self._exchange, sync.tenant_id, row)
            for mail in rules.read_row(found or row):
                mails[mail.identity.lower(), mail.recipient] = mail
        return list(mails.values())

    async def _prolong(self, sync: Sync) -> None:
        async with self._db.transaction() as tx:
            await self._hold(tx, sync)

    async def _hold(self, tx: Any, sync: Sync) -> None:
        if not await store.prolong(tx, sync, self._lease.length):
            raise _LostTurnError


async def look(exchange: Exchange, tenant_id: UUID, row: Row | str) -> Row | None:
    """Read one mail of the quarantine in detail; None when it is not there. Raises one of M365Error."""
    identity = row if isinstance(row, str) else str(row["Identity"])
    if not identity:
        raise ValueError("without an Identity, Exchange answers the whole quarantine")
    try:
        rows: Sequence[Row] = await exchange.invoke(tenant_id, "Get-QuarantineMessage", Identity=identity)
    except Truncated as error:
        rows = error.records
    return rules.named(rows, identity)


async def forget(db: Database) -> int:
    """
    Delete what is over since REMEMBERED: mails with what was done about them, digests, cases without a report here.

    Returns how many mails there were.
    """
    async with db.transaction() as tx:
        await store.forget_digests(tx, REMEMBERED)
        await store.forget_unreported_cases(tx, REMEMBERED)
        return await store.forget_messages(tx, REMEMBERED, FORGOTTEN_AT_ONCE)
