"""Dead letters in an operator's hands: found, written out, replayed, dropped."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import asyncpg
import click
from pydantic import ValidationError

from backstop.output import cell, print_json, print_rows, printable, utc
from backstop_contracts import EVENTS, NotAnEventError, read_headers
from chassis import dead_letters
from chassis.dead_letters import DeadLetter, Wanted

PAGE = 500
TITLES = ("ID", "PARKED", "FROM", "ERROR", "EVENT", "EVENT ID", "KEY", "STATE", "REASON")
MODELS = {model.topic(): model for model in EVENTS}


class LettersError(Exception):
    """What was asked for cannot be done; the text says why, and nothing was changed."""


class Letters:
    """The dead letters of all services of one database, each in its own schema, while the context is entered."""

    def __init__(self, dsn: str, services: Sequence[str]) -> None:
        self._dsn = dsn
        self._known = services

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._dsn, timeout=10, command_timeout=60)
        self.services = [
            service
            for service in self._known
            if await self._connection.fetchval("SELECT to_regclass($1)", f'"{_schema(service)}".dead_letters')
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close(timeout=2)

    async def read(self, service: str | None, wanted: Wanted) -> AsyncIterator[tuple[str, DeadLetter]]:
        """Read the letters that match *wanted*, of one service or of all, each with the name of its service."""
        for name in self.services if service is None else [service]:
            after = 0
            while page := await dead_letters.read(await self._of(name), wanted, after=after, limit=PAGE):
                for letter in page:
                    yield name, letter
                after = page[-1].id

    async def find(self, letter_id: str) -> tuple[str, DeadLetter, bytes | None]:
        """Return the service name, the dead letter and its value."""
        service, _, number = letter_id.partition(":")
        if not (service and number.isdecimal() and len(number) < 19):
            raise LettersError(f"{letter_id!r} is not the id of a dead letter: <service>:<number>.")
        found = await dead_letters.find(await self._of(service), int(number))
        if found is None:
            raise LettersError(
                f"There is no dead letter {letter_id}. `backstop dead list --all` shows all there are; those that were"
                " replayed or dropped are deleted after 30 days."
            )
        return service, *found

    async def choose(self, ids: Sequence[str], service: str | None, wanted: Wanted) -> dict[str, list[int]]:
        """Return unresolved letter ids by service: *ids* or, if empty, all letters of *service* that match *wanted*."""
        chosen: dict[str, list[int]] = {}
        for letter_id in dict.fromkeys(ids):
            name, letter, _ = await self.find(letter_id)
            if letter.state != "unresolved":
                raise LettersError(f"{letter_id} was {letter.state} {utc(letter.resolved_at)}. Nothing was done.")
            chosen.setdefault(name, []).append(letter.id)
        if not ids:
            async for name, letter in self.read(service, wanted):
                chosen.setdefault(name, []).append(letter.id)
        return chosen

    async def replay(self, service: str, ids: Sequence[int], by: str, *, old: bool = False) -> list[int]:
        """Replay unresolved letters and return their ids. Skip old letters unless *old*."""
        connection = await self._of(service)
        async with connection.transaction():
            return await dead_letters.replay(connection, Wanted(), by, ids=ids, old=old)

    async def drop(self, service: str, ids: Sequence[int], by: str) -> list[int]:
        """Drop unresolved letters and return their ids."""
        connection = await self._of(service)
        async with connection.transaction():
            return await dead_letters.drop(connection, Wanted(), by, ids=ids)

    async def _of(self, service: str) -> "asyncpg.Connection[asyncpg.Record]":
        if service not in self.services:
            known = ", ".join(self.services) or "none"
            raise LettersError(f"There is no service {service} in this database. Services with dead letters: {known}.")
        await self._connection.execute("SELECT set_config('search_path', $1, false)", f'"{_schema(service)}"')
        return self._connection


async def print_list(letters: Letters, service: str | None, wanted: Wanted, *, as_json: bool) -> None:
    """Print the letters that match *wanted*, as a table that ends with their number, or as one JSON object a line."""
    count = unresolved = 0
    rows: list[Sequence[str]] = [TITLES]
    widths: list[int] = []
    async for name, letter in letters.read(service, wanted):
        count += 1
        unresolved += letter.state == "unresolved"
        if as_json:
            print_json(about(name, letter))
        else:
            rows.append(_row(name, letter))
        if len(rows) == PAGE:
            print_rows(rows, widths)
            rows.clear()
    if as_json:
        return
    if count:
        print_rows(rows, widths)
    total = f"{count_of(count)}, " if wanted.state is None and count else ""
    click.echo(f"{total}{unresolved or 'none'} unresolved." if total or unresolved else "No dead letters.")


def about(service: str, letter: DeadLetter) -> dict[str, Any]:
    """Describe a letter without its payload."""
    return {
        "id": f"{service}:{letter.id}",
        "service": service,
        "parked_at": letter.parked_at.isoformat(),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "error": letter.error,
        "reason": letter.reason,
        "key": _readable(letter.key),
        "type": _readable(dict(letter.headers).get("ce_type")),
        "event_id": _readable(dict(letter.headers).get("ce_id")),
        "state": letter.state,
        "resolved_by": letter.resolved_by,
        "resolved_at": letter.resolved_at and letter.resolved_at.isoformat(),
    }


def json_of(service: str, letter: DeadLetter, value: bytes | None) -> str:
    """Return a letter with headers and payload as JSON. Escape bytes that are not text."""
    headers = [[name, _readable(content)] for name, content in letter.headers]
    return json.dumps({**about(service, letter), "headers": headers, "payload": _readable(value)})


def text_of(service: str, letter: DeadLetter, value: bytes | None) -> str:
    """Write out everything about a letter, its payload included."""
    resolved = f" {utc(letter.resolved_at)} by {letter.resolved_by}" if letter.resolved_at else ""
    facts = {
        "parked": utc(letter.parked_at),
        "from": f"{letter.topic}, partition {letter.partition}, offset {letter.offset}",
        "error": letter.error,
        "reason": letter.reason,
        "state": letter.state + resolved,
        "now": _describe_parsability(letter, value),
        "key": _exact(letter.key),
    }
    size = "no payload" if value is None else f"payload, {len(value)} bytes:"
    return "\n".join(
        [
            f"{service}:{letter.id}",
            *(f"  {name:<8}{printable(fact)}" for name, fact in facts.items()),
            "  headers",
            *(f"    {printable(name)}: {_exact(content)}" for name, content in letter.headers),
            f"  {size}",
            *([] if value is None else [_payload(value)]),
        ]
    )


def topic_of(name: str | None) -> str | None:
    """Return the topic that an operator names, which may be with the installation's prefix."""
    return next((topic for topic in MODELS if f".{name}".endswith(f".{topic}")), name)


def count_of(number: int) -> str:
    """Write a number of dead letters."""
    return {0: "No dead letters", 1: "1 dead letter"}.get(number, f"{number} dead letters")


def _schema(service: str) -> str:
    return service.replace("-", "_").replace('"', '""')


def _row(service: str, letter: DeadLetter) -> list[str]:
    facts = about(service, letter)
    cells = (
        facts["id"],
        utc(letter.parked_at),
        f"{letter.topic}:{letter.partition}:{letter.offset}",
        *(facts[name] for name in ("error", "type", "event_id", "key", "state", "reason")),
    )
    return [cell(value) for value in cells]


def _describe_parsability(letter: DeadLetter, value: bytes | None) -> str:
    """Return whether the event would be understood today, as a sentence."""
    model = MODELS.get(letter.topic)
    if model is None:
        return "its topic is none of this version's events"
    try:
        read_headers(letter.headers, model)
        model.model_validate_json(value or b"")
    except (NotAnEventError, ValidationError) as error:
        return f"is not understood by this version either: {error}"
    return f"is understood as {model.__name__} by this version"


def _payload(value: bytes) -> str:
    """Write JSON as it is, with what a terminal might obey as JSON escapes; anything else as a bytes literal."""
    try:
        text = value.decode()
        json.loads(text)
    except ValueError:
        return repr(value)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def _exact(value: bytes | None) -> str:
    """Write text as it is if nothing in it is to be escaped, anything else as a bytes literal."""
    if value is None:
        return "null"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return repr(value)
    return text if text.isprintable() else repr(value)


def _readable(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")
