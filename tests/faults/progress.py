"""The progress of a fault run: what is still unread, unpublished or without outcome, and whether all is idle."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import aiohttp
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from demo.event_log import EventLog
from faults.environment import Environment
from faults.load import Load
from local_stack.stack import Stack

LONGEST_PAUSE_SECONDS = 120.0
"""Longest pause between two attempts that is waited for."""
UNFINISHED: Mapping[str, Sequence[str]] = {
    "submitter": ("submitter.submissions WHERE state = 'due'",),
    "verdict_poller": ("verdict_poller.watches WHERE state <> 'published'",),
    "blocklist": ("blocklist.entries WHERE true",),
    "quarantine": (
        "quarantine.actions WHERE state = 'pending'",
        "quarantine.digests WHERE state = 'pending'",
        "quarantine.syncs WHERE warning IS NOT NULL",
    ),
}
"""Rows that a worker will claim again when they are due."""


class Progress:
    """The state of the services, read from Kafka, PostgreSQL and their metrics. `read` counts offsets by service."""

    def __init__(
        self,
        environment: Environment,
        name: str,
        stack: Stack,
        load: Load,
        event_log: EventLog,
        http: aiohttp.ClientSession,
    ) -> None:
        self.name = name
        self.environment = environment
        self.stack = stack
        self.load = load
        self.event_log = event_log
        self.read: dict[str, int] = {}
        self._http = http
        self._handled: dict[tuple[str, int], float] = {}
        self._starts: Counter[str] = Counter()

    def note_start(self, process: str) -> None:
        """Record that *process* was started again, which resets its metrics."""
        self._starts[process] += 1

    async def note_handled(self, process: str) -> None:
        """Record how many events a process has handled or parked since it started."""
        if process not in self.stack.urls:
            return
        with suppress(aiohttp.ClientError, TimeoutError):
            limit = aiohttp.ClientTimeout(total=2)
            async with self._http.get(f"{self.stack.urls[process]}/metrics", timeout=limit) as answer:
                counted = re.findall(
                    r"^backstop_events_(?:consumed|parked)_total\{.*\} (.*)$", await answer.text(), re.MULTILINE
                )
                self._handled[process, self._starts[process]] = sum(map(float, counted))

    async def redelivered(self) -> int:
        """Return how many records were handled more than once, as far as observed before processes were killed."""
        await asyncio.gather(*map(self.note_handled, self.stack.urls))
        return max(0, round(sum(self._handled.values())) - sum(self.read.values()))

    async def wait_until_idle(self, patience: float) -> str | None:
        """
        Wait until each report has a case, each case and block has an outcome, and each outbox is empty.

        Return None then. If nothing changes for *patience* seconds and no service is due to resume, or for
        LONGEST_PAUSE_SECONDS, return a description of what is missing.
        """
        begun = heard = time.monotonic()
        state: str | None = ""
        while True:
            missing = await self._pending()
            if missing is None and state is None:
                # Required twice: the sources are read one after another, and work may have moved between them.
                return None
            if missing != state:
                begun = heard = time.monotonic()
                state = missing
            if time.monotonic() - heard > patience:
                if missing and (time.monotonic() - begun > LONGEST_PAUSE_SECONDS or not await self._will_resume()):
                    return missing
                heard = time.monotonic()
            await asyncio.sleep(0.25)

    async def _will_resume(self) -> bool:
        """Return True if a service has rows that become due within LONGEST_PAUSE_SECONDS."""
        connection = await self.environment.connect(self.name)
        try:
            return any(
                [
                    await connection.fetchval(
                        f"SELECT EXISTS (SELECT FROM {rows} AND due_at BETWEEN now() AND now() + $1::interval)",
                        timedelta(seconds=LONGEST_PAUSE_SECONDS),
                    )
                    for service, tables in UNFINISHED.items()
                    if service in self.stack.services
                    for rows in tables
                ]
            )
        finally:
            await connection.close()

    async def _pending(self) -> str | None:
        event_log = self.event_log
        homeless = len(self.load.accepted - event_log.case_of.keys())
        cases = sum(not case.has_outcome for case in event_log.cases.values())
        blocks = sum(not block.outcome for block in event_log.blocks.values())
        decided = {one.message_id for one in event_log.releases.values()}
        undecided = len(self.load.released - decided)
        unpublished, unread, untold = await self.unpublished(), await self.unread(), await self._not_notified()
        if homeless or cases or blocks or undecided or unpublished or unread or untold:
            return (
                f"{homeless} reports without case, {cases} cases and {blocks} blocks without outcome, {undecided}"
                f" releases without outcome, {untold} messages in no digest, unpublished: {unpublished or 'nothing'},"
                f" unread: {unread or 'nothing'}"
            )
        return None

    async def _not_notified(self) -> int:
        """Return the number of quarantined messages that are not synced yet or whose digest is not sent yet."""
        if "quarantine" not in self.stack.services:
            return 0
        connection = await self.environment.connect(self.name)
        try:
            (row,) = await connection.fetch(
                "SELECT count(*) AS mirrored, count(*) FILTER (WHERE (digest_id IS NULL AND status = 'not-released')"
                " OR digests.state = 'pending') AS untold FROM quarantine.messages"
                " LEFT JOIN quarantine.digests USING (digest_id)"
            )
        finally:
            await connection.close()
        return int(self.load.held - row["mirrored"] + row["untold"])

    async def unread(self) -> str:
        """Return the lag of each consumer group that has one, as text."""
        admin, consumer = (
            AIOKafkaAdminClient(bootstrap_servers=self.environment.kafka_bootstrap),
            AIOKafkaConsumer(bootstrap_servers=self.environment.kafka_bootstrap, enable_auto_commit=False),
        )
        try:
            await admin.start()
            await consumer.start()
            described = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()}
            read, behind = Counter[str](), dict[str, int]()
            for group, *_ in await admin.list_consumer_groups():
                if not group.startswith(f"{self.name}."):
                    continue
                service, _, topic = group.removeprefix(f"{self.name}.").partition(".")
                committed = await admin.list_consumer_group_offsets(group)
                name = f"{self.name}.{topic}"
                places = [TopicPartition(name, one["partition"]) for one in described[name]]
                at = {place: max(committed[place].offset, 0) if place in committed else 0 for place in places}
                ends = await consumer.end_offsets(places)
                read[service] += sum(at.values())
                behind[f"{service} of {topic}"] = sum(ends.values()) - sum(at.values())
            self.read |= read
        finally:
            await consumer.stop()
            await admin.close()
        return ", ".join(f"{count} by {group}" for group, count in behind.items() if count)

    async def unpublished(self) -> str:
        """Return the services whose outbox is not empty, as text."""
        connection = await self.environment.connect(self.name)
        try:
            schemas = await connection.fetch("SELECT schemaname FROM pg_tables WHERE tablename = 'outbox'")
            counts = {
                row["schemaname"]: await connection.fetchval(f"SELECT count(*) FROM {row['schemaname']}.outbox")
                for row in schemas
            }
        finally:
            await connection.close()
        return ", ".join(f"{count} by {schema}" for schema, count in counts.items() if count)
