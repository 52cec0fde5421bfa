"""The environment of all measurements: Kafka, PostgreSQL and services as in production, and probes from outside."""

import asyncio
import shutil
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import aiohttp
import asyncpg
import orjson
import psutil  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from backstop.migrate import libraries_of, migrations_of
from chassis.postgres import Database
from chassis.topics import create_topics
from local_stack.backing import Backing, backing, own_database
from local_stack.ports import choose_port
from local_stack.probes import listens
from local_stack.stack import Stack
from local_stack.supervisor import STATE, StackError, Supervisor

ROOT = Path(__file__).parents[1]
POLICY = """
[[rule]]
name = "phishing that reached an Inbox"
when.reported_as = ["phishing", "malware"]
when.folder = ["inbox"]
then.submit = "as-reported"
"""
_POLL_SECONDS = 0.02
_STUCK_SECONDS = 30

Record = tuple[bytes, bytes, list[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class Environment:
    """Kafka and PostgreSQL of a run, and a folder for the output of its processes."""

    found: Backing
    folder: Path

    @asynccontextmanager
    async def isolated(self, name: str) -> AsyncIterator[Backing]:
        """Create a database and a topic prefix for *name* on the same Kafka and PostgreSQL."""
        prefix = f"{self.found.topic_prefix}.{name.replace('_', '-')}-{uuid4().hex[:8]}"
        async with own_database(self.found.postgres_dsn, name) as dsn:
            yield replace(self.found, postgres_dsn=dsn, topic_prefix=prefix)


@asynccontextmanager
async def start_environment(name: str) -> AsyncIterator[Environment]:
    """Start Kafka and PostgreSQL as in production: committed data is on disk."""
    folder = STATE / "bench" / name
    shutil.rmtree(folder, ignore_errors=True)
    # With the default settings, PostgreSQL writes checkpoints in the middle of a round.
    settings = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h"}
    async with backing(folder, postgres_settings=settings) as found:
        yield Environment(found, folder)
    shutil.rmtree(folder)


@asynccontextmanager
async def run_backstop(
    on: Environment,
    found: Backing,
    services: Sequence[str],
    *,
    replicas: Mapping[str, int] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    simulator_options: Sequence[str] = (),
    modules: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """Run *services* as in production: each is a process with all safeguards that logs warnings to a file."""
    folder = on.folder / found.topic_prefix
    folder.mkdir(parents=True, exist_ok=True)
    policy = folder / "policy.toml"
    await asyncio.to_thread(policy.write_text, POLICY)
    own: dict[str, dict[str, object]] = {
        "*": {"topic_prefix": found.topic_prefix, "log_level": "WARNING"},
        "triage": {"policy_file": policy},
    }
    for service, more in (settings or {}).items():
        own.setdefault(service, {}).update(more)
    async with Stack(
        folder,
        services=services,
        replicas=replicas or {},
        settings=own,
        simulator_options=simulator_options,
        found=found,
        modules=modules,
    ) as stack:
        yield stack


@asynccontextmanager
async def open_schema(dsn: str, service: str) -> AsyncIterator[Database]:
    """Open the schema of *service*, created by its own migrations."""
    folder = migrations_of(service)
    assert folder  # noqa: S101 - part of this checkout
    database = Database(dsn, schema=service)
    await database.open(folder, libraries=libraries_of(service))
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def run_rival(
    on: Environment, found: Backing, module: str, services: Sequence[str] = ("reporter", "triage")
) -> AsyncIterator["Rival"]:
    """Run the programs of `bench.rivals.<module>` on tables created by our own migrations."""
    for service in ("reporter", "triage"):
        async with open_schema(found.postgres_dsn, service):
            pass
    await create_topics(found.kafka_bootstrap, prefix=found.topic_prefix, partitions=12, replication=1)
    folder = on.folder / found.topic_prefix
    port = choose_port(module)
    env = {
        "PYTHONPATH": str(ROOT),
        "BENCH_KAFKA": found.kafka_bootstrap,
        "BENCH_PREFIX": found.topic_prefix,
        "BENCH_DSN": found.postgres_dsn,
        "BENCH_MAILS": str(folder / "mails"),
        "BENCH_PORT": str(port),
    }
    async with Supervisor(folder) as supervisor:
        program = [sys.executable, "-m", f"bench.rivals.{module}"]

        async def ready() -> bool:
            return await listens(f"127.0.0.1:{port}")

        for service in services:
            await supervisor.start(
                service, [*program, service], env=env, ready=ready if service == "reporter" else None
            )
        yield Rival(supervisor, f"http://127.0.0.1:{port}")


@dataclass(frozen=True, slots=True)
class Rival:
    """A running program that Backstop is compared with."""

    supervisor: Supervisor
    url: str


async def app_token(stack: Stack) -> str:
    """Return a token of an application that reports on behalf of users."""
    order = {
        "tenant": stack.tenant_id,
        "audience": stack.api_audience,
        "roles": ["Reporter"],
        "app": True,
        "expires_in": 24 * 3600,
    }
    return str((await control(stack, "POST", "/tokens", order))["access_token"])


async def control(stack: Stack, method: str, path: str, body: object = None) -> Any:
    """Call a control route of the simulator."""
    trust = ssl.create_default_context(cafile=stack.ca_file)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
        session.request(method, f"{stack.simulator_url}/simulator{path}", json=body, raise_for_status=True) as response,
    ):
        return await response.json()


async def fill(kafka_bootstrap: str, topic: str, records: Iterable[Record]) -> int:
    """Produce *records* to *topic*; return their number."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, acks="all", linger_ms=20, max_batch_size=256 << 10)
    await producer.start()
    count = 0
    try:
        sent: list[asyncio.Future[Any]] = []
        for key, value, headers in records:
            sent.append(await producer.send(topic, value=value, key=key, headers=headers))
            count += 1
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return count


class TopicCounter:
    """Counts the records of topics by the end offsets of their partitions, without reading them."""

    def __init__(self, kafka_bootstrap: str) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def count(self, topic: str) -> int:
        """Return the number of records of *topic*."""
        partitions = await _partitions(self._consumer, topic)
        return sum((await self._consumer.end_offsets(partitions)).values())

    async def reach(self, topic: str, wanted: int) -> float:
        """Wait until *topic* has *wanted* records; return the time. Raises StackError if there is no progress."""
        seen, since = -1, time.monotonic()
        while True:
            count = await self.count(topic)
            now = time.monotonic()
            if count >= wanted:
                return now
            if count != seen:
                seen, since = count, now
            elif now - since > _STUCK_SECONDS:
                raise StackError(f"{topic} has {count} of {wanted} records, and no progress for half a minute.")
            await asyncio.sleep(_POLL_SECONDS)


class ReportCounter:
    """Counts the reports that joined cases, according to case-updated events published after the start."""

    def __init__(self, found: Backing) -> None:
        self._topic = f"{found.topic_prefix}.case-updated"
        self._consumer = AIOKafkaConsumer(bootstrap_servers=found.kafka_bootstrap)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        places = await _partitions(self._consumer, self._topic)
        ends = await self._consumer.end_offsets(places)
        self._consumer.assign(places)
        for place, end in ends.items():
            self._consumer.seek(place, end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def reach(self, wanted: int) -> float:
        """Wait until *wanted* reports have joined cases; return the time. Raises StackError if there is no progress."""
        count, moved = 0, time.monotonic()
        while count < wanted:
            batches = await self._consumer.getmany(timeout_ms=500)
            if batches:
                moved = time.monotonic()
            elif time.monotonic() - moved > _STUCK_SECONDS:
                raise StackError(f"{self._topic} has {count} of {wanted} reports, and no progress for half a minute.")
            count += sum(len(orjson.loads(one.value)["report_ids"]) for batch in batches.values() for one in batch)
        return time.monotonic()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    found = consumer.partitions_for_topic(topic)
    while not found:
        # Metadata of an unknown topic is only fetched on request.
        await consumer._client.add_topic(topic)  # noqa: SLF001 - no public way without a subscription
        found = consumer.partitions_for_topic(topic)
    return [TopicPartition(topic, number) for number in sorted(found)]


async def settle(dsn: str) -> None:
    """Run a checkpoint, so that a round does not pay for the writes of earlier ones."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("CHECKPOINT")
    await connection.close()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time used by a process and its threads, in seconds."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB (a million bytes)."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6
