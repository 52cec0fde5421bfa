"""Block for the whole tenant what the message of a case names: its sender, the sender's domain, or a URL."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from backstop_contracts import (
    Actor,
    ActorKind,
    AdminDecision,
    Block,
    BlockKind,
    BlockRequested,
    BlockScope,
    CaseStatus,
    DecidedBlock,
    Event,
    MessageReported,
)
from backstop_contracts.identity import tenant_block_id
from chassis import outbox
from chassis.postgres import Tx
from triage import store
from triage.rules import NotPossibleError, Rule, block_lifetime, why_not_the_sender, why_unauthenticated
from triage.store import Case, Entry

_NAMES = {BlockKind.SENDER: "sender", BlockKind.DOMAIN: "domain", BlockKind.URL: "URL"}


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """Block the sender of a case's message, its whole domain, or *url*, until *expires_at*; None: for good."""

    case: Case
    kind: BlockKind
    expires_at: datetime | None
    by: Actor
    note: str | None
    cause: str | None
    url: str | None = None

    @property
    def value(self) -> str | None:
        """What is to be blocked; None when the message does not name it."""
        message = self.case.message
        values = {BlockKind.SENDER: message.sender, BlockKind.DOMAIN: message.sender_domain, BlockKind.URL: self.url}
        return values[self.kind]


async def apply_rules(tx: Tx, matched: Sequence[tuple[Case, Rule]]) -> None:
    """Block what the policy's rules say; the timeline says what is not possible."""
    now = datetime.now(UTC)
    decisions = [
        BlockDecision(
            case,
            BlockKind(rule.then.block),
            expires_at=now + block_lifetime(rule.then),
            by=rule.actor,
            note=None,
            cause=case.traceparent,
        )
        for case, rule in matched
        if rule.then.block
    ]
    outcomes = await block_all(tx, decisions)
    skipped = [
        Entry(one.case.case_id, f"policy-block:{one.by.id}", now, "block.skipped", {"why": str(outcome)}, one.by)
        for one, outcome in zip(decisions, outcomes, strict=True)
        if isinstance(outcome, NotPossibleError)
    ]
    await store.add_to_timeline(tx, skipped)


async def apply_decision(
    tx: Tx, case: Case, report: MessageReported, decision: AdminDecision, cause: str | None
) -> None:
    """Block what an admin decided while reporting; the timeline says what is not possible."""
    for asked in decision.blocks:
        if why := await _apply_one(tx, case, report, decision, asked, cause):
            entry = f"skipped-block:{report.report_id}:{asked.kind}:{asked.url or ''}"
            detail = {"why": why, "kind": asked.kind, "url": asked.url}
            skipped = Entry(case.case_id, entry, datetime.now(UTC), "block.skipped", detail, decision.decided_by)
            await store.add_to_timeline(tx, [skipped])


async def _apply_one(
    tx: Tx, case: Case, report: MessageReported, decision: AdminDecision, asked: DecidedBlock, cause: str | None
) -> str | None:
    """Block one thing; return why that is not possible, or None."""
    if asked.kind not in set(BlockKind):
        return "This version does not know that kind of block"
    # The admin saw this message, which need not be the one that opened the case.
    seen = replace(case, message=report.message)
    one = BlockDecision(
        seen, BlockKind(asked.kind), asked.expires_at, decision.decided_by, decision.note, cause, url=asked.url
    )
    (outcome,) = await block_all(tx, [one])
    return str(outcome) if isinstance(outcome, NotPossibleError) else None


async def block(tx: Tx, decision: BlockDecision) -> UUID:
    """
    Block what *decision* says; return the block's id.

    Raises NotPossibleError when the case was dismissed, the message does not name it, or the block is in force.
    """
    (outcome,) = await block_all(tx, [decision])
    if isinstance(outcome, NotPossibleError):
        raise outcome
    return outcome


async def block_all(tx: Tx, decisions: Sequence[BlockDecision]) -> list[UUID | NotPossibleError]:
    """
    Block for cases, once each, with as many statements as for one.

    Returns for each decision the block's id, or why it is not possible.
    """
    known = await store.find_blocks(tx, [(one.case.case_id, one.kind, one.value) for one in decisions if one.value])
    now = datetime.now(UTC)
    outcomes: list[UUID | NotPossibleError] = []
    new: list[tuple[Block, int]] = []
    entries: list[Entry] = []
    events: list[tuple[Event, str | None]] = []
    for one in decisions:
        case, kind, value = one.case, one.kind, one.value
        generations, in_force = known.get((case.case_id, kind, value or ""), (0, False))
        if why := _why_not(one, in_force=in_force):
            outcomes.append(NotPossibleError(why))
            continue
        requested = Block(
            block_id=tenant_block_id(case.case_id, kind, value or "", generations + 1),
            scope=BlockScope.TENANT,
            kind=kind,
            value=value or "",
            case_id=case.case_id,
            expires_at=one.expires_at,
        )
        outcomes.append(requested.block_id)
        new.append((requested, generations + 1))
        entries.append(_entry(one, requested, now))
        event = BlockRequested(
            tenant_id=case.tenant_id, block=requested, note=one.note, requested_by=one.by, requested_at=now
        )
        events.append((event, one.cause))
    await store.record_blocks(tx, new)
    await store.add_to_timeline(tx, entries)
    await outbox.emit(tx, events)
    return outcomes


def _entry(decision: BlockDecision, block: Block, at: datetime) -> Entry:
    detail = block.model_dump(mode="json", include={"block_id", "kind", "value", "expires_at"})
    detail["note"] = decision.note
    if decision.kind is not BlockKind.URL and (doubt := why_unauthenticated(decision.case.message)):
        detail["warning"] = doubt
    return Entry(decision.case.case_id, f"block:{block.block_id}", at, "block.requested", detail, decision.by)


def _why_not(decision: BlockDecision, *, in_force: bool) -> str | None:
    case, kind = decision.case, decision.kind
    if case.status is CaseStatus.DISMISSED:
        return "The case is dismissed: its sender is not blocked from here"
    if not decision.value:
        return f"The message names no {_NAMES[kind]} that could be blocked"
    if in_force:
        return f"This case has already blocked that {_NAMES[kind]}"
    if kind is BlockKind.URL:
        return None
    # An actor that is not known to be a person or an application has no more rights than a rule.
    is_admin = decision.by.kind in (ActorKind.USER, ActorKind.APP)
    doubt = None if is_admin else why_unauthenticated(case.message)
    return why_not_the_sender(case.message) or (f"{doubt}: only an admin blocks it" if doubt else None)
