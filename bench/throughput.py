"""
Reports per second, compared with a bare program and with FastStream as its documentation teaches it.

All three run as processes on the same Kafka and PostgreSQL and write the same rows and events to databases and topics
of their own, which grow alike. Rounds are interleaved, so that other load on the machine affects all of them.
"""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from uuid import UUID

import asyncpg

from bench.environment import (
    Environment,
    ReportCounter,
    TopicCounter,
    app_token,
    fill,
    run_backstop,
    run_rival,
    settle,
    start_environment,
)
from bench.http import post, report_request
from bench.messages import raw_messages, record, reported
from bench.report import Cell, Chart, Goal, Result, spread
from bench.rivals.settings import TENANT
from local_stack.backing import Backing
from local_stack.supervisor import StackError, Supervisor

NAMES = {"ours": "Backstop", "bare": "bare aiokafka + asyncpg", "naive_faststream": "FastStream as taught"}
CAMPAIGN = 100
"""Reports of each message of a campaign."""
WANTED_OF_BARE, WANTED_OF_NAIVE = 0.8, 30

Counts = Mapping[str, Mapping[str, int]]
FULL: Counts = {
    "intake": {"ours": 2_000, "bare": 2_000, "naive_faststream": 500},
    "consume": {"ours": 20_000, "bare": 20_000, "naive_faststream": 1_000},
}
QUICK: Counts = {
    "intake": {"ours": 400, "bare": 400, "naive_faststream": 100},
    "consume": {"ours": 4_000, "bare": 4_000, "naive_faststream": 300},
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One of the three programs, running."""

    name: str
    found: Backing
    supervisor: Supervisor
    url: str
    token: str
    tenant_id: UUID

    def topic(self, name: str) -> str:
        """Return the full name of a topic."""
        return f"{self.found.topic_prefix}.{name}"


@asynccontextmanager
async def contestants(on: Environment, kind: str) -> AsyncIterator[list[Contestant]]:
    """Start reporter and triage of all three, or only triage to measure consuming."""
    services = ("reporter", "triage") if kind == "intake" else ("triage",)
    async with AsyncExitStack() as life:
        own = {name: await life.enter_async_context(on.isolated(name)) for name in NAMES}
        stack = await life.enter_async_context(run_backstop(on, own["ours"], services))
        token = await app_token(stack)
        started = [
            Contestant(
                "ours", own["ours"], stack.supervisor, stack.urls.get("reporter", ""), token, UUID(stack.tenant_id)
            )
        ]
        for name in ("bare", "naive_faststream"):
            running = await life.enter_async_context(run_rival(on, own[name], name, services))
            started.append(Contestant(name, own[name], running.supervisor, running.url, token, UUID(TENANT)))
        yield started


async def intake(one: Contestant, ends: TopicCounter, count: int, seed: int, *, campaign: bool) -> float:
    """Report *count* messages over HTTP; return the reports per second until all events are published."""
    if campaign:
        few = list(raw_messages(seed, max(1, count // CAMPAIGN)))
        pairs = zip(islice(cycle(few), count), (number // len(few) for number in range(count)), strict=True)
    else:
        pairs = zip(raw_messages(seed, count), cycle(range(5_000)))
    requests = [report_request(one.url, one.token, raw, person) for raw, person in pairs]
    before = await ends.count(one.topic("submission-requested"))
    async with ReportCounter(one.found) as joined:
        begin = time.monotonic()
        answers = await post(one.url, requests)
        if refused := [answer for answer in answers if answer.status != 202]:
            raise StackError(f"{one.name} refused a report: {refused[0]}")
        end = await (joined.reach(count) if campaign else ends.reach(one.topic("submission-requested"), before + count))
    return count / (end - begin)


async def consume(one: Contestant, ends: TopicCounter, count: int, seed: int, *, campaign: bool) -> float:
    """Produce *count* reports while the consumer is frozen, resume it, and return the reports handled per second."""
    few = max(1, count // CAMPAIGN) if campaign else count
    records = list(map(record, reported(one.tenant_id, seed, count=few, reporters=count // few)))
    if campaign:
        random.Random(seed).shuffle(records)
    count = len(records)
    before = await ends.count(one.topic("submission-requested"))
    async with ReportCounter(one.found) as joined:
        one.supervisor.freeze("triage")
        try:
            await fill(one.found.kafka_bootstrap, one.topic("message-reported"), records)
        finally:
            one.supervisor.resume("triage")
        begin = time.monotonic()
        end = await (joined.reach(count) if campaign else ends.reach(one.topic("submission-requested"), before + count))
    return count / (end - begin)


SHAPES: Mapping[str, tuple[str, Callable[..., Awaitable[float]], bool]] = {
    "intake-distinct": ("HTTP until published, distinct messages", intake, False),
    "intake-campaign": (f"HTTP until published, {CAMPAIGN} reports per message", intake, True),
    "consume-distinct": ("message-reported to submission-requested, distinct messages", consume, False),
    "consume-campaign": (f"the same, {CAMPAIGN} reports per message", consume, True),
}


async def run(quick: bool, log: Callable[[str], None], shapes: Iterable[str] = SHAPES) -> Result:
    """Measure all shapes with all three."""
    rounds = 2 if quick else 5
    counts = QUICK if quick else FULL
    rates: dict[str, dict[str, list[float]]] = {shape: {name: [] for name in NAMES} for shape in shapes}
    stored = {}
    async with start_environment("throughput") as on, TopicCounter(on.found.kafka_bootstrap) as ends:
        for kind in counts:
            chosen = [shape for shape in rates if shape.startswith(kind)]
            async with contestants(on, kind) as started:
                for number in range(rounds + 1):
                    await _round(started, ends, chosen, rates, counts[kind], number, log)
                stored[kind] = {one.name: await _rows(one, kind) for one in started}
    return _result(rates, stored)


async def _round(
    started: Sequence[Contestant],
    ends: TopicCounter,
    shapes: Sequence[str],
    rates: Mapping[str, Mapping[str, list[float]]],
    counts: Mapping[str, int],
    number: int,
    log: Callable[[str], None],
) -> None:
    """Measure each shape once for each contestant. Round 0 warms up caches and connections and is not counted."""
    for shape in shapes:
        _, measure, campaign = SHAPES[shape]
        for one in started:
            await settle(one.found.postgres_dsn)
            seed = 1 + number + 100 * list(SHAPES).index(shape)
            rate = await measure(one, ends, counts[one.name] // (1 if number else 4), seed, campaign=campaign)
            if number:
                rates[shape][one.name].append(rate)
                log(f"round {number}, {shape}, {NAMES[one.name]}: {rate:,.0f} reports/s")


async def _rows(one: Contestant, kind: str) -> dict[str, int]:
    """Count the stored rows, for comparison: per report and case they are the same for all three."""
    connection = await asyncpg.connect(one.found.postgres_dsn)
    tables = ["triage.reports", "triage.cases", "triage.case_keys", "triage.timeline"]
    if kind == "intake":
        tables.append("reporter.reports")
    counted = {table: int(await connection.fetchval(f"SELECT count(*) FROM {table}")) for table in tables}
    await connection.close()
    return counted


def _result(
    rates: Mapping[str, Mapping[str, list[float]]], stored: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> Result:
    rows: list[dict[str, Cell]] = []
    goals, charts = [], []
    for shape, by_name in rates.items():
        title = SHAPES[shape][0]
        medians = {name: spread(values)[1] for name, values in by_name.items()}
        for name, values in by_name.items():
            least, median, most = spread(values)
            rows.append(
                {
                    "what": title,
                    "program": NAMES[name],
                    "reports/s min": round(least),
                    "median": round(median),
                    "max": round(most),
                    "ours is": f"{medians['ours'] / median:.2f}x" if name != "ours" else "",
                }
            )
        of_bare, of_naive = medians["ours"] / medians["bare"], medians["ours"] / medians["naive_faststream"]
        goals.append(
            Goal(f"{title}, against bare", f"{of_bare:.2f}x", f"at least {WANTED_OF_BARE}x", of_bare >= WANTED_OF_BARE)
        )
        goals.append(
            Goal(
                f"{title}, against FastStream as taught",
                f"{of_naive:.1f}x",
                f"at least {WANTED_OF_NAIVE}x",
                of_naive >= WANTED_OF_NAIVE,
            )
        )
        charts.append(Chart(title, "reports/s", [(NAMES[name], median) for name, median in medians.items()]))
    return Result(
        "throughput",
        "Throughput: reports per second (medians of interleaved rounds)",
        rows,
        goals,
        {"rates": rates, "stored": stored},
        ["Messages of 600 bytes to 50 KB. The load generator runs on the same cores and affects all three alike."],
        charts,
    )
