"""What waits, as metrics: events in the outbox, rows that are due, events of Kafka that are not handled yet."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError

from chassis import telemetry
from chassis.consumer import Consumer
from chassis.postgres import Database, is_transient

log = structlog.get_logger()

SAMPLE_SECONDS = 5.0
TIMEOUT_SECONDS = 4.0
"""Longest time that one sample may take: a metric must not wait for what it is to report on."""
MOST = 100_000
"""Rows that are counted at most: after hours of waiting there may be millions."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many rows waited, and since when the oldest of them (on the monotonic clock; None: none waited)."""

    rows: int = 0
    since: float | None = None

    @property
    def age(self) -> float:
        """The seconds that the oldest row has waited until now."""
        return 0.0 if self.since is None else max(0.0, time.monotonic() - self.since)


class Sampler:
    """
    Samples the backlog every SAMPLE_SECONDS in every replica, leader or follower.

    *due* names the due rows of each worker: a query for their `due_at`. While PostgreSQL is away nothing can be added
    to what waits or taken from it: the last numbers stay, and the ages go on growing. When they were read is a metric
    as well. The same holds for the lag while Kafka is away. A sample that fails is logged and repeated.
    """

    def __init__(self, database: Database, due: Mapping[str, str], consumer: Consumer | None) -> None:
        self._database = database
        self._queries = due
        self._consumer = consumer
        self._outbox = Backlog()
        self._due = dict.fromkeys(due, Backlog())
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Sample until stopped."""
        while not self._stopped.is_set():
            for sample in (self._sample_postgres, self._sample_kafka):
                # A service does not end because it cannot count.
                try:
                    await sample()
                except Exception as error:
                    expected = is_transient(error) or isinstance(error, KafkaError | TimeoutError)
                    log.warning("sample.failed", error=type(error).__name__, exc_info=not expected)
            self._show()
            try:
                await asyncio.wait_for(self._stopped.wait(), SAMPLE_SECONDS)
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Let `run` return."""
        self._stopped.set()

    async def _sample_kafka(self) -> None:
        if self._consumer:
            await self._consumer.sample_lag(TIMEOUT_SECONDS)

    async def _sample_postgres(self) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            outbox = await self._read("SELECT created_at FROM outbox ORDER BY id LIMIT 1", "SELECT FROM outbox")
            due = {}
            for work, rows in self._queries.items():
                waiting = f"SELECT due_at FROM ({rows}) AS rows WHERE due_at <= now()"
                due[work] = await self._read(f"SELECT min(due_at) FROM ({waiting}) AS waiting", waiting)
            unresolved = await self._database.pool.fetchval(
                "SELECT count(*) FROM (SELECT FROM dead_letters WHERE state = 'unresolved' LIMIT $1) AS counted", MOST
            )
        telemetry.dead_letters.set(unresolved)
        self._outbox, self._due = outbox, due
        telemetry.sampled_at.set_to_current_time()

    async def _read(self, oldest: str, rows: str) -> Backlog:
        row = await self._database.pool.fetchrow(
            f"SELECT extract(epoch FROM now() - ({oldest}))::float8 AS age,"
            f" (SELECT count(*) FROM ({rows} LIMIT $1) AS counted) AS rows",
            MOST,
        )
        if row is None or row["age"] is None:
            return Backlog()
        return Backlog(row["rows"], time.monotonic() - row["age"])

    def _show(self) -> None:
        telemetry.outbox_age.set(self._outbox.age)
        telemetry.outbox_events.set(self._outbox.rows)
        for work, backlog in self._due.items():
            telemetry.due_age.labels(work).set(backlog.age)
            telemetry.due_rows.labels(work).set(backlog.rows)
