"""The users' pages and the digest in a real Chromium: without script, on a phone and a desk, in light and dark."""

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

from quarantine import store
from quarantine.language import Words
from quarantine.links import LinkAction

FULL = 1 | 2 | 4 | 16
HOSTILE = (
    "Content-Type: text/html; charset=utf-8\r\n\r\n"
    "<style>body{background:url(https://css.phish.example/x)} a{position:fixed;inset:0}</style>"
    "<script>top.location='https://script.phish.example/'</script>"
    "<meta http-equiv=refresh content='0;url=https://meta.phish.example/'>"
    "<p>Dear customer, your parcel waits. <img src='https://pixel.phish.example/1.gif' onerror='alert(1)'></p>"
    "<p><a href='https://xn--pple-43d.example/login'>https://apple.example/login</a></p>"
    "<form action='https://form.phish.example/'><input name=password><button>Sign in</button></form>"
    "<svg onload='alert(2)'><image href='https://svg.phish.example/'/></svg>"
)
DESK, PHONE = {"width": 1100, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """Start the Chromium that is on PATH."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "NOT TESTED IN A BROWSER: install Chromium so that it is on PATH (Debian: apt-get install chromium)"
        if os.environ.get("BACKSTOP_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        args = ["--disable-background-networking", *([] if os.geteuid() else ["--no-sandbox"])]
        browser = await playwright.chromium.launch(executable_path=path, args=args)
        yield browser
        await browser.close()


@pytest.fixture
async def site(world: Any, serve_router: Any) -> AsyncIterator[str]:
    """Serve the pages, with a hostile mail in quarantine."""
    await world.grant(FULL)
    eml = world.mail("Your parcel: confirm your address at https://parcels.phish.example today")
    eml = eml.replace("\r\n\r\nTrack it.\r\n", f"\r\n{HOSTILE}")
    await world.quarantine(eml, quarantine_policy="Custom")
    await world.sync()
    async with serve_router(world.pages().router()) as url, world.working():
        yield url


async def link(world: Any, action: LinkAction) -> str:
    """Return the path of a link."""
    (row,) = (await world.messages()).values()
    message = await store.find_message(world.db.pool, world.tenant_id, row["message_id"])
    return "/q/" + world.links().token(action, message, datetime.now(UTC) + timedelta(days=1))


async def fits(page: Page) -> bool:
    """Tell whether nothing has to be scrolled sideways."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


async def photograph(page: Page, name: str) -> None:
    """Keep a picture for whoever wants to look: BACKSTOP_PICTURES names the folder."""
    if folder := os.environ.get("BACKSTOP_PICTURES"):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=await page.locator("iframe").count() == 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
async def test_a_user_looks_and_releases_without_script(
    world: Any, site: str, chromium: Browser, size: Any, scheme: Any
) -> None:
    """From the mail's page over the confirming page to the outcome; nothing but our own pages is asked for."""
    context = await chromium.new_context(viewport=size, color_scheme=scheme, java_script_enabled=False)
    asked: list[str] = []
    # In the context, so that frames and popups count too.
    context.on("request", lambda request: asked.append(request.url))
    page = await context.new_page()
    name = f"{scheme}-{'phone' if size is PHONE else 'desk'}"
    await page.goto(site + await link(world, LinkAction.VIEW))
    frame = page.frame_locator("iframe")
    await frame.get_by_text("your parcel waits").wait_for()
    assert await frame.locator("form, input, a, svg, script, iframe").count() == 0
    shown = await frame.locator("body").inner_text()
    assert "xn--pple-43d.example" in shown
    await page.locator("iframe").scroll_into_view_if_needed()
    await photograph(page, f"message-{name}")
    await page.get_by_role("link", name="Release").click()
    await photograph(page, f"confirm-{name}")
    await page.get_by_role("button", name="Release it").click()
    assert "on its way" in await page.get_by_role("status").inner_text()
    await photograph(page, f"done-{name}")

    assert {urlsplit(url).netloc for url in asked} == {urlsplit(site).netloc}
    assert [entry["action"] for entry in world.ledger("quarantine_actions")] == ["release"]
    await context.close()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
async def test_every_page_fits_and_can_be_worked_by_keyboard(
    world: Any, site: str, chromium: Browser, size: Any
) -> None:
    """Nothing is scrolled sideways, each page has one heading and a title, each field a label."""
    context = await chromium.new_context(viewport=size, locale="en-GB")
    page = await context.new_page()
    failures: list[str] = []
    page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    for action in LinkAction:
        if action is LinkAction.REQUEST:
            continue
        await page.goto(site + await link(world, action))
        assert await fits(page), action
        assert await page.locator("h1").count() == 1
        assert await page.title()
        assert await page.locator("html").get_attribute("lang") == "en"
        unlabelled = "[...document.querySelectorAll('input:not([type=hidden])')].filter(field => !field.labels.length)"
        assert await page.evaluate(f"{unlabelled}.length") == 0
        small = "[...document.querySelectorAll('.button')].filter(one => one.getBoundingClientRect().height < 44)"
        assert await page.evaluate(f"{small}.length") == 0
        await photograph(page, f"{action.name.lower()}-{size['width']}")
    assert failures == []
    await page.goto(f"{site}/q/nonsense")
    assert await fits(page)
    await photograph(page, f"invalid-{size['width']}")
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.usefixtures("site")
async def test_the_digest_shows_without_loading_anything(world: Any, chromium: Browser, size: Any, scheme: Any) -> None:
    """In all languages; it asks for nothing."""
    await world.quarantine(
        world.mail("Quarterly newsletter with a rather long subject that goes on for more than one line"),
        quarantine_type="Bulk",
        quarantine_policy="Custom",
    )
    await world.sync()
    await world.settle(organisation="Contoso IT security")
    await world.db.pool.execute("UPDATE messages SET first_seen_at = now() - interval '8 days'")
    digester = world.digester()
    await digester.plan_due()
    async with world.db.transaction() as tx:
        (digest,) = await store.claim_digests(tx, [world.tenant_id], timedelta(0), 5)
    messages = await store.messages_of_digest(world.db.pool, digest.digest_id)
    context = await chromium.new_context(viewport=size, color_scheme=scheme)
    page = await context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for code in ("en", "de", "fr", "es"):
        content = digester.content(digest, await world.settings(), messages, Words(code))
        await page.set_content(digester.page(content))
        assert await fits(page), code
        await photograph(page, f"digest-{code}-{scheme}-{size['width']}")
    assert asked == []
    await context.close()
