"""
Due-row work: claim rows that are due, call the outside, settle them.

The claim is the retry. One UPDATE takes due rows with FOR UPDATE SKIP LOCKED and moves their `due_at` forward;
a crash needs no code, because the row comes due again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from chassis import telemetry
from chassis.postgres import is_transient, reason_of

log = structlog.get_logger()

_in_a_round: ContextVar[bool] = ContextVar("in_a_round", default=False)


def backoff(attempts: int, *, first: float = 2.0, most: float = 300.0) -> timedelta:
    """Return how long to wait after *attempts* attempts: doubling from *first* to *most* seconds, half of it jitter."""
    full = min(most, first * 2 ** max(0, min(attempts - 1, 30)))
    return timedelta(seconds=random.uniform(full / 2, full))


@dataclass(frozen=True, slots=True)
class Lease:
    """
    How long a claimed row is held; calls about it end after three quarters of that.

    Read `deadline` before the claim's transaction, and call within `graph.before(deadline)`: whatever a call
    waits for (a slot, a token, an answer), it has ended when the row comes due again, and no two replicas ever call
    about one row at the same time. A process that was frozen finds the deadline passed when it goes on.
    """

    length: timedelta

    def deadline(self) -> float:
        """Return when the last call about rows that are claimed now must have ended, on the event loop's clock."""
        return asyncio.get_running_loop().time() + 0.75 * self.length.total_seconds()


async def run_all(*jobs: Awaitable[Any]) -> None:
    """Run *jobs* at the same time, each to its end whatever happens to another; then raise the first failure."""
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


class WorkLoop:
    """
    One kind of due work: calls *step* again and again.

    *step* claims due rows, handles them and returns their number. If there were none, it runs again after *idle*
    seconds, or as soon as `wake` is called. *on_handled* is called after every round that handled rows.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[int]],
        *,
        idle: float = 1.0,
        on_handled: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._step = step
        self._idle = idle
        self._on_handled = on_handled
        self._wake = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        """Call *step* now: something may have come due. Commits of the step itself are ignored: it would never rest."""
        if not _in_a_round.get():
            self._wake.set()

    async def run(self) -> None:
        """Work until stopped. A failed round is logged and followed by a pause; the claimed rows come due again."""
        failures = 0
        while not self._stopping:
            self._wake.clear()
            try:
                handled = await self._round()
            except Exception as error:
                failures += 1
                telemetry.work_failed.labels(self.name, type(error).__name__).inc()
                log.warning(
                    "work.failed",
                    work=self.name,
                    error=type(error).__name__,
                    reason=reason_of(error) if is_transient(error) else None,
                    exc_info=not is_transient(error),
                )
                await self._pause(backoff(failures, first=0.2, most=15).total_seconds())
                continue
            failures = 0
            telemetry.work_settled.labels(self.name).inc(handled)
            if handled:
                self._on_handled()
            else:
                await self._pause(self._idle)

    async def stop(self) -> None:
        """Let `run` return after the round in hand."""
        self._stopping = True
        self._wake.set()

    async def _round(self) -> int:
        token = _in_a_round.set(True)
        try:
            return await self._step()
        finally:
            _in_a_round.reset(token)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return
