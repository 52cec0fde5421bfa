"""The result of a measurement, shown as tables and charts in the terminal, and written as SVG and JSON."""

import asyncio
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil  # type: ignore[import-untyped]
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from local_stack.postgres import binaries

Cell: TypeAlias = str | float | None
"""An int is a float to the type checker; None is shown as nothing."""

WIDTH = 140
"""Columns of the picture, and of a terminal of unknown width."""
_LIBRARIES = ("aiokafka", "asyncpg", "faststream", "fastapi", "uvicorn", "pydantic")
_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and the measured value, both as text with their unit. `met` is None if it was not measured."""

    text: str
    measured: str
    wanted: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Chart:
    """Horizontal bars, one for each label. On a log scale they begin at a tenth of the smallest value."""

    title: str
    unit: str
    bars: Sequence[tuple[str, float]]
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True, slots=True)
class Result:
    """
    The result of one measurement.

    `rows` are a table: all have the same keys, which are the column names. `details` are raw numbers that can be
    written as JSON. `notes` are sentences below the table.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Cell]]
    goals: Sequence[Goal] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    picture: Sequence[Chart] = ()


def show(console: Console, result: Result) -> None:
    """Print the table, the charts and the goals of *result*."""
    console.print()
    console.print(Text(result.title, style="bold"))
    for part in (_table(result.rows), *map(_chart, result.picture), *result.notes):
        console.print(part)
    for goal in result.goals:
        word, style = {True: ("met", "green"), False: ("missed", "red"), None: ("not measured", "yellow")}[goal.met]
        console.print(Text.assemble((f"{word:>12}  ", style), f"{goal.text}: {goal.measured} (wanted: {goal.wanted})"))


def write(folder: Path, results: Sequence[Result], conditions: Mapping[str, Any]) -> Path:
    """Write `results.json` and a picture of it, `results.svg`; return the path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    everything = {**conditions, "results": [asdict(result) for result in results]}
    file.write_text(json.dumps(everything, indent=1, default=str) + "\n")
    with (folder / "console").open("w") as nowhere:
        canvas = Console(record=True, file=nowhere, width=WIDTH, force_terminal=True)
        for result in results:
            show(canvas, result)
    (folder / "console").unlink()
    drawn = canvas.export_svg(title="What Backstop costs", theme=DEFAULT_TERMINAL_THEME)
    # rich refers to a web font, which viewers of the picture should not have to load.
    (folder / "results.svg").write_text(_FONT.sub("", drawn).replace("Fira Code", "DejaVu Sans Mono"))
    return file


async def conditions(*, quick: bool) -> dict[str, Any]:
    """Return the conditions of the measurement: date, commit, machine and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "quick": quick,
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "postgresql": await _postgres_version(),
            "kafka": _kafka_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "load_average_before": list(os.getloadavg()),
    }


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum."""
    ordered = sorted(values)
    return ordered[0], quantile(ordered, 0.5), ordered[-1]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which *share* of *values* lie, interpolated linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _table(rows: Sequence[Mapping[str, Cell]]) -> Table:
    table = Table(header_style="bold")
    names = list(rows[0]) if rows else []
    for name in names:
        numbers = all(isinstance(row[name], (int, float, type(None))) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_written(row[name]) for name in names))
    return table


def _written(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.3g}"


def _chart(chart: Chart) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right")
    grid.add_column(width=60)
    grid.add_column(justify="right")
    values = [value for _, value in chart.bars]
    least = min((value for value in values if value > 0), default=1.0) / 10

    def length(value: float) -> float:
        return math.log10(max(value, least) / least) if chart.scale == "log" else value

    most = max(map(length, values), default=1.0) or 1.0
    for label, value in chart.bars:
        grid.add_row(label, Bar(most, 0, length(value), color="blue"), f"{_written(value)} {chart.unit}")
    return Padding(Group(Text(chart.title, style="italic"), grid), (1, 0))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - arguments of ours
            ["git", *arguments],  # noqa: S607 - whichever git there is
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    return found[1] if found else platform.machine()


async def _postgres_version() -> str:
    process = await asyncio.create_subprocess_exec(
        str(binaries() / "postgres"), "--version", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return said.decode().split()[-1]


def _kafka_version() -> str | None:
    jars = Path(__file__).parents[1] / "deploy/local/local_stack/kafka-jars.txt"
    found = re.search(r"kafka-clients:([\d.]+)", jars.read_text()) if jars.exists() else None
    return found[1] if found else None
