"""Uploads that are endless, slow, large, hostile or too many, and a full disk."""

import asyncio
import io
import resource
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

MEGABYTE = 1 << 20
MAIL = b"From: mallory@fabrikam.example\r\nSubject: Parcel\r\nMessage-ID: <1@fabrikam.example>\r\n\r\nhello\r\n"
RFC822 = {"Content-Type": "message/rfc822"}
QUERY = "?reported_as=phishing&reporter=ann%40contoso.example"


@pytest.mark.usefixtures("db")
async def test_an_endless_upload_is_refused_at_the_limit(run_reporter: Any, add_in: Any) -> None:
    """The client need not finish what will not be accepted."""
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield MAIL
        while not ended.is_set():
            yield b"x" * 10_000
            await asyncio.sleep(0)

    async with run_reporter(max_message_bytes=MEGABYTE) as running:
        url = f"/v1/reports{QUERY}"
        async with running.client.post(url, data=endless(), headers=add_in | RFC822) as answer:
            assert answer.status == 413
        ended.set()
        assert set((await running.kept()).values()) == {0}


async def test_an_upload_that_breaks_off_is_answered_with_400(running: Any, add_in: dict[str, str]) -> None:
    """A client that can still read learns that the upload was incomplete."""
    sent: list[Any] = []
    coming = iter([{"type": "http.request", "body": MAIL[:20], "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = add_in | RFC822 | {"Content-Length": str(len(MAIL))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/reports",
        "raw_path": b"/v1/reports",
        "query_string": QUERY[1:].encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
        "state": {},
    }
    await running.api(scope, receive, send)

    assert sent[0]["status"] == 400
    assert orjson.loads(sent[1]["body"])["type"] == "urn:backstop:problem:upload-incomplete"
    assert set((await running.kept()).values()) == {0}


@pytest.mark.usefixtures("db")
async def test_a_stalled_upload_is_ended(run_reporter: Any, add_in: dict[str, str]) -> None:
    """A client that sends too slowly does not hold up others for ever."""
    answered = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield MAIL
        await answered.wait()

    async with run_reporter(seconds=0.2) as running:
        url = f"/v1/reports{QUERY}"
        async with running.client.post(url, data=stalled(), headers=add_in | RFC822) as answer:
            assert (answer.status, answer.content_type) == (408, "application/problem+json")
        answered.set()
        assert set((await running.kept()).values()) == {0}


@pytest.mark.usefixtures("db")
async def test_large_uploads_wait_for_each_other_and_small_ones_do_not(
    mail_of: Any, run_reporter: Any, add_in: dict[str, str]
) -> None:
    """A large one that finds no room in time is refused for now; small ones need no room."""
    started, release = asyncio.Event(), asyncio.Event()

    async def large() -> AsyncIterator[bytes]:
        yield MAIL
        started.set()
        await release.wait()
        yield b"x" * MEGABYTE

    async with run_reporter(large_at_once=1, patience=0.2) as running:
        url, headers = f"/v1/reports{QUERY}", add_in | RFC822

        async def post(data: Any) -> tuple[int, str | None]:
            async with running.client.post(url, data=data, headers=headers) as answer:
                return answer.status, answer.headers.get("Retry-After")

        first = asyncio.create_task(post(large()))
        await started.wait()
        second = await post(io.BytesIO(mail_of(MEGABYTE)))
        small = await post(MAIL)
        release.set()

        assert (second, small) == ((503, "10"), (202, None))
        assert await first == (202, None)
        assert await post(io.BytesIO(mail_of(MEGABYTE))) == (202, None)


async def test_a_full_disk_is_answered_with_503_until_there_is_space(
    mail_of: Any, running: Any, add_in: dict[str, str]
) -> None:
    """Neither a report nor half a message is kept, and nobody has to repair anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    url, headers, raw = f"/v1/reports{QUERY}", add_in | RFC822, mail_of(5 * MEGABYTE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MEGABYTE, hard))
    try:
        async with running.client.post(url, data=io.BytesIO(raw), headers=headers) as answer:
            assert (answer.status, answer.content_type) == (503, "application/problem+json")
            assert answer.headers["Retry-After"] == "5"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set((await running.kept()).values()) == {0}
    async with running.client.post(url, data=io.BytesIO(raw), headers=headers) as answer:
        assert answer.status == 202
    assert await running.kept() == {"reports": 1, "blocks": 0, "outbox": 1, "mails": 1}


BOMBS = {
    "mails in each other": MAIL[:-7] + b"Content-Type: message/rfc822\r\n\r\n" * 10_000,
    "multiparts in each other": MAIL[:-9]
    + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(10_000)),
    "parts": MAIL[:-9] + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 100_000,
    "fields": MAIL[:-9] + b"X-A: b\r\n" * 100_000 + b"\r\n",
    "recipients": MAIL[:-9] + b"".join(b"To: a%d@b.example\r\n" % n for n in range(9_000)) + b"\r\n",
    "tags": MAIL[:-9] + b"Content-Type: text/html\r\n\r\n" + b"<b>" * 1_000_000,
    "base64": MAIL[:-9] + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"AAAA" * 2_000_000,
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
async def test_a_message_crafted_to_exhaust_resources_is_reported_like_any_other(
    running: Any, add_in: dict[str, str], raw: bytes
) -> None:
    """Its event is small, and health checks are answered meanwhile."""
    url, headers = f"/v1/reports{QUERY}", add_in | RFC822
    posting = asyncio.create_task(running.client.post(url, data=io.BytesIO(raw), headers=headers))
    async with running.client.get("/livez") as alive:
        assert alive.status == 200
    assert (await posting).status == 202
    (payload,) = await running.db.pool.fetch("SELECT payload FROM outbox")
    assert len(payload["payload"]) < 20_000
    (stored,) = running.stored()
    assert stored.read_bytes() == raw
