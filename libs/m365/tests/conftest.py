"""Microsoft on localhost: Entra ID, and whatever answers a test orders from Graph and Exchange."""

# ruff: noqa: S105 - the secrets are made up

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import aiohttp
import pytest
import trustme
from aiohttp import web

from m365 import Credential, Exchange, Graph, Tokens, open_session

TENANT = UUID("11111111-1111-4111-8111-111111111111")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Microsoft:
    """
    Answers that were ordered are given first, in their order.

    After them Entra ID issues `token-1`, `token-2`, ... to whoever brings the right secret or any assertion, and
    Graph and Exchange answer 200 with an empty object to a token that is valid.
    """

    ca_file: Path
    url: str = ""
    secret: str = "right-secret"
    expires_in: int = 3600
    forms: list[dict[str, str]] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    active: int = 0
    peak: int = 0
    _answers: deque[Handler] = field(default_factory=deque)
    _entra_answers: deque[Handler] = field(default_factory=deque)

    def answers(self, status: int = 200, json: Any = None, **response: Any) -> None:
        """Order the next answer of Graph or Exchange."""
        self.does(_saying(status, json, **response))

    def does(self, handler: Handler) -> None:
        """Order what Graph or Exchange does next."""
        self._answers.append(handler)

    def entra_answers(self, status: int = 200, json: Any = None, **response: Any) -> None:
        """Order the next answer of Entra ID's token endpoint."""
        self.entra_does(_saying(status, json, **response))

    def entra_does(self, handler: Handler) -> None:
        """Order what Entra ID's token endpoint does next."""
        self._entra_answers.append(handler)

    async def cut(self, request: web.Request) -> web.StreamResponse:
        """Read the request and drop the connection."""
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def hang(self, _: web.Request) -> web.StreamResponse:
        """Never answer."""
        await asyncio.Event().wait()
        return web.Response()

    async def discover(self, request: web.Request) -> web.StreamResponse:
        """Tell the endpoints of the two tenants that there are."""
        tenant = request.match_info["tenant"]
        if tenant != str(TENANT) and not tenant.startswith("2222"):
            description = f"AADSTS90002: Tenant '{tenant}' not found.\r\nTrace ID: 0\r\n"
            return web.json_response({"error": "invalid_tenant", "error_description": description}, status=400)
        return web.json_response(
            {
                "issuer": f"{self.url}/{tenant}/v2.0",
                "authorization_endpoint": f"{self.url}/{tenant}/oauth2/v2.0/authorize",
                "token_endpoint": f"{self.url}/{tenant}/oauth2/v2.0/token",
            }
        )

    async def issue(self, request: web.Request) -> web.StreamResponse:
        """Be Entra ID's token endpoint."""
        form = dict(parse_qsl(await request.text()))
        self.forms.append(form)
        if self._entra_answers:
            return await self._entra_answers.popleft()(request)
        if "client_assertion" not in form and form.get("client_secret") != self.secret:
            description = "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 0\r\n"
            return web.json_response({"error": "invalid_client", "error_description": description}, status=401)
        token = f"token-{len(self.tokens) + 1}"
        self.tokens.add(token)
        return web.json_response({"token_type": "Bearer", "access_token": token, "expires_in": self.expires_in})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Be Graph and Exchange."""
        self.requests.append(request)
        self.bodies.append(await request.read())
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
                return web.json_response(
                    {"error": {"code": "InvalidAuthenticationToken", "message": "Expired."}}, status=401
                )
            return await (self._answers.popleft() if self._answers else _saying(200, {}))(request)
        finally:
            self.active -= 1


def _saying(status: int, json: Any = None, **response: Any) -> Handler:
    async def say(_: web.Request) -> web.StreamResponse:
        return (
            web.Response(status=status, **response)
            if json is None
            else web.json_response(json, status=status, **response)
        )

    return say


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    """No test waits for longer than this."""
    async with asyncio.timeout(20):
        yield


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Make a certificate authority that nobody but the tests trusts."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Give a port on which nobody listens, nor will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
async def microsoft(ca: trustme.CA, tmp_path: Path) -> AsyncIterator[Microsoft]:
    """Entra ID, Graph and Exchange at one address, over TLS."""
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    found = Microsoft(tmp_path / "ca.pem")
    app = web.Application()
    app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", found.discover)
    app.router.add_post("/{tenant}/oauth2/v2.0/token", found.issue)
    app.router.add_route("*", "/{path:.*}", found.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=_server_context(ca))
    await site.start()
    found.url = f"https://localhost:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


def _server_context(ca: trustme.CA) -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
async def session(microsoft: Microsoft) -> AsyncIterator[aiohttp.ClientSession]:
    """Open the session as a service does."""
    async with open_session(microsoft.ca_file) as session:
        yield session


@pytest.fixture
async def application(microsoft: Microsoft, session: aiohttp.ClientSession) -> AsyncIterator[Callable[..., Tokens]]:
    """Make Tokens for a credential; with the right secret unless told otherwise, and without rest after a failure."""
    opened: list[Tokens] = []

    def make(credential: Credential | None = None, **options: Any) -> Tokens:
        credential = credential or Credential(client_id="app", secret=microsoft.secret)
        tokens = Tokens(credential, session, **{"authority": microsoft.url, "pause": 0.0, **options})
        opened.append(tokens)
        return tokens

    yield make
    for tokens in opened:
        await tokens.close()


@pytest.fixture
def tokens(application: Callable[..., Tokens]) -> Tokens:
    """Tokens for the right secret."""
    return application()


@pytest.fixture
def graph(microsoft: Microsoft, session: aiohttp.ClientSession, tokens: Tokens) -> Graph:
    """Graph at localhost."""
    return Graph(tokens, session, base_url=microsoft.url)


@pytest.fixture
def exchange(microsoft: Microsoft, session: aiohttp.ClientSession, tokens: Tokens) -> Exchange:
    """Exchange at localhost."""
    return Exchange(tokens, session, base_url=microsoft.url)
