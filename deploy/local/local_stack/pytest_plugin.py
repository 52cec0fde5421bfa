"""Give tests a real Kafka and a real PostgreSQL: one of each for the whole run, started when the first test asks."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from local_stack.backing import Backing

FAST = "not slow"
"""What `-m` says in a run that starts neither Kafka nor PostgreSQL."""
_SERVERS = {"kafka.Kafka", "initdb", "postgres"}
_REFUSED = "A run with -m 'not slow' starts neither Kafka nor PostgreSQL: mark this test with pytest.mark.slow"


def pytest_configure(config: pytest.Config) -> None:
    """Let a fast run fail, and say why, where a test would start Kafka or PostgreSQL."""
    config.addinivalue_line("markers", "slow: needs Kafka, PostgreSQL or a browser, or takes long")
    if config.option.markexpr == FAST:
        sys.addaudithook(_refuse_servers)
        # Programs that a test starts take a given address and start nothing of their own; this one is refused at once.
        for variable in ("BACKSTOP_KAFKA_BOOTSTRAP", "BACKSTOP_POSTGRES_DSN"):
            os.environ[variable] = "this-test-is-to-be-marked-slow://"


def _refuse_servers(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and not _SERVERS.isdisjoint(Path(os.fsdecode(word)).name for word in arguments[1]):
        pytest.fail(_REFUSED)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def backing_services(pytestconfig: pytest.Config) -> "AsyncIterator[Backing]":
    """Provide Kafka and PostgreSQL until the end of the run; `.local/test-<process>` keeps their logs if they fail."""
    if pytestconfig.option.markexpr == FAST:
        pytest.fail(_REFUSED)
    # Test runs that need neither start a second sooner.
    from local_stack.backing import backing  # noqa: PLC0415
    from local_stack.supervisor import STATE  # noqa: PLC0415

    folder = STATE / f"test-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    # Nothing here needs to survive the machine, only its processes.
    async with backing(folder, postgres_settings={"fsync": "off", "full_page_writes": "off"}) as services:
        yield services
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def kafka_bootstrap(backing_services: "Backing") -> str:
    """Return the address of a Kafka that all tests share: give topics and consumer groups names of your own."""
    return backing_services.kafka_bootstrap


@pytest.fixture(scope="session")
def postgres_dsn(backing_services: "Backing") -> str:
    """Return the DSN of a PostgreSQL that all tests share; take `database` for tables of your own."""
    return backing_services.postgres_dsn


@pytest_asyncio.fixture(loop_scope="session")
async def database(postgres_dsn: str) -> AsyncIterator[str]:
    """Return the DSN of an empty database that belongs to this test alone."""
    from local_stack.backing import own_database  # noqa: PLC0415 - as above

    async with own_database(postgres_dsn, "test") as dsn:
        yield dsn
