"""`make faults`: break the running system for ten minutes, heal it, and check that every promise was kept."""

import asyncio
import json
import logging
import random
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from faults.environment import start_environment
from faults.report import Report, judge
from faults.run import PROCESSES, Run, running
from faults.schedule import Disturbance, plan
from local_stack.supervisor import STATE, run

PATIENCE = 420.0
"""Longer than any lease of a claimed row: a claim that is still there then is stuck."""
SESSION_SECONDS = 30.0
"""As in production: the default of `BACKSTOP_KAFKA_SESSION_TIMEOUT_SECONDS`."""
LEASE_SECONDS = 24.0
MEANINGS = {
    "accepted": "answers 202 to reports, repetitions included",
    "reports": "different ones among them",
    "reports deduplicated": "repetitions that were recognised",
    "answered 503": "refusals while something was away; all were sent again",
    "unanswered": "requests that broke off; all were sent again",
    "decided": "decisions of admins",
    "shown": "cases that an admin was shown at the end",
    "told": "reports whose outcome their reporter was told at the end",
    "broken": "disturbances",
    "killed": "processes killed",
    "planted": "records put onto topics that nobody can handle",
    "parked": "dead letters: the planted records, by each service that reads them",
    "events": "different ones on all topics",
    "echoed": "events that somebody published a second time on purpose",
    "published again": "records on topics beyond the different events",
    "redelivered": "records that a consumer handled more than once, as far as it was seen",
    "cases": "that triage made of the reports",
    "submissions": "that Microsoft's ledger has",
    "blocks": "that Microsoft's ledger has, for the tenant and for mailboxes",
    "verdicts": "that were published",
    "held": "mails that Defender held for users",
    "digests": "mails that told users of them",
    "releases and denials": "that Microsoft's ledger has",
    "carried-out": "releases and denials that an admin was told to be done",
    "adopted": "submissions whose answer was lost and that were found again",
    "looked before repeating": "times that Microsoft was asked before a call was repeated",
}
PAUSE = 7.0
RATE = 2.0
POISON_EVERY = 10.0
HELD_EVERY = 2.0
ECHOED = 0.02


async def _faults(seed: int, seconds: float, schedule: list[Disturbance], folder: Path) -> Report:
    typer.echo(
        f"Seed {seed}: users report and admins decide for {seconds:.0f} s, while {len(schedule)} things are broken"
        " and mended. Then what everybody was told is compared with the topics and Microsoft's ledger.\n"
        f"Schedule, diary and logs: {folder}"
    )
    async with (
        start_environment(folder / "environment") as environment,
        running(
            environment,
            folder / "stack",
            "faults",
            seed=seed,
            rate=RATE,
            session_seconds=SESSION_SECONDS,
            lease_seconds=LEASE_SECONDS,
        ) as it,
    ):
        telling = asyncio.create_task(_tell(it))
        deciding = asyncio.create_task(it.load.decide())
        echoing = asyncio.create_task(it.load.echo(ECHOED))
        judging = asyncio.create_task(it.load.judge_held())
        try:
            await asyncio.gather(
                it.load.work(seconds),
                it.load.plant(POISON_EVERY),
                it.load.hold_mails(HELD_EVERY),
                it.disturber.disturb(schedule),
            )
            typer.echo("Everything is whole again; waiting until it is quiet")
            await it.progress.wait_until_idle(PATIENCE)
            it.load.enough_judged = True
            await judging
            return await judge(it, PATIENCE)
        finally:
            for task in (telling, deciding, echoing, judging):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _tell(it: Run) -> None:
    begin, shown = time.monotonic(), ""
    while True:
        line = f"[{time.monotonic() - begin:5.0f} s] {it.line()}"
        if sys.stdout.isatty():
            typer.echo(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}", nl=False)
        elif "; ".join(it.disturber.active) != shown:
            shown = "; ".join(it.disturber.active)
            typer.echo(line)
        await asyncio.sleep(0.5)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="How long the load and the disturbances last.", min=0.2)] = 10,
    seed: Annotated[int | None, typer.Option(help="The seed of an earlier run; default: a new one.")] = None,
    schedule: Annotated[Path | None, typer.Option(help="A schedule.json to break what it says instead.")] = None,
) -> None:
    """Break the running system, heal it, wait until it is quiet, and check its promises. Exits with 1 if one broke."""
    seed = random.randrange(10**6) if seed is None else seed
    if schedule:
        planned = [Disturbance(**one) for one in json.loads(schedule.read_text())]
    else:
        planned = plan(seed, minutes * 60, PROCESSES, pause=PAUSE, session_seconds=SESSION_SECONDS)
    folder = STATE / "faults" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "schedule.json").write_text(json.dumps([asdict(one) for one in planned], indent=1))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that Kafka is away is no news here
    reports: list[Report] = []

    async def program() -> None:
        reports.append(await _faults(seed, minutes * 60, planned, folder))

    run(program())
    (report,) = reports
    typer.echo("")
    for name in [*MEANINGS, *(report.counts.keys() - {*MEANINGS, "people"})]:
        typer.echo(f"  {name:24} {report.counts.get(name, 0):>8}  {MEANINGS.get(name, '')}".rstrip())
    for line in report.wrong:
        typer.echo(f"BROKEN: {line}")
    typer.echo(
        f"Seed {seed}: {'every promise was kept' if not report.wrong else f'{len(report.wrong)} broken promises'}"
    )
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    app()
