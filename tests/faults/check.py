"""
The checker: compares the responses that users got, the events on the topics and what really happened at Microsoft.

It is a separate program that reads the users' diary, the topics, the dead letters and the simulator's ledger, and calls
no service.
"""

import asyncio
import json
import ssl
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import aiohttp
import typer
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from backstop.dead_letter_rows import Letters
from backstop.settings import SERVICES
from backstop_contracts import EVENTS, CaseStatus, CaseUpdated, Event, NotAnEventError, read_headers
from chassis.dead_letters import Wanted
from demo.check import differences
from demo.event_log import EventLog

ONCE = {model.TOPIC for model in EVENTS} - {CaseUpdated.TOPIC}
"""Events that occur once per report, submission or block."""
OPENED_BY = {"opened", "joined", "reopened"}


@dataclass
class Topics:
    """Everything on the topics. `first` has each event once, in the order of first publication."""

    first: list[tuple[ConsumerRecord, Event]] = field(default_factory=list)
    records: int = 0
    unreadable: list[tuple[str, int, int]] = field(default_factory=list)
    dead: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Service of the dead letter, and the record's topic, partition and offset."""


async def read_dead_letters(postgres_dsn: str) -> list[tuple[str, str, int, int]]:
    """Return service, topic, partition and offset of each dead letter."""
    async with Letters(postgres_dsn, SERVICES) as letters:
        return [
            (service, letter.topic, letter.partition, letter.offset)
            async for service, letter in letters.read(None, Wanted(state=None))
        ]


async def read_topics(kafka_bootstrap: str, prefix: str) -> Topics:
    """Read all topics from the beginning to the current end."""
    models = {f"{prefix}.{model.topic()}": model for model in EVENTS}
    found, seen = Topics(), set[str]()
    async for record in _records(kafka_bootstrap, tuple(models)):
        try:
            envelope = read_headers(record.headers, models[record.topic])
            event = models[record.topic].model_validate_json(record.value)
        except (NotAnEventError, ValueError):
            found.unreadable.append((record.topic.removeprefix(f"{prefix}."), record.partition, record.offset))
            continue
        found.records += 1
        if envelope.id not in seen:
            seen.add(envelope.id)
            found.first.append((record, event))
    return found


async def _records(kafka_bootstrap: str, topics: Sequence[str]) -> AsyncIterator[ConsumerRecord]:
    async with AIOKafkaConsumer(
        *topics, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    ) as consumer:
        partitions = consumer.assignment()
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    yield record


def event_log_of(topics: Topics) -> EventLog:
    """Return the events indexed by case and block."""
    event_log = EventLog("", prefix="", listener=lambda _event, _time: None)
    for record, event in topics.first:
        event_log.take(event, datetime.fromisoformat(dict(record.headers)["ce_time"].decode()))
    return event_log


def check(
    diary: Sequence[Mapping[str, Any]],
    topics: Topics,
    ledger: Mapping[str, Any],
    mails: Sequence[str],
    addresses: Mapping[str, str],
) -> list[str]:
    """Return a list of all broken promises."""
    event_log = event_log_of(topics)
    accepted = {UUID(line["report_id"]) for line in diary if line["kind"] == "accepted"}
    return [
        *differences(event_log, accepted, ledger, addresses),
        *_distinct_events(topics),
        *_cases_in_order(topics),
        *_outcomes(event_log, diary),
        *_dead_letters(topics, diary),
        *_timelines(event_log, diary),
        *_digests(event_log, diary, mails),
    ]


def _distinct_events(topics: Topics) -> Iterator[str]:
    """Check that each report, submission and block has one distinct event of a kind."""
    counts = Counter((event.TOPIC, _thing(event)) for _, event in topics.first if event.TOPIC in ONCE)
    for (topic, thing), count in counts.items():
        if count > 1:
            yield f"{topic} of {thing} has {count} distinct events"


def _thing(event: Event) -> tuple[str, ...]:
    names = {
        "submission-delayed": ("submission_id", "reason"),
        "release-decided": ("decision_id", "recipient"),
        "message-reported": ("report_id",),
    }.get(event.TOPIC, ("submission_id", "case_id"))
    block = getattr(event, "block", None)
    return (str(block.block_id),) if block else tuple(str(getattr(event, name, "")) for name in names)


def _cases_in_order(topics: Topics) -> Iterator[str]:
    """Check a case's updates in order: opened first, reports counted, each change valid after the one before."""
    updates: defaultdict[UUID, list[CaseUpdated]] = defaultdict(list)
    for _, event in topics.first:
        if isinstance(event, CaseUpdated):
            updates[event.case_id].append(event)
    for case_id, story in updates.items():
        if story[0].change != "opened" or any(update.change == "opened" for update in story[1:]):
            yield f"case {case_id} does not begin with its only opened: {[update.change for update in story]}"
        reports, status = 0, CaseStatus.OPEN
        for update in story:
            reports += len(update.report_ids)
            if update.report_count != reports:
                yield f"case {case_id} has the count of {update.report_count} reports where {reports} were listed"
            if update.change == "joined" and update.status is not status:
                yield f"case {case_id} was {update.status} when a report joined it, though it was {status} before"
            if update.change in ("submitted", "dismissed") and status is not CaseStatus.OPEN:
                yield f"case {case_id} was {update.change} when it was {status}"
            if update.change in ("resolved", "reopened") and status is not CaseStatus.SUBMITTED:
                yield f"case {case_id} was {update.change} when it was {status}"
            status = update.status


def _outcomes(event_log: EventLog, diary: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Check that every decision took effect, and that each submission and block has exactly one outcome."""
    for line in diary:
        if line["kind"] != "decided":
            continue
        case = event_log.cases.get(UUID(line["case_id"]))
        if case is None or (line["decision"]["action"] == "submit" and not case.requested):
            yield f"case {line['case_id']} was decided on without effect"
    for case in event_log.cases.values():
        for submission_id in case.requested:
            outcomes = (submission_id in case.failed) + (submission_id in case.verdicts)
            if outcomes != 1:
                yield f"submission {submission_id} of case {case.case_id} has {outcomes} outcomes"
    for block_id, block in event_log.blocks.items():
        # A clean verdict may withdraw a block before it is applied: then it is removed without being applied.
        if (outcomes := bool(block.applied or block.removed) + bool(block.failed)) != 1:
            yield f"block {block_id} has {outcomes} outcomes"
    wanted = {UUID(line["block_id"]) for line in diary if line["kind"] == "accepted" and line["block_id"]}
    for block_id in wanted - event_log.blocks.keys():
        yield f"block {block_id} was promised to its reporter, but has no event"


def _dead_letters(topics: Topics, diary: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    planted = [line for line in diary if line["kind"] == "planted"]
    places = {(line["topic"], line["partition"], line["offset"]) for line in planted}
    expected = {
        (reader, line["topic"], line["partition"], line["offset"]) for line in planted for reader in line["readers"]
    }
    for place in set(topics.unreadable) ^ places:
        yield f"{place} is unreadable, but was not planted" if place not in places else f"{place} was planted, but read"
    for service, topic, partition, offset in sorted(set(topics.dead) - expected):
        yield f"{service} parked {topic}, partition {partition}, offset {offset}, which was not planted"
    for service, topic, partition, offset in sorted(expected - set(topics.dead)):
        yield f"{service} did not park the poison on {topic}, partition {partition}, offset {offset}"


def _timelines(event_log: EventLog, diary: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Check that each case shown to an admin matches its events, with each entry once and in order of time."""
    shown = {UUID(line["case"]["case_id"]): line["case"] for line in diary if line["kind"] == "shown"}
    for case_id, case in shown.items():
        story = event_log.cases.get(case_id)
        if story is None:
            yield f"case {case_id} is shown, but has no event"
            continue
        times = [datetime.fromisoformat(entry["at"]) for entry in case["timeline"]]
        if times != sorted(times):
            yield f"the timeline of case {case_id} is not in the order of time"
        entries = Counter(entry["kind"] for entry in case["timeline"])
        expected = {
            "message.reported": len(story.reports),
            "case.submitted": len(story.requested),
            "submission.created": len(story.created),
            "submission.failed": len(story.failed),
            "verdict.ready": len(story.verdicts),
        }
        for kind, count in expected.items():
            if entries[kind] != count:
                yield f"the timeline of case {case_id} has {entries[kind]} entries {kind}, not {count}"
        if (case["status"], case["report_count"]) != (story.status, len(story.reports)):
            yield f"case {case_id} is shown as {case['status']} with {case['report_count']} reports, events differ"
    for line in diary:
        if line["kind"] == "told" and line["report"]["status"] == "received":
            yield f"report {line['report']['report_id']} is shown as received, not as part of a case"


def _digests(event_log: EventLog, diary: Sequence[Mapping[str, Any]], mails: Sequence[str]) -> Iterator[str]:
    """Check that each quarantined message is listed in one digest and decided on once."""
    decided = Counter(one.message_id for one in event_log.releases.values() if one.succeeded and not one.already_done)
    for message_id, count in decided.items():
        if count > 1:
            yield f"quarantined message {message_id} was decided on {count} times"
    for line in diary:
        if line["kind"] == "carried-out" and not any(
            one.succeeded and one.message_id == UUID(line["message_id"]) for one in event_log.releases.values()
        ):
            yield f"{line['action']} of quarantined message {line['message_id']} was confirmed, but has no event"
    # A message that was decided on before its digest was due is not listed.
    early = sum(decided.values())
    missing = 0
    for line in diary:
        if line["kind"] == "held":
            digests = sum(line["subject"] in text for text in mails)
            missing += digests == 0
            if digests > 1:
                yield f"quarantined message {line['subject']} is listed in {digests} digests"
    if missing > early:
        yield f"{missing} quarantined messages are in no digest, though only {early} were decided on"


async def main(
    lines: Sequence[Mapping[str, Any]],
    kafka_bootstrap: str,
    prefix: str,
    simulator_url: str,
    ca_file: Path,
    postgres_dsn: str,
) -> int:
    """Print each broken promise on a line and the counts on the last one; return the number of broken promises."""
    addresses: Mapping[str, str] = next((line["addresses"] for line in lines if line["kind"] == "people"), {})
    trust = ssl.create_default_context(cafile=ca_file)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as microsoft,
        microsoft.get(f"{simulator_url}/simulator/ledger", raise_for_status=True) as answer,
    ):
        ledger = await answer.json()
        mails = [await _text(microsoft, simulator_url, entry) for entry in ledger.get("mails", ())]
    topics = await read_topics(kafka_bootstrap, prefix)
    topics.dead = await read_dead_letters(postgres_dsn)
    wrong = check(lines, topics, ledger, mails, addresses)
    for line in wrong:
        typer.echo(line)
    counts = {
        "reports": len({line["report_id"] for line in lines if line["kind"] == "accepted"}),
        "cases": len({event.case_id for _, event in topics.first if isinstance(event, CaseUpdated)}),
        "submissions": len(ledger["submissions"]),
        "blocks": len(ledger["tenant_blocks"]) + len(ledger["mailbox_blocks"]),
        "held": sum(line["kind"] == "held" for line in lines),
        "digests": len(mails),
        "releases and denials": len(ledger.get("quarantine_actions", ())),
        "verdicts": sum(event.TOPIC == "verdict-ready" for _, event in topics.first),
        "events": len(topics.first),
        "reports deduplicated": sum(line.get("repeated", False) for line in lines),
        "published again": topics.records - len(topics.first),
        "parked": len(set(topics.dead)),
        "adopted": sum(getattr(event, "adopted", False) for _, event in topics.first),
    }
    typer.echo(json.dumps(counts))
    return len(wrong)


async def _text(microsoft: aiohttp.ClientSession, simulator_url: str, entry: Mapping[str, Any]) -> str:
    """Return the text of a sent message."""
    url = f"{simulator_url}/simulator/tenants/{entry['tenant']}/mails/{entry['number']}"
    async with microsoft.get(url, raise_for_status=True) as answer:
        return str((await answer.json())["text"])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def program(
    diary: Path,
    kafka_bootstrap: Annotated[str, typer.Option()],
    prefix: Annotated[str, typer.Option()],
    simulator_url: Annotated[str, typer.Option()],
    ca_file: Annotated[Path, typer.Option()],
    postgres_dsn: Annotated[str, typer.Option()],
) -> None:
    """Check a fault run. Exits with 1 if a promise was broken."""
    lines = [json.loads(line) for line in diary.read_text().splitlines()]
    if asyncio.run(main(lines, kafka_bootstrap, prefix, simulator_url, ca_file, postgres_dsn)):
        sys.exit(1)


if __name__ == "__main__":
    app()
