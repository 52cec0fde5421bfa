"""The people of the demo: users who report, and an admin who decides."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import aiohttp

from backstop_contracts import Conclusion
from demo.event_log import CaseStory, EventLog
from demo.gateway import Gateway, RefusedError
from demo.narration import short
from demo.quarantine import QuarantineFlows
from demo.report import Outcome
from demo.story import Reported
from local_stack.stack import Stack
from local_stack.supervisor import StackError

PATIENCE = timedelta(minutes=5)
"""Time without any event after which the demo says that it is stuck."""
QUARANTINE_DECISION = {"action": "submit", "category": "phishing"}


class Demo:
    """One run: the simulator's people, the gateway, and the events so far."""

    def __init__(
        self,
        stack: Stack,
        gateway: Gateway,
        microsoft: aiohttp.ClientSession,
        event_log: EventLog,
        addresses: dict[str, str],
    ) -> None:
        self._stack = stack
        self._gateway = gateway
        self._microsoft = microsoft
        self.event_log = event_log
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
        case = self.event_log.cases.get(case_id)
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

    async def has_cases(self) -> bool:
        """Return whether every accepted report is in a case."""
        return self.accepted <= self.event_log.case_of.keys()

    async def is_over(self) -> bool:
        """Return whether every report has its outcome, and senders that were blocked for clean cases are free again."""
        return self.event_log.settled(self.accepted) and self._clean_blocks_are_removed()

    def _clean_blocks_are_removed(self) -> bool:
        """Return whether no sender is blocked for clean cases alone; one that a threat needs stays blocked."""
        applied: defaultdict[str, list[bool]] = defaultdict(list)
        for block in self.event_log.blocks.values():
            if block.applied and not block.removed and (case_id := block.applied.block.case_id):
                verdict = self.event_log.cases[case_id].verdict
                applied[block.applied.block.value].append(bool(verdict and verdict.conclusion == Conclusion.CLEAN))
        return not any(all(clean) for clean in applied.values())

    async def wait_until(self, condition: Callable[[], Awaitable[bool]], *, pause: float = 0) -> None:
        """
        Check *condition* after each event, or *pause* seconds later, until it holds.

        Raises StackError when no event has come for too long.
        """
        now = asyncio.get_running_loop().time
        last_event = now()
        while not await condition():
            self.event_log.changed.clear()
            try:
                await asyncio.wait_for(self.event_log.changed.wait(), 1)
                last_event = now()
                await asyncio.sleep(pause)
            except TimeoutError:
                if now() - last_event > PATIENCE.total_seconds():
                    raise StackError(self._stuck()) from None

    def _stuck(self) -> str:
        waiting = [short(case.case_id) for case in self.event_log.cases.values() if not case.has_outcome]
        missing = len(self.accepted - self.event_log.case_of.keys())
        return (
            f"Nothing has happened for {PATIENCE}: {missing} reports have no case, and {len(waiting)} cases no outcome"
            f" ({', '.join(waiting[:5])} ...). See the logs."
        )
