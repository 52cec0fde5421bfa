"""Run the demo: start the stack, let users report and an admin decide, wait for every outcome, check the claims."""

import asyncio
import json
import re
import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from backstop.demo import story
from backstop.demo.check import differences
from backstop.demo.findings import Outcome, findings, percentiles, submission_seconds, summarise, walk_the_guide
from backstop.demo.quarantine import ADMIN_STEPS, SETTINGS, USER_STEPS, QuarantineFlows
from backstop.demo.story import Reported
from backstop.demo.tell import Narrator, short, table
from backstop.gateway import Gateway, RefusedError
from backstop.journal import CaseStory, Journal
from backstop_contracts import Conclusion
from local_stack.stack import Stack
from local_stack.supervisor import StackError

QUOTA = 150
"""Submissions per tenant and 15 minutes: Microsoft Learn, "Admin submissions"."""
AT_ONCE = 16
WIDTH = 168
"""Columns of the table when the output is a file."""
QUARANTINE_DECISION = {"action": "submit", "category": "phishing"}
HELD_BACK = timedelta(seconds=0.7)
PATIENCE = timedelta(minutes=5)
"""Time without any event after which the demo says that it is stuck."""
INTRODUCTION = """
Everything runs. Below, a line is an event that a service has published: when, what, and to which case (eight digits).
R01 to R22 are the causes for which a mail can have been allowed; what follows an arrow (->) is what to change, with the
command for it. A block that is refused belongs to the story: nobody should block their own domain.
"""
USERS = 5
_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>]{0,1000}>|\S{1,1000})", re.IGNORECASE | re.MULTILINE)


class Demo:
    """One run: the simulator's people, the gateway, and what was heard."""

    def __init__(
        self,
        stack: Stack,
        gateway: Gateway,
        microsoft: aiohttp.ClientSession,
        journal: Journal,
        addresses: dict[str, str],
    ) -> None:
        self._stack = stack
        self._gateway = gateway
        self._microsoft = microsoft
        self.journal = journal
        self.addresses = addresses
        self.decided: dict[UUID, dict[str, Any]] = {}
        self.outcomes: list[Outcome] = []
        self.quarantine_reports: set[UUID] = set()
        self._tokens: dict[str, str] = {}
        self._admin = ""

    @property
    def accepted(self) -> set[UUID]:
        """The reports that the gateway accepted, and those from the quarantine."""
        return {report_id for outcome in self.outcomes for report_id in outcome.report_ids} | self.quarantine_reports

    async def control(self, method: str, path: str, body: object = None) -> Any:
        """Call a control route of the simulator."""
        url = f"{self._stack.simulator_url}/simulator{path}"
        async with self._microsoft.request(method, url, json=body, raise_for_status=True) as response:
            return await response.json()

    async def sign_in(self, users: Sequence[str]) -> None:
        """Get tokens for *users* and for an admin."""
        for address in users:
            mailbox = await self.control("PATCH", f"/tenants/{self._stack.tenant_id}/mailboxes/{address}", {})
            self.addresses[mailbox["user_id"]] = address
            self._tokens[address] = await self._token(["Reporter"], address, oid=mailbox["user_id"])
        self._admin = await self._token(["SecurityAdministrator"], "admin@contoso.example")

    async def _token(self, roles: list[str], name: str, **more: object) -> str:
        order = {
            "tenant": self._stack.tenant_id,
            "audience": self._stack.api_audience,
            "roles": roles,
            "preferred_username": name,
            "scp": "access_as_user",
            "expires_in": 24 * 3600,
            **more,
        }
        return str((await self.control("POST", "/tokens", order))["access_token"])

    async def walk_quarantine(self, say: Callable[[str], None]) -> QuarantineFlows:
        """Walk the two quarantine flows; return what was walked."""
        flows = QuarantineFlows(self._stack, self._gateway, self.control, self._admin, say)
        await flows.walk()
        self.quarantine_reports |= flows.reports
        return flows

    async def report(self, reported: Reported) -> Outcome:
        """Let each of a mail's reporters report it."""
        outcome = Outcome(reported)
        self.outcomes.append(outcome)
        raw = await asyncio.to_thread(reported.file.read_bytes)
        for position, reporter in enumerate(reported.reporters):
            try:
                answer = await self._gateway.report(
                    self._tokens[reporter],
                    raw,
                    reported_as=reported.reported_as,
                    folder=reported.folder,
                    block_sender=reported.block_sender and position == 0,
                )
            except RefusedError as error:
                outcome.refusal = str(error)
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome.refusal = f"the gateway did not answer ({type(error).__name__})"
            else:
                outcome.report_ids.append(UUID(answer["report_id"]))
        return outcome

    async def triage(self) -> int:
        """Let the admin decide on each open case. Returns how many decisions were made."""
        made, cursor = 0, None
        while True:
            page = await self._gateway.list_cases(
                self._admin, status="open", limit="200", **({"cursor": cursor} if cursor else {})
            )
            made += sum(await asyncio.gather(*(self._decide(UUID(item["case_id"])) for item in page["items"])))
            cursor = page["next_cursor"]
            if cursor is None:
                return made

    async def _decide(self, case_id: UUID) -> bool:
        case = self.journal.cases.get(case_id)
        decision = self._decision(case) if case else None
        if decision is None:
            return False
        for said in (decision, {key: value for key, value in decision.items() if key != "blocks"}):
            try:
                await self._gateway.decide(self._admin, str(case_id), said)
            except RefusedError as error:
                # The sender cannot be blocked, or the case is decided: that is heard of a moment after it has happened.
                if error.status != 409:
                    raise
            else:
                break
        self.decided[case_id] = said
        return True

    def _decision(self, case: CaseStory) -> dict[str, Any] | None:
        """Find the decision of the mail that opened the case; a case that came back is dismissed."""
        if case.requested:
            return {"action": "dismiss", "note": "Microsoft could not say more"} if case.has_outcome else None
        if any(report_id in self.quarantine_reports for report_id in case.reports):
            return QUARANTINE_DECISION
        first = {report_id: outcome for outcome in self.outcomes for report_id in outcome.report_ids}
        mails = (first[report_id].reported for report_id in case.reports if report_id in first)
        return next((mail.decision for mail in mails if mail.decision), None)


async def run_demo(mails: Path | None, report_file: Path | None) -> bool:
    """Run the demo; True when every claim holds."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    acts = story.STORY if mails is None else bulk_story(mails)
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
                await _feed(demo, console, acts)
            ledger = await demo.control("GET", "/ledger")
        except BaseException as error:
            _write(console, report_file, demo, None, [f"The run was broken off: {error or type(error).__name__}"])
            raise
    wrong = differences(demo.journal, demo.accepted, ledger, demo.addresses)
    console.print()
    if len(demo.journal.cases) <= 40:
        console.print(table(demo.journal))
    else:
        summarise(console, demo.journal, demo.outcomes)
    if mails is None:
        wrong += walk_the_guide(console, demo.journal, demo.decided.keys())
    if flows:
        wrong += _show_steps(console, flows)
    durations = submission_seconds(demo.journal)
    console.print(
        f"{len(demo.accepted)} reports accepted, {sum(1 for o in demo.outcomes if o.refusal)} files refused,"
        f" {len(demo.journal.cases)} cases; from accepted to submitted: {percentiles(durations)};"
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
        file.write_text(json.dumps(findings(demo.journal, demo.outcomes, ledger, wrong), indent=1, default=str))
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
        journal = Journal(
            stack.kafka_bootstrap,
            prefix=stack.topic_prefix,
            listener=narrator.hear if told else lambda _event, _time: None,
        )
        trust = ssl.create_default_context(cafile=stack.ca_file)
        connector = aiohttp.TCPConnector(ssl=trust)
        async with Gateway(stack.urls["gateway"]) as gateway, aiohttp.ClientSession(connector=connector) as microsoft:
            demo = Demo(stack, gateway, microsoft, journal, addresses)
            if not bulk:
                await _set_up_tenant(demo, stack.tenant_id)
            tasks = [asyncio.create_task(journal.follow()), asyncio.create_task(_narrate(narrator))]
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
    await _until(demo, lambda: demo.accepted <= demo.journal.case_of.keys())
    await asyncio.sleep(2 * HELD_BACK.total_seconds())  # for the reader: the reports are told before the triage begins
    console.rule("An admin decides on what the policy left open; Microsoft judges")
    await demo.triage()
    await _until(demo, lambda: demo.journal.settled(demo.accepted) and _clean_blocks_lifted(demo))
    await asyncio.sleep(2 * HELD_BACK.total_seconds())
    console.rule("Users and admins work in the quarantine")
    flows = await demo.walk_quarantine(
        lambda told: console.print(f"{datetime.now().astimezone():%H:%M:%S}  [dim]{'':<11} {told}[/]", highlight=False)
    )
    # The user's report waits for an admin, like any other.
    await _until(demo, lambda: demo.accepted <= demo.journal.case_of.keys())
    await demo.triage()
    await _until(demo, lambda: demo.journal.settled(demo.accepted) and _clean_blocks_lifted(demo))
    return flows


def _show_steps(console: Console, flows: QuarantineFlows) -> list[str]:
    for who, steps in (("users", USER_STEPS), ("admins", ADMIN_STEPS)):
        console.print(f"[bold]The guide's steps for quarantined mail, {who}[/]")
        for number, step in enumerate(steps, 1):
            done = "[green]done[/]   " if flows.walked[step] else "[red]missing[/]"
            console.print(f"  {done} {number}. {step} ({flows.walked[step]})")
    console.print()
    return flows.missing


def _clean_blocks_lifted(demo: Demo) -> bool:
    """Whether the senders that only clean cases had blocked are free again; one that a threat needs stays blocked."""
    standing: defaultdict[str, list[bool]] = defaultdict(list)
    for block in demo.journal.blocks.values():
        if block.applied and not block.removed and (case_id := block.applied.block.case_id):
            verdict = demo.journal.cases[case_id].verdict
            standing[block.applied.block.value].append(bool(verdict and verdict.conclusion == Conclusion.CLEAN))
    return not any(all(clean) for clean in standing.values())


async def _feed(demo: Demo, console: Console, acts: Sequence[Reported]) -> None:
    """Report all files, at most AT_ONCE at a time, with the admin deciding meanwhile."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        reporting = progress.add_task("mails reported", total=len(acts))
        judging = progress.add_task("cases with an outcome", total=None)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(act: Reported) -> None:
            async with gate:
                await demo.report(act)
                progress.advance(reporting)

        feeding = asyncio.gather(*map(one, acts))

        async def over() -> bool:
            settled = feeding.done() and demo.journal.settled(demo.accepted) and _clean_blocks_lifted(demo)
            # A case about which Microsoft could say nothing is open again, and dismissed.
            decided = await demo.triage()
            done = sum(case.has_outcome for case in demo.journal.cases.values())
            progress.update(judging, completed=done, total=max(len(demo.journal.cases), 1))
            return settled and not decided

        heard = asyncio.get_running_loop().time()
        while not await over():
            demo.journal.changed.clear()
            try:
                await asyncio.wait_for(demo.journal.changed.wait(), 1)
                heard = asyncio.get_running_loop().time()
                await asyncio.sleep(0.2)
            except TimeoutError:
                _give_up_after(demo, heard)
        await feeding


async def _until(demo: Demo, condition: Any) -> None:
    heard = asyncio.get_running_loop().time()
    while not condition():
        demo.journal.changed.clear()
        try:
            await asyncio.wait_for(demo.journal.changed.wait(), 1)
            heard = asyncio.get_running_loop().time()
        except TimeoutError:
            _give_up_after(demo, heard)


def _give_up_after(demo: Demo, heard: float) -> None:
    if asyncio.get_running_loop().time() - heard > PATIENCE.total_seconds():
        waiting = [short(case.case_id) for case in demo.journal.cases.values() if not case.has_outcome]
        missing = len(demo.accepted - demo.journal.case_of.keys())
        raise StackError(
            f"Nothing has happened for {PATIENCE}: {missing} reports have no case, and {len(waiting)} cases no outcome"
            f" ({', '.join(waiting[:5])} ...). See the logs."
        )


def bulk_story(folder: Path) -> tuple[Reported, ...]:
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
