"""The demo's check finds every claim that the ledger does not bear out."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import (
    Block,
    BlockApplied,
    BlockRemoved,
    CaseExpired,
    CaseStatus,
    Category,
    Message,
    SubmissionCreated,
    SubmissionRequested,
)
from demo.check import differences
from demo.event_log import BlockStory, CaseStory, EventLog

TENANT, REPORT, CASE, SUBMISSION = (uuid4() for _ in range(4))
OID = str(uuid4())
NOW = datetime.now(UTC)
MAIL = Message(sha256="0" * 64, size=1)


def applied(scope: Any, value: str, **more: Any) -> BlockStory:
    """Make a block that is said to stand."""
    block = Block(block_id=uuid4(), scope=scope, kind="sender", value=value, **more)
    return BlockStory(applied=BlockApplied(tenant_id=TENANT, block=block, already_present=False, applied_at=NOW))


@pytest.fixture
async def event_log() -> EventLog:
    """Make a event_log of one report, one case, one submission, one block of each scope."""
    event_log = EventLog("127.0.0.1:1", prefix="test", listener=lambda _event, _time: None)
    common: dict[str, Any] = {
        "tenant_id": TENANT,
        "submission_id": SUBMISSION,
        "case_id": CASE,
        "category": Category.PHISHING,
        "recipient": "user@contoso.example",
        "message": MAIL,
    }
    case = CaseStory(CASE, CaseStatus.RESOLVED, [REPORT])
    case.requested[SUBMISSION] = SubmissionRequested(
        **common, requested_by={"kind": "policy", "id": "test"}, requested_at=NOW
    )
    case.created[SUBMISSION] = SubmissionCreated(**common, graph_id="graph-1", adopted=False, created_at=NOW)
    event_log.cases[CASE] = case
    tenant = applied("tenant", "bad@fabrikam.example", case_id=CASE)
    mailbox = applied("mailbox", "bad@fabrikam.example", mailbox=OID, report_id=REPORT)
    event_log.blocks = {uuid4(): tenant, uuid4(): mailbox}
    return event_log


def ledger(**changes: Any) -> dict[str, Any]:
    """Make the ledger that bears the event_log out, but for *changes*."""
    return {
        "submissions": [{"id": "graph-1"}],
        "tenant_blocks": [{"value": "Bad@fabrikam.example"}],
        "mailbox_blocks": [{"mailbox": "user@contoso.example", "value": "bad@fabrikam.example"}],
        "removals": [],
        **changes,
    }


def found(event_log: EventLog, ledger: dict[str, Any], accepted: set[UUID] | None = None) -> list[str]:
    """Check, with the one mailbox's address known."""
    return differences(event_log, accepted or {REPORT}, ledger, {OID: "user@contoso.example"})


async def test_a_true_story_has_no_differences(event_log: EventLog) -> None:
    """Claims and ledger agree."""
    assert found(event_log, ledger()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"submissions": []},
        {"submissions": [{"id": "graph-1"}, {"id": "graph-2"}]},
        {"tenant_blocks": []},
        {"tenant_blocks": [{"value": "bad@fabrikam.example"}] * 2},
        {"mailbox_blocks": []},
        {"mailbox_blocks": [{"mailbox": "other@contoso.example", "value": "bad@fabrikam.example"}]},
    ],
)
async def test_what_is_missing_or_too_much_in_the_ledger_is_found(event_log: EventLog, changes: dict[str, Any]) -> None:
    """Done twice is as wrong as not done."""
    assert found(event_log, ledger(**changes)) != []


async def test_a_report_without_case_and_one_in_two_cases_are_found(event_log: EventLog) -> None:
    """Each accepted report is in exactly one case."""
    lost = uuid4()
    assert found(event_log, ledger(), {REPORT, lost}) == [f"report {lost} is in 0 cases"]
    event_log.cases[uuid4()] = CaseStory(uuid4(), CaseStatus.DISMISSED, [REPORT])
    assert found(event_log, ledger()) == [f"report {REPORT} is in 2 cases"]


async def test_a_sender_that_was_lifted_and_blocked_again_has_two_entries(event_log: EventLog) -> None:
    """One block for each case that wanted it, and never two at the same time."""
    event_log.blocks[uuid4()] = applied("tenant", "bad@fabrikam.example", case_id=uuid4())
    entries = [{"value": "bad@fabrikam.example"}] * 2

    assert found(event_log, ledger(tenant_blocks=entries, removals=[{"value": "bad@fabrikam.example"}])) == []
    assert found(event_log, ledger(tenant_blocks=entries)) == ["tenant block bad@fabrikam.example stands 2 times"]


async def test_a_block_that_a_clean_verdict_met_half_way_may_have_had_an_entry(event_log: EventLog) -> None:
    """Whoever withdraws a block whose call was never answered removes the entry, if any, and tells no more."""
    withdrawn = applied("tenant", "good@fabrikam.example", case_id=uuid4()).applied
    assert withdrawn
    removed = BlockRemoved(tenant_id=TENANT, block=withdrawn.block, reason="verdict-clean", removed_at=NOW)
    event_log.blocks[uuid4()] = BlockStory(removed=removed)
    entries = [{"value": "bad@fabrikam.example"}, {"value": "good@fabrikam.example"}]

    assert found(event_log, ledger()) == []
    assert found(event_log, ledger(tenant_blocks=entries)) == []
    assert found(event_log, ledger(tenant_blocks=[*entries, entries[1]])) != []


async def test_a_report_of_an_expired_case_may_be_in_none_or_in_a_new_one(event_log: EventLog) -> None:
    """Reported again, it opens another case; in two that stand it must not be."""
    event_log.cases[CASE].expired = CaseExpired(
        tenant_id=TENANT, case_id=CASE, report_count=1, last_active_at=NOW, expired_at=NOW
    )
    assert found(event_log, ledger()) == []
    new, other = CaseStory(uuid4(), reports=[REPORT]), CaseStory(uuid4(), reports=[REPORT])
    event_log.cases[new.case_id] = new
    assert found(event_log, ledger()) == []
    event_log.cases[other.case_id] = other
    assert found(event_log, ledger()) == [f"report {REPORT} is in 2 cases"]
