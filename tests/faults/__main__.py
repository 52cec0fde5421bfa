"""`make faults`: disturb the running system for ten minutes, repair it, and check that every promise was kept."""

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
"""Longer than any lease on a claimed row: a claim that still exists then is stuck."""
SESSION_SECONDS = 30.0
"""As in production: the default of `BACKSTOP_KAFKA_SESSION_TIMEOUT_SECONDS`."""
LEASE_SECONDS = 24.0
MEANINGS = {
    "accepted": "reports answered with 202, including repetitions",
    "reports": "distinct reports among them",
    "reports deduplicated": "repetitions that were recognised",
    "answered 503": "requests refused while something was unavailable; all were retried",
    "unanswered": "requests without a response; all were retried",
    "decided": "decisions by admins",
    "shown": "cases read by an admin at the end",
    "told": "reports whose status was read at the end",
    "broken": "disturbances",
    "killed": "processes killed",
    "planted": "unprocessable records written to topics",
    "parked": "dead letters: the planted records, once for each service that reads them",
    "events": "distinct events on all topics",
    "echoed": "events deliberately published a second time",
    "published again": "duplicate records on topics",
    "redelivered": "records handled more than once by a consumer, as far as observed",
    "cases": "cases created from the reports",
    "submissions": "submissions in the simulator's ledger",
    "blocks": "blocks in the simulator's ledger, for the tenant and for mailboxes",
    "verdicts": "verdicts published",
    "held": "messages quarantined for users",
    "digests": "digests sent to users",
    "releases and denials": "releases and denials in the simulator's ledger",
    "carried-out": "releases and denials confirmed to an admin",
    "adopted": "submissions found again after their response was lost",
    "looked before repeating": "lookups at Microsoft before a call was repeated",
}
PAUSE = 7.0
RATE = 2.0
POISON_EVERY = 10.0
HELD_EVERY = 2.0
ECHOED = 0.02


async def _faults(seed: int, seconds: float, schedule: list[Disturbance], folder: Path) -> Report:
    typer.echo(
        f"Seed {seed}: users report and admins decide for {seconds:.0f} s, during {len(schedule)} disturbances."
        " Then all responses are compared with the topics and the simulator's ledger.\n"
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
        printing = asyncio.create_task(_print_progress(it))
        deciding = asyncio.create_task(it.load.decide())
        echoing = asyncio.create_task(it.load.echo(ECHOED))
        judging = asyncio.create_task(it.load.decide_quarantined())
        try:
            await asyncio.gather(
                it.load.work(seconds),
                it.load.plant(POISON_EVERY),
                it.load.quarantine_messages(HELD_EVERY),
                it.disturber.disturb(schedule),
            )
            typer.echo("All disturbances are over; waiting until the system is idle")
            await it.progress.wait_until_idle(PATIENCE)
            it.load.stop_deciding = True
            await judging
            return await judge(it, PATIENCE)
        finally:
            for task in (printing, deciding, echoing, judging):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _print_progress(it: Run) -> None:
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
    minutes: Annotated[float, typer.Option(help="Duration of the load and the disturbances.", min=0.2)] = 10,
    seed: Annotated[int | None, typer.Option(help="Repeat a run with this seed; default: a random one.")] = None,
    schedule: Annotated[Path | None, typer.Option(help="Use the disturbances of this schedule.json.")] = None,
) -> None:
    """Disturb the running system, wait until it is idle, and check its promises. Exits with 1 if one was broken."""
    seed = random.randrange(10**6) if seed is None else seed
    if schedule:
        planned = [Disturbance(**one) for one in json.loads(schedule.read_text())]
    else:
        planned = plan(seed, minutes * 60, PROCESSES, pause=PAUSE, session_seconds=SESSION_SECONDS)
    folder = STATE / "faults" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "schedule.json").write_text(json.dumps([asdict(one) for one in planned], indent=1))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that Kafka is unavailable is expected here
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
