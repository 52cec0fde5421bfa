"""Where a request ends is clear, or nothing behind it is answered."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from fastapi import Request

from chassis.http import make_api
from conftest import running

SMUGGLED = b"GET /livez HTTP/1.1\r\nHost: service\r\n\r\n"


@pytest.fixture(scope="module")
async def service() -> AsyncIterator[str]:
    """Serve a route that reads the body of its request; return the address."""
    api = make_api(title="", description="", ready={}, alive={})

    @api.post("/take")
    async def take(request: Request) -> int:
        return len(await request.body())

    async with running(api) as url:
        yield url


async def statuses(service: str, sent: bytes, answers: int) -> list[int]:
    """Send this on one connection; return the statuses of up to so many answers: fewer when the service closes it."""
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(urlsplit(service).hostname, urlsplit(service).port)
        writer.write(sent)
        answered = b""
        while answered.count(b"HTTP/1.1 ") < answers and (piece := await reader.read(65536)):
            answered += piece
        writer.transport.abort()
    return [int(answer[:3]) for answer in answered.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "sent",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
        "Content-Length: 0, 5\r\n\r\n",
        "Content-Length: +0\r\n\r\n",
        "Content-Length: -0\r\n\r\n",
        "Content-Length: 0x0\r\n\r\n",
        "Content-Length : 0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nX: a\r\n\tb\r\n\r\n",
        "Content-Length: 0\nX: a\r\n\r\n",
        "Content-Length: 0\r\nX: a\n\r\n",
        "Content-Length: 0\n\n",
        "Content-Length: 0\r\nX: a\rY: b\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\n\r\n\r\n",
        "Host: other\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_request_whose_end_is_ambiguous_is_refused_and_nothing_behind_it_is_answered(
    service: str, sent: str
) -> None:
    """What follows may be a request that a proxy has not seen: RFC 9112, 6.1 and 6.3."""
    assert await statuses(service, f"POST /take HTTP/1.1\r\nHost: service\r\n{sent}".encode() + SMUGGLED, 2) == [400]


async def test_a_first_line_without_a_carriage_return_is_refused_too(service: str) -> None:
    """It is a line like any other."""
    assert await statuses(service, b"GET /livez HTTP/1.1\nHost: service\r\n\r\n" + SMUGGLED, 2) == [400]


async def test_requests_that_follow_each_other_at_once_are_all_answered(service: str) -> None:
    """Also when their bodies come in chunks, with trailers, and hold line feeds."""
    one = (
        b"POST /take HTTP/1.1\r\nHost: service\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\n\n\n x\n\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    assert await statuses(service, one * 3 + SMUGGLED, 4) == [200] * 4
