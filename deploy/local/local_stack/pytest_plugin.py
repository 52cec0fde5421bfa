"""Give tests a real Kafka and a real PostgreSQL: one of each for the whole run, started when the first test asks."""

import os
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from local_stack.backing import Backing


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def backing_services() -> "AsyncIterator[Backing]":
    """Provide Kafka and PostgreSQL until the end of the run; `.local/test-<process>` keeps their logs if they fail."""
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
