"""An operator sees what a service could not handle, has it handled again or drops it; nothing changes on the way."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

from backstop.app import app
from backstop_contracts import CaseStatus, CaseUpdated, headers_for
from chassis.postgres import Database
from chassis.topics import EVENT_BYTES

CASE = uuid4()
VALUE = b'{"subject": "for your eyes only"}'
BYTES = [("ce_id", b"\xff\xfe"), ("x", None), ("ce_type", b"io.backstop.case-updated.v1"), ("x", b"\x1b[31mred\n")]
PARKED = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


class Operator:
    """Runs `backstop dead` against the database of two services."""

    def __init__(self, dsn: str, databases: dict[str, Database]) -> None:
        self.dsn = dsn
        self.databases = databases

    async def run(self, *arguments: str, answer: str | None = None) -> Result:
        """Run a command; returns its result."""
        env = {"BACKSTOP_POSTGRES_DSN": self.dsn}
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
        """Keep a dead letter as the chassis does; returns its id."""
        letter = {
            "topic": "case-updated",
            "key": b"key",
            "value": VALUE,
            "error": "ZeroDivisionError",
            "reason": "ZeroDivisionError",
            **parts,
        }
        headers = letter.pop("headers", [])
        number = await self.databases[service].pool.fetchval(
            "INSERT INTO dead_letters (topic, key, value, error, reason, header_names, header_values, parked_at,"
            ' topic_id, partition, "offset") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 7) RETURNING id',
            *letter.values(),
            [name.encode() for name, _ in headers],
            [value for _, value in headers],
            PARKED,
            uuid4(),
        )
        return f"{service}:{number}"

    async def outbox(self, service: str = "triage") -> list[Any]:
        """Return what the relay of a service has to publish."""
        return list(await self.databases[service].pool.fetch("SELECT * FROM outbox ORDER BY id"))


@pytest.fixture
async def operator(database: str, tmp_path: Path) -> AsyncIterator[Operator]:
    """Make the schemas of two services."""
    databases = {}
    for service in ("triage", "verdict-poller"):
        databases[service] = Database(database, schema=service.replace("-", "_"))
        await databases[service].open(tmp_path)
    yield Operator(database, databases)
    for db in databases.values():
        await db.close()


async def test_an_empty_list_says_so(operator: Operator) -> None:
    """Nothing is wrong, and the operator can tell."""
    assert await operator.ok("list") == "No dead letters.\n"
    assert await operator.ok("list", "--json") == ""


async def test_the_list_says_what_failed_where_and_why_and_never_the_payload(operator: Operator) -> None:
    """One line each, and their number."""
    headers = [("ce_id", b"e-1"), ("ce_type", b"io.backstop.case-updated.v1")]
    first = await operator.park(headers=headers)
    second = await operator.park("verdict-poller", error="KeyError", reason="KeyError")

    text = await operator.ok("list")

    title, *lines, count = text.splitlines()
    assert title.split() == ["ID", "PARKED", "FROM", "ERROR", "EVENT", "EVENT", "ID", "KEY", "STATE", "REASON"]
    parked = f"{PARKED:%Y-%m-%dT%H:%M:%SZ}"
    assert [line.split() for line in lines] == [
        [
            first, parked, "case-updated:0:7", "ZeroDivisionError", "io.backstop.case-updated.v1",
            "e-1", "key", "unresolved", "ZeroDivisionError",
        ],
        [second, parked, "case-updated:0:7", "KeyError", "-", "-", "key", "unresolved", "KeyError"],
    ]  # fmt: skip
    assert count == "2 unresolved."
    assert "eyes only" not in text
    (letter, _) = await operator.listed()
    assert letter == {
        "id": first,
        "service": "triage",
        "parked_at": PARKED.isoformat(),
        "topic": "case-updated",
        "partition": 0,
        "offset": 7,
        "error": "ZeroDivisionError",
        "reason": "ZeroDivisionError",
        "key": "key",
        "type": "io.backstop.case-updated.v1",
        "event_id": "e-1",
        "state": "unresolved",
        "resolved_by": None,
        "resolved_at": None,
    }


async def test_the_list_is_filtered_by_service_error_reason_and_topic(operator: Operator) -> None:
    """Filters narrow each other; the topic may be named as Kafka has it."""
    a = await operator.park(error="ValidationError", reason="case_id: missing")
    b = await operator.park(topic="verdict-ready")
    c = await operator.park("verdict-poller")

    assert await operator.ids() == [a, b, c]
    assert await operator.ids("--service", "triage") == [a, b]
    assert await operator.ids("--error", "ValidationError") == [a]
    assert await operator.ids("--reason", "CASE_ID") == [a]
    assert await operator.ids("--topic", "verdict-ready") == [b]
    assert await operator.ids("--topic", "backstop.eu.verdict-ready") == [b]
    assert await operator.ids("--topic", "ready") == []
    assert await operator.ids("--reason", "%") == []
    assert (await operator.ok("list", "--error", "ValidationError")).endswith("\n1 unresolved.\n")


async def test_what_a_terminal_might_obey_is_escaped(operator: Operator) -> None:
    """Anybody may have written what lies in a dead letter."""
    nasty = "\x1b]0;owned\x07\u202e".encode()
    letter_id = await operator.park(
        key=nasty, value=b'{"a": "\xc2\x9b"}', headers=[("ce_id", nasty), ("\x1b[2J", b"x")], reason="\r\x1b"
    )
    for text in (await operator.ok("list"), await operator.ok("show", letter_id)):
        assert all(char.isprintable() or char == "\n" for char in text), text


async def test_show_tells_everything_and_the_payload(operator: Operator) -> None:
    """Also whether the event would be understood today."""
    event = CaseUpdated(
        tenant_id=UUID(int=1),
        case_id=CASE,
        change="opened",
        status=CaseStatus.OPEN,
        report_count=1,
        changed_at=datetime.now(UTC),
    )
    good = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
    understood = await operator.park(value=event.model_dump_json().encode(), headers=good)
    broken = await operator.park(headers=good)
    bytes_only = await operator.park(value=b"\xff\x00", headers=BYTES, key=None)
    nothing = await operator.park(value=None)

    text = await operator.ok("show", understood)
    assert "case-updated, partition 0, offset 7" in text
    assert "is understood as CaseUpdated by this version" in text
    assert "ce_type: io.backstop.case-updated.v1" in text
    assert text.endswith(event.model_dump_json() + "\n")

    text = await operator.ok("show", broken)
    assert "is not understood by this version either" in text
    assert "case_id" in text
    assert "eyes only" in text
    assert json.loads(await operator.ok("show", broken, "--json"))["payload"] == VALUE.decode()

    text = await operator.ok("show", bytes_only)
    assert text.endswith("b'\\xff\\x00'\n")
    assert "ce_id: b'\\xff\\xfe'" in text
    assert "x: null" in text
    assert "key     null" in text
    assert json.loads(await operator.ok("show", bytes_only, "--json"))["payload"] == "\\xff\x00"
    assert "no payload" in await operator.ok("show", nothing)
    assert json.loads(await operator.ok("show", nothing, "--json"))["payload"] is None


async def test_help_warns_of_the_payload(operator: Operator) -> None:
    """Before somebody pastes it into a ticket."""
    assert "may be private" in " ".join((await operator.ok("show", "--help")).split())


async def test_a_replayed_letter_is_the_relays_and_says_who_did_it(operator: Operator) -> None:
    """As it was: its bytes are not looked at on the way."""
    letter_id = await operator.park(key=b"\xff", value=b"\xff\x00", headers=BYTES)

    assert await operator.ok("replay", letter_id) == "1 dead letter replayed.\n"

    (row,) = await operator.outbox()
    assert (row["topic"], row["key"], row["payload"]) == ("case-updated", b"\xff", b"\xff\x00")
    names = [name.decode() for name in row["header_names"]]
    assert list(zip(names, row["header_values"], strict=True)) == BYTES
    assert await operator.ids() == []
    (letter,) = await operator.listed("--all")
    assert (letter["state"], letter["resolved_by"].split(",")[0]) == ("replayed", "backstop dead")


async def test_all_of_a_service_and_an_error_are_replayed_in_order_and_no_others(operator: Operator) -> None:
    """More than one page of them."""
    ids = [await operator.park(error="KeyError", value=str(number).encode()) for number in range(1100)]
    others = [await operator.park(), await operator.park("verdict-poller", error="KeyError")]

    text = await operator.ok("replay", "--service", "triage", "--error", "KeyError", "--all", "--json")

    assert json.loads(text) == {"replayed": ids, "refused": []}
    assert [row["payload"] for row in await operator.outbox()] == [str(n).encode() for n in range(1100)]
    assert await operator.outbox("verdict-poller") == []
    assert await operator.ids() == others


async def test_dropped_letters_are_resolved_and_not_published(operator: Operator) -> None:
    """They can still be looked at."""
    dropped, kept = await operator.park(), await operator.park()
    assert await operator.ok("drop", dropped, "--yes") == "1 dead letter dropped.\n"

    assert await operator.ids() == [kept]
    assert json.loads(await operator.ok("drop", kept, "--yes", "--json")) == {"dropped": [kept]}
    assert await operator.outbox() == []
    assert "dropped 20" in await operator.ok("show", dropped)
    assert (await operator.ok("list", "--all")).endswith("\n2 dead letters, none unresolved.\n")


async def test_drop_asks_and_a_no_changes_nothing(operator: Operator) -> None:
    """The question says how many, and silence is a no."""
    ids = [await operator.park(), await operator.park()]
    for answer in ("n\n", ""):
        result = await operator.run("drop", "--service", "triage", "--all", answer=answer)
        assert result.exit_code == 1
        assert "Drop 2 dead letters of triage?" in result.output
        assert await operator.ids() == ids
    assert "2 dead letters dropped." in await operator.ok("drop", "--service", "triage", "--all", answer="y\n")
    assert await operator.ids() == []
    assert "No dead letters dropped." in await operator.ok("drop", "--service", "triage", "--all")


@pytest.mark.parametrize("command", [["replay"], ["drop", "--yes"]])
async def test_a_letter_is_resolved_once(operator: Operator, command: list[str]) -> None:
    """The second time is an error, and the other letters of that command stay as they are."""
    resolved, other = await operator.park(), await operator.park()
    await operator.ok(*command, resolved)

    assert f"{resolved} was " in await operator.refused(*command, other, resolved)
    assert await operator.ids() == [other]


@pytest.mark.parametrize("command", [["show"], ["replay"], ["drop", "--yes"]])
async def test_an_unknown_letter_is_an_error_and_nothing_is_done(operator: Operator, command: list[str]) -> None:
    """Also a service that is none, one that is not in this database, and what is no id."""
    known = await operator.park()
    assert "There is no dead letter triage:999." in await operator.refused(*command, "triage:999")
    for nobody in ("nobody:0", "reporter:0"):
        said = await operator.refused(*command, nobody)
        assert "Services with dead letters: triage, verdict-poller." in said
    for nonsense in ("triage", "triage:x", "", ":7", "triage:" + "9" * 19):
        assert "is not the id of a dead letter" in await operator.refused(*command, nonsense)
    assert "There is no service nobody" in await operator.refused("list", "--service", "nobody")
    assert await operator.ids() == [known]


async def test_single_letters_and_all_letters_are_not_mixed_up(operator: Operator) -> None:
    """A command that could mean two things does neither."""
    letter_id = await operator.park()
    for arguments in ([], [letter_id, "--all"], ["--service", "triage"], ["--all"], [letter_id, "--error", "X"]):
        assert (await operator.run("replay", *arguments)).exit_code == 2
        assert (await operator.run("drop", *arguments, "--yes")).exit_code == 2
    assert await operator.ids() == [letter_id]


async def test_a_letter_that_no_topic_takes_is_unresolved_as_before_and_the_others_are_replayed(
    operator: Operator,
) -> None:
    """It had been published compressed."""
    large, good = await operator.park(value=b"x" * EVENT_BYTES), await operator.park()

    said = await operator.refused("replay", "--service", "triage", "--all")

    assert f"Not replayed: {large}: it is larger than an event may be" in said
    assert await operator.ids() == [large]
    assert len(await operator.outbox()) == 1
    assert good not in await operator.ids()


@pytest.mark.slow  # it waits for addresses that do not answer
async def test_when_postgresql_is_away_or_the_dsn_is_wrong_one_line_says_so(tmp_path: Path) -> None:
    """As a process, because the line must be all that is written; and never with the password."""
    commands = [["list"], ["show", "triage:0"], ["replay", "triage:0"], ["drop", "triage:0", "--yes"]]
    away, wrong = "postgresql://me:secret@127.0.0.1:1/x", "postgresql://me:se/cret@[/x"
    for dsn, code, begins in ((away, 1, "PostgreSQL does not answer"), (wrong, 2, "BACKSTOP_POSTGRES_DSN: write it")):
        for command in commands:
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "backstop", "dead", *command],
                env={"BACKSTOP_POSTGRES_DSN": dsn},
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await process.communicate()
            assert (process.returncode, out) == (code, b""), err
            assert err.decode().startswith(begins)
            assert err.count(b"\n") == 1
            assert b"secret" not in err
