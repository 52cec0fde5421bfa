"""What may be decided about a case, by an admin or by the policy: submit, block, dismiss. The case is locked."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from backstop_contracts import (
    Actor,
    ActorKind,
    Block,
    BlockKind,
    BlockRequested,
    BlockScope,
    CaseChange,
    CaseStatus,
    CaseUpdated,
    Category,
    Event,
    SubmissionRequested,
)
from backstop_contracts.identity import submission_id, tenant_block_id
from chassis import outbox
from chassis.postgres import Tx
from triage import store
from triage.rules import why_not_the_sender, why_unauthenticated
from triage.store import Case, Entry

_NAMES = {BlockKind.SENDER: "sender", BlockKind.DOMAIN: "domain", BlockKind.URL: "URL"}


class NotPossibleError(Exception):
    """The case does not allow the decision; the text says why and what is possible."""


@dataclass(frozen=True, slots=True)
class SubmitWish:
    """Have Microsoft analyse the mail of an open case."""

    case: Case
    category: Category
    by: Actor
    note: str | None
    cause: str | None
    noted: bool = False
    """Whether the case's row says so already, because the case was opened by the same transaction."""


@dataclass(frozen=True, slots=True)
class BlockWish:
    """Block the sender of a case's mail, its whole domain, or *url*, for the tenant."""

    case: Case
    kind: BlockKind
    expires_at: datetime | None
    by: Actor
    note: str | None
    cause: str | None
    url: str | None = None

    @property
    def value(self) -> str | None:
        """What is to be blocked; None when the mail does not name it."""
        message = self.case.message
        values = {BlockKind.SENDER: message.sender, BlockKind.DOMAIN: message.sender_domain, BlockKind.URL: self.url}
        return values[self.kind]


async def submit(tx: Tx, case: Case, category: Category, *, by: Actor, note: str | None, cause: str | None) -> None:
    """Have Microsoft analyse the case's mail. Raises NotPossibleError unless the case is open."""
    if case.status is not CaseStatus.OPEN:
        raise NotPossibleError(f"The case is {case.status}: only an open case can be submitted")
    await submit_all(tx, [SubmitWish(case, category, by, note, cause)])


def next_submission(case: Case) -> UUID:
    """Name the submission that an open case will have next."""
    return submission_id(case.case_id, case.submissions + 1)


async def submit_all(tx: Tx, wishes: Sequence[SubmitWish]) -> None:
    """Submit open cases, one wish each, with as many statements as for one."""
    if not wishes:
        return
    now = datetime.now(UTC)
    made = {wish.case.case_id: next_submission(wish.case) for wish in wishes}
    await store.mark_submitted(tx, {wish.case.case_id: made[wish.case.case_id] for wish in wishes if not wish.noted})
    entries: list[Entry] = []
    events: list[tuple[Event, str | None]] = []
    for wish in wishes:
        case, new_id = wish.case, made[wish.case.case_id]
        detail = {"submission_id": str(new_id), "category": wish.category, "note": wish.note}
        entries.append(Entry(case.case_id, f"submit:{new_id}", now, "case.submitted", detail, wish.by))
        requested = SubmissionRequested(
            tenant_id=case.tenant_id,
            submission_id=new_id,
            case_id=case.case_id,
            category=wish.category,
            recipient=case.recipient,
            folders=case.folders,
            message=case.message,
            mailbox_message=case.mailbox_message,
            requested_by=wish.by,
            requested_at=now,
        )
        changed = _changed(case, CaseChange.SUBMITTED, CaseStatus.SUBMITTED, by=wish.by, note=wish.note, at=now)
        events += (changed, wish.cause), (requested, wish.cause)
    await store.tell(tx, entries)
    await outbox.emit(tx, events)


async def block(
    tx: Tx,
    case: Case,
    kind: BlockKind,
    *,
    url: str | None = None,
    expires_at: datetime | None,
    by: Actor,
    note: str | None,
    cause: str | None,
) -> UUID:
    """
    Block the case's sender, its whole domain, or *url*, for the tenant.

    Raises NotPossibleError when the case was dismissed, the mail names no sender, or the block is already wanted.
    """
    (outcome,) = await block_all(tx, [BlockWish(case, kind, expires_at, by, note, cause, url)])
    if isinstance(outcome, NotPossibleError):
        raise outcome
    return outcome


async def block_all(tx: Tx, wishes: Sequence[BlockWish]) -> list[UUID | NotPossibleError]:
    """
    Block for cases, one wish each, with as many statements as for one.

    Returns for each wish the block's id, or why it is not possible.
    """
    known = await store.count_blocks(
        tx, [(wish.case.case_id, wish.kind, wish.value) for wish in wishes if wish.value is not None]
    )
    now = datetime.now(UTC)
    outcomes: list[UUID | NotPossibleError] = []
    blocks: list[tuple[Block, int]] = []
    entries: list[Entry] = []
    events: list[tuple[Event, str | None]] = []
    for wish in wishes:
        case, kind, value = wish.case, wish.kind, wish.value
        rounds, standing = known.get((case.case_id, kind, value or ""), (0, False))
        if why := _why_not(wish, standing=standing):
            outcomes.append(NotPossibleError(why))
            continue
        asked = Block(
            block_id=tenant_block_id(case.case_id, kind, value or "", rounds + 1),
            scope=BlockScope.TENANT,
            kind=kind,
            value=value or "",
            case_id=case.case_id,
            expires_at=wish.expires_at,
        )
        outcomes.append(asked.block_id)
        blocks.append((asked, rounds + 1))
        said = asked.model_dump(mode="json", include={"block_id", "kind", "value", "expires_at"})
        detail = {**said, "note": wish.note}
        if kind is not BlockKind.URL and (doubt := why_unauthenticated(case.message)):
            detail["warning"] = doubt
        entries.append(Entry(case.case_id, f"block:{asked.block_id}", now, "block.requested", detail, wish.by))
        requested = BlockRequested(
            tenant_id=case.tenant_id, block=asked, note=wish.note, requested_by=wish.by, requested_at=now
        )
        events.append((requested, wish.cause))
    await store.record_blocks(tx, blocks)
    await store.tell(tx, entries)
    await outbox.emit(tx, events)
    return outcomes


def _why_not(wish: BlockWish, *, standing: bool) -> str | None:
    case, kind = wish.case, wish.kind
    if case.status is CaseStatus.DISMISSED:
        return "The case is dismissed: its sender is not blocked from here"
    if not wish.value:
        return f"The message names no {_NAMES[kind]} that could be blocked"
    if standing:
        return f"This case has already blocked that {_NAMES[kind]}"
    if kind is BlockKind.URL:
        return None
    # Whoever is not known to be a person or an application has no more rights than a rule.
    is_admin = wish.by.kind in (ActorKind.USER, ActorKind.APP)
    doubt = None if is_admin else why_unauthenticated(case.message)
    return why_not_the_sender(case.message) or (f"{doubt}: only an admin blocks it" if doubt else None)


async def dismiss(tx: Tx, case: Case, *, by: Actor, note: str | None, cause: str | None) -> None:
    """Close a case without Microsoft. Raises NotPossibleError unless the case is open."""
    if case.status is not CaseStatus.OPEN:
        raise NotPossibleError(f"The case is {case.status}: only an open case can be dismissed")
    now = datetime.now(UTC)
    await store.move(tx, [case.case_id], CaseStatus.DISMISSED)
    await store.tell(tx, [Entry(case.case_id, "dismiss", now, "case.dismissed", {"note": note}, by)])
    await outbox.emit(
        tx, [(_changed(case, CaseChange.DISMISSED, CaseStatus.DISMISSED, by=by, note=note, at=now), cause)]
    )


def _changed(
    case: Case,
    change: CaseChange,
    status: CaseStatus,
    *,
    by: Actor,
    note: str | None,
    at: datetime,
) -> CaseUpdated:
    return CaseUpdated(
        tenant_id=case.tenant_id,
        case_id=case.case_id,
        change=change,
        status=status,
        report_count=case.report_count,
        changed_by=by,
        note=note,
        changed_at=at,
    )
