"""No bytes raise, every bound holds, and what comes out can go to PostgreSQL and JSON."""

import dataclasses
import encodings
import hashlib
import time
from collections.abc import Iterator
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail import MailFacts, parse
from mail.mime import DEPTH, PARTS
from mail.parse import ADDRESSES, MAILBOXES, SUBJECT_CHARS, URLS
from mail.text import URL_CHARS

HEAD = b"From: ann@example.com\nDate: Mon, 2 Nov 2026 10:00:00 +0000\n"
MULTIPART = HEAD + b"Content-Type: multipart/mixed; boundary=cut\n\n"


SECONDS = 4
"""Of the processor. What is bounded here takes at most one; what is not took at least five."""


def texts(value: object) -> Iterator[str]:
    """Yield every text in the facts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in texts(item))
    elif isinstance(value, tuple):
        yield from (text for item in value for text in texts(item))


def check(facts: MailFacts) -> None:
    """Hold the facts to what they promise."""
    for text in texts(dataclasses.asdict(facts)):
        text.encode("utf-8")
        assert "\0" not in text
    assert len(facts.subject or "") <= SUBJECT_CHARS
    assert len(facts.recipients) <= ADDRESSES
    assert len(facts.urls) == len(set(facts.urls)) <= URLS
    assert all(len(url) <= URL_CHARS for url in facts.urls)
    assert len(facts.attachments) <= PARTS + 1
    for date in (facts.date, facts.received_at):
        assert date is None or date.utcoffset() is not None


FRAGMENTS = st.sampled_from(
    [
        *(b"From: ", b"To: ", b"Subject: ", b"Date: ", b"Received: ", b"Message-ID: ", b"Return-Path: "),
        *(b"Authentication-Results: ", b"X-Forefront-Antispam-Report: ", b"X-Microsoft-Antispam-Mailbox-Delivery: "),
        *(b"Content-Type: ", b"Content-Transfer-Encoding: ", b"Content-Disposition: attachment; "),
        *(b"multipart/mixed; boundary=b", b'multipart/digest; boundary="b"', b"text/html; charset=", b"text/plain"),
        *(b"message/rfc822", b"base64", b"quoted-printable", b"x-uuencode", b"filename*0*=utf-7''", b"name*=x"),
        *(b"utf-7", b"utf-16", b"unicode_escape", b"idna", b"zlib", b"iso-2022-jp", b"hz", b"utf-8", b"undefined"),
        *(b"=?utf-7?q?", b"=?utf-8?b?", b"?=", b"=", b"\\ud800", b"+2AA-", b"=ED=A0=80", b"&#xD800;", b"&#0;"),
        *(b"\n", b"\r\n", b"\n\n", b"\n ", b"\n--b\n", b"\n--b--\n", b"--b", b"begin 644 x\n", b"\0", b"\xff\xfe"),
        *(
            b"<a href=",
            b"http://",
            b"www.",
            b"<!--[if mso]>",
            b"<![endif]-->",
            b"<b>",
            b"<html hidden>",
            b"<body hidden>",
            b"<frameset>",
            b"<title>",
            b"\xed\xa0\x80",
        ),
        *(b"ann@example.com", b"@", b"<", b">", b'"', b"(", b")", b"\\", b",", b";", b":", b"spf=pass", b"dest:J"),
    ]
)


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_any_bytes_have_facts(raw: bytes) -> None:
    """Noise is no reason to fail."""
    check(parse(raw))


@given(st.lists(FRAGMENTS | st.binary(max_size=6), max_size=60))
@settings(max_examples=500)
def test_anything_like_a_mail_has_facts(pieces: list[bytes]) -> None:
    """Pieces of mails in any order, with codecs and references that make trouble, have clean facts."""
    check(parse(b"Subject: x\n" + b"".join(pieces)))


@given(st.binary(max_size=200), st.sampled_from(["base64", "quoted-printable", "x-uuencode", "none"]))
@settings(max_examples=100)
def test_any_body_of_any_part_has_facts(body: bytes, encoding: str) -> None:
    """No transfer encoding fails on what is not in it."""
    for kind in (b"text/html; charset=utf-7", b"text/plain; charset=utf-16", b"image/png"):
        head = b"--cut\nContent-Type: " + kind + b"\nContent-Transfer-Encoding: " + encoding.encode() + b"\n\n"
        check(parse(MULTIPART + head + body + b"\n--cut--\n"))


def nested(levels: int, bottom: bytes) -> bytes:
    """Put *bottom* below so many multiparts."""
    raw = HEAD
    for level in range(levels):
        raw += b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level)
    return raw + b"\n" + bottom


def test_nesting_is_followed_to_its_bound() -> None:
    """The text in the deepest multipart that is allowed is read."""
    facts = parse(nested(DEPTH, b"http://deep.example"))
    assert facts.urls == ("http://deep.example",)
    assert "too-deep" not in facts.defects


@pytest.mark.parametrize("levels", [DEPTH + 1, 5_000])
def test_deeper_nesting_is_one_opaque_attachment(levels: int) -> None:
    """What is nested too deeply is kept as a whole, not opened."""
    facts = parse(nested(levels, b"http://deep.example"))
    assert [file.content_type for file in facts.attachments] == ["multipart/mixed"]
    assert facts.urls == ()
    assert "too-deep" in facts.defects


def test_parts_are_counted() -> None:
    """The first parts are read, the rest is named."""
    facts = parse(MULTIPART + b"--cut\nContent-Type: image/png\n\nx\n" * (PARTS + 500) + b"--cut--\n")
    assert len(facts.attachments) == PARTS
    assert "too-many-parts" in facts.defects


def test_parts_are_counted_over_all_levels() -> None:
    """Multiparts in multiparts share one allowance."""
    inner = b"--cut\nContent-Type: multipart/mixed; boundary=i\n\n" + b"--i\nContent-Type: image/png\n\nx\n" * 50
    facts = parse(MULTIPART + (inner + b"--i--\n") * 50 + b"--cut--\n")
    assert len(facts.attachments) < PARTS
    assert "too-many-parts" in facts.defects


def test_lines_that_only_look_like_a_boundary_are_counted() -> None:
    """After thousands of them nobody looks further."""
    facts = parse(MULTIPART + b"--cutting\n" * (2 * PARTS) + b"--cut\nContent-Type: image/png\n\nx\n--cut--\n")
    assert facts.attachments == ()
    assert "too-many-parts" in facts.defects


def test_ten_thousand_fields_do_not_hide_the_sender_above_them() -> None:
    """Fields beyond the bound are not read, and that is said."""
    facts = parse(HEAD + b"X-Filler: x\n" * 10_000 + b"Subject: below\n\nhttp://body.example")
    assert (facts.from_address, facts.subject) == ("ann@example.com", None)
    assert facts.urls == ("http://body.example",)
    assert "too-many-headers" in facts.defects


def test_a_giant_field_is_cut() -> None:
    """One field cannot take more than its share."""
    facts = parse(HEAD + b"To: " + b"bob@example.com, " * 100_000 + b"\nSubject: below\n\n")
    assert facts.recipients == ("bob@example.com",)
    assert "long-header" in facts.defects


def test_a_giant_header_is_cut_and_the_body_is_still_read() -> None:
    """The body begins behind the whole header, not where reading it stopped."""
    facts = parse(HEAD + (b"X-Filler: " + b"x" * 60_000 + b"\n") * 30 + b"Subject: below\n\nhttp://body.example")
    assert (facts.subject, facts.urls) == (None, ("http://body.example",))
    assert "long-header" in facts.defects


def test_recipients_are_counted() -> None:
    """A mail to everybody names the first thousand."""
    fields = b"".join(b"To: " + b"".join(b"u%d@%d.example," % (i, n) for i in range(900)) + b"\n" for n in range(2))
    facts = parse(HEAD + fields + b"\n")
    assert len(facts.recipients) == ADDRESSES
    assert "too-many-recipients" in facts.defects


@pytest.mark.parametrize(
    ("body", "defect"),
    [
        (b"--cut\n\nhttp://found.example\n", "unclosed-multipart"),
        (b"--cut\n\nhttp://found.example\n--cut", "unclosed-multipart"),
        (b"no boundary at all, http://found.example\n", "no-boundary"),
        (b"--cut\nContent-Transfer-Encoding: base64\n\naHR0cDovL2ZvdW5kLmV4YW1wbGU\n--cut--", "undecodable-part"),
        (b"--cut\nContent-Type: text/plain; charset=klingon\n\nhttp://found.example\n--cut--", "unknown-charset"),
    ],
)
def test_a_broken_multipart_is_read_as_far_as_it_goes(body: bytes, defect: str) -> None:
    """A link is found in whatever is left, and the damage has a name."""
    facts = parse(MULTIPART + body)
    assert facts.urls == ("http://found.example",)
    assert facts.defects == (defect,)


@pytest.mark.parametrize(
    ("charset", "body", "host"),
    [
        ("utf-8", "http://é.example".encode(), "xn--9ca.example"),
        ("us-ascii", "http://é.example".encode(), "xn--9ca.example"),
        ("iso-8859-1", "http://é.example".encode("latin-1"), "xn--9ca.example"),
        ("no-such-charset", "http://é.example".encode("cp1252"), "xn--9ca.example"),
        ("utf-16", "http://é.example".encode("utf-16"), "xn--9ca.example"),
        ("", "http://é.example".encode("utf-16"), "xn--9ca.example"),
        ("gb2312", "http://鎔.example".encode("gb18030"), "xn--1z4a.example"),
        ("utf-7", b"http://a.example +2AA-", "a.example"),
        ("idna", b"http://a.example", "a.example"),
        ("unicode_escape", b"http://a.example/\\ud800", "a.example//ud800"),
        ("zlib", b"http://a.example", "a.example"),
    ],
)
def test_texts_are_read_in_the_charset_that_is_meant(charset: str, body: bytes, host: str) -> None:
    """A wrong name, no name, or the name of a codec that is no charset does not hide a link."""
    field = f"Content-Type: text/plain; charset={charset}\n\n" if charset else "\n"
    assert parse(HEAD + field.encode() + body).urls == (f"http://{host}",)


def test_html_may_name_its_own_charset() -> None:
    """The meta element counts when the part names none."""
    body = '<meta charset="windows-1251"><a href="http://почта.example">x</a>'.encode("cp1251")
    assert parse(HEAD + b"Content-Type: text/html\n\n" + body).urls == ("http://xn--80a1acny.example",)


def test_links_are_counted_and_cut() -> None:
    """A mail of thousands of links names the first ones; a link of many pages is cut."""
    many = b" ".join(b"http://%d.example" % number for number in range(5_000))
    assert len(parse(HEAD + b"\n" + many).urls) == URLS
    assert "too-many-urls" in parse(HEAD + b"\n" + many).defects
    long = parse(HEAD + b"\nhttp://long.example/" + b"x" * 1_000_000)
    assert [len(url) for url in long.urls] == [URL_CHARS]
    assert "long-url" in long.defects


def reopening(count: int) -> bytes:
    """Leave formatting open that every paragraph opens again."""
    opened = b"".join(b"<b id=%d>" % number for number in range(count))
    return b"<p>" + opened + b"</p>" + b"<p>x</p>" * count


@pytest.mark.slow
@pytest.mark.parametrize(
    "markup",
    [b"<div>" * 100_000, reopening(10_000), b"<a " + b" ".join(b"a%d" % n for n in range(100_000)) + b">"],
    ids=["nesting", "reopened formatting", "attributes"],
)
def test_hostile_html_does_not_grow_and_its_links_are_found(markup: bytes) -> None:
    """Markup that would take gigabytes or minutes as a tree is cut; behind the cut, links are searched as text."""
    facts = parse(HEAD + b"Content-Type: text/html\n\n" + markup + b'<a href="http://end.example/?a&amp;b">')
    assert facts.urls == ("http://end.example/?a&b",)
    assert "html-cut" in facts.defects


@pytest.mark.parametrize(
    "root", [b"<html hidden>", b"<body style='display:none'>", b"<frameset>", b"<!doctype x><html hidden>"]
)
def test_a_page_that_hides_itself_is_still_read(root: bytes) -> None:
    """What hides the whole page hides no link."""
    facts = parse(
        HEAD + b"Content-Type: text/html\n\n" + root + b"<frame src=http://found.example><a href=http://found.example>"
    )
    assert facts.urls == ("http://found.example",)


def test_tags_are_counted() -> None:
    """Short markup of very many tags is cut, too."""
    facts = parse(HEAD + b"Content-Type: text/html\n\n" + b"<p>" * 20_000 + b"<a href=http://end.example>")
    assert facts.urls == ("http://end.example",)
    assert facts.defects == ("html-cut",)


def test_a_reference_of_thousands_of_digits_is_left_as_it_is() -> None:
    """Python refuses to read such a number; the links around it are found."""
    markup = b"<p>" * 20_000 + b"&#" + b"9" * 5_000 + b"; http://end.example"
    assert parse(HEAD + b"Content-Type: text/html\n\n" + markup).urls == ("http://end.example",)


@pytest.mark.slow
def test_all_html_of_a_mail_shares_one_tree() -> None:
    """A thousand hostile parts are no worse than one."""
    part = b"--cut\nContent-Type: text/html\n\n<p " + b" ".join(b"a%d" % number for number in range(12_000)) + b">\n"
    started = time.thread_time()
    facts = parse(MULTIPART + part * 25 + b"--cut\nContent-Type: text/html\n\n<a href=http://end.example>\n--cut--\n")
    assert time.thread_time() - started < SECONDS
    assert facts.urls == ("http://end.example",)
    assert "html-cut" in facts.defects


def test_texts_beyond_their_bound_are_not_read() -> None:
    """All texts of a mail share two megabytes."""
    part = b"--cut\n\n" + b"x" * 1_500_000 + b"\n"
    facts = parse(MULTIPART + part + part + b"--cut\n\nhttp://late.example\n--cut--\n")
    assert facts.urls == ()
    assert "text-cut" in facts.defects


def test_a_mail_larger_than_any_server_takes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash and size are those of the whole; the rest is of the beginning."""
    monkeypatch.setattr(import_module("mail.parse"), "MAIL_BYTES", 1_000)
    raw = HEAD + b"\n" + b"x" * 1_000 + b" http://late.example"
    facts = parse(raw)
    assert (facts.sha256, facts.size) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert (facts.urls, facts.defects) == ((), ("too-large",))


LONG = 65_000
PART_HEADER = b"--cut\nContent-Type: application/x; a*=b"


HOSTILE = {
    "escaped quotes": b'To: "' + b'\\"' * (LONG // 2),
    "comments in To": b"To: " + b"(" * LONG,
    "one long word": b"To: " + b"x" * LONG,
    "encoded words": b"Subject: " + b"=?a?q?" * (LONG // 6) + b"?=",
    "encoded words without an end": b"From: " + b"=?a?q?x" * (LONG // 7),
    "encoded words in From": b"From: " + b"=?a?q?" * (LONG // 6) + b"<a@example.com>",
    "one long result": b"Authentication-Results: " + b"w" * LONG,
    "escaped quotes in results": b'Authentication-Results: "' + b'\\"' * (LONG // 2) + b"\\",
    "escaped comments in results": b"Authentication-Results: " + b"\\(" * (LONG // 2) + b"(",
    "escaped comments in an address": b"To: <" + b"\\(" * (LONG // 2) + b"(@example.com>",
    "escaped comments in twenty fields": (b"To: <" + b"(\\" * 10_000 + b"@x>\nCc: <" + b"(\\" * 10_000 + b"@x>\n") * 10,
    "charsets of many pages": b"Content-Type: multipart/mixed; boundary=cut\n\n"
    + (b"--cut\nContent-Type: text/html\n\n\xff" + b"<meta" * 30 + b"charset=" + b" " * 800 + b"\n") * 100,
    "nested comments": b"Authentication-Results: " + b"(" * (LONG // 2) + b")" * (LONG // 2),
    "parameters": b"Content-Type: text/plain" + b"; a=" * (LONG // 4),
    "digits in a parameter": b"Content-Type: text/plain; name*" + b"9" * 5_000 + b"=x",
    "comments in Date": b"Date: " + b"(" * LONG,
    "parameters of parts": b"Content-Type: multipart/mixed; boundary=cut\n\n"
    + (PART_HEADER + b";" * 4_000 + b'x="' * 900 + b"\n\n") * 900,
    "boundaries that are none": b"Content-Type: multipart/mixed; boundary=cut\n\n" + b"--cutting\n" * 1_000_000,
    "empty lines": b"Content-Type: multipart/mixed; boundary=cut\n\n" + b"\n" * 10_000_000,
    "reopened formatting": b"Content-Type: text/html\n\n" + reopening(3_000),
    "spaces in a refresh": b"Content-Type: text/html\n\n<meta http-equiv=refresh content='url=" + b" " * 90_000 + b"'>",
    "conditional comments": b"Content-Type: text/html\n\n" + b"<!--[if " * 200_000 + b"<![endif]-->",
    "brackets behind a link": b"\nhttp://x" + b")" * 1_000_000,
    "wrapped links": b"\n"
    + b"".join(b"https://urldefense.com/v3/__%d" % n + b"a" * 8_000 + b"__ " for n in range(120)),
    "nested lines": nested(300, b"x\n" * 1_000_000)[len(HEAD) :],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_takes_quadratic_time(name: str) -> None:
    """Each of these took a naive reader (ours, the standard library's, an HTML parser) from 5 to 75 seconds."""
    started = time.thread_time()
    check(parse(HEAD + HOSTILE[name]))
    assert time.thread_time() - started < SECONDS


def test_the_same_mailboxes_again_and_again_are_read_only_so_often() -> None:
    """Addresses are counted once each, the work for them each time."""
    facts = parse(HEAD + b"To: " + b"ann@b\xc3\xbccher.example, " * 1_000 + b"\nCc: " + b"a@b, " * MAILBOXES + b"\n\n")
    assert facts.recipients == ("ann@xn--bcher-kva.example", "a@b")
    assert "too-many-recipients" in facts.defects


def test_charsets_that_do_not_exist_are_not_searched() -> None:
    """Python looks on the disk for each, and remembers it for ever: a megabyte of them took a second and stayed."""
    names = [b"klingon-%d" % number for number in range(100)]
    fields = b"".join(b"To: =?%b?q?x?= <a@b>\n" % name for name in names[:10])
    parts = b"".join(b"--cut\nContent-Type: text/plain; charset=%b\n\nx\n" % name for name in names)
    assert "unknown-charset" in parse(fields + MULTIPART + parts).defects
    assert not [name for name in encodings._cache if "klingon" in name]
