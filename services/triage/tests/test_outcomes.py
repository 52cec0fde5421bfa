"""Cases record what became of submissions, blocks and held messages."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from backstop_contracts import (
    Actor,
    Block,
    BlockApplied,
    BlockFailed,
    BlockRequested,
    Conclusion,
    ReleaseDecided,
    SubmissionCreated,
    SubmissionFailed,
    SubmissionRequested,
)
from chassis.postgres import Database


@pytest.mark.parametrize(
    ("conclusion", "override", "status", "change"),
    [
        (Conclusion.THREAT, None, "resolved", "resolved"),
        (Conclusion.CLEAN, None, "resolved", "resolved"),
        (Conclusion.SIMULATION, None, "resolved", "resolved"),
        (Conclusion.UNKNOWN, None, "open", "reopened"),
        (Conclusion.UNKNOWN, "allowed", "resolved", "resolved"),
        (Conclusion.UNKNOWN, "blocked", "resolved", "resolved"),
        (Conclusion.UNKNOWN, "a word of a later version", "open", "reopened"),
    ],
)
async def test_a_verdict_ends_the_submission(
    world: Any,
    tenant_id: UUID,
    client: Any,
    token: Any,
    conclusion: Conclusion,
    override: str | None,
    status: str,
    change: str,
) -> None:
    """A verdict on the message or on a setting resolves the case; one that says nothing reopens it."""
    request = await world.submitted(tenant_id)
    for _ in range(2):
        await world.consume(world.verdict(request, conclusion, override))
    _, case = await client("GET", f"/v1/cases/{request.case_id}", token("SecurityReader"))

    assert [event.change for event in await world.emitted()] == [change]
    assert (case["status"], case["conclusion"]) == (status, conclusion)
    assert [entry["kind"] for entry in case["timeline"]].count("verdict.ready") == 1
    assert case["verdict"]["causes"][0]["rule"] == "R17"


async def test_outcomes_that_arrive_in_any_order_leave_the_same_case(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Topics are not ordered against each other, but each event has its time."""
    request = await world.submitted(tenant_id)
    created = SubmissionCreated(
        **request.model_dump(include={"tenant_id", "submission_id", "case_id", "category", "recipient", "message"}),
        graph_id="g",
        adopted=False,
        created_at=datetime.now(UTC),
    )
    early = datetime.now(UTC)
    await world.consume(world.verdict(request, Conclusion.THREAT))
    await world.consume(created, time=early)
    _, case = await client("GET", f"/v1/cases/{request.case_id}", token("SecurityReader"))

    assert case["status"] == "resolved"
    assert [entry["kind"] for entry in case["timeline"]][-2:] == ["submission.created", "verdict.ready"]


async def test_a_failed_submission_reopens_the_case_which_can_be_submitted_again(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """The second submission has its own id; a late outcome of the first changes nothing."""
    first = await world.submitted(tenant_id)
    failed = SubmissionFailed(
        tenant_id=tenant_id,
        submission_id=first.submission_id,
        case_id=first.case_id,
        reason="refused",
        detail="the mail is too large",
        failed_at=datetime.now(UTC),
    )
    await world.consume(failed)
    assert [event.change for event in await world.emitted()] == ["reopened"]
    decision = {"action": "submit", "category": "phishing"}
    assert (
        await client("POST", f"/v1/cases/{first.case_id}/decisions", token("SecurityAdministrator"), json=decision)
    )[0] == 202
    (second,) = world.of(await world.emitted(), SubmissionRequested)
    await world.consume(world.verdict(first, Conclusion.CLEAN))
    _, case = await client("GET", f"/v1/cases/{first.case_id}", token("SecurityReader"))

    assert second.submission_id != first.submission_id
    assert (case["status"], await world.emitted()) == ("submitted", [])


async def test_a_failed_block_is_shown_in_the_case_and_can_be_requested_again(
    world: Any, tenant_id: UUID, client: Any, token: Any
) -> None:
    """Blocks for a single mailbox are not triage's concern."""
    admin, case_id = token("SecurityAdministrator"), await world.open_case(tenant_id)
    path = f"/v1/cases/{case_id}/decisions"
    await client("POST", path, admin, json={"action": "block", "blocks": [{}]})
    (wanted,) = world.of(await world.emitted(), BlockRequested)
    failed = BlockFailed(
        tenant_id=tenant_id, block=wanted.block, reason="limit", detail="the list is full", failed_at=datetime.now(UTC)
    )
    own = Block(block_id=uuid4(), scope="mailbox", kind="sender", value="a@b.example", mailbox="m", report_id=uuid4())
    applied = BlockApplied(tenant_id=tenant_id, block=own, already_present=False, applied_at=datetime.now(UTC))
    await world.consume(failed)
    await world.consume(applied)
    status, case = await client("POST", path, admin, json={"action": "block", "blocks": [{}]})
    (again,) = world.of(await world.emitted(), BlockRequested)

    assert status == 202
    assert again.block.block_id != wanted.block.block_id
    assert [block["status"] for block in case["blocks"]] == ["failed", "requested"]
    assert "the list is full" in str(case["timeline"])


ADMIN = Actor(kind="user", id="7a6b5c4d-3e2f-4a1b-9c8d-7e6f5a4b3c2d", name="admin@contoso.example")


async def test_a_release_decision_is_added_to_the_timeline_of_the_messages_case(
    world: Any, db: Database, tenant_id: UUID, client: Any, token: Any
) -> None:
    """It is added once; if the message has no case, nothing is recorded."""
    case_id = await world.open_case(tenant_id)
    (message_id,) = await db.pool.fetchrow("SELECT message->>'internet_message_id' FROM cases")

    def decided(internet_message_id: str) -> ReleaseDecided:
        return ReleaseDecided(
            tenant_id=tenant_id,
            decision_id=uuid5(tenant_id, internet_message_id),
            message_id=UUID(int=2),
            network_message_id="n",
            internet_message_id=internet_message_id,
            identity="n\\r",
            recipient="user@contoso.example",
            decision="release",
            succeeded=True,
            decided_by=ADMIN,
            decided_at=datetime.now(UTC),
        )

    for _ in range(2):
        await world.consume(decided(message_id), decided("<other@fabrikam.example>"))
    _, case = await client("GET", f"/v1/cases/{case_id}", token("SecurityReader"))
    (entry,) = [entry for entry in case["timeline"] if entry["kind"] == "release.decided"]
    assert (entry["detail"]["decision"], entry["detail"]["succeeded"]) == ("release", True)
