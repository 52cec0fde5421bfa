"""A consumer over real Kafka and PostgreSQL, and somebody who publishes whatever they like."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiokafka import AIOKafkaProducer
from faststream.kafka import KafkaRouter

from backstop_contracts import CaseStatus, CaseUpdated, Event, headers_for
from chassis.consumer import Consumer
from chassis.postgres import Database
from chassis.subscribing import BATCH, Received, Tx
from chassis.testing import NotUtf8, batch_of_any_header
from chassis.topics import create_topics


async def remember(cases: list[Received[CaseUpdated]], tx: Tx) -> None:
    """Write down the cases of events."""
    await tx.execute(
        "INSERT INTO seen SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING", [r.event.case_id for r in cases]
    )


class World:
    """Topics, a database and a producer of one test's own, and a consumer on demand."""

    tenant_id = UUID(int=7)
    remember = staticmethod(remember)

    def __init__(self, db: Database, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer) -> None:
        self.db = db
        self.kafka_bootstrap = kafka_bootstrap
        self.prefix = prefix
        self.producer = producer

    def event(self, case_id: UUID | None = None) -> CaseUpdated:
        """Make an event."""
        return CaseUpdated(
            tenant_id=self.tenant_id,
            case_id=case_id or uuid4(),
            change="opened",
            status=CaseStatus.OPEN,
            report_count=1,
            changed_at=datetime.now(UTC),
        )

    async def publish(self, event: Event, *, partition: int | None = None, **overrides: Any) -> None:
        """Publish *event* as the relay does, except for *overrides* of the record's parts."""
        record = {**self._record(event), **overrides}
        await self.producer.send_and_wait(f"{self.prefix}.{event.topic()}", partition=partition, **record)

    async def publish_batch(self, events: Sequence[Event], *, unreadable: int, partition: int = 0) -> None:
        """Publish *events* as one batch; the one at the place *unreadable* has a header whose name is not UTF-8."""
        batch = batch_of_any_header(self.producer)
        for place, event in enumerate(events):
            record = self._record(event)
            if place == unreadable:
                record["headers"] = [(NotUtf8("x"), b"x"), *record["headers"]]
            batch.append(timestamp=None, **record)
        await (await self.producer.send_batch(batch, f"{self.prefix}.{events[0].topic()}", partition=partition))

    def _record(self, event: Event) -> dict[str, Any]:
        headers = headers_for(event, source="/test").items()
        return {
            "key": event.key.encode(),
            "value": event.model_dump_json().encode(),
            "headers": [(name, value.encode()) for name, value in headers],
        }

    def consumer(self, router: KafkaRouter | None = None, **more: Any) -> Consumer:
        """Make a consumer; without *router*, of one that remembers the cases of case-updated."""
        if router is None:
            router = KafkaRouter()
            router.subscriber("case-updated", **BATCH)(remember)
        options = {"service": "triage", "max_batch": 500, "halt_after": 100, **more}
        return Consumer(
            router,
            database=self.db,
            kafka_bootstrap=self.kafka_bootstrap,
            topic_prefix=self.prefix,
            **options,
        )

    @asynccontextmanager
    async def consuming(self, router: KafkaRouter | None = None, **more: Any) -> AsyncIterator[Consumer]:
        """Run a consumer for the time of a block."""
        consumer = self.consumer(router, **more)
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def all_seen(self, events: Sequence[CaseUpdated], seconds: float = 30) -> None:
        """Wait until `remember` has handled *events*, each once."""

        async def seen() -> bool:
            rows = await self.db.pool.fetch("SELECT case_id FROM seen")
            return {event.case_id for event in events} <= {row["case_id"] for row in rows}

        await self.until(seen, seconds)

    async def until(self, condition: Callable[[], Awaitable[object]], seconds: float = 30) -> None:
        """Wait for *condition*."""
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def making_world(database: str, kafka_bootstrap: str, tmp_path: Path, partitions: int) -> AsyncIterator[World]:
    """Make topics with so many partitions, and the rest of a test's world."""
    (tmp_path / "0001_seen.sql").write_text("CREATE TABLE seen (case_id uuid PRIMARY KEY, seq serial)")
    db = Database(database, schema="triage")
    await db.open(tmp_path)
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=partitions, replication=1)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    yield World(db, kafka_bootstrap, prefix, producer)
    await producer.stop()
    await db.close()


@pytest.fixture
async def world(database: str, kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[World]:
    """Give a test its world; its topics have two partitions."""
    async with making_world(database, kafka_bootstrap, tmp_path, 2) as world:
        yield world


@pytest.fixture
async def narrow_world(database: str, kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world whose topics have one partition, so that all records have one order."""
    async with making_world(database, kafka_bootstrap, tmp_path, 1) as world:
        yield world
