"""
What a service's handlers.py is written with: subscribers of FastStream, each for the events of one topic.

    router = KafkaRouter()

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(updates: list[Received[CaseUpdated]], tx: Tx) -> None: ...

FastStream's and aiokafka's defaults lose records (auto-commit, a header that is not UTF-8). What is set here instead,
and why, is in docs/adr/0008-faststream.md.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

from aiokafka import ConsumerRecord
from faststream import AckPolicy, Context
from faststream.kafka import KafkaMessage

from backstop_contracts import EVENTS, Envelope, Event, read_headers

if TYPE_CHECKING:
    from chassis.postgres import Tx as _Connection
else:
    # FastDepends reads the type, and needs none for what the middleware passes.
    _Connection = Any

_ESCAPED_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""An even number of backslashes before it are backslashes of their own."""
_MODELS = {model.topic(): model for model in EVENTS}

E = TypeVar("E", bound=Event)
Tx: TypeAlias = Annotated[_Connection, Context("tx")]
"""The transaction in which a handler takes its batch. It commits when the handler returns."""


@dataclass(frozen=True, slots=True)
class Received(Generic[E]):
    """One event as it came out of Kafka."""

    event: E
    envelope: Envelope

    @property
    def traceparent(self) -> str | None:
        """The trace that the event belongs to."""
        return self.envelope.traceparent


class Batch(TypedDict):
    """The options of a subscriber, as `**BATCH`."""

    batch: Literal[True]
    ack_policy: AckPolicy
    no_reply: bool
    auto_offset_reset: Literal["earliest"]
    batch_timeout_ms: int


BATCH = Batch(
    batch=True,
    # A handler that returns commits its batch. On a broker this would not reach the subscribers of a router.
    ack_policy=AckPolicy.NACK_ON_ERROR,
    # Or a record with the header `reply_to` would have the answer published wherever its sender likes.
    no_reply=True,
    auto_offset_reset="earliest",
    # FastStream sleeps for as long after a fetch that found nothing; the fetch itself takes longer: see Fetcher.
    batch_timeout_ms=20,
)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is no event, and why."""

    error: Exception


class WiringError(TypeError):
    """A handler does not fit its topic: a fault of the program, found before any event could suffer from it."""


async def parse(
    records: tuple[ConsumerRecord, ...], original: Callable[[Any], Awaitable[KafkaMessage]]
) -> KafkaMessage:
    """
    Read each record by itself, as FastStream's parser of a batch: one that is no event does not fail the others.

    FastStream's own parser sees no header. It decodes them as UTF-8, and when one is not, the whole batch is neither
    handled nor rewound: it is lost (ag2ai/faststream#2458).
    """
    message = await original((replace(records[0], headers=()),))
    message.raw_message = tuple(records)
    message.body = [_read(record) for record in records]
    return message


async def decode(message: KafkaMessage) -> Any:
    """Return what `parse` has read, as FastStream's decoder."""
    return message.body


def _read(record: ConsumerRecord) -> Received[Any] | Unreadable:
    try:
        model = model_of(record.topic)
        envelope = read_headers(record.headers, model)
        return Received(model.model_validate_json(_without_nul(record.value or b"")), envelope)
    except WiringError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever leaves a parser makes FastStream take its own instead
        return Unreadable(error)


@lru_cache
def model_of(topic: str) -> type[Event]:
    """Return the event that *topic* holds, whatever its prefix. Raises WiringError when there is none."""
    name = topic
    while name not in _MODELS:
        _, dot, name = name.partition(".")
        if not dot:
            raise WiringError(f"{topic} is the topic of no event")
    return _MODELS[name]


def _without_nul(value: bytes) -> bytes:
    """Put U+FFFD in the place of each NUL in a JSON value: PostgreSQL keeps none, and that is no reason to park it."""
    return _ESCAPED_NUL.sub(rb"\1\\ufffd", value) if rb"\u0000" in value else value
