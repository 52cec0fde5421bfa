"""The story as it happens, one line an event, and the table at its end."""

from collections.abc import Mapping
from datetime import datetime
from heapq import heappop, heappush
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backstop_contracts import (
    Actor,
    Block,
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    BlockRequested,
    CaseUpdated,
    Conclusion,
    Event,
    MessageReported,
    ReleaseDecided,
    SubmissionCreated,
    SubmissionDelayed,
    SubmissionFailed,
    SubmissionRequested,
    VerdictReady,
)
from demo.event_log import CaseStory, EventLog

COLOURS: Mapping[str, str] = {
    Conclusion.THREAT: "red",
    Conclusion.CLEAN: "green",
    Conclusion.SIMULATION: "cyan",
    Conclusion.UNKNOWN: "yellow",
}


class Narrator:
    """
    Prints what events mean to a reader, one line an event, in the order in which they happened.

    Topics are not ordered against each other, so an event is held back for a moment until older ones have come.
    *addresses* names mailboxes by the object ids of their users.
    """

    def __init__(self, console: Console, addresses: Mapping[str, str]) -> None:
        self._console = console
        self._addresses = addresses
        self._held: list[tuple[datetime, int, Event]] = []
        self._count = 0
        self._senders: dict[UUID, str] = {}

    def hear(self, event: Event, time: datetime) -> None:
        """Take *event*, which happened at *time*."""
        self._count += 1
        heappush(self._held, (time, self._count, event))

    def tell(self, until: datetime | None = None) -> None:
        """Print what happened before *until*, or all that was heard."""
        while self._held and (until is None or self._held[0][0] < until):
            time, _, event = heappop(self._held)
            self._tell(event, time)

    def _tell(self, event: Event, time: datetime) -> None:
        if isinstance(event, MessageReported):
            self._senders[event.report_id] = event.message.sender or "nobody it names"
        if line := _sentence(event):
            word, colour, text = line
            if isinstance(event, CaseUpdated) and event.change == "opened":
                text += "".join(f", a mail from {escape(self._senders.get(one, '?'))}" for one in event.report_ids[:1])
            for user_id, address in self._addresses.items():
                text = text.replace(user_id, address)
            self._console.print(
                f"[dim]{time.astimezone():%H:%M:%S}[/]  [{colour}]{word:<11}[/] {text}", highlight=False
            )
        if isinstance(event, VerdictReady):
            for cause in event.causes:
                self._console.print(f"{'':22}[bold]{cause.rule}[/] {escape(cause.title)}", highlight=False)
                for advice in cause.recommendations[:2]:
                    self._console.print(f"{'':26}-> {escape(advice.action)}", highlight=False)
                    if advice.cmdlet:
                        self._console.print(f"{'':29}[dim]{escape(advice.cmdlet)}[/]", highlight=False)


def short(identity: UUID | None) -> str:
    """Shorten an id for the eye."""
    return str(identity)[:8]


def _sentence(event: Event) -> tuple[str, str, str] | None:  # noqa: C901, PLR0911, PLR0912 - one per event
    match event:
        case MessageReported():
            place = event.folder.title()
            sender = escape(event.message.sender or "nobody it names")
            if event.decision:
                by = escape(event.decision.decided_by.name or event.decision.decided_by.id)
                return "report", "blue", f"{by} submits a mail from {sender} in {place}"
            said = f"{escape(event.reporter)} reports a mail from {sender}"
            return "report", "blue", f"{said} in {place} as {event.reported_as}"
        case ReleaseDecided():
            colour = "green" if event.succeeded else "red"
            why = f": {escape(event.detail or event.reason or '')}" if event.detail or event.reason else ""
            by = escape(event.decided_by.name or event.decided_by.id)
            return event.decision, colour, f"the mail for {escape(event.recipient)}, by {by}{why}"
        case CaseUpdated(change="opened" | "joined"):
            reports = f"{event.report_count} report{'s' if event.report_count > 1 else ''}"
            return "case", "magenta", f"{short(event.case_id)} {event.change}: {reports}"
        case CaseUpdated(change="dismissed" | "reopened"):
            return "case", "magenta", f"{short(event.case_id)} {event.change}"
        case SubmissionRequested():
            return "submit", "yellow", f"{short(event.case_id)} as {event.category}, by {_actor(event.requested_by)}"
        case SubmissionCreated():
            return "submitted", "yellow", f"{short(event.case_id)} taken by Microsoft as {short(UUID(event.graph_id))}"
        case SubmissionDelayed():
            detail = escape(event.detail)
            return (
                "delayed",
                "yellow",
                f"{short(event.case_id)} until {event.retry_at:%H:%M:%S}: {detail}",
            )
        case SubmissionFailed():
            return "refused", "red", f"{short(event.case_id)} {event.reason}: {escape(event.detail)}"
        case BlockRequested():
            return "block", "bright_red", f"{_block(event.block)}, wanted by {_actor(event.requested_by)}"
        case BlockApplied():
            there = " (it was there already)" if event.already_present else ""
            return "blocked", "bright_red", f"{_block(event.block)}{there}"
        case BlockFailed():
            return "not blocked", "red", f"{_block(event.block)}: {event.reason}: {escape(event.detail)}"
        case BlockRemoved():
            return "unblocked", "green", f"{_block(event.block)}: {event.reason}"
        case VerdictReady():
            colour = COLOURS.get(event.conclusion, "yellow")
            detail = f" / {escape(event.detail)}" if event.detail else ""
            return "verdict", colour, f"{short(event.case_id)} [bold]{escape(event.verdict)}[/]{detail}"
    return None


def _actor(actor: Actor) -> str:
    return f"{actor.kind} {escape(actor.name or actor.id)}"


def _block(block: Block) -> str:
    where = (
        f"the mailbox {escape(block.mailbox or '')}"
        if block.scope == "mailbox"
        else f"the tenant ({short(block.case_id)})"
    )
    return f"{block.kind} {escape(block.value)} for {where}"


def _sender(event_log: EventLog, case: CaseStory) -> str:
    first = event_log.reports.get(case.reports[0]) if case.reports else None
    return (first and first.message.sender) or ""


def table(event_log: EventLog) -> Table:
    """Lay out every case."""
    result = Table(title="Every case", title_justify="left", header_style="bold")
    for column in ("case", "reports", "status", "as"):
        result.add_column(column, no_wrap=True)
    for column in ("mail from", "blocks", "verdict", "why it was allowed"):
        result.add_column(column, overflow="fold")
    for case in event_log.cases.values():
        verdict = case.verdict
        blocks = [
            f"{story.wanted.block.value}: {story.failed.reason if story.failed else story.outcome}"
            for story in event_log.blocks.values()
            if story.wanted and story.wanted.block.case_id == case.case_id
        ]
        result.add_row(
            short(case.case_id),
            str(len(case.reports)),
            case.status,
            ", ".join(request.category for request in case.requested.values()),
            escape(_sender(event_log, case)),
            escape("\n".join(blocks)),
            f"[{COLOURS.get(verdict.conclusion, 'yellow')}]{escape(verdict.verdict)}[/]" if verdict else "",
            escape(f"{verdict.causes[0].rule} {verdict.causes[0].title}") if verdict and verdict.causes else "",
        )
    return result
