"""Run the demo: start the stack, let users report and an admin decide, wait for every outcome, check the claims."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from demo import story
from demo.check import differences
from demo.event_log import EventLog
from demo.folder import feed, folder_story
from demo.gateway import Gateway
from demo.narration import Narrator, table
from demo.people import Demo
from demo.quarantine import ADMIN_STEPS, SETTINGS, USER_STEPS, QuarantineFlows
from demo.report import percentiles, run_report, submission_seconds, summarise, walk_the_guide
from demo.story import Reported
from local_stack.stack import Stack
from local_stack.supervisor import StackError

QUOTA = 150
"""Submissions per tenant and 15 minutes: Microsoft Learn, "Admin submissions"."""
WIDTH = 168
"""Columns of the table when the output is a file."""
HELD_BACK = timedelta(seconds=0.7)
INTRODUCTION = """
Everything runs. Below, a line is an event that a service has published: when, what, and to which case (eight digits).
R01 to R22 are the causes for which a mail can have been allowed; what follows an arrow (->) is what to change, with the
command for it. A block that is refused belongs to the story: nobody should block their own domain.
"""


async def run_demo(mails: Path | None, report_file: Path | None) -> bool:
    """Run the demo; True when every claim holds."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    acts = story.STORY if mails is None else folder_story(mails)
    if not acts:
        raise StackError(f"There is no .eml file below {mails}: name another folder.")
    raised = len(acts) > QUOTA
    quota = 10 * len(acts) if raised else QUOTA
    if raised:
        hours = timedelta(minutes=15) * ((len(acts) - 1) // QUOTA)
        console.print(
            f"Microsoft takes {QUOTA} submissions per 15 minutes: a real tenant would need up to {hours} for"
            f" {len(acts)} mails. The simulator's quota is raised to {quota} for this run."
        )
    started = datetime.now().astimezone()
    flows: QuarantineFlows | None = None
    async with _running(console, quota, told=mails is None, bulk=mails is not None) as demo:
        try:
            await demo.sign_in(sorted({reporter for act in acts for reporter in act.reporters}))
            if mails is None:
                flows = await _tell_story(demo, console, acts)
            else:
                await feed(demo, console, acts)
            ledger = await demo.control("GET", "/ledger")
        except BaseException as error:
            _write(console, report_file, demo, None, [f"The run was broken off: {error or type(error).__name__}"])
            raise
    wrong = differences(demo.event_log, demo.accepted, ledger, demo.addresses)
    console.print()
    if len(demo.event_log.cases) <= 40:
        console.print(table(demo.event_log))
    else:
        summarise(console, demo.event_log, demo.outcomes)
    if mails is None:
        wrong += walk_the_guide(console, demo.event_log, demo.decided.keys())
    if flows:
        wrong += _show_steps(console, flows)
    durations = submission_seconds(demo.event_log)
    console.print(
        f"{len(demo.accepted)} reports accepted, {sum(1 for o in demo.outcomes if o.refusal)} files refused,"
        f" {len(demo.event_log.cases)} cases; from accepted to submitted: {percentiles(durations)};"
        f" all of it took {(datetime.now().astimezone() - started).seconds} s."
    )
    done = {name: count for name, count in ledger["counts"].items() if count and name != "submitted_items"}
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in done.items())
    console.print(f"The ledger of what was done to Microsoft: {counts}.")
    _write(console, report_file, demo, ledger, wrong)
    for difference in wrong:
        console.print(f"[red]WRONG[/] {difference}", highlight=False)
    console.print(
        "[green]Every claim of the services agrees with the ledger.[/] To try things yourself: make up"
        if not wrong
        else f"[red]{len(wrong)} claims do not hold.[/]"
    )
    return not wrong


def _write(
    console: Console, file: Path | None, demo: Demo, ledger: dict[str, Any] | None, wrong: Sequence[str]
) -> None:
    """Write what became of each mail, at once: a run that is broken off waits for nothing."""
    if file:
        file.write_text(json.dumps(run_report(demo.event_log, demo.outcomes, ledger, wrong), indent=1, default=str))
        console.print(f"What became of each mail{'' if ledger else ' so far'} is in {file}.")


@asynccontextmanager
async def _running(console: Console, quota: int, *, told: bool, bulk: bool) -> AsyncIterator[Demo]:
    """Start everything, set up the tenant, follow the topics."""
    policy = story.BULK_POLICY if bulk else story.POLICY
    settings: dict[str, dict[str, object]] = {
        "submitter": {"submissions_per_15_minutes": quota},
        "verdict_poller": {"verdict_poll_intervals": "1,1,1,2,5", "verdict_grid_seconds": 0.5},
        "quarantine": dict(SETTINGS),
    }
    options = ["--verdict-delay", "2", "--set", f"submissions_per_window={quota}"]
    stack = Stack(settings=settings, simulator_options=options)
    stack.folder.mkdir(parents=True, exist_ok=True)
    policy_file = stack.folder / "policy.toml"
    policy_file.write_text(policy)
    settings["triage"] = {"policy_file": policy_file}
    console.print("Starting Kafka, PostgreSQL, the simulator and the services ...")
    addresses: dict[str, str] = {}
    narrator = Narrator(console, addresses)
    async with stack:
        event_log = EventLog(
            stack.kafka_bootstrap,
            prefix=stack.topic_prefix,
            listener=narrator.hear if told else lambda _event, _time: None,
        )
        trust = ssl.create_default_context(cafile=stack.ca_file)
        connector = aiohttp.TCPConnector(ssl=trust)
        async with Gateway(stack.urls["gateway"]) as gateway, aiohttp.ClientSession(connector=connector) as microsoft:
            demo = Demo(stack, gateway, microsoft, event_log, addresses)
            if not bulk:
                await _set_up_tenant(demo, stack.tenant_id)
            tasks = [asyncio.create_task(event_log.follow()), asyncio.create_task(_narrate(narrator))]
            try:
                yield demo
            finally:
                for task in tasks:
                    task.cancel()
                narrator.tell()


async def _narrate(narrator: Narrator) -> None:
    while True:
        await asyncio.sleep(0.1)
        narrator.tell(until=datetime.now(UTC) - HELD_BACK)


async def _set_up_tenant(demo: Demo, tenant_id: str) -> None:
    """Give the tenant the settings that let the story's mails in."""
    from simulator.policies import default_rows  # noqa: PLC0415 - only the demo's own mails need it

    cmdlets = ("Get-HostedContentFilterPolicy", "Get-HostedConnectionFilterPolicy")
    defaults = {cmdlet: default_rows(cmdlet, ["contoso.example"]) or [] for cmdlet in cmdlets}
    await demo.control("PATCH", f"/tenants/{tenant_id}", story.tenant_settings(defaults))
    await demo.control("POST", f"/tenants/{tenant_id}/allow-block-list", story.ALLOWED_ENTRY)
    for address, settings in story.MAILBOXES.items():
        await demo.control("PATCH", f"/tenants/{tenant_id}/mailboxes/{address}", settings)


async def _tell_story(demo: Demo, console: Console, acts: Sequence[Reported]) -> QuarantineFlows:
    console.print(INTRODUCTION)
    console.rule("Users report")
    for act in acts:
        await demo.report(act)
    await demo.wait_until(demo.has_cases)
    await asyncio.sleep(2 * HELD_BACK.total_seconds())  # for the reader: the reports are told before the triage begins
    console.rule("An admin decides on what the policy left open; Microsoft judges")
    await demo.triage()
    await demo.wait_until(demo.is_over)
    await asyncio.sleep(2 * HELD_BACK.total_seconds())
    console.rule("Users and admins work in the quarantine")
    flows = await demo.walk_quarantine(
        lambda told: console.print(f"{datetime.now().astimezone():%H:%M:%S}  [dim]{'':<11} {told}[/]", highlight=False)
    )
    # The user's report waits for an admin, like any other.
    await demo.wait_until(demo.has_cases)
    await demo.triage()
    await demo.wait_until(demo.is_over)
    return flows


def _show_steps(console: Console, flows: QuarantineFlows) -> list[str]:
    for who, steps in (("users", USER_STEPS), ("admins", ADMIN_STEPS)):
        console.print(f"[bold]The guide's steps for quarantined mail, {who}[/]")
        for number, step in enumerate(steps, 1):
            done = "[green]done[/]   " if flows.walked[step] else "[red]missing[/]"
            console.print(f"  {done} {number}. {step} ({flows.walked[step]})")
    console.print()
    return flows.missing
