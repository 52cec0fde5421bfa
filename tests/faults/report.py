"""The result of a fault run: wait until the system is idle, then run the checker."""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from faults.run import Run


@dataclass
class Report:
    """The result of a run. `wrong` is empty if every promise was kept."""

    wrong: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)


async def judge(run: Run, patience: float) -> Report:
    """Wait until the system is idle, read all cases and reports once more, and run the checker."""
    missing = await run.progress.wait_until_idle(patience)
    if missing is None:
        await run.load.read_all(list(run.event_log.cases))
    arguments = {
        "--kafka-bootstrap": run.environment.kafka_bootstrap,
        "--prefix": run.name,
        "--simulator-url": run.stack.simulator_url,
        "--ca-file": str(run.stack.ca_file),
        "--postgres-dsn": run.environment.postgres_dsn.rpartition("/")[0] + f"/{run.name}",
    }
    checker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faults.check", str(run.diary.file)),
        *(word for pair in arguments.items() for word in pair),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await checker.communicate()
    *wrong, counts = output.decode().splitlines() or ["the checker printed nothing", "{}"]
    if checker.returncode and not wrong:
        wrong = ["the checker failed; see above"]
    if missing:
        wrong.insert(0, f"not idle after {patience:.0f} s without progress: {missing}")
    wrong.extend(run.disturber.died)
    counted = {
        **run.diary.counts,
        **json.loads(counts),
        "killed": run.disturber.killed,
        "redelivered": await run.progress.redelivered(),
        "looked before repeating": _looks(run),
    }
    return Report(wrong, counted)


def _looks(run: Run) -> int:
    logs = (run.stack.folder / "logs").glob("*.log")
    return sum(log.read_bytes().count(b'"submission.looked_up"') for log in logs)
