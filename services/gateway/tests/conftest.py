"""The gateway as a real server, between a client and a service that the test scripts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiohttp import web

from gateway.app import Settings, build
from simulator import Simulator, serve

AUDIENCE = str(uuid4())

Token = Callable[..., Awaitable[str]]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
RunGateway = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]


@pytest.fixture(scope="session")
async def entra(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    """Run the simulated Entra ID."""
    async with serve(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


@pytest.fixture(scope="session")
def token(entra: Simulator) -> Token:
    """Order tokens from Entra ID, valid or invalid."""

    async def order(*roles: str, **more: Any) -> str:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.post(
                f"{entra.url}/simulator/tokens", json={"audience": AUDIENCE, "roles": roles, **more}
            ) as answer,
        ):
            return str((await answer.json())["access_token"])

    return order


@dataclass
class Service:
    """A service behind the gateway: records requests, and answers as the test says."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer with `answer`; without one, record the request."""
        if request.path == "/livez":
            return web.json_response({})
        if self.answer:
            return await self.answer(request)
        self.requests.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return web.json_response({"service": "here"})


@asynccontextmanager
async def listening(handle: Answer) -> AsyncIterator[str]:
    """Serve *handle* for every path; return the URL."""
    app = web.Application(client_max_size=100 << 20)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def settings(entra: Simulator, **urls: Any) -> Settings:
    """Return the gateway's settings."""
    return Settings(
        authority=entra.url,
        ca_file=Path(entra.ca_file),
        api_audience=AUDIENCE,
        tenants=frozenset({UUID(next(iter(entra.state.tenants)))}),
        **urls,
    )


@pytest.fixture(scope="session")
async def _service() -> AsyncIterator[Service]:
    service = Service()
    async with listening(service.handle) as service.url:
        yield service


@pytest.fixture
def service(_service: Service) -> Service:
    """Return the one service behind all routes of the gateway, without requests."""
    _service.requests.clear()
    _service.answer = None
    return _service


@pytest.fixture(scope="session")
def run_gateway(entra: Simulator, serving: Any) -> RunGateway:
    """Run a gateway before the service at a URL; returns a client of it."""

    @asynccontextmanager
    async def run(service_url: str, **more: Any) -> AsyncIterator[aiohttp.ClientSession]:
        urls = {"reporter_url": service_url, "triage_url": service_url, "quarantine_url": service_url}
        async with (
            build(settings(entra, **{**urls, **more})) as api,
            serving(api) as url,
            aiohttp.ClientSession(url) as client,
        ):
            yield client

    return run


@pytest.fixture(scope="session")
async def gateway(run_gateway: RunGateway, _service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the gateway before the service; return a client of it."""
    async with run_gateway(_service.url) as client:
        yield client
