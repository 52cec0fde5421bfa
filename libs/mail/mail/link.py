"""Where a link really leads, with its host as DNS knows it, and what is suspicious about it."""

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import unquote

from mail.text import URL_CHARS, ascii_domain, normal_url

LINK_TEXT_CHARS = 200

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0e\ufeff\uffa0\ufff0-\uffff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    # Joiners belong to Persian, Indic scripts and emoji; next to ASCII they only obscure the text.
    "|(?:(?<=[\x00-\x7f])|^)[\u200c\u200d]|[\u200c\u200d](?=[\x00-\x7f\u200c\u200d]|$)"
)
_MARKS = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\ufe20-\ufe2f]{3})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\ufe20-\ufe2f]+"
)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30}):", re.IGNORECASE)
_NAMED = re.compile(r"(?:(?:https?|ftp):[\\/]*|www\.)\S+|[^\s/@:]+\.[^\W\d_]{2,}(?:[:/?#]\S*)?", re.IGNORECASE)
_FILE_ENDINGS = frozenset(
    ("pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "txt", "htm", "html", "zip", "jpg", "png", "csv")
)
_LOOKALIKES = frozenset(
    "\u0430\u0432\u0441\u0501\u0435\u04bb\u0456\u0458\u043a\u04cf\u043c\u043d\u043e\u0440\u051b\u0433\u0455\u0442\u0443\u0475\u051d\u0445\u044c\u044f"
    "\u03b1\u03b2\u03b5\u03b7\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u03c9\u03b3\u03bc"
)
"""Cyrillic and Greek letters that look like Latin ones. A name made only of these is meant to be read as Latin."""
_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "LATIN"))


@dataclass(frozen=True, slots=True)
class Link:
    """
    A link in a message: the text that readers see, and the target.

    The host of `target` is in lower case and ASCII (`xn--...`). `warnings` says what is deceptive: `other-host` (the
    text names a host that is not the target's), `mixed-scripts` and `lookalike` (letters of the host resemble Latin
    ones), `credentials` (text before an @ poses as the host), `address` (a number instead of a name), `no-website` (a
    script, a file, a program).
    """

    text: str
    target: str
    host: str | None
    warnings: tuple[str, ...] = ()


def visible(text: str) -> tuple[str, int]:
    """
    Return *text* without characters that are invisible or reorder others, and the number removed.

    These are bidirectional controls, zero-width characters, tags, fillers and stacked accents.
    """
    if text.isascii():
        return text, 0
    shown = _MARKS.sub(r"\1", _INVISIBLE.sub("", text))
    return shown, len(text) - len(shown)


def read_link(text: str, href: str) -> Link:
    """Return the link with this text and target. Never raises."""
    text = visible(" ".join(text[: 4 * LINK_TEXT_CHARS].split()))[0][:LINK_TEXT_CHARS]
    url = normal_url(href)
    if url is None:
        return _no_website(text, href)
    target, host = _with_ascii_host(url)
    warnings = [*_odd_host(host)]
    if "@" in re.split(r"[/?#]", target.partition("://")[2], maxsplit=1)[0]:
        warnings.append("credentials")
    named = named_host(text)
    if named and not _related(named, host):
        warnings.append("other-host")
    return Link(text, target[:URL_CHARS], host, tuple(warnings))


def named_host(text: str) -> str | None:
    """Return the host that *text* names, if it is nothing but a web address."""
    found = _NAMED.fullmatch(text)
    if not found:
        return None
    url = normal_url(text if "://" in text or text.lower().startswith(("http", "ftp", "www.")) else f"http://{text}")
    host = _with_ascii_host(url)[1] if url else ""
    if not host or "." not in host or host.rpartition(".")[2] in _FILE_ENDINGS:
        return None
    return host


def _no_website(text: str, href: str) -> Link:
    target = visible("".join(href[: 4 * URL_CHARS].split()))[0][:URL_CHARS]
    scheme = _SCHEME.match(target)
    if not scheme or scheme[1].lower() in {"cid", "mid"}:
        # Leads to a part of the message itself, or nowhere.
        return Link(text, target, None)
    if scheme[1].lower() == "mailto":
        domain = ascii_domain(target.partition("?")[0].rpartition("@")[2])
        named = named_host(text.rpartition("@")[2]) if "@" in text else None
        return Link(text, target, None, ("other-host",) if named and not _related(named, domain) else ())
    return Link(text, target, None, () if scheme[1].lower() in {"tel", "sms"} else ("no-website",))


def _with_ascii_host(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    user, at, place = authority.rpartition("@")
    name, colon, port = (place, "", "") if place.startswith("[") else place.partition(":")
    if "%" in name:
        name = ascii_domain(visible(unquote(name))[0])
    host = ".".join(_ascii_label(label) for label in name.split("."))
    return visible(f"{scheme}://{user}{at}{host}{colon}{port}{path}")[0], host


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    return "xn--" + label[:255].encode("punycode", "replace").decode("ascii", "replace")


def unicode_host(host: str) -> str:
    """Return *host* in Unicode, as an unsuspecting browser would show it."""
    labels = []
    for label in host.split("."):
        try:
            labels.append(label[4:255].encode("ascii").decode("punycode") if label.startswith("xn--") else label)
        except (UnicodeError, ValueError):
            labels.append(label)
    return ".".join(labels)


def _odd_host(host: str) -> list[str]:
    warnings = []
    if host.startswith("[") or re.fullmatch(r"(?:0x[0-9a-f]*|\d+)(?:\.(?:0x[0-9a-f]*|\d+))*", host):
        warnings.append("address")
    for label in unicode_host(host).split("."):
        letters = [letter for letter in label if letter.isalpha()]
        scripts = {unicodedata.name(letter, "?").split()[0].partition("-")[0] for letter in letters}
        if len(scripts) > 1 and not scripts <= _EAST_ASIAN and "mixed-scripts" not in warnings:
            warnings.append("mixed-scripts")
        if letters and scripts != {"LATIN"} and _LOOKALIKES.issuperset(letters) and "lookalike" not in warnings:
            warnings.append("lookalike")
    return warnings


def _related(one: str, other: str) -> bool:
    one, other = one.removeprefix("www."), other.removeprefix("www.")
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")
