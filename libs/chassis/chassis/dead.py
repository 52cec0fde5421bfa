"""
Dead letters: records that a service could not handle, kept byte for byte until an operator settles them.

Each service has one topic of them. Kafka cannot delete one record, so that a letter is settled is a record too: in the
letter's partition, behind it, so that no retention removes it first.
"""

import asyncio
import time as clock
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import RecordMetadata
from faststream.kafka.security import parse_security
from faststream.security import BaseSecurity
from pydantic import ValidationError

from backstop_contracts import NotAnEventError

EVENT_BYTES = 4 << 20
"""The largest record that a topic of events takes."""
LETTER_BYTES = EVENT_BYTES + (1 << 20)
"""The largest record that a topic of dead letters takes: any event, and why it is there."""
STALL_SECONDS = 30
"""Time without an answer from Kafka after which reading is given up."""

How: TypeAlias = Literal["replayed", "dropped", "returned"]
"""
What became of a letter. An operator replays or drops; a consumer returns: the record's batch was not committed, so the
record waits in its own topic.
"""
Headers: TypeAlias = Sequence[tuple[str, bytes | None]]

_MARK = "backstop-dead-"
_SETTLES = f"{_MARK}settles"


class DeadLetterError(Exception):
    """What was asked for cannot be done; the text says why, and nothing was changed."""


class Place(NamedTuple):
    """Where in its service's dead-letter topic a letter lies."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    One record that a service could not handle: as it was, where it came from, and why it is here.

    What the letter does not say, because another version or program wrote it, is None; `time` is then Kafka's.
    """

    service: str
    place: Place
    time: datetime
    topic: str | None
    source_partition: int | None
    source_offset: int | None
    error: str | None
    reason: str | None
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def id(self) -> str:
        """Name the letter: `<service>:<partition>:<offset>`."""
        return f"{self.service}:{self.place.partition}:{self.place.offset}"


@dataclass(frozen=True, slots=True)
class Settlement:
    """That the letter at *place* needs nobody any more."""

    place: Place
    how: str
    time: datetime


def topic_of(prefix: str, service: str) -> str:
    """Name the topic of a service's dead letters."""
    return f"{prefix}.{service}.dead"


def read(service: str, record: ConsumerRecord) -> DeadLetter | Settlement:
    """Read a record of a service's dead-letter topic. Never fails, whatever is in it."""
    # The last one counts: ours were added behind those that the record brought along.
    marks = {name.removeprefix(_MARK): _text(value) for name, value in record.headers if name.startswith(_MARK)}
    time = _time(marks.get("time")) or _kafka_time(record.timestamp)
    # A parked record always names its topic, so none of them can pass for a settlement.
    if "topic" not in marks and (settled := _place(marks.get("settles"))):
        return Settlement(settled, marks.get("how") or "settled", time)
    return DeadLetter(
        service=service,
        place=Place(record.partition, record.offset),
        time=time,
        topic=marks.get("topic") or None,
        source_partition=_number(marks.get("partition")),
        source_offset=_number(marks.get("offset")),
        error=marks.get("error"),
        reason=marks.get("reason"),
        key=record.key,
        value=record.value,
        headers=tuple(header for header in record.headers if not header[0].startswith(_MARK)),
    )


def reason_of(error: Exception) -> str:
    """Say what was wrong without repeating the data, which may be private."""
    if isinstance(error, ValidationError):
        parts = [f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['type']}" for e in error.errors(include_input=False)]
        return "; ".join(parts)[:500]
    return str(error)[:500] if isinstance(error, NotAnEventError) else type(error).__name__


async def open_producer(kafka_bootstrap: str, kafka_security: BaseSecurity | None = None) -> AIOKafkaProducer:
    """Connect a producer that waits for all replicas and repeats nothing. Raises KafkaError when Kafka is away."""
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka_bootstrap,
        **parse_security(kafka_security),
        acks="all",
        enable_idempotence=True,
        # Whatever a topic holds must fit into another one, and somebody may have published it compressed.
        compression_type="gzip",
        max_request_size=64 << 20,
    )
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer


async def park(producer: AIOKafkaProducer, topic: str, record: ConsumerRecord, error: Exception) -> Place:
    """Put *record* as it is into the dead-letter topic, with the reason; return when Kafka has acknowledged it."""
    why = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "error": type(error).__name__,
        "reason": reason_of(error),
        "time": datetime.now(UTC).isoformat(),
    }
    answer = await _send(producer, topic, record.key, record.value, [*record.headers, *_marks(why)])
    sent = await answer
    return Place(sent.partition, sent.offset)


async def settle(producer: AIOKafkaProducer, topic: str, places: Iterable[Place], how: How) -> None:
    """Write down that the letters at *places* need nobody any more; return when Kafka has acknowledged all."""
    now = datetime.now(UTC).isoformat()
    sent = [
        await producer.send(
            topic,
            b"",
            partition=place.partition,
            headers=_marks({"settles": f"{place.partition}:{place.offset}", "how": how, "time": now}),
        )
        for place in places
    ]
    await asyncio.gather(*sent)


class DeadLetters:
    """
    The dead letters of all services, to be read and settled while the context is entered.

    Belongs to no consumer group, and makes no topic. Entering, and everything else, raises aiokafka's KafkaError when
    Kafka is away.
    """

    def __init__(self, kafka_bootstrap: str, *, topic_prefix: str, kafka_security: BaseSecurity | None = None) -> None:
        self._bootstrap = kafka_bootstrap
        self._security = kafka_security
        self._prefix = topic_prefix
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap, **parse_security(self._security))
        try:
            await admin.start()
            self._partitions = {
                topic["topic"]: sorted(partition["partition"] for partition in topic["partitions"])
                for topic in await admin.describe_topics()
            }
        finally:
            await admin.close()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            **parse_security(self._security),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # Only what is there already is read; a fetch at the end of a partition would keep the next one waiting.
            fetch_max_wait_ms=10,
        )
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        # aiokafka's `stop` raises CancelledError when its tasks have not begun yet.
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()
        if self._producer:
            await self._producer.stop()

    @property
    def services(self) -> list[str]:
        """Name the services that have a topic for dead letters."""
        start, end = f"{self._prefix}.", ".dead"
        names = [topic.removeprefix(start).removesuffix(end) for topic in self._partitions if topic.endswith(end)]
        return sorted(name for name in names if topic_of(self._prefix, name) in self._partitions and "." not in name)

    async def read(self, service: str) -> AsyncIterator[tuple[DeadLetter, Settlement | None]]:
        """
        Read the letters that are there now, in the order of their ids, each with its settlement.

        Reads the topic twice, and keeps in memory what is settled, by place, and no more than one fetch of letters.
        Raises DeadLetterError when the service has no topic for them.
        """
        ranges = await self._ranges(service)
        settled = await self._settled(service, ranges)
        async for record in self._scan(service, ranges):
            letter = read(service, record)
            if isinstance(letter, DeadLetter):
                yield letter, settled.get(letter.place)

    async def find(self, service: str, places: Sequence[Place]) -> list[tuple[DeadLetter, Settlement | None]]:
        """Return the letters at *places*, each with its settlement. Raises DeadLetterError when one is not there."""
        ranges = await self._ranges(service)
        found = []
        for place in places:
            letter = None
            if place.offset in ranges.get(place.partition, ()):
                only = {place.partition: range(place.offset, place.offset + 1)}
                letter = next(iter([read(service, record) async for record in self._scan(service, only)]), None)
            if not isinstance(letter, DeadLetter):
                raise DeadLetterError(
                    f"There is no dead letter {service}:{place.partition}:{place.offset}."
                    " `backstop dead list` shows those that stand; Kafka deletes them after 30 days."
                )
            found.append(letter)
        # What settles a letter lies behind it.
        behind = {
            partition: range(
                min(place.offset for place in places if place.partition == partition), ranges[partition].stop
            )
            for partition in {place.partition for place in places}
        }
        settled = await self._settled(service, behind)
        return [(letter, settled.get(letter.place)) for letter in found]

    async def replay(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, str]]:
        """
        Publish *letters*, in this order, to the topics that they came from, and settle those that Kafka acknowledged.

        Key, value and headers are as they were before. Returns the letters that could not be published, with the
        reason; they stand as before. Raises KafkaError when Kafka goes away between the two steps: a letter may then
        be published and stand.
        """
        producer = await self._open_producer()
        refused, sent = [], []
        for letter in letters:
            if letter.topic is None:
                refused.append((letter, "it does not say which topic it came from"))
            elif letter.topic not in self._partitions:
                refused.append((letter, f"its topic {letter.topic} is gone"))
            else:
                try:
                    sent.append((letter, await _send(producer, letter.topic, letter.key, letter.value, letter.headers)))
                except KafkaError as error:
                    refused.append((letter, f"Kafka refused it: {type(error).__name__}"))
        answers = await asyncio.gather(*(answer for _, answer in sent), return_exceptions=True)
        published = []
        for (letter, _), answer in zip(sent, answers, strict=True):
            if isinstance(answer, BaseException):
                refused.append((letter, f"Kafka refused it: {type(answer).__name__}"))
            else:
                published.append(letter)
        for service in {letter.service for letter in published}:
            await self.settle(service, [letter.place for letter in published if letter.service == service], "replayed")
        return refused

    async def settle(self, service: str, places: Iterable[Place], how: How) -> None:
        """Write down that the letters at *places* need nobody any more."""
        await settle(await self._open_producer(), topic_of(self._prefix, service), places, how)

    async def _open_producer(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = await open_producer(self._bootstrap, self._security)
        return self._producer

    async def _ranges(self, service: str) -> dict[int, range]:
        """Return the offsets that each partition holds now."""
        topic = topic_of(self._prefix, service)
        if topic not in self._partitions:
            known = ", ".join(self.services) or "no service has any"
            raise DeadLetterError(f"There is no topic {topic}. Dead letters are kept for: {known}.")
        partitions = [TopicPartition(topic, number) for number in self._partitions[topic]]
        begin = await self._consumer.beginning_offsets(partitions)
        end = await self._consumer.end_offsets(partitions)
        return {place.partition: range(begin[place], end[place]) for place in partitions}

    async def _settled(self, service: str, ranges: Mapping[int, range]) -> dict[Place, Settlement]:
        found: dict[Place, Settlement] = {}
        async for record in self._scan(service, ranges):
            if not any(name == _SETTLES for name, _ in record.headers):
                continue
            settlement = read(service, record)
            if isinstance(settlement, Settlement):
                found.setdefault(settlement.place, settlement)
        return found

    async def _scan(self, service: str, ranges: Mapping[int, range]) -> AsyncIterator[ConsumerRecord]:
        """Read the records of *ranges*, one partition after the other."""
        for number, offsets in sorted(ranges.items()):
            if not offsets:
                continue
            partition = TopicPartition(topic_of(self._prefix, service), number)
            self._consumer.assign([partition])
            self._consumer.seek(partition, offsets.start)
            progress = clock.monotonic()
            while await asyncio.wait_for(self._consumer.position(partition), STALL_SECONDS) < offsets.stop:
                records = (await self._consumer.getmany(partition, timeout_ms=1000)).get(partition, [])
                if records:
                    progress = clock.monotonic()
                elif clock.monotonic() - progress > STALL_SECONDS:
                    raise KafkaTimeoutError(f"no answer for {STALL_SECONDS} s")
                for record in records:
                    if record.offset < offsets.stop:
                        yield record


async def _send(
    producer: AIOKafkaProducer, topic: str, key: bytes | None, value: bytes | None, headers: Headers
) -> "asyncio.Future[RecordMetadata]":
    sent: asyncio.Future[RecordMetadata]
    if key is not None or value is not None:
        sent = await producer.send(topic, key=key, value=value, headers=list(headers))
        return sent
    # `send` refuses a record that has neither key nor value, but Kafka takes and delivers one.
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=None, headers=list(headers))
    sent = await producer.send_batch(batch, topic, partition=min(await producer.partitions_for(topic)))
    return sent


def _marks(values: Mapping[str, object]) -> list[tuple[str, bytes]]:
    return [(f"{_MARK}{name}", str(value).encode(errors="replace")) for name, value in values.items()]


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 20 else None


def _place(text: str | None) -> Place | None:
    partition, offset = map(_number, (text or "").partition(":")[::2])
    return None if partition is None or offset is None else Place(partition, offset)


def _time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _kafka_time(milliseconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
