"""What happens to a batch of events between Kafka and its handler: docs/adr/0008-faststream.md."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from faststream import BaseMiddleware
from faststream.exceptions import NackMessage
from faststream.kafka import KafkaMessage

from chassis import dead_letters, telemetry
from chassis.postgres import Database, is_transient, reason_of
from chassis.subscribing import Received, Unreadable, model_of

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0

Taken: TypeAlias = tuple[ConsumerRecord, Received[Any]]


class Delivery:
    """
    FastStream middleware: hands each batch to its handler in one transaction; waits, or parks what cannot be handled.

    The kind of failure decides what happens. PostgreSQL away: wait, with the group's heartbeat alive. Anything else:
    find the one event by halving the batch, park it as a dead letter, and go on. When *halt_after* events of a topic
    in a row had to be parked, that topic halts: its batch is not committed, and the next start takes it again. Other
    topics go on.

    *strict* is for tests of handlers: what a handler raises is raised, and nothing is parked.
    """

    def __init__(self, database: Database, *, service: str, halt_after: int, strict: bool = False) -> None:
        self.database = database
        self.service = service
        self.halt_after = halt_after
        self.strict = strict
        self.stopping = asyncio.Event()
        self.waiting: set[str] = set()
        self.in_hand: dict[TopicPartition, int] = {}
        self.topic_ids: dict[str, UUID] = {}
        self.expected: dict[TopicPartition, int] = {}
        self.parked_in_a_row: Counter[str] = Counter()

    def __call__(self, records: Any, /, *, context: Any) -> "_Batch":
        """Return the middleware of one batch: FastStream calls this."""
        return _Batch(self, records, context=context)

    @property
    def halted(self) -> set[str]:
        """Return the topics of which *halt_after* events in a row were parked."""
        return {topic for topic, count in self.parked_in_a_row.items() if count >= self.halt_after}

    async def stops_within(self, seconds: float) -> bool:
        """Wait for *seconds*, or until the consumer is to stop; return whether it is."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


class _Batch(BaseMiddleware):
    """One batch: the records that one fetch from one topic has returned."""

    def __init__(self, delivery: Delivery, records: Any, /, *, context: Any) -> None:
        super().__init__(records, context=context)
        self._delivery = delivery

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
        """Handle or park every record of the batch. Raises NackMessage to return the batch for redelivery."""
        message: KafkaMessage = msg
        records: tuple[ConsumerRecord, ...] = message.raw_message
        first_offsets = {TopicPartition(one.topic, one.partition): one.offset for one in reversed(records)}
        delivery, self._topic = self._delivery, records[0].topic
        # What was fetched and is not handled yet still counts as lag.
        delivery.in_hand |= first_offsets
        self._call_next, self._message = call_next, message
        try:
            if not delivery.strict:
                await self._refresh_topic_id(records)
            body: Any = message.body
            await self._take(list(zip(records, body, strict=True)))
        except BaseException as error:
            for place in first_offsets:
                delivery.expected.pop(place, None)
            if delivery.strict or not isinstance(error, Exception):
                raise
            if not isinstance(error, NackMessage):
                log.exception("batch.failed", topic=self._topic, events=len(records))
                # FastStream brings the batch again at once.
                await delivery.stops_within(random.uniform(1, 2))
            raise NackMessage from None
        finally:
            for place in first_offsets:
                delivery.in_hand.pop(place, None)

    async def _refresh_topic_id(self, records: Sequence[ConsumerRecord]) -> None:
        """Ask Kafka for the topic's id if a partition does not continue where it ended: the topic may be a new one."""
        expected, goes_on = self._delivery.expected, True
        for record in records:
            place = TopicPartition(record.topic, record.partition)
            goes_on &= expected.get(place) == record.offset
            expected[place] = record.offset + 1

        async def ask() -> None:
            consumer: Any = self._message.consumer
            self._delivery.topic_ids[self._topic] = await consumer.topic_id(self._topic)

        if not goes_on and (failure := await self._retry_while_away(ask)):
            raise failure

    async def _take(self, batch: Sequence[tuple[ConsumerRecord, Received[Any] | Unreadable]]) -> None:
        """Handle each run of readable records; park unreadable ones in between, so that 'in a row' counts right."""
        readable: list[Taken] = []
        for record, event in batch:
            if isinstance(event, Unreadable):
                await self._handle(readable)
                await self._park(record, event.error, None)
                readable = []
            else:
                readable.append((record, event))
        await self._handle(readable)

    async def _handle(self, batch: Sequence[Taken]) -> None:
        """Handle *batch* in one transaction; halve it when it fails, until the events at fault are found."""
        if not batch:
            return
        failure = await self._try(batch)
        if failure is None:
            self._delivery.parked_in_a_row[self._topic] = 0
            telemetry.consumed.labels(batch[0][1].event.topic()).inc(len(batch))
        elif len(batch) == 1:
            ((record, received),) = batch
            await self._park(record, failure, received.event.tenant_id)
        else:
            middle = len(batch) // 2
            await self._handle(batch[:middle])
            await self._handle(batch[middle:])

    async def _try(self, batch: Sequence[Taken]) -> Exception | None:
        part = copy(self._message)
        part.raw_message = tuple(record for record, _ in batch)
        part.body = events = [received for _, received in batch]
        topic = model_of(self._topic).topic()

        async def handle() -> None:
            async with self._delivery.database.transaction() as tx:
                with self.context.scope("tx", tx):
                    await self._call_next(part)
                if not self._delivery.strict:
                    topic_id = self._delivery.topic_ids[self._topic]
                    await dead_letters.discard_handled(tx, part.raw_message, topic=topic, topic_id=topic_id)

        # A batch has many causes and is a trace of its own; a single event continues its trace.
        parent = events[0].traceparent if len(events) == 1 else None
        with telemetry.span(f"consume {topic}", parent, events=len(events)):
            failure = await self._retry_while_away(handle)
            if failure and self._delivery.strict:
                raise failure
            if failure:
                # The traceback is worth its length once, when the one event at fault is known.
                log.warning(
                    "handler.failed", topic=topic, events=len(events), exc_info=failure if len(events) == 1 else None
                )
        return failure

    async def _retry_while_away(self, job: Callable[[], Awaitable[None]]) -> Exception | None:
        """Run *job*, again and again while PostgreSQL (or Kafka) is away; return what else it raised."""
        delivery, delay = self._delivery, FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    await job()
                except Exception as error:
                    if not (is_transient(error) or isinstance(error, KafkaError)):
                        return error
                    self._set_waiting(True)
                    telemetry.redelivered.labels(type(error).__name__).inc()
                    log.warning(
                        _what_is_away(error),
                        topic=self._topic,
                        error=type(error).__name__,
                        reason=reason_of(error),
                        retry_in=delay,
                    )
                    if await delivery.stops_within(random.uniform(delay / 2, delay)):
                        raise NackMessage from error
                    delay = min(delay * 2, LONGEST_PAUSE_SECONDS)
                else:
                    return None
        finally:
            self._set_waiting(False)

    def _set_waiting(self, waiting: bool) -> None:
        topics = self._delivery.waiting
        topics.add(self._topic) if waiting else topics.discard(self._topic)
        telemetry.consumer_waiting.set(bool(topics))

    async def _park(self, record: ConsumerRecord, error: Exception, tenant_id: UUID | None) -> None:
        """Park *record* as a dead letter; halt the topic after too many in a row."""
        delivery, model = self._delivery, model_of(self._topic)
        if delivery.strict:
            raise error
        letter_id: int | None = None

        async def park() -> None:
            nonlocal letter_id
            topic_id = delivery.topic_ids[self._topic]
            async with delivery.database.transaction() as tx:
                letter_id = await dead_letters.park(
                    tx, record, error, topic=model.topic(), topic_id=topic_id, tenant_id=tenant_id
                )

        if failure := await self._retry_while_away(park):
            raise failure
        delivery.parked_in_a_row[self._topic] += 1
        telemetry.parked.labels(model.topic(), type(error).__name__).inc()
        log.error(
            "event.parked",
            dead_letter=f"{delivery.service}:{letter_id}" if letter_id else None,
            topic=self._topic,
            partition=record.partition,
            offset=record.offset,
            error=type(error).__name__,
            reason=dead_letters.reason_of(error),
        )
        if self._topic in delivery.halted:
            telemetry.consumer_halted.labels(self._topic).set(1)
            in_a_row = delivery.parked_in_a_row[self._topic]
            log.critical("consumer.halted", topic=self._topic, parked_in_a_row=in_a_row, error=type(error).__name__)
            # Neither commit nor go on: a restart, once the fault is repaired, takes this batch again.
            await delivery.stopping.wait()
            raise NackMessage


def _what_is_away(error: Exception) -> str:
    if isinstance(error, KafkaError):
        return "kafka.unavailable"
    # Two handlers of one service that met on the same rows: PostgreSQL is there, and the next try passes.
    conflict = isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError)
    return "handler.retried" if conflict else "postgres.unavailable"
