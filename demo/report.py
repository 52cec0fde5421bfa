"""What the demo found: the guide's steps, the durations, and one object about every file."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any
from uuid import UUID

from rich.console import Console

from backstop_contracts import MessageReported
from demo import story
from demo.event_log import EventLog
from demo.story import Reported


@dataclass
class Outcome:
    """What became of one file."""

    reported: Reported
    report_ids: list[UUID] = field(default_factory=list)
    refusal: str | None = None


def submission_seconds(event_log: EventLog) -> list[float]:
    """List the seconds from each submitted case's first report to Microsoft's taking it."""
    result = []
    for case in event_log.cases.values():
        taken = event_log.times.get(("submission-created", case.case_id))
        reported = event_log.times.get(("message-reported", case.reports[0])) if case.reports else None
        if taken and reported:
            result.append((taken - reported).total_seconds())
    return sorted(result)


def percentiles(seconds: list[float]) -> str:
    """Say within how many *seconds* half of the cases were through, and 99 of 100."""
    if len(seconds) < 2:
        return "too few to say"
    cuts = quantiles(seconds, n=100, method="inclusive")
    return f"half within {cuts[49]:.2f} s, 99 of 100 within {cuts[98]:.2f} s"


def walk_the_guide(console: Console, event_log: EventLog, decided: Collection[UUID]) -> list[str]:
    """Show which steps of Microsoft's guide each flow walked; return those that are missing."""
    missing = []
    for flow, steps in (("inbox", story.INBOX_STEPS), ("junk", story.JUNK_STEPS)):
        walked = _walked(event_log, decided, flow)
        console.print(f"\n[bold]The guide's steps for mail in {flow.title()}[/]")
        for number, step in enumerate(steps, 1):
            console.print(
                f"  {'[green]done[/]   ' if walked[step] else '[red]missing[/]'} {number}. {step} ({walked[step]})"
            )
            if not walked[step]:
                missing.append(f"step {number} of {flow} was not walked: {step}")
    console.print()
    return missing


def _walked(event_log: EventLog, decided: Collection[UUID], flow: str) -> Counter[str]:
    """Count how often each step was walked by cases whose first report came from *flow*."""
    count = Counter[str]()
    reports = [report for report in event_log.reports.values() if _came_from(report) == flow]
    count["a user reports the mail"] = len(reports)
    for block in event_log.blocks.values():
        report = (
            event_log.reports.get(block.applied.block.report_id)
            if block.applied and block.applied.block.report_id
            else None
        )
        count["a user blocks the sender for their own mailbox"] += bool(report and _came_from(report) == flow)
    for case in event_log.cases.values():
        if not case.reports or _came_from(event_log.reports[case.reports[0]]) != flow:
            continue
        wishes = [b.wanted for b in event_log.blocks.values() if b.wanted and b.wanted.block.case_id == case.case_id]
        count["admins triage the user reported messages"] += case.case_id in decided
        count["a case is submitted to Microsoft for analysis"] += bool(case.created)
        count["the sender is blocked for the tenant while submitting"] += bool(case.created and wishes)
        count["the verdict is read: why it was allowed, what to change"] += bool(case.verdict and case.verdict.causes)
    return count


def _came_from(report: MessageReported) -> str:
    return report.folder


def summarise(console: Console, event_log: EventLog, outcomes: Sequence[Outcome]) -> None:
    """Print how many verdicts and causes of each kind there were, and the first refusals."""
    verdicts = Counter(case.verdict.verdict for case in event_log.cases.values() if case.verdict)
    causes = Counter(
        f"{cause.rule} {cause.title}"
        for case in event_log.cases.values()
        if case.verdict
        for cause in case.verdict.causes[:1]
    )
    for title, counts in (("verdicts", verdicts), ("main causes", causes)):
        console.print(f"[bold]{title}[/]: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    for outcome in [outcome for outcome in outcomes if outcome.refusal][:10]:
        console.print(f"  refused: {outcome.reported.file.name}: {outcome.refusal}", markup=False, highlight=False)


def run_report(
    event_log: EventLog, outcomes: Sequence[Outcome], ledger: Mapping[str, Any] | None, wrong: Sequence[str]
) -> dict[str, Any]:
    """
    Put what became of each file into one object, with the ledger's counts and the durations in seconds.

    *ledger* is None when the run was broken off.
    """
    seconds = submission_seconds(event_log)
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else None
    return {
        "files": [_file(event_log, outcome) for outcome in outcomes],
        "ledger": {"counts": ledger["counts"], "requests": ledger["requests"]} if ledger else None,
        "accepted_to_submitted_seconds": {"p50": cuts[49], "p99": cuts[98]} if cuts else None,
        "claims_that_do_not_hold": list(wrong),
    }


def _file(event_log: EventLog, outcome: Outcome) -> dict[str, Any]:
    case_id = next((event_log.case_of[r] for r in outcome.report_ids if r in event_log.case_of), None)
    case = event_log.cases.get(case_id) if case_id else None
    ours = {case_id, *outcome.report_ids} - {None}
    blocks = [block for block in event_log.blocks.values() if block.wanted and block.wanted.subject in ours]
    created = {"submission_id", "graph_id", "category", "adopted"}
    return {
        "file": str(outcome.reported.file),
        "flow": outcome.reported.folder,
        "report_ids": outcome.report_ids,
        "refusal": outcome.refusal,
        "case_id": case_id,
        "status": case.status if case else None,
        "submissions": [one.model_dump(mode="json", include=created) for one in case.created.values()] if case else [],
        "failures": [one.model_dump(mode="json", include={"reason", "detail"}) for one in case.failed.values()]
        if case
        else [],
        "blocks": [
            {**block.wanted.block.model_dump(mode="json"), "outcome": block.outcome} for block in blocks if block.wanted
        ],
        "verdict": case.verdict.model_dump(mode="json", include={"conclusion", "verdict", "detail", "causes"})
        if case and case.verdict
        else None,
    }
