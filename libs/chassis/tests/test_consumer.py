"""Nothing that comes out of Kafka is lost, and nothing unreadable or poisonous stops the rest."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from faststream.kafka import KafkaRouter
from hypothesis import given
from hypothesis import strategies as st

from backstop_contracts import CaseStatus, CaseUpdated, SubmissionFailed, headers_for
from chassis import telemetry
from chassis.consumer import Consumer
from chassis.events import BATCH, Received, Tx, _without_nul
from chassis.postgres import Database
from chassis.topics import EVENT_BYTES, create_topics

TENANT = uuid4()
HALT_AFTER = 100


@pytest.fixture
async def prefix(kafka_bootstrap: str) -> str:
    """Topics of their own for each test."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=1, replication=1)
    return prefix


@pytest.fixture
async def db(database: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Open a database with a table of what was handled."""
    (tmp_path / "0001_seen.sql").write_text("CREATE TABLE seen (case_id uuid PRIMARY KEY, seq serial)")
    db = Database(database, schema="triage")
    await db.open(tmp_path)
    yield db
    await db.close()


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    """Someone who publishes whatever it likes."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    yield producer
    await producer.stop()


def case_updated(case_id: UUID | None = None) -> CaseUpdated:
    """Make an event."""
    return CaseUpdated(
        tenant_id=TENANT,
        case_id=case_id or uuid4(),
        change="opened",
        status=CaseStatus.OPEN,
        report_count=1,
        changed_at=datetime.now(UTC),
    )


async def publish(producer: AIOKafkaProducer, prefix: str, event: CaseUpdated, **overrides: Any) -> None:
    """Publish *event* as the relay does, except for *overrides* of the record's parts."""
    record = {
        "key": event.key.encode(),
        "value": event.model_dump_json().encode(),
        "headers": [(name, value.encode()) for name, value in headers_for(event, source="/test").items()],
        **overrides,
    }
    await producer.send_and_wait(f"{prefix}.case-updated", **record)


Handler = Callable[..., Awaitable[None]]


async def remember(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
    """Handle events by writing down their cases."""
    await tx.execute(
        "INSERT INTO seen SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING", [r.event.case_id for r in cases]
    )


@asynccontextmanager
async def consuming(
    db: Database, kafka_bootstrap: str, prefix: str, handler: Handler, *, service: str = "triage"
) -> AsyncIterator[Consumer]:
    """Run a consumer for the time of a block."""
    router = KafkaRouter()
    router.subscriber("case-updated", **BATCH)(handler)
    consumer = Consumer(
        router,
        service=service,
        database=db,
        kafka_bootstrap=kafka_bootstrap,
        topic_prefix=prefix,
        max_batch=500,
        halt_after=HALT_AFTER,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 30) -> None:
    """Wait for *condition*."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def seen(db: Database) -> set[UUID]:
    """Return the cases that were handled."""
    return {row["case_id"] for row in await db.pool.fetch("SELECT case_id FROM seen")}


async def letters(db: Database, count: int = 1) -> list[Any]:
    """Return the unresolved dead letters as soon as there are *count*."""

    async def are_there() -> bool:
        return await db.pool.fetchval("SELECT count(*) FROM dead_letters WHERE state = 'unresolved'") >= count

    await until(are_there)
    found = await db.pool.fetch("SELECT * FROM dead_letters WHERE state = 'unresolved' ORDER BY \"offset\"")
    assert len(found) == count
    return list(found)


async def test_events_are_handled(db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer) -> None:
    """Each published event reaches its handler with its envelope."""
    events = [case_updated() for _ in range(20)]
    received: list[Received[CaseUpdated]] = []

    async def keep(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        received.extend(cases)
        await remember(cases, tx)

    async with consuming(db, kafka_bootstrap, prefix, keep):
        for event in events:
            await publish(producer, prefix, event)
        await until(lambda: _all_seen(db, events))

    assert [one.event for one in received] == events
    assert {one.envelope.type for one in received} == {"io.backstop.case-updated.v1"}


async def _all_seen(db: Database, events: Sequence[CaseUpdated]) -> bool:
    return {event.case_id for event in events} <= await seen(db)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"value": b'{"tenant_id": '}, "ValidationError"),
        ({"value": b""}, "ValidationError"),
        ({"value": None}, "ValidationError"),
        ({"key": b"\xff", "value": b""}, "ValidationError"),
        ({"value": b"\xff\x00"}, "ValidationError"),
        ({"headers": []}, "NotAnEventError"),
        ({"headers": [("ce_id", b"\xff\xfe")]}, "NotAnEventError"),
        ({"headers": [("ce_type", None)]}, "NotAnEventError"),
        (
            {"headers": [(n, v.encode()) for n, v in headers_for(
                SubmissionFailed(
                    tenant_id=TENANT, submission_id=uuid4(), case_id=uuid4(), reason="refused", detail="",
                    failed_at=datetime.now(UTC),
                ), source="/test").items()]},
            "NotAnEventError",
        ),
    ],
    ids=[
        "cut JSON", "empty", "tombstone", "key not UTF-8", "not UTF-8",
        "no headers", "header not UTF-8", "null header", "other type",
    ],
)  # fmt: skip
async def test_an_unreadable_record_is_parked_as_it_is_and_its_neighbours_are_handled(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer, broken: dict[str, Any], error: str
) -> None:
    """A record that is no event goes to the dead letters with its bytes, its headers and the reason."""
    before, poison, after = case_updated(), case_updated(), case_updated()
    await publish(producer, prefix, before)
    await publish(producer, prefix, poison, **broken)
    await publish(producer, prefix, after)

    async with consuming(db, kafka_bootstrap, prefix, remember):
        await until(lambda: _all_seen(db, [before, after]))
        (letter,) = await letters(db)

    assert poison.case_id not in await seen(db)
    assert letter["key"] == broken.get("key", poison.key.encode())
    assert letter["value"] == broken.get("value", poison.model_dump_json().encode())
    if "headers" in broken:
        names = [name.decode() for name in letter["header_names"]]
        assert list(zip(names, letter["header_values"], strict=True)) == broken["headers"]
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("case-updated", 0, 1)
    assert (letter["error"], letter["tenant_id"]) == (error, None)


async def test_one_event_that_the_handler_cannot_take_is_parked_alone(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A failing event is found by halving its batch; all the others are handled."""
    events = [case_updated() for _ in range(30)]
    poison = events[17]

    async def fail_for_one(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        await remember(cases, tx)
        if any(one.event.case_id == poison.case_id for one in cases):
            raise ZeroDivisionError

    for event in events:
        await publish(producer, prefix, event)
    async with consuming(db, kafka_bootstrap, prefix, fail_for_one):
        await until(lambda: _all_seen(db, [event for event in events if event is not poison]))
        (letter,) = await letters(db)

    assert letter["value"] == poison.model_dump_json().encode()
    assert (letter["error"], letter["tenant_id"]) == ("ZeroDivisionError", TENANT)
    assert poison.case_id not in await seen(db)


async def test_while_postgresql_is_away_a_batch_waits_and_nothing_is_parked(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """An error that says nothing about the events is waited out."""
    event, failures = case_updated(), 3

    async def away_at_first(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise asyncpg.CannotConnectNowError("the database system is starting up")
        await remember(cases, tx)

    await publish(producer, prefix, event)
    async with consuming(db, kafka_bootstrap, prefix, away_at_first) as consumer:
        await until(lambda: _all_seen(db, [event]))
        assert not consumer.halted
    assert failures == 0


async def broken_deploy(_cases: list[Received[CaseUpdated]], _tx: Tx) -> None:
    """Handle nothing."""
    raise ZeroDivisionError


async def test_a_topic_that_parks_everything_stops_and_says_so_until_it_is_started_again(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """When the fault is not in the events, they stay in their topic, and what was parked of them is forgotten."""
    events = [case_updated() for _ in range(HALT_AFTER + 20)]
    for event in events:
        await publish(producer, prefix, event)
    halted = telemetry.consumer_halted.labels(f"{prefix}.case-updated")._value
    with structlog.testing.capture_logs() as logs:
        async with consuming(db, kafka_bootstrap, prefix, broken_deploy) as consumer:
            await until(lambda: _halted(consumer), 60)
            assert halted.get() == 1
            await letters(db, HALT_AFTER)
    (cry,) = [entry for entry in logs if entry["log_level"] == "critical"]
    assert (cry["event"], cry["error"]) == ("consumer.halted", "ZeroDivisionError")

    async with consuming(db, kafka_bootstrap, prefix, remember):
        assert halted.get() == 0
        await until(lambda: _all_seen(db, events))
    assert await letters(db, 0) == []


async def _halted(consumer: Consumer) -> bool:
    return bool(consumer.halted)


async def test_a_restart_of_a_topic_that_parks_everything_leaves_no_dead_letter_twice(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """The batch goes back to its topic, and is parked again in place of the letters of before."""
    for _ in range(HALT_AFTER):
        await publish(producer, prefix, case_updated())
    for _ in range(3):
        async with consuming(db, kafka_bootstrap, prefix, broken_deploy) as consumer:
            await until(lambda: _halted(consumer), 60)
            await letters(db, HALT_AFTER)


async def test_any_number_of_unreadable_records_between_good_ones_does_not_stop_a_consumer(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """Only what is parked in a row, with nothing handled between, is a sign of a fault elsewhere."""
    events = [case_updated() for _ in range(HALT_AFTER + 10)]
    for event in events:
        await publish(producer, prefix, event)
        await publish(producer, prefix, event, value=b"no JSON")
    async with consuming(db, kafka_bootstrap, prefix, remember) as consumer:
        await until(lambda: _all_seen(db, events))
        assert not consumer.halted
        await letters(db, len(events))


async def test_a_record_with_neither_key_nor_value_is_parked(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """Kafka takes such a record, though aiokafka's `send` does not."""
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=None, headers=[("x", None)])
    await (await producer.send_batch(batch, f"{prefix}.case-updated", partition=0))

    async with consuming(db, kafka_bootstrap, prefix, remember):
        (letter,) = await letters(db)
    assert (letter["key"], letter["value"]) == (None, None)
    assert (letter["header_names"], letter["header_values"]) == ([b"x"], [None])


async def test_the_largest_event_can_be_parked(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A dead letter is larger than its event, and may be."""
    large = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, max_request_size=EVENT_BYTES)
    await large.start()
    value = random.randbytes(EVENT_BYTES - 500)
    await large.send_and_wait(f"{prefix}.case-updated", value=value)
    await large.stop()
    after = case_updated()
    await publish(producer, prefix, after)
    async with consuming(db, kafka_bootstrap, prefix, remember):
        await until(lambda: _all_seen(db, [after]))
        (letter,) = await letters(db)
    assert letter["value"] == value


async def test_a_record_that_is_delivered_again_is_parked_once(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A letter that somebody has dealt with meanwhile stays dealt with."""
    await publish(producer, prefix, case_updated(), value=b"no JSON")
    for group in ("triage", "again"):
        async with consuming(db, kafka_bootstrap, prefix, remember, service=group):
            await letters(db)

    await db.pool.execute("UPDATE dead_letters SET state = 'dropped', resolved_by = 'me', resolved_at = now()")
    after = case_updated()
    await publish(producer, prefix, after)
    async with consuming(db, kafka_bootstrap, prefix, remember, service="once-more"):
        await until(lambda: _all_seen(db, [after]))
        assert await letters(db, 0) == []


async def test_letters_of_a_topic_that_was_made_anew_stand_beside_those_of_the_old_one(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """Its offsets begin at 0 again; Kafka's id of the topic tells them apart."""
    await publish(producer, prefix, case_updated(), value=b"old")
    async with consuming(db, kafka_bootstrap, prefix, remember):
        await letters(db)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    await admin.delete_topics([f"{prefix}.case-updated"])

    async def is_gone() -> bool:
        return f"{prefix}.case-updated" not in await admin.list_topics()

    await until(is_gone)
    await admin.close()
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=1, replication=1)

    another = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await another.start()
    await publish(another, prefix, case_updated(), value=b"new")
    await another.stop()
    async with consuming(db, kafka_bootstrap, prefix, remember):
        found = await letters(db, 2)
    assert {letter["value"] for letter in found} == {b"old", b"new"}
    assert {letter["offset"] for letter in found} == {0}


async def test_what_was_handled_is_not_delivered_to_the_next_member(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A consumer that stops commits what it handled."""
    first, second = case_updated(), case_updated()
    await publish(producer, prefix, first)
    async with consuming(db, kafka_bootstrap, prefix, remember):
        await until(lambda: _all_seen(db, [first]))

    received: list[UUID] = []

    async def keep(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        received.extend(one.event.case_id for one in cases)
        await remember(cases, tx)

    await publish(producer, prefix, second)
    async with consuming(db, kafka_bootstrap, prefix, keep):
        await until(lambda: _all_seen(db, [second]))
    assert received == [second.case_id]


async def test_topics_are_made_once_and_left_alone_afterwards(kafka_bootstrap: str) -> None:
    """Making topics again makes none."""
    prefix = f"test-{uuid4().hex[:8]}"
    made = await create_topics(kafka_bootstrap, prefix=prefix, partitions=2, replication=1)

    assert f"{prefix}.message-reported" in made
    assert await create_topics(kafka_bootstrap, prefix=prefix, partitions=2, replication=1) == []


@given(st.text() | st.sampled_from(["\\u0000", "\\\0", "\0\0", "\\\\u0000\0"]))
def test_a_nul_is_read_as_a_replacement_and_nothing_else_changes(text: str) -> None:
    """PostgreSQL keeps no NUL, and an event is not parked for one."""
    for value in (orjson.dumps({"text": text}), json.dumps({"text": text}).encode()):
        assert orjson.loads(_without_nul(value)) == {"text": text.replace("\0", "\ufffd")}
