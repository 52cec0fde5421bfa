"""An upload is accepted whole and within its limits, or refused with a reason, and then nothing is saved."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

MEGABYTE = 1 << 20
LIMIT = 35 * MEGABYTE
MAIL = b"From: mallory@fabrikam.example\r\nSubject: Parcel\r\nMessage-ID: <1@fabrikam.example>\r\n\r\nhello\r\n"
BASE64 = base64.b64encode(MAIL).decode()
RFC822 = {"Content-Type": "message/rfc822"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def json_with(**fields: Any) -> bytes:
    """Write a JSON body; None removes a field."""
    body = {"mail": BASE64, "reported_as": "phishing", "reporter": "ann@contoso.example", **fields}
    return orjson.dumps({name: value for name, value in body.items() if value is not None})


def part(name: str, content: bytes = b"phishing", more: str = "") -> bytes:
    """Write one part of a form."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


FIELDS = part("mail", MAIL) + part("reported_as") + part("reporter", b"ann@contoso.example")
QUERY = "?reported_as=phishing&reporter=ann%40contoso.example"


def carrier(*attached: bytes, kind: str = "mixed") -> bytes:
    """Write a message of the user's own to which others are attached, each with the headers of its part."""
    head = f"From: ann@contoso.example\r\nSubject: 3|Parcel\r\nContent-Type: multipart/{kind}; boundary=c\r\n\r\n"
    text = b"Content-Type: text/plain\r\n\r\nPlease have a look."
    return head.encode() + b"".join(b"--c\r\n" + one + b"\r\n" for one in (text, *attached)) + b"--c--\r\n"


ENCODED = b"Content-Transfer-Encoding: base64\r\n"
CARRIERS = {
    "message/rfc822": carrier(b"Content-Type: message/rfc822\r\n\r\n" + MAIL),
    "in base64": carrier(b"Content-Type: message/rfc822\r\n" + ENCODED + b"\r\n" + BASE64.encode()),
    "inline": carrier(b"Content-Type: message/rfc822\r\nContent-Disposition: inline\r\n\r\n" + MAIL),
    "a file of no type": carrier(
        b'Content-Type: application/octet-stream; name="Parcel.EML"\r\n' + ENCODED + b"\r\n" + BASE64.encode()
    ),
    "a file of another type": carrier(
        b'Content-Type: text/plain\r\nContent-Disposition: attachment; filename="a.eml"\r\n\r\n' + MAIL
    ),
    "Outlook's": carrier(b"Content-Type: application/vnd.ms-outlook\r\n" + ENCODED + b"\r\n0M8R4KGxGuE="),
    "Outlook's by name": carrier(
        b'Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename="a.msg"\r\n'
        + ENCODED
        + b"\r\n0M8R4KGxGuE="
    ),
    "signed": carrier(b"Content-Type: message/rfc822\r\n\r\n" + MAIL, kind="signed"),
    "several": carrier(*[b"Content-Type: message/rfc822\r\n\r\n" + MAIL] * 3),
    "the whole of it": b"From: ann@contoso.example\r\nContent-Type: message/rfc822\r\n\r\n" + MAIL,
}


REFUSED: dict[str, tuple[int, str, dict[str, str], bytes]] = {
    # What the body is.
    "no content type": (415, "", {}, MAIL),
    "plain text": (415, "", {"Content-Type": "text/plain"}, MAIL),
    "a URL-encoded form": (415, "", {"Content-Type": "application/x-www-form-urlencoded"}, b"reported_as=phishing"),
    "compressed": (415, QUERY, RFC822 | {"Content-Encoding": "gzip"}, MAIL),
    "nothing": (400, QUERY, RFC822, b""),
    "an empty mail in JSON": (400, "", JSON, json_with(mail="")),
    "an empty mail in a form": (400, "", FORM, part("mail", b"") + part("reported_as") + b"--b--\r\n"),
    "not a mail": (422, QUERY, RFC822, b"%PDF-1.7 and so on"),
    "HTML": (422, QUERY, RFC822, b"<!DOCTYPE html><html><body>hello</body></html>"),
    "a mail as Outlook keeps it": (422, QUERY, RFC822, bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500)),
    **{f"a carrier, {how}": (422, QUERY, RFC822, mail) for how, mail in CARRIERS.items()},
    "not a mail in JSON": (422, "", JSON, json_with(mail=base64.b64encode(b"hello").decode())),
    # JSON.
    "empty JSON": (422, "", JSON, b""),
    "cut JSON": (422, "", JSON, json_with()[:-20]),
    "a JSON list": (422, "", JSON, b"[]"),
    "JSON that is not UTF-8": (422, "", JSON, b'{"mail": "\xff"}'),
    "deep JSON": (422, "", JSON, b"[" * 50_000),
    "no mail in JSON": (422, "", JSON, json_with(mail=None)),
    "a mail that is a number": (422, "", JSON, json_with(mail=7)),
    "cut base64": (400, "", JSON, json_with(mail=BASE64[:-3])),
    "base64 with other characters": (400, "", JSON, json_with(mail="!" + BASE64)),
    "base64 that is not ASCII": (400, "", JSON, json_with(mail="é" + BASE64)),
    # The form.
    "no boundary": (400, "", {"Content-Type": "multipart/form-data"}, FIELDS + b"--b--\r\n"),
    "a boundary that is too long": (400, "", {"Content-Type": f"multipart/form-data; boundary={'b' * 2000}"}, FIELDS),
    "another boundary": (400, "", FORM, FIELDS.replace(b"--b", b"--c") + b"--c--\r\n"),
    "a form that is cut in the mail": (400, "", FORM, FIELDS[:90]),
    "a form that is cut after the mail": (400, "", FORM, part("mail", MAIL)),
    "a form without its last boundary": (400, "", FORM, FIELDS),
    "a part without a name": (400, "", FORM, b"--b\r\nX: y\r\n\r\nz\r\n" + FIELDS + b"--b--\r\n"),
    "a form without a mail": (422, "", FORM, part("reported_as") + b"--b--\r\n"),
    "two mails": (422, "", FORM, part("mail", MAIL) + FIELDS + b"--b--\r\n"),
    "an encoded part": (
        415,
        "",
        FORM,
        b'--b\r\nContent-Disposition: form-data; name="mail"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
        + BASE64.encode()
        + b"\r\n--b--\r\n",
    ),
    "a long field": (422, "", FORM, part("reported_as", b"x" * 5000) + FIELDS + b"--b--\r\n"),
    "many fields": (422, "", FORM, b"".join(part(f"f{n}", b"") for n in range(20)) + FIELDS + b"--b--\r\n"),
    "a field that is not UTF-8": (422, "", FORM, part("folder", b"\xff") + FIELDS + b"--b--\r\n"),
    # What is said about the mail.
    "nothing said": (422, "", JSON, json_with(reported_as=None)),
    "an unknown word": (422, "", JSON, json_with(reported_as="spam")),
    "an unknown folder": (422, "", JSON, json_with(folder="archive")),
    "an unknown field in JSON": (422, "", JSON, json_with(colour="red")),
    "an unknown field in the query": (422, QUERY + "&colour=red", RFC822, MAIL),
    "an unknown field in a form": (422, "", FORM, part("colour") + FIELDS + b"--b--\r\n"),
    "the same field twice in the query": (422, QUERY + "&reported_as=junk", RFC822, MAIL),
    "the same field twice in a form": (422, "", FORM, part("reported_as", b"junk") + FIELDS + b"--b--\r\n"),
    "a query beside JSON": (422, "?block_sender=true", JSON, json_with()),
    "a query beside a form": (422, "?block_sender=true", FORM, FIELDS + b"--b--\r\n"),
    "no truth value": (422, "", JSON, json_with(block_sender="perhaps")),
    "no address": (422, "", JSON, json_with(reporter="ann")),
    "an address with a name": (422, "", JSON, json_with(reporter="Ann <ann@contoso.example>")),
    "two addresses": (422, "", JSON, json_with(reporter="ann@contoso.example,bob@contoso.example")),
    "an address with a line break": (422, "", JSON, json_with(reporter="ann@contoso.example\n")),
    "a long address": (422, "", JSON, json_with(reporter=f"ann@{'c.' * 150}example")),
    "an address that is a number": (422, "", JSON, json_with(reporter=7)),
    "a place without a message": (422, "", JSON, json_with(mailbox_message={"user_id": "ann@contoso.example"})),
    "a place that is a word": (422, "", JSON, json_with(mailbox_message="AAMk=")),
    "a place with an unknown field": (
        422,
        "",
        JSON,
        json_with(mailbox_message={"user_id": "ann@contoso.example", "message_id": "AAMk=", "folder": "x"}),
    ),
    "a place that leads elsewhere": (
        422,
        "",
        JSON,
        json_with(mailbox_message={"user_id": "../../me", "message_id": "AAMk="}),
    ),
    "a message that leads elsewhere": (
        422,
        QUERY + "&mailbox_message.user_id=ann%40contoso.example&mailbox_message.message_id=..%2Fmove",
        RFC822,
        MAIL,
    ),
}


@pytest.mark.parametrize(("status", "query", "headers", "body"), REFUSED.values(), ids=REFUSED)
async def test_an_invalid_upload_is_refused_with_the_reason(
    running: Any, add_in: dict[str, str], status: int, query: str, headers: dict[str, str], body: bytes
) -> None:
    """The answer is problem details, and nothing was saved."""
    async with running.client.post(
        f"/v1/reports{query}", data=body, headers=add_in | headers, skip_auto_headers=["Content-Type"]
    ) as answer:
        problem = await answer.json()

    assert (answer.status, answer.content_type) == (status, "application/problem+json")
    assert problem["status"] == status
    assert "Nothing was saved." in problem["detail"]
    assert len(problem["detail"]) < 300
    assert set((await running.kept()).values()) == {0}


@pytest.mark.parametrize(
    ("headers", "query", "body"),
    [
        (RFC822, QUERY, MAIL),
        ({"Content-Type": "Message/RFC822; charset=us-ascii"}, QUERY, MAIL),
        (JSON, "", json_with()),
        ({"Content-Type": "application/json; charset=utf-8"}, "", json_with()),
        (FORM, "", FIELDS + b"--b--\r\n"),
        (FORM, "", b"\r\n" + FIELDS + b"--b--\r\nan epilogue"),
    ],
)
async def test_a_valid_upload_is_accepted(
    running: Any, add_in: dict[str, str], headers: dict[str, str], query: str, body: bytes
) -> None:
    """These are the uploads of which the refused ones are variations."""
    async with running.client.post(f"/v1/reports{query}", data=body, headers=add_in | headers) as answer:
        assert answer.status == 202
    assert await running.kept() == {"reports": 1, "blocks": 0, "outbox": 1, "mails": 1}


async def test_a_report_by_forwarding_is_refused_with_advice(running: Any, add_in: dict[str, str]) -> None:
    """The attached message should be sent instead; a message with any other attachment is accepted."""
    file = carrier(b'Content-Type: application/pdf; name="message.eml.pdf"\r\n\r\n%PDF')
    answers = []
    for body in (CARRIERS["message/rfc822"], CARRIERS["Outlook's"], file):
        async with running.client.post(f"/v1/reports{QUERY}", data=body, headers=add_in | RFC822) as answer:
            answers.append((answer.status, (await answer.json()).get("detail", "")))

    (carried, detail), (outlook, _), (taken, _) = answers
    assert (carried, outlook, taken) == (422, 422, 202)
    assert "Send the attached message itself, as an .eml file" in detail


async def test_a_refusal_names_the_invalid_fields(running: Any, add_in: dict[str, str]) -> None:
    """`errors` says where and what, without repeating the input at length."""
    fields = {"folder": "archive", "x" * 100_000: 1, "reporter": "y" * 100_000}
    async with running.client.post("/v1/reports", data=json_with(**fields), headers=add_in | JSON) as answer:
        text = await answer.text()

    assert {error["where"] for error in orjson.loads(text)["errors"]} == {"folder", "reporter", "x" * 100}
    assert len(text) < 2000


def as_rfc822(raw: bytes) -> tuple[str, dict[str, str], bytes]:
    """Send a message as it is."""
    return QUERY, RFC822, raw


def as_form(raw: bytes) -> tuple[str, dict[str, str], bytes]:
    """Send a message as a file of a form."""
    return "", FORM, FIELDS.replace(MAIL, raw) + b"--b--\r\n"


def as_json(raw: bytes) -> tuple[str, dict[str, str], bytes]:
    """Send a message in base64."""
    return "", JSON, json_with(mail=base64.b64encode(raw).decode())


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    """Send *body* piece by piece, without announcing its length."""
    for start in range(0, len(body), MEGABYTE):
        yield body[start : start + MEGABYTE]


@pytest.mark.parametrize("way", [as_rfc822, as_form, as_json])
@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
async def test_35_mb_are_accepted_and_one_byte_more_is_not(
    mail_of: Any, running: Any, add_in: dict[str, str], way: Any, *, announced: bool
) -> None:
    """The limit applies to the message, however it is sent, and to the byte."""
    for size, status in ((LIMIT + 1, 413), (LIMIT + MEGABYTE, 413), (LIMIT, 202)):
        query, headers, body = way(mail_of(size))
        data = io.BytesIO(body) if announced else pieces(body)
        async with running.client.post(f"/v1/reports{query}", data=data, headers=add_in | headers) as answer:
            assert answer.status == status, await answer.text()
            if status == 413:
                assert answer.content_type == "application/problem+json"
                assert str(LIMIT) in (await answer.json())["detail"]
                assert set((await running.kept()).values()) == {0}
    (stored,) = running.stored()
    assert stored.stat().st_size == LIMIT


@pytest.mark.parametrize(("headers", "body"), [(RFC822, MAIL), (FORM, FIELDS + b"--b--\r\n"), (JSON, json_with())])
async def test_an_upload_that_breaks_off_leaves_nothing_behind(
    running: Any, add_in: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    """If fewer bytes arrive than were announced, the message is not accepted."""
    url = running.client._base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    lines = [f"{name}: {value}" for name, value in (add_in | headers).items()]
    query = QUERY if headers is RFC822 else ""
    start = [f"POST /v1/reports{query} HTTP/1.1", "Host: x", f"Content-Length: {len(body) + 1}", *lines, "", ""]
    writer.write("\r\n".join(start).encode() + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    # The server takes connections up in turn: when this answer is here, the broken one has been dealt with.
    async with running.client.post(f"/v1/reports{QUERY}&folder=archive", data=MAIL, headers=add_in | RFC822) as answer:
        assert answer.status == 422
    assert set((await running.kept()).values()) == {0}
