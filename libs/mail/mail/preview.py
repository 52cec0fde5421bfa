"""
A safe preview of a raw message: what a mail program would show, made harmless.

Nothing in it can run, load, cover, navigate or be followed. `mail.preview_page` turns it into a page.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from mail.link import Link, named_host, visible
from mail.mime import Part, decode_text, read_parts
from mail.parse import MailFacts, open_mail, parse
from mail.preview_words import ENGLISH
from mail.sanitise import IMAGE_BYTES, IMAGES, Material, plain_fragment, sanitise, text_of

TEXT_CHARS = 100_000
TEXT_BYTES = 12_582_912
"""Encoded bytes that are read of all text parts together. HTML may contain its images."""
TEXTS = 20
"""Text parts that are shown, one below the other."""
ATTACHMENTS = 100
RECIPIENTS = 50

_TEXT_TYPES = frozenset(("text/plain", "text/html"))
_FILE_NAME = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')


@dataclass(frozen=True, slots=True)
class PreviewAttachment:
    """A file that the preview lists but does not show. `size` is in bytes; `name` has no invisible characters."""

    name: str
    content_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Preview:
    """
    The parts of a message to show.

    `html` is a sanitised fragment, None if the message has no HTML; `text` is the visible text, at most TEXT_CHARS.
    `from_address` is the real one and must always be shown next to `from_name`; `from_is_deceptive` means that the name
    poses as another address. `removed` counts what was left out, by kind. `is_cut` means that the message exceeds the
    limits of the preview.
    """

    from_name: str | None
    from_address: str | None
    from_is_deceptive: bool
    to: tuple[str, ...]
    subject: str | None
    date: datetime | None
    text: str
    html: str | None
    attachments: tuple[PreviewAttachment, ...]
    links: tuple[Link, ...]
    removed: dict[str, int]
    is_cut: bool


def preview(raw: bytes, words: Mapping[str, str] = ENGLISH) -> Preview:
    """
    Return the safe preview of a raw message. Never raises; input that is not a message gives an empty preview.

    *words* are the texts, in the reader's language, that explain in the HTML why a link is suspicious.

    Of a multipart/alternative the last HTML part is shown, else the last plain text; an attached message is an
    attachment. May take some seconds of CPU time for a hostile message, so run it in a thread (`asyncio.to_thread`).
    """
    facts = parse(raw)
    material = Material(words)
    fragments: list[str] = []
    images: dict[str, bytes] = {}
    text, has_html = "", False
    if facts.is_mail:
        texts, images = _shown_parts(raw, material)
        has_html = any(part.content_type == "text/html" for part in texts)
        material.images = images
        room = TEXT_BYTES
        for part in texts:
            material.is_cut |= len(part.body) > room
            markup, room = _read(part, room), max(0, room - len(part.body))
            if part.content_type == "text/html":
                fragments.append(sanitise(markup, material))
            else:
                material.is_cut |= len(markup) > TEXT_CHARS
                plain = markup[:TEXT_CHARS]
                text += plain + "\n"
                fragments.append(plain_fragment(plain, material))
    html = "\n".join(fragments) if has_html else None
    text = text_of(html) if html is not None else visible(text)[0].strip()
    material.is_cut |= len(text) > TEXT_CHARS
    name = visible(facts.from_name)[0].strip() if facts.from_name else None
    return Preview(
        from_name=name,
        from_address=visible(facts.from_address)[0] if facts.from_address else None,
        from_is_deceptive=_is_deceptive(facts),
        to=tuple(visible(address)[0] for address in facts.recipients[:RECIPIENTS]),
        subject=visible(facts.subject)[0].strip() if facts.subject else None,
        date=facts.date,
        text=text[:TEXT_CHARS],
        html=html,
        attachments=_attachments(facts, {hashlib.sha256(images[name]).hexdigest() for name in material.shown}),
        links=tuple(material.links),
        removed={kind: count for kind, count in sorted(material.removed.items()) if count},
        is_cut=material.is_cut,
    )


def _shown_parts(raw: bytes, material: Material) -> tuple[list[Part], dict[str, bytes]]:
    """Return the text parts that a mail program shows, and the images they can refer to, by Content-ID."""
    raw, _, headers, body = open_mail(raw, set())
    texts: list[Part] = []
    images: dict[str, bytes] = {}
    for part in read_parts(raw, headers, body, set()):
        if part.content_type in _TEXT_TYPES and part.disposition != "attachment" and part.filename is None:
            texts.append(part)
        elif part.content_id and len(images) < IMAGES and len(part.body) <= 2 * IMAGE_BYTES:
            images.setdefault(part.content_id.lower(), part.content()[0])
    texts = _chosen(texts)
    material.is_cut |= len(texts) > TEXTS
    return texts[:TEXTS], images


def _chosen(texts: list[Part]) -> list[Part]:
    """Return *texts* without the branches of multipart/alternatives that a mail program does not show."""
    best: dict[int, tuple[bool, int]] = {}
    for part in texts:
        for choice, branch in part.choices:
            rank = (part.content_type == "text/html", branch)
            best[choice] = max(best.get(choice, rank), rank)
    return [part for part in texts if all(best[choice][1] == branch for choice, branch in part.choices)]


def _read(part: Part, room: int) -> str:
    content, _ = part.content(room)
    return decode_text(content, part.charset, html=part.content_type == "text/html").replace("\r\n", "\n")


def _is_deceptive(facts: MailFacts) -> bool:
    """Return True if the display name poses as an address or site that is not the sender's."""
    if not facts.from_name or not facts.from_domain:
        return False
    own = facts.from_domain.removeprefix("www.")
    for word in visible(facts.from_name)[0].lower().split():
        word = word.strip("\"'<>()[],;:")  # noqa: PLW2901
        named = named_host(word.rpartition("@")[2])
        if named and named.removeprefix("www.") != own and word != (facts.from_address or "").lower():
            return True
    return False


def _attachments(facts: MailFacts, shown: set[str]) -> tuple[PreviewAttachment, ...]:
    files = (file for file in facts.attachments if not (file.inline and file.sha256 in shown))
    return tuple(
        PreviewAttachment(_file_name(file.name, file.content_type), file.content_type, file.size)
        for file, _ in zip(files, range(ATTACHMENTS), strict=False)
    )


def _file_name(name: str | None, content_type: str) -> str:
    if not name:
        return "attached mail" if content_type == "message/rfc822" else "unnamed"
    return " ".join(_FILE_NAME.sub("_", visible(name)[0]).split()).strip(" .") or "unnamed"
