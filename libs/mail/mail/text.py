"""
Addresses, the visible text of HTML, and links.

HTML is parsed by lexbor. A tree that conforms to the HTML standard can be a thousand times larger than its source,
because unclosed formatting elements are reopened in every paragraph: 52 KB of them took 3.2 GB and 12 seconds, and
nesting and attributes take quadratic time (measured). Therefore formatting elements are replaced by spans, and only the
beginning of the markup is parsed into a tree; the rest is searched for links as text.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from html import unescape
from itertools import islice
from typing import NamedTuple

import idna
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser

from mail.link_wrappers import LAYERS, unwrapped
from mail.mime import decode_words, printable

HTML_CHARS = 100_000
HTML_TAGS = 10_000
"""Limits on the markup that is parsed into a tree. The most hostile sample found takes 0.8 seconds."""
URL_CHARS = 2_048

_MAILBOX = re.compile(
    r'(?P<quoted>"(?:[^"\\]|\\.)*+")'
    r"|\((?P<comment>(?:[^()\\]|\\.)*+)\)"
    r"|<(?P<angle>[^<>]*)>"
    r"|(?P<end>[,;])"
    r"|(?P<group>:)"
    r'|(?P<other>(?:\\.|[^"(<,;:\\])++|.)',
    re.DOTALL,
)
_WORD = r'[^\s"<>,;:()\\@]+'
_PLAIN_MAILBOX = re.compile(
    rf'(?P<name>"[^"\\]*"\s*|[^"<>,;:()\\@]*)<(?P<angle>{_WORD}@{_WORD})>|(?P<bare>{_WORD}@{_WORD})'
)
"""Matches nearly all address fields with one mailbox, five times as fast as the tokens above."""
_COMMENT = re.compile(r"\((?:[^()\\]|\\.)*+(\)?)")
"""Also matches an unclosed comment, which is kept and not tried again from each parenthesis inside."""
_ADDRESS = re.compile(r'(?:"[^"]{0,100}"|(?<![^\s"@<>,;()])[^\s"@<>,;()]++)@[^\s"<>,;()]+')
_LOCAL_CHARS = 200
"""Characters read of a local part that is not in angle brackets."""
_ADDRESS_CHARS = 320

_URL = re.compile(r"(?:https?|ftp)://[^\s<>\"\x00-\x1f]+|(?<![\w@/.-])www\.[^\s<>\"\x00-\x1f]+", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(https?|ftp):[\\/]*([^\\/?#]+)(.*)|[\\/]{2}([^\\/?#]+)(.*)", re.IGNORECASE | re.DOTALL)
_PATH = re.compile(r"[^?#]*")
_CONDITIONAL = re.compile(r"<!--\[if[^\]>]{0,200}\]>(?:<!-->|<!-- -->)?|(?:<!--)?<!\[endif\]-->", re.IGNORECASE)
_DATA_URL = re.compile(r"data:[\w.+/-]{1,80};base64,[A-Za-z0-9+/=%]{200,}+", re.IGNORECASE)
_FORMATTING = re.compile(
    r"<(/?)(?:b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?=[\s/>])", re.IGNORECASE | re.ASCII
)
_REFRESH = re.compile(r"url\s*+=\s*+[\"']?\s*+([^\s\"']+)", re.IGNORECASE)

_OPENING = {")": "(", "]": "[", "}": "{"}
_LINKS = "[href],[src],[action],[formaction],meta[http-equiv=refresh i]"
_LINK_ATTRIBUTES = ("href", "src", "action", "formaction")
_INVISIBLE = (
    'script,style,template,noscript,title,[hidden],[style*="display:none" i],[style*="display: none" i],'
    '[style*="visibility:hidden" i],[style*="font-size:0" i]'
)


class Mailbox(NamedTuple):
    """One address of an address field. Its domain is normalised by `mail_domain`; the name may be empty."""

    name: str
    address: str


def mailboxes(field: str) -> Iterator[Mailbox]:
    """
    Yield the mailboxes of an address field, even of a malformed one.

    The address in angle brackets counts: `"boss@example.com" <thief@example.net>` is the thief. Encoded words are
    decoded after the field has been parsed, so that they cannot affect its structure.
    """
    if not field:
        return
    if plain := _PLAIN_MAILBOX.fullmatch(field):
        if mailbox := _mailbox(plain["name"] or "", "", plain["angle"] or plain["bare"]):
            yield mailbox
        return
    phrase, comment, angle = "", "", ""
    for token in _MAILBOX.finditer(field + ","):
        kind = token.lastgroup
        if kind == "angle":
            angle = angle if "@" in angle else token["angle"]
        elif kind == "comment":
            comment = token["comment"]
        elif kind == "group":
            phrase = ""
        elif kind != "end":
            phrase += token[0]
        else:
            if mailbox := _mailbox(phrase, comment, angle):
                yield mailbox
            phrase, comment, angle = "", "", ""


def _mailbox(phrase: str, comment: str, angle: str) -> Mailbox | None:
    if "@" in angle:
        # A source route (<@relay:user@example.com>) is obsolete and not part of the address.
        address = angle.rpartition(":")[2].strip()
        name = phrase
        if address.startswith('"') and address.endswith('"'):
            address = address[1:-1]
    else:
        text = phrase if "@" in phrase else decode_words(phrase)
        found = _ADDRESS.search(text) or _ADDRESS.search(text.replace('"', " "))
        if not found:
            return None
        # A local part that is too long is cut to its last characters, which may be the real one.
        address, name = found[0][max(0, found[0].index("@") - _LOCAL_CHARS) :], comment
    if "(" in address:
        address = _COMMENT.sub(lambda comment: "" if comment[1] else comment[0], address)
    local, _, domain = printable(address).replace(" ", "").rpartition("@")
    domain = domain.strip(".")
    if not local or len(local) + len(domain) > _ADDRESS_CHARS:
        return None
    domain = mail_domain(domain)
    if not domain or len(local) + len(domain) > _ADDRESS_CHARS:
        return None
    if '"' in name:
        name = re.sub(r'\\(.)|"', r"\1", name)
    return Mailbox(printable(decode_words(name[:2000]))[:255] if name else "", f"{local}@{domain}")


def mail_domain(domain: str) -> str:
    """
    Return the domain of an address in lower case and as DNS knows it, or unchanged if it is not a valid DNS name.

    Unlike browsers, email maps no letters to similar ones: `bank.example` in mathematical letters is not the bank's
    domain.
    """
    domain = domain.strip(".").lower()
    return domain if domain.isascii() else _idna_encode(domain[:255], uts46=False) or domain


def ascii_domain(domain: str) -> str:
    """Return *domain* in lower case and as DNS knows it: `MÜNCHEN.example.` is `xn--mnchen-3ya.example`."""
    domain = domain.strip(".").lower()
    return domain if domain.isascii() else _idna_encode(domain[:255], uts46=True) or domain


@lru_cache(maxsize=1024)  # half a millisecond for the longest, which a message may repeat thousands of times
def _idna_encode(domain: str, *, uts46: bool) -> str | None:
    try:
        return idna.encode(domain, uts46=uts46).decode()
    except idna.IDNAError:
        return None


def read_html(markup: str, room: int) -> tuple[str, list[str], str]:
    """
    Return the visible text, the links in page order, and the rest of the markup that was not parsed.

    At most *room* characters are parsed into a tree.
    """
    if "data:" in markup:
        markup = _DATA_URL.sub("data:", markup)
    head, rest = _cut(markup, room)
    if "<![endif]" in head:
        # Outlook shows the content of these comments.
        head = _CONDITIONAL.sub("", head)
    tree = LexborHTMLParser(_FORMATTING.sub(r"<\1span", head), options=LexborDocumentOptions.WO_EVENTS)
    links = []
    for node in tree.css(_LINKS):
        attributes = node.attributes
        links += [value for name in _LINK_ATTRIBUTES if (value := attributes.get(name))]
        if node.tag == "meta" and (found := _REFRESH.search(attributes.get("content") or "")):
            links.append(found[1])
    for node in tree.css(_INVISIBLE):
        if node.tag not in {"html", "body"}:  # the root cannot be removed
            node.decompose()
    return tree.body.text(separator=" ") if tree.body else "", links, rest


def _cut(markup: str, room: int) -> tuple[str, str]:
    end = min(len(markup), room)
    if markup.count("<", 0, end) > HTML_TAGS:
        *_, last = islice(re.finditer("<", markup), HTML_TAGS)
        end = last.start()
    if end == len(markup):
        return markup, ""
    end = max(markup.rfind("<", 0, end), end // 2)
    return markup[:end], markup[end:]


def find_urls(text: str) -> Iterator[str]:
    """Yield the URLs in plain text that mail programs turn into links."""
    if "://" in text or "www." in text or "WWW." in text:
        for found in _URL.finditer(text):
            yield _without_tail(found[0][: 4 * URL_CHARS])


def unescaped(markup: str) -> str:
    """Return *markup* with its character references resolved, or unchanged if the standard library fails."""
    try:
        return unescape(markup)
    except ValueError:  # a reference with thousands of digits
        return markup


def _without_tail(url: str) -> str:
    """Return *url* without trailing punctuation and closing brackets that were opened before it."""
    for _ in range(10):
        trimmed = url.rstrip(".,;:!?'*|")
        closing = trimmed[-1:]
        if closing in _OPENING and trimmed.count(closing) > trimmed.count(_OPENING[closing]):
            trimmed = trimmed[:-1]
        if trimmed == url:
            break
        url = trimmed
    return url


def normal_url(link: str, *, layers: int = LAYERS) -> str | None:
    """
    Return *link* as a browser interprets it, or None if it does not lead to a web or FTP server.

    Browsers tolerate white space, backslashes and missing slashes, which attackers exploit. Safe Links and other
    wrappers are removed, at most *layers* of them, because a link rewritten on delivery is no indicator.
    """
    link = "".join(link[: 4 * URL_CHARS].split())
    if link[:4].lower() == "www.":
        link = f"http://{link}"
    found = _ABSOLUTE.match(link)
    if not found:
        return None
    scheme, authority, path = (found[1].lower(), found[2], found[3]) if found[1] else ("http", found[4], found[5])
    user, at, host = authority.rpartition("@")
    name, colon, port = host.partition(":") if not host.startswith("[") else (host, "", "")
    if "\\" in path:
        path = _PATH.sub(lambda found: found[0].replace("\\", "/"), path, count=1)
    name = ascii_domain(printable(name))
    if not name:
        return None
    if layers and (target := unwrapped(name, path)) and (url := normal_url(target, layers=layers - 1)):
        return url
    return printable(f"{scheme}://{user}{at}{name}{colon}{port}{path}").replace(" ", "")


def host_of(url: str) -> str:
    """Return the host of a URL returned by `normal_url`."""
    authority = re.split(r"[\\/?#]", url.partition("://")[2], maxsplit=1)[0]
    return authority.rpartition("@")[2].partition(":")[0]
