"""Nobody can take more of a service than its share: requests, connections, bytes, time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from chassis.http import make_api
from chassis.request_limits import Body
from chassis.service import server
from chassis.settings import Limits
from conftest import running

BODY_BYTES = 1000
BRIEF = 0.3
"""Seconds after which a slow client is cut off here: waited for, never measured."""


class Service:
    """A service with one route for each thing that a client can do to it."""

    def __init__(self, limits: Limits) -> None:
        self.release = asyncio.Event()
        self.waiting = 0
        self.taken = 0
        self.told = asyncio.Event()
        self.api = make_api(title="", description="", ready={}, alive={}, limits=limits)
        for path, route in (("/wait", self.wait), ("/take", self.take), ("/large", self.large), ("/json", self.json)):
            self.api.add_api_route(path, route, methods=["POST"])
        self.api.add_api_route("/tell", self.tell, methods=["GET"])
        self.api.add_api_route("/refuse", self.refuse, methods=["POST"])

    async def wait(self) -> int:
        """Answer when the test says so."""
        self.waiting += 1
        await self.release.wait()
        return self.waiting

    async def take(self, request: Request) -> int:
        """Count the body as it comes."""
        self.taken = 0
        async for chunk in request.stream():
            self.taken += len(chunk)
        return self.taken

    async def large(self, request: Request) -> int:
        """Take more than other routes do."""
        body: Body = request.scope[Body.KEY]
        body.allow(10 * BODY_BYTES, 60)
        return await self.take(request)

    async def json(self, body: dict[str, Any]) -> int:
        """Have FastAPI read the body."""
        return len(body)

    async def refuse(self) -> int:
        """Answer without reading the body."""
        return 0

    async def tell(self) -> StreamingResponse:
        """Answer without an end."""

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                self.told.set()

        return StreamingResponse(endless())


class Line:
    """A connection on which the test says what is sent, and when."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *lines: str, body: bytes = b"") -> None:
        """Send a header, or its beginning, and a body."""
        self.writer.write("\r\n".join(lines).encode() + body)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Read one answer."""
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-1])}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, orjson.loads(body)

    async def refusal(self) -> tuple[int, str]:
        """Read an answer that must be problem details; return its status and what it says."""
        status, headers, problem = await self.answer()
        assert headers["content-type"] == "application/problem+json"
        assert problem["status"] == status
        return status, problem["detail"]

    async def ended(self) -> bool:
        """Wait until the service closes the connection."""
        async with asyncio.timeout(60):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
        return True

    async def trickle(self) -> None:
        """Send a byte now and then for as long as the connection is there."""
        try:
            while True:
                self.writer.write(b"x")
                await self.writer.drain()
                await asyncio.sleep(BRIEF / 10)
        except ConnectionError:
            pass


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Line]:
    """Open a connection to a service."""
    address = urlsplit(url)
    line = Line(*await asyncio.open_connection(address.hostname, address.port))
    try:
        yield line
    finally:
        line.writer.transport.abort()


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[Service, str]]:
    """Run a service with these limits."""
    service = Service(Limits(**{"body_bytes": BODY_BYTES, **limits}))
    async with running(service.api) as url:
        yield service, url


def post(path: str, *headers: str) -> tuple[str, ...]:
    """Write the header of a request."""
    return (f"POST {path} HTTP/1.1", "Host: service", *headers, "", "")


async def test_one_request_too_many_is_sent_away_at_once_and_health_is_answered() -> None:
    """The others go on, and when one has ended there is room again."""
    async with serving(requests=2) as (service, url), aiohttp.ClientSession(url) as session:

        async def ask(method: str, path: str) -> tuple[int, str | None, str]:
            async with session.request(method, path) as answer:
                await answer.read()
                return answer.status, answer.headers.get("Retry-After"), answer.content_type

        inside = [asyncio.create_task(ask("POST", "/wait")) for _ in range(2)]
        while service.waiting < 2:
            await asyncio.sleep(0.01)
        assert await ask("POST", "/wait") == (503, "1", "application/problem+json")
        assert [(await ask("GET", path))[0] for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
        service.release.set()
        assert [(await answer)[0] for answer in inside] == [200, 200]
        assert (await ask("POST", "/wait"))[0] == 200


async def test_a_request_whose_client_is_gone_still_counts_until_it_has_ended() -> None:
    """Asking and leaving is no way to pile up work."""
    async with serving(requests=1) as (service, url):
        async with connected(url) as line:
            line.send(*post("/wait", "Content-Length: 0"))
            while not service.waiting:
                await asyncio.sleep(0.01)
        async with connected(url) as line:
            line.send(*post("/wait", "Content-Length: 0"))
            assert (await line.refusal())[0] == 503
        service.release.set()
        async with aiohttp.ClientSession(url) as session:
            while True:
                async with session.post("/wait") as answer:
                    if answer.status == 200:
                        break


@pytest.mark.parametrize("path", ["/take", "/json"])
async def test_a_body_that_announces_too_much_is_refused_before_it_comes(path: str) -> None:
    """Nothing of it was sent, and the answer is there."""
    async with serving() as (service, url), connected(url) as line:
        line.send(*post(path, f"Content-Length: {BODY_BYTES + 1}", "Content-Type: application/json"))
        assert await line.refusal() == (413, f"At most {BODY_BYTES} bytes are accepted here. Nothing was saved.")
        assert service.taken == 0


@pytest.mark.parametrize("path", ["/take", "/json"])
async def test_a_body_of_chunks_is_refused_as_soon_as_it_is_too_large(path: str) -> None:
    """It has no end, and nobody waits for one."""
    async with serving() as (service, url), connected(url) as line:
        line.send(*post(path, "Transfer-Encoding: chunked", "Content-Type: application/json"))
        for _ in range(BODY_BYTES // 100 + 1):
            line.send(body=b"64\r\n" + b" " * 100 + b"\r\n")
        assert (await line.refusal())[0] == 413
        assert service.taken <= BODY_BYTES


async def test_a_body_up_to_the_limit_is_taken_and_a_route_may_take_more() -> None:
    """The limit holds to the byte, for either."""
    async with serving() as (_, url), aiohttp.ClientSession(url) as session:
        for path, size, status in (
            ("/take", BODY_BYTES, 200),
            ("/take", BODY_BYTES + 1, 413),
            ("/large", 10 * BODY_BYTES, 200),
            ("/large", 10 * BODY_BYTES + 1, 413),
        ):
            async with session.post(path, data=b"x" * size) as answer:
                assert answer.status == status


async def test_what_comes_behind_the_announced_length_is_no_part_of_the_body() -> None:
    """It is not HTTP either, and says so."""
    async with serving() as (_, url), connected(url) as line:
        line.send(*post("/take", "Content-Length: 3"), body=b"abcdefgh\r\n\r\n")
        assert (await line.answer())[2] == 3
        assert (await line.refusal())[0] == 400
        assert await line.ended()


@pytest.mark.parametrize("trickling", [False, True])
@pytest.mark.parametrize("path", ["/take", "/json"])
async def test_a_body_that_does_not_come_to_its_end_is_given_up(path: str, *, trickling: bool) -> None:
    """However many bytes come now and then: the time is for the whole body."""
    async with serving(body_timeout_seconds=BRIEF) as (_, url), connected(url) as line:
        line.send(*post(path, "Content-Length: 900", "Content-Type: application/json"), body=b"{")
        trickle = asyncio.create_task(line.trickle()) if trickling else None
        assert (await line.refusal())[0] == 408
        if trickle:
            trickle.cancel()


@pytest.mark.parametrize("start", ["", "POST /take HT", "POST /take HTTP/1.1\r\nHost: service\r\nX-A: "])
@pytest.mark.parametrize("trickling", [False, True])
async def test_a_header_that_does_not_come_to_its_end_is_given_up(start: str, *, trickling: bool) -> None:
    """A client that sends its header byte by byte, or none, holds a connection for a while and no longer."""
    async with serving(header_timeout_seconds=BRIEF) as (_, url), connected(url) as line:
        line.send(start)
        trickle = asyncio.create_task(line.trickle()) if trickling and start else None
        assert (await line.refusal())[0] == 408
        assert await line.ended()
        if trickle:
            await trickle


async def test_a_second_header_has_the_same_time() -> None:
    """A good request does not buy patience for the next one."""
    async with serving(header_timeout_seconds=BRIEF, idle_seconds=60) as (_, url), connected(url) as line:
        line.send(*post("/take", "Content-Length: 0"))
        assert (await line.answer())[0] == 200
        line.send("POST /take")
        assert (await line.refusal())[0] == 408
        assert await line.ended()


async def test_a_slow_answer_is_not_taken_for_a_slow_client() -> None:
    """The time for the header ends with the header."""
    async with (
        serving(header_timeout_seconds=BRIEF, body_timeout_seconds=BRIEF) as (service, url),
        connected(url) as line,
    ):
        line.send(*post("/wait", "Content-Length: 0"))
        await asyncio.sleep(3 * BRIEF)
        service.release.set()
        assert (await line.answer())[0] == 200


async def test_an_idle_connection_is_closed() -> None:
    """Between two requests there may be some seconds, not hours."""
    async with serving(idle_seconds=BRIEF) as (_, url), connected(url) as line:
        line.send(*post("/take", "Content-Length: 0"))
        assert (await line.answer())[0] == 200
        assert await line.ended()


async def test_an_idle_connection_stays_open_for_longer_than_clients_keep_it() -> None:
    """A client that takes up a connection while it is closed cannot know what became of its request."""
    assert Limits().idle_seconds > 90, "Go's clients keep a connection for 90 seconds"
    assert server(Service(Limits()).api).config.timeout_keep_alive == Limits().idle_seconds


async def test_a_connection_goes_on_after_the_rest_of_a_body_that_was_answered_already() -> None:
    """The time for that rest ends with it."""
    async with serving(header_timeout_seconds=BRIEF, idle_seconds=60) as (_, url), connected(url) as line:
        await answered_early(line)
        await asyncio.sleep(2 * BRIEF)
        line.send(*post("/take", "Content-Length: 0"))
        assert (await line.answer())[0] == 200


async def test_a_connection_is_idle_after_the_rest_of_a_body_that_was_answered_already() -> None:
    """It is closed as any other."""
    async with serving(header_timeout_seconds=60, idle_seconds=BRIEF) as (_, url), connected(url) as line:
        await answered_early(line)
        assert await line.ended()


async def answered_early(line: Line) -> None:
    """Send half a body, take the answer, and send the other half."""
    line.send(*post("/refuse", "Content-Length: 4"), body=b"xx")
    assert (await line.answer())[0] == 200
    line.send(body=b"xx")


async def test_the_rest_of_a_body_that_was_answered_already_is_not_waited_for() -> None:
    """An upload that was refused may come to its end, so that the answer is read, but it must have one."""
    async with serving(header_timeout_seconds=BRIEF) as (_, url), connected(url) as line:
        line.send(*post("/refuse", "Transfer-Encoding: chunked"))
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        line.send(body=chunk)
        assert (await line.answer())[0] == 200
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(60):
                while True:
                    line.send(body=chunk)
                    await line.writer.drain()
                    await asyncio.sleep(BRIEF / 10)


async def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    """What waits for it is freed."""
    async with serving(stall_timeout_seconds=BRIEF) as (service, url), connected(url) as line:
        line.send("GET /tell HTTP/1.1", "Host: service", "", "")
        async with asyncio.timeout(60):
            await service.told.wait()
        assert await line.ended()


async def test_a_new_connection_takes_the_place_of_the_longest_idle_one() -> None:
    """Connections that do nothing keep nobody out, and there are never more than the limit."""
    async with (
        serving(connections=3) as (_, url),
        connected(url) as first,
        connected(url) as second,
        connected(url) as third,
    ):
        third.send(*post("/take", "Content-Length: 0"))
        assert (await third.answer())[0] == 200
        async with connected(url) as fourth:
            fourth.send("GET /livez HTTP/1.1", "Host: service", "", "")
            assert (await fourth.answer())[0] == 200
            assert await first.ended()
            second.send(*post("/take", "Content-Length: 0"))
            assert (await second.answer())[0] == 200


async def test_when_every_connection_is_at_work_the_next_one_is_sent_away() -> None:
    """None of those at work is closed for it."""
    async with serving(connections=2) as (service, url), connected(url) as first, connected(url) as second:
        for line in (first, second):
            line.send(*post("/wait", "Content-Length: 0"))
        while service.waiting < 2:
            await asyncio.sleep(0.01)
        async with connected(url) as third:
            status, headers, _ = await third.answer()
            assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/problem+json")
            assert await third.ended()
        service.release.set()
        assert [(await line.answer())[0] for line in (first, second)] == [200, 200]


@pytest.mark.parametrize(
    "sent",
    [
        "hello\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Injected: a\x00b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\rX: y\r\n\r\n",
        "GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + "x" * 100_000,
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_as_problem_details(sent: str) -> None:
    """The connection is closed, since nobody knows where the next request would begin."""
    async with serving() as (_, url), connected(url) as line:
        line.writer.write(sent.encode("latin-1"))
        assert (await line.refusal())[0] == 400
        assert await line.ended()


def test_an_application_says_what_its_limits_are() -> None:
    """The server reads them there."""
    api: FastAPI = make_api(title="", description="", ready={}, alive={})
    assert api.state.limits == Limits()
