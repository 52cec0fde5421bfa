"""
CloudEvents 1.0 on Kafka, binary mode.

The value is the event's JSON and nothing else; every CloudEvents attribute is a header `ce_<name>` in UTF-8.
Source: CloudEvents 1.0.2, Kafka protocol binding.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from uuid import uuid4

from backstop_contracts.events import Event

CONTENT_TYPE = "application/json"

_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?")


class NotAnEventError(ValueError):
    """The record does not carry the CloudEvents attributes that an event must have."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The CloudEvents attributes that a consumer needs."""

    id: str
    source: str
    type: str
    time: datetime
    traceparent: str | None = None


@cache
def type_of(model: type[Event]) -> str:
    """Return the CloudEvents type of an event model, e.g. `io.backstop.message-reported.v1`."""
    return f"io.backstop.{model.TOPIC}.v{model.VERSION}"


@cache
def schema_of(model: type[Event]) -> str:
    """Return the schema of an event model: the CloudEvents dataschema, a URI."""
    return f"urn:backstop:schema:{model.TOPIC}:v{model.VERSION}"


def headers_for(
    event: Event,
    *,
    source: str,
    traceparent: str | None = None,
    time: datetime | None = None,
    event_id: str | None = None,
) -> dict[str, str]:
    """Return the Kafka headers of *event*: a new id and the present time unless they are given."""
    headers = {
        "ce_id": event_id or str(uuid4()),
        "ce_source": source,
        "ce_specversion": "1.0",
        "ce_type": type_of(type(event)),
        "ce_time": (time or datetime.now(UTC)).isoformat(),
        "ce_subject": str(event.subject),
        "ce_dataschema": schema_of(type(event)),
        "ce_partitionkey": event.key,
        "content-type": CONTENT_TYPE,
    }
    if traceparent:
        headers["traceparent"] = traceparent
    return headers


def read_headers(headers: Iterable[tuple[str, bytes | None]], expected: type[Event]) -> Envelope:
    """
    Read the attributes out of a record's headers. Headers of others do not matter, whatever is in them.

    Raises NotAnEventError when an attribute is missing, empty or not UTF-8, or names another type than *expected*.
    """
    found = dict(headers)
    specversion, named = _text(found, "ce_specversion"), _text(found, "ce_type")
    if specversion != "1.0":
        raise NotAnEventError(f"ce_specversion is {specversion!r}, not 1.0")
    if named != type_of(expected):
        raise NotAnEventError(f"ce_type is {named!r}, not {type_of(expected)!r}")
    trace = (found.get("traceparent") or found.get("ce_traceparent") or b"").decode(errors="replace")
    return Envelope(
        id=_text(found, "ce_id"),
        source=_text(found, "ce_source"),
        type=named,
        time=_time(_text(found, "ce_time")),
        traceparent=trace if _TRACEPARENT.fullmatch(trace) else None,
    )


def _text(headers: dict[str, bytes | None], name: str) -> str:
    try:
        text = (headers.get(name) or b"").decode()
    except UnicodeDecodeError:
        raise NotAnEventError(f"header {name} is not UTF-8") from None
    if not text:
        raise NotAnEventError(f"header {name} is missing or empty")
    return text


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise NotAnEventError(f"ce_time is {text!r}, not a time") from None
    if time.tzinfo is None:
        raise NotAnEventError("ce_time has no time zone")
    return time
