"""Sample messages as Exchange Online delivers them, from 600 bytes to 50 KB, and reports of them."""

import hashlib
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

from backstop_contracts import Event, Folder, Message, MessageReported, ReportedAs, headers_for, message_of
from mail import parse

SMALLEST, LARGEST = 600, 50_000
"""Size of a message in bytes, log-uniformly distributed: half of them are below 5.5 KB."""
_PROSE = (
    "Your account was suspended because our system could not verify the details of your last payment. Please confirm"
    " the attached statement before tomorrow, or the delivery goes back to the customs office.\n"
)
_HEADERS = """\
Received: from mail.phish.example (203.0.113.{octet}) by DB5EUR01FT012.mail.protection.outlook.com with SMTP
Authentication-Results: spf=fail (sender IP is 203.0.113.{octet}) smtp.mailfrom=phish.example; dkim=none\
 header.d=none;dmarc=fail action=none header.from=phish.example;compauth=fail reason=001
X-Forefront-Antispam-Report: CIP:203.0.113.{octet};CTRY:;LANG:en;SCL:1;SRV:;IPV:NLI;SFV:NSPM;CAT:NONE;DIR:INB;
X-MS-Exchange-Organization-Network-Message-Id: {uuid}
From: Accounts <accounts{number}@phish{number}.example>
To: user@contoso.example
Subject: {subject}
Date: Thu, 26 Nov 2026 09:00:00 +0000
Message-ID: <{uuid}@mail.phish.example>
MIME-Version: 1.0
"""


def raw_messages(seed: int, count: int) -> Iterator[bytes]:
    """Yield *count* messages, each of which opens a case of its own. Another *seed* gives other messages."""
    draw = random.Random(seed)
    for number in range(count):
        size = int(math.exp(draw.uniform(math.log(SMALLEST), math.log(LARGEST))))
        yield raw_message(draw, seed * 1_000_000 + number, size)


def raw_message(draw: random.Random, number: int, size: int) -> bytes:
    """Return a message of about *size* bytes; small ones are plain text, larger ones text and HTML."""
    uuid = UUID(int=draw.getrandbits(128), version=4)
    # Fingerprints ignore digits, so what distinguishes this message is made of letters.
    own = "".join(chr(97 + int(digit, 16)) for digit in uuid.hex)
    head = _HEADERS.format(octet=draw.randrange(1, 255), uuid=uuid, number=number, subject=f"Statement {own[:12]}")
    opening = f"Dear customer, open https://{own[:20]}.phish.example/pay and tell {own} what you see. Thank you. "
    room = max(0, size - len(head) - len(opening) - 60)
    if size < 3_000:
        text = f"{head}Content-Type: text/plain; charset=utf-8\n\n{opening}{_prose(room)}"
    else:
        text = (
            f'{head}Content-Type: multipart/alternative; boundary="b{uuid}"\n\n--b{uuid}\n'
            f"Content-Type: text/plain; charset=utf-8\n\n{opening}{_prose(room // 3)}\n--b{uuid}\n"
            f"Content-Type: text/html; charset=utf-8\n\n<html><body><p>{opening}</p>"
            f"<p>{_prose(2 * room // 3)}</p></body></html>\n--b{uuid}--\n"
        )
    return text.replace("\n", "\r\n").encode()


def _prose(size: int) -> str:
    return (_PROSE * (size // len(_PROSE) + 1))[:size]


def reported(tenant_id: UUID, seed: int, *, count: int, reporters: int) -> Iterator[MessageReported]:
    """Yield reports of *count* messages by *reporters* users each, as reporter publishes them, messages in turn."""
    draw = random.Random(seed)
    samples = [message_of(parse(raw)) for raw in raw_messages(0, min(count, 50))]
    messages = [_copy(samples[number % len(samples)], draw) for number in range(count)]
    for person in range(reporters):
        for message in messages:
            yield MessageReported(
                tenant_id=tenant_id,
                report_id=uuid5(tenant_id, f"{person}:{message.sha256}"),
                reporter=address(person),
                reported_as=ReportedAs.PHISHING,
                folder=Folder.INBOX,
                channel="api",
                reported_at=datetime.now(UTC),
                message=message,
            )


def address(person: int) -> str:
    """Return the address of a reporter."""
    return f"user{person}@contoso.example"


def _copy(sample: Message, draw: random.Random) -> Message:
    """Return the facts of another message similar to *sample*."""
    sha256 = hashlib.sha256(draw.randbytes(16)).hexdigest()
    new = {
        "sha256": sha256,
        "internet_message_id": f"<{uuid4()}@mail.phish.example>",
        "fingerprint": f"v1:{sha256}",
        "subject": f"Statement {sha256[:12]}",
    }
    return sample.model_copy(update=new)


def record(event: Event) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Return key, value and headers of *event* as the relay of its service sends them."""
    traceparent = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    headers = headers_for(event, source="/backstop/reporter", traceparent=traceparent)
    return (
        event.key.encode(),
        event.model_dump_json().encode(),
        [(name, value.encode()) for name, value in headers.items()],
    )
