"""Hostile mails in a real browser: no script runs, nothing is loaded, the page stays where it is."""

import asyncio
import base64
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Request, Route

from mail import DOCUMENT_HEADERS, document, preview
from mail.preview_page import CONTENT_POLICY

FOLDER = Path(__file__).parent / "hostile"
SITE = "http://backstop.example"
POLICY = f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="canary()"><script>canary()</script></svg>'

# fmt: off
ELEMENTS = {
    "ABBR", "ADDRESS", "ARTICLE", "BDI", "BLOCKQUOTE", "BR", "CAPTION", "CENTER", "CITE", "DD", "DEL", "DIV", "DL",
    "DT", "FOOTER", "H1", "H2", "H3", "H4", "H5", "H6", "HEADER", "HR", "IMG", "INS", "KBD", "LI", "MAIN", "MARK",
    "OL", "P", "PRE", "Q", "SAMP", "SECTION", "SPAN", "SUB", "SUP", "TABLE", "TBODY", "TD", "TFOOT", "TH", "THEAD",
    "TR", "UL", "VAR", "WBR",
}
ATTRIBUTES = {
    "align", "alt", "bgcolor", "border", "cellpadding", "cellspacing", "class", "colspan", "dir", "height", "rowspan",
    "src", "style", "valign", "width",
}
# fmt: on

INSPECT = """() => {
  const seen = () => [...document.body.querySelectorAll("main, main *")].map(node => [
    node.namespaceURI === "http://www.w3.org/1999/xhtml" ? node.tagName : node.namespaceURI,
    [...node.attributes].map(attribute => [attribute.name, attribute.value]),
    getComputedStyle(node).position,
  ]);
  const once = seen();
  const main = document.querySelector("main");
  main.innerHTML = main.innerHTML;
  return [once, seen()];
}"""
"""Once as the browser read the page, and once more as it reads what it would write itself."""


def mail_of(body: bytes, charset: str) -> bytes:
    """Return a mail with that HTML, and with an SVG that poses as a GIF."""
    return b"\n".join(
        (
            b'From: "help@contoso.example <script>canary()</script>" <thief@phish.example>',
            b"To: ann@contoso.example",
            b"Subject: =?utf-8?q?=3C/title=3E=3Cimg_src=3Dx_onerror=3Dcanary()=3E?=",
            b'Content-Type: multipart/related; boundary="cut"\n',
            b"--cut",
            b'Content-Type: text/html; charset="' + charset.encode() + b'"\n',
            body,
            b"--cut",
            b"Content-Type: image/gif",
            b'Content-Disposition: inline; filename="<img src=x onerror=canary()>.gif"',
            b"Content-ID: <drawing>\n",
            SVG,
            b"--cut--\n",
        )
    )


def hostile_bodies(observer: str) -> dict[str, tuple[bytes, str]]:
    """Return the body and charset of each hostile mail, aimed at *observer*."""
    port = observer.rpartition(":")[2]
    sources = {
        file.stem: file.read_text("utf-8").replace("OBSERVER", observer).replace("PORT", port)
        for file in sorted(FOLDER.glob("*.html"))
    }
    nested = f"{'<div><b><i><table><tr><td>' * 3_000}<img src={observer}/deep.png onerror=canary()>"
    sources["nesting"] = nested
    sources["reopened"] = f"{'<p><b class=x><i style=color:red><a href=x>' * 300}<img src={observer} onerror=canary()>"
    sources["attributes"] = f"<img {' '.join(f'a{n}=x' for n in range(20_000))} src={observer}/a onerror=canary()>"
    sources["large-data"] = f'<img src="data:image/svg+xml;base64,{base64.b64encode(SVG * 20_000).decode()}">'
    bodies = {name: (source.encode(), "utf-8") for name, source in sources.items()}
    script = f"<script>canary()</script><img src={observer}/charset.png onerror=canary()>"
    for charset in ("utf-7", "utf-16", "utf-16-be", "iso-2022-jp", "hz", "shift_jis", "cp037", "latin-1"):
        bodies[f"in {charset}"] = (script.encode(charset), charset)
    bodies["utf-7 that says ascii"] = (script.encode("utf-7"), "us-ascii")
    bodies["iso-2022-jp escape"] = (b'<img alt="\x1b$B"><img src=x title="\x1b(B onerror=canary() x">', "iso-2022-jp")
    bodies["unknown charset"] = (script.encode(), "x-unknown")
    bodies["text that is html"] = (script.encode("utf-8", "replace") + b"\xff\xfe\0", "")
    return bodies


class Watch:
    """Everything that a page does and that a preview must not do, by the mail that is shown."""

    def __init__(self) -> None:
        self.mail = ""
        self.seen: dict[str, set[str]] = defaultdict(set)

    def note(self, what: str) -> None:
        """Remember it for the mail that is shown."""
        self.seen[self.mail].add(what)


@pytest.fixture
async def watch() -> Watch:
    """Return an empty watch."""
    return Watch()


@pytest.fixture
async def observer(watch: Watch) -> AsyncIterator[str]:
    """Listen where the mails point to: a connection is enough to be noted."""

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watch.note("connection")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def watched_page(
    browser: Browser, watch: Watch, pages: dict[str, tuple[str, dict[str, str]]]
) -> AsyncIterator[Page]:
    """Open a page on a site that has *pages* alone; whatever else happens is noted."""
    context: BrowserContext = await browser.new_context()

    async def answer(route: Route) -> None:
        request = route.request
        path = request.url.removeprefix(SITE)
        if path in pages and request.is_navigation_request():
            body, headers = pages[path]
            await route.fulfill(body=body, headers={"Content-Type": "text/html; charset=utf-8", **headers})
        else:
            watch.note(f"request {request.resource_type}")
            await route.abort()

    def navigated(request: Request) -> None:
        if request.url.removeprefix(SITE) not in pages and request.is_navigation_request():
            watch.note("navigation")

    await context.route("**/*", answer)
    context.on("request", navigated)
    context.on("dialog", lambda _dialog: watch.note("dialog"))
    context.on("weberror", lambda _error: watch.note("script error"))
    await context.expose_binding("canary", lambda _source, *_arguments: watch.note("script"))
    page = await context.new_page()
    page.on("popup", lambda _page: watch.note("popup"))
    page.on("download", lambda _download: watch.note("download"))
    page.on("websocket", lambda _socket: watch.note("websocket"))
    try:
        yield page
    finally:
        # A request that is being answered when the page goes would fail the next test.
        await context.unroute_all(behavior="ignoreErrors")
        await context.close()


async def use(page: Page) -> None:
    """Move and click. Each is acknowledged once the page has dealt with it, so what was to begin has begun."""
    await page.mouse.move(300, 300)
    for x, y in ((20, 20), (40, 180), (300, 300)):
        await page.mouse.click(x, y)


def alone(html: str) -> tuple[str, dict[str, str]]:
    """Return the document without any policy: what the sanitiser is worth on its own."""
    assert POLICY in html
    return html.replace(POLICY, ""), {}


def direct(html: str) -> tuple[str, dict[str, str]]:
    """Return the document as a server sends it."""
    return html, dict(DOCUMENT_HEADERS)


def framed(html: str) -> tuple[str, dict[str, str]]:
    """Return a page that holds the document in a sandboxed frame."""
    return f'<!DOCTYPE html><iframe sandbox width=800 height=600 srcdoc="{escape(html)}"></iframe>', {}


@pytest.mark.parametrize("way", [alone, direct, framed])
async def test_hostile_mails_do_nothing(
    browser: Browser, watch: Watch, observer: str, way: Callable[[str], tuple[str, dict[str, str]]]
) -> None:
    """However the preview is shown, no mail runs a script, makes a request, opens or leaves the page."""
    pages: dict[str, tuple[str, dict[str, str]]] = {}
    async with watched_page(browser, watch, pages) as page:
        for name, (body, charset) in hostile_bodies(observer).items():
            watch.mail = name
            pages["/mail"] = way(document(preview(mail_of(body, charset))))
            await page.goto(f"{SITE}/mail")
            frame = page.frames[-1]
            assert len(page.frames) == 1 + (way is framed), name
            assert await frame.locator("main").count() == 1, name
            await use(page)
            assert page.url == f"{SITE}/mail", name
        assert dict(watch.seen) == {}
        assert len(page.context.pages) == 1


async def test_only_harmless_elements_are_left(browser: Browser, watch: Watch, observer: str) -> None:
    """What the browser makes of the preview, also when written and read again, has no element that can act."""
    pages: dict[str, tuple[str, dict[str, str]]] = {}
    async with watched_page(browser, watch, pages) as page:
        for name, (body, charset) in hostile_bodies(observer).items():
            pages["/mail"] = alone(document(preview(mail_of(body, charset))))
            await page.goto(f"{SITE}/mail")
            for nodes in await page.evaluate(INSPECT):
                check(nodes, name)
    assert dict(watch.seen) == {}


def check(nodes: list[Any], name: str) -> None:
    """Hold every node to what a preview may contain."""
    for tag, attributes, position in nodes:
        assert tag in ELEMENTS, name
        assert position == "static", name
        for attribute, value in attributes:
            assert attribute in ATTRIBUTES, (name, attribute)
            assert "url" not in value or attribute in {"src", "alt"}, (name, value)
            assert attribute != "src" or value.startswith(("data:image/gif;base64,", "data:image/png;base64,")), name
            assert attribute != "class" or value in {"paper", "link", "target", "warning", "blocked", "text"}, name


ACTS = {
    "css-exfiltration": {"request image"},
    "css-loads": {"request image", "request stylesheet", "request font"},
    "data-urls": {"script"},
    "encodings": {"script"},
    "event-handlers": {"script"},
    "forms": {"script", "request image"},
    "frames": {"script", "navigation"},
    "hints": {"connection", "request image"},
    "links": {"request image"},
    "mutation-comments": {"script"},
    "mutation-foreign": {"script"},
    "mutation-nesting": {"script"},
    "mutation-noscript": {"script"},
    "namespaces": {"script", "request image"},
    "navigation": {"navigation"},
    "remote-media": {"request image", "request media"},
    "script-elements": {"script", "request script"},
    "script-links": {"script"},
    "svg": {"script", "request image"},
}


@pytest.mark.parametrize("name", ACTS)
async def test_the_same_mail_acts_when_it_is_not_sanitised(
    browser: Browser, watch: Watch, observer: str, name: str
) -> None:
    """The watch sees what it must see, and the mail is an attack."""
    body, _ = hostile_bodies(observer)[name]
    pages: dict[str, tuple[str, dict[str, str]]] = {"/mail": (f"<!DOCTYPE html>{body.decode()}", {})}
    watch.mail = name
    async with watched_page(browser, watch, pages) as page:
        await page.goto(f"{SITE}/mail", wait_until="commit")
        for _ in range(3_000):
            if ACTS[name] <= watch.seen[name]:
                break
            await asyncio.sleep(0.01)
        assert watch.seen[name] >= ACTS[name]
