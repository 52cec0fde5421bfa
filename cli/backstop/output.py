"""How commands print: results, tables, and the one line that says why something was not done."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
"""What options are added to."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
json_lines_option = click.option("--json", "as_json", is_flag=True, help="Print JSON: one object a line.")


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command and say why on stderr; exit code 2 when options or settings do not fit."""
    click.secho(message, err=True, fg="red")
    raise click.exceptions.Exit(code)


def print_json(value: Any) -> None:
    """Print *value* on one line."""
    click.echo(json.dumps(value))


def print_rows(rows: Sequence[Sequence[str]], widths: list[int]) -> None:
    """Print columns that are as wide as the first rows need, which set *widths*; rows of later calls may be wider."""
    if not widths:
        widths.extend(max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Escape what a terminal might obey: the text may come from anybody."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def cell(value: object) -> str:
    """Write a value into a table; what is not known is a dash."""
    return "-" if value is None or value == "" else printable(str(value))


def utc(time: datetime | str | None) -> str:
    """Write a time to the second."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time else "-"
