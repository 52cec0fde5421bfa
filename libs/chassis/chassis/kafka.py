"""
Consume events so that none is lost and none blocks the others; park what cannot be handled; make topics.

FastStream's and aiokafka's defaults lose records (auto-commit, a header that is not UTF-8, acks=1). What is set here
instead, and why, is in docs/adr/0002-consumer-policy.md.
"""

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.kafka.security import parse_security
from faststream.security import BaseSecurity
from pydantic import ValidationError

from backstop_contracts import EVENTS, Envelope, Event, NotAnEventError, read_headers
from chassis import dead, telemetry
from chassis.postgres import Database, Tx, is_transient, reason_of

log = structlog.get_logger()

STUCK_LOOKS = 24
"""
Looks (one every 5 s) without progress while records wait and Kafka answers, after which the process asks to be
restarted. Looks and not seconds: whoever was frozen is given the same time as anybody else.
"""
_ESCAPED_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""An even number of backslashes before it are backslashes of their own."""
DAY_MS = 24 * 60 * 60 * 1000

E = TypeVar("E", bound=Event)
Record: TypeAlias = ConsumerRecord


@dataclass(frozen=True, slots=True)
class Received(Generic[E]):
    """One event as it came out of Kafka."""

    event: E
    envelope: Envelope

    @property
    def traceparent(self) -> str | None:
        """The trace that the event belongs to."""
        return self.envelope.traceparent


Handler = Callable[[Tx, Sequence[Received[Any]]], Awaitable[None]]
"""Takes the events of one topic, in order, inside one transaction. Calls nothing outside PostgreSQL."""


class Consumer:
    """
    The consumer group of one service, over all the topics that it handles.

    A batch is handled topic by topic, in the order of *handlers*, each in one transaction. What then fails decides:
    PostgreSQL away - wait, with the group's heartbeat alive; anything else - find the one event by halving, park it
    in `<prefix>.<service>.dead`, and go on. When *halt_after* events in a row had to be parked, stop and say so: the
    batch is not committed, and the next start takes it again.
    """

    def __init__(
        self,
        handlers: Mapping[type[Event], Handler],
        *,
        service: str,
        database: Database,
        kafka_bootstrap: str,
        kafka_security: BaseSecurity | None = None,
        topic_prefix: str,
        max_batch: int,
        session_seconds: float = 30,
        halt_after: int,
    ) -> None:
        self.group = f"{topic_prefix}.{service}"
        self._handlers = {f"{topic_prefix}.{model.topic()}": (model, handler) for model, handler in handlers.items()}
        self.models = frozenset(handlers)
        self._service = service
        self._database = database
        self._bootstrap = kafka_bootstrap
        self._security = kafka_security
        self._dead_topic = dead.topic_of(topic_prefix, service)
        self._max_batch = max_batch
        self._session_ms = int(session_seconds * 1000)
        self._halt_after = halt_after
        self._broker: KafkaBroker | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._dead_letters: AIOKafkaProducer | None = None
        self._parked_in_a_row = 0
        self._parked_of_batch: list[dead.Place] = []
        self._stopping = asyncio.Event()
        self._unmoved: dict[TopicPartition, tuple[int, int]] = {}
        self._in_hand: dict[TopicPartition, int] = {}
        self._waiting = False
        # An alert on the increase sees the first dead letter only if there was a number before it.
        telemetry.dead_letters.labels(service)

    async def start(self) -> None:
        """Join the group. Raises aiokafka's KafkaError when Kafka is away; may then be called again."""
        broker = KafkaBroker(
            self._bootstrap,
            security=self._security,
            client_id=f"backstop-{self._service}",
            consumer_only=True,
            allow_auto_create_topics=False,
            logger=None,
            graceful_timeout=20,
        )
        subscriber = broker.subscriber(
            *self._handlers,
            group_id=self.group,
            batch=True,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            no_reply=True,
            auto_offset_reset="earliest",
            max_records=self._max_batch,
            batch_timeout_ms=30,
            session_timeout_ms=self._session_ms,
            heartbeat_interval_ms=self._session_ms // 10,
            # A batch that waits for PostgreSQL is not a reason to leave the group.
            max_poll_interval_ms=DAY_MS,
            parser=_without_headers,
            decoder=_raw,
        )
        subscriber(self._on_message)
        try:
            await broker.start()
        except BaseException:
            await broker.stop()
            raise
        self._broker, self._consumer = broker, subscriber.consumer
        telemetry.consumer_halted.set(0)

    async def stop(self) -> None:
        """Finish the batch in hand, commit, leave the group. A batch that waits is left to the next member."""
        self._stopping.set()
        if self._broker:
            await asyncio.wait_for(self._broker.stop(), 30)
        await self._forget_producer()

    @property
    def halted(self) -> bool:
        """Whether so many events were parked in a row that going on would only empty the topic into dead letters."""
        return self._parked_in_a_row >= self._halt_after

    @property
    def waiting(self) -> bool:
        """Whether a batch waits for PostgreSQL, or a dead letter for Kafka to take it."""
        return self._waiting

    def _wait(self, waiting: bool) -> None:
        self._waiting = waiting
        telemetry.consumer_waiting.set(waiting)

    def assigned(self) -> bool:
        """Whether the group has told this member its partitions (it may be told none)."""
        coordinator = getattr(self._consumer, "_coordinator", None)
        return (
            self._consumer is not None
            and coordinator is not None
            and not coordinator.need_rejoin(
                getattr(self._consumer, "_subscription").subscription  # noqa: B009 - no public way to ask
            )
        )

    @property
    def stuck(self) -> bool:
        """Whether records have waited in some partition for STUCK_LOOKS looks without progress."""
        return any(looks > STUCK_LOOKS for _, looks in self._unmoved.values())

    async def look(self, patience: float) -> None:
        """
        See how many records of this member's partitions are not handled yet: the lag, and whether it is stuck.

        Raises KafkaError or TimeoutError when Kafka does not say so within *patience* seconds; the last lag stays then.
        """
        if self._consumer is None:
            return
        try:
            async with asyncio.timeout(patience):
                ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
                fetched = {tp: await self._consumer.position(tp) for tp in ends}
        except BaseException:
            self._unmoved.clear()
            raise
        done = {tp: self._in_hand.get(tp, position) for tp, position in fetched.items()}
        telemetry.consumer_lag.clear()
        unmoved = {}
        for tp, end in ends.items():
            telemetry.consumer_lag.labels(tp.topic, tp.partition).set(max(0, end - done[tp]))
            before, looks = self._unmoved.get(tp, (None, 0))
            waits = done[tp] < end and not (self.waiting or self.halted)
            unmoved[tp] = (done[tp], looks + 1 if waits and done[tp] == before else 0)
        self._unmoved = unmoved

    async def _on_message(self, message: KafkaMessage) -> None:
        records: tuple[Record, ...] = message.raw_message
        # What was fetched and is not handled yet still counts as lag.
        self._in_hand = {TopicPartition(one.topic, one.partition): one.offset for one in reversed(records)}
        try:
            await self._handle_all(records)
        finally:
            self._in_hand = {}

    async def _handle_all(self, records: Sequence[Record]) -> None:
        by_topic: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            by_topic[record.topic].append(record)
        self._parked_of_batch = []
        try:
            for topic, (model, handler) in self._handlers.items():
                await self._take(by_topic[topic], model, handler)
        except Exception:
            # The batch goes back to its topics, and with it the events that were parked.
            if self._parked_of_batch:
                await dead.settle(await self._producer(), self._dead_topic, self._parked_of_batch, "returned")
            raise

    async def _take(self, records: Sequence[Record], model: type[Event], handler: Handler) -> None:
        """Handle what lies between unreadable records, and park those in their turn: so 'in a row' means it."""
        batch: list[tuple[Record, Received[Event]]] = []
        for record in records:
            try:
                envelope = read_headers(record.headers, model)
                received = Received(model.model_validate_json(_without_nul(record.value or b"")), envelope)
            except (NotAnEventError, ValidationError) as error:
                await self._handle(handler, batch)
                await self._park(record, error)
                batch = []
            else:
                batch.append((record, received))
        await self._handle(handler, batch)

    async def _handle(self, handler: Handler, batch: Sequence[tuple[Record, Received[Event]]]) -> None:
        """Handle *batch* in one transaction; halve it when it fails, until the events that fail stand alone."""
        if not batch:
            return
        failure = await self._try(handler, [received for _, received in batch])
        if failure is None:
            self._parked_in_a_row = 0
            telemetry.consumed.labels(batch[0][1].event.TOPIC).inc(len(batch))
        elif len(batch) == 1:
            await self._park(batch[0][0], failure)
        else:
            middle = len(batch) // 2
            await self._handle(handler, batch[:middle])
            await self._handle(handler, batch[middle:])

    async def _try(self, handler: Handler, events: list[Received[Event]]) -> Exception | None:
        # A batch has many causes and is a trace of its own; an event that stands alone goes on with its trace.
        parent = events[0].traceparent if len(events) == 1 else None
        with telemetry.span(f"consume {events[0].event.TOPIC}", parent, events=len(events)):
            return await self._try_until_postgres_is_there(handler, events)

    async def _try_until_postgres_is_there(self, handler: Handler, events: list[Received[Event]]) -> Exception | None:
        delay = 0.1
        while True:
            try:
                async with self._database.transaction() as tx:
                    await handler(tx, events)
            except Exception as error:
                if not is_transient(error):
                    self._wait(False)
                    # The traceback is worth its length once, when the one event at fault is known.
                    log.warning(
                        "handler.failed", topic=events[0].event.TOPIC, events=len(events), exc_info=len(events) == 1
                    )
                    return error
                self._wait(True)
                telemetry.redelivered.labels(type(error).__name__).inc()
                log.warning("postgres.unavailable", error=type(error).__name__, reason=reason_of(error), retry_in=delay)
                if await self._stops_within(random.uniform(delay / 2, delay)):
                    raise
                delay = min(delay * 2, 30.0)
            else:
                self._wait(False)
                return None

    async def _park(self, record: Record, error: Exception) -> None:
        """Put *record* as it is into the dead-letter topic; return when Kafka has acknowledged it."""
        place = await self._park_until_kafka_takes_it(record, error)
        self._parked_of_batch.append(place)
        self._parked_in_a_row += 1
        telemetry.parked.labels(record.topic, type(error).__name__).inc()
        telemetry.dead_letters.labels(self._service).inc()
        log.error(
            "event.parked",
            dead_letter=f"{self._service}:{place.partition}:{place.offset}",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error=type(error).__name__,
            reason=dead.reason_of(error),
        )
        if self.halted:
            telemetry.consumer_halted.set(1)
            log.critical("consumer.halted", parked_in_a_row=self._parked_in_a_row, error=type(error).__name__)
            # Neither commit nor go on: a restart, after the fault is mended, takes this batch again.
            await self._stopping.wait()
            raise error

    async def _park_until_kafka_takes_it(self, record: Record, error: Exception) -> dead.Place:
        delay = 0.1
        while True:
            try:
                place = await dead.park(await self._producer(), self._dead_topic, record, error)
            except KafkaError as refusal:
                self._wait(True)
                # A producer may remember a failure for good.
                await self._forget_producer()
                log.error("event.not_parked", topic=self._dead_topic, error=type(refusal).__name__, retry_in=delay)  # noqa: TRY400 - the traceback says no more
                if await self._stops_within(random.uniform(delay / 2, delay)):
                    raise
                delay = min(delay * 2, 30.0)
            else:
                self._wait(False)
                return place

    async def _producer(self) -> AIOKafkaProducer:
        if self._dead_letters is None:
            self._dead_letters = await dead.open_producer(self._bootstrap, self._security)
        return self._dead_letters

    async def _forget_producer(self) -> None:
        producer, self._dead_letters = self._dead_letters, None
        if producer:
            await producer.stop()

    async def _stops_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


def _without_nul(value: bytes) -> bytes:
    """Put U+FFFD in the place of each NUL in a JSON value: PostgreSQL keeps none, and that is no reason to park it."""
    return _ESCAPED_NUL.sub(rb"\1\\ufffd", value) if rb"\u0000" in value else value


async def _without_headers(
    records: tuple[Record, ...], original: Callable[[tuple[Record, ...]], Awaitable[KafkaMessage]]
) -> KafkaMessage:
    """
    Keep the records' headers away from FastStream's own parser.

    It decodes them as UTF-8, and when one is not, the whole batch is neither handled nor rewound: it is lost
    (ag2ai/faststream#2458). A `reply_to` header would also make it publish wherever a sender likes. One record is
    enough for what it makes of them: the records themselves are put back.
    """
    message = await original((replace(records[0], headers=()),))
    message.raw_message = records
    return message


async def _raw(message: KafkaMessage) -> Any:
    return message.raw_message


async def copies_for(kafka_bootstrap: str, kafka_security: BaseSecurity | None = None) -> int:
    """Return how many copies of each event this Kafka should keep: three, or as many as it has brokers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap, **parse_security(kafka_security))
    try:
        await admin.start()
        return min(3, len((await admin.describe_cluster())["brokers"]))
    finally:
        await admin.close()


async def create_topics(
    kafka_bootstrap: str,
    *,
    prefix: str,
    partitions: int,
    replication: int,
    services: Sequence[str],
    kafka_security: BaseSecurity | None = None,
) -> list[str]:
    """
    Create the topics of all events and of each service's dead letters; return the names of those that were new.

    Events are kept for the days that their model states, dead letters for 30; all by deletion, none compacted,
    because each event of a key counts. An existing topic is left as it is.
    """
    kept = {f"{prefix}.{model.topic()}": (model.RETENTION_DAYS, dead.EVENT_BYTES) for model in EVENTS}
    kept |= {dead.topic_of(prefix, service): (30, dead.LETTER_BYTES) for service in services}
    topics = [
        NewTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=replication,
            topic_configs={
                "cleanup.policy": "delete",
                "retention.ms": str(days * DAY_MS),
                "min.insync.replicas": "2" if replication > 2 else "1",
                "max.message.bytes": str(max_bytes),
            },
        )
        for name, (days, max_bytes) in kept.items()
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap, **parse_security(kafka_security))
    try:
        await admin.start()
        response = await admin.create_topics(topics)
    finally:
        await admin.close()
    created = []
    for name, code, message in response.topic_errors:
        if code == 0:
            created.append(name)
        elif code != TopicAlreadyExistsError.errno:
            raise for_code(code)(f"topic {name}: {message}")
    return created
