"""
Take in reports: each once, whatever the channel and however often it is sent, with the events that follow from it.

A transaction for each report costs more than all the rest of its intake, so the reports that come while one is
running are filed together in the next.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from backstop_contracts import Actor, BlockRequested, Channel, Event, MessageReported
from chassis import outbox
from chassis.postgres import Database, PostgresUnavailableError, Tx
from mail import MailStore
from outcomes import MailboxBlock, request_block
from reporter import store
from reporter.rules import blockable

TOGETHER = 50
"""Most reports that are filed in one transaction."""
TRANSACTIONS = 2
"""Such transactions at the same time: while one waits for its commit, the next is on its way."""
PATIENCE_SECONDS = 1.0
"""Longest time that reports wait for what only one of them needs, such as a mail that is being deleted."""
ANSWER_SECONDS = 10.0
"""Longest time that whoever reports waits for PostgreSQL, however many transactions are in the way."""


@dataclass(frozen=True, slots=True)
class Wish:
    """
    A report that is to be filed, in the trace *cause*, and its sender to be blocked for the mailbox *block_for*.

    Its mail *raw* must be in the mail store already.
    """

    report: MessageReported
    raw: bytes
    by: Actor
    block_for: str | None
    cause: str | None


@dataclass(frozen=True, slots=True)
class Filed:
    """What became of a report. `block` is None when none was asked for, or the mail names no sender."""

    repeated: bool
    block: MailboxBlock | None


Waiting: TypeAlias = "tuple[Wish, asyncio.Future[Filed]]"


class Filing:
    """Files reports, those that wait together in one transaction."""

    def __init__(self, db: Database, mails: MailStore) -> None:
        self._db = db
        self._mails = mails
        self._waiting: list[Waiting] = []
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def file(self, wish: Wish) -> Filed:
        """
        Store a report and publish it, unless it was filed before; block its sender if that is wished.

        Its mail is in the mail store when this returns, even if it expired in between. A report that is filed again
        can still ask for the block, and whoever filed it hears what becomes of it. Raises StoreUnavailable when a mail
        that expired could not be put back, and what PostgreSQL raises, as if it had been filed alone;
        PostgresUnavailableError after ANSWER_SECONDS, when the report may or may not be filed in the end.
        """
        filed: asyncio.Future[Filed] = asyncio.get_running_loop().create_future()
        self._waiting.append((wish, filed))
        if self._running < TRANSACTIONS:
            self._running += 1
            self._start(self._file_what_waits())
        try:
            return await asyncio.wait_for(filed, ANSWER_SECONDS)
        except TimeoutError:
            raise PostgresUnavailableError(f"the report was not filed within {ANSWER_SECONDS:g} s") from None
        finally:
            if filed.cancelled():
                # While PostgreSQL is stuck nobody else would let go of the mail.
                self._waiting = [waiting for waiting in self._waiting if waiting[1] is not filed]

    async def _file_what_waits(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                await self._file(batch, patience=PATIENCE_SECONDS)
        finally:
            # Before anything else can be added to what waits, or it would wait for nobody.
            self._running -= 1

    async def _file(self, batch: Sequence[Waiting], *, patience: float | None = None) -> None:
        """File *batch* in one transaction; when that fails with limited patience, each alone and without limit."""
        try:
            async with self._db.transaction() as tx:
                if patience is not None:
                    await store.patient_for(tx, patience)
                outcomes = await file(tx, [wish for wish, _ in batch], self._mails)
        except Exception as error:  # noqa: BLE001 - whose fault it is, each finds out alone
            # The loser of a deadlock may go on as soon as the other is through.
            again = patience is not None or isinstance(error, asyncpg.DeadlockDetectedError)
            for one in [one for one in batch if not one[1].done()]:
                if again:
                    self._file_alone(one)
                else:
                    one[1].set_exception(error)
        else:
            for (_, filed), outcome in zip(batch, outcomes, strict=True):
                if not filed.done():
                    filed.set_result(outcome)

    def _file_alone(self, one: Waiting) -> None:
        """File a report for as long as somebody waits for it: its mail may be large."""
        task = self._start(self._file([one]))
        one[1].add_done_callback(lambda filed: task.cancel() if filed.cancelled() else None)

    def _start(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def file(tx: Tx, wishes: Sequence[Wish], mails: MailStore) -> list[Filed]:
    """File reports: see `Filing.file`."""
    recorded = await store.record_reports(tx, [(wish.report, wish.by.id) for wish in wishes])
    filed = []
    events: list[tuple[Event, str | None]] = []
    for wish, one in zip(wishes, recorded, strict=True):
        if one.mail_gone:
            await mails.put(wish.report.tenant_id, wish.raw)
        if not one.new:
            await store.add_filer(tx, wish.report, wish.by.id)
        block, requested = await _block(tx, wish)
        if one.new:
            blocks = (requested.block,) if requested else ()
            events.append((wish.report.model_copy(update={"blocks": blocks}), wish.cause))
        if requested:
            events.append((requested, wish.cause))
        filed.append(Filed(not one.new, block))
    await outbox.emit(tx, events)
    return filed


async def _block(tx: Tx, wish: Wish) -> tuple[MailboxBlock | None, BlockRequested | None]:
    report, sender = wish.report, blockable(wish.report.message)
    if not wish.block_for or not sender:
        return None, None
    block, requested = await request_block(
        tx,
        report.tenant_id,
        channel=Channel.API,
        mailbox=wish.block_for,
        sender=sender,
        by=wish.by,
        report_id=report.report_id,
    )
    await store.attach_block(tx, report.report_id, block.block_id)
    return block, requested
