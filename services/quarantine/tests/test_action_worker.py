"""Actions are run against the simulator, whose ledger shows what really happened in Exchange."""

from datetime import timedelta
from typing import Any

import pytest

from backstop_contracts import ReleaseDecided
from quarantine import store
from quarantine.rules import ActionKind

ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
RELEASE = "exchange.Release-QuarantineMessage"


async def test_a_release_takes_effect_once_for_its_recipient(world: Any, quarantined: Any) -> None:
    """The event says who decided and why; the list shows the new status at once."""
    action_id = await world.request(ActionKind.RELEASE)
    assert await world.request(ActionKind.RELEASE) == action_id
    (event,) = await world.run_actions()
    assert await world.request(ActionKind.RELEASE) == action_id
    assert await world.run_actions() == []

    assert world.done() == [("release", ANNA)]
    assert isinstance(event, ReleaseDecided)
    assert (event.decision_id, event.decision) == (action_id, "release")
    assert (event.succeeded, event.already_done) == (True, False)
    assert (event.recipient, event.reason, event.decided_by.name) == (ANNA, "known", "admin@contoso.example")
    assert event.network_message_id == quarantined["network_message_id"]
    assert await world.statuses() == {("Parcel", ANNA): "released", ("Parcel", BEN): "not-released"}


async def test_a_pending_request_is_approved_by_a_release_or_denied(world: Any, quarantined: Any) -> None:
    """Each recipient's request is decided on its own."""
    await world.control("POST", f"/quarantine/{quarantined['network_message_id']}/requests", {})
    await world.sync()
    await world.request(ActionKind.RELEASE)
    await world.request(ActionKind.DENY, recipient=BEN)
    events = await world.run_actions()

    assert {(event.recipient, event.decision, event.succeeded) for event in events} == {
        (ANNA, "release", True),
        (BEN, "deny", True),
    }
    assert await world.statuses() == {("Parcel", ANNA): "approved", ("Parcel", BEN): "denied"}
    assert sorted(world.done()) == [("deny", BEN), ("release", ANNA)]


@pytest.mark.parametrize("kind", ["drop_after_effect", "drop_before_effect", "error", "throttle", "timeout"])
@pytest.mark.usefixtures("quarantined")
async def test_a_release_whose_answer_was_lost_is_looked_for_before_it_is_repeated(world: Any, kind: str) -> None:
    """The message is released once, whatever happened to the first answer."""
    more = {"timeout": {"seconds": 2}, "throttle": {"retry_after": 1}}.get(kind, {})
    world.fault(RELEASE, kind, **more)
    await world.request(ActionKind.RELEASE)
    assert await world.action_worker(timeout=0.5 if kind == "timeout" else 10).run_due() == 1
    assert await world.emitted() == []
    await world.make_actions_due()
    (event,) = await world.run_actions()

    assert (event.succeeded, event.already_done) == (True, False)
    assert world.done() == [("release", ANNA)]
    assert world.calls(RELEASE) == (1 if kind in ("drop_after_effect", "timeout") else 2)


@pytest.mark.usefixtures("quarantined")
async def test_a_crash_between_call_and_record_releases_once(world: Any) -> None:
    """Even while Exchange does not show the release yet."""
    action_id = await world.request(ActionKind.RELEASE)
    world.state.settings.quarantine_lag_seconds = 600
    async with world.db.transaction() as tx:
        ((_, message),) = await store.claim_actions(tx, timedelta(0), 5)
    await world.exchange().invoke(
        world.tenant_id, "Release-QuarantineMessage", Identity=message.identity, ActionType="Release", User=[ANNA]
    )
    # Killed here.
    assert await world.run_actions() == []
    assert (await world.action(action_id)).state == "pending"
    world.state.clock.advance(601)
    await world.make_actions_due()
    (event,) = await world.run_actions()

    assert (event.succeeded, event.already_done) == (True, False)
    assert world.done() == [("release", ANNA)]


async def test_a_message_that_was_released_in_defender_counts_as_released(world: Any, quarantined: Any) -> None:
    """`already_done`: the release was not synced yet."""
    await world.control("POST", f"/quarantine/{quarantined['network_message_id']}/releases", {})
    await world.request(ActionKind.RELEASE)
    (event,) = await world.run_actions()
    assert (event.succeeded, event.already_done) == (True, True)
    assert world.done() == []


@pytest.mark.usefixtures("quarantined")
async def test_a_refused_action_fails_with_microsofts_reason_and_can_be_requested_again(world: Any) -> None:
    """The second request is a new action."""
    world.fault(RELEASE, "refuse", message="The recipient is on hold.")
    first = await world.request(ActionKind.RELEASE)
    (event,) = await world.run_actions()
    assert (event.succeeded, event.detail) == (False, "The recipient is on hold.")
    assert await world.statuses() == {("Parcel", ANNA): "not-released", ("Parcel", BEN): "not-released"}

    second = await world.request(ActionKind.RELEASE)
    (again,) = await world.run_actions()
    assert second != first
    assert again.succeeded
    assert world.done() == [("release", ANNA)]


@pytest.mark.usefixtures("quarantined")
async def test_a_message_that_left_the_quarantine_cannot_be_released(world: Any) -> None:
    """The action fails at once instead of being retried for an hour."""
    world.tenant.quarantine = type(world.tenant.quarantine)()
    action_id = await world.request(ActionKind.RELEASE)
    (event,) = await world.run_actions()
    action = await world.action(action_id)
    assert not event.succeeded
    assert (action.state, action.failure) == ("failed", "gone")
    assert "couldn't be found" in (action.detail or "")


@pytest.mark.usefixtures("quarantined")
async def test_an_action_is_given_up_when_exchange_is_unavailable_for_an_hour(world: Any) -> None:
    """The event has the reason."""
    world.fault(RELEASE, "error", times=None)
    await world.request(ActionKind.RELEASE)
    assert await world.run_actions() == []
    await world.db.pool.execute("UPDATE actions SET requested_at = now() - interval '61 minutes', due_at = now()")
    (event,) = await world.run_actions()
    assert not event.succeeded
    assert event.detail == "A fault was ordered: error."


@pytest.mark.usefixtures("quarantined")
@pytest.mark.parametrize("kind", [ActionKind.DENY, ActionKind.REQUEST, ActionKind.RELEASE])
async def test_every_action_names_its_recipient(world: Any, kind: ActionKind) -> None:
    """Exchange refuses an action without a recipient."""
    await world.set_policy(4, "DefaultFullAccessPolicy")
    await world.sync()
    await world.request(kind, recipient=BEN)
    (event,) = await world.run_actions()
    assert (event.decision, event.succeeded, event.detail) == (kind, True, None)
    assert world.done() == [(kind, BEN)]
