"""Topics: created once, identified by Kafka's own id, and moved past a record that cannot be read."""

import asyncio
from collections.abc import Mapping
from io import BytesIO
from typing import Any, ClassVar, TypeAlias
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    KafkaTimeoutError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
    UnsupportedCodecError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from aiokafka.structs import OffsetAndMetadata

from backstop_contracts import EVENTS

KafkaOptions: TypeAlias = Mapping[str, Any]
"""Options of aiokafka's clients: see `chassis.settings.KafkaSettings.kafka_options`."""

EVENT_BYTES = 4 << 20
"""The largest record that a topic takes."""
DAY_MS = 24 * 60 * 60 * 1000
UNREADABLE = (UnicodeDecodeError, CorruptRecordException, UnsupportedCodecError)
"""What aiokafka raises for a record that it cannot read, such as one with a header whose name is not UTF-8, or a batch
compressed with a codec that it does not know."""
ANSWER_MS = 10_000
"""Longest time that Kafka may take to hand over a record that is there."""


class SkipError(Exception):
    """A record cannot be skipped; the text says why, and nothing was changed."""


async def copies_for(kafka_bootstrap: str, kafka_options: KafkaOptions | None = None) -> int:
    """Return how many copies of each event this Kafka should keep: three, or as many as it has brokers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap, **(kafka_options or {}))
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
    kafka_options: KafkaOptions | None = None,
) -> list[str]:
    """
    Create the topics of all events that do not exist yet, and return the names of those created.

    A topic that exists stays as it is.
    """
    topics = [
        NewTopic(
            name=f"{prefix}.{model.topic()}",
            num_partitions=partitions,
            replication_factor=replication,
            topic_configs={
                "cleanup.policy": "delete",
                "retention.ms": str(model.RETENTION_DAYS * DAY_MS),
                "min.insync.replicas": "2" if replication > 2 else "1",
                "max.message.bytes": str(EVENT_BYTES),
            },
        )
        for model in EVENTS
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap, **(kafka_options or {}))
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


async def skip(
    kafka_bootstrap: str, *, group: str, topic: str, partition: int, offset: int, kafka_options: KafkaOptions | None
) -> int:
    """
    Move *group* past the unreadable record at *offset*, and return the offset at which it goes on.

    Later records of the same produced batch are skipped as well, because aiokafka reads a batch in order. Raises
    SkipError unless the group has no member, has reached *offset* and cannot read the record there.
    """
    place = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka_bootstrap,
        **(kafka_options or {}),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    await consumer.start()
    try:
        if partition not in (consumer.partitions_for_topic(topic) or await _partitions(consumer, topic)):
            raise SkipError(f"There is no partition {partition} of a topic {topic}.")
        consumer.assign([place])
        position = await consumer.committed(place)
        await _check_is_idle(kafka_bootstrap, group, kafka_options)
        if position is None:
            position = (await consumer.beginning_offsets([place]))[place]
        if position != offset:
            raise SkipError(f"The group {group} is at offset {position} of {topic}, partition {partition}.")
        end = (await consumer.end_offsets([place]))[place]
        if offset >= end:
            raise SkipError(f"There is no record at offset {offset} of {topic}, partition {partition}, yet.")
        if await _is_readable(consumer, place, offset):
            raise SkipError(f"The record at offset {offset} of {topic}, partition {partition}, can be read.")
        following = offset + 1
        while following < end and not await _is_readable(consumer, place, following):
            following += 1
        try:
            await consumer.commit({place: OffsetAndMetadata(following, "")})
        except UnknownMemberIdError:
            raise _active(group) from None
        return following
    finally:
        await consumer.stop()


async def _check_is_idle(kafka_bootstrap: str, group: str, kafka_options: KafkaOptions | None) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap, **(kafka_options or {}))
    try:
        await admin.start()
        for attempt in range(50):
            code = await _state_of(admin, group)
            if not code:
                return
            if not for_code(code).retriable or attempt == 49:
                raise for_code(code)(f"group {group}")
            await asyncio.sleep(0.2)  # the group's coordinator is still being chosen, or has just moved
    finally:
        await admin.close()


async def _state_of(admin: AIOKafkaAdminClient, group: str) -> int:
    """Return 0 when *group* has no members, or the code of Kafka's error. Raises SkipError when it has some."""
    for answer in await admin.describe_consumer_groups([group]):
        for code, _, state, *_ in answer.groups:
            # Of a group that was never there Kafka says Dead, and newer versions an error besides.
            if state in ("Empty", "Dead"):
                continue
            if not code:
                raise _active(group)
            return int(code)
    return 0


def _active(group: str) -> SkipError:
    return SkipError(f"The group {group} has members: stop every replica of the service, and try again.")


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    await consumer._client.add_topic(topic)  # noqa: SLF001 - there is no public way to ask about a topic not assigned
    return consumer.partitions_for_topic(topic) or set()


async def _is_readable(consumer: AIOKafkaConsumer, place: TopicPartition, offset: int) -> bool:
    consumer.seek(place, offset)
    try:
        if await consumer.getmany(place, timeout_ms=ANSWER_MS, max_records=1):
            return True
    except UNREADABLE:
        return False
    raise KafkaTimeoutError(f"no record within {ANSWER_MS} ms")


async def topic_id(client: AIOKafkaClient, topic: str) -> UUID:
    """
    Return the id that Kafka has given to *topic*. Raises KafkaError.

    A topic that was deleted and made anew has the same name and the same offsets, but another id.
    """
    answer = await client.send(client.get_random_node(), _DescribeTopics(topic))
    for code, _, found, *_ in answer.topics:
        if code:
            raise for_code(code)(topic)
        return UUID(bytes=found)
    raise KafkaError(f"Kafka says nothing about {topic}")


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


# Metadata in version 10, which is the first to tell ids (KIP-516, Kafka 2.8); aiokafka knows it up to version 5.


class _DescribeTopicsAnswer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _DescribeTopicsRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION: ClassVar[bool] = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _DescribeTopicsAnswer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _DescribeTopics(Request[_DescribeTopicsRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_DescribeTopicsRequest]) -> _DescribeTopicsRequest:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, False, {})
