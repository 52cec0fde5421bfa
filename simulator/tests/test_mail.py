"""What is read from a raw mail."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.mail import NotAMailError, bodies, read_mail


def test_headers_become_facts(mail: Any) -> None:
    """Sender, envelope, filter verdict and authentication are read from their headers."""
    report = "CIP:203.0.113.7;CTRY:DE;SCL:5;SRV:BULK;IPV:NLI;SFV:SPM;CAT:SPM;SFTY:9.19"
    authentication = (
        "spf=pass (sender IP is 203.0.113.7) smtp.mailfrom=x; dmarc=Fail action=none;compauth=fail reason=001"
    )
    headers = {
        "Return-Path": "<bounce@list.example>",
        "X-Microsoft-Antispam": "BCL:4;",
        "Authentication-Results": authentication,
    }

    read = read_mail(mail(sender="=?utf-8?q?B=C3=B6b?= <Bob@Fabrikam.example>", report=report, headers=headers))

    assert (read.sender, read.sender_domain, read.envelope_sender) == (
        "bob@fabrikam.example",
        "fabrikam.example",
        "bounce@list.example",
    )
    assert (read.antispam("SFV"), read.antispam("SFTY"), read.sender_ip) == ("SPM", "9.19", "203.0.113.7")
    assert (read.level("SCL"), read.level("BCL"), read.level("SRV")) == (5, 4, None)
    assert [read.authenticated(method) for method in ("spf", "dmarc", "compauth", "dkim")] == [
        "pass",
        "fail",
        "fail",
        "",
    ]
    assert read.received == datetime(2026, 11, 2, 10, 0, tzinfo=UTC)


def test_the_organizations_own_scl_header_counts_when_the_report_has_none(mail: Any) -> None:
    """Older mails carry the level only there."""
    read = read_mail(mail(report="SFV:NSPM", headers={"X-MS-Exchange-Organization-SCL": "6"}))

    assert read.level("SCL") == 6


def test_links_are_read_from_text_and_html(mail: Any) -> None:
    """A link of the HTML part keeps the text that the reader sees."""
    raw = mail("See http://plain.example/a.", html='<p><a href="https://real.example/b">shown <b>text</b></a></p>')

    links = {(link.url, link.text) for link in read_mail(raw).links}

    assert links == {("http://plain.example/a", ""), ("https://real.example/b", "shown text")}


def test_a_mail_without_message_id_has_a_name_of_its_own() -> None:
    """Two such mails are two items, the same mail is one."""
    first, again, other = [read_mail(b"From: a@b.example\r\n\r\n" + text) for text in (b"x", b"x", b"y")]

    assert first.internet_message_id == again.internet_message_id != other.internet_message_id


@pytest.mark.parametrize("raw", [b"", b"hello", b"Subject: only\r\n\r\ntext", bytes(100)])
def test_what_has_no_mail_header_is_no_mail(raw: bytes) -> None:
    """Some header that every mail has must be there."""
    with pytest.raises(NotAMailError):
        read_mail(raw)


@given(header=st.binary(max_size=80), body=st.binary(max_size=200))
@example(header=b"\0", body=b"")
def test_any_bytes_after_a_from_header_can_be_read(header: bytes, body: bytes) -> None:
    """A broken mail is still a mail."""
    read_mail(
        b"From: a@b.example\r\nX-Forefront-Antispam-Report: "
        + header
        + b"\r\nDate: "
        + header
        + b"\r\nSubject: "
        + header
        + b"\r\nContent-Type: text/html; charset="
        + header[:8]
        + b"\r\n\r\n<a href=http://["
        + body
    )


NESTED = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(2_000))
HOSTILE = {
    "colons in From": b"From: a@b.example" + b":" * 1_500 + b"\n\nx",
    "groups in To": b"From: a@b.example\nTo: " + b"a:" * 3_000 + b"\n\nx",
    "comments in comments": b"From: a@b.example" + b"(" * 60_000 + b"\n\nx",
    "parts in parts": b"From: a@b.example\n" + NESTED,
    "mails in mails": b"From: a@b.example\n" + b"Content-Type: message/rfc822\n\n" * 2_000,
    "words that are not base64": b"From: a@b.example\nSubject: =?utf-8?b?a?=\n\nx",
    "parameters without a value": b"From: a@b.example\nContent-Type: text/plain; " + b"a;" * 60_000 + b"\n\nx",
    "tags that do not end": b"From: a@b.example\nContent-Type: text/html\n\n" + b"<a href='x " * 50_000,
    "comments that do not end": b"From: a@b.example\nContent-Type: text/html\n\n" + b"<!--" * 50_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_mail_that_is_made_to_hurt_is_read_like_any_other(raw: bytes) -> None:
    """One that raised, or took minutes, would be refused or waited for without end, and its case never judged."""
    before = time.thread_time()
    assert read_mail(raw).sender == "a@b.example"
    bodies(raw)
    assert time.thread_time() - before < 20


def test_a_link_is_found_between_long_styles_and_images() -> None:
    """What makes a page long is not what ends the reading of it."""
    long = f"<style>{'p {} ' * 9_000}</style><img src='data:image/png;base64,{'A' * 90_000}'><!--{'x' * 90_000}-->"
    page = f"{long}<p>Read</p><a href='https://pay.phish.example/1'>this</a>"
    mail = read_mail(f"From: a@b.example\nContent-Type: text/html\n\n{page}".encode())
    assert [(link.url, link.text) for link in mail.links] == [("https://pay.phish.example/1", "this")]
    assert mail.text.split() == ["Read", "this"]
