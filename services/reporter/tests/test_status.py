"""Reporters read the latest that is known of their report, whatever the order of events."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid4

import pytest

from backstop_contracts import Block, BlockApplied, CaseStatus, CaseUpdated, Conclusion, VerdictReady
from conftest import JUDGED

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "ann@contoso.example"}
ORDER = ["received", "in-triage", "submitted", "verdict"]


Change: TypeAlias = Literal["opened", "joined", "submitted", "reopened", "resolved", "dismissed"]


STATUS: dict[Change, CaseStatus] = {
    "opened": CaseStatus.OPEN,
    "submitted": CaseStatus.SUBMITTED,
    "reopened": CaseStatus.OPEN,
    "resolved": CaseStatus.RESOLVED,
    "dismissed": CaseStatus.DISMISSED,
}


def case(
    tenant: UUID,
    case_id: UUID,
    change: Change,
    minute: int,
    *report_ids: UUID,
    status: CaseStatus | None = None,
) -> CaseUpdated:
    """Make the event that a case has changed."""
    return CaseUpdated(
        tenant_id=tenant,
        case_id=case_id,
        change=change,
        status=status or STATUS[change],
        report_ids=report_ids,
        report_count=1,
        changed_at=START + timedelta(minutes=minute),
    )


def verdict(
    tenant: UUID, case_id: UUID, conclusion: Conclusion, minute: int, override: str | None = None
) -> VerdictReady:
    """Make the event that Microsoft has reached a verdict."""
    return VerdictReady(
        **JUDGED,
        tenant_id=tenant,
        submission_id=uuid4(),
        case_id=case_id,
        graph_id="1",
        conclusion=conclusion,
        override=override,
        verdict="phishing",
        settings_read=True,
        read_at=START + timedelta(minutes=minute),
    )


async def test_a_new_report_is_received(running: Any, token: Any, make_mail: Any) -> None:
    """Until triage has seen it, only the report itself is known."""
    headers = await token("Reporter", **ANN)
    report_id = await running.report(headers, make_mail(), folder="junk")
    state = await running.read(headers, report_id)

    assert datetime.fromisoformat(state.pop("reported_at")) <= datetime.now(UTC)
    assert state == {
        "report_id": str(report_id),
        "reporter": "ann@contoso.example",
        "reported_as": "phishing",
        "folder": "junk",
        "status": "received",
        "conclusion": None,
        "explanation": "Your report has arrived.",
        "block": None,
    }


async def test_the_status_follows_the_case_to_its_verdict(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Triage, submission and verdict each change it."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await running.report(headers, make_mail())
    told = []
    for news in (
        case(tenant, case_id, "opened", 1, report_id),
        case(tenant, case_id, "submitted", 2),
        verdict(tenant, case_id, Conclusion.THREAT, 3),
        case(tenant, case_id, "resolved", 4),
    ):
        await running.consume(news)
        state = await running.read(headers, report_id)
        told.append((state["status"], state["conclusion"]))

    assert told == [("in-triage", None), ("submitted", None), ("verdict", "threat"), ("verdict", "threat")]
    assert "threat" in state["explanation"]


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
async def test_the_status_never_goes_back(
    running: Any, token: Any, make_mail: Any, tenant: UUID, order: Sequence[int]
) -> None:
    """In whatever order the events arrive, and when all of them arrive twice."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await running.report(headers, make_mail())
    news = [
        case(tenant, case_id, "opened", 1, report_id),
        case(tenant, case_id, "submitted", 2),
        verdict(tenant, case_id, Conclusion.CLEAN, 3),
        case(tenant, case_id, "resolved", 4),
    ]
    told = []
    for number in (*order, *order):
        await running.consume(news[number])
        told.append(ORDER.index((await running.read(headers, report_id))["status"]))

    assert told == sorted(told)
    assert told[-1] == ORDER.index("verdict")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([("opened", 1), ("submitted", 2), ("opened", 1)], "submitted"),
        ([("opened", 1), ("submitted", 2), ("reopened", 3), ("submitted", 2)], "in-triage"),
        ([("opened", 1), ("dismissed", 2), ("opened", 1)], "dismissed"),
        ([("opened", 1), ("submitted", 2), ("submitted", 2)], "submitted"),
    ],
)
async def test_an_old_case_update_changes_nothing(
    running: Any, token: Any, make_mail: Any, tenant: UUID, changes: Sequence[tuple[Change, int]], told: str
) -> None:
    """An update that arrives again, after later ones of the same case, does not undo them."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await running.report(headers, make_mail())
    for change, minute in changes:
        await running.consume(case(tenant, case_id, change, minute, report_id))
    assert (await running.read(headers, report_id))["status"] == told


async def test_an_old_verdict_changes_nothing(running: Any, token: Any, make_mail: Any, tenant: UUID) -> None:
    """The late verdict of an earlier submission does not replace that of a later one."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await running.report(headers, make_mail())
    await running.consume(case(tenant, case_id, "opened", 1, report_id))
    await running.consume(verdict(tenant, case_id, Conclusion.CLEAN, 4))
    await running.consume(verdict(tenant, case_id, Conclusion.UNKNOWN, 2))
    assert (await running.read(headers, report_id))["conclusion"] == "clean"


async def test_a_batch_of_events_has_the_same_effect_as_single_events(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Several updates of one case, and several cases, in one batch: the latest of each counts."""
    headers, first, second = await token("Reporter", **ANN), uuid4(), uuid4()
    reports = [await running.report(headers, make_mail()) for _ in range(3)]
    await running.consume(
        case(tenant, first, "opened", 1, reports[0]),
        case(tenant, second, "opened", 1, reports[1]),
        case(tenant, first, "submitted", 3),
        case(tenant, first, "joined", 2, reports[2], status=CaseStatus.OPEN),
        case(tenant, second, "dismissed", 4),
    )
    states = [await running.read(headers, report_id) for report_id in reports]
    assert [state["status"] for state in states] == ["submitted", "dismissed", "submitted"]

    await running.consume(
        verdict(tenant, first, Conclusion.SIMULATION, 6), verdict(tenant, first, Conclusion.UNKNOWN, 5)
    )
    states = [await running.read(headers, report_id) for report_id in reports]
    assert [state["conclusion"] for state in states] == ["simulation", None, "simulation"]


async def test_a_report_that_joins_a_resolved_case_shows_its_verdict(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Even though the verdict is older than the report."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    await running.consume(case(tenant, case_id, "opened", 1, uuid4()))
    await running.consume(verdict(tenant, case_id, Conclusion.THREAT, 2))
    await running.consume(case(tenant, case_id, "resolved", 3))
    report_id = await running.report(headers, make_mail())
    await running.consume(case(tenant, case_id, "joined", 4, report_id, status=CaseStatus.RESOLVED))

    state = await running.read(headers, report_id)
    assert (state["status"], state["conclusion"]) == ("verdict", "threat")


async def test_an_override_is_shown_until_a_later_verdict(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """What Microsoft says about a setting is no verdict on the message."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await running.report(headers, make_mail())
    await running.consume(case(tenant, case_id, "opened", 1, report_id))
    await running.consume(verdict(tenant, case_id, Conclusion.UNKNOWN, 2, "allowed"))
    await running.consume(case(tenant, case_id, "resolved", 3))
    state = await running.read(headers, report_id)
    assert (state["status"], state["conclusion"]) == ("verdict", "unknown")
    assert "let this mail in" in state["explanation"]

    await running.consume(verdict(tenant, case_id, Conclusion.THREAT, 4))
    assert "confirms" in (await running.read(headers, report_id))["explanation"]


async def test_a_case_without_a_verdict_shows_what_triage_does_next(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """That Microsoft reached no verdict is shown until triage submits the message again or dismisses the case."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await running.report(headers, make_mail())
    told = []
    for news in (
        case(tenant, case_id, "opened", 1, report_id),
        case(tenant, case_id, "submitted", 2),
        verdict(tenant, case_id, Conclusion.UNKNOWN, 3),
        case(tenant, case_id, "reopened", 4),
        case(tenant, case_id, "submitted", 5),
        case(tenant, case_id, "reopened", 6),
        case(tenant, case_id, "dismissed", 7),
    ):
        await running.consume(news)
        state = await running.read(headers, report_id)
        told.append((state["status"], state["conclusion"]))

    assert told == [
        ("in-triage", None),
        ("submitted", None),
        ("submitted", None),
        ("verdict", "unknown"),
        ("submitted", None),
        ("verdict", "unknown"),
        ("dismissed", None),
    ]


async def test_events_about_other_reports_change_nothing(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Cases without a report here, and blocks that nobody requested here, do no harm."""
    headers = await token("Reporter", **ANN)
    report_id = await running.report(headers, make_mail())
    elsewhere = Block(block_id=uuid4(), scope="tenant", kind="domain", value="fabrikam.example", case_id=uuid4())
    await running.consume(case(tenant, uuid4(), "opened", 1, uuid4()))
    await running.consume(verdict(tenant, uuid4(), Conclusion.THREAT, 1))
    await running.consume(BlockApplied(tenant_id=tenant, block=elsewhere, already_present=False, applied_at=START))
    assert (await running.read(headers, report_id))["status"] == "received"
