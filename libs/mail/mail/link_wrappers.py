"""
Links that a service has wrapped around another link, and how to extract the original.

Sources: Microsoft Learn, "Safe Links in Microsoft Defender for Office 365"; the pages of Proofpoint and the other
vendors on URL rewriting; for redirectors of search engines and social networks, observed links.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote

Reader: TypeAlias = Callable[[str], str | None]
"""Takes the part of a link after the host; returns the link inside, or None if there is none."""

LAYERS = 8
"""Maximum number of wrappers removed from one link. Forwarded messages have two or three."""

_MOST_FIELDS = 50
_GOOGLE = re.compile(r"(?:www\.)?google\.(?:com?\.)?[a-z]{2,3}")
_PROOFPOINT_3 = re.compile(r"/v3/__([^\s]+?)__(?:;([\w-]*)|$)", re.ASCII)
_PROOFPOINT_GAP = re.compile(r"\*(?:\*(.))?", re.DOTALL)
_ONE_SLASH = re.compile(r"(?<=\w):/(?!/)")
_RUNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def unwrapped(host: str, rest: str) -> str | None:
    """Return the link inside a link to *host* with path and query *rest*; None if it is not wrapped."""
    reader = _find(host, _WRAPPERS) or _find(host, _REDIRECTORS)
    if reader is None and "google" in host and _GOOGLE.fullmatch(host):
        reader = _google
    target = reader(rest) if reader else None
    return target if target and "://" in target else None


def is_wrapper(host: str) -> bool:
    """Return True if links to *host* only redirect elsewhere, even if the target cannot be extracted."""
    return _find(host, _WRAPPERS) is not None


def _find(host: str, readers: Mapping[str, Reader]) -> Reader | None:
    labels = host.split(".")[-4:]
    names = (".".join(labels[start:]) for start in range(len(labels) - 1))
    return next((reader for name in names if (reader := readers.get(name))), None)


def _query(rest: str) -> dict[str, str]:
    """Return the fields of a query by name; the first value of a name counts."""
    query = rest.partition("?")[2].partition("#")[0].replace("&amp;", "&")
    return dict(reversed(parse_qsl("&".join(islice(query.split("&"), _MOST_FIELDS)))))


def _field(*names: str, at: str = "/") -> Reader:
    """Return a reader of the link in query field *names* under the path *at*, or None if the fields disagree."""

    def read(rest: str) -> str | None:
        fields = _query(rest) if rest.startswith((at, "?")) else {}
        found = {fields[name] for name in names if "://" in fields.get(name, "")}
        return found.pop() if len(found) == 1 else None

    return read


def _google(rest: str) -> str | None:
    if rest.startswith("/amp/s/"):
        return f"https://{rest.removeprefix('/amp/s/')}"
    return _field("q", "url", at="/url")(rest)


def _proofpoint(rest: str) -> str | None:
    if rest.startswith("/v3/"):
        return _proofpoint_3(rest)
    target = _query(rest).get("u", "")
    return unquote(target.translate(str.maketrans("-_", "%/"))) if rest.startswith("/v2/") else target


def _proofpoint_3(rest: str) -> str | None:
    """Decode version 3, which moves some characters into a base64 suffix, in the order of the gaps."""
    found = _PROOFPOINT_3.match(rest)
    if not found:
        return None
    left_out = iter((_base64(found[2] or "") or b"").decode("utf-8", "replace"))

    def fill(gap: re.Match[str]) -> str:
        length = _RUNS.find(gap[1]) + 2 if gap[1] else 1
        return "".join(islice(left_out, length))

    return _ONE_SLASH.sub("://", _PROOFPOINT_GAP.sub(fill, found[1]), count=1)


def _last_segment(rest: str) -> str | None:
    return unquote(rest.partition("?")[0].partition("#")[0].rpartition("/")[2])


def _base64_field(name: str, *, prefix: str = "") -> Reader:
    def read(rest: str) -> str | None:
        decoded = _base64(_query(rest).get(name, "").removeprefix(prefix))
        return decoded.decode("utf-8", "replace") if decoded else None

    return read


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _opaque(_rest: str) -> None:
    """Handle a service whose links do not contain their target."""


_WRAPPERS: dict[str, Reader] = {
    "clicktime.symantec.com": _field("u"),
    "ctp.trendmicro.com": _field("url"),
    "cudasvc.com": _field("a"),
    "emailprotection.link": _opaque,
    "mimecast.com": _opaque,
    "mimecastprotect.com": _opaque,
    "protect2.fireeye.com": _field("u"),
    "protection.sophos.com": _base64_field("u"),
    "safelinks.protection.office365.us": _field("url"),
    "safelinks.protection.outlook.cn": _field("url"),
    "safelinks.protection.outlook.com": _field("url"),
    "secure-web.cisco.com": _last_segment,
    "slack-redir.net": _field("url"),
    "urldefense.com": _proofpoint,
    "urldefense.proofpoint.com": _proofpoint,
    "urldefense.us": _proofpoint,
}
"""Hosts of services that only wrap links, including their subdomains."""
_REDIRECTORS: dict[str, Reader] = {
    "adclick.g.doubleclick.net": _field("adurl"),
    "bing.com": _base64_field("u", prefix="a1"),
    "duckduckgo.com": _field("uddg", at="/l/"),
    "facebook.com": _field("u", at="/l.php"),
    "googleadservices.com": _field("adurl"),
    "l.instagram.com": _field("u"),
    "linkedin.com": _field("url", at="/redir"),
    "out.reddit.com": _field("url"),
    "vk.com": _field("to", at="/away"),
    "youtube.com": _field("q", at="/redirect"),
}
"""Sites with content of their own that also redirect."""
