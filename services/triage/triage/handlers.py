"""
What triage does with events: reports become cases, outcomes become their timeline.

An outcome of a case that has expired changes nothing: its case is not there to be locked or told about.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from faststream import Context
from faststream.kafka import KafkaRouter

from backstop_contracts import (
    Actor,
    ActorKind,
    AdminDecision,
    BlockApplied,
    BlockFailed,
    BlockKind,
    BlockRemoved,
    CaseChange,
    CaseStatus,
    CaseUpdated,
    Conclusion,
    DecidedBlock,
    Event,
    MessageReported,
    Override,
    ReleaseDecided,
    SubmissionCreated,
    SubmissionDelayed,
    SubmissionFailed,
    VerdictReady,
)
from backstop_contracts.identity import CaseKey, message_id_key
from chassis import outbox
from chassis.events import BATCH, Received, Tx
from triage import decisions, store
from triage.rules import Policy, Rule, assign, block_lifetime, category_of, keys_of
from triage.store import Case, Entry

router = KafkaRouter()

CLOSED = frozenset({CaseStatus.RESOLVED, CaseStatus.DISMISSED})
_NOT_IN_THE_TIMELINE = {"tenant_id", "case_id", "message", "folders", "blocks"}
"""What the case itself says already."""
ANSWERS = frozenset({Conclusion.THREAT, Conclusion.CLEAN, Conclusion.SIMULATION})
"""Conclusions that resolve a case. One that this version does not know is not an answer."""


@router.subscriber("message-reported", **BATCH)
async def on_message_reported(
    reports: list[Received[MessageReported]], tx: Tx, policy: Annotated[Policy, Context()]
) -> None:
    """Put each new report into its case, open the cases that are missing, and let the policy decide on them."""
    by_tenant: defaultdict[UUID, dict[UUID, Received[MessageReported]]] = defaultdict(dict)
    for received in reports:
        by_tenant[received.event.tenant_id].setdefault(received.event.report_id, received)
    for tenant_id in sorted(by_tenant):
        await _match(tx, tenant_id, by_tenant[tenant_id], policy)


async def _match(tx: Tx, tenant_id: UUID, reports: dict[UUID, Received[MessageReported]], policy: Policy) -> None:
    await store.take_turn(tx, tenant_id)
    unknown = await store.unknown_reports(tx, list(reports))
    new = [received.event for report_id, received in reports.items() if report_id in unknown]
    if not new:
        return
    known = await store.find_keys(tx, tenant_id, {key for report in new for key in keys_of(report.message)})
    locked = await store.lock_cases(tx, set(known.values()))
    standing = {case_id: case for case_id, case in locked.items() if case.status not in CLOSED}
    assigned, new_keys = assign(new, {key: case_id for key, case_id in known.items() if case_id in standing})
    await store.record_reports(tx, assigned)
    await store.record_keys(tx, tenant_id, new_keys)

    joined: defaultdict[UUID, list[MessageReported]] = defaultdict(list)
    for report, case_id in assigned:
        joined[case_id].append(report)
    standing = {case_id: case for case_id, case in standing.items() if case_id in joined}
    opened = {
        case_id: _open(case_id, first[0], reports[first[0].report_id].traceparent)
        for case_id, first in joined.items()
        if case_id not in standing
    }
    cases = {case_id: _join(case, joined[case_id]) for case_id, case in (standing | opened).items()}
    # Nothing that an admin decided below changes what a rule looks at.
    rules = await _rules_for(tx, [case for case in cases.values() if _is_undecided(case)], policy)
    submitted = _submitted_at_once([cases[case_id] for case_id in opened], joined, rules)
    await store.record_cases(tx, [submitted.get(case_id, cases[case_id]) for case_id in opened])
    await store.join_cases(tx, [cases[case_id] for case_id in standing])
    await store.tell(tx, [_reported(report, case_id) for report, case_id in assigned])
    await outbox.emit(
        tx,
        [
            (
                CaseUpdated(
                    tenant_id=tenant_id,
                    case_id=case_id,
                    change=CaseChange.OPENED if case_id in opened else CaseChange.JOINED,
                    status=case.status,
                    report_ids=tuple(report.report_id for report in joined[case_id]),
                    report_count=case.report_count,
                    changed_at=datetime.now(UTC),
                ),
                reports[joined[case_id][0].report_id].traceparent,
            )
            for case_id, case in cases.items()
        ],
    )
    decided = []
    for case_id, case in cases.items():
        for report in joined[case_id]:
            if report.decision:
                case = await _apply_decision(tx, case, report, report.decision, reports[report.report_id].traceparent)  # noqa: PLW2901 - the case after its decisions
        decided.append(case)
    await _apply(tx, decided, rules, noted=submitted.keys())


async def _apply_decision(
    tx: Tx, case: Case, report: MessageReported, decision: AdminDecision, cause: str | None
) -> Case:
    """Apply what an admin decided while reporting; what the case does not allow is noted in its timeline."""
    by, note = decision.decided_by, decision.note
    for block in decision.blocks:
        if why := await _apply_block(tx, case, report, decision, block, cause):
            entry = f"skipped-block:{report.report_id}:{block.kind}:{block.url or ''}"
            detail = {"why": why, "kind": block.kind, "url": block.url}
            await store.tell(tx, [Entry(case.case_id, entry, datetime.now(UTC), "block.skipped", detail, by)])
    if decision.category is None:
        return case
    try:
        await decisions.submit(tx, case, decision.category, by=by, note=note, cause=cause)
    except decisions.NotPossibleError as error:
        entry = f"skipped-submit:{report.report_id}"
        skipped = Entry(case.case_id, entry, datetime.now(UTC), "submit.skipped", {"why": str(error)}, by)
        await store.tell(tx, [skipped])
        return case
    return replace(case, status=CaseStatus.SUBMITTED, submissions=case.submissions + 1)


async def _apply_block(
    tx: Tx, case: Case, report: MessageReported, decision: AdminDecision, block: DecidedBlock, cause: str | None
) -> str | None:
    """Block what an admin decided; return why that is not possible, or None."""
    if block.kind not in set(BlockKind):
        return "This version does not know that kind of block"
    # The admin saw this message, which need not be the one that opened the case.
    seen = replace(case, message=report.message)
    by, note, end = decision.decided_by, decision.note, block.expires_at
    try:
        await decisions.block(
            tx, seen, BlockKind(block.kind), url=block.url, expires_at=end, by=by, note=note, cause=cause
        )
    except decisions.NotPossibleError as error:
        return str(error)
    return None


def _submitted_at_once(
    opened: Sequence[Case], joined: Mapping[UUID, Sequence[MessageReported]], rules: Mapping[UUID, Rule]
) -> dict[UUID, Case]:
    """
    Return new cases that the policy's *rules* will submit, as they will be then: so each is written once.

    What an admin decided goes first and may be otherwise: such cases are left out.
    """
    return {
        case.case_id: replace(
            case, status=CaseStatus.SUBMITTED, submissions=1, submission_id=decisions.next_submission(case)
        )
        for case in opened
        if (rule := rules.get(case.case_id))
        and rule.then.submit
        and not any(report.decision for report in joined[case.case_id])
    }


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


def _is_undecided(case: Case) -> bool:
    return case.status is CaseStatus.OPEN and not case.submissions


async def _rules_for(tx: Tx, cases: Sequence[Case], policy: Policy) -> dict[UUID, Rule]:
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


async def _apply(tx: Tx, cases: Sequence[Case], rules: Mapping[UUID, Rule], *, noted: Collection[UUID]) -> None:
    """Do what *rules* say about cases that nobody has decided on yet; rows of *noted* ones tell of it already."""
    ruled = [(case, rule) for case in cases if _is_undecided(case) and (rule := rules.get(case.case_id))]
    await _block(tx, ruled)
    await decisions.submit_all(
        tx,
        [
            decisions.SubmitWish(
                case,
                category_of(rule.then, case.reported_as),
                _actor(rule),
                note=None,
                cause=case.traceparent,
                noted=case.case_id in noted,
            )
            for case, rule in ruled
            if rule.then.submit
        ],
    )


async def _block(tx: Tx, ruled: Sequence[tuple[Case, Rule]]) -> None:
    now = datetime.now(UTC)
    wishes = [
        decisions.BlockWish(
            case,
            BlockKind(rule.then.block),
            expires_at=now + block_lifetime(rule.then),
            by=_actor(rule),
            note=None,
            cause=case.traceparent,
        )
        for case, rule in ruled
        if rule.then.block
    ]
    outcomes = await decisions.block_all(tx, wishes)
    skipped = [
        Entry(wish.case.case_id, f"policy-block:{wish.by.id}", now, "block.skipped", {"why": str(outcome)}, wish.by)
        for wish, outcome in zip(wishes, outcomes, strict=True)
        if isinstance(outcome, decisions.NotPossibleError)
    ]
    await store.tell(tx, skipped)


def _actor(rule: Rule) -> Actor:
    return Actor(kind=ActorKind.POLICY, id=rule.name, name=rule.name)


@router.subscriber("submission-created", **BATCH)
async def on_submission_created(created: list[Received[SubmissionCreated]], tx: Tx) -> None:
    """Tell the timeline that Microsoft took the submission."""
    await _tell(tx, [(r, r.event.case_id, f"created:{r.event.submission_id}") for r in created])


@router.subscriber("submission-delayed", **BATCH)
async def on_submission_delayed(delayed: list[Received[SubmissionDelayed]], tx: Tx) -> None:
    """Tell the timeline what the submission waits for."""
    await _tell(tx, [(r, r.event.case_id, f"delayed:{r.event.submission_id}:{r.event.reason}") for r in delayed])


@router.subscriber("submission-failed", **BATCH)
async def on_submission_failed(failed: list[Received[SubmissionFailed]], tx: Tx) -> None:
    """Reopen the cases whose submission will not be made, so that an admin can decide again."""
    await _end_submissions(tx, failed, "failed")


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """Resolve the cases that Microsoft has judged or traced to a setting; reopen those about which it said nothing."""
    await _end_submissions(tx, verdicts, "verdict")


async def _end_submissions(
    tx: Tx, outcomes: Sequence[Received[VerdictReady] | Received[SubmissionFailed]], name: str
) -> None:
    for tenant_id in sorted({received.event.tenant_id for received in outcomes}):
        ours = [received for received in outcomes if received.event.tenant_id == tenant_id]
        cases = await store.lock_cases(tx, {received.event.case_id for received in ours})
        told = {f"{name}:{received.event.submission_id}": received for received in ours}
        new = await _tell(tx, [(received, received.event.case_id, entry) for entry, received in told.items()])
        await _close(tx, cases, [received for entry, received in told.items() if entry in new])


async def _close(
    tx: Tx, cases: dict[UUID, Case], outcomes: Sequence[Received[VerdictReady] | Received[SubmissionFailed]]
) -> None:
    """End the running submission of each case; an outcome of an earlier submission changes nothing."""
    current = [
        received
        for received in outcomes
        if received.event.case_id in cases
        and cases[received.event.case_id].submission_id == received.event.submission_id
    ]
    await store.record_verdicts(tx, [r.event for r in current if isinstance(r.event, VerdictReady)])
    changes: list[tuple[Event, str | None]] = []
    moved: defaultdict[CaseStatus, list[UUID]] = defaultdict(list)
    for received in current:
        event, case = received.event, cases[received.event.case_id]
        judged = isinstance(event, VerdictReady) and _is_answered(event)
        status = CaseStatus.RESOLVED if judged else CaseStatus.OPEN
        moved[status].append(case.case_id)
        changed = CaseUpdated(
            tenant_id=case.tenant_id,
            case_id=case.case_id,
            change=CaseChange.RESOLVED if judged else CaseChange.REOPENED,
            status=status,
            report_count=case.report_count,
            changed_at=datetime.now(UTC),
        )
        changes.append((changed, received.traceparent))
    for status, case_ids in moved.items():
        await store.move(tx, case_ids, status)
    await outbox.emit(tx, changes)


def _is_answered(verdict: VerdictReady) -> bool:
    """Return True if there is nothing left to ask Microsoft: what a setting did, it would only say again."""
    return verdict.conclusion in ANSWERS or verdict.override in set(Override)


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Tell the timeline that the sender is blocked."""
    await _settle_blocks(tx, applied, "applied")


@router.subscriber("block-failed", **BATCH)
async def on_block_failed(failed: list[Received[BlockFailed]], tx: Tx) -> None:
    """Tell the timeline why the sender will not be blocked."""
    await _settle_blocks(tx, failed, "failed")


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Tell the timeline that the block ended."""
    await _settle_blocks(tx, removed, "removed")


@router.subscriber("release-decided", **BATCH)
async def on_release_decided(decided: list[Received[ReleaseDecided]], tx: Tx) -> None:
    """Tell the timeline of the mail's case, if there is one, that it left the quarantine or will not."""
    by_tenant: defaultdict[UUID, list[tuple[Received[ReleaseDecided], CaseKey]]] = defaultdict(list)
    for received in decided:
        if received.event.internet_message_id:
            by_tenant[received.event.tenant_id].append((received, message_id_key(received.event.internet_message_id)))
    for tenant_id, events in sorted(by_tenant.items()):
        known = await store.find_keys(tx, tenant_id, {key for _, key in events})
        of_cases = [(received, known[key]) for received, key in events if key in known]
        await _tell(tx, [(one, case_id, f"release:{one.event.decision_id}") for one, case_id in of_cases])


async def _settle_blocks(tx: Tx, outcomes: Sequence[Received[Any]], status: str) -> None:
    """Note what became of blocks that were decided in cases; a mailbox's own block is its reporter's affair."""
    ours = [received for received in outcomes if received.event.block.case_id]
    # Cases before blocks, as everybody locks them.
    await _tell(
        tx,
        [(received, received.event.block.case_id, f"{status}:{received.event.block.block_id}") for received in ours],
    )
    await store.settle_blocks(
        tx,
        {
            received.event.block.block_id: (
                status,
                getattr(received.event, "entry", None),
                getattr(received.event, "reason", None),
            )
            for received in ours
        },
    )


async def _tell(tx: Tx, told: Sequence[tuple[Received[Any], UUID, str]]) -> set[str]:
    """
    Add each event to the timeline of its case, under the name that makes it be told once.

    Topics are read side by side, so whoever locks cases does it in one order: by tenant, then by id.
    """
    new: set[str] = set()
    for tenant_id in sorted({received.event.tenant_id for received, _, _ in told}):
        entries = [
            Entry(
                case_id,
                entry,
                received.envelope.time,
                received.event.TOPIC.replace("-", "."),
                received.event.model_dump(mode="json", exclude=_NOT_IN_THE_TIMELINE),
            )
            for received, case_id, entry in told
            if received.event.tenant_id == tenant_id
        ]
        new |= await store.tell(tx, entries)
    return new
