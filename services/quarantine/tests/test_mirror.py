"""The mirror of the quarantine, on a real PostgreSQL, against the simulator."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from quarantine import store
from quarantine.mirror import forget, look

GET = "exchange.Get-QuarantineMessage"
ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
DAY = timedelta(days=1)


async def test_every_mail_is_mirrored_once_for_each_recipient_page_by_page(world: Any) -> None:
    """Pages smaller than the quarantine lose and repeat nothing."""
    for number in range(60):
        await world.quarantine(world.mail(f"Parcel {number}", to=f"{ANNA}, {BEN}"))

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


async def test_a_mail_that_was_received_days_ago_is_found_by_the_first_reading(world: Any) -> None:
    """Windows reach back as far as the quarantine does."""
    now = datetime.now(UTC)
    for days in (0, 1, 2, 13):
        await world.quarantine(world.mail(f"Day {days}"), received=(now - days * DAY).isoformat())
    await world.sync()
    assert {subject for subject, _ in await world.messages()} == {"Day 0", "Day 1", "Day 2", "Day 13"}


async def test_what_is_done_in_defender_shows_after_one_round(world: Any) -> None:
    """Requests, releases and denials of mails that were mirrored long ago are seen, without reading all days again."""
    old = (datetime.now(UTC) - 5 * DAY).isoformat()
    made = {
        name: await world.quarantine(world.mail(name), received=old)
        for name in ("asked", "let go", "kept", "left alone")
    }
    await world.sync()
    for name, route in (("asked", "requests"), ("kept", "denials"), ("let go", "releases")):
        await world.control("POST", f"/quarantine/{made[name]['network_message_id']}/{route}", {})

    await world.sync()

    assert await world.status() == {
        ("asked", ANNA): "requested",
        ("kept", ANNA): "denied",
        ("let go", ANNA): "released",
        ("left alone", ANNA): "not-released",
    }


async def test_a_row_that_recipients_share_says_who_has_the_mail(world: Any) -> None:
    """Exchange lists one status for all of them; the row itself knows."""
    made = await world.quarantine(world.mail("shared", to=f"{ANNA}, {BEN}"), one_row=True)
    await world.sync()
    await world.control("POST", f"/quarantine/{made['network_message_id']}/releases", {"recipients": [BEN]})
    await world.sync()
    assert await world.status() == {("shared", ANNA): "not-released", ("shared", BEN): "released"}


async def test_what_expires_is_noted_without_asking(world: Any) -> None:
    """Exchange does not list it any more."""
    await world.quarantine(world.mail("old"))
    await world.sync()
    await world.db.pool.execute("UPDATE messages SET expires_at = now()")
    made = world.state.tenants[str(world.tenant_id)].quarantine.all()[0]
    made.expires = datetime.now(UTC) - timedelta(seconds=1)
    await world.sync()
    assert await world.status() == {("old", ANNA): "expired"}


async def test_what_two_sweeps_do_not_find_is_gone(world: Any) -> None:
    """One may have missed it; the others stay."""
    made = await world.quarantine(world.mail("deleted"))
    await world.quarantine(world.mail("kept"))
    await world.sync()
    await world.control("POST", f"/quarantine/{made['network_message_id']}/deletions", {})
    await world.sync(sweep_every=timedelta(0))
    assert set((await world.status()).values()) == {"not-released"}
    await world.sync(sweep_every=timedelta(0))
    assert await world.status() == {("deleted", ANNA): "deleted", ("kept", ANNA): "not-released"}


async def test_a_refusal_that_is_not_json_is_waited_out(world: Any) -> None:
    """403 with NUL bytes: the reason is kept for admins, what was mirrored stays, and reading goes on later."""
    await world.quarantine(world.mail("first"))
    await world.sync()
    await world.quarantine(world.mail("second"))
    app = world.state.tenants[str(world.tenant_id)].settings.apps[0]
    role, app.exchange_role = app.exchange_role, False
    await world.sync()

    state = await store.sync_state(world.db.pool, world.tenant_id)
    assert state is not None
    assert "403" in state["warning"]
    assert "Exchange.ManageAsApp" in state["warning"]
    assert set(await world.status()) == {("first", ANNA)}

    app.exchange_role = role
    await world.sync()
    state = await store.sync_state(world.db.pool, world.tenant_id)
    assert state is not None
    assert state["warning"] is None
    assert set(await world.status()) == {("first", ANNA), ("second", ANNA)}


async def test_policies_that_are_not_understood_are_told_to_admins_and_in_the_log(world: Any) -> None:
    """Otherwise nobody would get a digest, and nobody would know; what can be read again is told no more."""
    world.state.settings.quarantine_permissions = "neither"
    await world.grant(4, "Ours")
    with capture_logs() as logs:
        await world.sync()
    state = await store.sync_state(world.db.pool, world.tenant_id)
    assert state["succeeded_at"]
    assert "Ours" in state["warning"]
    assert [one["log_level"] for one in logs if "Ours" in str(one.get("warning"))] == ["warning"]
    assert await world.db.pool.fetch("SELECT FROM policies") == []

    for shape in ("number", "string"):
        world.state.settings.quarantine_permissions = shape
        await world.sync()
        assert (await store.sync_state(world.db.pool, world.tenant_id))["warning"] is None
        assert await world.db.pool.fetchval("SELECT permissions FROM policies") == 4


async def test_a_mail_that_is_judged_anew_has_its_new_type(world: Any) -> None:
    """What its recipient may do follows from it."""
    await world.quarantine()
    await world.sync()
    (mail,) = world.state.tenants[str(world.tenant_id)].quarantine.all()
    mail.columns |= {"QuarantineTypes": "HighConfPhish", "Type": "High Confidence Phish"}
    await world.sync()
    assert {row["quarantine_type"] for row in (await world.messages()).values()} == {"HighConfPhish"}


async def test_two_replicas_never_read_the_same_tenant_at_once(world: Any) -> None:
    """Whoever comes second finds nothing due; whoever was overtaken writes nothing more."""
    await world.quarantine(world.mail("parcel"))
    world.fault("exchange.Get-QuarantinePolicy", "timeout", seconds=600)
    slow = asyncio.create_task(world.mirror().sync_due())
    while not world.calls("exchange.Get-QuarantinePolicy"):
        await asyncio.sleep(0.01)
    assert await world.mirror().sync_due() == 0

    # As if the first had been silent for longer than its lease.
    await world.db.pool.execute("UPDATE syncs SET due_at = now(), turn = turn + 1")
    world.state.faults.release()
    await slow
    assert await world.messages() == {}
    await world.sync()
    assert set(await world.messages()) == {("parcel", ANNA)}


async def test_what_we_did_stands_until_exchange_shows_it(world: Any) -> None:
    """Exchange may list the mail as it was for a while."""
    await world.quarantine(world.mail("ours"))
    await world.sync()
    await world.db.pool.execute("UPDATE messages SET status = 'released', acted_at = now()")
    await world.sync()
    assert await world.status() == {("ours", ANNA): "released"}
    await world.db.pool.execute("UPDATE messages SET acted_at = now() - $1::interval", store.SETTLING)
    await world.sync()
    assert await world.status() == {("ours", ANNA): "not-released"}


async def test_a_mail_that_is_not_there_is_not_taken_for_another(world: Any) -> None:
    """Asked for an Identity that it does not know, Exchange answers the whole quarantine, cut at a thousand rows."""
    rows = [{"Identity": f"{UUID(int=number)}\\{UUID(int=1)}"} for number in range(1, 1202)]
    await world.control("PATCH", "", {"cmdlets": {"Get-QuarantineMessage": rows}})
    assert await look(world.exchange(), world.tenant_id, "none\\none") is None
    with pytest.raises(ValueError, match="whole quarantine"):
        await look(world.exchange(), world.tenant_id, "")


async def test_only_the_tenants_of_the_settings_are_read(world: Any) -> None:
    """A tenant that left the settings rests."""
    await world.sync()
    await world.db.pool.execute("INSERT INTO syncs (tenant_id) VALUES ($1)", UUID(int=1))
    await world.db.pool.execute("UPDATE syncs SET due_at = now()")
    assert await world.mirror().sync_due() == 1


async def test_what_is_over_for_a_month_is_forgotten_with_what_was_done_about_it(world: Any) -> None:
    """What is held, or was a short while ago, stays."""
    await world.quarantine(world.mail("long over"))
    await world.quarantine(world.mail("held"))
    await world.sync()
    await world.db.pool.execute(
        "UPDATE messages SET status = 'expired', expires_at = now() - interval '31 days',"
        " status_changed_at = now() - interval '31 days' WHERE subject = 'long over'"
    )
    await world.db.pool.execute(
        "INSERT INTO actions (action_id, tenant_id, message_id, kind, round, by, state) SELECT gen_random_uuid(),"
        " tenant_id, message_id, 'release', 1, '{}', 'succeeded' FROM messages"
    )

    assert await forget(world.db) == 1
    assert await forget(world.db) == 0
    assert {subject for subject, _ in await world.messages()} == {"held"}
    assert await world.db.pool.fetchval("SELECT count(*) FROM actions") == 1


async def test_what_somebody_still_waits_for_is_not_forgotten(world: Any) -> None:
    """Its outcome is yet to be told."""
    await world.quarantine(world.mail("long over"))
    await world.sync()
    await world.db.pool.execute(
        "UPDATE messages SET expires_at = now() - interval '31 days', status_changed_at = now() - interval '31 days'"
    )
    await world.db.pool.execute(
        "INSERT INTO actions (action_id, tenant_id, message_id, kind, round, by) SELECT gen_random_uuid(),"
        " tenant_id, message_id, 'release', 1, '{}' FROM messages"
    )

    assert await forget(world.db) == 0
