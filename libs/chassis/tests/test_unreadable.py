"""A record that aiokafka cannot read stops its own partition, says where it is, and can be skipped."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from faststream.kafka import KafkaRouter

from backstop_contracts import CaseExpired, CaseUpdated
from chassis import fetcher, telemetry
from chassis.consumer import Consumer
from chassis.subscribing import BATCH, Received, Tx
from chassis.topics import SkipError, skip


async def skipped(world: Any, offset: int, *, partition: int = 0) -> int:
    """Skip the record at *offset*, as the CLI does."""
    return await skip(
        world.kafka_bootstrap,
        group=f"{world.prefix}.triage.case-updated",
        topic=f"{world.prefix}.case-updated",
        partition=partition,
        offset=offset,
        kafka_options=None,
    )


async def test_a_header_whose_name_is_not_utf8_stops_its_own_partition_and_loses_nothing(world: Any) -> None:
    """Neither the records before it, nor those of other partitions that were fetched together with it."""
    here, behind = [world.event() for _ in range(3)], [world.event() for _ in range(4)]
    there = [world.event() for _ in range(40)]
    for event in here:
        await world.publish(event, partition=1)
    await world.publish_batch(behind, unreadable=1, partition=1)
    for event in there:
        await world.publish(event, partition=0)

    with structlog.testing.capture_logs() as logs:
        async with world.consuming() as consumer:
            await world.all_seen([*here, behind[0], *there])
            more = world.event()
            await world.publish(more, partition=0)
            await world.all_seen([more])
            place = next(iter(consumer.unreadable))
            assert (place.partition, consumer.unreadable) == (1, {place: 4})
            await consumer.sample_lag(30)
            labels = (f"{world.prefix}.case-updated", 1)
            assert telemetry.consumer_unreadable.labels(*labels)._value.get() == 1
            assert not consumer.stuck
    (told,) = [entry for entry in logs if entry["event"] == "record.unreadable"]
    assert (told["topic"], told["partition"], told["offset"]) == (place.topic, 1, 4)
    assert not [entry for entry in logs if entry["event"] == "faststream.failed"]

    assert await skipped(world, 4, partition=1) == 7
    last = world.event()
    await world.publish(last, partition=1)
    async with world.consuming() as consumer:
        await world.all_seen([last])
        assert consumer.unreadable == {}
    seen = {row["case_id"] for row in await world.db.pool.fetch("SELECT case_id FROM seen")}
    assert seen == {event.case_id for event in [*here, behind[0], *there, more, last]}


async def test_a_topic_with_an_unreadable_record_stops_no_other_topic(world: Any) -> None:
    """Also when the unreadable record is the first of all."""
    router = KafkaRouter()
    handled: list[CaseExpired] = []

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(_updates: list[Received[CaseUpdated]], _tx: Tx) -> None:
        """Take nothing."""

    @router.subscriber("case-expired", **BATCH)
    async def on_case_expired(expired: list[Received[CaseExpired]], _tx: Tx) -> None:
        handled.extend(received.event for received in expired)

    await world.publish_batch([world.event(), world.event()], unreadable=0)
    async with world.consuming(router) as consumer:
        await world.until(lambda: is_set_aside(consumer))
        now = datetime.now(UTC)
        event = CaseExpired(
            tenant_id=world.tenant_id, case_id=uuid4(), report_count=1, last_active_at=now, expired_at=now
        )
        await world.publish(event)

        async def is_handled() -> bool:
            return handled == [event]

        await world.until(is_handled)
    assert await skipped(world, 0) == 2


async def is_set_aside(consumer: Consumer) -> bool:
    """Return whether there is an unreadable record."""
    return bool(consumer.unreadable)


async def test_once_the_record_is_gone_its_partition_goes_on(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention removes what nobody has skipped."""
    monkeypatch.setattr(fetcher, "AGAIN_SECONDS", 0.5)
    await world.publish_batch([world.event()], unreadable=0)
    after = world.event()
    await world.publish(after, partition=0)
    async with world.consuming() as consumer:
        await world.until(lambda: is_set_aside(consumer))
        admin = AIOKafkaAdminClient(bootstrap_servers=world.kafka_bootstrap)
        await admin.start()
        place = TopicPartition(f"{world.prefix}.case-updated", 0)
        await admin.delete_records({place: RecordsToDelete(before_offset=1)})
        await admin.close()
        await world.all_seen([after])
        assert consumer.unreadable == {}


async def test_only_what_stands_in_the_way_is_skipped(world: Any) -> None:
    """Not what was handled, what is readable, what is not there, or anything while the service runs."""
    handled, readable = world.event(), world.event()
    await world.publish(handled, partition=0)
    async with world.consuming():
        await world.all_seen([handled])
        with pytest.raises(SkipError, match="has members: stop every replica"):
            await skipped(world, 1)

    with pytest.raises(SkipError, match="There is no record at offset 1"):
        await skipped(world, 1)
    await world.publish(readable, partition=0)
    with pytest.raises(SkipError, match="can be read"):
        await skipped(world, 1)
    await world.publish_batch([world.event()], unreadable=0)
    for offset in (0, 2, 9):
        with pytest.raises(SkipError, match="is at offset 1"):
            await skipped(world, offset)
    with pytest.raises(SkipError, match="no partition 7"):
        await skipped(world, 1, partition=7)
    async with world.consuming():
        await world.all_seen([handled, readable])
