"""No bytes break a preview, and none keep it busy."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail import Preview, document, preview
from mail.preview import TEXT_CHARS
from mail.sanitise import LINKS

SECONDS = 5


FRAGMENTS = st.sampled_from(
    [
        *(b"<a href=", b"<b>", b"</b>", b"<p>", b"<table>", b"<td>", b"</table>", b"<img src=", b"<svg>", b"<math>"),
        *(
            b"<style>",
            b"</style>",
            b"<!--",
            b"-->",
            b"<![CDATA[",
            b"<script>",
            b"</script>",
            b"<template>",
            b"<select>",
        ),
        *(b"<x-a href=", b"<x-b>", b"cid:a", b"data:,kept-0", b"data:image/gif;base64,", b"R0lGODlhAQABAIAAAAAA"),
        *(
            b"http://",
            b"xn--",
            b"javascript:",
            b"&#x202e;",
            b"&lt;",
            b"&quot;",
            b'"',
            b"'",
            b">",
            b"<",
            b"=",
            b" ",
            b"%",
        ),
        *(
            b' style="',
            b"color:red;",
            b"display:none",
            b"url(",
            b"\xd0\xbe",
            b".example",
            b"@",
            b"[",
            b"\0",
            b"\xff",
            b"+ADw-",
        ),
        *(b"\n--cut\n", b"\n--cut--", b"Content-Type: text/html; charset=utf-7\n\n", b"Content-ID: <a>\n", b"A" * 300),
    ]
)


def check(shown: Preview) -> None:
    """Hold a preview to what it promises."""
    page = document(shown)
    page.encode()
    assert page.count("<script") == page.count("<a ") == page.count("<iframe") == page.count("<svg") == 0
    assert len(shown.text) <= TEXT_CHARS
    assert len(shown.links) <= LINKS


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_any_bytes_have_a_preview(raw: bytes) -> None:
    """Noise is no reason to fail."""
    check(preview(raw))
    check(preview(b"Subject: x\n" + raw))


@given(st.lists(FRAGMENTS | st.binary(max_size=4), max_size=60))
@settings(max_examples=400)
def test_anything_like_html_has_a_preview(pieces: list[bytes]) -> None:
    """In a mail of parts, with pieces of markup in any order."""
    head = b"Subject: x\nContent-Type: multipart/related; boundary=cut\n\n--cut\nContent-Type: text/html\n\n"
    check(preview(head + b"".join(pieces)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "markup",
    [
        b"<p><b class=x><i style=color:red><a href=y>" * 20_000,
        b"<b>" * 50_000 + b"</q>" * 50_000,
        b"<table>" * 50_000 + b"x<p>" * 50_000,
        b"<table><tr><td>" * 50_000,
        b"<p " + b" ".join(b"a%d" % number for number in range(100_000)) + b">",
        b'<a href="https://phish.example/' + b"x" * 2_000 + b'">www.' + b"a." * 50_000,
        (b'<a href="http://' + b"%d1%80" * 300 + b'">' + b"a." * 90 + b"</a>") * 200,
        b"&" * 2_000_000,
        b"<" * 2_000_000,
        b'<p style="' + b"padding: " * 100_000 + b'">',
        (b'<p style="border:1px' + b" " * 1_985 + b'!">') * 99,
        b"data:image/png;base64," * 100_000,
        (b"data:x;base64," + b" " * 190) * 10_000,
        b"\xe2\x80\x8d" * 700_000,
        b"\xcc\x81" * 1_000_000,
        b"http://a\xd1\x80.example/ " * 50_000,
    ],
    ids=[
        "reopened",
        "end tags",
        "foster parents",
        "nested tables",
        "attributes",
        "long link",
        "many links",
        "ampersands",
        "less-thans",
        "style",
        "borders",
        "data URLs",
        "blank data URLs",
        "joiners",
        "accents",
        "addresses",
    ],
)
@pytest.mark.parametrize("kind", ["html", "plain"])
def test_hostile_sizes_take_bounded_time(markup: bytes, kind: str) -> None:
    """Each was, or could be, more than linear somewhere."""
    begin = time.thread_time()
    shown = preview(b"Subject: x\nContent-Type: text/" + kind.encode() + b"\n\n" + markup)
    page = document(shown)
    assert time.thread_time() - begin < SECONDS
    assert len(page) < 3_000_000
    assert shown.is_cut or len(markup) < 200_000 or kind == "plain"
