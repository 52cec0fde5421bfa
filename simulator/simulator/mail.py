"""The facts of a raw mail that a verdict looks at."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import getaddresses, parsedate_to_datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

_URL = re.compile(r"https?://[^\s<>\"'\])}]+", re.IGNORECASE)
_RESULT = re.compile(r"\b(spf|dkim|dmarc|compauth)\s*=\s*(\w+)", re.IGNORECASE)
_ADDRESS = re.compile(r"[^\s<>()\[\],;:\"@]{1,64}@[^\s<>()\[\],;:\"@]+")
_UNSEEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(style|script)\b.*?(?:</\1\b[^>]*>?|\Z)|(?<=data:)[^\s\"'>]{200,}", re.DOTALL | re.IGNORECASE
)
_PIECE = 4_096
_FIELD_CHARS = 10_000
"""What is read of an address field."""


class NotAMailError(ValueError):
    """The bytes are not an RFC 5322 message."""


@dataclass(frozen=True)
class Attachment:
    """An attached file's name and SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Link:
    """A link and the text that the reader sees instead of it (empty for a bare link)."""

    url: str
    text: str = ""


@dataclass(frozen=True)
class Mail:
    """A mail as the verdict rules see it. Addresses and header values are lower-cased; absent ones are empty."""

    sha256: str
    internet_message_id: str
    subject: str = ""
    sender: str = ""
    sender_name: str = ""
    envelope_sender: str = ""
    recipients: tuple[str, ...] = ()
    sender_ip: str = ""
    received: datetime | None = None
    report: tuple[tuple[str, str], ...] = ()
    authentication: tuple[tuple[str, str], ...] = ()
    links: tuple[Link, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    text: str = ""
    encrypted: bool = False

    @property
    def sender_domain(self) -> str:
        """The domain of the From address."""
        return self.sender.rpartition("@")[2]

    def antispam(self, field: str) -> str:
        """Return a field of X-Forefront-Antispam-Report or X-Microsoft-Antispam, e.g. `SFV`; empty when absent."""
        return dict(self.report).get(field, "")

    def level(self, field: str) -> int | None:
        """Return a numeric field such as `SCL` or `BCL`."""
        value = self.antispam(field)
        return int(value) if re.fullmatch(r"-?\d+", value) else None

    def authenticated(self, method: str) -> str:
        """Return the result of `spf`, `dkim`, `dmarc` or `compauth`; empty when absent."""
        return dict(self.authentication).get(method, "")


def read_mail(raw: bytes) -> Mail:
    """Read *raw*; raise NotAMailError when it has no header that a mail needs."""
    message = _message(raw)
    if not any(message.get(name) for name in ("From", "Message-ID", "Received", "Date")):
        raise NotAMailError("The content has none of the headers From, Date, Received and Message-ID.")
    sha256 = hashlib.sha256(raw).hexdigest()
    report = _report(message)
    texts, links, attachments = _parts(message)
    name, sender = _address(message, "From")
    return Mail(
        sha256=sha256,
        internet_message_id=_text(message, "Message-ID") or f"<{sha256[:32]}@missing.invalid>",
        subject=_text(message, "Subject"),
        sender=sender,
        sender_name=name,
        envelope_sender=_address(message, "Return-Path")[1],
        recipients=tuple(address for _, address in _addresses(message, "To", "Cc")),
        sender_ip=report.get("CIP", ""),
        received=_received(message),
        report=tuple(report.items()),
        authentication=_authentication(message),
        links=tuple(links),
        attachments=tuple(attachments),
        text="\n".join(texts),
        encrypted=message.get_content_type() in {"application/pkcs7-mime", "multipart/encrypted"},
    )


def bodies(raw: bytes) -> tuple[str, str]:
    """Return the plain text and the HTML that a reader would be shown; empty for a form that *raw* does not have."""
    found = {"text/plain": "", "text/html": ""}
    for part in _message(raw).walk():
        kind = part.get_content_type()
        content = part.get_payload(decode=True) if found.get(kind) == "" and not part.get_filename() else None
        if isinstance(content, bytes):
            found[kind] = _decoded(part, content)
    return found["text/plain"], found["text/html"]


def _message(raw: bytes) -> "Message[str, str]":
    """Parse *raw*. Of parts in parts without end, which the standard library cannot read, the header alone."""
    try:
        message = message_from_bytes(raw)
        for _ in message.walk():
            pass
    except RecursionError:
        return BytesHeaderParser().parsebytes(raw)
    return message


def _text(message: "Message[str, str]", name: str) -> str:
    value = message.get(name)
    if value is None:
        return ""
    try:
        decoded = str(make_header(decode_header(str(value))))
    except (LookupError, ValueError, MessageError):
        decoded = str(value)
    return " ".join(decoded.split())


def _addresses(message: "Message[str, str]", *names: str) -> list[tuple[str, str]]:
    values = [str(value)[:_FIELD_CHARS] for name in names for value in message.get_all(name, [])]
    try:
        found = getaddresses(values)
    except RecursionError:  # the standard library goes one level deeper with each colon
        found = [("", address) for value in values for address in _ADDRESS.findall(value)]
    return [(name, address.lower()) for name, address in found if "@" in address]


def _address(message: "Message[str, str]", name: str) -> tuple[str, str]:
    found = _addresses(message, name)
    return found[0] if found else ("", "")


def _report(message: "Message[str, str]") -> dict[str, str]:
    fields: dict[str, str] = {}
    for header in ("X-Forefront-Antispam-Report", "X-Microsoft-Antispam"):
        for part in str(message.get(header, "")).split(";"):
            key, colon, value = part.strip().partition(":")
            if colon and key.upper() not in fields:
                fields[key.upper()] = value.strip()
    scl = message.get("X-MS-Exchange-Organization-SCL")
    if scl is not None:
        fields.setdefault("SCL", str(scl).strip())
    return fields


def _authentication(message: "Message[str, str]") -> tuple[tuple[str, str], ...]:
    results: dict[str, str] = {}
    for header in message.get_all("Authentication-Results", []):
        for method, result in _RESULT.findall(str(header)):
            results.setdefault(method.lower(), result.lower())
    return tuple(results.items())


def _received(message: "Message[str, str]") -> datetime | None:
    received = [str(value).rpartition(";")[2] for value in message.get_all("Received", [])[:1]]
    for value in (*received, str(message.get("Date", ""))):
        try:
            parsed = parsedate_to_datetime(value.strip())
        except (ValueError, IndexError, TypeError, OverflowError):
            continue
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return None


def _parts(message: "Message[str, str]") -> tuple[list[str], list[Link], list[Attachment]]:
    texts: list[str] = []
    links: list[Link] = []
    attachments: list[Attachment] = []
    for part in message.walk():
        if part.is_multipart():
            continue
        raw: Any = part.get_payload(decode=True)
        content = raw if isinstance(raw, bytes) else b""
        name = part.get_filename()
        if name or part.get_content_maintype() != "text":
            attachments.append(Attachment(name or "unnamed", hashlib.sha256(content).hexdigest()))
            continue
        text = _decoded(part, content)
        if part.get_content_subtype() == "html":
            page = _read_page(text)
            links.extend(page.links)
            text = " ".join(page.text)
        links.extend(Link(url.rstrip(".,;:!?")) for url in _URL.findall(text))
        texts.append(text)
    return texts, [link for link in dict.fromkeys(links) if _is_url(link.url)], attachments


def _is_url(text: str) -> bool:
    try:
        return bool(urlsplit(text).hostname)
    except ValueError:
        return False


def _decoded(part: "Message[str, str]", content: bytes) -> str:
    try:
        return content.decode(part.get_content_charset() or "utf-8", "replace")
    except (LookupError, ValueError):  # a charset that is unknown, or not even a name
        return content.decode("utf-8", "replace")


def _read_page(text: str) -> "_Page":
    """
    Read HTML, up to a tag that does not end within a few pieces.

    The standard library looks for the end of a tag anew from each of its beginnings, which takes minutes when there are
    thousands and no end.
    """
    page, text = _Page(), _UNSEEN.sub("", text)
    for start in range(0, len(text), _PIECE):
        page.feed(text[start : start + _PIECE])
        if len(page.rawdata) > 4 * _PIECE:
            return page
    page.close()
    return page


class _Page(HTMLParser):
    """The text and the links of an HTML part."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.links: list[Link] = []
        self._href = ""
        self._label: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._href, self._label = (dict(attrs).get("href") or "").strip(), []

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and _URL.match(self._href):
            self.links.append(Link(self._href, " ".join(self._label)))
            self._href = ""

    def handle_data(self, data: str) -> None:
        words = data.split()
        self.text.extend(words)
        if self._href:
            self._label.extend(words)
