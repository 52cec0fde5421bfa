"""Run Kafka and PostgreSQL in containers, where a Docker engine answers."""

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar, cast
from urllib.parse import urlsplit

import docker  # type: ignore[import-untyped]
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import get_docker_host

from local_stack.kafka import BROKER_SETTINGS
from local_stack.ports import choose_port
from local_stack.postgres import DATABASE, SERVER_SETTINGS

T = TypeVar("T")
Contained = tuple[str, Callable[[], None]]  # the address, and what stops the container

KAFKA_IMAGE = "apache/kafka:4.3.1"
POSTGRES_IMAGE = "postgres:18"
_ANSWER_SECONDS = 3
_DEFAULT_ENGINE = "unix:///var/run/docker.sock"


async def engine_answers() -> bool:
    """Tell whether there is a Docker engine that answers within a few seconds."""
    return await in_daemon_thread(_ping)


def _ping() -> bool:
    engine = get_docker_host() or _DEFAULT_ENGINE
    # The client leaks a socket when nothing listens, which is the usual case: look before asking.
    if engine.startswith("unix://") and not _listens(urlsplit(engine).path):
        return False
    try:
        client = docker.DockerClient(base_url=engine, timeout=_ANSWER_SECONDS)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        with suppress(OSError):
            probe.connect(path)
            return True
    return False


def run_kafka() -> Contained:
    """Start Kafka in a container and return the bootstrap address that clients on this machine use."""
    container = DockerContainer(KAFKA_IMAGE)
    address = f"{container.get_docker_client().host()}:{choose_port('kafka')}"
    settings = {
        **BROKER_SETTINGS,
        "controller.quorum.voters": "1@localhost:9093",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{address}",
    }
    container.with_envs(**{f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()})
    container.with_bind_ports(9092, int(address.rpartition(":")[2]))
    return address, _started(container).stop


def run_postgres(settings: Mapping[str, str]) -> Contained:
    """Start PostgreSQL with *settings* in a container and return the DSN of its database `backstop`."""
    password = secrets.token_hex(16)
    options = " ".join(f"-c {key}={value}" for key, value in {**SERVER_SETTINGS, **settings}.items())
    container = DockerContainer(POSTGRES_IMAGE, command=f"postgres {options}")
    container.with_envs(POSTGRES_PASSWORD=password, POSTGRES_DB=DATABASE)
    if "BACKSTOP_POSTGRES_PORT" in os.environ:
        container.with_bind_ports(5432, choose_port("postgres"))
    else:
        container.with_exposed_ports(5432)
    _started(container)
    host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
    return f"postgresql://postgres:{password}@{host}:{port}/{DATABASE}", container.stop


def _started(container: DockerContainer) -> DockerContainer:
    try:
        return container.start()
    except BaseException:
        with suppress(docker.errors.DockerException):
            container.stop()
        raise


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run blocking *work* in a thread that the end of the program does not wait for, unlike `asyncio.to_thread`."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(error: BaseException | None, result: T | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, result))

    def thread() -> None:
        error, result = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=thread, daemon=True, name="docker").start()
    return await outcome
