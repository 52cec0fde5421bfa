"""Events leave with the transaction that caused them: all, in order, and only when it committed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from backstop_contracts import CaseExpired, CaseStatus, CaseUpdated, read_headers
from chassis import outbox, relay
from chassis.postgres import Database
from chassis.relay import Relay
from chassis.topics import create_topics

TENANT = uuid4()
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def prefix(kafka_bootstrap: str) -> str:
    """Topics of their own for each test."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=3, replication=1)
    return prefix


@pytest.fixture
async def db(database: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Open a database with nothing but an outbox."""
    db = Database(database, schema="triage")
    await db.open(tmp_path)
    yield db
    await db.close()


def case_updated(case_id: UUID, count: int) -> CaseUpdated:
    """Make an event whose place in the order is its report count."""
    return CaseUpdated(
        tenant_id=TENANT,
        case_id=case_id,
        change="joined",
        status=CaseStatus.OPEN,
        report_count=count,
        changed_at=datetime.now(UTC),
    )


def case_expired(case_id: UUID, count: int) -> CaseExpired:
    """Make an event of another topic whose place in the order is its report count."""
    now = datetime.now(UTC)
    return CaseExpired(tenant_id=TENANT, case_id=case_id, report_count=count, last_active_at=now, expired_at=now)


async def emit(db: Database, *events: CaseUpdated | CaseExpired) -> None:
    """Emit events in a transaction of their own."""
    async with db.transaction() as tx:
        await outbox.emit(tx, [(event, TRACE) for event in events])


@asynccontextmanager
async def relaying(db: Database, kafka_bootstrap: str, prefix: str) -> AsyncIterator[Relay]:
    """Run a relay for the time of a block."""
    relay = Relay(db, service="triage", kafka_bootstrap=kafka_bootstrap, topic_prefix=prefix)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        await relay.stop()
        await asyncio.wait_for(task, 20)


@asynccontextmanager
async def administering(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Open a client that may change topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def create_topic(kafka_bootstrap: str, name: str, **settings: str) -> None:
    """Create one topic and no other."""
    async with administering(kafka_bootstrap) as admin:
        await admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1, topic_configs=settings)])


async def published(kafka_bootstrap: str, prefix: str, count: int, topic: str = "case-updated") -> list[Any]:
    """Return the first *count* records of the topic."""
    consumer = AIOKafkaConsumer(f"{prefix}.{topic}", bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return [await anext(consumer) for _ in range(count)]
    finally:
        await consumer.stop()


async def left(db: Database) -> int:
    """Count the events that are not published yet."""
    return int(await db.pool.fetchval("SELECT count(*) FROM outbox"))


async def until_left(db: Database, count: int) -> None:
    """Wait until so many events are not published yet: Kafka shows an event before the relay has heard of it."""
    async with asyncio.timeout(30):
        while await left(db) != count:
            await asyncio.sleep(0.02)


async def until_empty(db: Database) -> None:
    """Wait until the outbox is empty."""
    await until_left(db, 0)


async def test_an_event_is_published_with_its_envelope_and_trace(
    db: Database, kafka_bootstrap: str, prefix: str
) -> None:
    """The record is a CloudEvent of this service, keyed by tenant and case, in the trace of its cause."""
    event = case_updated(uuid4(), 1)
    await emit(db, event)
    async with relaying(db, kafka_bootstrap, prefix):
        (record,) = await published(kafka_bootstrap, prefix, 1)
        await until_empty(db)

    envelope = read_headers(record.headers, CaseUpdated)
    assert CaseUpdated.model_validate_json(record.value) == event
    assert record.key.decode() == f"{TENANT}:{event.case_id}"
    assert envelope.source == "/backstop/triage"
    assert envelope.traceparent == TRACE


async def test_what_is_rolled_back_is_never_published(db: Database, kafka_bootstrap: str, prefix: str) -> None:
    """An event of a failed transaction does not exist."""
    undone, done = case_updated(uuid4(), 1), case_updated(uuid4(), 2)
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as tx:
            await outbox.emit(tx, [(undone, None)])
            raise ZeroDivisionError
    await emit(db, done)
    async with relaying(db, kafka_bootstrap, prefix):
        (record,) = await published(kafka_bootstrap, prefix, 1)

    assert CaseUpdated.model_validate_json(record.value) == done


async def test_events_of_one_case_are_published_in_the_order_of_their_transactions(
    db: Database, kafka_bootstrap: str, prefix: str
) -> None:
    """However many are sent at once, each key keeps its order."""
    cases = [uuid4() for _ in range(20)]
    for count in range(40):
        await emit(db, *(case_updated(case_id, count) for case_id in cases))
    async with relaying(db, kafka_bootstrap, prefix):
        records = await published(kafka_bootstrap, prefix, 800)

    events = [CaseUpdated.model_validate_json(record.value) for record in records]
    for case_id in cases:
        assert [event.report_count for event in events if event.case_id == case_id] == list(range(40))


async def test_a_slow_transaction_with_an_older_event_is_not_skipped(
    db: Database, kafka_bootstrap: str, prefix: str
) -> None:
    """An event whose row has a lower id but commits later is published all the same."""
    before, slow, quick = (case_updated(uuid4(), count) for count in range(3))
    async with relaying(db, kafka_bootstrap, prefix):
        await emit(db, before)
        await until_empty(db)
        async with db.transaction() as tx:
            await outbox.emit(tx, [(slow, None)])
            await emit(db, quick)
            first = await published(kafka_bootstrap, prefix, 2)
        records = await published(kafka_bootstrap, prefix, 3)

    def counts(records: list[Any]) -> set[int]:
        return {CaseUpdated.model_validate_json(record.value).report_count for record in records}

    assert counts(first) == {0, 2}
    assert counts(records) == {0, 1, 2}


async def test_one_relay_leads_and_another_takes_over(
    db: Database, database: str, tmp_path: Path, kafka_bootstrap: str, prefix: str
) -> None:
    """Two replicas never publish at the same time; when the leader goes, the other goes on."""
    other_db = Database(database, schema="triage")
    await other_db.open(tmp_path)
    async with relaying(other_db, kafka_bootstrap, prefix) as second:
        async with relaying(db, kafka_bootstrap, prefix) as first:
            await emit(db, case_updated(uuid4(), 1))
            await until_empty(db)
            leaders = [relay for relay in (first, second) if relay.leading]
            assert len(leaders) == 1
        await emit(db, case_updated(uuid4(), 2))
        await until_empty(db)
        assert second.leading
    await other_db.close()


COUNT_WHAT_IS_DELETED_AT_ONCE = """
    CREATE TABLE deleted (place serial, bytes int);
    CREATE FUNCTION count_deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO deleted (bytes) SELECT sum(octet_length(payload)) FROM gone HAVING count(*) > 0;
        RETURN NULL;
    END $$;
    CREATE TRIGGER deleted AFTER DELETE ON outbox REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION count_deleted();
"""


async def test_large_events_are_published_a_few_at_a_time_and_in_their_order(
    db: Database, kafka_bootstrap: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read from the outbox at once has a bound in bytes; an event that is larger is published all the same."""
    monkeypatch.setattr(relay, "READ_BYTES", 10_000)
    case_id = uuid4()
    notes = ["x" * (30_000 if number == 7 else 1_000) for number in range(40)]
    events = [case_updated(case_id, n).model_copy(update={"note": note}) for n, note in enumerate(notes)]
    await emit(db, *events)
    await db.pool.execute(COUNT_WHAT_IS_DELETED_AT_ONCE)
    async with relaying(db, kafka_bootstrap, prefix):
        await until_empty(db)

    records = await published(kafka_bootstrap, prefix, len(events))
    assert [CaseUpdated.model_validate_json(record.value) for record in records] == events
    at_once = [row["bytes"] for row in await db.pool.fetch("SELECT bytes FROM deleted ORDER BY place")]
    largest = max(len(event.model_dump_json()) for event in events)
    assert all(relay.READ_BYTES <= size < relay.READ_BYTES + largest for size in at_once[:-1])
    assert sum(at_once) == sum(len(event.model_dump_json()) for event in events)
    assert len(at_once) > 3


async def test_a_topic_that_is_missing_holds_up_its_own_events_alone(
    db: Database, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a batch of them wait, in their order, until somebody creates the topic; all others are published."""
    monkeypatch.setattr(relay, "CLOSED_SECONDS", 1)
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topic(kafka_bootstrap, f"{prefix}.case-updated")
    case_id = uuid4()
    expired = [case_expired(case_id, number) for number in range(relay.BATCH + 10)]
    await emit(db, *expired)
    async with relaying(db, kafka_bootstrap, prefix):
        for number in range(3):
            await emit(db, case_updated(case_id, number))
            await published(kafka_bootstrap, prefix, number + 1)
        await until_left(db, len(expired))

        await create_topics(kafka_bootstrap, prefix=prefix, partitions=3, replication=1)
        await until_empty(db)
    records = await published(kafka_bootstrap, prefix, len(expired), topic="case-expired")
    assert [CaseExpired.model_validate_json(record.value) for record in records] == expired


async def test_a_topic_that_takes_nothing_holds_up_its_own_events_alone(
    db: Database, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Kafka refuses is tried again until it is taken; other topics' events do not wait for it."""
    monkeypatch.setattr(relay, "CLOSED_SECONDS", 1)
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topic(kafka_bootstrap, f"{prefix}.case-updated")
    await create_topic(kafka_bootstrap, f"{prefix}.case-expired", **{"max.message.bytes": "10"})
    case_id, count = uuid4(), relay.BATCH + 10
    await emit(db, *(case_expired(case_id, number) for number in range(count)))

    def refused(entry: Any) -> bool:
        return (entry["event"], entry.get("error")) == ("relay.topic_closed", "MessageSizeTooLargeError")

    with structlog.testing.capture_logs() as logs:
        async with relaying(db, kafka_bootstrap, prefix):
            # Long enough without another event that a pause which doubles each time would outlast the closing.
            async with asyncio.timeout(60):
                while sum(refused(entry) for entry in logs) < 6:
                    await asyncio.sleep(0.1)
            for number in range(3):
                await emit(db, case_updated(case_id, number))
                await published(kafka_bootstrap, prefix, number + 1)
        assert await left(db) == count
        pauses = [entry["retry_in"] for entry in logs if entry["event"] == "relay.interrupted"]
        assert max(pauses) < relay.CLOSED_SECONDS
    closed = {entry["topic"] for entry in logs if entry["event"] == "relay.topic_closed"}
    assert closed == {"case-expired"}

    async with administering(kafka_bootstrap) as admin:
        larger = ConfigResource(ConfigResourceType.TOPIC, f"{prefix}.case-expired", {"max.message.bytes": "1000000"})
        await admin.alter_configs([larger])
    async with relaying(db, kafka_bootstrap, prefix):
        await until_empty(db)
    records = await published(kafka_bootstrap, prefix, count, topic="case-expired")
    assert [CaseExpired.model_validate_json(record.value).report_count for record in records] == list(range(count))


async def test_while_kafka_is_away_events_wait_in_the_outbox(db: Database, kafka_bootstrap: str, prefix: str) -> None:
    """Intake goes on without Kafka; what was emitted meanwhile is published when it is back."""
    async with relaying(db, "127.0.0.1:1", prefix):
        await emit(db, case_updated(uuid4(), 1))
        assert await left(db) == 1
    assert await left(db) == 1
    async with relaying(db, kafka_bootstrap, prefix):
        await until_empty(db)
