"""The composed service: requests come in from Kafka, and outcomes go out to it."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from backstop_contracts import Actor, Category, Message, SubmissionCreated, SubmissionRequested, headers_for
from chassis.topics import create_topics
from mail import MailStore
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.faults import Fault
from submitter.app import Settings, build


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    kafka_bootstrap: str,
    microsoft: Simulator,
    tenant_id: UUID,
    tmp_path: Path,
) -> str:
    """Set the service's settings in the environment; return the prefix of its topics."""
    prefix = f"test-{uuid4().hex[:8]}"
    settings = {
        "POSTGRES_DSN": database,
        "KAFKA_BOOTSTRAP": kafka_bootstrap,
        "TOPIC_PREFIX": prefix,
        "API_AUDIENCE": "0a1b2c3d-0000-4000-8000-00000000b001",
        "TENANTS": str(tenant_id),
        "AUTHORITY": microsoft.url,
        "GRAPH_URL": microsoft.url,
        "CA_FILE": str(microsoft.ca_file),
        "CLIENT_ID": DEFAULT_APP,
        "CLIENT_SECRET": DEFAULT_SECRET,
        "MAIL_STORE": tmp_path.as_uri(),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"BACKSTOP_{name}", value)
    return prefix


async def test_one_slow_answer_does_not_hold_back_the_other_submissions(
    environment: str, kafka_bootstrap: str, microsoft: Simulator, tenant_id: UUID
) -> None:
    """All others are made meanwhile, those claimed together with it and those claimed later."""
    await create_topics(kafka_bootstrap, prefix=environment, partitions=1, replication=1)
    microsoft.state.faults.order([Fault(route="graph.emailThreats.create", kind="timeout", seconds=600)])
    settings = Settings()
    requested = [await _request(settings.mail_store, tenant_id) for _ in range(3 * settings.submission_batch_size)]
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        for event in requested:
            await _publish(producer, environment, event)
    created: dict[UUID, SubmissionCreated] = {}
    async with (
        asyncio.timeout(90),
        AIOKafkaConsumer(
            f"{environment}.{SubmissionCreated.topic()}",
            bootstrap_servers=kafka_bootstrap,
            auto_offset_reset="earliest",
        ) as outcomes,
        build(settings) as service,
        service.api.router.lifespan_context(service.api),
    ):

        async def until_created(count: int) -> None:
            while len(created) < count:
                event = SubmissionCreated.model_validate_json((await anext(outcomes)).value)
                created[event.submission_id] = event

        await until_created(len(requested) - 1)
        others = set(created)
        microsoft.state.faults.release()
        await until_created(len(requested))

    (slow,) = created.keys() - others
    assert created[slow].adopted is False
    assert created.keys() == {event.submission_id for event in requested}


async def _request(mails: MailStore, tenant_id: UUID) -> SubmissionRequested:
    message_id = f"<{uuid4()}@fabrikam.example>"
    raw = f"From: bad@fabrikam.example\r\nMessage-ID: {message_id}\r\n\r\nHi".encode()
    sha256 = await mails.put(tenant_id, raw)
    return SubmissionRequested(
        tenant_id=tenant_id,
        submission_id=uuid4(),
        case_id=uuid4(),
        category=Category.PHISHING,
        recipient="user@contoso.example",
        message=Message(sha256=sha256, size=len(raw), internet_message_id=message_id),
        requested_by=Actor(kind="policy", id="test"),
        requested_at=datetime.now(UTC),
    )


async def _publish(producer: AIOKafkaProducer, prefix: str, event: SubmissionRequested) -> None:
    headers = headers_for(event, source="/test", traceparent=None)
    await producer.send_and_wait(
        f"{prefix}.{event.topic()}",
        event.model_dump_json().encode(),
        key=event.key.encode(),
        headers=[(name, value.encode()) for name, value in headers.items()],
    )
