"""Blocks for a mailbox become entries in its Blocked Senders list."""

from typing import Any

import pytest

GET_JUNK = "exchange.Get-MailboxJunkEmailConfiguration"
SET_JUNK = "exchange.Set-MailboxJunkEmailConfiguration"
SENDER = "bad@fabrikam.example"


async def test_a_user_blocks_a_sender_for_their_own_mailbox(world: Any) -> None:
    """The entry joins those in Outlook's Blocked Senders; other mailboxes and the tenant are unchanged."""
    mailbox = world.tenant.add_mailbox("user@contoso.example")
    mailbox.blocked = ["other@fabrikam.example"]
    request = world.request(mailbox="user@contoso.example")
    await world.consume(request)
    (applied,) = await world.settle()

    assert (applied.block, applied.already_present) == (request.block, False)
    assert mailbox.blocked == ["other@fabrikam.example", SENDER]
    assert [entry["value"] for entry in world.ledger("mailbox_blocks")] == [SENDER]
    assert world.sender_entries() == {}


async def test_a_sender_that_the_mailbox_already_blocks_is_left_alone(world: Any) -> None:
    """Nothing is written."""
    world.tenant.add_mailbox("user@contoso.example").blocked = [SENDER]
    await world.consume(world.request(mailbox="user@contoso.example"))
    (applied,) = await world.settle()

    assert (applied.already_present, world.calls(SET_JUNK)) == (True, 0)


async def test_a_full_mailbox_list_fails_with_reason_limit(world: Any) -> None:
    """Exchange drops the entry without an error."""
    world.state.settings.blocked_senders_limit = 0
    await world.consume(world.request(mailbox="user@contoso.example"))
    (failed,) = await world.settle()
    assert failed.reason == "limit"


async def test_a_block_for_a_missing_mailbox_fails_with_exchanges_message(world: Any) -> None:
    """It may have been deleted since the report."""
    await world.consume(world.request(mailbox="nobody@elsewhere.example"))
    (failed,) = await world.settle()
    assert (failed.reason, "nobody@elsewhere.example" in failed.detail) == ("refused", True)


async def test_a_mailbox_block_whose_answer_was_lost_is_adopted(world: Any) -> None:
    """The list has no notes, but Backstop has just tried to add the entry."""
    world.fault(SET_JUNK, "drop_after_effect")
    await world.consume(world.request(mailbox="user@contoso.example"))
    assert await world.settle() == []
    await world.pass_time()
    (applied,) = await world.settle()

    assert (applied.already_present, world.calls(SET_JUNK)) == (False, 1)
    assert len(world.ledger("mailbox_blocks")) == 1


@pytest.mark.parametrize(
    ("kind", "more"),
    [("error", {"status": 503}), ("throttle", {"retry_after": 7}), ("drop_before_effect", {}), ("refuse", {})],
    ids=["server error", "throttled", "dropped", "refused"],
)
async def test_a_mailbox_block_that_could_not_be_verified_counts_as_ours(
    world: Any, monkeypatch: pytest.MonkeyPatch, kind: str, more: dict[str, Any]
) -> None:
    """Exchange accepted it, so the entry that the next attempt finds is ours."""
    count_request = world.state.ledger.count_request

    def and_fail_the_next_read(route: str) -> None:
        count_request(route)
        if route == SET_JUNK:
            world.fault(GET_JUNK, kind, **more)

    monkeypatch.setattr(world.state.ledger, "count_request", and_fail_the_next_read)
    await world.consume(world.request(mailbox="user@contoso.example"))
    assert await world.settle() == []
    await world.pass_time()
    (applied,) = await world.settle()

    assert (applied.already_present, world.calls(SET_JUNK)) == (False, 1)
    assert len(world.ledger("mailbox_blocks")) == 1
