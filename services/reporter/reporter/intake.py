"""
Record reports: each once, whatever the channel and however often it is sent, with the events that follow from it.

A transaction for each report costs more than all the rest of its intake, so the reports that come while one is
running are recorded together in the next.
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
from reporter.mailbox_blocks import blockable_sender

TOGETHER = 50
"""Maximum number of reports that are recorded in one transaction."""
TRANSACTIONS = 2
"""Number of such transactions at the same time: while one waits for its commit, the next one can run."""
LOCK_TIMEOUT_SECONDS = 1.0
"""Lock timeout of a batch: a report whose message is being deleted, for example, is retried alone after this."""
ANSWER_SECONDS = 10.0
"""Longest time that a client waits for PostgreSQL, however many transactions are in the way."""


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """
    A report to be recorded, in the trace *cause*, whose sender is to be blocked for the mailbox *block_for*.

    Its message *raw* must be in the mail store already.
    """

    report: MessageReported
    raw: bytes
    by: Actor
    block_for: str | None
    cause: str | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result of recording a report. `block` is None if none was requested, or the message names no sender."""

    repeated: bool
    block: MailboxBlock | None


Waiting: TypeAlias = "tuple[ReportRequest, asyncio.Future[Recorded]]"


class Intake:
    """Records reports; those that wait at the same time share a transaction."""

    def __init__(self, db: Database, mails: MailStore) -> None:
        self._db = db
        self._mails = mails
        self._waiting: list[Waiting] = []
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def record(self, request: ReportRequest) -> Recorded:
        """
        Store a report and publish it, unless it is known; block the message's sender if requested.

        The message is in the mail store when this returns, even if it expired in between. A repeated report can still
        request the block, and whoever sent it may read its status. Raises StoreUnavailable if an expired message could
        not be stored again, and PostgreSQL's errors that concern this report. Raises PostgresUnavailableError after
        ANSWER_SECONDS; the report may then still be recorded.
        """
        recorded: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, recorded))
        if self._running < TRANSACTIONS:
            self._running += 1
            self._start(self._record_waiting())
        try:
            return await asyncio.wait_for(recorded, ANSWER_SECONDS)
        except TimeoutError:
            raise PostgresUnavailableError(f"the report was not recorded within {ANSWER_SECONDS:g} s") from None
        finally:
            if recorded.cancelled():
                # While PostgreSQL is stuck, nothing else would release the message from memory.
                self._waiting = [waiting for waiting in self._waiting if waiting[1] is not recorded]

    async def _record_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                await self._record(batch, lock_timeout=LOCK_TIMEOUT_SECONDS)
        finally:
            # Without an await since the last check: a report that is added from now on starts a new run.
            self._running -= 1

    async def _record(self, batch: Sequence[Waiting], *, lock_timeout: float | None = None) -> None:
        """Record *batch* in one transaction; if that fails under a lock timeout, each alone and without one."""
        try:
            async with self._db.transaction() as tx:
                if lock_timeout is not None:
                    await store.set_lock_timeout(tx, lock_timeout)
                outcomes = await record(tx, [request for request, _ in batch], self._mails)
        except Exception as error:  # noqa: BLE001 - each is retried alone, to find out whose fault it is
            # The loser of a deadlock can continue once the other transaction has ended.
            again = lock_timeout is not None or isinstance(error, asyncpg.DeadlockDetectedError)
            for one in [one for one in batch if not one[1].done()]:
                if again:
                    self._record_alone(one)
                else:
                    one[1].set_exception(error)
        else:
            for (_, recorded), outcome in zip(batch, outcomes, strict=True):
                if not recorded.done():
                    recorded.set_result(outcome)

    def _record_alone(self, one: Waiting) -> None:
        """Record a report for as long as a client waits for it: its message may be large."""
        task = self._start(self._record([one]))
        one[1].add_done_callback(lambda recorded: task.cancel() if recorded.cancelled() else None)

    def _start(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def record(tx: Tx, requests: Sequence[ReportRequest], mails: MailStore) -> list[Recorded]:
    """Record reports: see `Intake.record`."""
    stored = await store.record_reports(tx, [(request.report, request.by.id) for request in requests])
    recorded = []
    events: list[tuple[Event, str | None]] = []
    for request, one in zip(requests, stored, strict=True):
        if one.mail_gone:
            await mails.put(request.report.tenant_id, request.raw)
        if not one.new:
            await store.add_filer(tx, request.report, request.by.id)
        block, requested = await _block(tx, request)
        if one.new:
            blocks = (requested.block,) if requested else ()
            events.append((request.report.model_copy(update={"blocks": blocks}), request.cause))
        if requested:
            events.append((requested, request.cause))
        recorded.append(Recorded(repeated=not one.new, block=block))
    await outbox.emit(tx, events)
    return recorded


async def _block(tx: Tx, request: ReportRequest) -> tuple[MailboxBlock | None, BlockRequested | None]:
    report, sender = request.report, blockable_sender(request.report.message)
    if not request.block_for or not sender:
        return None, None
    block, requested = await request_block(
        tx,
        report.tenant_id,
        channel=Channel.API,
        mailbox=request.block_for,
        sender=sender,
        by=request.by,
        report_id=report.report_id,
    )
    await store.attach_block(tx, report.report_id, block.block_id)
    return block, requested
