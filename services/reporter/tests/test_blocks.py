"""Reporters block the sender for their own mailbox, and see what became of the block."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from backstop_contracts import Block, BlockApplied, BlockFailed, BlockRemoved

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "Ann@contoso.example"}
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


async def test_a_repeated_report_can_still_request_the_block(running: Any, token: Any, make_mail: Any) -> None:
    """Only the block is published then."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    _, first = await running.send(headers, raw)
    _, second = await running.send(headers, raw, block_sender=True)
    _, third = await running.send(headers, raw, block_sender=True)

    assert first["block"] is None
    assert (second["repeated"], second["block"]["status"]) == (True, "requested")
    assert third == second
    assert [topic for topic, *_ in await running.outbox()] == ["message-reported", "block-requested"]


async def test_a_sender_is_blocked_once_for_a_mailbox(running: Any, token: Any, make_mail: Any) -> None:
    """Two messages of one sender are two reports and one block; another mailbox has its own."""
    ann, bob = await token("Reporter", **ANN), await token("Reporter", oid=str(uuid4()))
    _, first = await running.send(ann, make_mail(), block_sender=True)
    _, second = await running.send(ann, make_mail(sender="MALLORY@FABRIKAM.EXAMPLE"), block_sender=True)
    _, third = await running.send(bob, make_mail(), block_sender=True)

    assert first["block"] == second["block"]
    assert third["block"]["block_id"] != first["block"]["block_id"]
    blocks = [event.block for topic, _, _, event in await running.outbox() if topic == "block-requested"]
    assert [str(block.report_id) for block in blocks] == [first["report_id"], third["report_id"]]


async def test_a_failed_block_can_be_requested_again(running: Any, token: Any, make_mail: Any, tenant: UUID) -> None:
    """Each request after a failure is a block of its own."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    await running.send(headers, raw, block_sender=True)
    *_, (_, _, _, requested) = await running.outbox()
    failed = BlockFailed(
        tenant_id=tenant, block=requested.block, reason="limit", detail="", failed_at=datetime.now(UTC)
    )
    await running.consume(failed)
    _, again = await running.send(headers, raw, block_sender=True)

    assert again["block"]["status"] == "requested"
    assert UUID(again["block"]["block_id"]) == uuid5(tenant, f"block:api:{ANN['oid']}:mallory@fabrikam.example:2")
    assert [topic for topic, *_ in await running.outbox()] == ["message-reported"] + ["block-requested"] * 2


@pytest.mark.parametrize("sender", [None, "", "undisclosed", f"{'x' * 400}@fabrikam.example"])
async def test_a_message_without_a_sender_is_reported_without_the_block(
    running: Any, token: Any, sender: str | None
) -> None:
    """The report is accepted, and the answer says that the block is not possible."""
    raw = (f"From: {sender}\r\n".encode() if sender is not None else b"") + b"Subject: Parcel\r\n\r\nhello\r\n"
    status, accepted = await running.send(await token("Reporter", **ANN), raw, block_sender=True)

    assert status == 202
    assert accepted["block"]["status"] == "not-possible"
    assert "names no sender" in accepted["block"]["explanation"]
    assert [topic for topic, *_ in await running.outbox()] == ["message-reported"]


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
async def test_the_status_shows_what_became_of_the_block(
    running: Any, token: Any, make_mail: Any, tenant: UUID, news: Sequence[str], status: str, reason: str | None
) -> None:
    """Applied, failed or removed: in any order of events, the final state is shown with its reason."""
    headers = await token("Reporter", **ANN)
    report_id = await running.report(headers, make_mail(), block_sender=True)
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
        await running.consume(events[one])

    told = (await running.read(headers, report_id))["block"]
    assert (told["status"], told["reason"]) == (status, reason)
    assert (told["block_id"], told["value"]) == (str(block.block_id), "mallory@fabrikam.example")
    assert told["explanation"].endswith(".")
