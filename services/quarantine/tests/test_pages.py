"""The users' pages over HTTP; the simulator's ledger shows what really happened in Exchange."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from backstop_contracts import Actor, BlockFailed, BlockRequested, MessageReported, ReleaseDecided
from outcomes import settle_blocks
from quarantine import action_requests
from quarantine.links import LinkAction
from quarantine.rules import ActionKind

ANNA = "anna@contoso.example"
RELEASE = "exchange.Release-QuarantineMessage"
FULL = 1 | 2 | 4 | 16
LIMITED = 1 | 2 | 8 | 16


class Browser:
    """Opens pages, follows links and sends forms, like a browser without script."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.text = ""
        self.headers: Any = {}

    async def open(self, path: str, **headers: str) -> int:
        """Open a page; return its status."""
        async with self.session.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            self.text, self.headers = await answer.text(), answer.headers
            return answer.status

    async def send(self, **fields: str) -> int:
        """Send the form of the page; return the status of the answer."""
        (action,) = re.findall(r'<form method="post" action="([^"]+)"', self.text)
        (confirmation,) = re.findall(r'name="confirmation" value="([^"]+)"', self.text)
        async with self.session.post(self.url + action, data={"confirmation": confirmation, **fields}) as answer:
            self.text, self.headers = await answer.text(), answer.headers
            return answer.status

    def links(self) -> dict[str, str]:
        """Return the links of the page by their text."""
        return {
            text: href for href, text in re.findall(r'<a class="button[^"]*" href="([^"]+)">([^<]+)</a>', self.text)
        }


@pytest.fixture
async def browser(world: Any, serve_router: Any) -> AsyncIterator[Browser]:
    """Return a browser before the pages."""
    async with serve_router(world.pages().router()) as url, aiohttp.ClientSession() as session:
        yield Browser(session, url)


@pytest.fixture
async def impatient_browser(world: Any, serve_router: Any) -> AsyncIterator[Browser]:
    """Return a browser before pages that hardly wait for outcomes."""
    async with serve_router(world.pages(patient=False).router()) as url, aiohttp.ClientSession() as session:
        yield Browser(session, url)


@pytest.mark.parametrize(
    ("permissions", "order", "offered"),
    [
        (FULL, {}, ["Release", "Block sender", "Report to Microsoft"]),
        (LIMITED, {}, ["Request release", "Block sender", "Report to Microsoft"]),
        (1 | 2 | 4, {}, ["Release", "Report to Microsoft"]),
        (1 | 4 | 8, {}, ["Release"]),
        (FULL, {"quarantine_type": "Malware"}, ["Request release", "Block sender", "Report to Microsoft"]),
        (FULL, {"quarantine_type": "HighConfPhish"}, ["Request release", "Block sender", "Report to Microsoft"]),
        (4, {"columns": {"QuarantineTypes": None, "Type": "High Confidence Phish"}}, ["Request release"]),
        (4, {"columns": {"QuarantineTypes": "HighConfPhish, Phish"}}, ["Request release"]),
        (4, {"columns": {"QuarantineTypes": "Spam", "Type": "Malware"}}, ["Request release"]),
        (4, {"columns": {"QuarantineTypes": "AdminTriggered"}}, ["Request release"]),
        (4, {"columns": {"QuarantineTypes": "SomethingNew"}}, ["Request release"]),
        (4, {"columns": {"QuarantineTypes": None, "Type": None}}, ["Request release"]),
        (0, {}, []),
    ],
)
async def test_a_page_offers_what_the_quarantine_policy_and_the_type_permit(
    world: Any, browser: Browser, permissions: int, order: dict[str, Any], offered: list[str]
) -> None:
    """Users never release malware themselves; they can only request its release."""
    await world.hold(permissions, **order)
    assert await browser.open(await world.link()) == 200
    assert list(browser.links()) == offered
    assert ("<iframe sandbox src=" in browser.text) == bool(permissions & 2)


async def test_following_every_link_changes_nothing(world: Any, browser: Browser) -> None:
    """Mail scanners follow links; some of them also send HEAD and POST requests."""
    await world.hold(FULL)
    for action in LinkAction:
        path = await world.link(action)
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
    assert await world.run_actions() == []
    assert world.done() == []


async def test_a_confirmed_release_takes_effect_once_and_shows_its_outcome(world: Any, browser: Browser) -> None:
    """A form that is sent twice shows the same outcome and releases the message once."""
    await world.hold(FULL)
    await browser.open(await world.link())
    assert await browser.open(browser.links()["Release"]) == 200
    page = browser.text
    async with world.running_actions():
        assert await browser.send() == 200
        assert "on its way to your mailbox" in browser.text
        assert "Released to your mailbox" in browser.text
        browser.text = page
        assert await browser.send() == 200
    assert world.done() == [("release", ANNA)]
    (event,) = await world.emitted()
    assert isinstance(event, ReleaseDecided)
    assert (event.decided_by.id, event.succeeded) == (ANNA, True)
    assert await browser.open(await world.link(LinkAction.RELEASE)) == 409
    assert "not possible" in browser.text


async def test_a_release_is_requested_if_the_policy_permits_only_that(world: Any, browser: Browser) -> None:
    """A link to release the message would not work."""
    await world.hold(LIMITED)
    assert await browser.open(await world.link(LinkAction.RELEASE)) == 409
    await browser.open(await world.link(LinkAction.REQUEST))
    async with world.running_actions():
        assert await browser.send() == 200
    assert "has been asked" in browser.text
    assert world.done() == [("request", ANNA)]
    assert list((await world.statuses()).values()) == ["requested"]


async def test_permissions_are_checked_again_when_the_form_is_sent(world: Any, browser: Browser) -> None:
    """The policy was changed while the confirmation page was open."""
    await world.hold(FULL)
    await browser.open(await world.link(LinkAction.RELEASE))
    await world.set_policy(LIMITED)
    await world.sync()
    assert await browser.send() == 409
    assert await world.run_actions() == []


@pytest.mark.parametrize("changed", ["policy", "type", "denied"])
async def test_permissions_are_checked_again_when_the_action_runs(
    world: Any, impatient_browser: Browser, changed: str
) -> None:
    """Exchange does not check them, because it is called as an administrator. Actions of admins need none."""
    await world.hold(FULL)
    await impatient_browser.open(await world.link(LinkAction.RELEASE))
    page = impatient_browser.text
    assert await impatient_browser.send() == 202
    (mail,) = world.tenant.quarantine.all()
    if changed == "policy":
        await world.set_policy(LIMITED)
    elif changed == "type":
        mail.columns["Type"] = "High Confidence Phish"
    else:
        await world.control("POST", f"/quarantine/{mail.network_message_id}/denials", {})
    await world.sync()

    (event,) = await world.run_actions()

    assert (event.succeeded, "do not let its recipient do this" in event.detail) == (False, True)
    assert world.calls(RELEASE) == 0
    impatient_browser.text = page
    assert await impatient_browser.send() == 409
    assert "not possible" in impatient_browser.text
    if changed != "denied":
        admin = Actor(kind="user", id="admin", name="admin@contoso.example")
        async with world.db.transaction() as tx:
            await action_requests.request_actions(tx, [await world.message()], ActionKind.RELEASE, by=admin)
        (event,) = await world.run_actions()
        assert (event.succeeded, event.decided_by) == (True, admin)
        assert world.done() == [("release", ANNA)]


async def test_a_release_that_is_no_longer_permitted_says_so(world: Any, browser: Browser) -> None:
    """The refusal is ours, so the page does not mention Microsoft."""
    await world.hold(FULL)
    await browser.open(await world.link(LinkAction.RELEASE))
    sending = asyncio.create_task(browser.send())
    async with asyncio.timeout(60):
        while not await world.db.pool.fetchval("SELECT count(*) FROM actions"):
            await asyncio.sleep(0.01)
    await world.set_policy(LIMITED)
    await world.sync()
    await world.run_actions()
    assert await sending == 409
    assert "This is not possible" in browser.text
    assert "Microsoft" not in browser.text


async def test_a_refusal_shows_microsofts_reason(world: Any, browser: Browser) -> None:
    """The status is not 200, and the page does not claim success."""
    await world.hold(FULL)
    world.fault(RELEASE, "refuse", message="The recipient is on hold.")
    await browser.open(await world.link(LinkAction.RELEASE))
    async with world.running_actions():
        assert await browser.send() == 409
    assert "Nothing was changed. Microsoft says: The recipient is on hold." in browser.text


async def test_an_action_that_takes_longer_is_shown_as_running(world: Any, impatient_browser: Browser) -> None:
    """No worker runs."""
    await world.hold(FULL)
    await impatient_browser.open(await world.link(LinkAction.RELEASE))
    assert await impatient_browser.send() == 202
    assert "In progress" in impatient_browser.text


async def test_a_sender_is_blocked_for_the_recipients_mailbox(world: Any, impatient_browser: Browser) -> None:
    """The block is requested once. Colleagues cannot be blocked."""
    await world.hold(FULL)
    await impatient_browser.open(await world.link(LinkAction.BLOCK))
    assert "65,535" in impatient_browser.text
    assert await impatient_browser.send() == 202
    await impatient_browser.open(await world.link(LinkAction.BLOCK))
    assert await impatient_browser.send() == 202
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
    await impatient_browser.open(await world.link(LinkAction.BLOCK))
    await world.db.pool.execute("UPDATE blocks SET status = 'applied'")
    assert await impatient_browser.send() == 200
    assert "done before" in impatient_browser.text

    await world.db.pool.execute("UPDATE messages SET sender_domain = 'contoso.example'")
    assert await impatient_browser.open(await world.link(LinkAction.BLOCK)) == 409


async def test_a_report_goes_to_triage_with_the_mail(world: Any, browser: Browser) -> None:
    """The user has to choose what the message is."""
    await world.hold(FULL)
    await browser.open(await world.link(LinkAction.REPORT))
    page = browser.text
    assert await browser.send() == 422
    browser.text = page
    async with world.running_actions():
        assert await browser.send(reported_as="not-junk") == 200
    assert "Thank you" in browser.text
    (report,) = await world.emitted()
    assert isinstance(report, MessageReported)
    assert (report.channel, report.reporter, report.reported_as, report.decision) == (
        "quarantine", ANNA, "not-junk", None,
    )  # fmt: skip


async def test_forged_expired_and_malformed_links_open_nothing(world: Any, browser: Browser) -> None:
    """Only an expired link says why it does not work."""
    await world.hold(FULL)
    for path in ("/q/nonsense", await world.link(key="another-key-that-nobody-here-has-0001"), "/q/" + "A" * 78):
        assert await browser.open(path) == 404
        assert "does not work" in browser.text
        assert "fabrikam" not in browser.text
    assert await browser.open(await world.link(expires_in=timedelta(seconds=-1))) == 410
    assert "has expired" in browser.text


async def test_the_message_is_shown_in_a_sandboxed_frame(world: Any, browser: Browser) -> None:
    """The frame has a policy of its own, and opens only with a link to view the message."""
    await world.hold(FULL)
    await browser.open(await world.link())
    (frame,) = re.findall(r'<iframe sandbox src="([^"]+)"', browser.text)
    assert await browser.open(frame) == 200
    assert "Track it." in browser.text
    policy = browser.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy
    assert await browser.open(await world.link(LinkAction.RELEASE) + "/mail") == 403


async def test_an_unavailable_preview_says_so_in_its_frame(world: Any, browser: Browser) -> None:
    """The page around it works."""
    await world.hold(FULL)
    world.fault("exchange.Export-QuarantineMessage", "error")
    assert await browser.open(await world.link() + "/mail") == 503
    assert "Microsoft is not responding" in browser.text


async def test_no_page_is_cached_framed_or_sent_as_a_referrer(world: Any, browser: Browser) -> None:
    """Neither error pages nor pages with content."""
    await world.hold(FULL)
    for path in ("/q/nonsense", await world.link(), await world.link(LinkAction.RELEASE)):
        await browser.open(path)
        assert browser.headers["Cache-Control"] == "no-store"
        assert browser.headers["Referrer-Policy"] == "no-referrer"
        policy = browser.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script" not in browser.text


async def test_pages_escape_the_subject(world: Any, browser: Browser) -> None:
    """It is neither HTML nor a template."""
    await world.hold(FULL, world.eml("<script>alert(1)</script>{{ 7 * 7 }}"))
    await browser.open(await world.link())
    assert "<script>" not in browser.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}" in browser.text


async def test_a_tenant_that_requires_a_sign_in_shows_nothing_without_one(world: Any, browser: Browser) -> None:
    """503 while the service is not configured for signing in."""
    await world.hold(FULL)
    await world.save_settings(sign_in=True)
    assert await browser.open(await world.link()) == 503
    assert "fabrikam" not in browser.text
