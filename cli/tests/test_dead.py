"""An operator sees what a service could not handle, has it handled again or drops it; nothing changes on the way."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from click.testing import Result
from typer.testing import CliRunner

from backstop.app import app
from backstop_contracts import CaseStatus, CaseUpdated, headers_for
from chassis.kafka import Consumer, Handler, Received, create_topics
from chassis.postgres import Database, Tx

CASE = uuid4()
VALUE = b'{"subject": "for your eyes only"}'
BYTES = [("ce_id", b"\xff\xfe"), ("x", None), ("ce_type", b"io.backstop.case-updated.v1"), ("x", b"\x1b[31mred\n")]


class Operator:
    """Runs `backstop dead` against one installation, and publishes what services would."""

    def __init__(self, kafka_bootstrap: str, prefix: str, producer: AIOKafkaProducer) -> None:
        self.kafka_bootstrap = kafka_bootstrap
        self.prefix = prefix
        self.producer = producer
        self.source = f"{prefix}.case-updated"

    async def run(self, *arguments: str, answer: str | None = None) -> Result:
        """Run a command; returns its result."""
        env = {"BACKSTOP_KAFKA_BOOTSTRAP": self.kafka_bootstrap, "BACKSTOP_TOPIC_PREFIX": self.prefix}
        return await asyncio.to_thread(CliRunner().invoke, app, ["dead", *arguments], input=answer, env=env)

    async def ok(self, *arguments: str, answer: str | None = None) -> str:
        """Run a command that must succeed; returns what it prints."""
        result = await self.run(*arguments, answer=answer)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def refused(self, *arguments: str) -> str:
        """Run a command that must fail with exit code 1; returns what it says."""
        result = await self.run(*arguments)
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        return result.stderr

    async def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """List dead letters as JSON."""
        return [json.loads(line) for line in (await self.ok("list", "--json", *arguments)).splitlines()]

    async def ids(self, *arguments: str) -> list[str]:
        """List the ids of dead letters."""
        return [letter["id"] for letter in await self.listed(*arguments)]

    async def park(self, service: str = "triage", **parts: Any) -> str:
        """Write a dead letter as the chassis does; returns its id."""
        marks = {
            "topic": self.source,
            "partition": 0,
            "offset": 7,
            "error": "ZeroDivisionError",
            "reason": "ZeroDivisionError",
            "time": "2026-03-01T12:00:00+00:00",
            **parts.pop("marks", {}),
        }
        headers = [(f"backstop-dead-{name}", str(mark).encode()) for name, mark in marks.items() if mark is not None]
        sent = await self.producer.send_and_wait(
            f"{self.prefix}.{service}.dead",
            key=parts.get("key", b"key"),
            value=parts.get("value", VALUE),
            headers=[*parts.get("headers", []), *headers],
        )
        return f"{service}:{sent.partition}:{sent.offset}"

    async def published(self, count: int) -> list[ConsumerRecord]:
        """Read *count* records of the source topic."""
        consumer = AIOKafkaConsumer(self.source, bootstrap_servers=self.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            async with asyncio.timeout(60):
                return [await anext(consumer) for _ in range(count)]
        finally:
            await consumer.stop()


@pytest.fixture
async def operator(kafka_bootstrap: str) -> AsyncIterator[Operator]:
    """Make an installation with two services."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(
        kafka_bootstrap, prefix=prefix, partitions=2, replication=1, services=["triage", "verdict-poller"]
    )
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    yield Operator(kafka_bootstrap, prefix, producer)
    await producer.stop()


async def test_an_empty_list_says_so(operator: Operator) -> None:
    """Nothing is wrong, and the operator can tell."""
    assert await operator.ok("list") == "No dead letter stands.\n"
    assert await operator.ok("list", "--json") == ""


async def test_the_list_says_what_failed_where_and_why_and_never_the_payload(operator: Operator) -> None:
    """One line each, and their number."""
    headers = [("ce_id", b"e-1"), ("ce_type", b"io.backstop.case-updated.v1")]
    first = await operator.park(headers=headers)
    second = await operator.park("verdict-poller", marks={"error": "KeyError", "reason": "KeyError"})

    text = await operator.ok("list")

    title, *lines, count = text.splitlines()
    assert title.split() == ["ID", "WHEN", "FROM", "ERROR", "EVENT", "CE_ID", "KEY", "STATE", "REASON"]
    assert [line.split() for line in lines] == [
        [
            first, "2026-03-01T12:00:00Z", f"{operator.source}:0:7", "ZeroDivisionError", "io.backstop.case-updated.v1",
            "e-1", "key", "stands", "ZeroDivisionError",
        ],
        [second, "2026-03-01T12:00:00Z", f"{operator.source}:0:7", "KeyError", "-", "-", "key", "stands", "KeyError"],
    ]  # fmt: skip
    assert count == "2 dead letters stand."
    assert "eyes only" not in text
    (letter, _) = await operator.listed()
    assert letter == {
        "id": first,
        "service": "triage",
        "time": "2026-03-01T12:00:00+00:00",
        "topic": operator.source,
        "partition": 0,
        "offset": 7,
        "error": "ZeroDivisionError",
        "reason": "ZeroDivisionError",
        "key": "key",
        "type": "io.backstop.case-updated.v1",
        "ce_id": "e-1",
        "settled": None,
    }


async def test_the_list_is_filtered_by_service_error_reason_and_topic(operator: Operator) -> None:
    """What is not asked for is not counted."""
    a = await operator.park(marks={"error": "ValidationError", "reason": "case_id: missing"})
    b = await operator.park(marks={"topic": f"{operator.prefix}.verdict-ready"})
    c = await operator.park("verdict-poller")

    assert sorted(await operator.ids()) == sorted([a, b, c])
    assert sorted(await operator.ids("--service", "triage")) == sorted([a, b])
    assert await operator.ids("--error", "ValidationError") == [a]
    assert await operator.ids("--reason", "CASE_ID") == [a]
    assert await operator.ids("--topic", "verdict-ready") == [b]
    assert await operator.ids("--topic", f"{operator.prefix}.verdict-ready") == [b]
    assert await operator.ids("--topic", "ready") == []
    assert (await operator.ok("list", "--error", "ValidationError")).endswith("1 dead letter stands.\n")


async def test_what_a_terminal_might_obey_is_escaped(operator: Operator) -> None:
    """Anybody may have written what lies in a dead letter."""
    nasty = "\x1b]0;owned\x07\u202e".encode()
    letter_id = await operator.park(
        key=nasty, value=b'{"a": "\xc2\x9b"}', headers=[("ce_id", nasty), ("\x1b[2J", b"x")], marks={"reason": "\r\x1b"}
    )
    for text in (await operator.ok("list"), await operator.ok("show", letter_id)):
        assert all(char.isprintable() or char == "\n" for char in text), text


async def test_show_tells_everything_and_the_payload(operator: Operator) -> None:
    """Also whether the event would be understood today."""
    event = case_updated()
    good = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
    understood = await operator.park(value=event.model_dump_json().encode(), headers=good)
    broken = await operator.park(headers=good)
    bytes_only = await operator.park(value=b"\xff\x00", headers=BYTES, key=None)
    nothing = await operator.park(value=None)

    text = await operator.ok("show", understood)
    assert f"{operator.source}, partition 0, offset 7" in text
    assert "is understood as CaseUpdated by this version" in text
    assert "ce_type: io.backstop.case-updated.v1" in text
    assert text.endswith(event.model_dump_json() + "\n")

    text = await operator.ok("show", broken)
    assert "is not understood by this version either" in text
    assert "case_id" in text
    assert "eyes only" in text

    text = await operator.ok("show", bytes_only)
    assert text.endswith("b'\\xff\\x00'\n")
    assert "ce_id: b'\\xff\\xfe'" in text
    assert "x: null" in text
    assert "key     null" in text
    assert "no payload" in await operator.ok("show", nothing)


async def test_help_warns_of_the_payload(operator: Operator) -> None:
    """Before somebody pastes it into a ticket."""
    assert "may be private" in await operator.ok("show", "--help")


@pytest.mark.parametrize(
    ("key", "value"), [(b"key", VALUE), (b"\xff\x00", b"\xff\x00"), (None, b""), (b"", None), (b"key", b"x" * 900_000)]
)
async def test_a_replayed_record_is_the_same_byte_for_byte(
    operator: Operator, key: bytes | None, value: bytes | None
) -> None:
    """Key, value and headers, in their order, without what was added."""
    letter_id = await operator.park(key=key, value=value, headers=BYTES)

    assert await operator.ok("replay", letter_id) == "1 dead letter replayed.\n"

    (record,) = await operator.published(1)
    assert (record.key, record.value, list(record.headers)) == (key, value, BYTES)
    assert await operator.ids() == []
    ((how, _),) = [letter["settled"].values() for letter in await operator.listed("--all")]
    assert how == "replayed"


async def test_all_of_a_service_and_an_error_are_replayed_in_order_and_no_others(operator: Operator) -> None:
    """More than are held in memory at once."""
    letters = [
        await operator.producer.send(
            f"{operator.prefix}.triage.dead",
            str(number).encode(),
            key=b"one key",
            headers=[("backstop-dead-topic", operator.source.encode()), ("backstop-dead-error", b"KeyError")],
        )
        for number in range(1100)
    ]
    await asyncio.gather(*letters)
    others = [await operator.park(), await operator.park("verdict-poller", marks={"error": "KeyError"})]

    text = await operator.ok("replay", "--service", "triage", "--error", "KeyError", "--all")

    assert text == "1100 dead letters replayed.\n"
    assert [record.value for record in await operator.published(1100)] == [str(n).encode() for n in range(1100)]
    assert await operator.ids() == others


async def test_dropped_letters_do_not_stand_and_are_not_published(operator: Operator) -> None:
    """They can still be looked at."""
    dropped, kept = await operator.park(), await operator.park()
    assert await operator.ok("drop", dropped, "--yes") == "1 dead letter dropped.\n"

    assert await operator.ids() == [kept]
    await operator.ok("replay", kept)
    assert len(await operator.published(1)) == 1
    assert "dropped 20" in await operator.ok("show", dropped)
    assert (await operator.ok("list", "--all")).endswith("2 dead letters, none of which stands.\n")


async def test_drop_asks_and_a_no_changes_nothing(operator: Operator) -> None:
    """The question says how many, and silence is a no."""
    ids = sorted([await operator.park(), await operator.park()])
    for answer in ("n\n", ""):
        result = await operator.run("drop", "--service", "triage", "--all", answer=answer)
        assert result.exit_code == 1
        assert "Drop 2 dead letters of triage?" in result.output
        assert sorted(await operator.ids()) == ids
    assert "2 dead letters dropped." in await operator.ok("drop", "--service", "triage", "--all", answer="y\n")
    assert await operator.ids() == []
    assert "No dead letter dropped." in await operator.ok("drop", "--service", "triage", "--all")


@pytest.mark.parametrize("command", [["replay"], ["drop", "--yes"]])
async def test_a_letter_is_settled_once(operator: Operator, command: list[str]) -> None:
    """The second time is an error, and the other letters of that command stay as they are."""
    settled, other = await operator.park(), await operator.park()
    await operator.ok(*command, settled)

    assert f"{settled} was " in await operator.refused(*command, other, settled)
    assert await operator.ids() == [other]


@pytest.mark.parametrize("command", [["show"], ["replay"], ["drop", "--yes"]])
async def test_an_unknown_letter_is_an_error_and_nothing_is_done(operator: Operator, command: list[str]) -> None:
    """Also an id that names a settlement, and one that is no id."""
    known = await operator.park(key=b"settled")
    await operator.ok("drop", known, "--yes")
    service, partition, offset = known.split(":")
    settlement = f"{service}:{partition}:{int(offset) + 1}"

    for unknown in ("triage:0:999", "triage:99:0", settlement):
        assert f"There is no dead letter {unknown}" in await operator.refused(*command, unknown)
    assert "Dead letters are kept for: triage, verdict-poller." in await operator.refused(*command, "nobody:0:0")
    for nonsense in ("triage", "triage:x:0", "", "a:b"):
        assert "is not the id of a dead letter" in await operator.refused(*command, nonsense)
    assert "There is no topic" in await operator.refused("list", "--service", "nobody")


async def test_single_letters_and_all_letters_are_not_mixed_up(operator: Operator) -> None:
    """A command that could mean two things does neither."""
    letter_id = await operator.park()
    for arguments in ([], [letter_id, "--all"], ["--service", "triage"], ["--all"], [letter_id, "--error", "X"]):
        assert (await operator.run("replay", *arguments)).exit_code == 2
        assert (await operator.run("drop", *arguments, "--yes")).exit_code == 2
    assert await operator.ids() == [letter_id]


async def test_a_letter_whose_topic_is_gone_stands_and_the_others_are_replayed(operator: Operator) -> None:
    """No topic is made by accident."""
    gone = await operator.park(marks={"topic": f"{operator.prefix}.gone"})
    untold = await operator.park(marks={"topic": None})
    good = await operator.park()

    told = await operator.refused("replay", "--service", "triage", "--all")

    assert f"{gone}: its topic {operator.prefix}.gone is gone. It stands as before." in told
    assert f"{untold}: it does not say which topic it came from." in told
    assert sorted(await operator.ids()) == sorted([gone, untold])
    assert good not in await operator.ids()
    admin = AIOKafkaAdminClient(bootstrap_servers=operator.kafka_bootstrap)
    await admin.start()
    assert f"{operator.prefix}.gone" not in await admin.list_topics()
    await admin.close()


async def test_a_letter_of_which_little_is_known_is_listed_and_shown(operator: Operator) -> None:
    """Written by another version or another program, with or without headers."""
    marks = dict.fromkeys(["topic", "partition", "offset", "error", "reason", "time"])
    letter_id = await operator.park(marks=marks)
    odd = await operator.park(marks={"partition": "x", "offset": "9" * 5000, "time": "yesterday"})

    text = await operator.ok("list")
    assert f"{letter_id} " in text
    assert "?:-:-" in text
    assert "its topic is none of this version's events" in await operator.ok("show", letter_id)
    assert "partition -, offset -" in await operator.ok("show", odd)
    await operator.ok("drop", letter_id, "--yes")
    assert await operator.ids() == [odd]


async def test_a_record_cannot_pass_for_a_settlement(operator: Operator) -> None:
    """Its publisher may have put any header on it before it was parked."""
    victim = await operator.park(key=b"same")
    _, partition, offset = victim.split(":")
    forged = [("backstop-dead-settles", f"{partition}:{offset}".encode()), ("backstop-dead-topic", b"elsewhere")]
    forger = await operator.park(key=b"same", headers=forged)

    assert await operator.ids() == [victim, forger]
    assert {letter["topic"] for letter in await operator.listed()} == {operator.source}


async def test_other_installations_are_left_alone(operator: Operator, kafka_bootstrap: str) -> None:
    """A prefix that begins like ours is not ours."""
    other = f"{operator.prefix}.eu"
    await create_topics(kafka_bootstrap, prefix=other, partitions=1, replication=1, services=["triage"])
    await Operator(kafka_bootstrap, other, operator.producer).park()

    assert await operator.ids() == []


async def test_when_kafka_is_away_one_line_says_so(tmp_path: Path) -> None:
    """As a process, because the line must be all that is written."""
    commands = [["list"], ["show", "triage:0:0"], ["replay", "triage:0:0"], ["drop", "triage:0:0", "--yes"]]
    for command in commands:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "backstop", "dead", *command],
            env={"BACKSTOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 1
        assert out == b""
        assert err.decode().startswith("Kafka at 127.0.0.1:1 does not answer")
        assert err.count(b"\n") == 1


def case_updated() -> CaseUpdated:
    """Make an event."""
    return CaseUpdated(
        tenant_id=uuid4(),
        case_id=CASE,
        change="opened",
        status=CaseStatus.OPEN,
        report_count=1,
        changed_at=datetime.now(UTC),
    )


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait for *condition*."""
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def consuming(operator: Operator, service: str, database: Database, handler: Handler) -> AsyncIterator[None]:
    """Run a service's consumer for the time of a block."""
    consumer = Consumer(
        {CaseUpdated: handler},
        service=service,
        database=database,
        kafka_bootstrap=operator.kafka_bootstrap,
        topic_prefix=operator.prefix,
        max_batch=500,
        halt_after=100,
    )
    await consumer.start()
    try:
        yield
    finally:
        await consumer.stop()


@pytest.fixture
async def db(database: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Open a database with a table of what was handled."""
    (tmp_path / "0001_seen.sql").write_text(
        "CREATE TABLE seen (service text, case_id uuid, PRIMARY KEY (service, case_id))"
    )
    db = Database(database, schema="triage")
    await db.open(tmp_path)
    yield db
    await db.close()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep the services' logs out of what a command prints: here they share a process."""
    with structlog.testing.capture_logs():
        yield


@pytest.mark.usefixtures("quiet")
async def test_events_that_met_a_bug_are_handled_after_it_is_fixed(operator: Operator, db: Database) -> None:
    """Parked, listed, replayed too early, parked again, fixed, replayed, handled; another service acts only once."""
    fixed = False

    async def remember(tx: Tx, service: str, cases: Sequence[Received[CaseUpdated]]) -> None:
        ids = [one.event.case_id for one in cases]
        sql = "INSERT INTO seen SELECT $1, * FROM unnest($2::uuid[]) ON CONFLICT DO NOTHING"
        await tx.execute(sql, service, ids)

    async def in_triage(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
        if not fixed:
            raise ZeroDivisionError
        await remember(tx, "triage", cases)

    calls = 0

    async def in_poller(tx: Tx, cases: Sequence[Received[CaseUpdated]]) -> None:
        nonlocal calls
        calls += len(cases)
        await remember(tx, "verdict-poller", cases)

    async def seen(service: str) -> list[UUID]:
        rows = await db.pool.fetch("SELECT case_id FROM seen WHERE service = $1", service)
        return [row["case_id"] for row in rows]

    event = case_updated()
    headers = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
    async with consuming(operator, "verdict-poller", db, in_poller), consuming(operator, "triage", db, in_triage):
        await operator.producer.send_and_wait(
            operator.source, event.model_dump_json().encode(), key=event.key.encode(), headers=headers
        )
        await until(operator.ids)
        await until(lambda: seen("verdict-poller"))
        (letter,) = await operator.listed()
        assert (letter["service"], letter["error"]) == ("triage", "ZeroDivisionError")
        assert (letter["type"], letter["key"]) == ("io.backstop.case-updated.v1", event.key)

        await operator.ok("replay", letter["id"])

        async def parked_again() -> bool:
            return [one["id"] for one in await operator.listed()] not in ([], [letter["id"]])

        await until(parked_again)
        fixed = True
        await operator.ok("replay", "--service", "triage", "--all")
        await until(lambda: seen("triage"))

        async def came_three_times() -> bool:
            return calls >= 3

        await until(came_three_times)
    assert await seen("triage") == await seen("verdict-poller") == [CASE]
    assert await operator.ids() == []
