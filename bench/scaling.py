"""Scaling: the gain of a second replica, the cost of partitions, and how much of a core a process can use."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from uuid import UUID, uuid4

from backstop_contracts import Actor, Category, SubmissionRequested, message_of
from bench.environment import (
    Environment,
    Record,
    TopicCounter,
    app_token,
    cpu_seconds,
    fill,
    resident_mb,
    run_backstop,
    settle,
    start_environment,
)
from bench.http import post, report_request
from bench.messages import address, raw_messages, record, reported
from bench.report import Cell, Chart, Result
from local_stack.stack import Stack
from mail import MailStore, parse

_RAISED = 10_000_000


@dataclass(frozen=True, slots=True)
class Size:
    """Number of events or requests in each measurement."""

    consume: int
    submit: int
    intake: int


FULL, QUICK = Size(30_000, 2_000, 2_000), Size(3_000, 200, 500)


@dataclass(frozen=True, slots=True)
class Measured:
    """Events per second, cores used by all replicas together, and the resident size of the largest (MB)."""

    rate: float
    cores: float
    resident: float


async def run(quick: bool, log: Callable[[str], None]) -> Result:
    """Measure each service with one and two replicas, and triage with few and many partitions."""
    size = QUICK if quick else FULL
    rows: list[dict[str, Cell]] = []
    found: dict[str, dict[str, float]] = {}
    partitions_of_triage = (12, 48) if quick else (1, 12, 48)
    plan = [
        *(("triage", 1, partitions) for partitions in partitions_of_triage),
        ("triage", 2, 12),
        *((service, replicas, 12) for service in ("submitter", "reporter") for replicas in (1, 2)),
    ]
    if quick:
        plan = [one for one in plan if one[0] == "triage"]
    async with start_environment("scaling") as on:
        for service, replicas, partitions in plan:
            measured = await _one(on, service, replicas, partitions, size)
            log(f"{service} x{replicas}, {partitions} partitions: {measured}")
            found[f"{service} x{replicas} p{partitions}"] = {
                "rate": measured.rate,
                "cores": measured.cores,
                "resident_mb": measured.resident,
            }
            rows.append(
                {
                    "service": service,
                    "replicas": replicas,
                    "partitions": partitions,
                    "per second": round(measured.rate),
                    "cores used": round(measured.cores, 2),
                    "MB each": round(measured.resident),
                }
            )
    return _result(rows, found)


async def _one(on: Environment, service: str, replicas: int, partitions: int, size: Size) -> Measured:
    settings: Mapping[str, Mapping[str, object]] = {
        "*": {"topic_partitions": partitions},
        "submitter": {"submissions_per_15_minutes": _RAISED},
    }
    options = ["--set", f"submissions_per_window={_RAISED}"]
    async with (
        on.isolated(f"scaling_{service}") as own,
        run_backstop(
            on, own, (service,), replicas={service: replicas}, settings=settings, simulator_options=options
        ) as stack,
        TopicCounter(own.kafka_bootstrap) as ends,
    ):
        names = [service] if replicas == 1 else [f"{service}-{number + 1}" for number in range(replicas)]
        measures = {"triage": _triage, "submitter": _submitter, "reporter": _reporter}
        # The first batches warm up plans, caches and connections.
        await measures[service](stack, ends, names, 200)
        await settle(own.postgres_dsn)
        count = {"triage": size.consume, "submitter": size.submit, "reporter": size.intake}[service]
        return await measures[service](stack, ends, names, count)


async def _triage(stack: Stack, ends: TopicCounter, names: list[str], count: int) -> Measured:
    records = list(map(record, reported(UUID(stack.tenant_id), count, count=count, reporters=1)))
    return await _drain(stack, ends, names, records, "message-reported", "submission-requested")


async def _submitter(stack: Stack, ends: TopicCounter, names: list[str], count: int) -> Measured:
    actor = Actor(kind="policy", id="bench")
    store = MailStore((stack.folder / "mails").as_uri())
    records = []
    for raw in raw_messages(count, count):
        await store.put(stack.tenant_id, raw)
        requested = SubmissionRequested(
            tenant_id=UUID(stack.tenant_id),
            submission_id=uuid4(),
            case_id=uuid4(),
            category=Category.PHISHING,
            recipient=address(0),
            message=message_of(parse(raw)),
            requested_by=actor,
            requested_at=datetime.now(UTC),
        )
        records.append(record(requested))
    return await _drain(stack, ends, names, records, "submission-requested", "submission-created")


async def _drain(
    stack: Stack, ends: TopicCounter, names: list[str], records: list[Record], source: str, target: str
) -> Measured:
    """Produce *records* while the consumers are frozen, resume them, and measure until all are processed."""
    topic = f"{stack.topic_prefix}.{target}"
    before = await ends.count(topic)
    for name in names:
        stack.supervisor.freeze(name)
    try:
        await fill(stack.kafka_bootstrap, f"{stack.topic_prefix}.{source}", records)
    finally:
        used = _cpu(stack, names)
        for name in names:
            stack.supervisor.resume(name)
    begin = time.monotonic()
    seconds = await ends.reach(topic, before + len(records)) - begin
    return _measured(stack, names, len(records), seconds, used)


async def _reporter(stack: Stack, ends: TopicCounter, names: list[str], count: int) -> Measured:
    token = await app_token(stack)
    topic = f"{stack.topic_prefix}.message-reported"
    before = await ends.count(topic)
    # With two replicas, each gets half of the requests and half of the connections.
    urls = cycle(stack.urls[name] for name in names)
    parts: dict[str, list[bytes]] = {stack.urls[name]: [] for name in names}
    for person, (raw, url) in enumerate(zip(raw_messages(count, count), urls, strict=False)):
        parts[url].append(report_request(url, token, raw, person))
    used = _cpu(stack, names)
    begin = time.monotonic()
    await _together(parts)
    seconds = await ends.reach(topic, before + count) - begin
    return _measured(stack, names, count, seconds, used)


async def _together(parts: Mapping[str, list[bytes]]) -> None:
    await asyncio.gather(*(post(url, requests, connections=64 // len(parts)) for url, requests in parts.items()))


def _cpu(stack: Stack, names: list[str]) -> float:
    return sum(cpu_seconds(stack.supervisor.pid(name)) for name in names)


def _measured(stack: Stack, names: list[str], count: int, seconds: float, used: float) -> Measured:
    resident = max(resident_mb(stack.supervisor.pid(name)) for name in names)
    return Measured(count / seconds, (_cpu(stack, names) - used) / seconds, resident)


def _result(rows: list[dict[str, Cell]], found: Mapping[str, Mapping[str, float]]) -> Result:
    notes = [
        "triage: reports per second from a filled topic to submission-requested.",
        "submitter: submissions per second from a filled topic to submission-created, the simulator beside it.",
        "reporter: reports per second over HTTP until published.",
        "Kafka, PostgreSQL and the load share the cores: this shows that replicas share work, not how far it scales.",
        "Cores used: seconds of CPU per second. A process has one event loop; threads hash and sync messages.",
    ]
    bars = [(name, values["rate"]) for name, values in found.items()]
    return Result(
        "scaling",
        "Scaling: replicas, partitions, cores",
        rows,
        (),
        found,
        notes,
        [Chart("Per second", "/s", bars)],
    )
