"""A partition goes to another member and comes back: nothing is lost, and no letter is left over."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from faststream.kafka import KafkaRouter

from backstop_contracts import CaseUpdated
from chassis import dead_letters, fetcher
from chassis.consumer import Consumer
from chassis.subscribing import BATCH, Received, Tx


def partitions(consumer: Consumer) -> set[int]:
    """Return the partitions that a member has."""
    return {place.partition for fetcher in consumer._fetchers() for place in fetcher.assignment()}


async def letters(world: Any) -> list[tuple[int, str]]:
    """Return the offset and the state of every letter."""
    rows = await world.db.pool.fetch('SELECT "offset", state FROM dead_letters ORDER BY 1')
    return [(row["offset"], row["state"]) for row in rows]


async def shared(world: Any, one: Consumer, other: Consumer) -> int:
    """Wait until two members have a partition each; return that of *other*."""

    async def each_has_one() -> bool:
        return not other.unassigned and len(partitions(one)) == len(partitions(other)) == 1

    await world.until(each_has_one, 60)
    (partition,) = partitions(other)
    return partition


async def test_a_letter_of_another_member_is_forgotten_when_its_record_is_handled(world: Any) -> None:
    """It had parked the event without committing, and left."""
    for partition in (0, 1):
        await world.publish(world.event(), partition=partition)
    router = KafkaRouter()

    @router.subscriber("case-updated", **BATCH)
    async def broken(_events: list[Received[CaseUpdated]], _tx: Tx) -> None:
        raise ZeroDivisionError

    async def both_handled() -> bool:
        return bool(await world.db.pool.fetchval("SELECT count(*) = 2 FROM seen"))

    async with world.consuming() as good:
        await world.until(both_handled)
        async with world.consuming(router, halt_after=1) as bad:
            event = world.event()
            await world.publish(event, partition=await shared(world, good, bad))

            async def halted() -> bool:
                return bool(bad.halted)

            await world.until(halted)
            assert await letters(world) == [(1, "unresolved")]
        await world.all_seen([event], 60)
        assert await letters(world) == []


async def test_a_record_that_comes_again_after_its_letter_was_committed_keeps_the_letter(world: Any) -> None:
    """Somebody who is late parks it once more: the letter is the same, and a resolved one stays resolved."""
    await world.publish(world.event(), partition=0, value=b"no JSON")

    async def parked() -> bool:
        return await letters(world) == [(0, "unresolved")]

    async with world.consuming():
        await world.until(parked)
    rows = await world.db.pool.fetch("SELECT * FROM dead_letters")
    late = type("Record", (), {"partition": 0, "offset": 0, "key": b"k", "value": b"v", "headers": ()})()
    place = {"topic": rows[0]["topic"], "topic_id": rows[0]["topic_id"], "tenant_id": None}
    async with world.db.transaction() as tx:
        assert await dead_letters.park(tx, late, KeyError(), **place) == rows[0]["id"]
        assert await dead_letters.drop(tx, dead_letters.Wanted(), "me") == [rows[0]["id"]]
        assert await dead_letters.park(tx, late, KeyError(), **place) is None
        await dead_letters.discard_handled(tx, [late], topic=place["topic"], topic_id=place["topic_id"])
    assert await letters(world) == [(0, "dropped")]


async def test_a_partition_that_was_set_aside_and_comes_back_is_read_from_what_is_committed(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is gone, and another member went on behind it."""
    monkeypatch.setattr(fetcher, "AGAIN_SECONDS", 1)
    for partition in (0, 1):
        await world.publish_batch([world.event()], unreadable=0, partition=partition)

    async with world.consuming() as first:

        async def aside() -> bool:
            return len(first.unreadable) == 2

        await world.until(aside)
        async with world.consuming() as second:
            partition = await shared(world, first, second)
            place = TopicPartition(f"{world.prefix}.case-updated", partition)
            admin = AIOKafkaAdminClient(bootstrap_servers=world.kafka_bootstrap)
            await admin.start()
            await admin.delete_records({place: RecordsToDelete(before_offset=1)})
            await admin.close()
            events = [world.event() for _ in range(3)]
            await world.publish(events[0], partition=partition)
            await world.publish(events[1], partition=partition, value=b"no JSON")
            await world.publish(events[2], partition=partition)
            await world.all_seen([events[0], events[2]], 90)

        async def back() -> bool:
            return len(partitions(first)) == 2

        await world.until(back, 60)
        last = world.event()
        await world.publish(last, partition=partition)
        await world.all_seen([last], 60)
        assert place not in first.unreadable
    assert await letters(world) == [(2, "unresolved")]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_topic_that_the_broker_compresses_is_read_like_any_other(world: Any, codec: str) -> None:
    """An operator sets it on the topic or the broker; a producer may also choose it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=world.kafka_bootstrap)
    await admin.start()
    try:
        name = f"{world.prefix}-{codec}.case-updated"
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"compression.type": codec})])
    finally:
        await admin.close()
    world.prefix = f"{world.prefix}-{codec}"
    events = [world.event() for _ in range(3)]
    for event in events:
        await world.publish(event)
    async with world.consuming():
        await world.all_seen(events)
