"""Dead letters in an operator's hands: found, written out, replayed, dropped."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import typer
from pydantic import ValidationError

from backstop_contracts import EVENTS, NotAnEventError, read_headers
from chassis.dead import DeadLetter, DeadLetterError, DeadLetters, Place, Settlement

CHUNK = 500
CHUNK_BYTES = 8 << 20
"""Most letters, and about the most bytes of them, that are held in memory at once."""
TITLES = ("ID", "WHEN", "FROM", "ERROR", "EVENT", "CE_ID", "KEY", "STATE", "REASON")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: those that stand, or also the settled ones, as far as they match."""

    error: str | None = None
    reason: str | None = None
    topic: str | None = None
    settled: bool = False

    def __call__(self, letter: DeadLetter, settlement: Settlement | None) -> bool:
        """Tell whether *letter* is meant."""
        return (
            (self.settled or settlement is None)
            and self.error in (None, letter.error)
            and (self.reason is None or self.reason.lower() in (letter.reason or "").lower())
            and (self.topic is None or f".{letter.topic}".endswith(f".{self.topic}"))
        )


def about(letter: DeadLetter, settlement: Settlement | None) -> dict[str, Any]:
    """Describe a letter without its payload."""
    headers = dict(letter.headers)
    return {
        "id": letter.id,
        "service": letter.service,
        "time": letter.time.isoformat(),
        "topic": letter.topic,
        "partition": letter.source_partition,
        "offset": letter.source_offset,
        "error": letter.error,
        "reason": letter.reason,
        "key": _readable(letter.key),
        "type": _readable(headers.get("ce_type")),
        "ce_id": _readable(headers.get("ce_id")),
        "settled": settlement and {"how": settlement.how, "time": settlement.time.isoformat()},
    }


async def print_list(letters: DeadLetters, service: str | None, wanted: Wanted, *, as_json: bool) -> None:
    """Print the letters that are meant: as a table that ends with their number, or as one JSON object a line."""
    count = standing = 0

    async def rows() -> AsyncIterator[Sequence[str]]:
        nonlocal count, standing
        for name in [service] if service else letters.services:
            async for letter, settlement in letters.read(name):
                if wanted(letter, settlement):
                    count += 1
                    standing += settlement is None
                    yield [json.dumps(about(letter, settlement))] if as_json else _row(letter, settlement)

    if as_json:
        async for row in rows():
            typer.echo(row[0])
        return
    await _print_table(rows())
    if wanted.settled:
        typer.echo(f"{_count(count)}, {standing or 'none'} of which {'stand' if standing > 1 else 'stands'}.")
    else:
        typer.echo(f"{_count(standing)} {'stand' if standing > 1 else 'stands'}.")


def text_of(letter: DeadLetter, settlement: Settlement | None, *, topic_prefix: str) -> str:
    """Write out everything about a letter, its payload included."""
    facts = {
        "parked": _when(letter.time),
        "from": f"{letter.topic or '?'}, partition {_or(letter.source_partition)}, offset {_or(letter.source_offset)}",
        "error": _or(letter.error),
        "reason": _or(letter.reason),
        "state": f"{settlement.how} {_when(settlement.time)}" if settlement else "stands",
        "now": _now(letter, topic_prefix),
        "key": _exact(letter.key),
    }
    size = "no payload" if letter.value is None else f"payload, {len(letter.value)} bytes:"
    return "\n".join(
        [
            letter.id,
            *(f"  {name:<8}{_printable(value)}" for name, value in facts.items()),
            "  headers",
            *(f"    {_printable(name)}: {_exact(value)}" for name, value in letter.headers),
            f"  {size}",
            *([] if letter.value is None else [_payload(letter.value)]),
        ]
    )


async def find_standing(letters: DeadLetters, ids: Sequence[str]) -> list[DeadLetter]:
    """Return the letters with these ids. Raises DeadLetterError when one of them is unknown or settled already."""
    found = []
    for service, places in _by_service(ids).items():
        for letter, settlement in await letters.find(service, places):
            if settlement:
                raise DeadLetterError(
                    f"{letter.id} was {settlement.how} {_when(settlement.time)} already. Nothing was done."
                )
            found.append(letter)
    return found


async def find_one(letters: DeadLetters, letter_id: str) -> tuple[DeadLetter, Settlement | None]:
    """Return the letter with this id and its settlement. Raises DeadLetterError when it is unknown."""
    ((service, places),) = _by_service([letter_id]).items()
    (found,) = await letters.find(service, places)
    return found


async def replay(letters: DeadLetters, ids: Sequence[str], service: str | None, wanted: Wanted) -> bool:
    """Replay the letters with *ids*, or all of *service* that are meant; tell whether every one could be."""
    replayed = kept = 0
    async for chunk in _chunks(letters, await find_standing(letters, ids), service, wanted):
        refused = await letters.replay(chunk)
        replayed += len(chunk) - len(refused)
        kept += len(refused)
        for letter, why in refused:
            typer.secho(f"Not replayed: {letter.id}: {_printable(why)}. It stands as before.", err=True, fg="red")
    typer.echo(f"{_count(replayed)} replayed.")
    return not kept


async def drop(letters: DeadLetters, ids: Sequence[str], service: str | None, wanted: Wanted, *, sure: bool) -> None:
    """Drop the letters with *ids*, or all of *service* that are meant; ask before unless *sure*."""
    found: dict[str, list[Place]] = {}
    async for chunk in _chunks(letters, await find_standing(letters, ids), service, wanted):
        for letter in chunk:
            found.setdefault(letter.service, []).append(letter.place)
    count = sum(map(len, found.values()))
    if count and not sure:
        typer.confirm(f"Drop {_count(count)} of {', '.join(found)}? No service will see them again.", abort=True)
    for name, places in found.items():
        for some in _split(places):
            await letters.settle(name, some, "dropped")
    typer.echo(f"{_count(count)} dropped.")


async def _chunks(
    letters: DeadLetters, found: list[DeadLetter], service: str | None, wanted: Wanted
) -> AsyncIterator[list[DeadLetter]]:
    """Yield what was *found*, or else all of *service* that are meant, in parts that memory can hold."""
    if found:
        yield found
    if service is None:
        return
    chunk: list[DeadLetter] = []
    size = 0
    async for letter, settlement in letters.read(service):
        if wanted(letter, settlement):
            chunk.append(letter)
            size += len(letter.value or b"")
            if len(chunk) >= CHUNK or size > CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _split(places: list[Place]) -> Iterator[list[Place]]:
    return (places[start : start + CHUNK] for start in range(0, len(places), CHUNK))


def _by_service(ids: Sequence[str]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for letter_id in dict.fromkeys(ids):
        service, _, place = letter_id.partition(":")
        partition, _, offset = place.partition(":")
        if not (service and partition.isdecimal() and offset.isdecimal()):
            raise DeadLetterError(f"{letter_id!r} is not the id of a dead letter: <service>:<partition>:<offset>.")
        found.setdefault(service, []).append(Place(int(partition), int(offset)))
    return found


def _row(letter: DeadLetter, settlement: Settlement | None) -> list[str]:
    facts = about(letter, settlement)
    cells = (
        facts["id"],
        _when(letter.time),
        f"{letter.topic or '?'}:{_or(letter.source_partition)}:{_or(letter.source_offset)}",
        facts["error"],
        facts["type"],
        facts["ce_id"],
        facts["key"],
        settlement.how if settlement else "stands",
        facts["reason"],
    )
    return [_printable(_or(cell)) for cell in cells]


async def _print_table(rows: AsyncIterator[Sequence[str]]) -> None:
    """Print columns as wide as the first rows need; rows that come later may be wider."""
    block: list[Sequence[str]] = []
    widths: list[int] = []

    def print_block() -> None:
        if not widths and block:
            block.insert(0, TITLES)
            widths.extend(max(map(len, column)) for column in zip(*block, strict=True))
        for row in block:
            cells = zip(row, widths, strict=True)
            typer.echo("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
        block.clear()

    async for row in rows:
        block.append(row)
        if len(block) >= CHUNK:
            print_block()
    print_block()


def _now(letter: DeadLetter, topic_prefix: str) -> str:
    """Tell whether the event would be understood today."""
    models = {f"{topic_prefix}.{model.topic()}": model for model in EVENTS}
    model = models.get(letter.topic or "")
    if model is None:
        return "its topic is none of this version's events"
    try:
        read_headers(letter.headers, model)
        model.model_validate_json(letter.value or b"")
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


def _printable(text: str) -> str:
    """Escape what a terminal might obey: the text may come from anybody."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _or(value: object) -> str:
    return "-" if value is None else str(value)


def _when(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _count(number: int) -> str:
    return {0: "No dead letter", 1: "1 dead letter"}.get(number, f"{number} dead letters")
