"""A reporter hears what became of the report: the newest that is known, whatever order the news comes in."""

import base64
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid4

import pytest

from backstop_contracts import (
    Block,
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    CaseStatus,
    CaseUpdated,
    Conclusion,
    Event,
    VerdictReady,
)
from chassis.testing import deliver
from conftest import JUDGED
from reporter import handlers

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
Tell = Callable[..., Awaitable[None]]


@pytest.fixture
def tell(running: Any) -> Tell:
    """Hand events to reporter as Kafka would: each call is one batch of one topic."""

    async def handle(*events: Event) -> None:
        await deliver(handlers.router, running.db, *events)

    return handle


def case(
    tenant: UUID,
    case_id: UUID,
    change: Change,
    minute: int,
    *report_ids: UUID,
    status: CaseStatus | None = None,
) -> CaseUpdated:
    """Make the news that a case changed."""
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
    """Make the news that Microsoft judged."""
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


async def report(running: Any, headers: dict[str, str], raw: bytes, **said: Any) -> UUID:
    """File a report; return its id."""
    body = {"mail": base64.b64encode(raw).decode(), "reported_as": "phishing", **said}
    async with running.client.post("/v1/reports", json=body, headers=headers) as answer:
        assert answer.status == 202
        return UUID((await answer.json())["report_id"])


async def ask(running: Any, headers: dict[str, str], report_id: UUID) -> dict[str, Any]:
    """Ask what became of a report."""
    async with running.client.get(f"/v1/reports/{report_id}", headers=headers) as answer:
        assert answer.status == 200
        state: dict[str, Any] = await answer.json()
        return state


async def test_a_new_report_is_received(running: Any, token: Any, make_mail: Any) -> None:
    """Before triage has seen it, the report itself is all there is to tell."""
    headers = await token("Reporter", **ANN)
    report_id = await report(running, headers, make_mail(), folder="junk")
    state = await ask(running, headers, report_id)

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


async def test_the_story_is_told_as_it_goes_on(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """Triage, Microsoft, verdict: each step is told when it happens."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await report(running, headers, make_mail())
    told = []
    for news in (
        case(tenant, case_id, "opened", 1, report_id),
        case(tenant, case_id, "submitted", 2),
        verdict(tenant, case_id, Conclusion.THREAT, 3),
        case(tenant, case_id, "resolved", 4),
    ):
        await tell(news)
        state = await ask(running, headers, report_id)
        told.append((state["status"], state["conclusion"]))

    assert told == [("in-triage", None), ("submitted", None), ("verdict", "threat"), ("verdict", "threat")]
    assert "threat" in state["explanation"]


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
async def test_what_is_told_never_goes_backwards(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID, order: Sequence[int]
) -> None:
    """In whatever order the news arrives, and when all of it arrives again, the story only goes on."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await report(running, headers, make_mail())
    news = [
        case(tenant, case_id, "opened", 1, report_id),
        case(tenant, case_id, "submitted", 2),
        verdict(tenant, case_id, Conclusion.CLEAN, 3),
        case(tenant, case_id, "resolved", 4),
    ]
    told = []
    for number in (*order, *order):
        await tell(news[number])
        told.append(ORDER.index((await ask(running, headers, report_id))["status"]))

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
async def test_old_news_of_a_case_changes_nothing(
    running: Any,
    token: Any,
    make_mail: Any,
    tell: Tell,
    tenant: UUID,
    changes: Sequence[tuple[Change, int]],
    told: str,
) -> None:
    """News that comes again, behind later news of the same case, does not undo it."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await report(running, headers, make_mail())
    for change, minute in changes:
        await tell(case(tenant, case_id, change, minute, report_id))
    assert (await ask(running, headers, report_id))["status"] == told


async def test_an_old_verdict_changes_nothing(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """The verdict of an earlier submission that comes late does not replace the later one."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await report(running, headers, make_mail())
    await tell(case(tenant, case_id, "opened", 1, report_id))
    await tell(verdict(tenant, case_id, Conclusion.CLEAN, 4))
    await tell(verdict(tenant, case_id, Conclusion.UNKNOWN, 2))
    assert (await ask(running, headers, report_id))["conclusion"] == "clean"


async def test_news_of_one_batch_is_as_good_as_one_by_one(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """Several changes of one case, and several cases, in one batch: the latest of each counts."""
    headers, first, second = await token("Reporter", **ANN), uuid4(), uuid4()
    reports = [await report(running, headers, make_mail()) for _ in range(3)]
    await tell(
        case(tenant, first, "opened", 1, reports[0]),
        case(tenant, second, "opened", 1, reports[1]),
        case(tenant, first, "submitted", 3),
        case(tenant, first, "joined", 2, reports[2], status=CaseStatus.OPEN),
        case(tenant, second, "dismissed", 4),
    )
    states = [await ask(running, headers, report_id) for report_id in reports]
    assert [state["status"] for state in states] == ["submitted", "dismissed", "submitted"]

    await tell(verdict(tenant, first, Conclusion.SIMULATION, 6), verdict(tenant, first, Conclusion.UNKNOWN, 5))
    states = [await ask(running, headers, report_id) for report_id in reports]
    assert [state["conclusion"] for state in states] == ["simulation", None, "simulation"]


async def test_a_report_that_joins_a_resolved_case_hears_its_verdict(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """The verdict of a mail is told to those who report it later, too."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    await tell(case(tenant, case_id, "opened", 1, uuid4()))
    await tell(verdict(tenant, case_id, Conclusion.THREAT, 2))
    await tell(case(tenant, case_id, "resolved", 3))
    report_id = await report(running, headers, make_mail())
    await tell(case(tenant, case_id, "joined", 4, report_id, status=CaseStatus.RESOLVED))

    state = await ask(running, headers, report_id)
    assert (state["status"], state["conclusion"]) == ("verdict", "threat")


async def test_an_override_is_told_until_a_later_verdict_says_more(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """What Microsoft says of a setting is no word about the mail."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await report(running, headers, make_mail())
    await tell(case(tenant, case_id, "opened", 1, report_id))
    await tell(verdict(tenant, case_id, Conclusion.UNKNOWN, 2, "allowed"))
    await tell(case(tenant, case_id, "resolved", 3))
    state = await ask(running, headers, report_id)
    assert (state["status"], state["conclusion"]) == ("verdict", "unknown")
    assert "let this mail in" in state["explanation"]

    await tell(verdict(tenant, case_id, Conclusion.THREAT, 4))
    assert "confirms" in (await ask(running, headers, report_id))["explanation"]


async def test_a_case_without_verdict_goes_on(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """When Microsoft could not say, that is told until triage submits it again or dismisses it."""
    headers, case_id = await token("Reporter", **ANN), uuid4()
    report_id = await report(running, headers, make_mail())
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
        await tell(news)
        state = await ask(running, headers, report_id)
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


async def test_news_about_others_reports_changes_nothing(
    running: Any, token: Any, make_mail: Any, tell: Tell, tenant: UUID
) -> None:
    """Cases and blocks that came about elsewhere do no harm."""
    headers = await token("Reporter", **ANN)
    report_id = await report(running, headers, make_mail())
    elsewhere = Block(block_id=uuid4(), scope="tenant", kind="domain", value="fabrikam.example", case_id=uuid4())
    await tell(case(tenant, uuid4(), "opened", 1, uuid4()))
    await tell(verdict(tenant, uuid4(), Conclusion.THREAT, 1))
    await tell(BlockApplied(tenant_id=tenant, block=elsewhere, already_present=False, applied_at=START))
    assert (await ask(running, headers, report_id))["status"] == "received"


APPLIED, FAILED, REMOVED = "applied", "failed", "removed"


@pytest.mark.parametrize(
    ("news", "status", "reason"),
    [
        ((), "requested", None),
        ((APPLIED,), "applied", None),
        ((FAILED,), "failed", "own-domain"),
        ((APPLIED, REMOVED), "removed", "verdict-clean"),
        ((REMOVED, APPLIED), "removed", "verdict-clean"),
        ((APPLIED, REMOVED, APPLIED, REMOVED), "removed", "verdict-clean"),
        ((FAILED, FAILED), "failed", "own-domain"),
    ],
)
async def test_the_end_of_a_block_is_told(
    running: Any,
    token: Any,
    make_mail: Any,
    tell: Tell,
    tenant: UUID,
    news: Sequence[str],
    status: str,
    reason: str | None,
) -> None:
    """Applied, failed or removed, in any order: the last thing that can have happened is told, with its reason."""
    headers = await token("Reporter", **ANN)
    report_id = await report(running, headers, make_mail(), block_sender=True)
    block = Block(
        block_id=await running.db.pool.fetchval("SELECT block_id FROM blocks"),
        scope="mailbox",
        kind="sender",
        value="mallory@fabrikam.example",
        mailbox=ANN["oid"],
        report_id=report_id,
    )
    events = {
        APPLIED: BlockApplied(tenant_id=tenant, block=block, already_present=True, applied_at=START),
        FAILED: BlockFailed(tenant_id=tenant, block=block, reason="own-domain", detail="", failed_at=START),
        REMOVED: BlockRemoved(tenant_id=tenant, block=block, reason="verdict-clean", removed_at=START),
    }
    for one in news:
        await tell(events[one])

    told = (await ask(running, headers, report_id))["block"]
    assert (told["status"], told["reason"]) == (status, reason)
    assert (told["block_id"], told["value"]) == (str(block.block_id), "mallory@fabrikam.example")
    assert told["explanation"].endswith(".")


@pytest.mark.parametrize(
    ("roles", "who", "status"),
    [
        (["Reporter"], ANN, 200),
        (["SecurityReader"], {}, 200),
        (["SecurityAdministrator"], {}, 200),
        (["Reporter"], {}, 404),
        (["Reporter"], {"preferred_username": "ann@contoso.example"}, 404),
        (["Reporter"], {"app": True}, 404),
        ([], ANN, 403),
        (["Unheard.Of"], ANN, 403),
    ],
)
async def test_a_report_is_told_to_its_reporter_and_to_security_staff(
    running: Any, token: Any, make_mail: Any, roles: list[str], who: dict[str, Any], status: int
) -> None:
    """To anybody else the report does not exist, whatever name they go by."""
    report_id = await report(running, await token("Reporter", **ANN), make_mail())
    async with running.client.get(f"/v1/reports/{report_id}", headers=await token(*roles, **who)) as answer:
        assert answer.status == status


async def test_a_report_of_another_tenant_does_not_exist(
    running: Any, token: Any, make_mail: Any, other_tenant: UUID
) -> None:
    """Neither security staff nor an object id of another tenant can see it."""
    report_id = await report(running, await token("Reporter", **ANN), make_mail())
    for roles, who in ((["SecurityAdministrator"], {}), (["Reporter"], ANN)):
        headers = await token(*roles, tenant=str(other_tenant), **who)
        async with running.client.get(f"/v1/reports/{report_id}", headers=headers) as answer:
            assert answer.status == 404


async def test_whoever_files_the_same_report_hears_of_it(running: Any, token: Any, make_mail: Any) -> None:
    """When an add-in was first and the person files it again, both can ask."""
    raw, add_in, ann = make_mail(), await token("Reporter", app=True), await token("Reporter", **ANN)
    report_id = await report(running, add_in, raw, reporter="ann@contoso.example")
    for _ in range(2):
        assert await report(running, ann, raw) == report_id

    assert await ask(running, add_in, report_id) == await ask(running, ann, report_id)
    assert len(await running.db.pool.fetchval("SELECT filed_by FROM reports")) == 2


@pytest.mark.parametrize(("path", "status"), [("99999999-9999-4999-8999-999999999999", 404), ("17", 422)])
async def test_what_is_no_report_is_refused(running: Any, token: Any, path: str, status: int) -> None:
    """An unknown id is 404, something that is no id 422."""
    async with running.client.get(f"/v1/reports/{path}", headers=await token("SecurityReader")) as answer:
        assert (answer.status, answer.content_type) == (status, "application/problem+json")
