"""Attachments by their decoded content, to the byte."""

import base64
import hashlib
from collections.abc import Callable

import pytest

from mail import parse

Compose = Callable[..., bytes]

PDF = b"%PDF-1.7 not really " * 10


def test_attachments_are_known_by_their_decoded_content(multipart: Compose) -> None:
    """Files, inline images and attached mails are attachments; the texts of the mail are not."""
    inner = "From: carl@example.net\nSubject: inner\n\nhttp://inner.example"
    facts = parse(
        multipart(
            "Content-Type: text/plain\n\nhello",
            "Content-Type: application/pdf; name=old.pdf\nContent-Transfer-Encoding: base64\n"
            f'Content-Disposition: attachment; filename="=?utf-8?q?R=C3=A9sum=C3=A9=2Epdf?="\n\n'
            f"{base64.encodebytes(PDF).decode()}",
            "Content-Type: image/png\nContent-ID: <1@example.com>\n\nPNG",
            f"Content-Type: message/rfc822\n\n{inner}",
            "Content-Type: text/html\nContent-Disposition: attachment;\n filename*0*=utf-8''na%C3%AF;"
            " filename*1=ve.htm\n\n<a href=http://file.example>x</a>",
        )
    )
    listed = [(file.name, file.content_type, file.size, file.inline) for file in facts.attachments]
    assert listed == [
        ("Résumé.pdf", "application/pdf", len(PDF), False),
        (None, "image/png", 3, True),
        (None, "message/rfc822", len(inner), False),
        ("naïve.htm", "text/html", 33, False),
    ]
    assert facts.attachments[0].sha256 == hashlib.sha256(PDF).hexdigest()
    assert facts.attachments[2].sha256 == hashlib.sha256(inner.encode()).hexdigest()
    assert facts.from_address == "ann@example.com"
    assert facts.urls == ("http://file.example",)


@pytest.mark.parametrize(
    ("encoding", "body", "content"),
    [
        ("base64", "aGVs\nbG8=", b"hello"),
        ("BASE64; strange", "aGVsbG8", b"hello"),
        ("base64", "aGVs!bG8x2", b"hello1"),
        ("quoted-printable", "caf=C3=A9=\n!", "café!".encode()),
        ("x-uuencode", "begin 644 x\n#0V%T\n`\nend", b"Cat"),
        ("8-bit plain", "as is", b"as is"),
    ],
)
def test_transfer_encodings_are_undone_even_when_damaged(
    multipart: Compose, encoding: str, body: str, content: bytes
) -> None:
    """What can be decoded is decoded, as mail programs do."""
    raw = multipart(f"Content-Type: application/x-test\nContent-Transfer-Encoding: {encoding}\n\n{body}")
    assert parse(raw).attachments[0].sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_the_line_break_before_a_boundary_is_not_part_of_the_file(multipart: Compose, line_end: bytes) -> None:
    """The hash of an attached text does not depend on how the mail ends its lines."""
    raw = multipart("Content-Type: application/x-test\n\nexact").replace(b"\n", line_end)
    assert parse(raw).attachments[0].sha256 == hashlib.sha256(b"exact").hexdigest()


def test_a_boundary_with_spaces_inside_is_that_boundary(mail: Compose) -> None:
    """White space in a boundary is part of it, at its end it is not."""
    raw = mail(
        'Content-Type: multipart/mixed; boundary="a  b "', body="--a  b\nContent-Type: image/png\n\nx\n--a  b--\n"
    )
    assert [file.content_type for file in parse(raw).attachments] == ["image/png"]
    assert parse(raw).defects == ()


def test_a_boundary_that_begins_like_another_is_another(multipart: Compose) -> None:
    """`--cutting` does not end a part of `--cut`."""
    raw = multipart("Content-Type: application/x-test\n\n--cutting\n--cut me", "Content-Type: application/x-two\n\nx")
    assert [(file.content_type, file.size) for file in parse(raw).attachments] == [
        ("application/x-test", 18),
        ("application/x-two", 1),
    ]
