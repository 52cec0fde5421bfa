"""One Chromium for all tests that need a browser."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # A process for each sandboxed page takes twice the time, and changes nothing of what a page may do.
    "--disable-features=IsolateSandboxedIframes",
)


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Start the Chromium that is on PATH, once for the whole run."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "NOT TESTED IN A BROWSER: install Chromium so that it is on PATH (Debian: apt-get install chromium)"
        if os.environ.get("BACKSTOP_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Chromium's own sandbox does not start as root.
    sandbox = () if os.geteuid() else ("--no-sandbox",)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*QUIET, *sandbox])
        yield browser
        await browser.close()
