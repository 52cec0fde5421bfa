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
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from hypothesis import given
from hypothesis import strategies as st

from backstop_contracts import CaseStatus, CaseUpdated, SubmissionFailed, headers_for
from chassis import dead, telemetry
from chassis.kafka import Consumer, Handler, Received, _without_nul, create_topics
from chassis.postgres import Database, Tx

TENANT = uuid4()
HALT_AFTER = 100


@pytest.fixture
async def prefix(kafka_bootstrap: str) -> str:
    """Topics of their own for each test."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=1, replication=1, services=["triage"])
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


async def remember(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
    """Handle events by writing down their cases."""
    await tx.execute(
        "INSERT INTO seen SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING", [r.event.case_id for r in cases]
    )


@asynccontextmanager
async def consuming(db: Database, kafka_bootstrap: str, prefix: str, handler: Handler) -> AsyncIterator[Consumer]:
    """Run a consumer for the time of a block."""
    consumer = Consumer(
        {CaseUpdated: handler},
        service="triage",
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


async def dead_letters(kafka_bootstrap: str, prefix: str, count: int) -> list[Any]:
    """Return the first *count* dead letters."""
    consumer = AIOKafkaConsumer(
        f"{prefix}.triage.dead", bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return [await anext(consumer) for _ in range(count)]
    finally:
        await consumer.stop()


def header(record: Any, name: str) -> str:
    """Read one header of a record."""
    return dict(record.headers)[name].decode()


async def test_events_are_handled(db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer) -> None:
    """Each published event reaches its handler with its envelope."""
    events = [case_updated() for _ in range(20)]
    received: list[Received[CaseUpdated]] = []

    async def keep(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
        received.extend(cases)
        await remember(tx, cases)

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
        (letter,) = await dead_letters(kafka_bootstrap, prefix, 1)

    assert poison.case_id not in await seen(db)
    assert letter.key == broken.get("key", poison.key.encode())
    if "value" in broken:
        assert letter.value == broken["value"]
    for pair in broken.get("headers", []):
        assert pair in letter.headers
    assert header(letter, "backstop-dead-topic") == f"{prefix}.case-updated"
    assert header(letter, "backstop-dead-offset") == "1"
    assert header(letter, "backstop-dead-error") == error


async def test_one_event_that_the_handler_cannot_take_is_parked_alone(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A failing event is found by halving its batch; all the others are handled."""
    events = [case_updated() for _ in range(30)]
    poison = events[17]

    async def fail_for_one(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
        await remember(tx, cases)
        if any(one.event.case_id == poison.case_id for one in cases):
            raise ZeroDivisionError

    for event in events:
        await publish(producer, prefix, event)
    async with consuming(db, kafka_bootstrap, prefix, fail_for_one):
        await until(lambda: _all_seen(db, [event for event in events if event is not poison]))
        (letter,) = await dead_letters(kafka_bootstrap, prefix, 1)

    assert letter.value == poison.model_dump_json().encode()
    assert header(letter, "backstop-dead-error") == "ZeroDivisionError"
    assert poison.case_id not in await seen(db)


async def test_while_postgresql_is_away_a_batch_waits_and_nothing_is_parked(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """An error that says nothing about the events is waited out."""
    event, failures = case_updated(), 3

    async def away_at_first(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise asyncpg.CannotConnectNowError("the database system is starting up")
        await remember(tx, cases)

    await publish(producer, prefix, event)
    async with consuming(db, kafka_bootstrap, prefix, away_at_first) as consumer:
        await until(lambda: _all_seen(db, [event]))
        assert not consumer.halted
    assert failures == 0


async def broken_deploy(_tx: Tx, _cases: Sequence[Received[CaseUpdated]]) -> None:
    """Handle nothing."""
    raise ZeroDivisionError


async def test_a_consumer_that_parks_everything_stops_and_says_so_until_it_is_started_again(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """When the fault is not in the events, they stay in their topic instead of flooding the dead letters."""
    events = [case_updated() for _ in range(HALT_AFTER + 20)]
    for event in events:
        await publish(producer, prefix, event)
    parked_before = telemetry.dead_letters.labels("triage")._value.get()
    with structlog.testing.capture_logs() as logs:
        async with consuming(db, kafka_bootstrap, prefix, broken_deploy) as consumer:
            await until(lambda: _halted(consumer), 60)
            assert telemetry.consumer_halted._value.get() == 1
            assert len(await standing(kafka_bootstrap, prefix)) == HALT_AFTER
    (cry,) = [entry for entry in logs if entry["log_level"] == "critical"]
    assert (cry["event"], cry["error"]) == ("consumer.halted", "ZeroDivisionError")
    assert telemetry.dead_letters.labels("triage")._value.get() == parked_before + HALT_AFTER

    async with consuming(db, kafka_bootstrap, prefix, remember):
        assert telemetry.consumer_halted._value.get() == 0
        await until(lambda: _all_seen(db, events))
    assert await standing(kafka_bootstrap, prefix) == []


async def _halted(consumer: Consumer) -> bool:
    return consumer.halted


async def standing(kafka_bootstrap: str, prefix: str) -> list[dead.DeadLetter]:
    """Return the dead letters that are not settled."""
    async with dead.DeadLetters(kafka_bootstrap, topic_prefix=prefix) as letters:
        return [letter async for letter, settlement in letters.read("triage") if settlement is None]


async def test_a_restart_of_a_consumer_that_parks_everything_leaves_no_dead_letter_twice(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """The batch goes back to its topic, and its dead letters are settled as returned."""
    for _ in range(HALT_AFTER):
        await publish(producer, prefix, case_updated())
    for _ in range(3):
        async with consuming(db, kafka_bootstrap, prefix, broken_deploy) as consumer:
            await until(lambda: _halted(consumer), 60)
            assert len(await standing(kafka_bootstrap, prefix)) == HALT_AFTER
        assert await standing(kafka_bootstrap, prefix) == []


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
    assert len(await standing(kafka_bootstrap, prefix)) == len(events)


async def test_a_record_with_neither_key_nor_value_is_parked_and_can_be_replayed(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """Kafka takes such a record, though aiokafka's `send` does not."""
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=None, headers=[("x", None)])
    await (await producer.send_batch(batch, f"{prefix}.case-updated", partition=0))
    after = case_updated()
    await publish(producer, prefix, after)

    async with consuming(db, kafka_bootstrap, prefix, remember):
        await until(lambda: _all_seen(db, [after]))
        (letter,) = await standing(kafka_bootstrap, prefix)
        assert (letter.key, letter.value, letter.headers) == (None, None, (("x", None),))
        async with dead.DeadLetters(kafka_bootstrap, topic_prefix=prefix) as letters:
            assert await letters.replay([letter]) == []

        async def parked_again() -> bool:
            return [one.source_offset for one in await standing(kafka_bootstrap, prefix)] == [2]

        await until(parked_again)


async def test_the_largest_event_can_be_parked(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A dead letter is larger than its event, and may be."""
    large = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, max_request_size=dead.EVENT_BYTES)
    await large.start()
    value = random.randbytes(dead.EVENT_BYTES - 500)
    await large.send_and_wait(f"{prefix}.case-updated", value=value)
    await large.stop()
    after = case_updated()
    await publish(producer, prefix, after)
    async with consuming(db, kafka_bootstrap, prefix, remember):
        await until(lambda: _all_seen(db, [after]))
    (letter,) = await standing(kafka_bootstrap, prefix)
    assert letter.value == value


async def test_while_kafka_refuses_a_dead_letter_the_event_waits(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """An event that can be neither handled nor parked is not skipped, and the log says what is in the way."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()

    async def limit(max_bytes: int) -> None:
        name, value = "max.message.bytes", str(max_bytes)
        topic = ConfigResourceType.TOPIC, f"{prefix}.triage.dead"
        await admin.alter_configs([ConfigResource(*topic, {name: value})])

        async def in_force() -> bool:
            (answer,) = await admin.describe_configs([ConfigResource(*topic, {name: None})])
            ((*_, settings),) = answer.resources
            return (name, value) in [setting[:2] for setting in settings]

        # The controller acknowledges what brokers take over a little later.
        await until(in_force)

    await limit(100)
    event, poison = case_updated(), case_updated()
    await publish(producer, prefix, poison, value=b"no JSON")
    await publish(producer, prefix, event)
    with structlog.testing.capture_logs() as logs:
        async with consuming(db, kafka_bootstrap, prefix, remember) as consumer:

            async def told() -> bool:
                return consumer.waiting and any(entry["event"] == "event.not_parked" for entry in logs)

            await until(told)
            assert await seen(db) == set()
            await limit(1 << 20)
            await until(lambda: _all_seen(db, [event]))
    await admin.close()
    (letter,) = await standing(kafka_bootstrap, prefix)
    assert letter.key == poison.key.encode()


async def test_what_was_handled_is_not_delivered_to_the_next_member(
    db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer
) -> None:
    """A consumer that stops commits what it handled."""
    first, second = case_updated(), case_updated()
    await publish(producer, prefix, first)
    async with consuming(db, kafka_bootstrap, prefix, remember):
        await until(lambda: _all_seen(db, [first]))

    received: list[UUID] = []

    async def keep(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
        received.extend(one.event.case_id for one in cases)
        await remember(tx, cases)

    await publish(producer, prefix, second)
    async with consuming(db, kafka_bootstrap, prefix, keep):
        await until(lambda: _all_seen(db, [second]))
    assert received == [second.case_id]


async def test_topics_are_made_once_and_left_alone_afterwards(kafka_bootstrap: str) -> None:
    """Making topics again makes none."""
    prefix = f"test-{uuid4().hex[:8]}"
    made = await create_topics(kafka_bootstrap, prefix=prefix, partitions=2, replication=1, services=["triage"])

    assert f"{prefix}.message-reported" in made
    assert f"{prefix}.triage.dead" in made
    assert await create_topics(kafka_bootstrap, prefix=prefix, partitions=2, replication=1, services=["triage"]) == []


@given(st.text() | st.sampled_from(["\\u0000", "\\\0", "\0\0", "\\\\u0000\0"]))
def test_a_nul_is_read_as_a_replacement_and_nothing_else_changes(text: str) -> None:
    """PostgreSQL keeps no NUL, and an event is not parked for one."""
    for value in (orjson.dumps({"text": text}), json.dumps({"text": text}).encode()):
        assert orjson.loads(_without_nul(value)) == {"text": text.replace("\0", "\ufffd")}
