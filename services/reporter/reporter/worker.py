"""
Delete raw mails that no report refers to from the mail store, and from nowhere else.

A mail lies there under its content, so a new report of it may come at any moment and find it "already there". Why
none of them can lose it is in docs/adr/0005-retention.md.
"""

import asyncio
from datetime import timedelta

import structlog

from chassis.postgres import Database
from mail import MailStore
from reporter import store
from reporter.store import Mail

log = structlog.get_logger()

BATCH = 100
PATIENCE = timedelta(seconds=45)
"""Longest time that the deletions of a batch may take: reports of these mails wait meanwhile."""
LEASE = timedelta(minutes=5)
"""Longer than that: mails that are still claimed then were left behind by a crash."""
REMEMBERED = timedelta(days=1)
"""Longer than a report can take between its mail being put into the store and its transaction."""
UNREPORTED = timedelta(days=30)
"""Age at which a mail goes of which there never was a report, because its request broke off in between."""
UNKNOWN = timedelta(days=60)
"""Age at which a verdict goes whose case has no report here; longer than the topic keeps it."""


class Worker:
    """Keeps the mail store free of expired mails."""

    def __init__(self, db: Database, mails: MailStore) -> None:
        self._db = db
        self._mails = mails

    async def delete_expired_mails(self) -> int:
        """
        Delete the mails that are due and that no report refers to. Returns how many were due.

        Killed at any point, it leaves rows that come due again.
        """
        # The claim is committed before anything is deleted: it is what makes reports put their mail once more.
        async with self._db.transaction() as tx:
            due = await store.claim_expired_mails(tx, LEASE, BATCH)
        if due:
            await self._delete(due)
        return len(due)

    async def _delete(self, due: list[Mail]) -> None:
        async with self._db.transaction() as tx:
            locked = await store.lock_mails(tx, due)
            released = await store.release_mails(tx, locked)
            expired = [mail for mail in locked if mail not in released]
            async with asyncio.timeout(PATIENCE.total_seconds()):
                outcomes = await asyncio.gather(
                    *(self._mails.delete(*mail) for mail in expired), return_exceptions=True
                )
            failures = [outcome for outcome in outcomes if outcome is not None]
            deleted = [mail for mail, outcome in zip(expired, outcomes, strict=True) if outcome is None]
            await store.settle_mails(tx, deleted, REMEMBERED)
        if deleted:
            log.info("mails.deleted", mails=len(deleted))
        for failure in failures:
            raise failure

    async def sweep(self) -> int:
        """Make mails due of which there never was a report, and forget verdicts of cases that have none."""
        async for page in self._mails.older(UNREPORTED):
            async with self._db.transaction() as tx:
                await store.expire_unreported(tx, page)
        async with self._db.transaction() as tx:
            await store.forget_unreported_cases(tx, UNKNOWN)
        return 0
