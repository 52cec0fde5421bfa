"""Mails made by hand."""

from collections.abc import Callable

import pytest

HEAD = b"From: Ann <ann@example.com>\nDate: Mon, 2 Nov 2026 10:00:00 +0100\n"


@pytest.fixture(scope="session")
def mail() -> Callable[..., bytes]:
    """Compose a mail with a sender, a date and the given fields: `mail("Subject: x", body="...")`."""

    def compose(*fields: str, body: str = "") -> bytes:
        return HEAD + "".join(f"{field}\n" for field in fields).encode() + b"\n" + body.encode()

    return compose


@pytest.fixture(scope="session")
def multipart(mail: Callable[..., bytes]) -> Callable[..., bytes]:
    """Compose a mail of parts: `multipart(*parts, kind="mixed")`."""

    def compose(*parts: str, kind: str = "mixed") -> bytes:
        body = "".join(f"--cut\n{part}\n" for part in parts) + "--cut--\n"
        return mail(f'Content-Type: multipart/{kind}; boundary="cut"', body=body)

    return compose
