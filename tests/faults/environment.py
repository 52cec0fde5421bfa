"""Kafka and PostgreSQL of a fault run, which may be killed, each behind a proxy that can be disturbed."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from faults.proxy import Proxy
from local_stack.backing import Backing
from local_stack.kafka import start_kafka
from local_stack.ports import choose_port
from local_stack.postgres import start_postgres
from local_stack.supervisor import Supervisor


@dataclass
class Environment:
    """Kafka and PostgreSQL, each behind a proxy."""

    supervisor: Supervisor
    proxies: dict[str, Proxy]
    kafka_bootstrap: str
    postgres_dsn: str
    """Bypasses the proxy; for the test harness itself."""

    def backing(self, database: str) -> Backing:
        """Return the addresses of Kafka and *database* that services use: those of the proxies."""
        dsn = self.postgres_dsn.rpartition("@")[0] + f"@127.0.0.1:{self.proxies['postgres'].port}/{database}"
        return Backing(self.kafka_bootstrap, dsn, "behind a proxy", "behind a proxy")

    async def connect(self, database: str) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect to *database*, bypassing the proxy."""
        return await asyncpg.connect(self.postgres_dsn.rpartition("/")[0] + f"/{database}", timeout=10)


@asynccontextmanager
async def start_environment(folder: Path) -> AsyncIterator[Environment]:
    """Start Kafka and PostgreSQL for this run alone."""
    async with AsyncExitStack() as life:
        supervisor = await life.enter_async_context(Supervisor(folder))
        ports = {name: (choose_port(f"{name}_proxy"), choose_port(name)) for name in ("kafka", "postgres")}
        proxies = {name: await life.enter_async_context(Proxy(*both)) for name, both in ports.items()}
        front, behind = ports["kafka"]
        await start_kafka(supervisor, port=behind, advertised_port=front)
        dsn = await start_postgres(supervisor, port=ports["postgres"][1])
        yield Environment(supervisor, proxies, f"127.0.0.1:{front}", dsn)
