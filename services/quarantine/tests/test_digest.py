"""Digests are sent through the simulator's Graph, whose ledger shows which emails really left."""

import asyncio
import base64
import email
import email.policy
import re
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import pytest

from quarantine import store
from quarantine.links import LinkAction, Signer, parse_link
from quarantine.translations import Texts

ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
SENDER = "notices@contoso.example"
FULL = 1 | 2 | 4 | 16
CREATE, UPDATE, SEND = "graph.messages.create", "graph.messages.update", "graph.messages.send"
KEY = "a-key-of-the-tests-that-is-long-enough-0001"


async def end_period(world: Any) -> None:
    """Make the messages older than the end of the latest period, whose digests are not planned yet."""
    await world.db.pool.execute("UPDATE messages SET first_seen_at = now() - interval '8 days'")
    await world.db.pool.execute("DELETE FROM periods")


async def plan_and_send(world: Any, *, rounds: int = 8, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - each call's own
    """Plan and send digests with new workers in each round, as if every wait before a retry were over."""
    for _ in range(rounds):
        await world.digest_worker().plan_due()
        await world.digest_worker(timeout=timeout).send_due()
        await world.db.pool.execute("UPDATE digests SET due_at = now() WHERE state = 'pending'")


async def states(world: Any) -> dict[str, str]:
    """Return the state of each recipient's digest."""
    return {row["recipient"]: row["state"] for row in await world.db.pool.fetch("SELECT * FROM digests")}


def recipients(world: Any) -> list[str]:
    """Return who got an email, once for each email."""
    return sorted(recipient for entry in world.ledger("mails") for recipient in entry["recipients"])


async def sent_email(world: Any) -> EmailMessage:
    """Return the only email that was sent."""
    (entry,) = world.ledger("mails")
    found = await world.control("GET", f"/mails/{entry['number']}")
    raw = base64.b64decode(found["eml_base64"])
    return email.message_from_bytes(raw, policy=email.policy.default)  # type: ignore[return-value]


@pytest.fixture
async def held(world: Any) -> Any:
    """Hold two messages for Anna and one for Ben; the period is over."""
    await world.set_policy(FULL)
    await world.control("PATCH", f"/mailboxes/{SENDER}", {})
    for subject, who in (("Parcel", ANNA), ("Invoice", ANNA), ("Parcel", BEN)):
        await world.quarantine(world.eml(subject, to=who), quarantine_policy="Custom")
    await world.sync()
    await end_period(world)
    await world.save_settings()


@pytest.mark.usefixtures("held")
async def test_each_recipient_gets_one_digest_for_a_period(world: Any) -> None:
    """However many replicas plan and send it. There is none if nothing is new."""
    await asyncio.gather(*(world.digest_worker().plan_due() for _ in range(3)))
    await asyncio.gather(*(world.digest_worker().send_due() for _ in range(3)))
    await plan_and_send(world, rounds=2)
    assert recipients(world) == [ANNA, BEN]
    assert set((await states(world)).values()) == {"sent"}

    await end_period(world)
    await plan_and_send(world, rounds=2)
    assert recipients(world) == [ANNA, BEN]


@pytest.mark.usefixtures("held")
async def test_a_message_under_an_unreadable_policy_waits_until_it_can_be_read(world: Any) -> None:
    """An unreadable policy counts as unknown, not as one that permits nothing."""
    world.state.settings.quarantine_permissions = "neither"
    await world.sync()
    await plan_and_send(world, rounds=1)
    assert recipients(world) == []

    world.state.settings.quarantine_permissions = "string"
    await world.sync()
    await end_period(world)
    await plan_and_send(world, rounds=1)
    assert recipients(world) == [ANNA, BEN]


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.usefixtures("held")
async def test_a_message_under_an_unknown_policy_waits_for_a_later_digest(world: Any, *, planned: bool) -> None:
    """What its recipient may do is not known before."""
    if planned:
        await world.digest_worker().plan_due()
    await world.db.pool.execute("DELETE FROM policies")
    await plan_and_send(world, rounds=1)
    assert set((await states(world)).values()) == ({"nothing"} if planned else set())

    # The next period has digests of its own.
    await world.db.pool.execute("DELETE FROM digests")
    await world.sync()
    await end_period(world)
    await plan_and_send(world, rounds=1)
    assert recipients(world) == [ANNA, BEN]


@pytest.mark.usefixtures("held")
async def test_a_digest_lists_the_messages_and_what_their_recipient_may_do(world: Any) -> None:
    """In its text and HTML parts. Links are bound to their message and expire as configured."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    await world.save_settings(link_days=2, organisation="Contoso")
    await plan_and_send(world, rounds=1)
    mail = await sent_email(world)

    assert (mail["To"], mail["From"], mail["Auto-Submitted"]) == (ANNA, SENDER, "auto-generated")
    assert mail["Subject"] == "2 messages are held for you in quarantine"
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    for content in (text.get_content(), html.get_content()):
        shown = content.replace("\u200b", "")
        for fact in ("Parcel", "Invoice", "parcels@fabrikam.example", "Spam", "Contoso", "Release", "Block sender"):
            assert fact in shown
        links = set(re.findall(r"http://quarantine\.contoso\.example/q/([\w-]+)", content))
        assert len(links) == 8
        claims = [parse_link(link) for link in links]
        assert {claim.action for claim in claims} == {
            LinkAction.VIEW, LinkAction.RELEASE, LinkAction.BLOCK, LinkAction.REPORT,
        }  # fmt: skip
        for claim in claims:
            Signer([KEY]).check_link(claim, ANNA, datetime.now(UTC))
            assert claim.expires_at <= datetime.now(UTC) + timedelta(days=2)
    assert "src=" not in html.get_content()
    assert "<script" not in html.get_content()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("kind", ["drop_after_effect", "drop_before_effect", "error", "throttle", "timeout"])
@pytest.mark.parametrize("route", [CREATE, UPDATE, SEND])
async def test_a_digest_whose_answer_was_lost_is_sent_once(world: Any, route: str, kind: str) -> None:
    """Whichever of the three calls it was."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    more = {"timeout": {"seconds": 1.5}, "throttle": {"retry_after": 1}}.get(kind, {})
    world.fault(route, kind, **more)
    await plan_and_send(world, rounds=4, timeout=0.7)
    assert recipients(world) == [ANNA]
    assert await states(world) == {ANNA: "sent"}


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("after", ["create", "record", "send"])
@pytest.mark.parametrize("lag", [0, 600])
async def test_a_digest_is_sent_once_although_its_worker_was_killed(world: Any, after: str, lag: int) -> None:
    """After any of the steps, even if Graph does not show its effect yet."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    world.state.settings.sent_items_lag_seconds = lag
    worker = world.digest_worker()
    await worker.plan_due()
    async with world.db.transaction() as tx:
        (digest,) = await store.claim_digests(tx, [world.tenant_id], timedelta(0), 5)
    settings = await world.settings()
    messages = await store.find_digest_messages(world.db.pool, digest.digest_id)
    # The steps of the worker until it is killed.
    draft_id = await worker._create_draft(digest, settings, SENDER, messages)
    if after != "create":
        async with world.db.transaction() as tx:
            assert await store.record_draft(tx, digest, draft_id)
    if after == "send":
        ids = {"user": SENDER, "message": draft_id}
        await world.graph().post(world.tenant_id, "/v1.0/users/{user}/messages/{message}/send", ids=ids)

    await plan_and_send(world, rounds=3)
    if after == "send" and lag:
        assert await states(world) == {ANNA: "pending"}
        world.state.clock.advance(lag + 1)
        await plan_and_send(world, rounds=1)
    assert recipients(world) == [ANNA]
    assert await states(world) == {ANNA: "sent"}


@pytest.mark.usefixtures("held")
async def test_a_draft_that_stays_missing_counts_as_sent(world: Any) -> None:
    """Somebody emptied Sent Items: a second email would be worse than none."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    await world.digest_worker().plan_due()
    await world.db.pool.execute("UPDATE digests SET draft_id = 'gone', attempts = 3")
    await plan_and_send(world, rounds=2)
    assert await states(world) == {ANNA: "pending"}
    await world.db.pool.execute("UPDATE digests SET planned_at = now() - interval '16 minutes'")
    await plan_and_send(world, rounds=1)
    assert (await states(world), recipients(world)) == ({ANNA: "sent"}, [])


@pytest.mark.usefixtures("held")
async def test_a_message_that_was_released_meanwhile_is_not_listed(world: Any) -> None:
    """No email is sent if no message is left."""
    await world.digest_worker().plan_due()
    await world.db.pool.execute("UPDATE messages SET status = 'released' WHERE recipient = $1", ANNA)
    await plan_and_send(world, rounds=1)
    assert await states(world) == {ANNA: "nothing", BEN: "sent"}
    assert recipients(world) == [BEN]


@pytest.mark.usefixtures("held")
async def test_a_message_that_only_admins_may_handle_is_never_listed(world: Any) -> None:
    """Its policy permits users nothing."""
    await world.db.pool.execute("UPDATE policies SET permissions = 0")
    await plan_and_send(world, rounds=1)
    assert await states(world) == {ANNA: "nothing", BEN: "nothing"}
    assert recipients(world) == []


@pytest.mark.usefixtures("held")
async def test_each_quarantine_policy_has_its_own_frequency(world: Any) -> None:
    """It replaces the tenant's frequency."""
    await world.save_settings(every="weekly", policies={"Custom": "never", "Other": "4h"})
    await plan_and_send(world, rounds=1)
    assert recipients(world) == []
    await world.db.pool.execute("UPDATE messages SET quarantine_policy = 'Other' WHERE recipient = $1", BEN)
    await world.db.pool.execute("UPDATE policies SET name = 'Other'")
    await end_period(world)
    await plan_and_send(world, rounds=1)
    assert recipients(world) == [BEN]


@pytest.mark.usefixtures("held")
async def test_digests_need_an_existing_sender(world: Any) -> None:
    """Nothing is sent without a sender; one that does not exist is a failure with Microsoft's reason."""
    await world.save_settings(sender=None)
    await plan_and_send(world, rounds=1)
    assert await states(world) == {}
    await world.control("PATCH", "", {"any_mailbox": False})
    await world.save_settings(sender="nobody@contoso.example")
    await plan_and_send(world, rounds=1)
    rows = await world.db.pool.fetch("SELECT state, detail FROM digests")
    assert {row["state"] for row in rows} == {"failed"}
    assert all("nobody@contoso.example" in row["detail"] for row in rows)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("language", ["de", "fr", "es"])
async def test_a_digest_is_in_the_tenants_language(world: Any, language: str) -> None:
    """If the recipient's is not known."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    await world.save_settings(language=language)
    await plan_and_send(world, rounds=1)
    mail, texts = await sent_email(world), Texts(language)
    assert mail["Subject"] == texts("digest.subject_many", count=2)
    for kind in ("plain", "html"):
        body = mail.get_body((kind,))
        assert body is not None
        content = " ".join(body.get_content().replace("&#39;", "'").split())
        assert texts("digest.intro") in content
        assert texts("action.release") in content
