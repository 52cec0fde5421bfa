"""
The structure of a raw message: header fields, parts, and the content of the parts.

The standard library handles dates, RFC 2231 parameters and transfer encodings. It does not find header fields and
boundaries, because its parser reads line by line, recursively and without limits: two megabytes inside 300 nested
multiparts took 35 seconds, and 2,000 levels end in RecursionError (measured, Python 3.11). Here both are searches in C
over the original bytes, and exceeding a limit is recorded as a defect, never raised.
"""

import binascii
import codecs
import encodings
import re
from collections.abc import Iterator, KeysView
from dataclasses import dataclass
from email.utils import decode_params
from encodings import normalize_encoding
from encodings.aliases import aliases
from functools import lru_cache
from pkgutil import iter_modules

HEADER_BYTES = 1_048_576
"""Bytes of the message header that are read; Exchange Online accepts 256 KB."""
PART_HEADER_BYTES = 16_384
HEADER_FIELDS = 10_000
FIELD_CHARS = 65_536
DEPTH = 20
"""Levels of multiparts that are parsed. Anything deeper is one opaque part."""
PARTS = 1_000
PARAMETERS = 200
"""Parameters of a Content-Type or Content-Disposition that are read."""

_END_OF_HEADER = re.compile(rb"\n\r?\n")
_FIELD = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.-]*)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.MULTILINE)
_TYPE = re.compile(r"\s*([\w.+-]+/[\w.+-]+)", re.ASCII)
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^;]*))')
_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?((?:[^?]|\?(?!=))*+)(?:\?=|(\Z))")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_META_CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s*+=\s*+[\"']?\s*+([\w.:-]{1,40})", re.IGNORECASE)

_SUPERSETS = {
    "iso8859-1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
}
"""The character sets that mail programs actually use under the names on the left (WHATWG Encoding Standard)."""


def _codec_key(charset: str) -> str:
    return normalize_encoding(charset).replace(".", "_").lower()


_CODECS = {
    _codec_key(name)
    for name in (*aliases, *aliases.values(), *(module.name for module in iter_modules(encodings.__path__)))
}
"""Names that Python may know. Any other name makes it search the disk and cache the miss for ever."""
_NO_CHARSETS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
"""Python codecs that are not charsets of email and are slow or unsafe on hostile input."""
_UNPRINTABLE = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)], " ")


class Headers:
    """The header fields of a message or part by lower-case name, in their original order."""

    __slots__ = ("_fields", "_guessed")

    def __init__(self, block: bytes, defects: set[str]) -> None:
        try:
            text, self._guessed = block.decode(), False
        except UnicodeDecodeError:
            # Latin-1 preserves every byte, so that each field can still be decoded in its own charset.
            text, self._guessed = block.decode("latin-1"), True
        fields = _FIELD.findall(text)
        if len(fields) > HEADER_FIELDS:
            defects.add("too-many-headers")
            del fields[HEADER_FIELDS:]
        self._fields: dict[str, list[str]] = {}
        for name, value in fields:
            if len(value) > FIELD_CHARS:
                defects.add("long-header")
            self._fields.setdefault(name.lower(), []).append(value[:FIELD_CHARS])

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def names(self) -> KeysView[str]:
        """Return all names, in lower case."""
        return self._fields.keys()

    def all(self, name: str) -> Iterator[str]:
        """Yield every value of *name*, topmost first: unfolded, printable, with runs of white space collapsed."""
        return map(self._read, self._fields.get(name, ()))

    def first(self, name: str) -> str:
        """Return the topmost value of *name*, as in `all`, or an empty string."""
        values = self._fields.get(name)
        return self._read(values[0]) if values else ""

    def unfolded(self, name: str) -> str:
        """Return the topmost value of *name* on one line with its white space preserved, or an empty string."""
        values = self._fields.get(name)
        return self._decode(values[0]).replace("\r", "").replace("\n", "") if values else ""

    def _read(self, value: str) -> str:
        return printable(self._decode(value))

    def _decode(self, value: str) -> str:
        return decode_text(value.encode("latin-1"), "") if self._guessed and not value.isascii() else value


@dataclass(frozen=True, slots=True)
class Part:
    """
    A part without parts of its own: a text, an attachment, an attached message.

    `choices` identifies the enclosing multipart/alternatives, outermost first, and the branch in each.
    """

    content_type: str
    charset: str
    filename: str | None
    disposition: str
    content_id: str | None
    encoding: str
    body: bytes
    choices: tuple[tuple[int, int], ...] = ()

    def content(self, limit: int | None = None) -> tuple[bytes, bool]:
        """Decode the body, or its first *limit* bytes. Also return True if the encoding was undamaged."""
        return decode_transfer(self.body[:limit], self.encoding)


def read_header(raw: bytes, start: int, end: int, limit: int, defects: set[str]) -> tuple[Headers, int]:
    """Read the header that begins at *start*; return it and the offset of the body."""
    if raw.startswith((b"\n", b"\r\n"), start, end):
        return Headers(b"", defects), raw.index(b"\n", start) + 1
    found = _END_OF_HEADER.search(raw, start, end)
    stop, body = (found.start(), found.end()) if found else (end, end)
    if stop - start > limit:
        defects.add("long-header")
        stop = start + limit
    return Headers(raw[start:stop], defects), body


def read_parts(raw: bytes, headers: Headers, start: int, defects: set[str]) -> Iterator[Part]:
    """
    Yield the parts that have no parts of their own, in the order of the message.

    An attached message is one such part. May add to *defects*: too-deep, too-many-parts, no-boundary,
    unclosed-multipart.
    """
    choices: tuple[tuple[int, int], ...] = ()
    waiting = [(headers, start, len(raw), 0, "text/plain", choices)]
    room = PARTS
    while waiting:
        headers, start, end, depth, default, choices = waiting.pop()
        content_type, parameters = _content_type(headers, default)
        if content_type.startswith("multipart/"):
            spans: list[tuple[int, int]] = []
            if depth >= DEPTH:
                defects.add("too-deep")
            elif boundary := parameters.get("boundary", "").rstrip():
                spans = _split(raw, start, end, boundary, defects)
            if not spans and depth < DEPTH:
                defects.add("no-boundary")
                content_type = "text/plain"
            if len(spans) > room:
                defects.add("too-many-parts")
                del spans[room:]
            room -= len(spans)
            inner = "message/rfc822" if content_type == "multipart/digest" else "text/plain"
            is_choice = content_type == "multipart/alternative"
            for branch, (first, last) in reversed(list(enumerate(spans))):
                fields, body = read_header(raw, first, last, PART_HEADER_BYTES, defects)
                around = (*choices, (start, branch)) if is_choice else choices
                waiting.append((fields, body, last, depth + 1, inner, around))
            if spans:
                continue
        yield _part(raw[start:end], headers, content_type, parameters, choices)


def _part(
    body: bytes,
    headers: Headers,
    content_type: str,
    parameters: dict[str, str],
    choices: tuple[tuple[int, int], ...],
) -> Part:
    disposition, details = _parameters(headers.unfolded("content-disposition"))
    filename = details.get("filename") or parameters.get("name")
    return Part(
        content_type=content_type,
        charset=parameters.get("charset", ""),
        filename=printable(decode_words(filename[:1000]))[:255] or None if filename else None,
        disposition=disposition.strip().lower(),
        content_id=headers.first("content-id")[:200].strip(" <>") if "content-id" in headers else None,
        encoding=headers.first("content-transfer-encoding").lower().split(";")[0].strip(" \"'"),
        body=body,
        choices=choices,
    )


def _split(raw: bytes, start: int, end: int, boundary: str, defects: set[str]) -> list[tuple[int, int]]:
    """Return start and end of each part of a multipart. The line break before a boundary belongs to the boundary."""
    delimiter = b"\n--" + boundary.encode("utf-8", "replace")
    spans: list[tuple[int, int]] = []
    part = -1
    # The line break that ends the header may also begin the first boundary.
    at = raw.find(delimiter, max(start - 1, 0), end)
    for _ in range(2 * PARTS):
        if at < 0:
            break
        after = at + len(delimiter)
        line_end = raw.find(b"\n", after, min(end, after + 200))
        rest = raw[after : line_end if line_end >= 0 else end if end - after < 200 else after + 200].strip(b" \t\r")
        if rest in {b"", b"--"}:
            if part >= 0:
                spans.append((part, max(part, at - 1 if raw[at - 1 : at] == b"\r" else at)))
            if rest:
                return spans
            after = line_end if line_end >= 0 else end
            part = min(after + 1, end)
        at = raw.find(delimiter, after, end)
    else:
        defects.add("too-many-parts")
    if part >= 0:
        defects.add("unclosed-multipart")
        spans.append((part, end))
    return spans


def _content_type(headers: Headers, default: str) -> tuple[str, dict[str, str]]:
    if "content-type" not in headers:
        return default, {}
    value, parameters = _parameters(headers.unfolded("content-type"))
    found = _TYPE.match(value)
    return found[1].lower() if found else "text/plain", parameters


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    head, separator, _ = value.partition(";")
    if not separator:
        return head, {}
    pairs = [
        (name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted else plain.strip(" \"'"))
        for name, quoted, plain in _PARAMETER.findall(value)[:PARAMETERS]
    ]
    # The first value of a name counts.
    parameters = dict(reversed(pairs))
    if any("*" in name for name in parameters):
        return head, _extended(pairs) | parameters
    return head, parameters


def _extended(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Read parameters that are split into pieces or specify a charset (RFC 2231)."""
    try:
        decoded = decode_params([("", ""), *pairs])[1:]
    except (ValueError, TypeError):
        return {}
    parameters = {}
    for name, value in decoded:
        if isinstance(value, tuple):
            charset, _, text = value
            parameters[name] = decode_text(text.strip('"').encode("latin-1", "replace"), charset or "")
        else:
            parameters[name] = value.strip('"')
    return parameters


def decode_words(value: str) -> str:
    """Decode the encoded words (RFC 2047) of a header field. Anything undecodable is left as it is."""
    if "=?" not in value:
        return value
    pieces: list[str] = []
    pending, charset, at = b"", "", 0
    for word in _ENCODED_WORD.finditer(value):
        if word[4] is not None:  # unclosed, and so are all after it
            break
        gap, at = value[at : word.start()], word.end()
        name = word[1].partition("*")[0].lower()
        data = word[3].encode()
        data = decode_base64(data)[0] if word[2] in "bB" else binascii.a2b_qp(data, header=True)
        # Adjacent words are decoded together, because senders split them in the middle of a character.
        if name == charset and not gap.strip():
            pending += data
            continue
        pieces.append(decode_text(pending, charset))
        if gap.strip() or not charset:
            pieces.append(gap)
        pending, charset = data, name
    pieces += (decode_text(pending, charset), value[at:])
    return "".join(pieces)


def decode_transfer(body: bytes, encoding: str) -> tuple[bytes, bool]:
    """Decode a Content-Transfer-Encoding. Also return True if undamaged. Unknown encodings are ignored."""
    if encoding == "base64":
        return decode_base64(body)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body), True
    if encoding in {"x-uuencode", "uuencode", "uue", "x-uue"}:
        return _decode_uu(body)
    return body, True


def decode_base64(data: bytes) -> tuple[bytes, bool]:
    """Decode base64 as far as possible. Also return True if it was undamaged."""
    try:
        return binascii.a2b_base64(data), True
    except binascii.Error:
        data = _NOT_BASE64.sub(b"", data)
        data = data[:-1] if len(data) % 4 == 1 else data
        return binascii.a2b_base64(data + b"=="), False


def _decode_uu(body: bytes) -> tuple[bytes, bool]:
    begin = re.search(rb"^begin [0-7]{3,4} [^\n]*\n", body, re.MULTILINE)
    if not begin:
        return body, False
    content = bytearray()
    for line in body[begin.end() :].splitlines():
        if line in {b"end", b"`", b" ", b""}:
            break
        try:
            content += binascii.a2b_uu(line)
        except binascii.Error:
            return bytes(content), False
    return bytes(content), True


def decode_text(data: bytes, charset: str, *, html: bool = False) -> str:
    """
    Decode *data* to valid Unicode.

    If the charset is unknown or ASCII, try UTF-8, then for HTML the charset of the meta element, then use Windows-1252,
    as mail programs do.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    codec = codec_of(charset)
    if codec is None or codec == "ascii":
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            meta = _META_CHARSET.search(data, 0, 1024) if html else None
            codec = (codec_of(meta[1].decode()) if meta else None) or "cp1252"
    text = data.decode(codec, "replace")
    # Only UTF-7 produces lone surrogates.
    return text.encode("utf-8", "replace").decode() if codec == "utf-7" else text


@lru_cache(maxsize=256)
def codec_of(charset: str) -> str | None:
    """Return the name of the codec for *charset*, or None if there is none."""
    if not re.fullmatch(r"[\w.:+()-]{1,40}", charset, re.ASCII):
        return None
    if _codec_key(charset) not in _CODECS:
        return None
    try:
        name = codecs.lookup(charset).name
        if name.replace("-", "_") in _NO_CHARSETS:
            return None
        b" ".decode(name, "ignore")  # Python's codecs that do not produce text (zlib, hex, ...) raise here
    except (LookupError, ValueError):
        return None
    return _SUPERSETS.get(name, name)


def printable(text: str) -> str:
    """Return *text* on one line, without control characters and lone surrogates, with white space collapsed."""
    text = " ".join(text.split())
    return text if text.isprintable() else " ".join(text.translate(_UNPRINTABLE).split())
