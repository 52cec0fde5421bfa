"""
Seconds from a report's acceptance to its submission at Microsoft, at half of the pipeline's capacity.

First the capacity is measured by sending reports as fast as possible: with the submitter frozen, as in `throughput`,
and with the submitter and the simulator. Then half of that load is sent at an even rate, and each report is traced by
the times of its events.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.environment import TopicCounter, app_token, control, run_backstop, settle, start_environment
from bench.http import Answer, post, report_request
from bench.messages import raw_messages
from bench.report import Cell, Chart, Goal, Result, quantile
from local_stack.stack import Stack
from local_stack.supervisor import StackError

WANTED_P99 = 1.0
SATURATING, QUICK_SATURATING = 1_500, 250
SECONDS, QUICK_SECONDS = 60, 8
PEOPLE = 5_000
MOST_OF_WHOLE = 0.85
"""Share of the whole pipeline's capacity that it can sustain at an even rate without falling behind."""
_RAISED = 10_000_000
_EDGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
STEPS = (
    ("reporter's outbox until sent to Kafka", "accepted", "reported_sent"),
    ("Kafka until triage has decided", "reported_sent", "decided"),
    ("triage's commit and outbox until sent to Kafka", "decided", "requested_sent"),
    ("Kafka, submitter's row and claim until Microsoft has it", "requested_sent", "at_microsoft"),
    ("Microsoft's answer and commit until the event", "at_microsoft", "created"),
)
"""Each step, with the keys in Times of its start and end."""

Times = dict[str, float]


@dataclass(frozen=True, slots=True)
class Capacity:
    """Capacity in reports per second, until their cases are decided and until Microsoft has the submissions."""

    decided: float
    submitted: float


async def run(quick: bool, log: Callable[[str], None]) -> Result:
    """Measure the capacity, then the latency at half of it."""
    options = ["--set", f"submissions_per_window={_RAISED}"]
    settings = {"submitter": {"submissions_per_15_minutes": _RAISED}}
    services = ("reporter", "triage", "submitter")
    async with (
        start_environment("latency") as on,
        on.isolated("latency") as found,
        run_backstop(on, found, services, settings=settings, simulator_options=options) as stack,
        TopicCounter(found.kafka_bootstrap) as ends,
    ):
        token = await app_token(stack)
        await _saturate(stack, ends, token, 100, seed=1)
        capacity = await _saturate(stack, ends, token, QUICK_SATURATING if quick else SATURATING, seed=2)
        log(f"capacity: {capacity.decided:.0f} reports/s until decided, {capacity.submitted:.0f} until submitted")
        rate = _half(capacity)
        seconds = QUICK_SECONDS if quick else SECONDS
        await settle(found.postgres_dsn)
        log(f"{rate:.0f} reports/s for {seconds} s")
        begin = time.time()
        before = await ends.count(f"{found.topic_prefix}.submission-created")
        answers = await post(
            stack.urls["reporter"],
            _requests(stack, token, 3, int(rate * seconds)),
            per_second=rate,
        )
        await ends.reach(f"{found.topic_prefix}.submission-created", before + len(answers))
        followed = await _follow(stack, answers, begin)
    return _result(capacity, rate, followed)


def _half(capacity: Capacity) -> float:
    """Return half the capacity of intake, or half that of the whole pipeline if that cannot keep up."""
    half = capacity.decided / 2
    return half if half < MOST_OF_WHOLE * capacity.submitted else capacity.submitted / 2


def _requests(stack: Stack, token: str, seed: int, count: int) -> list[bytes]:
    url = stack.urls["reporter"]
    return [report_request(url, token, raw, number % PEOPLE) for number, raw in enumerate(raw_messages(seed, count))]


async def _saturate(stack: Stack, ends: TopicCounter, token: str, count: int, seed: int) -> Capacity:
    requested, created = (f"{stack.topic_prefix}.submission-{word}" for word in ("requested", "created"))
    requests = _requests(stack, token, seed, count)
    before, made = await ends.count(requested), await ends.count(created)
    begin = time.monotonic()
    stack.supervisor.freeze("submitter")
    try:
        await post(stack.urls["reporter"], requests)
        decided = await ends.reach(requested, before + count) - begin
    finally:
        stack.supervisor.resume("submitter")
    await ends.reach(created, made + count)
    requests = _requests(stack, token, seed + 1_000, count)
    begin = time.monotonic()
    await post(stack.urls["reporter"], requests)
    submitted = await ends.reach(created, made + 2 * count) - begin
    return Capacity(count / decided, count / submitted)


async def _follow(stack: Stack, answers: Sequence[Answer], since: float) -> list[Times]:
    """Return the times of each accepted report's events, in seconds of the wall clock."""
    ahead = time.time() - asyncio.get_running_loop().time()
    if refused := [answer for answer in answers if answer.status != 202]:
        raise StackError(f"a report was refused: {refused[0]}")
    accepted = {orjson.loads(answer.body)["report_id"]: answer for answer in answers}
    by_mail: dict[str, Times] = {}
    for record in await _read(stack, "message-reported", since):
        event = orjson.loads(record.value)
        if answer := accepted.get(event["report_id"]):
            times = by_mail.setdefault(event["message"]["internet_message_id"], {})
            times["due"], times["accepted"] = answer.due + ahead, answer.answered + ahead
            times["reported_sent"] = record.timestamp / 1000
    for topic, emitted, sent in (
        ("submission-requested", "decided", "requested_sent"),
        ("submission-created", "created", "created_sent"),
    ):
        for record in await _read(stack, topic, since):
            if (name := orjson.loads(record.value)["message"]["internet_message_id"]) in by_mail:
                by_mail[name][emitted] = datetime.fromisoformat(dict(record.headers)["ce_time"].decode()).timestamp()
                by_mail[name][sent] = record.timestamp / 1000
    for entry in (await control(stack, "GET", "/ledger"))["submissions"]:
        if entry["internet_message_id"] in by_mail:
            at = datetime.fromisoformat(entry["at"]).timestamp()
            by_mail[entry["internet_message_id"]]["at_microsoft"] = at
    return list(by_mail.values())


async def _read(stack: Stack, name: str, since: float) -> list[Any]:
    """Return the records of a topic since a time."""
    topic = f"{stack.topic_prefix}.{name}"
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=stack.kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places: list[TopicPartition] = list(consumer.assignment())
        ends = await consumer.end_offsets(places)
        records = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                records += [record for record in batch if record.timestamp / 1000 >= since - 1]
    finally:
        await consumer.stop()
    return records


def _result(capacity: Capacity, rate: float, followed: Sequence[Times]) -> Result:
    seconds = [times["at_microsoft"] - times["accepted"] for times in followed]
    answered = [times["accepted"] - times["due"] for times in followed]
    rows: list[dict[str, Cell]] = [
        _row("accepted (202) until Microsoft has the submission", seconds),
        *(_row(f"- {name}", [times[end] - times[start] for times in followed]) for name, start, end in STEPS[:4]),
        _row(STEPS[4][0], [times["created"] - times["at_microsoft"] for times in followed]),
        _row("before that: due until accepted (202)", answered),
    ]
    p99 = quantile(seconds, 0.99)
    bars = []
    for low, high in zip((0.0, *_EDGES), (*_EDGES, float("inf")), strict=True):
        if count := sum(low <= value < high for value in seconds):
            bars.append((f"{low:g} to {high:g} s", 100 * count / len(seconds)))
    of_what = "decided" if rate == capacity.decided / 2 else "submitted, which is the bottleneck"
    notes = [
        f"Capacity: {capacity.decided:.0f} reports/s until decided, {capacity.submitted:.0f} until submitted.",
        "The submitter runs on the same cores as the simulator, which uses more CPU than the submitter itself.",
        f"Load: {len(followed)} reports at an even {rate:.0f} reports/s: half of the capacity until {of_what}.",
        "The quotas of the submitter and the simulator were raised; Microsoft's is 150 in 15 minutes.",
    ]
    return Result(
        "latency",
        "Latency: seconds from accepted to submitted, at half of the capacity",
        rows,
        [Goal("p99, accepted to submitted", f"{p99:.2f} s", f"below {WANTED_P99:g} s", p99 < WANTED_P99)],
        {"capacity": asdict(capacity), "rate": rate, "times": list(followed)},
        notes,
        [Chart("Accepted to submitted: share of the reports", "%", bars)],
    )


def _row(name: str, values: Sequence[float]) -> dict[str, Cell]:
    return {
        "step": name,
        "p50 s": round(quantile(values, 0.5), 3),
        "p90 s": round(quantile(values, 0.9), 3),
        "p99 s": round(quantile(values, 0.99), 3),
        "max s": round(max(values), 3),
    }
