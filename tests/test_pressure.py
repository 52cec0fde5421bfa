"""Kafka or PostgreSQL goes away: nothing accepted is lost, metrics say what waits, and all catches up by itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from demo.check import differences
from demo.people import Demo
from demo.story import Reported
from local_stack.stack import Stack

from .conftest import running
from .test_replicas import metrics, write
from .test_story import until

pytestmark = pytest.mark.slow

USERS = ("anna@contoso.example", "ben@contoso.example")
MANY = 1000
SERVICES = ("reporter", "triage", "submitter", "verdict_poller", "blocklist")
INTAKE = ("reporter", "gateway")


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, Demo]]:
    """Start the system with a Kafka and a PostgreSQL of its own, as processes that can be killed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("BACKSTOP_KAFKA_BOOTSTRAP", raising=False)
        environment.delenv("BACKSTOP_POSTGRES_DSN", raising=False)
        environment.setenv("BACKSTOP_DOCKER", "no")
        async with running(
            None,
            tmp_path_factory.mktemp("pressure"),
            "pressure",
            settings={
                "*": {"kafka_session_timeout_seconds": 8},
                "submitter": {"submissions_per_15_minutes": MANY, "submission_lease_seconds": 12},
            },
            simulator_options=["--set", f"submissions_per_window={MANY}"],
        ) as (stack, demo):
            await demo.sign_in(USERS)
            yield stack, demo


async def ready(stack: Stack, name: str) -> tuple[int, dict[str, str]]:
    """Ask a process whether it is ready."""
    async with aiohttp.ClientSession() as session, session.get(f"{stack.urls[name]}/readyz") as response:
        return response.status, await response.json()


async def gauge(stack: Stack, name: str, metric: str) -> float:
    """Read a metric without labels."""
    return (await metrics(stack, name))[metric][()]


async def settled(demo: Demo) -> None:
    """Wait until every case is decided and every block has its outcome; the ledger agrees with all claims."""

    async def quiet() -> bool:
        return demo.event_log.settled(demo.accepted)

    await until(quiet, 120)
    ledger = await demo.control("GET", "/ledger")
    assert differences(demo.event_log, demo.accepted, ledger, demo.addresses) == []


async def test_while_kafka_is_away_intake_goes_on_and_everything_catches_up(
    system: tuple[Stack, Demo], tmp_path: Path
) -> None:
    """200 reports are accepted meanwhile; how long they wait can be seen; then all are published and decided."""
    stack, demo = system
    await stack.supervisor.kill("kafka")
    mails = [write(tmp_path, f"kafka{number}@pressure.example") for number in range(100)]
    outcomes = []
    for some in range(0, len(mails), 20):
        outcomes += await asyncio.gather(
            *(demo.report(Reported(mail, USERS, folder="inbox")) for mail in mails[some : some + 20])
        )
    assert sum(len(outcome.report_ids) for outcome in outcomes) == 200

    async def seen() -> bool:
        return await gauge(stack, "reporter", "backstop_outbox_events") == 200

    await until(seen)
    age = await gauge(stack, "reporter", "backstop_outbox_oldest_seconds")

    async def older() -> bool:
        return await gauge(stack, "reporter", "backstop_outbox_oldest_seconds") > age + 5

    await until(older)
    await until(lambda: _are_ready(stack, *INTAKE))
    for name in SERVICES:
        async with aiohttp.ClientSession() as session, session.get(f"{stack.urls[name]}/livez") as response:
            assert response.status == 200

    await stack.supervisor.restart("kafka")
    await settled(demo)
    assert len(demo.event_log.cases) == len(mails)

    async def nothing_waits() -> bool:
        read = [await metrics(stack, name) for name in SERVICES]
        lags = [lag for one in read for lag in one["backstop_consumer_lag"].values()]
        waiting = [
            one[name][()] for one in read for name in ("backstop_outbox_events", "backstop_outbox_oldest_seconds")
        ]
        return bool(lags) and not any(lags) and not any(waiting)

    await until(nothing_waits)


async def test_while_postgresql_is_away_intake_says_so_and_nothing_accepted_is_lost(
    system: tuple[Stack, Demo], tmp_path: Path
) -> None:
    """503 with Retry-After, straight and through the gateway; whoever sends it again is accepted, once."""
    stack, demo = system
    mails = [write(tmp_path, f"postgres{number}@pressure.example") for number in range(20)]
    refused: list[tuple[str, int, str, str]] = []
    accepted: list[UUID] = []
    async with aiohttp.ClientSession() as session:

        async def report(where: str, mail: Path, user: str) -> None:
            """Send a report until it is accepted, as Retry-After asks, but sooner."""
            raw = await asyncio.to_thread(mail.read_bytes)
            while True:
                async with session.post(
                    f"{stack.urls[where]}/v1/reports",
                    params={"reported_as": "phishing", "folder": "inbox"},
                    data=raw,
                    headers={"Authorization": f"Bearer {demo._tokens[user]}", "Content-Type": "message/rfc822"},
                ) as response:
                    body = await response.json(content_type=None)
                    if response.status == 202:
                        accepted.append(UUID(body["report_id"]))
                        return
                    refused.append(
                        (where, response.status, response.content_type, response.headers.get("Retry-After", ""))
                    )
                await asyncio.sleep(0.2)

        load = asyncio.gather(
            *(report(where, mail, user) for mail in mails for where, user in zip(INTAKE, USERS, strict=True))
        )
        await until(lambda: _truth(accepted))
        await stack.supervisor.kill("postgres")
        extra = asyncio.gather(*(report(where, write(tmp_path, "late@pressure.example"), USERS[0]) for where in INTAKE))
        await until(lambda: _truth({where for where, *_ in refused} == set(INTAKE)))
        status, checks = await ready(stack, "reporter")
        assert (status, checks["postgres"].partition(":")[0]) == (503, "away")
        await until(lambda: _stands_still(stack))
        await stack.supervisor.restart("postgres")
        await load
        await extra
    assert {(status, kind, after) for _, status, kind, after in refused} == {(503, "application/problem+json", "5")}
    await until(lambda: _are_ready(stack, *SERVICES, "gateway"))

    async def known() -> bool:
        return set(accepted) <= demo.event_log.case_of.keys()

    await until(known)
    assert len(set(accepted)) == len(accepted) == 2 * len(mails) + 2


async def _are_ready(stack: Stack, *names: str) -> bool:
    return all([(await ready(stack, name))[0] == 200 for name in names])


async def _truth(value: Any) -> bool:
    return bool(value)


async def _stands_still(stack: Stack) -> bool:
    """Tell whether looks have failed: the metrics say since when they are true."""
    return time.time() - await gauge(stack, "triage", "backstop_sampled_timestamp_seconds") > 8
