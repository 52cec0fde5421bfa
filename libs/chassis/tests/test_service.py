"""A service says truthfully whether it is ready and alive, and stops in an orderly way."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from fastapi import APIRouter
from faststream.kafka import KafkaRouter

from backstop_contracts import CaseStatus, CaseUpdated, headers_for
from chassis import telemetry
from chassis.consumer import STUCK_SAMPLES, Consumer
from chassis.http import make_api
from chassis.service import Service, server
from chassis.settings import ServiceSettings
from chassis.subscribing import BATCH, Received, Tx
from chassis.topics import create_topics
from conftest import running

GOOD = {"postgres": "ok", "consumer": "ok", "tasks": "ok"}


async def ignore(_cases: list[Received[CaseUpdated]], _tx: Tx) -> None:
    """Take events and do nothing."""


def routed(handler: Any) -> KafkaRouter:
    """Subscribe *handler* to case-updated."""
    router = KafkaRouter()
    router.subscriber("case-updated", **BATCH)(handler)
    return router


def service(dsn: str, kafka_bootstrap: str, prefix: str, folder: Path, **more: Any) -> Service:
    """Compose a service that consumes one topic."""
    settings = ServiceSettings(
        postgres_dsn=dsn,
        kafka_bootstrap=kafka_bootstrap,
        topic_prefix=prefix,
        api_audience="audience",
        tenants="0a1b2c3d-0000-4000-8000-000000000001",
        **more,
    )
    made = Service("triage", settings, title="Test", description="Test", migrations=folder)
    made.subscribe(routed(ignore))
    return made


async def ask(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    """Read a health route."""
    async with session.get(url) as response:
        return response.status, await response.json()


@pytest.fixture
async def prefix(kafka_bootstrap: str) -> str:
    """Make topics for this test alone."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=1, replication=1)
    return prefix


async def until(
    session: aiohttp.ClientSession, url: str, status: int, told: Callable[[Any], bool] = lambda _body: True
) -> Any:
    """Wait for a health route to answer with *status*, and with a body that fits."""
    async with asyncio.timeout(60):
        while True:
            found, body = await ask(session, url)
            if found == status and told(body):
                return body
            await asyncio.sleep(0.02)


async def test_a_service_is_ready_once_it_has_its_partitions(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path
) -> None:
    """Pool, assignment, relay and workers: all of them."""
    made = service(database, kafka_bootstrap, prefix, tmp_path)
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        assert await until(session, f"{url}/readyz", 200) == GOOD
        assert await ask(session, f"{url}/livez") == (200, {"consumer": "ok", "tasks": "ok"})


async def test_every_topic_and_every_worker_has_a_connection_beside_those_for_requests(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path
) -> None:
    """None of them waits for another's, whatever the setting."""
    made = service(database, kafka_bootstrap, prefix, tmp_path, postgres_request_connections=1)

    async def nothing_due() -> int:
        return 0

    made.add_worker("nothing", nothing_due)
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        await until(session, f"{url}/readyz", 200)
        workers = 2  # with the purge of dead letters
        assert made.db.pool.get_max_size() == 1 + workers + 1


async def test_a_signal_ends_whatever_a_starting_service_waits_for() -> None:
    """Also what it waits for while it gives up; it answers nobody."""
    waiting, giving_up = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def stubborn(_api: Any) -> AsyncIterator[None]:
        try:
            waiting.set()
            await asyncio.Event().wait()
            yield
        finally:
            giving_up.set()
            await asyncio.Event().wait()

    api = make_api(title="test", description="test", ready={}, alive={})
    api.router.lifespan_context = stubborn
    serving = server(api)
    task = asyncio.create_task(serving._serve())
    async with asyncio.timeout(60):
        await waiting.wait()
        serving.handle_exit(signal.SIGTERM, None)
        await giving_up.wait()
        await task

    assert not serving.is_up


async def test_a_service_answers_for_its_health_while_it_waits_for_postgresql(tmp_path: Path) -> None:
    """Kubernetes would restart it otherwise, and nobody would see why it is not ready."""
    made = service("postgresql://127.0.0.1:1/none", "127.0.0.1:1", "test", tmp_path)
    serving = server(made.api)
    task = asyncio.create_task(serving._serve())
    async with asyncio.timeout(60):
        while not serving.started:
            await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}"
    async with aiohttp.ClientSession() as session:
        assert (await ask(session, f"{url}/livez"))[0] == 200
        status, body = await ask(session, f"{url}/readyz")
        assert (status, body["tasks"]) == (503, "starting")
        assert "PostgresUnavailableError" in body["postgres"]
        async with session.get(f"{url}/metrics") as answer:
            assert answer.status == 200
        assert not serving.is_up
    serving.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(60):
        await task


async def test_a_service_without_kafka_is_alive_but_not_ready(database: str, tmp_path: Path) -> None:
    """It waits for its group instead of being restarted for it."""
    made = service(database, "127.0.0.1:1", "test", tmp_path)
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        body = await until(session, f"{url}/readyz", 503, lambda body: body["postgres"] == "ok")
        assert "assignment" in body["consumer"]
        assert (await ask(session, f"{url}/livez"))[0] == 200


async def test_a_service_that_is_asked_is_ready_without_kafka(database: str, tmp_path: Path) -> None:
    """Reports and decisions need PostgreSQL alone; a replica that starts during an outage takes them as well."""
    made = service(database, "127.0.0.1:1", "test", tmp_path)
    made.add_router(APIRouter())
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        body = await until(session, f"{url}/readyz", 200)
        assert (body["postgres"], body["tasks"]) == ("ok", "ok")
        assert "assignment" in body["consumer"]


async def test_a_service_without_its_database_is_not_ready(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path
) -> None:
    """And ready again when it is back."""
    made = service(database, kafka_bootstrap, prefix, tmp_path)
    admin = await asyncpg.connect(database.rpartition("/")[0] + "/postgres")
    name = database.rpartition("/")[2]
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        await until(session, f"{url}/readyz", 200)
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        body = await until(session, f"{url}/readyz", 503)
        assert body["postgres"].startswith("away")
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert await until(session, f"{url}/readyz", 200) == GOOD
    await admin.close()


async def test_a_service_that_ends_while_it_joins_its_group_is_no_member(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partitions would belong to nobody, until Kafka misses it."""
    join, joining, go_on = Consumer.start, asyncio.Event(), asyncio.Event()

    async def join_late(consumer: Consumer) -> None:
        joining.set()
        await go_on.wait()
        await join(consumer)

    monkeypatch.setattr(Consumer, "start", join_late)
    made = service(database, kafka_bootstrap, prefix, tmp_path)
    async with running(made.api):
        await asyncio.wait_for(joining.wait(), 60)
        # It would join while the service waits for its work to end.
        asyncio.get_running_loop().call_later(0.5, go_on.set)

    assert made._consumer is not None
    assert made._consumer.unassigned == {f"{prefix}.case-updated"}


@pytest.mark.parametrize(("asked", "status"), [(False, 503), (True, 200)])
async def test_a_halted_consumer_makes_a_worker_not_ready_but_is_no_reason_to_restart_it(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path, *, asked: bool, status: int
) -> None:
    """
    A restart would take the same events again; that is worth something only when the fault is mended.

    A service that is asked goes on answering: its consumer is no reason to turn reports away.
    """

    async def broken_deploy(_cases: list[Received[CaseUpdated]], _tx: Tx) -> None:
        raise ZeroDivisionError

    made = service(database, kafka_bootstrap, prefix, tmp_path, kafka_max_batch=5, halt_after_dead_letters=7)
    made.subscribe(routed(broken_deploy))
    if asked:
        made.add_router(APIRouter())
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    event = CaseUpdated(
        tenant_id=uuid4(),
        case_id=uuid4(),
        change="opened",
        status=CaseStatus.OPEN,
        report_count=1,
        changed_at=datetime.now(UTC),
    )
    headers = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
    for _ in range(20):
        await producer.send_and_wait(f"{prefix}.case-updated", event.model_dump_json().encode(), headers=headers)
    await producer.stop()

    async with running(made.api) as url, aiohttp.ClientSession() as session:
        body = await until(
            session,
            f"{url}/readyz",
            status,
            lambda body: body["consumer"].startswith("halted") and body["postgres"] == body["tasks"] == "ok",
        )
        assert "backstop dead list --service triage" in body["consumer"]
        async with session.get(f"{url}/metrics") as response:
            text = await response.text()
        assert f'backstop_consumer_halted{{topic="{prefix}.case-updated"}} 1.0' in text
        assert "backstop_dead_letters_unresolved" in text

        consumer = made._consumer
        assert consumer is not None
        for _ in range(STUCK_SAMPLES + 2):
            await consumer.sample_lag(30)
        (lag,) = telemetry.consumer_lag.collect()
        assert max(sample.value for sample in lag.samples) > 0, "records must wait, or it could not be stuck"
        assert await ask(session, f"{url}/livez") == (200, {"consumer": "ok", "tasks": "ok"})


async def test_a_record_that_cannot_be_read_is_told_and_is_no_reason_to_be_out_of_service(
    world: Any, database: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    """Its partition stands still; a rollout would not help, and all else goes on."""
    await world.publish_batch([world.event()], unreadable=0)
    made = service(database, kafka_bootstrap, world.prefix, tmp_path)
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        body = await until(session, f"{url}/readyz", 200, lambda body: "unreadable" in body["consumer"])
        place = f"{world.prefix}.case-updated 0 0"
        assert body["consumer"] == f"unreadable records at {place}; see `backstop topics skip --help`"


async def test_a_worker_that_ends_unasked_makes_the_service_not_alive(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path
) -> None:
    """A bug in the loop itself is not hidden behind a good health report."""
    made = service(database, kafka_bootstrap, prefix, tmp_path)

    async def broken() -> int:
        raise BaseExceptionGroup("not an Exception", [KeyboardInterrupt()])

    made.add_worker("broken", broken)
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        body = await until(session, f"{url}/livez", 503)
        assert "background task ended" in body["tasks"]


async def test_only_health_and_metrics_need_no_token(
    database: str, kafka_bootstrap: str, prefix: str, tmp_path: Path
) -> None:
    """Everything else asks who is there."""
    made = service(database, kafka_bootstrap, prefix, tmp_path)
    async with running(made.api) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/metrics") as response:
            assert "backstop_outbox_oldest_seconds" in await response.text()
        for path in ("/docs", "/openapi.json"):
            assert (await ask(session, f"{url}{path}"))[0] == 404
