"""One service behind the gateway: pass a request on and its answer back, both as streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote_from_bytes

import aiohttp
import structlog
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from yarl import URL

from chassis import telemetry
from chassis.http import Problem

log = structlog.get_logger()

PASSED_ON = ("accept", "authorization", "content-encoding", "content-length", "content-type")
"""Headers of a request that a service gets to see. Whatever else comes from outside stays outside."""
KEPT_BACK = frozenset(
    {
        "connection",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of an answer that are about one connection (RFC 9110, 7.6.1), or that this server writes itself."""
CHUNK_BYTES = 64 << 10
UNKNOWN = (
    "It is not known whether the request was carried out. A report can be sent again, since it counts once; read a case"
    " before you decide on it again."
)


class Upstream:
    """A service at *url*, called through *session*."""

    def __init__(self, name: str, url: str, session: aiohttp.ClientSession) -> None:
        self.name = name
        self._url = url.rstrip("/")
        self._session = session

    async def forward(self, request: Request, path: str) -> Response:
        """
        Send *request* to *path* of the service and stream back whatever it answers, as long as the client is there.

        Raises Problem 503 when the service cannot be reached, 502 when it breaks off, 504 when it keeps silent, and
        what the bounds of the request's body raise.
        """
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        upload = _Upload(request, has_body=has_body)
        with telemetry.span(f"forward to {self.name}") as traceparent:
            async with self._failures(request.method):
                response = await upload.while_client_waits(
                    self._session.request(
                        request.method,
                        self._at(path, request.scope["query_string"]),
                        headers={**headers, "traceparent": traceparent} if traceparent else headers,
                        data=upload.chunks() if has_body else None,
                        allow_redirects=False,
                    )
                )
        return _Passed(response)

    def _at(self, path: str, query: bytes = b"") -> URL:
        # What is percent-encoded stays so; what is not allowed in a query cannot end it.
        asked = quote_from_bytes(query, safe="%!$&'()*+,;=:@/?-._~")
        return URL(f"{self._url}{path}?{asked}" if asked else f"{self._url}{path}", encoded=True)

    @asynccontextmanager
    async def _failures(self, method: str) -> AsyncIterator[None]:
        """Turn what can go wrong on the way into problem details."""
        unknown = UNKNOWN if method == "POST" else "Ask again."
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            detail = "could not be reached, so nothing was saved. Send the same request again."
            raise Problem(503, "service-unreachable", self._failed(error, detail), retry_after=5) from None
        except TimeoutError as error:
            raise Problem(504, "service-unresponsive", self._failed(error, f"does not answer. {unknown}")) from None
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, Problem):
                raise error.__cause__ from None
            if isinstance(error.__cause__, ClientDisconnect):
                raise Problem(400, "upload-incomplete", "Nothing was saved.") from None
            detail = f"broke off its answer. {unknown}"
            raise Problem(502, "service-disconnected", self._failed(error, detail)) from None

    def _failed(self, error: Exception, what: str) -> str:
        log.warning("upstream.failed", upstream=self.name, error=type(error).__name__)
        return f"The {self.name} service {what}"


class _Upload:
    """The body of a request on its way to a service, and whether the client still waits for the answer."""

    def __init__(self, request: Request, *, has_body: bool) -> None:
        self._request = request
        self._through = asyncio.Event()
        if not has_body:
            self._through.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body piece by piece."""
        async for chunk in self._request.stream():
            yield chunk
        self._through.set()

    async def while_client_waits(self, answer: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        """Wait for *answer*. Raises Problem 400 when the client goes away first, and then cancels the call."""
        answering = asyncio.ensure_future(answer)
        leaving = asyncio.create_task(self._left())
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                leaving.result()
                raise Problem(400, "client-disconnected", UNKNOWN)
            return answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.wait([answering, leaving])

    async def _left(self) -> None:
        await self._through.wait()
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


class _Passed(StreamingResponse):
    """The answer of a service, passed on as it comes."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        super().__init__(
            answer.content.iter_chunked(CHUNK_BYTES), status_code=answer.status, headers=_passed_back(answer.headers)
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Ends an upload that the service answered before it was through, and an answer that nobody waits for.
            self._answer.close()


def _passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    return {name: value for name, value in headers.items() if name.lower() not in KEPT_BACK | named}
