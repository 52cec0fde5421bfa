"""What tests of a service's handlers need: events handed over as Kafka does it, without Kafka."""

from datetime import datetime
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from faststream.kafka import KafkaBroker, KafkaRouter, TestKafkaBroker

from backstop_contracts import Event, headers_for
from chassis.consumer import make_broker, subscribers_of
from chassis.delivery import Delivery
from chassis.postgres import Database

_brokers: WeakKeyDictionary[Database, dict[KafkaRouter, KafkaBroker]] = WeakKeyDictionary()


class NotUtf8(str):
    """The name of a record's header that is not UTF-8, as some producers can write it."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        """Return bytes that are not UTF-8."""
        return b"\xff\xfe"


def batch_of_any_header(producer: AIOKafkaProducer) -> BatchBuilder:
    """Return a batch that takes headers with a name of `NotUtf8`: aiokafka's fast builder takes proper names only."""
    batch = producer.create_batch()
    batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 1 << 20)  # noqa: SLF001 - it has no public name
    return batch


async def deliver(
    router: KafkaRouter,
    database: Database,
    *events: Event,
    traceparent: str | None = None,
    time: datetime | None = None,
    **context: Any,
) -> None:
    """
    Hand *events* to the subscribers of *router*; *context* holds what their handlers ask for by name.

    Events of one topic that follow each other are one batch, and so one transaction. What a handler raises is raised,
    and nothing is parked; PostgreSQL is waited for.
    """
    broker = await _broker(router, database, context)
    for name, value in context.items():
        broker.context.set_global(name, value)
    for topic, batch in groupby(events, lambda event: f"test.{event.topic()}"):
        (subscriber,) = [one for one in subscribers_of(broker) if topic in one.topic_names]
        await subscriber.process_message(
            tuple(_record(topic, offset, event, traceparent, time) for offset, event in enumerate(batch))
        )


async def _broker(router: KafkaRouter, database: Database, context: dict[str, Any]) -> KafkaBroker:
    brokers = _brokers.setdefault(database, {})
    if router not in brokers:
        delivery = Delivery(database, service="test", halt_after=1, strict=True)
        broker = make_broker(router, delivery, prefix="test", service="test", context=context)
        async with TestKafkaBroker(broker):
            brokers[router] = broker
    return brokers[router]


def _record(topic: str, offset: int, event: Event, traceparent: str | None, time: datetime | None) -> Any:
    headers = headers_for(event, source="/test", traceparent=traceparent, time=time).items()
    pairs = tuple((name, value.encode()) for name, value in headers)
    key, value = event.key.encode(), event.model_dump_json().encode()
    return ConsumerRecord(topic, 0, offset, 0, 0, key, value, None, len(key), len(value), pairs)
