"""Get Kafka and PostgreSQL from wherever they can be had: an address, Docker, or local processes."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from local_stack import containers
from local_stack.kafka import kafka_answers, start_kafka
from local_stack.postgres import postgres_answers, start_postgres
from local_stack.supervisor import StackError, Supervisor, say, together

_ADDRESS_SECONDS = 10
_CONTAINER_SECONDS = 60
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Backing:
    """Where Kafka and PostgreSQL are, where they come from in a word each, and how the topics there begin."""

    kafka_bootstrap: str
    postgres_dsn: str
    kafka_origin: str
    postgres_origin: str
    topic_prefix: str = "backstop"


@asynccontextmanager
async def backing(
    folder: Path, supervisor: Supervisor | None = None, *, postgres_settings: Mapping[str, str] | None = None
) -> AsyncIterator[Backing]:
    """
    Provide Kafka and PostgreSQL until the context is left, and say in one line where they come from.

    Each is taken from the first of these that there is: the address in `BACKSTOP_KAFKA_BOOTSTRAP` or
    `BACKSTOP_POSTGRES_DSN`; a Docker engine that answers (unless `BACKSTOP_DOCKER=no`); a local process with its data
    in *folder*, run by *supervisor* (names `kafka` and `postgres`) or by one of its own. Behind an address there may be
    anybody's data: there it is a database and a topic prefix of our own, both removed when the context is left.
    *postgres_settings* go to a PostgreSQL that is started here.
    Raises `StackError` when an address does not answer, lets us make no database, or a local process does not start.
    """
    async with AsyncExitStack() as life:
        with_docker = _docker_is_wanted() and await containers.engine_answers()
        if supervisor is None:
            supervisor = await life.enter_async_context(Supervisor(folder))
        kafka, postgres = await together(
            _kafka(life, supervisor, with_docker), _postgres(life, supervisor, with_docker, postgres_settings or {})
        )
        found = Backing(kafka[0], postgres[0], kafka[1], postgres[1], kafka[2])
        say(f"Kafka at {found.kafka_bootstrap} ({found.kafka_origin}), PostgreSQL ({found.postgres_origin})")
        yield found


async def _kafka(life: AsyncExitStack, supervisor: Supervisor, with_docker: bool) -> tuple[str, str, str]:
    prefix = "backstop"
    if given := os.environ.get("BACKSTOP_KAFKA_BOOTSTRAP"):
        await _require("BACKSTOP_KAFKA_BOOTSTRAP", partial(kafka_answers, given))
        prefix = f"backstop-run-{secrets.token_hex(4)}"
        say(f"Topics begin with {prefix} and are deleted at the end; others on that Kafka are left alone.")
        life.push_async_callback(_delete_topics, given, prefix)
        return given, "from BACKSTOP_KAFKA_BOOTSTRAP", prefix
    if with_docker and (address := await _contained(life, containers.KAFKA_IMAGE, containers.run_kafka, kafka_answers)):
        return address, f"Docker, {containers.KAFKA_IMAGE}", prefix
    return await start_kafka(supervisor), "local process", prefix


async def _postgres(
    life: AsyncExitStack, supervisor: Supervisor, with_docker: bool, settings: Mapping[str, str]
) -> tuple[str, str]:
    if given := os.environ.get("BACKSTOP_POSTGRES_DSN"):
        await _require("BACKSTOP_POSTGRES_DSN", partial(postgres_answers, given))
        return await _make_database(life, given), "from BACKSTOP_POSTGRES_DSN"
    run = partial(containers.run_postgres, settings)
    if with_docker and (dsn := await _contained(life, containers.POSTGRES_IMAGE, run, postgres_answers)):
        return dsn, f"Docker, {containers.POSTGRES_IMAGE}"
    return await start_postgres(supervisor, settings=settings), "local process"


async def _delete_topics(kafka_bootstrap: str, prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    try:
        await admin.start()
        if ours := [topic for topic in await admin.list_topics() if topic.startswith(f"{prefix}.")]:
            await admin.delete_topics(ours)
    except KafkaError as error:
        say(f"The topics that begin with {prefix}. could not be deleted ({type(error).__name__}): delete them by hand.")
    finally:
        await admin.close()


async def _make_database(life: AsyncExitStack, dsn: str) -> str:
    name = f"backstop_run_{secrets.token_hex(4)}"
    try:
        await _tell_postgres(dsn, f"CREATE DATABASE {name} TEMPLATE template0")
    except asyncpg.PostgresError as error:
        raise StackError(
            f"No database can be made at BACKSTOP_POSTGRES_DSN ({error}): name a user there who may, or unset it."
        ) from error
    say(f"The database is {name} and is dropped at the end; others on that server are left alone.")
    life.push_async_callback(_drop_database, dsn, name)
    return database_of(dsn, name)


async def _drop_database(dsn: str, name: str) -> None:
    try:
        await _tell_postgres(dsn, f"DROP DATABASE {name} WITH (FORCE)")
    except (asyncpg.PostgresError, OSError) as error:
        say(f"The database {name} could not be dropped ({type(error).__name__}): drop it by hand.")


async def _tell_postgres(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def own_database(dsn: str, name: str) -> AsyncIterator[str]:
    """Make a database for the time of a block, on the server of *dsn* and called *name* and more; yields its DSN."""
    name = f"{name}_{secrets.token_hex(16)}"
    server = await asyncpg.connect(dsn)
    try:
        await server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield database_of(dsn, name)
        finally:
            await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


def database_of(dsn: str, name: str) -> str:
    """Return the DSN of another database on the same server."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


async def _require(variable: str, answers: Callable[[], Awaitable[bool]]) -> None:
    reason = f"nothing answered within {_ADDRESS_SECONDS} s"
    try:
        if await _answered(answers, _ADDRESS_SECONDS):
            return
    except (asyncpg.PostgresError, ValueError) as error:
        reason = str(error)
    raise StackError(
        f"The address in {variable} does not work ({reason}): correct it, or unset it to have one started."
    )


async def _answered(answers: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    patience = time.monotonic() + seconds
    while not await answers():
        if time.monotonic() > patience:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _docker_is_wanted() -> bool:
    given = os.environ.keys() >= {"BACKSTOP_KAFKA_BOOTSTRAP", "BACKSTOP_POSTGRES_DSN"}
    return not given and os.environ.get("BACKSTOP_DOCKER", "yes").lower() not in ("no", "0", "false", "off")


async def _contained(
    life: AsyncExitStack, image: str, run: Callable[[], containers.Contained], answers: Callable[[str], Awaitable[bool]]
) -> str | None:
    say(f"Docker: starting {image} (the first time its image is fetched)")
    try:
        address, stop = await containers.in_daemon_thread(run)
        life.push_async_callback(containers.in_daemon_thread, stop)
        if await _answered(lambda: answers(address), _CONTAINER_SECONDS):
            return address
        reason = f"no answer within {_CONTAINER_SECONDS} s"
    except Exception as error:  # noqa: BLE001 - whatever is wrong with Docker, there is another way
        reason = str(error) or type(error).__name__
    say(f"Docker could not provide {image} ({reason}): a local process takes its place")
    return None
