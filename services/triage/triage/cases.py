"""
Open, join, submit and dismiss cases.

Whoever changes a case holds its row lock. A policy decides about new reports in the transaction that records them.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from backstop_contracts import (
    Actor,
    AdminDecision,
    CaseChange,
    CaseStatus,
    CaseUpdated,
    Category,
    Event,
    MessageReported,
    SubmissionRequested,
)
from backstop_contracts.identity import submission_id
from chassis import outbox
from chassis.postgres import Tx
from chassis.subscribing import Received
from triage import store, tenant_blocks
from triage.rules import NotPossibleError, Policy, Rule, assign, category_of, keys_of
from triage.store import Case, Entry

CLOSED = frozenset({CaseStatus.RESOLVED, CaseStatus.DISMISSED})

Caused = tuple[Event, str | None]
"""An event, and the W3C traceparent of what caused it."""


async def take_reports(
    tx: Tx, tenant_id: UUID, reports: Mapping[UUID, Received[MessageReported]], policy: Policy
) -> None:
    """Put the new ones of a tenant's *reports* into cases, open the cases that are missing, and apply *policy*."""
    await store.lock_tenant(tx, tenant_id)
    unknown = await store.find_unknown_reports(tx, list(reports))
    new = [received.event for report_id, received in reports.items() if report_id in unknown]
    if not new:
        return
    known = await store.find_keys(tx, tenant_id, {key for report in new for key in keys_of(report.message)})
    locked = await store.lock_cases(tx, set(known.values()))
    active = {case_id: case for case_id, case in locked.items() if case.status not in CLOSED}
    assigned, new_keys = assign(new, {key: case_id for key, case_id in known.items() if case_id in active})
    await store.record_reports(tx, assigned)
    await store.record_keys(tx, tenant_id, new_keys)

    by_case: defaultdict[UUID, list[MessageReported]] = defaultdict(list)
    for report, case_id in assigned:
        by_case[case_id].append(report)
    joined = {case_id: case for case_id, case in active.items() if case_id in by_case}
    opened = {
        case_id: _open(case_id, first[0], reports[first[0].report_id].traceparent)
        for case_id, first in by_case.items()
        if case_id not in joined
    }
    cases = {case_id: _join(case, by_case[case_id]) for case_id, case in (joined | opened).items()}
    # Nothing that an admin decides below changes what a rule looks at.
    rules = await _matching_rules(tx, [case for case in cases.values() if _is_undecided(case)], policy)
    submitted = _submitted_at_once([cases[case_id] for case_id in opened], by_case, rules)
    await store.record_cases(tx, [submitted.get(case_id, cases[case_id]) for case_id in opened])
    await store.record_case_reports(tx, [cases[case_id] for case_id in joined])
    await store.add_to_timeline(tx, [_reported(report, case_id) for report, case_id in assigned])
    await outbox.emit(tx, [_taken(case, by_case[case.case_id], reports, opened) for case in cases.values()])
    decided = []
    for case_id, case in cases.items():
        for report in by_case[case_id]:
            if report.decision:
                case = await _apply_decision(tx, case, report, report.decision, reports[report.report_id].traceparent)  # noqa: PLW2901 - the case after its decisions
        decided.append(case)
    await _apply_rules(tx, decided, rules, recorded=submitted.keys())


def _open(case_id: UUID, report: MessageReported, traceparent: str | None) -> Case:
    return Case(
        case_id=case_id,
        tenant_id=report.tenant_id,
        status=CaseStatus.OPEN,
        reported_as=(),
        folders=(),
        report_count=0,
        recipient=report.reporter,
        message=report.message,
        mailbox_message=report.mailbox_message,
        opened_at=datetime.now(UTC),
        last_reported_at=report.reported_at,
        submissions=0,
        submission_id=None,
        verdict=None,
        traceparent=traceparent,
    )


def _join(case: Case, reports: Sequence[MessageReported]) -> Case:
    return replace(
        case,
        report_count=case.report_count + len(reports),
        reported_as=tuple(sorted({*case.reported_as, *(report.reported_as for report in reports)})),
        folders=tuple(sorted({*case.folders, *(report.folder for report in reports)})),
        last_reported_at=max(case.last_reported_at, *(report.reported_at for report in reports)),
    )


def _reported(report: MessageReported, case_id: UUID) -> Entry:
    detail = {
        "report_id": str(report.report_id),
        "reporter": report.reporter,
        "reported_as": report.reported_as,
        "folder": report.folder,
    }
    return Entry(case_id, f"report:{report.report_id}", report.reported_at, "message.reported", detail)


def _taken(
    case: Case,
    taken: Sequence[MessageReported],
    reports: Mapping[UUID, Received[MessageReported]],
    opened: Collection[UUID],
) -> Caused:
    event = CaseUpdated(
        tenant_id=case.tenant_id,
        case_id=case.case_id,
        change=CaseChange.OPENED if case.case_id in opened else CaseChange.JOINED,
        status=case.status,
        report_ids=tuple(report.report_id for report in taken),
        report_count=case.report_count,
        changed_at=datetime.now(UTC),
    )
    return event, reports[taken[0].report_id].traceparent


async def _apply_decision(
    tx: Tx, case: Case, report: MessageReported, decision: AdminDecision, cause: str | None
) -> Case:
    """Apply what an admin decided while reporting; the timeline says what the case does not allow."""
    by = decision.decided_by
    await tenant_blocks.apply_decision(tx, case, report, decision, cause)
    if decision.category is None:
        return case
    try:
        await submit(tx, case, decision.category, by=by, note=decision.note, cause=cause)
    except NotPossibleError as error:
        entry = f"skipped-submit:{report.report_id}"
        skipped = Entry(case.case_id, entry, datetime.now(UTC), "submit.skipped", {"why": str(error)}, by)
        await store.add_to_timeline(tx, [skipped])
        return case
    return replace(case, status=CaseStatus.SUBMITTED, submissions=case.submissions + 1)


def _is_undecided(case: Case) -> bool:
    return case.status is CaseStatus.OPEN and not case.submissions


async def _matching_rules(tx: Tx, cases: Sequence[Case], policy: Policy) -> dict[UUID, Rule]:
    """Return the rules that match *cases*, whose reports are stored already."""
    repeated = [case.case_id for case in cases if case.report_count > 1] if policy.counts_people else []
    people = await store.count_people(tx, repeated)
    return {
        case.case_id: rule
        for case in cases
        if (
            rule := policy.first_match(
                reported_as=case.reported_as,
                folders=case.folders,
                people=people.get(case.case_id, 1),
                sender_domain=case.message.sender_domain,
            )
        )
    }


def _submitted_at_once(
    opened: Sequence[Case], reports: Mapping[UUID, Sequence[MessageReported]], rules: Mapping[UUID, Rule]
) -> dict[UUID, Case]:
    """
    Return the new cases that *rules* will submit, already in their submitted state, so that each row is written once.

    Cases with an admin's decision are left out, because that decision is applied first.
    """
    return {
        case.case_id: replace(case, status=CaseStatus.SUBMITTED, submissions=1, submission_id=_next_submission(case))
        for case in opened
        if (rule := rules.get(case.case_id))
        and rule.then.submit
        and not any(report.decision for report in reports[case.case_id])
    }


async def _apply_rules(
    tx: Tx, cases: Sequence[Case], rules: Mapping[UUID, Rule], *, recorded: Collection[UUID]
) -> None:
    """Apply *rules* to cases on which nobody has decided. The rows of those in *recorded* show it already."""
    matched = [(case, rule) for case in cases if _is_undecided(case) and (rule := rules.get(case.case_id))]
    await tenant_blocks.apply_rules(tx, matched)
    await _submit_all(
        tx,
        [
            SubmitDecision(
                case,
                category_of(rule.then, case.reported_as),
                rule.actor,
                note=None,
                cause=case.traceparent,
                recorded=case.case_id in recorded,
            )
            for case, rule in matched
            if rule.then.submit
        ],
    )


@dataclass(frozen=True, slots=True)
class SubmitDecision:
    """Have Microsoft analyse the message of an open case. `recorded`: the case's row shows it already."""

    case: Case
    category: Category
    by: Actor
    note: str | None
    cause: str | None
    recorded: bool = False


async def submit(tx: Tx, case: Case, category: Category, *, by: Actor, note: str | None, cause: str | None) -> None:
    """Have Microsoft analyse the case's message. Raises NotPossibleError unless the case is open."""
    if case.status is not CaseStatus.OPEN:
        raise NotPossibleError(f"The case is {case.status}: only an open case can be submitted")
    await _submit_all(tx, [SubmitDecision(case, category, by, note, cause)])


async def _submit_all(tx: Tx, decisions: Sequence[SubmitDecision]) -> None:
    """Submit open cases, each once, with as many statements as for one."""
    if not decisions:
        return
    now = datetime.now(UTC)
    next_ids = {decision.case.case_id: _next_submission(decision.case) for decision in decisions}
    unrecorded = [decision.case.case_id for decision in decisions if not decision.recorded]
    await store.set_submitted(tx, {case_id: next_ids[case_id] for case_id in unrecorded})
    entries: list[Entry] = []
    events: list[Caused] = []
    for decision in decisions:
        case, new_id = decision.case, next_ids[decision.case.case_id]
        detail = {"submission_id": str(new_id), "category": decision.category, "note": decision.note}
        entries.append(Entry(case.case_id, f"submit:{new_id}", now, "case.submitted", detail, decision.by))
        requested = SubmissionRequested(
            tenant_id=case.tenant_id,
            submission_id=new_id,
            case_id=case.case_id,
            category=decision.category,
            recipient=case.recipient,
            folders=case.folders,
            message=case.message,
            mailbox_message=case.mailbox_message,
            requested_by=decision.by,
            requested_at=now,
        )
        changed = _changed(case, CaseStatus.SUBMITTED, by=decision.by, note=decision.note, at=now)
        events += (changed, decision.cause), (requested, decision.cause)
    await store.add_to_timeline(tx, entries)
    await outbox.emit(tx, events)


def _next_submission(case: Case) -> UUID:
    return submission_id(case.case_id, case.submissions + 1)


async def dismiss(tx: Tx, case: Case, *, by: Actor, note: str | None, cause: str | None) -> None:
    """Close a case without Microsoft. Raises NotPossibleError unless the case is open."""
    if case.status is not CaseStatus.OPEN:
        raise NotPossibleError(f"The case is {case.status}: only an open case can be dismissed")
    now = datetime.now(UTC)
    await store.set_status(tx, [case.case_id], CaseStatus.DISMISSED)
    await store.add_to_timeline(tx, [Entry(case.case_id, "dismiss", now, "case.dismissed", {"note": note}, by)])
    await outbox.emit(tx, [(_changed(case, CaseStatus.DISMISSED, by=by, note=note, at=now), cause)])


def _changed(case: Case, status: CaseStatus, *, by: Actor, note: str | None, at: datetime) -> CaseUpdated:
    return CaseUpdated(
        tenant_id=case.tenant_id,
        case_id=case.case_id,
        change=CaseChange(status),
        status=status,
        report_count=case.report_count,
        changed_by=by,
        note=note,
        changed_at=at,
    )
