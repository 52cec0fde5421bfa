"""Growth: the cost of the most frequent steps with ten thousand and with a million stored rows."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from bench.environment import open_schema, start_environment
from bench.full_tables import HOT, LARGE, Place, Step, fill, middle
from bench.report import Cell, Chart, Goal, Result, quantile
from chassis.postgres import Database
from chassis.relay import Relay
from chassis.topics import create_topics

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (10_000, 100_000)
TIMES, QUICK_TIMES = 200, 60
RELAYED = 10_000
"""Events that are published from the head of a backlog."""
RELAYS, QUICK_RELAYS = 5, 3
WANTED = 1.3
RELAY = ("reporter", f"relay {RELAYED:,} events of a backlog")

Measured = dict[tuple[str, str], dict[int, float]]
"""Median seconds by step and by number of stored rows."""


async def run(quick: bool, log: Callable[[str], None]) -> Result:
    """Fill a database for each size, then run every step on each of them in turn."""
    sizes = QUICK_SIZES if quick else SIZES
    async with AsyncExitStack() as life:
        place = await life.enter_async_context(start_environment("growth"))
        databases: dict[int, dict[str, Database]] = {}
        for size in sizes:
            log(f"storing {size:,} rows of each kind ...")
            found = await life.enter_async_context(place.isolated(f"rows_{size}"))
            databases[size] = {
                service: await life.enter_async_context(open_schema(found.postgres_dsn, service)) for service in LARGE
            }
            for service in LARGE:
                await fill(databases[size][service], service, size)
        measured = await _measure(databases, QUICK_TIMES if quick else TIMES, log)
        kafka, prefix = found.kafka_bootstrap, found.topic_prefix
        await create_topics(kafka, prefix=prefix, partitions=12, replication=1)
        outboxes = {size: mine["reporter"] for size, mine in databases.items()}
        measured[RELAY] = await _relay(outboxes, kafka, prefix, QUICK_RELAYS if quick else RELAYS, log)
    return _result(measured, sizes)


async def _measure(databases: Mapping[int, Mapping[str, Database]], times: int, log: Callable[[str], None]) -> Measured:
    measured: Measured = {}
    places = {size: await middle(mine["triage"]) for size, mine in databases.items()}
    for (service, name), step in HOT.items():
        log(f"{service}: {name}")
        seconds: dict[int, list[float]] = {size: [] for size in databases}
        for _ in range(times):
            for size, mine in databases.items():
                seconds[size].append(await _take(mine[service], step, places[size]))
        # The first ones run with cold caches.
        measured[service, name] = {size: quantile(found[times // 6 :], 0.5) for size, found in seconds.items()}
    return measured


async def _take(database: Database, step: Step, place: Place) -> float:
    """Return the seconds that *step* takes, in a transaction that is rolled back so that nothing changes."""
    async with database.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        begin = time.perf_counter()
        await step(connection, place)
        seconds = time.perf_counter() - begin
        await transaction.rollback()
    return seconds


async def _relay(
    outboxes: Mapping[int, Database], kafka: str, prefix: str, times: int, log: Callable[[str], None]
) -> dict[int, float]:
    seconds: dict[int, list[float]] = {size: [] for size in outboxes}
    for number in range(times):
        log(f"relay: round {number + 1} of {times}")
        for size, outbox in outboxes.items():
            missing = size - await outbox.pool.fetchval("SELECT count(*) FROM outbox", timeout=60)
            await fill(outbox, "reporter", missing)
            seconds[size].append(await _publish(outbox, kafka, prefix))
    return {size: quantile(found, 0.5) for size, found in seconds.items()}


async def _publish(outbox: Database, kafka: str, prefix: str) -> float:
    """Run a relay until it has published RELAYED events; return the seconds that the last nine tenths took."""
    head = await outbox.pool.fetchval("SELECT min(id) FROM outbox")
    relay = Relay(outbox, service="reporter", kafka_bootstrap=kafka, topic_prefix=prefix)
    task = asyncio.create_task(relay.run())
    reached: dict[int, float] = {}
    try:
        for share in (RELAYED // 10, RELAYED):
            while (first := await outbox.pool.fetchval("SELECT min(id) FROM outbox")) and first - head < share:  # noqa: ASYNC110 - the table sends no notification
                await asyncio.sleep(0.002)
            reached[share] = time.perf_counter()
    finally:
        # Not `stop`, which would publish the rest of the backlog.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return reached[RELAYED] - reached[RELAYED // 10]


def _result(measured: Measured, sizes: tuple[int, ...]) -> Result:
    least, most = sizes[0], sizes[-1]
    growth = {key: found[most] / found[least] for key, found in measured.items()}
    worst = max(growth, key=lambda key: growth[key])
    rows: list[dict[str, Cell]] = [
        {
            "service": service,
            "step": name,
            **{f"ms at {size:,}": 1000 * found[size] for size in sizes},
            "growth": growth[service, name],
        }
        for (service, name), found in measured.items()
    ]
    return Result(
        name="growth",
        title=f"Growth: the same with {least:,} and with {most:,} rows stored",
        rows=rows,
        goals=[
            Goal(
                f"the largest growth ({worst[0]}: {worst[1]})",
                f"{growth[worst]:.2f} times",
                f"at most {WANTED} times",
                growth[worst] <= WANTED,
            )
        ],
        details={f"{service}: {name}": found for (service, name), found in measured.items()},
        notes=["Median milliseconds; sizes are measured in turn. Half of the stored rows are finished, 20 are due."],
        picture=[Chart("Growth", "times", [(f"{key[0]}: {key[1]}", value) for key, value in growth.items()])],
    )
