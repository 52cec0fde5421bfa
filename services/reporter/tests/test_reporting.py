"""A report is accepted whole, stored, and published with what follows from it."""

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import aiohttp
import pytest

from mail import parse

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "Ann@contoso.example"}
ADD_IN = {"app": True, "oid": "c0ffee00-1111-4222-8333-444455556666"}


async def test_an_accepted_report_is_stored_and_published(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """After 202 the message is in the mail store, and exactly report and block wait in the outbox, in this trace."""
    raw = make_mail(
        Message_ID="<parcel-1@fabrikam.example>",
        X_Forefront_Antispam_Report="CIP:192.0.2.7;CTRY:;IPV:NLI;SFV:NSPM;SCL:1;CAT:NONE;SFTY:9.19;",
        X_Microsoft_Antispam="BCL:3;",
    )
    trace = uuid4().hex
    headers = await token("Reporter", **ANN) | {"traceparent": f"00-{trace}-{uuid4().hex[:16]}-01"}
    before = datetime.now(UTC)
    status, accepted = await running.send(
        headers,
        raw,
        folder="junk",
        block_sender=True,
        mailbox_message={"user_id": ANN["oid"], "message_id": "AAMk="},
    )

    said = f"{parse(raw).fingerprint} fabrikam.example False"
    identity = f"{hashlib.sha256(raw).hexdigest()} <parcel-1@fabrikam.example> mallory@fabrikam.example {said}"
    report_id = uuid5(tenant, f"report:ann@contoso.example:{identity}:phishing")
    block_id = uuid5(tenant, f"block:api:{ANN['oid']}:mallory@fabrikam.example:1")
    assert status == 202
    assert accepted == {
        "report_id": str(report_id),
        "status_url": f"/v1/reports/{report_id}",
        "repeated": False,
        "block": {
            "block_id": str(block_id),
            "scope": "mailbox",
            "kind": "sender",
            "value": "mallory@fabrikam.example",
            "entry": None,
            "status": "requested",
            "reason": None,
            "expires_at": None,
            "explanation": "The sender is about to be blocked for your mailbox.",
        },
    }
    (reported_topic, reported_key, reported_headers, reported), (_, _, block_headers, block) = await running.outbox()
    assert (reported_topic, reported_key) == ("message-reported", f"{tenant}:<parcel-1@fabrikam.example>".encode())
    assert reported_headers["ce_type"] == "io.backstop.message-reported.v1"
    assert reported_headers["traceparent"].split("-")[1] == block_headers["traceparent"].split("-")[1] == trace
    assert before <= reported.reported_at <= datetime.now(UTC)
    assert reported.model_dump(exclude={"reported_at", "message"}) == {
        "tenant_id": tenant,
        "report_id": report_id,
        "reporter": "Ann@contoso.example",
        "reporter_id": ANN["oid"],
        "reported_as": "phishing",
        "folder": "junk",
        "channel": "api",
        "blocks": (block.block.model_dump(),),
        "decision": None,
        "mailbox_message": {"user_id": ANN["oid"], "message_id": "AAMk="},
    }
    assert reported.message.urls == ("https://parcel.example.net/confirm",)
    message = reported.message
    assert (message.sha256, message.size) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert (message.internet_message_id, message.subject) == ("<parcel-1@fabrikam.example>", "Your parcel")
    assert (message.sender.lower(), message.sender_domain) == ("mallory@fabrikam.example", "fabrikam.example")
    assert (message.delivery.scl, message.delivery.bcl, message.delivery.sfv) == (1, 3, "NSPM")
    assert (message.delivery.sfty, message.delivery.ipv) == ("9.19", "NLI")
    assert block.model_dump(exclude={"requested_at"}) == {
        "tenant_id": tenant,
        "block": {
            "block_id": block_id,
            "scope": "mailbox",
            "kind": "sender",
            "value": "mallory@fabrikam.example",
            "mailbox": ANN["oid"],
            "case_id": None,
            "report_id": report_id,
            "expires_at": None,
        },
        "note": None,
        "requested_by": {"kind": "user", "id": ANN["oid"], "name": "Ann@contoso.example"},
    }
    (stored,) = running.stored()
    assert stored.read_bytes() == raw


async def test_the_three_ways_to_send_a_message_make_the_same_report(running: Any, token: Any, make_mail: Any) -> None:
    """As message/rfc822, as a form and in JSON."""
    raw, headers = make_mail(), await token("Reporter", **ADD_IN)
    said = {"reported_as": "junk", "folder": "junk", "reporter": "ann@contoso.example", "block_sender": "true"}
    place = {"mailbox_message.user_id": "ann@contoso.example", "mailbox_message.message_id": "AAMk="}
    form = aiohttp.FormData({**said, **place})
    form.add_field("mail", raw, filename="parcel.eml", content_type="message/rfc822")
    inner = {name.partition(".")[2]: value for name, value in place.items()}

    answers = []
    for request in (
        {"data": raw, "params": said | place, "headers": headers | {"Content-Type": "message/rfc822"}},
        {"data": form, "headers": headers},
        {"json": said | {"mail": base64.b64encode(raw).decode(), "mailbox_message": inner}, "headers": headers},
    ):
        async with running.client.post("/v1/reports", **request) as answer:
            assert answer.status == 202
            answers.append(await answer.json())
            assert answer.headers["Location"] == answers[-1]["status_url"]

    assert len({answer["report_id"] for answer in answers}) == 1
    assert [answer["repeated"] for answer in answers] == [False, True, True]
    assert await running.kept() == {"reports": 1, "blocks": 1, "outbox": 2, "mails": 1}
    (_, _, _, reported), _ = await running.outbox()
    assert (reported.folder, reported.reporter) == ("junk", "ann@contoso.example")
    assert reported.mailbox_message.model_dump() == inner


@pytest.mark.parametrize(
    ("headers", "said", "folder"),
    [
        ({}, {}, "inbox"),
        ({"X_Microsoft_Antispam_Mailbox_Delivery": "ucf:0;jmr:0;auth:0;dest:J;ENG:(1);"}, {}, "junk"),
        ({"X_Microsoft_Antispam_Mailbox_Delivery": "ucf:0;jmr:0;auth:0;dest:I;ENG:(1);"}, {}, "inbox"),
        ({"X_Microsoft_Antispam_Mailbox_Delivery": "dest:J;"}, {"folder": "inbox"}, "inbox"),
    ],
)
async def test_the_folder_is_the_one_named_or_the_one_the_message_was_delivered_to(
    running: Any, token: Any, make_mail: Any, headers: dict[str, str], said: dict[str, str], folder: str
) -> None:
    """What the reporter names comes first, then Exchange Online's delivery header, then the Inbox."""
    await running.send(await token("Reporter", **ANN), make_mail(**headers), **said)
    ((_, _, _, reported),) = await running.outbox()
    assert reported.folder == folder


async def test_a_message_full_of_hostile_text_makes_a_small_and_valid_event(running: Any, token: Any) -> None:
    """However long and broken its headers are, the event is neither."""
    raw = b"".join(
        [
            b"From: =?utf-8?q?=00=00?= <mallory@fabrikam.example>\r\n",
            b"Subject: =?utf-8?q?=00=ED=A0=80?= " + b"x" * 2_000_000 + b"\r\n",
            b"Message-ID: <" + b"y" * 500_000 + b"@fabrikam.example>\r\n",
            b"Received: " + b"z" * 500_000 + b"\r\n",
            b"Authentication-Results: spf=" + b"w" * 500_000 + b"; dkim=" + b"w" * 500_000 + b"\r\n",
            b"X-Forefront-Antispam-Report: SFV:" + b"v" * 500_000 + b";SCL:" + b"9" * 500_000 + b"\r\n",
            b"\r\n\xff\xfe\x00",
        ]
    )
    status, _ = await running.send(await token("Reporter", **ANN), raw, block_sender=True)

    assert status == 202
    payloads = [row["payload"] for row in await running.db.pool.fetch("SELECT payload FROM outbox")]
    assert all(len(payload) < 1 << 20 for payload in payloads)
    assert not any(b"\\u0000" in payload or b"\x00" in payload for payload in payloads)
    assert [topic for topic, *_ in await running.outbox()] == ["message-reported", "block-requested"]
