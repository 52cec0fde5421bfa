"""
Turns hostile HTML into a fragment that is safe to show: no scripts, no requests, no clickable links.

There are three steps. nh3 parses the markup as browsers do and keeps a few elements, well-formed. Then links become
text followed by their target, remote images become placeholders, and embedded images become data: URLs. Finally nh3
removes everything that the result must not contain, so that a mistake in the second step does no harm.
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape, unescape
from itertools import islice
from urllib.parse import unquote_to_bytes

from mail.html_policy import (
    FORMATTING,
    HIDDEN,
    READ,
    STYLE_OF,
    VOID,
    WRITE,
    font_style,
    harmless_style,
    written_attributes,
)
from mail.image import raster_type
from mail.link import Link, read_link, unicode_host, visible
from mail.mime import decode_base64
from mail.preview_words import ENGLISH
from mail.text import find_urls

HTML_CHARS = 200_000
HTML_TAGS = 20_000
"""Limits on the markup that is read of a message. The most hostile sample found takes a second."""
NESTING = 128
"""Levels of elements that are kept: the deeper tables are nested, the longer they keep a browser busy."""
IMAGES = 50
IMAGE_BYTES = 2_097_152
"""Limit for one image."""
IMAGES_BYTES = 6_291_456
"""Limit for all images, each counted as often as it is shown."""
LINKS = 500
TARGET_CHARS = 120
"""Characters of a target that are shown. The host always is."""
ALT_CHARS = 200

_TOKEN = re.compile(r'<(/?)([a-z][a-z0-9-]*)((?: [\w:-]+="[^"]*")*) ?/?>|([^<]+)|<')
_ATTRIBUTE = re.compile(r' ([\w:-]+)="([^"]*)"')
_DATA_URL = re.compile(
    r"data:\s*+[\w.+/-]{1,80}(?:;[\w=-]{1,40}){0,3};base64,([A-Za-z0-9+/=%\s]{200,}+)", re.IGNORECASE
)
_SHORT_DATA = re.compile(r"data:[^,]{0,100};base64,(.*)", re.IGNORECASE | re.DOTALL)
_KEPT = re.compile(r"data:,kept-(\d{1,3})")
_SEEN = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "scripts": r"<script[\s/>]",
        "styles": r"<style[\s/>]",
        "forms": r"<(?:form|input|button|select|textarea|isindex|keygen)[\s/>]",
        "frames": r"<(?:iframe|frame|object|embed|applet|portal|fencedframe)[\s/>]",
        "media": r"<(?:audio|video|source|track)[\s/>]",
        "drawings": r"<(?:svg|math)[\s/>]",
        "page-commands": r"<(?:meta|base|link)[\s/>]",
        "event-handlers": r"[\s\"'/]on[a-z]{3,30}\s{0,20}=",
        "outlook-comments": r"<!--\[if",
    }.items()
}
_BREAK = re.compile(
    r"<(?:br|hr|/(?:p|div|tr|li|h[1-6]|table|blockquote|dt|dd|pre|center|section|article))\b[^>]*+(?:>|\Z)"
)
_CELL = re.compile(r"</t[dh]>")
_TAG = re.compile(r"<[^>]*+(?:>|\Z)")


@dataclass(slots=True)
class Material:
    """Input and result of sanitising one message: texts and images to use, limits left, and what was removed."""

    words: Mapping[str, str] = field(default_factory=lambda: ENGLISH)
    images: dict[str, bytes] = field(default_factory=dict)
    """Images that the message contains, by Content-ID."""
    shown: set[str] = field(default_factory=set)
    """The Content-IDs that the result shows."""
    links: list[Link] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)
    is_cut: bool = False
    char_room: int = HTML_CHARS
    tag_room: int = HTML_TAGS
    image_room: int = IMAGES_BYTES
    image_count: int = 0


def sanitise(markup: str, material: Material) -> str:
    """Return *markup* as a fragment that is safe to show in a page of its own. Never raises."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[1] if len(kept) < IMAGES else "")
        return f"data:,kept-{len(kept) - 1}"

    markup = _cut(_DATA_URL.sub(keep, markup), material)
    for name, pattern in _SEEN.items():
        material.removed[name] += sum(1 for _ in pattern.finditer(markup))
    rewriter = _Rewriter(material, kept)
    return WRITE.clean(rewriter.rewrite(READ.clean(FORMATTING.sub(r"<\1x-\2", markup))))


def plain_fragment(text: str, material: Material) -> str:
    """Return plain *text* as a fragment like those of `sanitise`, with its URLs shown as links."""
    text, invisible = visible(text)
    material.removed["invisible-characters"] += invisible
    pieces, at = [], 0
    for url in find_urls(text):
        start = text.find(url, at)
        if start < 0 or len(material.links) >= LINKS:
            break
        pieces.append(escape(text[at:start]))
        link = read_link(url, url)
        material.links.append(link)
        pieces.append(_defused(escape(url), link, material.words))
        at = start + len(url)
    pieces.append(escape(text[at:]))
    return WRITE.clean(f'<div class="text">{"".join(pieces)}</div>')


def text_of(fragment: str) -> str:
    """Return the visible text of a fragment made by `sanitise`."""
    text = _CELL.sub(" ", _BREAK.sub("\n", fragment))
    lines = (" ".join(line.split()) for line in unescape(_TAG.sub("", text)).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _cut(markup: str, material: Material) -> str:
    end = min(len(markup), material.char_room)
    if markup.count("<", 0, end) > material.tag_room:
        end = next(islice(re.finditer("<", markup), material.tag_room, None)).start()
    if end < len(markup):
        material.is_cut = True
        markup = markup[: max(markup.rfind("<", 0, end), end // 2)]
    material.char_room -= len(markup)
    material.tag_room -= markup.count("<")
    return markup


class _Rewriter:
    """The second step: rewrites the well-formed output of nh3, token by token."""

    def __init__(self, material: Material, kept: list[str]) -> None:
        self._material = material
        self._kept = kept
        self._out: list[str] = []
        self._open: list[tuple[str, Callable[[], None]]] = []
        self._hidden = 0
        self._anchors: list[tuple[str, list[str]]] = []

    def rewrite(self, markup: str) -> str:
        for closing, tag, attributes, text in _TOKEN.findall(markup):
            if text:
                self._text(text)
            elif not tag:
                self._text("&lt;")
            elif closing:
                if self._open and self._open[-1][0] == tag:
                    self._open.pop()[1]()
            else:
                self._start(tag, {name: unescape(value) for name, value in _ATTRIBUTE.findall(attributes)})
        while self._open:
            self._open.pop()[1]()
        return "".join(self._out)

    def _text(self, text: str) -> None:
        if self._hidden:
            return
        shown, invisible = visible(unescape(text))
        self._material.removed["invisible-characters"] += invisible
        self._out.append(escape(shown, quote=False))
        self._note(shown)

    def _note(self, text: str) -> None:
        """Add *text* to the text of the enclosing links."""
        for _, texts in self._anchors[-3:]:
            if len(texts) < 100:
                texts.append(text)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        style = attributes.get("style", "").lower()
        if self._hidden or "hidden" in attributes or HIDDEN.search(style):
            if tag not in VOID:
                self._material.removed["hidden-elements"] += not self._hidden
                self._hidden += 1
                self._open.append((tag, self._reveal))
            return
        if attributes.get("background") or "url(" in style:
            self._material.removed["remote-backgrounds"] += 1
        if tag == "img":
            self._image(attributes)
        elif tag == "x-a":
            self._anchor(attributes, style)
        else:
            self._element(tag, attributes, style)

    def _reveal(self) -> None:
        self._hidden -= 1

    def _element(self, tag: str, attributes: dict[str, str], style: str) -> None:
        if len(self._open) >= NESTING:
            if tag not in VOID:
                self._open.append((tag, lambda: None))
            return
        name = tag
        style = harmless_style(style)
        if tag in STYLE_OF:
            name = "span"
            style = ";".join(filter(None, (STYLE_OF[tag], font_style(attributes), style)))
        self._out.append(f"<{name}{written_attributes(attributes, style)}>")
        if tag not in VOID:
            self._open.append((tag, lambda: self._out.append(f"</{name}>")))

    def _anchor(self, attributes: dict[str, str], style: str) -> None:
        href = attributes.get("href", "").strip()
        style = harmless_style(style)
        if not href:
            self._out.append(f"<span{written_attributes({}, style)}>")
            self._open.append(("x-a", lambda: self._out.append("</span>")))
            return
        self._out.append(f'<span class="link"{written_attributes({}, style)}>')
        self._anchors.append((href, []))
        self._open.append(("x-a", self._end_anchor))

    def _end_anchor(self) -> None:
        href, texts = self._anchors.pop()
        if len(self._material.links) >= LINKS:
            self._material.is_cut = True
            self._out.append("</span>")
            return
        link = read_link("".join(texts), href)
        self._material.links.append(link)
        self._out.append(f"</span>{_target(link, self._material.words)}")

    def _image(self, attributes: dict[str, str]) -> None:
        source = attributes.get("src", "").strip()
        alt = visible(" ".join(attributes.get("alt", "").split()))[0][:ALT_CHARS]
        self._note(alt)
        data = self._local(source)
        if data is not None and (kind := raster_type(data)) and self._has_room(len(data)):
            if source.lower().startswith("cid:"):
                self._material.shown.add(_content_id(source))
            size = {name: value for name, value in attributes.items() if name in {"width", "height"}}
            url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
            self._out.append(f'<img src="{url}" alt="{escape(alt)}"{written_attributes(size, "")}>')
            return
        is_remote = not source.lower().startswith(("cid:", "data:"))
        self._material.removed["remote-images" if is_remote else "other-images"] += 1
        is_pixel = {attributes.get("width"), attributes.get("height")} & {"0", "1", "0px", "1px"}
        if not is_pixel or alt:
            self._out.append(f'<span class="blocked">{escape(alt or self._material.words["image"])}</span> ')

    def _local(self, source: str) -> bytes | None:
        if source[:4].lower() == "cid:":
            return self._material.images.get(_content_id(source))
        if found := _KEPT.fullmatch(source):
            index = int(found[1])
            encoded = self._kept[index] if index < len(self._kept) else ""
        elif found := _SHORT_DATA.fullmatch(source):
            encoded = found[1]
        else:
            return None
        return decode_base64(unquote_to_bytes(encoded))[0]

    def _has_room(self, size: int) -> bool:
        material = self._material
        if size > min(IMAGE_BYTES, material.image_room) or material.image_count >= IMAGES:
            return False
        material.image_room -= size
        material.image_count += 1
        return True


def _content_id(source: str) -> str:
    return unquote_to_bytes(source[4:]).decode("utf-8", "replace").strip(" <>").lower()


def _defused(text: str, link: Link, words: Mapping[str, str]) -> str:
    return f'<span class="link">{text}</span>{_target(link, words)}'


def _target(link: Link, words: Mapping[str, str]) -> str:
    """Return the target to show after a link, or an empty string if its text already is the target."""
    if not link.warnings and link.text in {link.target, link.target.removesuffix("/")}:
        return ""
    shown = link.target
    if len(shown) > TARGET_CHARS:
        shown = shown[:TARGET_CHARS] + "\u2026"
        if link.host and link.host not in shown:
            shown = f"\u2026{link.host}\u2026"
    notes = "".join(f' <span class="warning">({note})</span>' for note in explain(link, words))
    return f' <span class="target">[{escape(shown)}]</span>{notes}'


def explain(link: Link, words: Mapping[str, str]) -> list[str]:
    """Return the reasons to distrust a link, as HTML."""
    looks_like = unicode_host(link.host or "")[:100]
    return [escape(words[f"link_{warning}"].format(host=looks_like)) for warning in link.warnings]
