"""Syncs of the quarantine, with a real PostgreSQL, against the simulator."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from quarantine import store
from quarantine.message_source import find_row

GET = "exchange.Get-QuarantineMessage"
ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
DAY = timedelta(days=1)


async def test_every_message_is_synced_once_for_each_recipient(world: Any) -> None:
    """Paging loses and repeats nothing."""
    for number in range(60):
        await world.quarantine(world.eml(f"Parcel {number}", to=f"{ANNA}, {BEN}"))

    await world.sync(page_size=25)
    assert len(await world.messages()) == 120
    await world.sync(page_size=25)
    messages = await world.messages()

    assert set(messages) == {(f"Parcel {number}", who) for number in range(60) for who in (ANNA, BEN)}
    row = messages["Parcel 7", ANNA]
    assert (row["sender"], row["sender_domain"]) == ("parcels@fabrikam.example", "fabrikam.example")
    assert (row["status"], row["quarantine_type"], row["quarantine_policy"]) == (
        "not-released",
        "Spam",
        "DefaultFullAccessPolicy",
    )
    assert row["expires_at"] - row["received_at"] == 15 * DAY


async def test_the_first_sync_finds_messages_received_days_ago(world: Any) -> None:
    """It reads as far back as the quarantine reaches."""
    now = datetime.now(UTC)
    for days in (0, 1, 2, 13):
        await world.quarantine(world.eml(f"Day {days}"), received=(now - days * DAY).isoformat())
    await world.sync()
    assert {subject for subject, _ in await world.messages()} == {"Day 0", "Day 1", "Day 2", "Day 13"}


async def test_an_action_in_defender_shows_after_one_sync(world: Any) -> None:
    """Requests, releases and denials of older messages are found without reading all days again."""
    old = (datetime.now(UTC) - 5 * DAY).isoformat()
    made = {
        name: await world.quarantine(world.eml(name), received=old)
        for name in ("asked", "let go", "kept", "left alone")
    }
    await world.sync()
    for name, route in (("asked", "requests"), ("kept", "denials"), ("let go", "releases")):
        await world.control("POST", f"/quarantine/{made[name]['network_message_id']}/{route}", {})

    await world.sync()

    assert await world.statuses() == {
        ("asked", ANNA): "requested",
        ("kept", ANNA): "denied",
        ("let go", ANNA): "released",
        ("left alone", ANNA): "not-released",
    }


async def test_a_shared_row_is_read_by_itself_to_learn_who_has_the_message(world: Any) -> None:
    """In a list, Exchange has one status for all of its recipients."""
    made = await world.quarantine(world.eml("shared", to=f"{ANNA}, {BEN}"), one_row=True)
    await world.sync()
    await world.control("POST", f"/quarantine/{made['network_message_id']}/releases", {"recipients": [BEN]})
    await world.sync()
    assert await world.statuses() == {("shared", ANNA): "not-released", ("shared", BEN): "released"}


async def test_a_message_whose_time_is_over_expires(world: Any) -> None:
    """Exchange no longer lists it."""
    await world.quarantine(world.eml("old"))
    await world.sync()
    await world.db.pool.execute("UPDATE messages SET expires_at = now()")
    made = world.tenant.quarantine.all()[0]
    made.expires = datetime.now(UTC) - timedelta(seconds=1)
    await world.sync()
    assert await world.statuses() == {("old", ANNA): "expired"}


async def test_a_message_that_two_sweeps_do_not_find_is_deleted(world: Any) -> None:
    """A single sweep may have missed it. Other messages stay."""
    made = await world.quarantine(world.eml("deleted"))
    await world.quarantine(world.eml("kept"))
    await world.sync()
    await world.control("POST", f"/quarantine/{made['network_message_id']}/deletions", {})
    await world.sync(sweep_every=timedelta(0))
    assert set((await world.statuses()).values()) == {"not-released"}
    await world.sync(sweep_every=timedelta(0))
    assert await world.statuses() == {("deleted", ANNA): "deleted", ("kept", ANNA): "not-released"}


async def test_a_refusal_that_is_not_json_postpones_the_sync(world: Any) -> None:
    """403 with NUL bytes: admins see the reason, synced messages stay, and a later sync succeeds."""
    await world.quarantine(world.eml("first"))
    await world.sync()
    await world.quarantine(world.eml("second"))
    app = world.tenant.settings.apps[0]
    role, app.exchange_role = app.exchange_role, False
    await world.sync()

    state = await store.find_sync_state(world.db.pool, world.tenant_id)
    assert state is not None
    assert "403" in state["warning"]
    assert "Exchange.ManageAsApp" in state["warning"]
    assert set(await world.statuses()) == {("first", ANNA)}

    app.exchange_role = role
    await world.sync()
    state = await store.find_sync_state(world.db.pool, world.tenant_id)
    assert state is not None
    assert state["warning"] is None
    assert set(await world.statuses()) == {("first", ANNA), ("second", ANNA)}


async def test_policies_that_cannot_be_read_are_a_warning_for_admins_and_in_the_log(world: Any) -> None:
    """Otherwise nobody would know why users get no digests. The warning ends once the policies can be read again."""
    world.state.settings.quarantine_permissions = "neither"
    await world.set_policy(4, "Ours")
    with capture_logs() as logs:
        await world.sync()
    state = await store.find_sync_state(world.db.pool, world.tenant_id)
    assert state["succeeded_at"]
    assert "Ours" in state["warning"]
    assert [entry["log_level"] for entry in logs if "Ours" in str(entry.get("warning"))] == ["warning"]
    assert await world.db.pool.fetch("SELECT FROM policies") == []

    for shape in ("number", "string"):
        world.state.settings.quarantine_permissions = shape
        await world.sync()
        assert (await store.find_sync_state(world.db.pool, world.tenant_id))["warning"] is None
        assert await world.db.pool.fetchval("SELECT permissions FROM policies") == 4


async def test_a_new_quarantine_type_is_synced(world: Any) -> None:
    """It decides what the recipient may do."""
    await world.quarantine()
    await world.sync()
    (mail,) = world.tenant.quarantine.all()
    mail.columns |= {"QuarantineTypes": "HighConfPhish", "Type": "High Confidence Phish"}
    await world.sync()
    assert {row["quarantine_type"] for row in (await world.messages()).values()} == {"HighConfPhish"}


async def test_two_replicas_never_sync_the_same_tenant_at_once(world: Any) -> None:
    """The second one finds no tenant due; one that lost its lease writes nothing more."""
    await world.quarantine(world.eml("parcel"))
    world.fault("exchange.Get-QuarantinePolicy", "timeout", seconds=600)
    slow = asyncio.create_task(world.sync_worker().sync_due())
    while not world.calls("exchange.Get-QuarantinePolicy"):
        await asyncio.sleep(0.01)
    assert await world.sync_worker().sync_due() == 0

    # As if the first one had been silent for longer than its lease.
    await world.db.pool.execute("UPDATE syncs SET due_at = now(), lease_number = lease_number + 1")
    world.state.faults.release()
    await slow
    assert await world.messages() == {}
    await world.sync()
    assert set(await world.messages()) == {("parcel", ANNA)}


async def test_the_effect_of_an_action_is_kept_until_exchange_shows_it(world: Any) -> None:
    """Exchange may list the old status for a while."""
    await world.quarantine(world.eml("ours"))
    await world.sync()
    await world.db.pool.execute("UPDATE messages SET status = 'released', acted_at = now()")
    await world.sync()
    assert await world.statuses() == {("ours", ANNA): "released"}
    await world.db.pool.execute("UPDATE messages SET acted_at = now() - $1::interval", store.STATUS_LAG)
    await world.sync()
    assert await world.statuses() == {("ours", ANNA): "not-released"}


async def test_a_missing_message_is_not_taken_for_another_one(world: Any) -> None:
    """For an unknown Identity, Exchange returns the whole quarantine, truncated at a thousand rows."""
    rows = [{"Identity": f"{UUID(int=number)}\\{UUID(int=1)}"} for number in range(1, 1202)]
    await world.control("PATCH", "", {"cmdlets": {"Get-QuarantineMessage": rows}})
    assert await find_row(world.exchange(), world.tenant_id, "none\\none") is None
    with pytest.raises(ValueError, match="whole quarantine"):
        await find_row(world.exchange(), world.tenant_id, "")


async def test_only_configured_tenants_are_synced(world: Any) -> None:
    """A tenant that was removed from the settings is left alone."""
    await world.sync()
    await world.db.pool.execute("INSERT INTO syncs (tenant_id) VALUES ($1)", UUID(int=1))
    await world.db.pool.execute("UPDATE syncs SET due_at = now()")
    assert await world.sync_worker().sync_due() == 1
