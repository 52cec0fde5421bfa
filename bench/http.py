"""
A cheap HTTP client that sends requests as fast as a server accepts them, or at a given rate.

aiohttp's client uses as much CPU per request as some of the measured servers. On a shared machine, the benchmark would
measure the client.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from bench.messages import address

_BUSY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request: when it was due and when it was answered (event loop's clock), status and body."""

    due: float
    answered: float
    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One connection with HTTP/1.1 keep-alive and one request at a time; answers must have a Content-Length."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - it is TCP
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send *request* and return status and body. Raises ConnectionError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        """Buffer *data*; once the response is complete, resolve the pending request."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._buffer[:end]).lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        self._buffer.clear()
        answer, self._answer = self._answer, None
        answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending request, if any."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("closed before the answer"))

    def close(self) -> None:
        """Close the connection."""
        if self._transport:
            self._transport.close()


def report_request(url: str, token: str, raw: bytes, person: int) -> bytes:
    """Return the HTTP request with which an application reports the message *raw* on behalf of *person*."""
    query = f"reported_as=phishing&folder=inbox&reporter={quote(address(person))}"
    head = (
        f"POST /v1/reports?{query} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: message/rfc822\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def post(
    url: str, requests: Iterable[bytes], *, connections: int = 64, per_second: float | None = None
) -> list[Answer]:
    """
    Send *requests* over *connections* as fast as they are answered, or at *per_second*; return the answers.

    A request answered with 503 is retried, as clients should do. A request that is delayed because all connections are
    busy still counts from the time it was due.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    queue = enumerate(requests)
    answers: list[Answer] = []
    place = urlsplit(url)
    host, port = place.hostname or "", place.port or 80

    async def work(queue: Iterator[tuple[int, bytes]]) -> None:
        _, connection = await loop.create_connection(Connection, host, port)
        for number, request in queue:
            due = begin + number / per_second if per_second else loop.time()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            while True:
                try:
                    status, body = await connection.ask(request)
                except ConnectionError:
                    _, connection = await loop.create_connection(Connection, host, port)
                    continue
                if status != 503:
                    break
                await asyncio.sleep(_BUSY_SECONDS)
            answers.append(Answer(due, loop.time(), status, body))
        connection.close()

    await asyncio.gather(*(work(queue) for _ in range(connections)))
    return answers
