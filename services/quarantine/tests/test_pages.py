"""The users' pages over HTTP: what is offered, confirmed and done; the simulator's ledger is the witness."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from backstop_contracts import Actor, BlockFailed, BlockRequested, MessageReported, ReleaseDecided
from outcomes import settle_blocks
from quarantine import filing, store
from quarantine.language import CATALOGUES, choose
from quarantine.links import LinkAction, Signer
from quarantine.offering import Links
from quarantine.rules import Kind

ANNA = "anna@contoso.example"
RELEASE = "exchange.Release-QuarantineMessage"
FULL = 1 | 2 | 4 | 16
LIMITED = 1 | 2 | 8 | 16


class Browser:
    """Opens pages, follows links and sends forms, as a browser without script does."""

    def __init__(self, world: Any, session: aiohttp.ClientSession, url: str) -> None:
        self.world = world
        self.session = session
        self.url = url
        self.text = ""
        self.headers: Any = {}

    async def open(self, path: str, **headers: str) -> int:
        """Get a page."""
        async with self.session.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            self.text, self.headers = await answer.text(), answer.headers
            return answer.status

    async def send(self, **fields: str) -> int:
        """Send the form of the page."""
        (action,) = re.findall(r'<form method="post" action="([^"]+)"', self.text)
        (confirmation,) = re.findall(r'name="confirmation" value="([^"]+)"', self.text)
        async with self.session.post(self.url + action, data={"confirmation": confirmation, **fields}) as answer:
            self.text, self.headers = await answer.text(), answer.headers
            return answer.status

    def links(self) -> dict[str, str]:
        """Return the links of the page, by their text."""
        return {
            text: href for href, text in re.findall(r'<a class="button[^"]*" href="([^"]+)">([^<]+)</a>', self.text)
        }

    async def message(self) -> Any:
        """Return the one mail that there is."""
        (row,) = (await self.world.messages()).values()
        return await store.find_message(self.world.db.pool, self.world.tenant_id, row["message_id"])

    async def link(self, action: LinkAction = LinkAction.VIEW, *, links: Any = None, **how: Any) -> str:
        """Return the path of a link to it, as a digest holds it."""
        until = how.get("until", datetime.now(UTC) + timedelta(days=1))
        return "/q/" + (links or self.world.links()).token(action, await self.message(), until)


@pytest.fixture
async def browser(world: Any, serve_router: Any) -> AsyncIterator[Browser]:
    """Serve the pages."""
    async with serve_router(world.pages().router()) as url, aiohttp.ClientSession() as session:
        yield Browser(world, session, url)


@pytest.fixture
async def impatient(world: Any, serve_router: Any) -> AsyncIterator[Browser]:
    """Serve pages that soon say that something runs."""
    async with serve_router(world.pages(patient=False).router()) as url, aiohttp.ClientSession() as session:
        yield Browser(world, session, url)


async def held(world: Any, permissions: int, **order: Any) -> None:
    """Quarantine a mail under a policy."""
    await world.grant(permissions)
    await world.quarantine(world.mail(), quarantine_policy="Custom", **order)
    await world.sync()


@pytest.mark.parametrize(
    ("permissions", "order", "offered"),
    [
        (FULL, {}, ["Release", "Block sender", "Report to Microsoft"]),
        (LIMITED, {}, ["Ask for release", "Block sender", "Report to Microsoft"]),
        (1 | 2 | 4, {}, ["Release", "Report to Microsoft"]),
        (1 | 4 | 8, {}, ["Release"]),
        (FULL, {"quarantine_type": "Malware"}, ["Ask for release", "Block sender", "Report to Microsoft"]),
        (FULL, {"quarantine_type": "HighConfPhish"}, ["Ask for release", "Block sender", "Report to Microsoft"]),
        (4, {"columns": {"QuarantineTypes": None, "Type": "High Confidence Phish"}}, ["Ask for release"]),
        (4, {"columns": {"QuarantineTypes": "HighConfPhish, Phish"}}, ["Ask for release"]),
        (4, {"columns": {"QuarantineTypes": "Spam", "Type": "Malware"}}, ["Ask for release"]),
        (4, {"columns": {"QuarantineTypes": "AdminTriggered"}}, ["Ask for release"]),
        (4, {"columns": {"QuarantineTypes": "SomethingNew"}}, ["Ask for release"]),
        (4, {"columns": {"QuarantineTypes": None, "Type": None}}, ["Ask for release"]),
        (0, {}, []),
    ],
)
async def test_a_page_offers_what_the_quarantine_policy_permits(
    world: Any, browser: Browser, permissions: int, order: dict[str, Any], offered: list[str]
) -> None:
    """Users never release malware themselves: to release becomes to ask."""
    await held(world, permissions, **order)
    assert await browser.open(await browser.link()) == 200
    assert list(browser.links()) == offered
    assert ("<iframe sandbox src=" in browser.text) == bool(permissions & 2)


async def test_following_every_link_changes_nothing(world: Any, browser: Browser) -> None:
    """As the scanners of mails do; not even by the HEAD and POST that some of them send."""
    await held(world, FULL)
    for action in LinkAction:
        path = await browser.link(action)
        await browser.open(path)
        async with browser.session.head(browser.url + path) as answer:
            assert answer.status == 405
        for data in (
            {},
            {"confirmation": ""},
            {"confirmation": "x" * 9000},
            {"confirmation": path.removeprefix("/q/")},
        ):
            async with browser.session.post(browser.url + path, data=data) as answer:
                assert answer.status in (403, 413)
                assert "Please confirm again" in await answer.text()
    assert await world.carry() == []
    assert world.ledger("quarantine_actions") == []


async def test_a_confirmed_release_is_done_once_and_its_outcome_shown(world: Any, browser: Browser) -> None:
    """Whoever sends the form twice hears the same, and gets the mail once."""
    await held(world, FULL)
    await browser.open(await browser.link())
    assert await browser.open(browser.links()["Release"]) == 200
    page = browser.text
    async with world.working():
        assert await browser.send() == 200
        assert "on its way to your mailbox" in browser.text
        assert "Released to your mailbox" in browser.text
        browser.text = page
        assert await browser.send() == 200
    assert [entry["action"] for entry in world.ledger("quarantine_actions")] == ["release"]
    (event,) = await world.emitted()
    assert isinstance(event, ReleaseDecided)
    assert (event.decided_by.id, event.succeeded) == (ANNA, True)
    assert await browser.open(await browser.link(LinkAction.RELEASE)) == 409
    assert "not possible" in browser.text


async def test_a_request_is_made_where_the_policy_says_request(world: Any, browser: Browser) -> None:
    """A release link for it was never signed, and would not work."""
    await held(world, LIMITED)
    assert await browser.open(await browser.link(LinkAction.RELEASE)) == 409
    await browser.open(await browser.link(LinkAction.REQUEST))
    async with world.working():
        assert await browser.send() == 200
    assert "has been asked" in browser.text
    assert [entry["action"] for entry in world.ledger("quarantine_actions")] == ["request"]
    assert list((await world.status()).values()) == ["requested"]


async def test_what_is_permitted_is_looked_at_again_when_the_form_comes(world: Any, browser: Browser) -> None:
    """The admins have changed the policy meanwhile."""
    await held(world, FULL)
    await browser.open(await browser.link(LinkAction.RELEASE))
    await world.grant(LIMITED)
    await world.sync()
    assert await browser.send() == 409
    assert await world.carry() == []


@pytest.mark.parametrize("changed", ["policy", "type", "denied"])
async def test_what_is_permitted_is_looked_at_again_when_it_is_carried_out(
    world: Any, impatient: Browser, changed: str
) -> None:
    """Exchange would do it for an administrator, as whom it is called. What an admin wants needs no permission."""
    await held(world, FULL)
    await impatient.open(await impatient.link(LinkAction.RELEASE))
    page = impatient.text
    assert await impatient.send() == 202
    tenant = world.state.tenants[str(world.tenant_id)]
    (mail,) = tenant.quarantine.all()
    if changed == "policy":
        await world.grant(LIMITED)
    elif changed == "type":
        mail.columns["Type"] = "High Confidence Phish"
    else:
        await world.control("POST", f"/quarantine/{mail.network_message_id}/denials", {})
    await world.sync()

    (event,) = await world.carry()

    assert (event.succeeded, "do not let its recipient do this" in event.detail) == (False, True)
    assert world.calls(RELEASE) == 0
    impatient.text = page
    assert await impatient.send() == 409
    assert "not possible" in impatient.text
    if changed != "denied":
        async with world.db.transaction() as tx:
            admin = Actor(kind="user", id="admin", name="admin@contoso.example")
            await filing.file(tx, [await impatient.message()], Kind.RELEASE, by=admin)
        (event,) = await world.carry()
        assert (event.succeeded, event.decided_by) == (True, admin)
        assert [entry["action"] for entry in world.ledger("quarantine_actions")] == ["release"]


async def test_a_release_that_turns_out_not_permitted_is_said_so(world: Any, browser: Browser) -> None:
    """Not in Microsoft's name."""
    await held(world, FULL)
    await browser.open(await browser.link(LinkAction.RELEASE))
    sending = asyncio.create_task(browser.send())
    async with asyncio.timeout(60):
        while not await world.db.pool.fetchval("SELECT count(*) FROM actions"):
            await asyncio.sleep(0.01)
    await world.grant(LIMITED)
    await world.sync()
    await world.carry()
    assert await sending == 409
    assert "This is not possible" in browser.text
    assert "Microsoft" not in browser.text


async def test_a_refusal_is_a_failure_with_microsofts_reason(world: Any, browser: Browser) -> None:
    """Never a page that says it is done, nor a 200."""
    await held(world, FULL)
    world.fault(RELEASE, "refuse", message="The recipient is on hold.")
    await browser.open(await browser.link(LinkAction.RELEASE))
    async with world.working():
        assert await browser.send() == 409
    assert "Nothing was changed. Microsoft says: The recipient is on hold." in browser.text


async def test_what_takes_longer_is_said_to_run(world: Any, impatient: Browser) -> None:
    """Nobody works here."""
    await held(world, FULL)
    await impatient.open(await impatient.link(LinkAction.RELEASE))
    assert await impatient.send() == 202
    assert "It is being done" in impatient.text


async def test_a_sender_is_blocked_for_the_recipients_mailbox(world: Any, impatient: Browser) -> None:
    """The wish goes to blocklist, once; own colleagues cannot be blocked."""
    await held(world, FULL)
    await impatient.open(await impatient.link(LinkAction.BLOCK))
    assert "65,535" in impatient.text
    assert await impatient.send() == 202
    await impatient.open(await impatient.link(LinkAction.BLOCK))
    assert await impatient.send() == 202
    (event,) = await world.emitted()
    assert isinstance(event, BlockRequested)
    assert (event.block.scope, event.block.mailbox, event.block.value) == (
        "mailbox", ANNA, "parcels@fabrikam.example",
    )  # fmt: skip
    async with world.db.transaction() as tx:
        failed = BlockFailed(
            tenant_id=event.tenant_id,
            block=event.block,
            reason="limit",
            detail="the list is full",
            failed_at=datetime.now(UTC),
        )
        await settle_blocks(tx, [failed])
    await impatient.open(await impatient.link(LinkAction.BLOCK))
    await world.db.pool.execute("UPDATE blocks SET status = 'applied'")
    assert await impatient.send() == 200
    assert "done before" in impatient.text

    await world.db.pool.execute("UPDATE messages SET sender_domain = 'contoso.example'")
    assert await impatient.open(await impatient.link(LinkAction.BLOCK)) == 409


async def test_a_report_goes_to_triage_with_the_mail(world: Any, browser: Browser) -> None:
    """The same id as if the user had reported it by the button; one of the choices has to be made."""
    await held(world, FULL)
    await browser.open(await browser.link(LinkAction.REPORT))
    page = browser.text
    assert await browser.send() == 422
    browser.text = page
    async with world.working():
        assert await browser.send(reported_as="not-junk") == 200
    assert "Thank you" in browser.text
    (report,) = await world.emitted()
    assert isinstance(report, MessageReported)
    assert (report.channel, report.reporter, report.reported_as, report.decision) == (
        "quarantine", ANNA, "not-junk", None,
    )  # fmt: skip


async def test_links_of_others_old_links_and_nonsense_open_nothing(world: Any, browser: Browser) -> None:
    """And none of them says which it is, but for the one that was good once."""
    await held(world, FULL)
    stranger = Links(Signer(["another-key-that-nobody-here-has-0001"]), "http://x.example")
    for path in ("/q/nonsense", await browser.link(links=stranger), "/q/" + "A" * 78):
        assert await browser.open(path) == 404
        assert "does not work" in browser.text
        assert "fabrikam" not in browser.text
    assert await browser.open(await browser.link(until=datetime.now(UTC) - timedelta(seconds=1))) == 410
    assert "has expired" in browser.text


async def test_the_mail_is_shown_in_a_frame_that_can_do_nothing(world: Any, browser: Browser) -> None:
    """By its own address, with the policy in its header; for links that are for looking alone."""
    await held(world, FULL)
    await browser.open(await browser.link())
    (frame,) = re.findall(r'<iframe sandbox src="([^"]+)"', browser.text)
    assert await browser.open(frame) == 200
    assert "Track it." in browser.text
    policy = browser.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy
    assert await browser.open(await browser.link(LinkAction.RELEASE) + "/mail") == 403


async def test_a_mail_that_exchange_does_not_give_is_said_so(world: Any, browser: Browser) -> None:
    """In the frame; the page around it works."""
    await held(world, FULL)
    world.fault("exchange.Export-QuarantineMessage", "error")
    assert await browser.open(await browser.link() + "/mail") == 503
    assert "Microsoft does not answer" in browser.text


async def test_no_page_is_kept_framed_or_told_to_others(world: Any, browser: Browser) -> None:
    """Whatever it shows."""
    await held(world, FULL)
    for path in ("/q/nonsense", await browser.link(), await browser.link(LinkAction.RELEASE)):
        await browser.open(path)
        assert browser.headers["Cache-Control"] == "no-store"
        assert browser.headers["Referrer-Policy"] == "no-referrer"
        policy = browser.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script" not in browser.text


async def test_pages_escape_what_senders_write(world: Any, browser: Browser) -> None:
    """A subject is a text."""
    await world.grant(FULL)
    await world.quarantine(world.mail("<script>alert(1)</script>{{ 7 * 7 }}"), quarantine_policy="Custom")
    await world.sync()
    await browser.open(await browser.link())
    assert "<script>" not in browser.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}" in browser.text


@pytest.mark.parametrize(
    ("accepted", "title", "sender"),
    [
        ("de-AT,en;q=0.5", "Quarantäne", "Von"),
        ("fr", "Quarantaine", "De"),
        ("es;q=0.9,ja", "Cuarentena", "De"),
        ("ja", "Quarantine", "From"),
    ],
)
async def test_pages_and_previews_speak_the_browsers_language(
    world: Any, browser: Browser, accepted: str, title: str, sender: str
) -> None:
    """English where there is no catalogue."""
    await held(world, FULL)
    link = await browser.link()
    await browser.open(link, **{"Accept-Language": accepted})
    assert f'<div class="bar">{title}</div>' in browser.text
    await browser.open(f"{link}/mail", **{"Accept-Language": accepted})
    assert f"<dt>{sender}</dt>" in browser.text


THE_SAME = {
    *("reason.spam", "reason.phish", "page.subject", "digest.date"),
    *("preview.date", "preview.image", "preview.bytes", "preview.removed_scripts", "preview.removed_scripts_many"),
}
"""What another language writes as English does."""


def test_every_catalogue_says_everything() -> None:
    """No text is left in English, no placeholder is lost or made up."""
    english = CATALOGUES["en"]
    for code, texts in CATALOGUES.items():
        assert texts.keys() == english.keys()
        for key, text in texts.items():
            assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", english[key]), (code, key)
        if code != "en":
            same = [key for key, text in texts.items() if text == english[key]]
            assert set(same) <= THE_SAME, (code, same)


@pytest.mark.parametrize("header", ["", "*", "de;q=x", ";;;,,,", "q=1", "xx-" + "y" * 5000, "de;q=0"])
def test_an_odd_accept_language_is_no_reason_to_fail(header: str) -> None:
    """The default holds."""
    assert choose(header, "fr").code == "fr"


async def test_a_tenant_that_wants_a_sign_in_shows_nothing_before(world: Any, browser: Browser) -> None:
    """And nothing at all while there is no way to sign in."""
    await held(world, FULL)
    await world.settle(sign_in=True)
    assert await browser.open(await browser.link()) == 503
    assert "fabrikam" not in browser.text
