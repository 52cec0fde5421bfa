"""Digests, on a real PostgreSQL, sent through the simulator's Graph; its ledger says which mails really left."""

import asyncio
import base64
import email
import email.policy
import re
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import pytest

from quarantine import rules, store
from quarantine.language import Words
from quarantine.links import LinkAction, Signer, read
from quarantine.rules import Every, defused, period_end
from quarantine.settings import settings_of

ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
SENDER = "notices@contoso.example"
FULL = 1 | 2 | 4 | 16
CREATE, UPDATE, SEND = "graph.messages.create", "graph.messages.update", "graph.messages.send"
KEY = "a-key-of-the-tests-that-is-long-enough-0001"


async def period_over(world: Any) -> None:
    """Let the mails be older than the latest period, and that period not be planned yet."""
    await world.db.pool.execute("UPDATE messages SET first_seen_at = now() - interval '8 days'")
    await world.db.pool.execute("DELETE FROM periods")


async def work(world: Any, *, rounds: int = 8, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - each call's own
    """Plan and send as after restarts, as if every pause were over."""
    for _ in range(rounds):
        await world.digester().plan_due()
        await world.digester(timeout=timeout).send_due()
        await world.db.pool.execute("UPDATE digests SET due_at = now() WHERE state = 'pending'")


async def states(world: Any) -> dict[str, str]:
    """Return what became of the digests."""
    return {row["recipient"]: row["state"] for row in await world.db.pool.fetch("SELECT * FROM digests")}


def recipients(world: Any) -> list[str]:
    """Return who got a mail."""
    return sorted(one for entry in world.ledger("mails") for one in entry["recipients"])


async def sent(world: Any) -> EmailMessage:
    """Return the one mail that was sent."""
    (entry,) = world.ledger("mails")
    found = await world.control("GET", f"/mails/{entry['number']}")
    raw = base64.b64decode(found["eml_base64"])
    return email.message_from_bytes(raw, policy=email.policy.default)  # type: ignore[return-value]


@pytest.fixture
async def held(world: Any) -> Any:
    """Hold two mails for Anna and one for Ben; the period is over."""
    await world.grant(FULL)
    await world.control("PATCH", f"/mailboxes/{SENDER}", {})
    for subject, who in (("Parcel", ANNA), ("Invoice", ANNA), ("Parcel", BEN)):
        await world.quarantine(world.mail(subject, to=who), quarantine_policy="Custom")
    await world.sync()
    await period_over(world)
    await world.settle()


@pytest.mark.usefixtures("held")
async def test_each_recipient_gets_one_digest_for_a_period(world: Any) -> None:
    """However many replicas plan and send, and however often; and none when nothing is new."""
    await asyncio.gather(*(world.digester().plan_due() for _ in range(3)))
    await asyncio.gather(*(world.digester().send_due() for _ in range(3)))
    await work(world, rounds=2)
    assert recipients(world) == [ANNA, BEN]
    assert set((await states(world)).values()) == {"sent"}

    await period_over(world)
    await work(world, rounds=2)
    assert recipients(world) == [ANNA, BEN]


@pytest.mark.usefixtures("held")
async def test_a_mail_whose_policy_cannot_be_read_is_told_of_once_it_can(world: Any) -> None:
    """It waits as one whose policy is not known yet, and is not taken for one of which users are never told."""
    world.state.settings.quarantine_permissions = "neither"
    await world.sync()
    await work(world, rounds=1)
    assert recipients(world) == []

    world.state.settings.quarantine_permissions = "string"
    await world.sync()
    await period_over(world)
    await work(world, rounds=1)
    assert recipients(world) == [ANNA, BEN]


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.usefixtures("held")
async def test_a_mail_whose_policy_is_not_known_yet_is_told_of_by_a_later_digest(world: Any, *, planned: bool) -> None:
    """Before, nobody knows what its recipient may do, or whether to tell of it at all."""
    if planned:
        await world.digester().plan_due()
    await world.db.pool.execute("DELETE FROM policies")
    await work(world, rounds=1)
    assert set((await states(world)).values()) == ({"nothing"} if planned else set())

    # The next period makes others.
    await world.db.pool.execute("DELETE FROM digests")
    await world.sync()
    await period_over(world)
    await work(world, rounds=1)
    assert recipients(world) == [ANNA, BEN]


@pytest.mark.usefixtures("held")
async def test_a_digest_says_what_is_held_and_what_can_be_done(world: Any) -> None:
    """As text and as HTML; links are bound to the mail and work as long as the settings say."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    await world.settle(link_days=2, organisation="Contoso")
    await work(world, rounds=1)
    mail = await sent(world)

    assert (mail["To"], mail["From"], mail["Auto-Submitted"]) == (ANNA, SENDER, "auto-generated")
    assert mail["Subject"] == "2 mails are held for you in quarantine"
    text, page = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert page is not None
    for content in (text.get_content(), page.get_content()):
        shown = content.replace("\u200b", "")
        for fact in ("Parcel", "Invoice", "parcels@fabrikam.example", "Spam", "Contoso", "Release", "Block sender"):
            assert fact in shown
        links = set(re.findall(r"http://quarantine\.contoso\.example/q/([\w-]+)", content))
        assert len(links) == 8
        claims = [read(link) for link in links]
        assert {claim.action for claim in claims} == {
            LinkAction.VIEW, LinkAction.RELEASE, LinkAction.BLOCK, LinkAction.REPORT,
        }  # fmt: skip
        for claim in claims:
            Signer([KEY]).check(claim, ANNA, datetime.now(UTC))
            assert claim.expires_at <= datetime.now(UTC) + timedelta(days=2)
    assert "src=" not in page.get_content()
    assert "<script" not in page.get_content()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("kind", ["drop_after_effect", "drop_before_effect", "error", "throttle", "timeout"])
@pytest.mark.parametrize("route", [CREATE, UPDATE, SEND])
async def test_a_digest_whose_answer_was_lost_is_sent_once(world: Any, route: str, kind: str) -> None:
    """At each of the three calls."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    more = {"timeout": {"seconds": 1.5}, "throttle": {"retry_after": 1}}.get(kind, {})
    world.fault(route, kind, **more)
    await work(world, rounds=4, timeout=0.7)
    assert recipients(world) == [ANNA]
    assert await states(world) == {ANNA: "sent"}


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("after", ["_create", "note_draft", "send"])
@pytest.mark.parametrize("lag", [0, 600])
async def test_a_digest_is_sent_once_though_its_worker_was_killed(world: Any, after: str, lag: int) -> None:
    """After each step, whether or not Graph shows at once what was done."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    world.state.settings.sent_items_lag_seconds = lag
    digester = world.digester()
    await digester.plan_due()
    async with world.db.transaction() as tx:
        (digest,) = await store.claim_digests(tx, [world.tenant_id], timedelta(0), 5)
    settings = await settings_of(world.db.pool, world.tenant_id)
    messages = await store.messages_of_digest(world.db.pool, digest.digest_id)
    # What the worker does, as far as it gets before it is killed.
    draft_id = await digester._create(digest, settings, SENDER, messages)
    if after != "_create":
        async with world.db.transaction() as tx:
            assert await store.note_draft(tx, digest, draft_id)
    if after == "send":
        ids = {"user": SENDER, "message": draft_id}
        await world.graph().post(world.tenant_id, "/v1.0/users/{user}/messages/{message}/send", ids=ids)

    await work(world, rounds=3)
    if after == "send" and lag:
        assert await states(world) == {ANNA: "pending"}
        world.state.clock.advance(lag + 1)
        await work(world, rounds=1)
    assert recipients(world) == [ANNA]
    assert await states(world) == {ANNA: "sent"}


@pytest.mark.usefixtures("held")
async def test_a_sent_mail_that_nobody_finds_counts_as_sent(world: Any) -> None:
    """Somebody emptied the Sent Items: a second mail would be worse than none."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    await world.digester().plan_due()
    await world.db.pool.execute("UPDATE digests SET draft_id = 'gone', attempts = 3")
    await work(world, rounds=2)
    assert await states(world) == {ANNA: "pending"}
    await world.db.pool.execute("UPDATE digests SET planned_at = now() - interval '16 minutes'")
    await work(world, rounds=1)
    assert (await states(world), recipients(world)) == ({ANNA: "sent"}, [])


@pytest.mark.usefixtures("held")
async def test_what_was_decided_meanwhile_is_not_told(world: Any) -> None:
    """No mail when nothing is left to tell."""
    await world.digester().plan_due()
    await world.db.pool.execute("UPDATE messages SET status = 'released' WHERE recipient = $1", ANNA)
    await work(world, rounds=1)
    assert await states(world) == {ANNA: "nothing", BEN: "sent"}
    assert recipients(world) == [BEN]


@pytest.mark.usefixtures("held")
async def test_mail_that_only_admins_may_handle_is_never_told(world: Any) -> None:
    """Its policy lets users do nothing."""
    await world.db.pool.execute("UPDATE policies SET permissions = 0")
    await work(world, rounds=1)
    assert await states(world) == {ANNA: "nothing", BEN: "nothing"}
    assert recipients(world) == []


@pytest.mark.usefixtures("held")
async def test_each_quarantine_policy_has_its_own_frequency(world: Any) -> None:
    """Of the tenant unless it is named; never means never."""
    await world.settle(every="weekly", policies={"Custom": "never", "Other": "4h"})
    await work(world, rounds=1)
    assert recipients(world) == []
    await world.db.pool.execute("UPDATE messages SET quarantine_policy = 'Other' WHERE recipient = $1", BEN)
    await world.db.pool.execute("UPDATE policies SET name = 'Other'")
    await period_over(world)
    await work(world, rounds=1)
    assert recipients(world) == [BEN]


@pytest.mark.usefixtures("held")
async def test_nothing_is_sent_before_a_sender_is_named_nor_to_no_avail(world: Any) -> None:
    """A sender that does not exist is a failure with Microsoft's reason, and not tried for ever."""
    await world.settle(sender=None)
    await work(world, rounds=1)
    assert await states(world) == {}
    await world.control("PATCH", "", {"any_mailbox": False})
    await world.settle(sender="nobody@contoso.example")
    await work(world, rounds=1)
    rows = await world.db.pool.fetch("SELECT state, detail FROM digests")
    assert {row["state"] for row in rows} == {"failed"}
    assert all("nobody@contoso.example" in row["detail"] for row in rows)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("language", ["de", "fr", "es"])
async def test_a_digest_is_in_the_tenants_language(world: Any, language: str) -> None:
    """In all its parts."""
    await world.db.pool.execute("DELETE FROM messages WHERE recipient = $1", BEN)
    await world.settle(language=language)
    await work(world, rounds=1)
    mail, words = await sent(world), Words(language)
    assert mail["Subject"] == words("digest.subject_many", count=2)
    for kind in ("plain", "html"):
        body = mail.get_body((kind,))
        assert body is not None
        content = " ".join(body.get_content().replace("&#39;", "'").split())
        assert words("digest.intro") in content
        assert words("action.release") in content


@pytest.mark.parametrize(
    ("every", "now", "end"),
    [
        (Every.FOUR_HOURS, "2026-03-03T07:59:59", "2026-03-03T04:00:00"),
        (Every.FOUR_HOURS, "2026-03-03T08:00:00", "2026-03-03T08:00:00"),
        (Every.DAILY, "2026-03-03T05:59:59", "2026-03-02T06:00:00"),
        (Every.DAILY, "2026-03-03T06:00:00", "2026-03-03T06:00:00"),
        (Every.WEEKLY, "2026-03-02T05:59:59", "2026-02-23T06:00:00"),
        (Every.WEEKLY, "2026-03-08T23:00:00", "2026-03-02T06:00:00"),
        (Every.NEVER, "2026-03-08T23:00:00", None),
    ],
)
def test_periods_end_at_fixed_times(every: Every, now: str, end: str | None) -> None:
    """So that all replicas, and the same one after a restart, mean the same period."""
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert period_end(every, moment, 6) == (end and datetime.fromisoformat(end).replace(tzinfo=UTC))


def test_a_subject_becomes_no_link() -> None:
    """Mail programs make links of what looks like one."""
    shown = defused("See https://phish.example/a\r\nor www.phish.example")
    assert "://" not in shown
    assert "phish.example" not in shown
    assert shown.replace("\u200b", "") == "See https://phish.example/a or www.phish.example"
    assert rules.defused("A plain subject. Two sentences.") == "A plain subject. Two sentences."
