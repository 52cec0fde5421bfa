"""A folder of messages instead of the demo's own: who reports which, and how they are reported."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo.people import Demo
from demo.story import Reported

CONCURRENT_REPORTS = 16
USERS = 5
_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>]{0,1000}>|\S{1,1000})", re.IGNORECASE | re.MULTILINE)


def folder_story(folder: Path) -> tuple[Reported, ...]:
    """
    Send every other file of *folder* through the Inbox flow and the Junk flow.

    Different users report mails that share a Message-ID: of one user, Microsoft takes that id once in 15 minutes.
    """
    acts = []
    seen = Counter[bytes]()
    for number, file in enumerate(sorted(folder.rglob("*.eml"))):
        found = _MESSAGE_ID.search(file.read_bytes())
        name = b"".join(found[1].split()) if found else b""
        reporter = f"user{number % USERS + 1 + USERS * seen[name]}@contoso.example"
        seen[name] += bool(name)
        if number % 2 == 0:
            acts.append(Reported(file, (reporter,), block_sender=number % 10 == 0))
        else:
            block = {"blocks": [{"kind": "sender"}]} if number % 3 == 0 else {}
            decision = {"action": "submit", "category": "spam", **block}
            acts.append(Reported(file, (reporter,), reported_as="junk", folder="junk", decision=decision))
    return tuple(acts)


async def feed(demo: Demo, console: Console, acts: Sequence[Reported]) -> None:
    """Report all files, at most CONCURRENT_REPORTS at a time, with the admin deciding meanwhile."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        reporting = progress.add_task("mails reported", total=len(acts))
        judging = progress.add_task("cases with an outcome", total=None)
        gate = asyncio.Semaphore(CONCURRENT_REPORTS)

        async def one(act: Reported) -> None:
            async with gate:
                await demo.report(act)
                progress.advance(reporting)

        feeding = asyncio.gather(*map(one, acts))

        async def over() -> bool:
            is_over = feeding.done() and await demo.is_over()
            # A case about which Microsoft could say nothing is open again, and dismissed.
            decided = await demo.triage()
            done = sum(case.has_outcome for case in demo.event_log.cases.values())
            progress.update(judging, completed=done, total=max(len(demo.event_log.cases), 1))
            return is_over and not decided

        await demo.wait_until(over, pause=0.2)
        await feeding
