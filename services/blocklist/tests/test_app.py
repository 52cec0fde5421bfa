"""The composed service: requests and verdicts are read from Kafka, outcomes are published to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from backstop_contracts import (
    Actor,
    Block,
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    BlockRequested,
    Conclusion,
    Event,
    VerdictReady,
    headers_for,
)
from blocklist.app import Settings, build
from chassis.topics import create_topics
from conftest import JUDGED
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, database: str, kafka_bootstrap: str, microsoft: Simulator, tenant_id: UUID
) -> str:
    """Configure the service by its environment; return its topic prefix."""
    prefix = f"test-{uuid4().hex[:8]}"
    settings = {
        "POSTGRES_DSN": database,
        "KAFKA_BOOTSTRAP": kafka_bootstrap,
        "TOPIC_PREFIX": prefix,
        "API_AUDIENCE": "0a1b2c3d-0000-4000-8000-00000000b001",
        "TENANTS": str(tenant_id),
        "AUTHORITY": microsoft.url,
        "EXCHANGE_URL": microsoft.url,
        "EXCHANGE_WRITE_INTERVAL_SECONDS": "0",
        "CA_FILE": str(microsoft.ca_file),
        "CLIENT_ID": DEFAULT_APP,
        "CLIENT_SECRET": DEFAULT_SECRET,
        "NEVER_BLOCK_DOMAINS": "mail.example, Webmail.example",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"BACKSTOP_{name}", value)
    return prefix


def test_settings_come_from_the_environment(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Domains are separated by commas; none are protected by default."""
    assert Settings().topic_prefix == environment
    assert Settings().never_block_domains == {"mail.example", "Webmail.example"}
    monkeypatch.delenv("BACKSTOP_NEVER_BLOCK_DOMAINS")
    assert Settings().never_block_domains == frozenset()


async def test_a_requested_block_is_applied_and_removed_after_a_clean_verdict(
    environment: str, kafka_bootstrap: str, microsoft: Simulator, tenant_id: UUID
) -> None:
    """Each outcome is published, in the trace of the request."""
    await create_topics(kafka_bootstrap, prefix=environment, partitions=1, replication=1)
    now, case_id = datetime.now(UTC), uuid4()
    block = Block(
        block_id=uuid4(), scope="tenant", kind="sender", value="bad@fabrikam.example", case_id=case_id, expires_at=None
    )
    request = BlockRequested(
        tenant_id=tenant_id, block=block, requested_by=Actor(kind="user", id="admin"), requested_at=now
    )
    verdict = VerdictReady(
        **JUDGED,
        tenant_id=tenant_id,
        submission_id=uuid4(),
        case_id=case_id,
        graph_id="1",
        conclusion=Conclusion.CLEAN,
        verdict="noThreatsFound",
        settings_read=True,
        read_at=now + timedelta(minutes=1),
    )
    async with (
        _kafka(kafka_bootstrap, environment) as (publish, outcomes),
        build(Settings()) as service,
        service.api.router.lifespan_context(service.api),
    ):
        await publish(request)
        applied = await anext(outcomes)
        await publish(verdict)
        removed = await anext(outcomes)

    assert BlockApplied.model_validate_json(applied.value).block == block
    assert BlockRemoved.model_validate_json(removed.value).reason == "verdict-clean"
    assert {dict(record.headers)["traceparent"].decode() for record in (applied, removed)} == {TRACE}
    contents = microsoft.state.ledger.contents()
    assert [len(contents[kind]) for kind in ("tenant_blocks", "removals")] == [1, 1]


@asynccontextmanager
async def _kafka(
    kafka_bootstrap: str, prefix: str
) -> AsyncIterator[tuple[Callable[[Event], Awaitable[None]], AsyncIterator[Any]]]:
    """Publish as other services do, and read what blocklist publishes."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    consumer = AIOKafkaConsumer(
        *(f"{prefix}.{model.topic()}" for model in (BlockApplied, BlockFailed, BlockRemoved)),
        bootstrap_servers=kafka_bootstrap,
        auto_offset_reset="earliest",
    )

    async def publish(event: Event) -> None:
        headers = headers_for(event, source="/test", traceparent=TRACE)
        await producer.send_and_wait(
            f"{prefix}.{event.topic()}",
            event.model_dump_json().encode(),
            key=event.key.encode(),
            headers=[(name, value.encode()) for name, value in headers.items()],
        )

    async with asyncio.timeout(60), producer, consumer:
        yield publish, aiter(consumer)
