"""A report is accepted once, with everything that follows from it, and only from whom it is about."""

import asyncio
import base64
import hashlib
import io
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import aiohttp
import asyncpg
import orjson
import pytest

from backstop_contracts import BlockFailed, BlockRequested, MessageReported
from chassis.testing import deliver
from mail import parse
from reporter import handlers, intake

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "Ann@contoso.example"}
ADD_IN = {"app": True, "oid": "c0ffee00-1111-4222-8333-444455556666"}


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""Transactions that wait for a lock of others."""


async def send(running: Any, headers: dict[str, str], raw: bytes, **said: Any) -> tuple[int, dict[str, Any]]:
    """Report a mail as JSON."""
    body = orjson.dumps({"mail": base64.b64encode(raw).decode(), "reported_as": "phishing", **said})
    headers = headers | {"Content-Type": "application/json"}
    async with running.client.post("/v1/reports", data=io.BytesIO(body), headers=headers) as answer:
        return answer.status, await answer.json()


async def outbox(running: Any) -> list[tuple[str, str, dict[str, str], Any]]:
    """Return the events that wait to be published."""
    models = {model.TOPIC: model for model in (MessageReported, BlockRequested)}
    return [
        (
            row["topic"],
            row["key"],
            orjson.loads(row["headers"]),
            models[row["topic"]].model_validate_json(row["payload"]),
        )
        for row in await running.db.pool.fetch("SELECT * FROM outbox ORDER BY id")
    ]


async def test_an_accepted_report_is_durable_and_published_as_it_is(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """After 202 the mail is in the store, and exactly the report and the block are on their way, in this trace."""
    raw = make_mail(
        Message_ID="<parcel-1@fabrikam.example>",
        X_Forefront_Antispam_Report="CIP:192.0.2.7;CTRY:;IPV:NLI;SFV:NSPM;SCL:1;CAT:NONE;SFTY:9.19;",
        X_Microsoft_Antispam="BCL:3;",
    )
    trace = uuid4().hex
    headers = await token("Reporter", **ANN) | {"traceparent": f"00-{trace}-{uuid4().hex[:16]}-01"}
    before = datetime.now(UTC)
    status, accepted = await send(
        running,
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
    (reported_topic, reported_key, reported_headers, reported), (_, _, block_headers, block) = await outbox(running)
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


async def test_the_three_ways_to_send_a_mail_are_one(running: Any, token: Any, make_mail: Any) -> None:
    """A mail sent as message/rfc822, as a form and in JSON is the same report."""
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
    (_, _, _, reported), _ = await outbox(running)
    assert (reported.folder, reported.reporter) == ("junk", "ann@contoso.example")
    assert reported.mailbox_message.model_dump() == inner


async def test_ten_at_the_same_time_are_one_report(running: Any, token: Any, make_mail: Any) -> None:
    """Of reports that race each other exactly one is new."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    answers = await asyncio.gather(*(send(running, headers, raw, block_sender=True) for _ in range(10)))

    assert {status for status, _ in answers} == {202}
    assert sorted(answer["repeated"] for _, answer in answers) == [False] + [True] * 9
    assert await running.kept() == {"reports": 1, "blocks": 1, "outbox": 2, "mails": 1}


@pytest.mark.parametrize("other", ["reporter", "word", "mail"])
async def test_another_reporter_word_or_mail_is_another_report(
    running: Any, token: Any, make_mail: Any, other: str
) -> None:
    """A report is who says what of which mail."""
    raw, headers = make_mail(), await token("Reporter", **ADD_IN)
    _, first = await send(running, headers, raw, reporter="ann@contoso.example")
    _, second = await send(
        running,
        headers,
        make_mail() if other == "mail" else raw,
        reporter="bob@contoso.example" if other == "reporter" else "ann@contoso.example",
        reported_as="junk" if other == "word" else "phishing",
    )

    assert (first["repeated"], second["repeated"]) == (False, False)
    assert first["report_id"] != second["report_id"]


async def test_the_case_of_an_address_makes_no_other_report(running: Any, token: Any, make_mail: Any) -> None:
    """ANN@contoso.example is ann@contoso.example."""
    raw, headers = make_mail(), await token("Reporter", **ADD_IN)
    _, first = await send(running, headers, raw, reporter="ann@contoso.example")
    _, second = await send(running, headers, raw, reporter="ANN@Contoso.Example")
    assert second == first | {"repeated": True}


DELIVERY = "X-MS-Exchange-Organization-Network-Message-Id: 4c8e3f3a-8d0b-4b6a-1f5d-08dc6b1f2a3"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Subject: Parcel\n\nhello", "Subject: Parcel\n\nhallo"),
        ("Message-ID: <a@x.example>\nSubject: Parcel\n\nhello", "Message-ID: <a@x.example>\nSubject: Card\n\nhello"),
        ("Message-ID: <a@x.example>\n\nhello", "Message-ID: <a@x.example>\n\nhello, see https://l.phish.example"),
        ("Message-ID: <a@x.example>\n\nhello", f"Message-ID: <a@x.example>\n\n{'Confirm your account. ' * 9}"),
        (f"Message-ID: <a@x.example>\n{DELIVERY}1\n\nhello", f"Message-ID: <a@x.example>\n{DELIVERY}2\n\nhello"),
        ("Message-ID: <a@x.example>\n\nhello", "Message-ID: <a@x.example>\nFrom: bank@fabrikam.example\n\nhello"),
    ],
    ids=["bytes without a Message-ID", "subject", "short text", "text", "delivery", "sender"],
)
async def test_another_mail_is_another_report_whatever_its_message_id(
    running: Any, token: Any, first: str, second: str
) -> None:
    """The answer to a harmless mail would else be given for a phish that its sender gives the same Message-ID."""
    headers = await token("Reporter", **ANN)
    mails = [f"{mail}\n".encode() for mail in (first, second, first)]
    mails = [mail if b"\nFrom:" in mail else b"From: mallory@fabrikam.example\n" + mail for mail in mails]
    one, other, again = [(await send(running, headers, mail))[1] for mail in mails]

    assert (one["repeated"], other["repeated"]) == (False, False)
    assert again == one | {"repeated": True}


async def test_a_repeat_can_still_ask_for_the_block(running: Any, token: Any, make_mail: Any) -> None:
    """A repeat that newly wants the sender blocked causes the block alone."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    _, first = await send(running, headers, raw)
    _, second = await send(running, headers, raw, block_sender=True)
    _, third = await send(running, headers, raw, block_sender=True)

    assert first["block"] is None
    assert (second["repeated"], second["block"]["status"]) == (True, "requested")
    assert third == second
    assert [topic for topic, *_ in await outbox(running)] == ["message-reported", "block-requested"]


async def test_a_sender_is_blocked_once_for_a_mailbox(running: Any, token: Any, make_mail: Any) -> None:
    """Two mails of one sender are two reports and one block; another mailbox has a block of its own."""
    ann, bob = await token("Reporter", **ANN), await token("Reporter", oid=str(uuid4()))
    _, first = await send(running, ann, make_mail(), block_sender=True)
    _, second = await send(running, ann, make_mail(sender="MALLORY@FABRIKAM.EXAMPLE"), block_sender=True)
    _, third = await send(running, bob, make_mail(), block_sender=True)

    assert first["block"] == second["block"]
    assert third["block"]["block_id"] != first["block"]["block_id"]
    blocks = [event.block for topic, _, _, event in await outbox(running) if topic == "block-requested"]
    assert [str(block.report_id) for block in blocks] == [first["report_id"], third["report_id"]]


async def test_a_block_that_failed_can_be_asked_for_again(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Each round of asking is a block of its own."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    await send(running, headers, raw, block_sender=True)
    *_, (_, _, _, requested) = await outbox(running)
    failed = BlockFailed(
        tenant_id=tenant, block=requested.block, reason="limit", detail="", failed_at=datetime.now(UTC)
    )
    await deliver(handlers.router, running.db, failed)
    _, again = await send(running, headers, raw, block_sender=True)

    assert again["block"]["status"] == "requested"
    assert UUID(again["block"]["block_id"]) == uuid5(tenant, f"block:api:{ANN['oid']}:mallory@fabrikam.example:2")
    assert [topic for topic, *_ in await outbox(running)] == ["message-reported"] + ["block-requested"] * 2


async def test_the_loser_of_a_deadlock_is_accepted_all_the_same(
    running: Any, token: Any, make_mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two transactions that wait for each other PostgreSQL ends that of the report, which is filed once more."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    _, accepted = await send(running, headers, raw)
    attach_block = intake.store.attach_block
    attempts, has_the_block = 0, asyncio.Event()

    async def met(*block: Any) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise asyncpg.LockNotAvailableError("what reports that are filed together meet when their patience ends")
        if attempts == 2:
            has_the_block.set()
            while not await running.db.pool.fetchval(WAITING):
                await asyncio.sleep(0.02)
        await attach_block(*block)

    monkeypatch.setattr(intake.store, "attach_block", met)
    async with running.db.transaction() as other:
        try:
            await other.execute("SET LOCAL deadlock_timeout = '1min'")
        except asyncpg.InsufficientPrivilegeError:
            pytest.skip("NO DEADLOCK WAS MADE: the user of this PostgreSQL may not say who loses it")
        asking = asyncio.create_task(send(running, headers, raw, block_sender=True))
        await asyncio.wait_for(has_the_block.wait(), 10)
        await other.execute("UPDATE reports SET block_id = NULL")
        await other.execute(
            "INSERT INTO blocks (block_id, tenant_id, mailbox, sender, generation)"
            " SELECT $1, tenant_id, $2, 'mallory@fabrikam.example', 1 FROM reports",
            *(uuid4(), ANN["oid"]),
        )
    status, repeated = await asking

    assert (status, repeated["report_id"], repeated["block"]["status"]) == (202, accepted["report_id"], "requested")


async def test_whoever_reports_is_answered_in_time_while_postgresql_is_stuck(
    running: Any, token: Any, make_mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a 503 after some seconds, and nothing goes on waiting; afterwards the report is accepted, once."""
    monkeypatch.setattr(intake, "LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(intake, "ANSWER_SECONDS", 0.5)
    raw, headers = make_mail(), await token("Reporter", **ANN)
    async with running.db.transaction() as other:
        await other.execute("LOCK TABLE reports")
        refused = await asyncio.gather(*(send(running, headers, raw) for _ in range(5)))
        async with asyncio.timeout(10):
            while await running.db.pool.fetchval(WAITING):
                await asyncio.sleep(0.02)
        monkeypatch.setattr(intake, "ANSWER_SECONDS", 60)
    status, _ = await send(running, headers, raw)
    async with asyncio.timeout(60):
        # Who has given up may be filed all the same: nothing of it shall be left for the next test.
        while any(f" {intake.Intake.__name__}." in str(task.get_coro()) for task in asyncio.all_tasks()):
            await asyncio.sleep(0.02)

    assert {status for status, _ in refused} == {503}
    assert status == 202
    assert [topic for topic, *_ in await outbox(running)] == ["message-reported"]


@pytest.mark.parametrize("sender", [None, "", "undisclosed", f"{'x' * 400}@fabrikam.example"])
async def test_a_mail_without_a_sender_is_reported_without_the_block(
    running: Any, token: Any, sender: str | None
) -> None:
    """The report stands, and the answer says that the block is not possible."""
    raw = (f"From: {sender}\r\n".encode() if sender is not None else b"") + b"Subject: Parcel\r\n\r\nhello\r\n"
    status, accepted = await send(running, await token("Reporter", **ANN), raw, block_sender=True)

    assert status == 202
    assert accepted["block"]["status"] == "not-possible"
    assert "names no sender" in accepted["block"]["explanation"]
    assert [topic for topic, *_ in await outbox(running)] == ["message-reported"]


@pytest.mark.parametrize(
    ("headers", "said", "folder"),
    [
        ({}, {}, "inbox"),
        ({"X_Microsoft_Antispam_Mailbox_Delivery": "ucf:0;jmr:0;auth:0;dest:J;ENG:(1);"}, {}, "junk"),
        ({"X_Microsoft_Antispam_Mailbox_Delivery": "ucf:0;jmr:0;auth:0;dest:I;ENG:(1);"}, {}, "inbox"),
        ({"X_Microsoft_Antispam_Mailbox_Delivery": "dest:J;"}, {"folder": "inbox"}, "inbox"),
    ],
)
async def test_the_folder_is_what_is_said_or_where_the_mail_was_delivered(
    running: Any, token: Any, make_mail: Any, headers: dict[str, str], said: dict[str, str], folder: str
) -> None:
    """What the reporter says comes first, then what Exchange Online wrote into the mail, then the Inbox."""
    await send(running, await token("Reporter", **ANN), make_mail(**headers), **said)
    ((_, _, _, reported),) = await outbox(running)
    assert reported.folder == folder


async def test_a_person_reports_for_themselves(running: Any, token: Any, make_mail: Any) -> None:
    """Naming oneself is allowed, in any case; naming somebody else is not, and keeps nothing."""
    headers = await token("Reporter", **ANN)
    status, refused = await send(running, headers, make_mail(), reporter="bob@contoso.example", block_sender=True)
    assert (status, refused["type"]) == (403, "urn:backstop:problem:not-allowed")
    assert set((await running.kept()).values()) == {0}

    status, _ = await send(running, headers, make_mail(), reporter="ANN@contoso.example")
    assert status == 202


@pytest.mark.parametrize("name", [None, "Ann of Accounts"])
async def test_a_person_whose_token_names_no_address_cannot_report(
    running: Any, token: Any, make_mail: Any, name: str | None
) -> None:
    """Nobody else's word for who they are is taken."""
    headers = await token("Reporter", oid=ANN["oid"], claims={"preferred_username": name})
    status, refused = await send(running, headers, make_mail(), reporter="ann@contoso.example")
    assert status == 403
    assert "preferred_username" in refused["detail"]
    assert set((await running.kept()).values()) == {0}


async def test_a_person_points_at_their_own_mailbox_only(running: Any, token: Any, make_mail: Any) -> None:
    """Microsoft is never led to a mail in somebody else's mailbox; one's own is known by its object id."""
    headers = await token("Reporter", **ANN)
    place = {"user_id": "bob@contoso.example", "message_id": "AAMk="}
    status, _ = await send(running, headers, make_mail(), mailbox_message=place)
    assert status == 403
    assert set((await running.kept()).values()) == {0}

    status, _ = await send(running, headers, make_mail(), mailbox_message=place | {"user_id": "ANN@contoso.example"})
    ((_, _, _, reported),) = await outbox(running)
    assert (status, reported.mailbox_message.user_id) == (202, ANN["oid"])


async def test_an_application_says_for_whom_it_reports(running: Any, token: Any, make_mail: Any) -> None:
    """Without a reporter an application's report is refused; with one, the block is for that address."""
    headers = await token("Reporter", **ADD_IN)
    status, refused = await send(running, headers, make_mail(), block_sender=True)
    assert (status, refused["type"]) == (422, "urn:backstop:problem:missing-reporter")
    assert set((await running.kept()).values()) == {0}

    status, _ = await send(running, headers, make_mail(), block_sender=True, reporter="Ann@contoso.example")
    _, (_, _, _, requested) = await outbox(running)
    assert (status, requested.block.mailbox) == (202, "ann@contoso.example")
    assert requested.requested_by.model_dump() == {"kind": "app", "id": ADD_IN["oid"], "name": None}


async def test_a_mail_full_of_nasty_text_becomes_a_small_and_valid_event(running: Any, token: Any) -> None:
    """What the mail says may be as long and as broken as it likes: the event that goes to Kafka is neither."""
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
    status, _ = await send(running, await token("Reporter", **ANN), raw, block_sender=True)

    assert status == 202
    payloads = [row["payload"] for row in await running.db.pool.fetch("SELECT payload FROM outbox")]
    assert all(len(payload) < 1 << 20 for payload in payloads)
    assert not any(b"\\u0000" in payload or b"\x00" in payload for payload in payloads)
    assert [topic for topic, *_ in await outbox(running)] == ["message-reported", "block-requested"]
