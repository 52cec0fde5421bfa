"""Our headers are CloudEvents 1.0 to others, and nothing but our own events gets past `read_headers`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, from_kafka_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from backstop_contracts import (
    Event,
    MessageReported,
    NotAnEventError,
    VerdictReady,
    headers_for,
    read_headers,
    schema_of,
    type_of,
)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SOURCE = "/backstop/verdict-poller"
NOW = datetime(2026, 3, 3, 8, 58, 30, 123456, tzinfo=UTC)
TRACE = "00-0b6c5d2e8f7a4913a5c4e2d1f0987654-1f2e3d4c5b6a7988-01"
EVENT_ID = "0e2a4c6e-8091-4a3b-8c5d-7e9fa1b2c3d4"

GOOD = {
    "ce_id": EVENT_ID.encode(),
    "ce_source": SOURCE.encode(),
    "ce_specversion": b"1.0",
    "ce_type": b"io.backstop.verdict-ready.v1",
    "ce_time": b"2026-03-03T08:58:30Z",
}

either_key = pytest.mark.parametrize("model", [MessageReported, VerdictReady], ids=lambda model: model.__name__)
"""An event that is keyed by its message, and one that is keyed by its case."""


def example_of(model: type[Event]) -> Event:
    """Read the full example of an event."""
    return model.model_validate_json((EXAMPLES / f"{model.TOPIC}.v{model.VERSION}.json").read_bytes())


def published(event: Event) -> KafkaMessage:
    """Make the record that a service publishes, in the SDK's words."""
    headers = headers_for(event, source=SOURCE, traceparent=TRACE, time=NOW, event_id=EVENT_ID)
    return KafkaMessage(
        headers={name: value.encode() for name, value in headers.items()},
        key=event.key.encode(),
        value=event.model_dump_json().encode(),
    )


@either_key
def test_the_cncf_sdk_reads_every_attribute_of_what_we_publish(model: type[Event]) -> None:
    """To a consumer that knows CloudEvents only, our records are complete and correct events."""
    event = example_of(model)

    read = from_kafka_event(published(event))

    assert isinstance(read, CloudEvent)
    assert read.get_attributes() == {
        "id": EVENT_ID,
        "source": SOURCE,
        "specversion": "1.0",
        "type": type_of(model),
        "time": NOW,
        "subject": str(event.subject),
        "dataschema": schema_of(model),
        "datacontenttype": "application/json",
        "partitionkey": event.key,
    }
    assert read.get_data() == json.loads(event.model_dump_json())


@either_key
def test_the_partition_key_is_also_an_attribute(model: type[Event]) -> None:
    """A bridge that loses the record's key can make it again."""
    record = published(example_of(model))

    read = from_binary_event(KafkaMessage(headers=record.headers, key=None, value=record.value))

    assert read.get_extension("partitionkey") == example_of(model).key


@either_key
def test_what_the_cncf_sdk_writes_is_one_of_our_events(model: type[Event]) -> None:
    """Others may publish our events with the SDK: attributes, key and value arrive as if we had."""
    event = example_of(model)
    theirs = CloudEvent(
        attributes={
            "id": EVENT_ID,
            "source": "/somebody/else",
            "type": type_of(model),
            "time": NOW,
            "subject": str(event.subject),
            "dataschema": schema_of(model),
            "datacontenttype": "application/json",
            "partitionkey": event.key,
        },
        data=json.loads(event.model_dump_json()),
    )

    record = to_binary_event(theirs)
    envelope = read_headers(list(record.headers.items()), model)

    assert (envelope.id, envelope.source, envelope.time) == (EVENT_ID, "/somebody/else", NOW)
    assert envelope.traceparent is None
    assert record.key == event.key
    assert model.model_validate_json(record.value) == event
    assert set(record.headers) == set(headers_for(event, source="/"))


@either_key
def test_we_read_what_we_write(model: type[Event]) -> None:
    """An event's envelope arrives as it was made."""
    envelope = read_headers(list(published(example_of(model)).headers.items()), model)

    assert (envelope.id, envelope.source, envelope.type) == (EVENT_ID, SOURCE, type_of(model))
    assert envelope.time == NOW
    assert envelope.traceparent == TRACE


def test_an_event_gets_an_id_of_its_own_and_the_present_time() -> None:
    """Two events with the same content are two events."""
    event = example_of(VerdictReady)
    before = datetime.now(UTC)

    first, second = (headers_for(event, source=SOURCE) for _ in range(2))

    assert UUID(first["ce_id"]) != UUID(second["ce_id"])
    assert before <= datetime.fromisoformat(first["ce_time"]) <= datetime.now(UTC)
    assert "traceparent" not in first


def test_good_headers_are_read() -> None:
    """The headers that the tests below spoil are good ones."""
    assert read_headers(list(GOOD.items()), VerdictReady).id == EVENT_ID


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_attribute_is_refused(name: str) -> None:
    """Without any one of the attributes that a consumer needs, a record is not an event."""
    headers = [(kept, value) for kept, value in GOOD.items() if kept != name]

    with pytest.raises(NotAnEventError, match=name):
        read_headers(headers, VerdictReady)


@pytest.mark.parametrize("value", [None, b"", b"\xff\xfe", b"caf\xe9"], ids=["null", "empty", "utf-16", "latin-1"])
@pytest.mark.parametrize("name", GOOD)
def test_an_attribute_without_text_is_refused(name: str, value: bytes | None) -> None:
    """A header may be null or any bytes in Kafka; an attribute is text in UTF-8 and says something."""
    with pytest.raises(NotAnEventError):
        read_headers(list({**GOOD, name: value}.items()), VerdictReady)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ce_type", b"io.backstop.case-updated.v1", "io.backstop.case-updated.v1"),
        ("ce_type", b"io.backstop.verdict-ready.v2", "io.backstop.verdict-ready.v2"),
        ("ce_type", b"IO.BACKSTOP.VERDICT-READY.V1", "IO.BACKSTOP"),
        ("ce_specversion", b"0.3", "ce_specversion"),
        ("ce_specversion", b"1", "ce_specversion"),
        ("ce_time", b"2026-03-03T08:58:30", "ce_time has no time zone"),
        ("ce_time", b"2026-03-03", "ce_time has no time zone"),
        ("ce_time", b"yesterday", "yesterday"),
        ("ce_time", b"1772528310", "1772528310"),
    ],
)
def test_what_is_not_this_event_is_refused(name: str, value: bytes, told: str) -> None:
    """Another event, version or CloudEvents, and a time without a zone, are refused; the text says which it was."""
    with pytest.raises(NotAnEventError, match=told):
        read_headers(list({**GOOD, name: value}.items()), VerdictReady)


def test_no_headers_at_all_are_refused() -> None:
    """A record that somebody typed into a console producer is not an event."""
    with pytest.raises(NotAnEventError):
        read_headers([], VerdictReady)


def test_headers_of_others_do_not_matter() -> None:
    """Bridges and agents add headers in formats of their own; they are none of our business."""
    others = [("x-agent-context", b"\x00\x9f\xff"), ("connect.errors", None)]

    assert read_headers([*GOOD.items(), *others], VerdictReady).id == EVENT_ID


spoiled = st.one_of(
    st.none(),
    st.binary(),
    st.text().map(str.encode),
    st.datetimes().map(lambda time: time.isoformat().encode()),
    st.sampled_from([*GOOD.values(), b"io.backstop.message-reported.v1", TRACE.encode()]),
)
"""What may stand in a header: anything at all, or something good in the wrong place."""
headers_of_any_kind = st.lists(st.tuples(st.sampled_from([*GOOD, "traceparent", "content-type"]) | st.text(), spoiled))


@settings(max_examples=150)
@given(headers=headers_of_any_kind, good=st.sets(st.sampled_from(list(GOOD))), good_first=st.booleans())
def test_read_headers_raises_nothing_but_not_an_event(
    headers: list[tuple[str, bytes | None]], good: set[str], good_first: bool
) -> None:
    """Whatever comes in, a consumer meets an event of the expected type or NotAnEventError, and nothing else."""
    right: list[tuple[str, bytes | None]] = [(name, GOOD[name]) for name in sorted(good)]
    try:
        envelope = read_headers([*right, *headers] if good_first else [*headers, *right], MessageReported)
    except NotAnEventError:
        return

    assert envelope.type == type_of(MessageReported)
    assert envelope.time.utcoffset() is not None


@pytest.mark.parametrize("tail", [b"\0", b"\r\nX: y", b"-\0", b" x", b"-" + b"x" * 1000, "-ä".encode()])
def test_a_traceparent_with_anything_behind_it_is_none(tail: bytes) -> None:
    """It goes into a database and into the headers of other events: only its own form does."""
    headers = {**GOOD, "traceparent": TRACE.encode() + tail}
    assert read_headers(list(headers.items()), VerdictReady).traceparent is None
