"""The whole system as processes, on the run's Kafka and PostgreSQL, with topics and a database of its own."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from faults.settings import LEASES

from demo.event_log import EventLog
from demo.gateway import Gateway
from demo.people import Demo
from demo.quarantine import SETTINGS
from local_stack.backing import Backing, own_database
from local_stack.stack import Stack

POLICY = """
[[rule]]
name = "phishing that two users saw"
when.reported_as = ["phishing", "malware"]
when.folder = ["inbox"]
when.min_reports = 2
then.submit = "as-reported"
then.block = "sender"
"""


@asynccontextmanager
async def running(
    found: Backing | None,
    folder: Path,
    prefix: str,
    *,
    replicas: Mapping[str, int] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    simulator_options: Sequence[str] = (),
) -> AsyncIterator[tuple[Stack, Demo]]:
    """Start the system and hold everything that a test needs to use it; without *found* it brings its own Kafka."""
    prefix = f"{found.topic_prefix}.{prefix}" if found else prefix
    policy = folder / "policy.toml"
    await asyncio.to_thread(policy.write_text, POLICY)
    own: dict[str, dict[str, object]] = {
        # A service that is killed in the middle of a call leaves its claim behind.
        "*": {"topic_prefix": prefix, **dict.fromkeys(LEASES.values(), 30)},
        "triage": {"policy_file": policy},
        "quarantine": dict(SETTINGS),
        "verdict_poller": {
            "verdict_poll_intervals": "1,1,1,2,5",
            "verdict_grid_seconds": 0.5,
            "tenant_settings_ttl_seconds": 0,
        },
    }
    for service, more in (settings or {}).items():
        own.setdefault(service, {}).update(more)
    async with Stack(
        folder,
        replicas=replicas or {},
        settings=own,
        simulator_options=["--verdict-delay", "1", *simulator_options],
        found=found,
    ) as stack:
        trust = ssl.create_default_context(cafile=stack.ca_file)
        event_log = EventLog(stack.kafka_bootstrap, prefix=prefix, listener=lambda _event, _time: None)
        async with (
            Gateway(stack.urls["gateway"]) as gateway,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as microsoft,
        ):
            following = asyncio.create_task(event_log.follow())
            try:
                yield stack, Demo(stack, gateway, microsoft, event_log, {})
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following


@pytest.fixture(scope="session")
async def system(
    backing_services: Backing, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stack, Demo]]:
    """Start the system once for all stories."""
    async with (
        with_own_database(backing_services, "story") as found,
        running(found, tmp_path_factory.mktemp("story"), "story") as system,
    ):
        yield system


@asynccontextmanager
async def with_own_database(shared: Backing, name: str) -> AsyncIterator[Backing]:
    """Make a database for the time of a block."""
    async with own_database(shared.postgres_dsn, name) as dsn:
        yield replace(shared, postgres_dsn=dsn)


@pytest.fixture
def stack(system: tuple[Stack, Demo]) -> Stack:
    """Return the processes."""
    return system[0]


@pytest.fixture
def demo(system: tuple[Stack, Demo]) -> Demo:
    """Return the people who use them."""
    return system[1]
