"""
Consume events: reports become cases, and outcomes are added to their timeline.

An outcome of a case that has expired changes nothing: there is no row to lock, and no timeline.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from faststream import Context
from faststream.kafka import KafkaRouter

from backstop_contracts import (
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    CaseChange,
    CaseStatus,
    CaseUpdated,
    Conclusion,
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
from chassis.subscribing import BATCH, Received, Tx
from triage import store
from triage.cases import Caused, take_reports
from triage.rules import Policy
from triage.store import Case, Entry

router = KafkaRouter()

_NOT_IN_THE_TIMELINE = {"tenant_id", "case_id", "message", "folders", "blocks"}
"""What the case itself shows already."""
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
        await take_reports(tx, tenant_id, by_tenant[tenant_id], policy)


@router.subscriber("submission-created", **BATCH)
async def on_submission_created(created: list[Received[SubmissionCreated]], tx: Tx) -> None:
    """Add to the timeline that Microsoft took the submission."""
    await _add_to_timeline(tx, [(r, r.event.case_id, f"created:{r.event.submission_id}") for r in created])


@router.subscriber("submission-delayed", **BATCH)
async def on_submission_delayed(delayed: list[Received[SubmissionDelayed]], tx: Tx) -> None:
    """Add to the timeline what the submission waits for."""
    await _add_to_timeline(
        tx, [(r, r.event.case_id, f"delayed:{r.event.submission_id}:{r.event.reason}") for r in delayed]
    )


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
        named = {f"{name}:{received.event.submission_id}": received for received in ours}
        new = await _add_to_timeline(tx, [(one, one.event.case_id, entry) for entry, one in named.items()])
        await _close(tx, cases, [received for entry, received in named.items() if entry in new])


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
    changes: list[Caused] = []
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
        await store.set_status(tx, case_ids, status)
    await outbox.emit(tx, changes)


def _is_answered(verdict: VerdictReady) -> bool:
    """Return True if asking Microsoft again would bring nothing new, as when it traced the message to a setting."""
    return verdict.conclusion in ANSWERS or verdict.override in set(Override)


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Add to the timeline that the block is in force."""
    await _settle_blocks(tx, applied, "applied")


@router.subscriber("block-failed", **BATCH)
async def on_block_failed(failed: list[Received[BlockFailed]], tx: Tx) -> None:
    """Add to the timeline why the block will not be made."""
    await _settle_blocks(tx, failed, "failed")


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Add to the timeline that the block has ended."""
    await _settle_blocks(tx, removed, "removed")


@router.subscriber("release-decided", **BATCH)
async def on_release_decided(decided: list[Received[ReleaseDecided]], tx: Tx) -> None:
    """Add to the timeline of the message's case, if there is one, that it was released from the quarantine or not."""
    by_tenant: defaultdict[UUID, list[tuple[Received[ReleaseDecided], CaseKey]]] = defaultdict(list)
    for received in decided:
        if received.event.internet_message_id:
            by_tenant[received.event.tenant_id].append((received, message_id_key(received.event.internet_message_id)))
    for tenant_id, events in sorted(by_tenant.items()):
        known = await store.find_keys(tx, tenant_id, {key for _, key in events})
        of_cases = [(received, known[key]) for received, key in events if key in known]
        await _add_to_timeline(tx, [(one, case_id, f"release:{one.event.decision_id}") for one, case_id in of_cases])


async def _settle_blocks(tx: Tx, outcomes: Sequence[Received[Any]], status: str) -> None:
    """Record outcomes of blocks that were decided in cases; those for single mailboxes are not ours."""
    ours = [received for received in outcomes if received.event.block.case_id]
    # Cases before blocks: everybody locks them in this order.
    await _add_to_timeline(
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


async def _add_to_timeline(tx: Tx, events: Sequence[tuple[Received[Any], UUID, str]]) -> set[str]:
    """
    Add each event to the timeline of its case, under a name that makes it one entry; return the names that are new.

    Topics are read in parallel, so cases are locked in one order everywhere: by tenant, then by id.
    """
    new: set[str] = set()
    for tenant_id in sorted({received.event.tenant_id for received, _, _ in events}):
        entries = [
            Entry(
                case_id,
                entry,
                received.envelope.time,
                received.event.TOPIC.replace("-", "."),
                received.event.model_dump(mode="json", exclude=_NOT_IN_THE_TIMELINE),
            )
            for received, case_id, entry in events
            if received.event.tenant_id == tenant_id
        ]
        new |= await store.add_to_timeline(tx, entries)
    return new
