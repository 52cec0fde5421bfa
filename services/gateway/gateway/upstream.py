"""Forward a request to the service behind a route and stream its answer back."""

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

FORWARDED_HEADERS = ("accept", "authorization", "content-encoding", "content-length", "content-type")
"""Request headers that a service receives. No other header from outside reaches it."""
DROPPED_HEADERS = frozenset(
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
"""Response headers that concern one connection (RFC 9110, 7.6.1), or that this server sets itself."""
CHUNK_BYTES = 64 << 10
UNKNOWN_OUTCOME = (
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
        Send *request* to *path* of the service and stream its answer back, until the client disconnects.

        Raises Problem 503 if the service cannot be reached, 502 if it disconnects, 504 if it does not respond, and the
        problems of a request body that is too large or too slow.
        """
        headers = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        upload = _Upload(request, has_body=has_body)
        with telemetry.span(f"forward to {self.name}") as traceparent:
            async with self._failures_as_problems(request.method):
                response = await upload.wait_for_answer(
                    self._session.request(
                        request.method,
                        self._target_url(path, request.scope["query_string"]),
                        headers={**headers, "traceparent": traceparent} if traceparent else headers,
                        data=upload.chunks() if has_body else None,
                        allow_redirects=False,
                    )
                )
        return _StreamedAnswer(response)

    def _target_url(self, path: str, query: bytes) -> URL:
        # Keeps percent-encoding as it is, and encodes characters that could end the query.
        encoded = quote_from_bytes(query, safe="%!$&'()*+,;=:@/?-._~")
        return URL(f"{self._url}{path}?{encoded}" if encoded else f"{self._url}{path}", encoded=True)

    @asynccontextmanager
    async def _failures_as_problems(self, method: str) -> AsyncIterator[None]:
        """Raise failures of the call as problems."""
        unknown = UNKNOWN_OUTCOME if method == "POST" else "Send the request again."
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            detail = "could not be reached, so nothing was saved. Send the same request again."
            raise Problem(503, "service-unreachable", self._log_failure(error, detail), retry_after=5) from None
        except TimeoutError as error:
            detail = f"does not respond. {unknown}"
            raise Problem(504, "service-unresponsive", self._log_failure(error, detail)) from None
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, Problem):
                raise error.__cause__ from None
            if isinstance(error.__cause__, ClientDisconnect):
                raise Problem(400, "upload-incomplete", "Nothing was saved.") from None
            detail = f"disconnected before it answered. {unknown}"
            raise Problem(502, "service-disconnected", self._log_failure(error, detail)) from None

    def _log_failure(self, error: Exception, what: str) -> str:
        log.warning("upstream.failed", upstream=self.name, error=type(error).__name__)
        return f"The {self.name} service {what}"


class _Upload:
    """The body of a request on its way to a service, and whether the client still waits for the answer."""

    def __init__(self, request: Request, *, has_body: bool) -> None:
        self._request = request
        self._sent = asyncio.Event()
        if not has_body:
            self._sent.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks."""
        async for chunk in self._request.stream():
            yield chunk
        self._sent.set()

    async def wait_for_answer(self, answer: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        """Return the *answer*. If the client disconnects first, cancel the call and raise Problem 400."""
        answering = asyncio.ensure_future(answer)
        disconnecting = asyncio.create_task(self._wait_for_disconnect())
        try:
            await asyncio.wait([answering, disconnecting], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                disconnecting.result()
                raise Problem(400, "client-disconnected", UNKNOWN_OUTCOME)
            return answering.result()
        finally:
            for task in (answering, disconnecting):
                task.cancel()
            await asyncio.wait([answering, disconnecting])

    async def _wait_for_disconnect(self) -> None:
        await self._sent.wait()
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


class _StreamedAnswer(StreamingResponse):
    """The answer of a service, streamed to the client."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        headers = _response_headers(answer.headers)
        super().__init__(answer.content.iter_chunked(CHUNK_BYTES), status_code=answer.status, headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Also ends an upload that the service answered early, and an answer that nobody waits for any more.
            self._answer.close()


def _response_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the response headers for the client."""
    connection = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    return {name: value for name, value in headers.items() if name.lower() not in DROPPED_HEADERS | connection}
