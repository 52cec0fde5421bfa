"""Run the measurements: `python -m bench [NAME ...] [--quick]`."""

import argparse
import logging
import os
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console

from bench.report import WIDTH, Result, conditions, show, write
from local_stack.supervisor import STATE, run, say

PROGRAMS = ("throughput", "latency", "growth", "requests", "parsing", "memory", "scaling")
"""Each is a module with `async def run(quick: bool, log: Callable[[str], None]) -> Result`."""


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure what Backstop costs.")
    available = [name for name in PROGRAMS if find_spec(f"bench.{name}")]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"measurements to run: {', '.join(available)} (all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller numbers")
    parser.add_argument("--folder", type=Path, default=STATE / "bench", help="where results.json is written")
    options = parser.parse_args()
    if unknown := set(options.names) - set(available):
        parser.error(f"unknown measurement {', '.join(sorted(unknown))}; choose from {', '.join(available)}")
    options.names = options.names or available
    return options


def _progress_logger(name: str) -> Callable[[str], None]:
    begin = time.monotonic()

    def log(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        say(f"  {name} {minutes:02}:{seconds:02}  {line}")

    return log


async def _measure(options: argparse.Namespace) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    about: dict[str, Any] = await conditions(quick=options.quick)
    results: list[Result] = []
    for name in options.names:
        say(f"Measuring {name} ...")
        result: Result = await import_module(f"bench.{name}").run(options.quick, _progress_logger(name))
        results.append(result)
        show(console, result)
        about["load_average_after"] = list(os.getloadavg())
        # Written after each measurement, so that a later failure loses nothing.
        file = write(options.folder, results, about)
    console.print(f"\nAs JSON: {file}, as a picture: {file.with_suffix('.svg')}")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    run(_measure(_parsed()))
