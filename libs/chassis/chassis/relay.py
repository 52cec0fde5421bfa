"""The relay: it brings the events of a service's outbox to Kafka, in order, at least once."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Any, TypeVar

import asyncpg
import orjson
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from chassis import telemetry
from chassis.postgres import Database, PostgresUnavailableError, is_transient, reason_of

log = structlog.get_logger()

T = TypeVar("T")

BATCH = 500
READ_BYTES = 16 << 20
"""How much is read from the outbox at once: a batch of the largest events would be 2 GB."""
POLL_SECONDS = 0.25
"""Longest time until the leader reads an event of another replica."""
LEADER_SILENCE_SECONDS = 10
"""Time without a word from the leader after which PostgreSQL takes its lock away: it is frozen, or cut off."""
HEARTBEAT_SECONDS = 2.5
"""Longest time that the leader says nothing while it waits for Kafka."""
GATHER_SECONDS = 0.02
"""Pause after less than a batch: else each commit of a busy intake would cost a query of its own."""
BATCH_BYTES = 256 << 10
"""Size of what one partition gets at once. A larger event goes alone."""
TOPIC_SECONDS = 2
"""Longest time that the other topics' events wait for a topic of which Kafka says nothing."""
CLOSED_SECONDS = 5
"""Time for which a topic is left alone that is missing, or that takes nothing from this service."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
"""Pauses of a relay that was interrupted: twice as long each time, until events are published again."""

_FAULTS_OF_A_TOPIC = (
    InvalidTopicError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)


class Relay:
    """
    Publishes the outbox of one service. All replicas run one; the holder of an advisory lock leads, others stand by.

    The leader reads the rows that are still there, in order, sends them, waits for the acknowledgements and deletes
    those rows on the connection that holds its lock: when that connection is gone, so is the right to publish. A
    leader that is killed is followed within about a second, one that is frozen after LEADER_SILENCE_SECONDS. Events in
    flight at that moment may be published twice.

    A topic that is missing, or refuses what is sent, keeps its own events waiting, in their order, and no others. One
    that goes away or has too few copies while a batch is on its way there holds up all until it is whole: a producer
    with idempotence does not give up.
    """

    def __init__(
        self,
        database: Database,
        *,
        service: str,
        kafka_bootstrap: str,
        kafka_options: Mapping[str, Any] | None = None,
        topic_prefix: str,
    ) -> None:
        self._database = database
        self._service = service
        self._bootstrap = kafka_bootstrap
        self._options = kafka_options or {}
        self._prefix = topic_prefix
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._closed: dict[str, float] = {}
        self._delay = FIRST_PAUSE_SECONDS
        self.leading = False
        database.on_commit(self._wake.set)

    async def run(self) -> None:
        """Relay until stopped. PostgreSQL or Kafka being away is waited out."""
        while not self._stopping.is_set():
            try:
                await self._lead()
            except Exception as error:
                if not (is_transient(error) or isinstance(error, KafkaError | ConnectionError | TimeoutError)):
                    raise
                log.warning(
                    "relay.interrupted", error=type(error).__name__, reason=reason_of(error), retry_in=self._delay
                )
                # Not the pause that a commit ends: intake goes on, and each report would mean another try.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._delay)
                self._delay = min(self._delay * 2, LONGEST_PAUSE_SECONDS)
            finally:
                self.leading = False
                telemetry.outbox_leader.set(0)

    async def stop(self) -> None:
        """Publish what can be published now, then let `run` return."""
        self._stopping.set()
        self._wake.set()

    async def _lead(self) -> None:
        connection = await self._database.connect(idle_seconds=LEADER_SILENCE_SECONDS)
        try:
            # What a crash of PostgreSQL makes of a deletion that was not on disk yet: the event is published again.
            await connection.execute("SET synchronous_commit = off")
            while not await connection.fetchval(
                "SELECT pg_try_advisory_lock(hashtext('outbox'), hashtext($1))", self._service
            ):
                await self._pause(1.0)
                if self._stopping.is_set():
                    return
            producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap,
                **self._options,
                client_id=f"backstop-{self._service}-relay",
                acks="all",
                enable_idempotence=True,
                max_batch_size=BATCH_BYTES,
                max_request_size=4 << 20,
            )
            try:
                await _while_alive(connection, producer.start())
                self.leading = True
                telemetry.outbox_leader.set(1)
                log.info("relay.leading")
                await self._publish_until_stopped(connection, producer)
            finally:
                await producer.stop()
        finally:
            await connection.close(timeout=2)

    async def _publish_until_stopped(
        self, connection: "asyncpg.Connection[asyncpg.Record]", producer: AIOKafkaProducer
    ) -> None:
        while True:
            self._wake.clear()
            # The first that together are at most READ_BYTES; the one that passes it as well, so that it is never none.
            rows = await connection.fetch(
                "SELECT * FROM (SELECT *, sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY id) AS bytes"
                " FROM (SELECT * FROM outbox WHERE topic <> ALL($1) ORDER BY id LIMIT $2) AS first) AS sized"
                " WHERE bytes - coalesce(octet_length(payload), 0) < $3 ORDER BY id",
                self._closed_topics(),
                BATCH,
                READ_BYTES,
            )
            if rows:
                open_topics = self._partitions(producer, {row["topic"] for row in rows})
                partitions = await _while_alive(connection, open_topics)
                sendable = [row for row in rows if row["topic"] in partitions]
                await self._publish(connection, producer, sendable, partitions)
                if len(rows) < BATCH and not self._stopping.is_set():
                    await asyncio.sleep(GATHER_SECONDS)
            elif self._stopping.is_set():
                return
            else:
                await self._pause(POLL_SECONDS)

    async def _partitions(self, producer: AIOKafkaProducer, topics: Iterable[str]) -> dict[str, int]:
        """Return how many partitions each of *topics* has, without those that Kafka does not show to this service."""
        partitions = {}

        async def count(topic: str) -> None:
            try:
                async with asyncio.timeout(TOPIC_SECONDS):
                    partitions[topic] = len(await producer.partitions_for(f"{self._prefix}.{topic}"))
            except (*_FAULTS_OF_A_TOPIC, TimeoutError) as error:
                self._close(topic, error)

        await asyncio.gather(*map(count, topics))
        return partitions

    def _close(self, topic: str, error: BaseException) -> None:
        log.warning("relay.topic_closed", topic=topic, error=type(error).__name__, retry_in=CLOSED_SECONDS)
        self._closed[topic] = monotonic() + CLOSED_SECONDS

    def _closed_topics(self) -> list[str]:
        now = monotonic()
        return [topic for topic, end in self._closed.items() if end > now]

    async def _publish(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        producer: AIOKafkaProducer,
        rows: Sequence[asyncpg.Record],
        partitions: Mapping[str, int],
    ) -> None:
        """Send *rows* and delete the acknowledged ones, but none behind a failed row of the same key."""
        answers = await _while_alive(connection, self._send(connection, producer, rows, partitions))
        failed_keys: set[tuple[str, bytes | None]] = set()
        acknowledged, failure = [], None
        published: Counter[str] = Counter()
        refused: dict[str, BaseException] = {}
        for row, answer in zip(rows, answers, strict=True):
            place = (row["topic"], row["key"])
            if isinstance(answer, BaseException):
                failure = answer
                failed_keys.add(place)
                if isinstance(answer, _FAULTS_OF_A_TOPIC):
                    refused[row["topic"]] = answer
            elif place not in failed_keys:
                acknowledged.append(row["id"])
                published[row["topic"]] += 1
        await connection.execute("DELETE FROM outbox WHERE id = ANY($1)", acknowledged)
        for topic, count in published.items():
            telemetry.published.labels(topic).inc(count)
        for topic, error in refused.items():
            self._close(topic, error)
        if published or refused:
            # A refused topic is closed for a while, which bounds the rate: a longer pause would hold up the others too.
            self._delay = FIRST_PAUSE_SECONDS
        if failure:
            # Also when other topics go on: the numbers of an idempotent producer have a gap where it was refused.
            raise failure

    async def _send(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        producer: AIOKafkaProducer,
        rows: Sequence[asyncpg.Record],
        partitions: Mapping[str, int],
    ) -> list[Any]:
        """Send *rows*, and return what became of each: Kafka's acknowledgement or an exception."""
        source = f"/backstop/{self._service}"
        outcomes: list[tuple[list[int], asyncio.Future[Any]]] = []
        filling: dict[tuple[str, int], tuple[BatchBuilder, list[int]]] = {}

        async def send(place: tuple[str, int]) -> None:
            batch, numbers = filling.pop(place)
            if connection.is_closed():
                # Somebody else leads by now: what is sent from here on would only be sent twice.
                raise PostgresUnavailableError("the connection that holds the lock is closed")
            outcomes.append((numbers, await producer.send_batch(batch, place[0], partition=place[1])))

        for number, row in enumerate(rows):
            topic, key = f"{self._prefix}.{row['topic']}", row["key"]
            # A future for each event, as `producer.send` makes it, costs more than all the rest of its way.
            place = topic, _partition(key, partitions[row["topic"]])
            event = {"timestamp": None, "key": key, "value": row["payload"], "headers": _headers(row, source)}
            if place in filling and filling[place][0].append(**event) is None:
                await send(place)
            if place not in filling:
                filling[place] = producer.create_batch(), []
                filling[place][0].append(**event)
            filling[place][1].append(number)
        for place in list(filling):
            await send(place)
        answers = await asyncio.gather(*(future for _, future in outcomes), return_exceptions=True)
        by_row = {number: answer for (numbers, _), answer in zip(outcomes, answers, strict=True) for number in numbers}
        return [by_row[number] for number in range(len(rows))]

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return
        if self._stopping.is_set() or not self.leading:
            # A follower is woken by each commit of its process but can do nothing about it.
            await asyncio.sleep(0.05)


def _headers(row: asyncpg.Record, source: str) -> list[tuple[str, bytes | None]]:
    """Return the headers of an event, which comes from *source*; or those of a dead letter, as they were."""
    if row["headers"] is None:
        return [(name.decode(), value) for name, value in zip(row["header_names"], row["header_values"], strict=True)]
    return [(name, value.encode()) for name, value in {**orjson.loads(row["headers"]), "ce_source": source}.items()]


@lru_cache(maxsize=10_000)
def _partition(key: bytes | None, partitions: int) -> int:
    """
    Choose the partition of *key* as Kafka's own clients do; of none, the first one.

    The hash is written in Python and costs as much as the rest of an event; the events of a case follow each other.
    """
    return int(murmur2(key) & 0x7FFFFFFF) % partitions if key is not None else 0


async def _while_alive(connection: "asyncpg.Connection[asyncpg.Record]", job: Coroutine[Any, Any, T]) -> T:
    """Wait for *job*, and keep *connection* from falling idle meanwhile. Raises when that connection is lost."""
    task = asyncio.create_task(job)
    try:
        while not (await asyncio.wait([task], timeout=HEARTBEAT_SECONDS))[0]:
            await connection.execute("SELECT 1")
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
