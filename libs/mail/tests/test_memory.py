"""Parsing takes no more memory than its share, whatever the mail holds."""

import base64
import hashlib
import io
import subprocess
import sys
import zipfile
import zlib

import pytest

from mail import parse

HEAD = b"From: ann@example.com\nDate: Mon, 2 Nov 2026 10:00:00 +0000\n"
MULTIPART = HEAD + b"Content-Type: multipart/mixed; boundary=cut\n\n"


@pytest.mark.slow
def test_a_thirty_megabyte_attachment_is_hashed() -> None:
    """The largest attachments that mail servers take are read to their end."""
    content = bytes(range(256)) * 90_000
    raw = MULTIPART + b"--cut\nContent-Type: application/zip\nContent-Transfer-Encoding: base64\n\n"
    facts = parse(raw + base64.encodebytes(content) + b"--cut--\n")
    assert facts.size > 30_000_000
    assert [file.sha256 for file in facts.attachments] == [hashlib.sha256(content).hexdigest()]
    assert facts.defects == ()


MEGABYTES = 200
"""Of memory beside four times the mail: what parsing may take at most."""


BOUNDED = """
import resource, sys
import mail
raw = sys.stdin.buffer.read()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = held + 4 * len(raw) + {megabytes} * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (room, room))
facts = mail.parse(raw)
assert facts.is_mail and mail.parse(raw) == facts
"""


PLAIN = b"Content-Type: text/plain\n"


BOMBS = {
    "10,000 multiparts in each other": lambda: (
        HEAD
        + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(10_000))
        + b"\nx"
    ),
    "10,000 mails in each other": lambda: HEAD + b"Content-Type: message/rfc822\n\n" * 10_000,
    "100,000 parts": lambda: MULTIPART + b"--cut\n\nx\n" * 100_000 + b"--cut--",
    "a line of a megabyte": lambda: HEAD + b"Subject: " + b"x" * 1_000_000 + b"\n\n",
    "100,000 fields": lambda: HEAD + b"X-A: b\n" * 100_000 + b"\n",
    "base64": lambda: HEAD + PLAIN + b"Content-Transfer-Encoding: base64\n\n" + b"AAAA" * 5_000_000,
    "quoted-printable": lambda: HEAD + PLAIN + b"Content-Transfer-Encoding: quoted-printable\n\n" + b"=00" * 5_000_000,
    "a million tags": lambda: HEAD + b"Content-Type: text/html\n\n" + b"<b>" * 1_000_000,
    "a million links": lambda: HEAD + b"\n" + b" ".join(b"http://%d.example" % n for n in range(1_000_000)),
    "charsets": lambda: (
        MULTIPART + b"".join(b"--cut\nContent-Type: text/plain; charset=x%d\n\nx\n" % n for n in range(1000))
    ),
    "UTF-7": lambda: HEAD + b"Content-Type: text/plain; charset=utf-7\n\n" + b"+2AA-" * 1_000_000,
    "encoded words": lambda: HEAD + b"Subject: " + b"=?utf-8?q?=00?= " * 100_000 + b"\n\n",
    "pieces of a parameter": lambda: (
        HEAD + b"Content-Type: text/plain" + b"".join(b"; name*%d*=x" % n for n in range(100_000)) + b"\n\n"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_mail_takes_no_more_memory_than_its_share(name: str) -> None:
    """The kernel gives no more than that; and the same bytes have the same facts."""
    command = [sys.executable, "-c", BOUNDED.format(megabytes=MEGABYTES)]
    ended = subprocess.run(command, input=BOMBS[name](), capture_output=True, check=False)  # noqa: S603
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_an_archive_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb in a ZIP file is a small attachment."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was unpacked")

    for module, function in ((zlib, "decompress"), (zlib, "decompressobj"), (zipfile, "ZipFile")):
        monkeypatch.setattr(module, function, refuse)
    part = b"--cut\nContent-Type: application/zip\nContent-Transfer-Encoding: base64\n\n"
    facts = parse(MULTIPART + part + base64.encodebytes(packed.getvalue()) + b"--cut--\n")
    assert [file.size for file in facts.attachments] == [len(packed.getvalue())]
