"""Real mails, broken and strange ones too, from a corpus that is not part of the repository."""

from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest

from mail import parse
from mail.mime import HEADER_BYTES, read_header, read_parts

CORPUS = Path(__file__).resolve().parents[4] / "shared" / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file()) if CORPUS.is_dir() else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILES, reason=f"NOT TESTED ON REAL MAILS: there is no corpus at {CORPUS}"),
]


def test_every_file_has_facts() -> None:
    """Whatever the file is, its facts can be had."""
    for path in FILES:
        assert parse(path.read_bytes()).size == path.stat().st_size


def test_every_mail_is_a_mail_with_its_sender() -> None:
    """Where the From has an address in plain sight, the fact is that address."""
    compared = 0
    for path in FILES:
        raw = path.read_bytes()
        facts = parse(raw)
        assert facts.is_mail or path.suffix != ".eml", path
        sender = str(BytesParser().parsebytes(raw, headersonly=True).get("From", ""))
        if "@" in sender and sender.isascii() and not set("=?()") & set(sender) and "several-from" not in facts.defects:
            compared += 1
            assert facts.from_address is not None, path
            assert facts.from_address.lower() in sender.lower(), path
            assert facts.from_domain, path
            assert not set('@ <>"') & set(facts.from_domain), path
    assert compared > len(FILES) / 2


def leaves(message: Message) -> Iterator[tuple[str, bytes | None]]:
    """Yield type and content of the parts that have no parts."""
    if message.get_content_maintype() == "multipart" and message.is_multipart():
        for part in message.get_payload():
            assert isinstance(part, Message)
            yield from leaves(part)
    elif message.get_content_maintype() == "message":
        yield message.get_content_type(), None
    else:
        content = message.get_payload(decode=True)
        assert isinstance(content, bytes)
        yield message.get_content_type(), content.rstrip(b"\r\n")


def test_parts_are_those_that_the_standard_library_finds() -> None:
    """Where the standard library's parser sees no defect, both find the same parts with the same content."""
    compared = 0
    for path in FILES:
        raw = path.read_bytes()
        message = BytesParser().parsebytes(raw)
        expected = list(leaves(message))
        if any(part.defects for part in message.walk()):
            continue
        compared += 1
        headers, body = read_header(raw, 0, len(raw), HEADER_BYTES, set())
        found = [
            (part.content_type, None if part.content_type.startswith("message/") else part.content()[0].rstrip(b"\r\n"))
            for part in read_parts(raw, headers, body, set())
        ]
        assert found == expected, path
    assert compared > len(FILES) / 2
