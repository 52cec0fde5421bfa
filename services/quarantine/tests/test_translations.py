"""Users read pages, previews and digests in their language."""

import re
from typing import Any

import aiohttp
import pytest

from quarantine.translations import CATALOGUES, choose_language


@pytest.mark.parametrize(
    ("accepted", "title", "sender"),
    [
        ("de-AT,en;q=0.5", "Quarantäne", "Von"),
        ("fr", "Quarantaine", "De"),
        ("es;q=0.9,ja", "Cuarentena", "De"),
        ("ja", "Quarantine", "From"),
    ],
)
async def test_pages_and_previews_are_in_the_browsers_language(
    world: Any, serve_router: Any, accepted: str, title: str, sender: str
) -> None:
    """English if there is no catalogue."""
    await world.hold(1 | 2 | 4 | 16)
    link, headers = await world.link(), {"Accept-Language": accepted}
    async with serve_router(world.pages().router()) as url, aiohttp.ClientSession(headers=headers) as session:
        async with session.get(url + link) as page:
            assert f'<div class="bar">{title}</div>' in await page.text()
        async with session.get(f"{url}{link}/mail") as preview:
            assert f"<dt>{sender}</dt>" in await preview.text()


SAME_AS_ENGLISH = {
    *("reason.spam", "reason.phish", "page.subject", "digest.date"),
    *(
        "preview.mail",
        "preview.date",
        "preview.image",
        "preview.bytes",
        "preview.removed_scripts",
        "preview.removed_scripts_many",
    ),
}
"""Texts that another language may share with English."""


def test_every_catalogue_is_complete() -> None:
    """Every text is translated and has the placeholders of the English one."""
    english = CATALOGUES["en"]
    for code, texts in CATALOGUES.items():
        assert texts.keys() == english.keys()
        for key, text in texts.items():
            assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", english[key]), (code, key)
        if code != "en":
            same = [key for key, text in texts.items() if text == english[key]]
            assert set(same) <= SAME_AS_ENGLISH, (code, same)


@pytest.mark.parametrize("header", ["", "*", "de;q=x", ";;;,,,", "q=1", "xx-" + "y" * 5000, "de;q=0"])
def test_a_malformed_accept_language_selects_the_default(header: str) -> None:
    """Browsers send anything."""
    assert choose_language(header, "fr").code == "fr"
