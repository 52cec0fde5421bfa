"""Nothing that comes out of Kafka is lost, and nothing unreadable or poisonous stops the rest."""

import json
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
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

from backstop_contracts import CaseUpdated, SubmissionFailed, headers_for
from chassis import telemetry
from chassis.consumer import Consumer
from chassis.subscribing import BATCH, Received, Tx, _without_nul
from chassis.topics import EVENT_BYTES, create_topics

HALT_AFTER = 100


@pytest.fixture
def world(narrow_world: Any) -> Any:
    """Return the world of these tests, which look at offsets."""
    return narrow_world


def handled_by(handler: Callable[..., Awaitable[None]]) -> KafkaRouter:
    """Make a router with this handler of case-updated."""
    router = KafkaRouter()
    router.subscriber("case-updated", **BATCH)(handler)
    return router


async def seen(world: Any) -> set[UUID]:
    """Return the cases that were handled."""
    return {row["case_id"] for row in await world.db.pool.fetch("SELECT case_id FROM seen")}


async def letters(world: Any, count: int = 1) -> list[Any]:
    """Return the unresolved dead letters as soon as there are *count*."""

    async def are_there() -> bool:
        return await world.db.pool.fetchval("SELECT count(*) FROM dead_letters WHERE state = 'unresolved'") >= count

    await world.until(are_there)
    found = await world.db.pool.fetch("SELECT * FROM dead_letters WHERE state = 'unresolved' ORDER BY \"offset\"")
    assert len(found) == count
    return list(found)


async def test_each_event_reaches_its_handler_with_its_envelope(world: Any) -> None:
    """Each published event reaches its handler with its envelope."""
    events = [world.event() for _ in range(20)]
    received: list[Received[CaseUpdated]] = []

    async def keep(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        received.extend(cases)
        await world.remember(cases, tx)

    async with world.consuming(handled_by(keep)):
        for event in events:
            await world.publish(event)
        await world.all_seen(events)

    assert [one.event for one in received] == events
    assert {one.envelope.type for one in received} == {"io.backstop.case-updated.v1"}


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
                    tenant_id=uuid4(), submission_id=uuid4(), case_id=uuid4(), reason="refused", detail="",
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
    world: Any, broken: dict[str, Any], error: str
) -> None:
    """A record that is no event goes to the dead letters with its bytes, its headers and the reason."""
    before, poison, after = world.event(), world.event(), world.event()
    await world.publish(before)
    await world.publish(poison, **broken)
    await world.publish(after)

    async with world.consuming():
        await world.all_seen([before, after])
        (letter,) = await letters(world)

    assert poison.case_id not in await seen(world)
    assert letter["key"] == broken.get("key", poison.key.encode())
    assert letter["value"] == broken.get("value", poison.model_dump_json().encode())
    if "headers" in broken:
        names = [name.decode() for name in letter["header_names"]]
        assert list(zip(names, letter["header_values"], strict=True)) == broken["headers"]
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("case-updated", 0, 1)
    assert (letter["error"], letter["tenant_id"]) == (error, None)


async def test_one_event_that_the_handler_cannot_take_is_parked_alone(world: Any) -> None:
    """A failing event is found by halving its batch; all the others are handled."""
    events = [world.event() for _ in range(30)]
    poison = events[17]

    async def fail_for_one(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        await world.remember(cases, tx)
        if any(one.event.case_id == poison.case_id for one in cases):
            raise ZeroDivisionError

    for event in events:
        await world.publish(event)
    async with world.consuming(handled_by(fail_for_one)):
        await world.all_seen([event for event in events if event is not poison])
        (letter,) = await letters(world)

    assert letter["value"] == poison.model_dump_json().encode()
    assert (letter["error"], letter["tenant_id"]) == ("ZeroDivisionError", world.tenant_id)
    assert poison.case_id not in await seen(world)


async def test_while_postgresql_is_away_a_batch_waits_and_nothing_is_parked(world: Any) -> None:
    """An error that says nothing about the events is waited out."""
    event, failures = world.event(), 3

    async def away_at_first(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise asyncpg.CannotConnectNowError("the database system is starting up")
        await world.remember(cases, tx)

    await world.publish(event)
    async with world.consuming(handled_by(away_at_first)) as consumer:
        await world.all_seen([event])
        assert not consumer.halted
    assert failures == 0


async def broken_deploy(_cases: list[Received[CaseUpdated]], _tx: Tx) -> None:
    """Handle nothing."""
    raise ZeroDivisionError


async def test_a_topic_that_parks_everything_stops_and_says_so_until_it_is_started_again(world: Any) -> None:
    """When the fault is not in the events, they stay in their topic, and what was parked of them is forgotten."""
    events = [world.event() for _ in range(HALT_AFTER + 20)]
    for event in events:
        await world.publish(event)
    halted = telemetry.consumer_halted.labels(f"{world.prefix}.case-updated")._value
    with structlog.testing.capture_logs() as logs:
        async with world.consuming(handled_by(broken_deploy)) as consumer:
            await world.until(lambda: _halted(consumer), 60)
            assert halted.get() == 1
            await letters(world, HALT_AFTER)
    (cry,) = [entry for entry in logs if entry["log_level"] == "critical"]
    assert (cry["event"], cry["error"]) == ("consumer.halted", "ZeroDivisionError")

    async with world.consuming():
        assert halted.get() == 0
        await world.all_seen(events)
    assert await letters(world, 0) == []


async def _halted(consumer: Consumer) -> bool:
    return bool(consumer.halted)


async def test_a_restart_of_a_topic_that_parks_everything_leaves_no_dead_letter_twice(world: Any) -> None:
    """The batch goes back to its topic, and is parked again in place of the letters of before."""
    for _ in range(HALT_AFTER):
        await world.publish(world.event())
    for _ in range(3):
        async with world.consuming(handled_by(broken_deploy)) as consumer:
            await world.until(lambda: _halted(consumer), 60)
            await letters(world, HALT_AFTER)


async def test_any_number_of_unreadable_records_between_good_ones_does_not_stop_a_consumer(world: Any) -> None:
    """Only what is parked in a row, with nothing handled between, is a sign of a fault elsewhere."""
    events = [world.event() for _ in range(HALT_AFTER + 10)]
    for event in events:
        await world.publish(event)
        await world.publish(event, value=b"no JSON")
    async with world.consuming() as consumer:
        await world.all_seen(events)
        assert not consumer.halted
        await letters(world, len(events))


async def test_a_record_with_neither_key_nor_value_is_parked(world: Any) -> None:
    """Kafka takes such a record, though aiokafka's `send` does not."""
    batch = world.producer.create_batch()
    batch.append(timestamp=None, key=None, value=None, headers=[("x", None)])
    await (await world.producer.send_batch(batch, f"{world.prefix}.case-updated", partition=0))

    async with world.consuming():
        (letter,) = await letters(world)
    assert (letter["key"], letter["value"]) == (None, None)
    assert (letter["header_names"], letter["header_values"]) == ([b"x"], [None])


async def test_the_largest_event_can_be_parked(world: Any) -> None:
    """A dead letter is larger than its event, and may be."""
    large = AIOKafkaProducer(bootstrap_servers=world.kafka_bootstrap, max_request_size=EVENT_BYTES)
    await large.start()
    value = random.randbytes(EVENT_BYTES - 500)
    await large.send_and_wait(f"{world.prefix}.case-updated", value=value)
    await large.stop()
    after = world.event()
    await world.publish(after)
    async with world.consuming():
        await world.all_seen([after])
        (letter,) = await letters(world)
    assert letter["value"] == value


async def test_a_record_that_is_delivered_again_is_parked_once(world: Any) -> None:
    """A letter that somebody has dealt with meanwhile stays dealt with."""
    await world.publish(world.event(), value=b"no JSON")
    for group in ("triage", "again"):
        async with world.consuming(service=group):
            await letters(world)

    await world.db.pool.execute("UPDATE dead_letters SET state = 'dropped', resolved_by = 'me', resolved_at = now()")
    after = world.event()
    await world.publish(after)
    async with world.consuming(service="once-more"):
        await world.all_seen([after])
        assert await letters(world, 0) == []


async def test_letters_of_a_topic_that_was_made_anew_stand_beside_those_of_the_old_one(world: Any) -> None:
    """Its offsets begin at 0 again; Kafka's id of the topic tells them apart."""
    await world.publish(world.event(), value=b"old")
    async with world.consuming():
        await letters(world)
    admin = AIOKafkaAdminClient(bootstrap_servers=world.kafka_bootstrap)
    await admin.start()
    await admin.delete_topics([f"{world.prefix}.case-updated"])

    async def is_gone() -> bool:
        return f"{world.prefix}.case-updated" not in await admin.list_topics()

    await world.until(is_gone)
    await admin.close()
    await create_topics(world.kafka_bootstrap, prefix=world.prefix, partitions=1, replication=1)

    another = AIOKafkaProducer(bootstrap_servers=world.kafka_bootstrap)
    await another.start()
    world.producer = another
    await world.publish(world.event(), value=b"new")
    await another.stop()
    async with world.consuming():
        found = await letters(world, 2)
    assert {letter["value"] for letter in found} == {b"old", b"new"}
    assert {letter["offset"] for letter in found} == {0}


async def test_what_was_handled_is_not_delivered_to_the_next_member(world: Any) -> None:
    """A consumer that stops commits what it handled."""
    first, second = world.event(), world.event()
    await world.publish(first)
    async with world.consuming():
        await world.all_seen([first])

    received: list[UUID] = []

    async def keep(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
        received.extend(one.event.case_id for one in cases)
        await world.remember(cases, tx)

    await world.publish(second)
    async with world.consuming(handled_by(keep)):
        await world.all_seen([second])
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
