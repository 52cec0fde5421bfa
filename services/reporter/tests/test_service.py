"""The whole service: from HTTP to Kafka, from Kafka to HTTP, and with PostgreSQL gone in between."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from backstop_contracts import (
    BlockApplied,
    BlockRequested,
    CaseStatus,
    CaseUpdated,
    Conclusion,
    Event,
    MessageReported,
    VerdictReady,
    headers_for,
    read_headers,
)
from chassis.topics import create_topics
from conftest import JUDGED
from local_stack.ports import choose_port
from reporter.app import Settings, build

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "ann@contoso.example"}


class Line:
    """A connection to PostgreSQL that can be cut and mended."""

    def __init__(self, dsn: str) -> None:
        self._dsn = urlsplit(dsn)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = choose_port("line")

    @property
    def dsn(self) -> str:
        """The address of PostgreSQL through this line."""
        login, _, _ = self._dsn.netloc.rpartition("@")
        return self._dsn._replace(netloc=f"{login}@127.0.0.1:{self._port}").geturl()

    async def mend(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """Break all connections and refuse new ones."""
        assert self._server
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await self._server.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there_reader, there = await asyncio.open_connection(self._dsn.hostname, self._dsn.port)
        self._writers.add(there)
        await asyncio.gather(_copy(reader, there), _copy(there_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def line(database: str) -> AsyncIterator[Line]:
    """Open a line to an empty database."""
    line = Line(database)
    await line.mend()
    yield line
    await line.cut()


@asynccontextmanager
async def consuming(bootstrap: str, *topics: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Read *topics* from their beginning."""
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 60) -> None:
    """Wait for *condition*."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.fixture
async def prefix(kafka_bootstrap: str) -> str:
    """Create topics for this test; return their prefix."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=1, replication=1)
    return prefix


@pytest.fixture
async def client(
    line: Line, kafka_bootstrap: str, prefix: str, entra: Any, tenant: UUID, audience: str, serving: Any, tmp_path: Path
) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the service with its settings until it is ready; return a client of it."""
    building = build(
        Settings(
            authority=entra.url,
            ca_file=entra.ca_file,
            api_audience=audience,
            tenants=frozenset({tenant}),
            postgres_dsn=line.dsn,
            kafka_bootstrap=kafka_bootstrap,
            topic_prefix=prefix,
            mail_store=(tmp_path / "mails").as_uri(),
        )
    )
    async with building as service, serving(service.api) as url, aiohttp.ClientSession(url) as client:

        async def ready() -> bool:
            async with client.get("/readyz") as answer:
                return answer.status == 200

        await until(ready)
        yield client


async def send(client: aiohttp.ClientSession, headers: dict[str, str], raw: bytes) -> tuple[int, Any, Any]:
    """Report a message and block its sender; return status, body and headers of the answer."""
    body = {"mail": base64.b64encode(raw).decode(), "reported_as": "phishing", "block_sender": True}
    async with client.post("/v1/reports", json=body, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


async def test_a_report_is_published_and_its_outcome_comes_back(
    client: aiohttp.ClientSession, kafka_bootstrap: str, prefix: str, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """What other services publish about the report and its block is shown to the reporter."""
    headers = await token("Reporter", **ANN)
    status, accepted, _ = await send(client, headers, make_mail())
    assert status == 202

    async with consuming(kafka_bootstrap, f"{prefix}.message-reported", f"{prefix}.block-requested") as consumer:
        async with asyncio.timeout(30):
            records = {record.topic: record for record in [await anext(consumer), await anext(consumer)]}
    reported, requested = (
        _read(records[f"{prefix}.{model.TOPIC}"], model) for model in (MessageReported, BlockRequested)
    )
    assert str(reported.report_id) == accepted["report_id"]
    assert str(requested.block.block_id) == accepted["block"]["block_id"]

    now, case_id = datetime.now(UTC), uuid4()
    opened = CaseUpdated(
        tenant_id=tenant,
        case_id=case_id,
        change="opened",
        status=CaseStatus.OPEN,
        report_ids=(reported.report_id,),
        report_count=1,
        changed_at=now,
    )
    verdict = VerdictReady(
        **JUDGED,
        tenant_id=tenant,
        submission_id=uuid4(),
        case_id=case_id,
        graph_id="1",
        conclusion=Conclusion.THREAT,
        verdict="phishing",
        settings_read=True,
        read_at=now,
    )
    applied = BlockApplied(tenant_id=tenant, block=requested.block, already_present=False, applied_at=now)
    await _publish(kafka_bootstrap, prefix, verdict, opened, applied)

    async def told() -> bool:
        async with client.get(accepted["status_url"], headers=headers) as answer:
            state = await answer.json()
            return (state["conclusion"], state["block"]["status"]) == ("threat", "applied")

    await until(told)


def _read(record: Any, model: type[Any]) -> Any:
    assert read_headers(record.headers, model).source == "/backstop/reporter"
    return model.model_validate_json(record.value)


async def _publish(bootstrap: str, prefix: str, *events: Event) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    for event in events:
        headers = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
        await producer.send_and_wait(
            f"{prefix}.{event.TOPIC}", event.model_dump_json().encode(), key=event.key.encode(), headers=headers
        )
    await producer.stop()


async def test_a_report_is_refused_while_postgresql_is_unavailable(
    client: aiohttp.ClientSession, line: Line, kafka_bootstrap: str, prefix: str, token: Any, make_mail: Any
) -> None:
    """503 says when to send it again; then it is one report, and exactly one is published."""
    headers, raw = await token("Reporter", **ANN), make_mail()
    await line.cut()
    status, refused, answered = await send(client, headers, raw)
    assert (status, answered["Content-Type"], answered["Retry-After"]) == (503, "application/problem+json", "5")
    assert "Send the same request again" in refused["detail"]
    async with client.get(f"/v1/reports/{uuid4()}", headers=headers) as answer:
        assert answer.status == 503

    await line.mend()

    async def accepted() -> bool:
        return (await send(client, headers, raw))[0] == 202

    await until(accepted)
    status, again, _ = await send(client, headers, raw)
    assert (status, again["repeated"]) == (202, True)
    async with consuming(kafka_bootstrap, f"{prefix}.message-reported") as consumer:
        async with asyncio.timeout(30):
            record = await anext(consumer)
        assert str(_read(record, MessageReported).report_id) == again["report_id"]
        assert not await consumer.getmany(timeout_ms=500)


async def test_a_report_is_refused_while_the_mail_store_is_unavailable(
    client: aiohttp.ClientSession, token: Any, make_mail: Any, tmp_path: Path
) -> None:
    """A report whose message could not be stored is not accepted."""
    headers, raw, store = await token("Reporter", **ANN), make_mail(), tmp_path / "mails"
    store.rmdir()
    store.write_text("a file where the folder was")
    status, refused, answered = await send(client, headers, raw)
    assert (status, refused["type"], answered["Retry-After"]) == (
        503,
        "urn:backstop:problem:mail-store-unavailable",
        "5",
    )

    store.unlink()
    store.mkdir()
    status, accepted, _ = await send(client, headers, raw)
    assert (status, accepted["repeated"]) == (202, False)
