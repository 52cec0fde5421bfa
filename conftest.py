"""What all tests share: real Kafka and PostgreSQL (local_stack's plugin), Microsoft's stand-in, a served API."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import orjson
import pytest
import structlog
from fastapi import APIRouter, FastAPI
from hypothesis import HealthCheck, is_hypothesis_test, settings
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from backstop_contracts import Category, Message
from chassis.entra import Authenticator
from chassis.http import make_api
from chassis.service import server
from simulator import Simulator, serve

pytest_plugins = ["local_stack.pytest_plugin"]

AUDIENCE = "0a1b2c3d-0000-4000-8000-00000000b001"
JUDGED: dict[str, Any] = {
    "category": Category.PHISHING,
    "recipient": "ann@contoso.example",
    "message": Message(sha256="a" * 64, size=1),
}
"""What a verdict says of its message, where a test looks at the verdict alone."""

BAD_TOKENS: dict[str, dict[str, Any]] = {
    "expired": {"expires_in": -120},
    "not yet valid": {"not_before_in": 600},
    "of a tenant that is not served": {"claims": {"tid": str(uuid4())}},
    "for another audience": {"audience": str(uuid4())},
    "of another issuer": {"issuer": "https://login.example.com/v2.0"},
    "signed with another key": {"foreign_key": True},
    "without a signature": {"algorithm": "none"},
    "signed with HS256": {"algorithm": "HS256"},
    "without an object id": {"claims": {"oid": None}},
}
"""What can be wrong with an access token, as orders to the simulator: every service refuses each of them."""

SLOW_FIXTURES = {"backing_services", "browser"}
"""A test that uses one of these, however indirectly, is slow. So is one that tries many examples, and who says so."""

# Plain lines: a test that fails on purpose should not pay for a coloured traceback.
trace.set_tracer_provider(TracerProvider())
structlog.configure(processors=[structlog.processors.KeyValueRenderer()])

# No test fails for how long it takes: on a busy machine hypothesis's first table of Unicode alone takes seconds.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Trust in fast runs only the authorities that tests make: to read the system's takes longer than most tests."""
    if "not slow" in config.getoption("markexpr"):
        ssl.SSLContext.set_default_verify_paths = lambda _context: None  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by what it uses, before `-m` chooses."""
    for item in items:
        if isinstance(item, pytest.Function) and (
            not SLOW_FIXTURES.isdisjoint(item.fixturenames) or is_hypothesis_test(item.obj)
        ):
            item.add_marker("slow")
    # Begin with the file that takes longest: with two workers, the other one runs the rest meanwhile.
    items.sort(key=lambda item: item.path.name != "test_faults.py")


@pytest.fixture(scope="session")
async def simulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    """Entra ID, Graph and Exchange Online, for the whole run."""
    async with serve(tmp_path_factory.mktemp("microsoft")) as simulator:
        yield simulator


@pytest.fixture
def microsoft(simulator: Simulator) -> Simulator:
    """Return Microsoft's stand-in as if nobody had used it before."""
    simulator.state.reset()
    return simulator


Client = Callable[..., Awaitable[tuple[int, Any]]]
Serving = Callable[[FastAPI], AbstractAsyncContextManager[str]]


@asynccontextmanager
async def running(api: FastAPI) -> AsyncIterator[str]:
    """Serve *api* as `chassis.service.serve` does, on a free port; yields its address."""
    serving = server(api)
    task = asyncio.create_task(serving.serve())
    try:
        while not serving.is_up:
            await asyncio.wait([task], timeout=0.01)
            if task.done():
                await task
                raise RuntimeError("the server ended before it had started: see its log")
        yield f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}"
    finally:
        serving.should_exit = True
        await task


@pytest.fixture(scope="session")
def serving() -> Serving:
    """Give `running` to fixtures: to import it, a service's conftest would load this file a second time."""
    return running


@pytest.fixture
def authenticator(microsoft: Simulator) -> Authenticator:
    """Make the token check of a service that trusts the test's tenant."""
    return Authenticator(
        authority=microsoft.url,
        tenants=frozenset(map(UUID, microsoft.state.tenants)),
        audience=AUDIENCE,
        ca_file=microsoft.ca_file,
    )


@pytest.fixture
def tenant_id(microsoft: Simulator) -> UUID:
    """Return the id of the test's tenant."""
    return UUID(next(iter(microsoft.state.tenants)))


@pytest.fixture
def token(microsoft: Simulator, tenant_id: UUID) -> Callable[..., str]:
    """Order access tokens: `token("Reporter", oid=...)`; see the simulator's TokenOrder for the ways to spoil one."""
    from simulator.tokens import TokenOrder, ordered_token  # noqa: PLC0415 - the simulator's workshop, not its face

    def order(*roles: str, **more: Any) -> str:
        values = {"audience": AUDIENCE, "roles": list(roles), "scp": "access_as_user", **more}
        tenant = str(values.pop("tenant", tenant_id))
        return ordered_token(microsoft.state.keys, TokenOrder(**values), tenant, microsoft.state.issuer(tenant))

    return order


@pytest.fixture
async def call(authenticator: Authenticator) -> AsyncIterator[Callable[[APIRouter], Awaitable[Client]]]:
    """Serve a router as its service does; returns a client: `status, body = await client("GET", "/v1/...", token)`."""
    session = aiohttp.ClientSession()
    held: list[Any] = [session]

    async def open_client(router: APIRouter) -> Client:
        api = make_api(title="test", description="test", ready={}, alive={})
        api.state.authenticator = authenticator
        api.include_router(router)
        served = running(api)
        url = await served.__aenter__()
        held.append(served)

        async def client(method: str, path: str, token: str | None = None, **request: Any) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            headers |= request.pop("headers", {})
            async with session.request(method, url + path, headers=headers, **request) as response:
                body = await response.read()
                return response.status, orjson.loads(body) if body else None

        return client

    yield open_client
    for served in reversed(held):
        await served.__aexit__(None, None, None)
