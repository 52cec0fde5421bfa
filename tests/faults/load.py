"""The load of a fault run: users who report, an admin who decides, unprocessable records, and a diary of it all."""

import asyncio
import json
import random
import string
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from backstop_contracts import EVENTS, MessageReported
from demo.gateway import Gateway, RefusedError
from demo.quarantine import ASK_POLICY, set_up

READERS = {
    "message-reported": ("reporter", "triage"),
    "submission-requested": ("submitter",),
    "submission-created": ("triage", "verdict-poller"),
    "block-requested": ("blocklist",),
}
"""The topics that get unprocessable records, and the services that must park them as dead letters."""
TRY_AGAIN = {408, 429, 502, 503, 504}
USERS = 24

T = TypeVar("T")


class Diary:
    """Records requests and responses of a run as JSON lines, for the checker."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines = file.open("w", buffering=1)
        self.counts: Counter[str] = Counter()

    def write(self, kind: str, **what: Any) -> None:
        """Write one entry."""
        self.counts[kind] += 1
        self._lines.write(json.dumps({"kind": kind, "at": datetime.now(UTC).isoformat(), **what}, default=str) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class Load:
    """
    Users and an admin who retry every request until they get a response, as clients do.

    *rate* is the number of messages that users encounter per second; each is reported by one or more of them.
    """

    def __init__(
        self,
        diary: Diary,
        gateways: Sequence[Gateway],
        *,
        seed: int,
        rate: float,
        kafka_bootstrap: str,
        prefix: str,
        control: Callable[..., Awaitable[Any]],
        tenant_id: str,
    ) -> None:
        self._control = control
        self._tenant_id = tenant_id
        self._diary = diary
        self._gateways = gateways
        self._dice = random.Random(seed)
        self._rate = rate
        self._bootstrap = kafka_bootstrap
        self._prefix = prefix
        self._users: dict[str, str] = {}
        self._admin = ""
        self._decided: set[str] = set()
        self._over = False
        self._messages = 0
        self._campaign = self._words(60)
        self._waiting: set[asyncio.Task[None]] = set()
        self.accepted: set[UUID] = set()
        self.held = 0
        self.released: set[UUID] = set()
        self.stop_deciding = False

    def sign_in(self, users: Mapping[str, str], admin: str) -> None:
        """Set the access tokens of *users* by address, and that of the admin."""
        self._users, self._admin = dict(users), admin

    async def work(self, seconds: float) -> None:
        """Report for *seconds*; return when every report is accepted."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            self.report_message()
            await asyncio.sleep(self._dice.expovariate(self._rate))
        self._over = True
        await self.wait_until_accepted()

    async def wait_until_accepted(self) -> None:
        """Wait until every report is accepted."""
        while self._waiting:
            await asyncio.gather(*self._waiting)

    def report_message(self) -> None:
        """Have some users report a new message, some of them twice."""
        self._messages += 1
        kind = self._dice.choices(("alone", "pair", "campaign", "junk"), (4, 3, 1, 2))[0]
        how_many = {"alone": 1, "pair": 2, "junk": 1, "campaign": self._dice.randint(3, 6)}[kind]
        users = self._dice.sample(sorted(self._users), k=how_many)
        same = self._mail(kind, 0)
        for number, user in enumerate(users):
            raw = self._mail(kind, number) if kind == "campaign" else same
            asked = {
                "reported_as": "junk" if kind == "junk" else "phishing",
                "folder": "junk" if kind == "junk" else "inbox",
                "block_sender": self._dice.random() < 0.2,
            }
            for _ in range(2 if self._dice.random() < 0.15 else 1):
                self._begin(self._report(user, raw, asked))

    def _begin(self, job: Any) -> None:
        task = asyncio.create_task(job)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _report(self, user: str, raw: bytes, asked: Mapping[str, Any]) -> None:
        answer = await self._retry(lambda gateway: gateway.report(self._users[user], raw, **asked))
        self.accepted.add(UUID(answer["report_id"]))
        block = answer["block"]
        self._diary.write(
            "accepted",
            report_id=answer["report_id"],
            reporter=user,
            repeated=answer["repeated"],
            block_id=block and block["block_id"],
        )

    async def decide(self) -> None:
        """Decide on open cases repeatedly until cancelled."""
        while True:
            page = await self._retry(lambda gateway: gateway.list_cases(self._admin, status="open", limit="200"))
            new = [item["case_id"] for item in page["items"] if item["case_id"] not in self._decided]
            await asyncio.gather(*map(self._decide, new))
            await asyncio.sleep(1)

    async def _decide(self, case_id: str) -> None:
        self._decided.add(case_id)
        dice = random.Random(case_id)
        decision: dict[str, Any] = {"action": "submit", "category": dice.choice(("phishing", "spam", "malware"))}
        if dice.random() < 0.1:
            decision = {"action": "dismiss"}
        elif dice.random() < 0.5:
            decision["blocks"] = [{"kind": dice.choice(("sender", "domain"))}]
        tries: list[None] = []

        async def ask(gateway: Gateway) -> dict[str, Any]:
            tries.append(None)
            return await gateway.decide(self._admin, case_id, decision)

        try:
            await self._retry(ask)
        except RefusedError as error:
            if error.status != 409:
                raise
            # The case was already decided: by the policy, or by this decision, whose response was lost.
            self._diary.write("not-decided", case_id=case_id, why=str(error), tries=len(tries))
        else:
            self._diary.write("decided", case_id=case_id, decision=decision)

    async def quarantine_messages(self, every: float) -> None:
        """Quarantine a message for some user every *every* seconds while users report."""
        await self._retry(lambda gateway: set_up(self._control, gateway, self._tenant_id, self._admin))
        while not self._over:
            await self.quarantine_message()
            await asyncio.sleep(self._dice.uniform(0.5, 1.5) * every)

    async def quarantine_message(self) -> None:
        """Quarantine a message for some user."""
        self.held += 1
        subject, user = f"held-{self.held:05d}-", self._dice.choice(sorted(self._users))
        eml = (
            f"From: sender{self.held}@bulk.example\r\nTo: {user}\r\nSubject: {subject}\r\n"
            f"Message-ID: <{subject}@bulk.example>\r\n\r\n{self._words(30)}\r\n"
        )
        order = {"eml": eml, "quarantine_policy": ASK_POLICY}
        await self._control("POST", f"/tenants/{self._tenant_id}/quarantine", order)
        self._diary.write("held", subject=subject, recipient=user)

    async def decide_quarantined(self) -> None:
        """Release some quarantined messages and deny others, repeatedly, until `stop_deciding` is set."""
        seen: set[str] = set()
        while not self.stop_deciding:
            page = await self._retry(
                lambda gateway: gateway.list_quarantine(self._admin, status="not-released", limit="200")
            )
            new = [item for item in page["items"] if item["message_id"] not in seen]
            for item in new:
                seen.add(item["message_id"])
                action = random.Random(item["message_id"]).choice(("release", "deny", None, None))
                if action:
                    await self._act(item["message_id"], action)
            await asyncio.sleep(1)

    async def _act(self, message_id: str, action: str) -> None:
        request = {"action": action, "messages": [message_id], "reason": "looked at"}
        try:
            await self._retry(lambda gateway: gateway.act_on_quarantine(self._admin, request))
        except RefusedError as error:
            # The request is recorded all the same and has an outcome; here Exchange refused.
            self._diary.write("not-carried-out", message_id=message_id, why=str(error))
        else:
            self.released.add(UUID(message_id))
            self._diary.write("carried-out", message_id=message_id, action=action)

    async def read_all(self, case_ids: Sequence[UUID]) -> None:
        """Record every case as an admin sees it, and every report."""
        gate = asyncio.Semaphore(16)

        async def case(case_id: UUID) -> None:
            async with gate:
                shown = await self._retry(lambda gateway: gateway.read_case(self._admin, str(case_id)))
            self._diary.write("shown", case=shown)

        async def report(report_id: UUID) -> None:
            async with gate:
                shown = await self._retry(lambda gateway: gateway.read_report(self._admin, str(report_id)))
            self._diary.write("told", report=shown)

        await asyncio.gather(*map(case, case_ids), *map(report, self.accepted))

    async def plant(self, every: float) -> None:
        """Write an unprocessable record to some topic every *every* seconds while users report."""
        while not self._over:
            await self.plant_poison(*self._dice.choice(POISONS), topic=self._dice.choice(sorted(READERS)))
            await asyncio.sleep(self._dice.uniform(0.5, 1.5) * every)

    async def plant_poison(self, value: bytes, headers: Sequence[tuple[str, bytes | None]], *, topic: str) -> None:
        """Write one record to *topic* that no service can process."""
        key = self._words(1).encode()
        place = await self.publish(f"{self._prefix}.{topic}", key, value, headers)
        self._diary.write("planted", topic=topic, partition=place[0], offset=place[1], readers=READERS[topic])

    async def echo(self, share: float) -> None:
        """Publish *share* of all events a second time, as at-least-once delivery may, until cancelled."""
        topics = [f"{self._prefix}.{model.topic()}" for model in EVENTS]
        seen: set[bytes] = set()
        async with AIOKafkaConsumer(
            *topics, bootstrap_servers=self._bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
        ) as records:
            async for record in records:
                event_id = dict(record.headers).get("ce_id")
                if event_id and event_id not in seen and random.Random(event_id).random() < share:
                    seen.add(event_id)
                    await self.publish(record.topic, record.key, record.value, record.headers)
                    self._diary.write("echoed", topic=record.topic, ce_id=event_id.decode())

    async def publish(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes | None]]
    ) -> tuple[int, int]:
        """Publish a record and return its partition and offset."""
        while True:
            # An idempotent producer retries for longer than Kafka is ever unavailable in a run.
            producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True, request_timeout_ms=180_000
            )
            try:
                await producer.start()
            except (KafkaError, OSError):
                await producer.stop()
                await asyncio.sleep(1)
                continue
            try:
                written = await producer.send_and_wait(topic, key=key, value=value, headers=list(headers))
            finally:
                await producer.stop()
            return written.partition, written.offset

    async def _retry(self, call: Callable[[Gateway], Awaitable[T]]) -> T:
        while True:
            gateway = self._dice.choice(self._gateways)
            try:
                return await call(gateway)
            except RefusedError as error:
                if error.status not in TRY_AGAIN:
                    raise
                self._diary.counts[f"answered {error.status}"] += 1
            except (aiohttp.ClientError, TimeoutError, ValueError):
                self._diary.counts["unanswered"] += 1
            await asyncio.sleep(self._dice.uniform(0.3, 1.0))

    def _mail(self, kind: str, copy: int) -> bytes:
        """Return a message of 1 to 20 KB. Copies of a campaign differ in their ids; every fourth message is clean."""
        name, text, link = (
            f"shop{self._messages}",
            self._words(100 + 23 * (self._messages % 90)),
            "https://shop.example",
        )
        if kind == "campaign":
            name, text, link = "campaign", self._campaign, "https://campaign.phish.example"
        elif self._messages % 4:
            link = f"https://{name}.phish.example"
        number = f"{self._messages}-{copy}"
        return (
            f"From: sender{number}@{name}.example\r\nTo: user@contoso.example\r\nSubject: {kind} {number}\r\n"
            f"Message-ID: <{number}@mail.example>\r\n"
            f"Authentication-Results: dmarc=pass action=none header.from={name}.example\r\n"
            f"\r\n{text}\r\nLook at {link} soon.\r\n"
        ).encode()

    def _words(self, count: int) -> str:
        return " ".join("".join(self._dice.choices(string.ascii_lowercase, k=8)) for _ in range(count))


GOOD_HEADERS = [
    ("ce_id", b"planted"),
    ("ce_source", b"/planted"),
    ("ce_specversion", b"1.0"),
    ("ce_type", b"io.backstop.message-reported.v1"),
    ("ce_time", b"2026-01-01T00:00:00+00:00"),
]
POISONS: tuple[tuple[bytes, Sequence[tuple[str, bytes | None]]], ...] = (
    (b"{", GOOD_HEADERS),
    (b"{}", [*GOOD_HEADERS[:3], ("ce_type", MessageReported.TOPIC.encode())]),
    (b'{"tenant_id": "no uuid"}', []),
    (b"\xff\x00", [*GOOD_HEADERS, ("x-not-utf-8", b"\xff\xfe")]),
    (b"null", [*GOOD_HEADERS[1:], ("ce_id", b"\xff")]),
    (b"[]", [*GOOD_HEADERS, ("reply_to", b"backstop.case-updated")]),
)
"""Records that no consumer can process: malformed JSON, wrong shape, no headers, headers that are not UTF-8."""
