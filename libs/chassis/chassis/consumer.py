"""The consumer of one service: its subscribers, started side by side, and how they are doing."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaRouter
from faststream.kafka.subscriber.usecase import BatchSubscriber

from chassis import telemetry
from chassis.delivery import Delivery
from chassis.fetcher import Fetcher
from chassis.postgres import Database
from chassis.subscribing import BATCH, Received, WiringError, decode, model_of, parse
from chassis.topics import DAY_MS

log = structlog.get_logger()

STUCK_SAMPLES = 24
"""
Samples (one every 5 s) without progress while records wait and Kafka answers, after which the process asks to be
restarted. Counted in samples, not seconds, so that a process that was suspended gets the same allowance.
"""


Ends = dict[TopicPartition, tuple[int, int]]
"""Of partitions: the position up to which this member has fetched, and the end."""


class Consumer:
    """
    Runs the subscribers of *router*, each with a consumer and a group of its own: `<prefix>.<service>.<topic>`.

    So a topic that waits, is halted or cannot be read stops no other. *context* holds what handlers ask for by name.
    Raises WiringError when a handler does not fit its topic.
    """

    def __init__(
        self,
        router: KafkaRouter,
        *,
        service: str,
        database: Database,
        kafka_bootstrap: str,
        kafka_options: Mapping[str, Any] | None = None,
        topic_prefix: str,
        max_batch: int,
        session_seconds: float = 30,
        halt_after: int,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self._delivery = Delivery(database, service=service, halt_after=halt_after)
        self._session_ms = int(session_seconds * 1000)
        self._options = kafka_options or {}
        self._broker = make_broker(
            router,
            self._delivery,
            prefix=topic_prefix,
            service=service,
            context=context or {},
            bootstrap_servers=kafka_bootstrap,
        )
        self._subscribers = {subscriber.topic_names[0]: subscriber for subscriber in subscribers_of(self._broker)}
        self._unmoved: dict[TopicPartition, tuple[int, int]] = {}
        for topic, subscriber in self._subscribers.items():
            subscriber.max_records = max_batch
            telemetry.consumer_halted.labels(topic).set(0)

    @property
    def topics(self) -> list[str]:
        """Return the topics, with the prefix."""
        return sorted(self._subscribers)

    async def start(self) -> None:
        """Join the groups, all at once; each is tried again while Kafka is away, until `stop` is called."""
        await self._broker.connect()
        config = self._broker.config.broker_config
        # FastStream's own way to make a consumer, with ours in the place of aiokafka's. It has no public name.
        config.builder = partial(self._make_consumer, dict(config.builder.keywords))  # type: ignore[attr-defined]
        # `broker.start()` starts one after the other, and each may wait for a rebalance.
        await asyncio.gather(*map(self._start_when_available, self._subscribers.values()))

    def _make_consumer(self, connection: Mapping[str, Any], **options: Any) -> Fetcher:
        ours = {
            "session_timeout_ms": self._session_ms,
            "heartbeat_interval_ms": self._session_ms // 10,
            # A batch that waits for PostgreSQL is not a reason to leave the group.
            "max_poll_interval_ms": DAY_MS,
        }
        return Fetcher(**{**connection, **options, **ours, **self._options})

    async def _start_when_available(self, subscriber: BatchSubscriber) -> None:
        while not self._delivery.stopping.is_set():
            try:
                await subscriber.start()
            except (KafkaError, OSError) as error:
                await subscriber.stop()
                log.warning("kafka.unavailable", topic=subscriber.topic_names[0], error=type(error).__name__)
                await self._delivery.stops_within(1)
            except BaseException:
                await subscriber.stop()
                raise
            else:
                return

    async def stop(self) -> None:
        """Finish the batches in hand, commit, leave the groups. A batch that waits is left to the next member."""
        self._delivery.stopping.set()
        await asyncio.wait_for(self._broker.stop(), 30)

    @property
    def halted(self) -> set[str]:
        """Return the topics that are halted: see Delivery."""
        return self._delivery.halted

    @property
    def waiting(self) -> set[str]:
        """Return the topics of which a batch waits for PostgreSQL."""
        return self._delivery.waiting

    @property
    def unreadable(self) -> dict[TopicPartition, int]:
        """Return the partitions that stand at a record that cannot be read, each with that record's offset."""
        return {place: offset for fetcher in self._fetchers() for place, offset in fetcher.unreadable.items()}

    @property
    def unassigned(self) -> set[str]:
        """Return the topics of which this member has not been assigned its partitions yet (it may get none)."""
        return {topic for topic, subscriber in self._subscribers.items() if not _is_assigned(subscriber.consumer)}

    @property
    def stuck(self) -> bool:
        """Return whether records have waited in some partition for STUCK_SAMPLES samples without progress."""
        return any(samples > STUCK_SAMPLES for _, samples in self._unmoved.values())

    async def sample_lag(self, timeout_seconds: float) -> None:
        """
        Measure how many records of this member's partitions are not handled yet: the lag, and whether it is stuck.

        If Kafka does not answer for a topic (for example, a deleted one), the last known lag is kept. Raises KafkaError
        or TimeoutError if it answers for none within *timeout_seconds*.
        """
        try:
            async with asyncio.timeout(timeout_seconds / 2):
                # One question for all topics: with one for each an idle service would do little else.
                found = await _ends(list(self._fetchers()))
        except (KafkaError, TimeoutError):
            found = await self._ends_by_topic(timeout_seconds / 2)
        else:
            # Partitions that another member has now are none of this member's lag.
            telemetry.consumer_lag.clear()
        self._record_lag(found)

    async def _ends_by_topic(self, timeout_seconds: float) -> Ends:
        fetchers = [fetcher for fetcher in self._fetchers() if fetcher.assignment()]
        jobs = [asyncio.wait_for(_ends([fetcher]), timeout_seconds) for fetcher in fetchers]
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        found: Ends = {}
        failed: dict[str, BaseException] = {}
        for fetcher, answer in zip(fetchers, answers, strict=True):
            if isinstance(answer, BaseException):
                failed |= {place.topic: answer for place in fetcher.assignment()}
            else:
                found |= answer
        if failed and not found:
            self._unmoved.clear()
            raise next(iter(failed.values()))
        for topic, error in failed.items():
            log.warning("consumer.lag_unknown", topic=topic, error=type(error).__name__)
        return found

    def _record_lag(self, found: Ends) -> None:
        unreadable, in_hand = self.unreadable, self._delivery.in_hand
        excused = self.waiting | self.halted
        telemetry.consumer_unreadable.clear()
        for place in unreadable:
            telemetry.consumer_unreadable.labels(place.topic, place.partition).set(1)
        unmoved = {}
        for place, (position, end) in found.items():
            done = in_hand.get(place, position)
            telemetry.consumer_lag.labels(place.topic, place.partition).set(max(0, end - done))
            before, samples = self._unmoved.get(place, (None, 0))
            is_waiting = done < end and place.topic not in excused and place not in unreadable
            unmoved[place] = (done, samples + 1 if is_waiting and done == before else 0)
        self._unmoved = unmoved

    def _fetchers(self) -> Iterable[Fetcher]:
        for subscriber in self._subscribers.values():
            if isinstance(subscriber.consumer, Fetcher):
                yield subscriber.consumer


def make_broker(
    router: KafkaRouter, delivery: Delivery, *, prefix: str, service: str, context: Mapping[str, Any], **options: Any
) -> KafkaBroker:
    """
    Make FastStream's broker for the subscribers of *router*, each in a consumer group of its own.

    *context* holds what handlers ask for by name. Raises WiringError when a handler does not fit its topic.
    """
    broker = KafkaBroker(
        options.pop("bootstrap_servers", "localhost"),
        client_id=f"backstop-{service}",
        middlewares=[delivery],
        parser=parse,
        decoder=decode,
        consumer_only=True,
        allow_auto_create_topics=False,
        graceful_timeout=20,
        logger=_Log(),
        **options,
    )
    broker.include_router(_copy(router), prefix=f"{prefix}.")
    for name, value in context.items():
        broker.context.set_global(name, value)
    topics: set[str] = set()
    for subscriber in broker.subscribers:
        topic = _check(subscriber, {"tx", *context}).removeprefix(f"{prefix}.")
        if topic in topics:
            raise WiringError(f"{topic} has two handlers")
        topics.add(topic)
    for batches in subscribers_of(broker):
        batches.group_id = f"{prefix}.{service}.{batches.topic_names[0].removeprefix(f'{prefix}.')}"
    return broker


def subscribers_of(one: KafkaBroker | KafkaRouter) -> list[BatchSubscriber]:
    """Return the subscribers that take batches, which in a broker of `make_broker` is all of them."""
    return [subscriber for subscriber in one.subscribers if isinstance(subscriber, BatchSubscriber)]


def _copy(router: KafkaRouter) -> KafkaRouter:
    """Return a copy of the router. Including a router changes its topics permanently, and the original is global."""
    copy = KafkaRouter()
    declared: Any = router.subscribers
    for subscriber in declared:
        name = ", ".join(subscriber.topic_names)
        if (
            not isinstance(subscriber, BatchSubscriber)
            or len(subscriber.topic_names) != 1
            or len(subscriber.calls) != 1
        ):
            raise WiringError(f"{name}: a subscriber takes the batches of one topic, with **BATCH")
        if subscriber.ack_policy is not AckPolicy.NACK_ON_ERROR or not subscriber._no_reply:  # noqa: SLF001 - it has no public name
            raise WiringError(f"{name}: declare the subscriber with **BATCH, or events are lost")
        copy.subscriber(name, **BATCH)(subscriber.calls[0].handler._declared_call)  # noqa: SLF001 - as above
    return copy


def _check(subscriber: Any, known: set[str]) -> str:
    """Return the topic of *subscriber*. Raises WiringError unless its handler takes what Delivery gives it."""
    name: str = subscriber.topic_names[0]
    subscriber._build_fastdepends_model()  # noqa: SLF001 - as FastStream does when it starts
    (call,) = subscriber.calls
    hints = get_type_hints(call.handler._declared_call)  # noqa: SLF001 - it has no public name
    event: Any = model_of(name)
    wanted = list[Received[event]]
    if not call.dependant:
        raise WiringError(f"{name}: FastDepends is off")
    events = [parameter.field_name for parameter in call.dependant.flat_params]
    if [hints.get(event) for event in events] != [wanted]:
        raise WiringError(f"{name}: besides what is injected a handler takes its events alone, as {wanted}")
    asked = {field.name or name for name, field in call.dependant.custom_fields.items()}
    if missing := asked - known:
        raise WiringError(f"{name}: nobody provides {', '.join(sorted(missing))}")
    return name


async def _ends(fetchers: Sequence[Fetcher]) -> Ends:
    places = [place for fetcher in fetchers for place in fetcher.assignment()]
    if not places:
        return {}
    ends = await fetchers[0].end_offsets(places)
    return {
        place: (await fetcher.position(place), ends[place])
        for fetcher in fetchers
        for place in fetcher.assignment()
        if place in ends
    }


def _is_assigned(consumer: Any) -> bool:
    # There is no public way to ask. Until it is started a consumer has no coordinator.
    coordinator = consumer._coordinator if isinstance(consumer, Fetcher) else None  # noqa: SLF001
    return coordinator is not None and not coordinator.need_rejoin(consumer._subscription.subscription)  # noqa: SLF001


class _Log:
    """Passes on only FastStream's errors. Its warning that topics are not created is expected."""

    def log(self, level: int, msg: Any, /, *, exc_info: Any = None, extra: Mapping[str, Any] | None = None) -> None:
        """Log one line."""
        if level >= logging.ERROR:
            log.log(level, "faststream.failed", detail=str(msg), exc_info=exc_info, **(extra or {}))
