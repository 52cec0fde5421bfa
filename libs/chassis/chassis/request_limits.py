"""
Limits of a service: concurrent requests, connections, body size and time. What exceeds them is refused at once.

uvicorn waits for ever for a header that does not end and for a client that does not read its answer, and it answers
text/plain when there is too much to do. FastAPI's `max_body_size` does so too.
"""

import asyncio
import re
from typing import Any

import h11
import orjson
from h11._receivebuffer import ReceiveBuffer
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from chassis import telemetry
from chassis.problem_details import Problem
from chassis.settings import Limits

HEALTH = frozenset({"/livez", "/readyz", "/metrics"})
_LOOSE_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
HEALTH_REQUESTS = 20
"""Requests for health and metrics that are answered beyond the limit of concurrent requests."""


class Body:
    """The body of one request as it arrives: within its limits or refused. The scope has it under `KEY`."""

    KEY = "backstop.body"

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._announced = int(headers.get(b"content-length", b"0"))
        self._receive = receive
        self._send = send
        self._taken = 0
        # Once it is here, or answered, waiting for more is waiting for the client to leave.
        self._over = False
        self.allow(limits.body_bytes, limits.body_timeout_seconds)

    def allow(self, most: int, seconds: float) -> None:
        """Accept up to *most* bytes within *seconds* of the first read: for a route that keeps no body, or few."""
        self._most = most
        self._seconds = seconds
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """Receive the next piece. Raises Problem 413 or 408."""
        if self._over:
            return await self._receive()
        if self._announced > self._most:
            raise self._too_large()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                408, "body-too-slow", f"The body must arrive within {self._seconds:g} s. Nothing was saved."
            ) from None
        self._taken += len(message.get("body", b""))
        if self._taken > self._most and not self._over:
            raise self._too_large()
        self._over = self._over or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Answer."""
        self._over = True
        await self._send(message)

    def _too_large(self) -> Problem:
        return Problem(413, "body-too-large", f"At most {self._most} bytes are accepted here. Nothing was saved.")


class LimitRequests:
    """ASGI middleware: at most as many concurrent requests as *limits* say, each with a limited body."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self.in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if problem := self._refusal(scope):
            telemetry.refused.labels(problem.status).inc()
            await problem.response()(scope, receive, send)
            return
        body = Body(scope, receive, send, self._limits)
        scope[Body.KEY] = body
        self.in_hand += 1
        try:
            await self._app(scope, body.receive, body.send)
        finally:
            self.in_hand -= 1

    def _refusal(self, scope: Scope) -> Problem | None:
        room = self._limits.requests + (HEALTH_REQUESTS if scope["path"] in HEALTH else 0)
        if self.in_hand >= room:
            return Problem(
                503, "too-many-requests-at-once", "Nothing was saved. Send the same request again.", retry_after=1
            )
        names = {name for name, _ in scope["headers"]}
        if {b"content-length", b"transfer-encoding"} <= names:
            # RFC 9112, 6.3: it may be an attempt to smuggle a request past whoever reads the other one. What follows on
            # this connection may be that request.
            return Problem(
                400,
                "ambiguous-body-length",
                "Send Content-Length or chunks, not both. Nothing was saved.",
                headers={"Connection": "close"},
            )
        return None


class _StrictLines(ReceiveBuffer):
    """
    An h11 buffer that requires CRLF line endings and rejects folded lines.

    h11 is more lenient, which permits request smuggling behind a stricter proxy.
    """

    _reads_lines = False

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return everything up to the first empty line. Raises h11.LocalProtocolError."""
        self._reads_lines = True
        try:
            return super().maybe_extract_lines()
        finally:
            self._reads_lines = False

    def _extract(self, count: int) -> bytearray:
        taken = super()._extract(count)
        if self._reads_lines and _LOOSE_LINE.search(taken):
            raise h11.LocalProtocolError("a line that does not end with CRLF, or goes on in the next one")
        return taken


class Connection(H11Protocol):
    """
    One connection as uvicorn serves it, with an end to every wait for the client.

    *config* is of a FastAPI application of `chassis.http.make_api`, which holds the limits.
    """

    def __init__(self, config: Any, *arguments: Any, **more: Any) -> None:
        super().__init__(config, *arguments, **more)
        self.conn._receive_buffer = _StrictLines()  # noqa: SLF001 - h11 has no setting for it
        self._limits: Limits = config.app.state.limits
        self._expiry: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self.idle_since = 0.0

    @property
    def in_hand(self) -> bool:
        """Whether a request waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header; make room if there is none left."""
        if len(self.connections) >= self._limits.connections and not self._make_room():
            self.transport = transport
            self._answer(Problem(503, "too-many-connections", "Nothing was saved. Try again.", retry_after=1))
            return
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Process incoming data. Start a timeout for an incomplete header, or for the unread rest of a body."""
        super().data_received(data)
        if self.in_hand:
            self._disarm()
        elif self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            # That was the end of a body that was answered before.
            self._disarm()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self._expiry is None and self.conn.their_state in {h11.IDLE, h11.SEND_BODY}:
            self._arm()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of this one's body."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self._hang_up()
        elif not self.in_hand and self.conn.their_state is h11.SEND_BODY:
            self._arm()

    def timeout_keep_alive_handler(self) -> None:
        """Close what has been idle, even if the client never took its last answer."""
        super().timeout_keep_alive_handler()
        self._hang_up()

    def pause_writing(self) -> None:
        """Close the connection of a client that does not read its answer in time."""
        super().pause_writing()
        self._stall = self.loop.call_later(self._limits.stall_timeout_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        if self._stall:
            self._stall.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._disarm()
        if self._stall:
            self._stall.cancel()
        super().connection_lost(exc)
        # uvicorn lets the timer of a connection that was reset run on, and the timer keeps the connection.
        self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._answer(Problem(400, "not-an-http-request", f"{msg.rstrip('.')}. Nothing was saved."))

    def _make_room(self) -> bool:
        idle = [one for one in self.connections if isinstance(one, Connection) and not one.in_hand]
        if idle:
            longest = min(idle, key=lambda one: one.idle_since)
            self.connections.discard(longest)
            longest.transport.abort()
        return bool(idle)

    def _arm(self) -> None:
        self._expiry = self.loop.call_later(self._limits.header_timeout_seconds, self._expire)

    def _disarm(self) -> None:
        if self._expiry:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._answer(
                Problem(
                    408,
                    "header-too-slow",
                    f"The header must arrive within {self._limits.header_timeout_seconds:g} s. Nothing was saved.",
                )
            )
        else:
            self._hang_up()

    def _answer(self, problem: Problem) -> None:
        """Answer without the application, and close."""
        body = orjson.dumps(problem.body)
        headers = {
            **problem.headers,
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        try:
            for event in (
                h11.Response(status_code=problem.status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            # The answer to the request has begun already.
            self.transport.abort()
        self._hang_up()

    def _hang_up(self) -> None:
        """Close; after a while also if the client never takes what is still to be sent."""
        self.transport.close()
        self.loop.call_later(self._limits.stall_timeout_seconds, self.transport.abort)
