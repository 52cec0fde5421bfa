"""Extracts the facts that services need from an untrusted raw message."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import chain, islice
from typing import Literal

from mail.exchange_headers import (
    NO_ANTISPAM,
    NO_AUTHENTICATION,
    Antispam,
    Authentication,
    connecting_ip,
    delivery_folder,
    read_antispam,
    read_authentication,
)
from mail.fingerprint import fingerprint
from mail.mime import (
    HEADER_BYTES,
    Headers,
    Part,
    codec_of,
    decode_text,
    decode_words,
    printable,
    read_header,
    read_parts,
)
from mail.text import HTML_CHARS, URL_CHARS, Mailbox, find_urls, host_of, mailboxes, normal_url, read_html, unescaped

MAIL_BYTES = 157_286_400
"""Bytes of a message that are read: 150 MiB, the largest size that Exchange Online can be configured to accept."""
TEXT_BYTES = 2_097_152
"""Encoded bytes of all text parts that are read for links and for the fingerprint."""
SUBJECT_CHARS = 1_000
ADDRESSES = 1_000
MAILBOXES = 10_000
"""Mailboxes of To and Cc that are read, including duplicates."""
URLS = 500

_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
# fmt: off
_KNOWN_FIELDS = frozenset((
    "from", "sender", "reply-to", "subject", "message-id", "received", "return-path", "mime-version", "delivered-to",
    "in-reply-to", "references", "x-mailer", "x-received", "authentication-results", "dkim-signature",
))
# fmt: on
_NO_FIELD_BEGINS = (b"<", b"{", b"[", b"%")
_DELIVERED_TO = ("delivered-to", "x-original-to", "envelope-to", "x-envelope-to")
_MESSAGE_ID = re.compile(r"<[^<>]+>")
_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TEXTS = ("text/plain", "text/html")
_MESSAGES = frozenset({"message/rfc822", "message/global", "application/vnd.ms-outlook"})


@dataclass(frozen=True, slots=True)
class Attachment:
    """
    A part that is not the message's text: a file, an inline image, an attached message.

    `size` and `sha256` are those of the decoded content. `inline` means that it is shown within the text.
    """

    name: str | None
    content_type: str
    size: int
    sha256: str
    inline: bool


@dataclass(frozen=True, slots=True)
class MailFacts:
    """
    The facts of a raw message: its own headers and content, and the headers that Exchange Online added.

    All text is valid UTF-8 without NUL. A fact that is absent is None or empty. Of header fields that occur more than
    once the topmost counts, because those below may have come with the message. `from_domain` and the domains of all
    addresses are lower-case, and ASCII if DNS has such a name. `envelope_sender` may be only a domain.
    """

    sha256: str
    size: int
    is_mail: bool
    internet_message_id: str | None = None
    network_message_id: str | None = None
    cross_tenant_id: str | None = None
    subject: str | None = None
    from_address: str | None = None
    from_name: str | None = None
    from_domain: str | None = None
    envelope_sender: str | None = None
    reply_to: str | None = None
    recipients: tuple[str, ...] = ()
    delivered_to: str | None = None
    date: datetime | None = None
    received_at: datetime | None = None
    sender_ip: str | None = None
    urls: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    authentication: Authentication = NO_AUTHENTICATION
    antispam: Antispam = NO_ANTISPAM
    delivery_folder: Literal["inbox", "junk"] | None = None
    fingerprint: str | None = None
    defects: tuple[str, ...] = ()

    @property
    def carries_messages(self) -> bool:
        """
        Whether other messages are attached, judging by declared type and by file name.

        Report buttons, add-ins and "forward as attachment" wrap the reported message in a message of the user.
        """
        return any(
            file.content_type in _MESSAGES or (file.name or "").lower().endswith((".eml", ".msg"))
            for file in self.attachments
        )


def parse(raw: bytes) -> MailFacts:
    """
    Return the facts of a raw message. Never raises; damage and exceeded limits are listed in `defects`.

    `is_mail` is False, and only hash and size are known, if no known header field is present. `urls` are distinct, at
    most URLS, each cut at URL_CHARS, with wrappers removed. An attached message is an attachment: its links and its
    sender are not included.
    """
    sha256, size = hashlib.sha256(raw).hexdigest(), len(raw)
    defects: set[str] = set()
    raw, start, headers, body = open_mail(raw, defects)
    if raw.startswith(_NO_FIELD_BEGINS, start) or _KNOWN_FIELDS.isdisjoint(headers.names()):
        return MailFacts(sha256, size, is_mail=False, defects=("not-a-mail",))

    sender = _sender(headers, defects)
    recipients = _recipients(headers, defects)
    delivered_to = next((box for name in _DELIVERED_TO if (box := _mailbox(headers.first(name)))), None)
    authentication, antispam = read_authentication(headers), read_antispam(headers)
    subject = printable(decode_words(headers.first("subject")[: 4 * SUBJECT_CHARS]))[:SUBJECT_CHARS]
    content = _Content(defects)
    for part in read_parts(raw, headers, body, defects):
        content.add(part)
    return MailFacts(
        sha256=sha256,
        size=size,
        is_mail=True,
        internet_message_id=_message_id(headers.first("message-id")),
        network_message_id=_guid(headers.first("x-ms-exchange-organization-network-message-id"))
        or _guid(headers.first("x-ms-office365-filtering-correlation-id")),
        cross_tenant_id=_guid(headers.first("x-ms-exchange-crosstenant-id")),
        subject=subject or None,
        from_address=sender.address if sender else None,
        from_name=sender.name or None if sender else None,
        from_domain=sender.address.rpartition("@")[2] if sender else None,
        envelope_sender=_envelope_sender(headers, authentication),
        reply_to=_address(headers.first("reply-to")),
        recipients=tuple(box.address for box in recipients),
        delivered_to=delivered_to.address if delivered_to else None,
        date=_sent(headers, defects),
        received_at=_received(headers),
        sender_ip=connecting_ip(headers, antispam, authentication),
        urls=tuple(content.urls),
        attachments=tuple(content.attachments),
        authentication=authentication,
        antispam=antispam,
        delivery_folder=delivery_folder(headers, antispam),
        fingerprint=fingerprint(
            subject,
            content.visible_text(),
            hosts=map(host_of, content.urls),
            recipients=[*recipients, delivered_to] if delivered_to else recipients,
            files=[(file.sha256, file.size) for file in content.attachments if not file.inline],
        ),
        defects=tuple(sorted(defects)),
    )


def open_mail(raw: bytes, defects: set[str]) -> tuple[bytes, int, Headers, int]:
    """Return the bytes to read of a raw message, the offset of its header, the header, and the offset of its body."""
    if len(raw) > MAIL_BYTES:
        defects.add("too-large")
        raw = raw[:MAIL_BYTES]
    if b"\n" not in raw:
        raw = raw.replace(b"\r", b"\n")
    start = _START.match(raw).end()  # type: ignore[union-attr]
    headers, body = read_header(raw, start, len(raw), HEADER_BYTES, defects)
    return raw, start, headers, body


class _Content:
    """Collects links, texts and attachments from the parts of a message."""

    def __init__(self, defects: set[str]) -> None:
        self.urls: dict[str, None] = {}
        self.attachments: list[Attachment] = []
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._room = TEXT_BYTES
        self._tree_room = HTML_CHARS
        self._defects = defects

    def visible_text(self) -> str:
        """Return the text that most mail programs show: that of the HTML parts, else of the plain text parts."""
        return " ".join(self._texts["text/html"]).strip() or " ".join(self._texts["text/plain"])

    def add(self, part: Part) -> None:
        """Extract links and text from a text part; list any other part as an attachment."""
        attached = part.content_type not in _TEXTS or part.disposition == "attachment" or part.filename is not None
        if attached:
            self._attach(part)
        if part.content_type in _TEXTS:
            text = self._read_text(part)
            if not attached:
                self._texts[part.content_type].append(text)

    def _attach(self, part: Part) -> None:
        content, undamaged = part.content()
        if not undamaged:
            self._defects.add("undecodable-part")
        self.attachments.append(
            Attachment(
                name=part.filename,
                content_type=part.content_type,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                inline=part.disposition != "attachment"
                and (part.disposition == "inline" or part.content_id is not None),
            )
        )

    def _read_text(self, part: Part) -> str:
        if len(part.body) > self._room:
            self._defects.add("text-cut")
        content, undamaged = part.content(self._room)
        self._room -= min(len(part.body), self._room)
        if not undamaged:
            self._defects.add("undecodable-part")
        if part.charset and codec_of(part.charset) is None:
            self._defects.add("unknown-charset")
        is_html = part.content_type == "text/html"
        text = decode_text(content, part.charset, html=is_html)
        if not is_html:
            self._add_urls(find_urls(text))
            return text
        room, self._tree_room = self._tree_room, max(0, self._tree_room - len(text))
        text, links, rest = read_html(text, room)
        if rest:
            self._defects.add("html-cut")
        self._add_urls(chain(links, find_urls(text), find_urls(unescaped(rest))))
        return text

    def _add_urls(self, links: Iterable[str]) -> None:
        seen: set[str] = set()
        for link in links:
            if link in seen:
                continue
            seen.add(link)
            url = normal_url(link)
            if url is None or url[:URL_CHARS] in self.urls:
                continue
            if len(self.urls) == URLS:
                self._defects.add("too-many-urls")
                return
            if len(url) > URL_CHARS:
                self._defects.add("long-url")
            self.urls[url[:URL_CHARS]] = None


def _mailbox(field: str) -> Mailbox | None:
    return next(mailboxes(field), None) if field else None


def _address(field: str) -> str | None:
    mailbox = _mailbox(field)
    return mailbox.address if mailbox else None


def _sender(headers: Headers, defects: set[str]) -> Mailbox | None:
    fields = list(headers.all("from"))
    if len(fields) > 1:
        defects.add("several-from")
    sender = _mailbox(fields[0]) if fields else None
    if sender is None:
        defects.add("no-from")
    return sender


def _recipients(headers: Headers, defects: set[str]) -> list[Mailbox]:
    """Return the distinct mailboxes of To and Cc."""
    found: dict[str, Mailbox] = {}
    fields = chain(islice(headers.all("to"), 10), islice(headers.all("cc"), 10))
    for count, mailbox in enumerate(chain.from_iterable(map(mailboxes, fields))):
        found.setdefault(mailbox.address.lower(), mailbox)
        if len(found) > ADDRESSES or count == MAILBOXES:
            defects.add("too-many-recipients")
            break
    return list(found.values())[:ADDRESSES]


def _envelope_sender(headers: Headers, authentication: Authentication) -> str | None:
    if "return-path" in headers:
        return _address(headers.first("return-path"))
    return authentication.mail_from


def _message_id(field: str) -> str | None:
    found = _MESSAGE_ID.search(field)
    text = "".join((found[0] if found else field).split())[:998]
    return text if text.strip("<>") else None


def _guid(field: str) -> str | None:
    return field.lower() if _GUID.fullmatch(field.lower()) else None


def _sent(headers: Headers, defects: set[str]) -> datetime | None:
    field = headers.first("date")
    date = _date(field)
    if date is None:
        defects.add("bad-date" if field else "no-date")
    return date


def _received(headers: Headers) -> datetime | None:
    """Return the date of the topmost Received field with a date, which the last server added."""
    dates = (_date(field.rpartition(";")[2]) for field in islice(headers.all("received"), 10))
    return next((date for date in dates if date), None)


def _date(field: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(field[:200])
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
