"""What a failure looks like to whoever asked, and to whoever reads the log."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog
from fastapi import APIRouter
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis.http import make_api
from chassis.postgres import Database
from conftest import running

Ask = Callable[[Callable[[], Awaitable[Any]]], Awaitable[tuple[int, str | None]]]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Return a client of a route that does what it is given: it returns the status and Retry-After of the answer."""
    api = make_api(title="", description="", ready={}, alive={})
    doing: list[Callable[[], Awaitable[Any]]] = []

    @api.get("/do")
    async def do() -> None:
        await doing.pop()()

    async with running(api) as url, aiohttp.ClientSession(url) as session:

        async def client(what: Callable[[], Awaitable[Any]]) -> tuple[int, str | None]:
            doing.append(what)
            async with session.get("/do") as answer:
                return answer.status, answer.headers.get("Retry-After")

        yield client


async def test_a_request_that_finds_postgresql_unavailable_is_told_to_come_again(
    ask: Ask, database: str, tmp_path: Path
) -> None:
    """The log says why it was refused."""
    db = Database(database, schema="triage")
    await db.open(tmp_path)
    await db.close()
    with structlog.testing.capture_logs() as logs:
        assert await ask(lambda: db.pool.execute("SELECT 1")) == (503, "5")
    (refusal,) = [entry for entry in logs if entry["event"] == "request.refused"]

    assert (refusal["error"], refusal["reason"]) == ("InterfaceError", "pool is closed")


async def test_a_fault_of_ours_is_answered_and_logged_as_one(ask: Ask, database: str, tmp_path: Path) -> None:
    """Neither wrong arguments nor a missing file is PostgreSQL being away."""
    db = Database(database, schema="triage")
    await db.open(tmp_path)

    async def read() -> None:
        (tmp_path / "nothing").read_text()

    with structlog.testing.capture_logs() as logs:
        assert await ask(lambda: db.pool.execute("SELECT $1::int", 1, 2)) == (500, None)
        assert await ask(read) == (500, None)
    await db.close()

    assert [entry["event"] for entry in logs].count("request.failed") == 2


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Keep the spans of this test."""
    kept = InMemorySpanExporter()
    processor = SimpleSpanProcessor(kept)
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(processor)
    yield kept
    processor.shutdown()


async def test_no_path_is_in_a_span_or_a_log(spans: InMemorySpanExporter) -> None:
    """A path may hold the token of a link, and a query may hold more: whoever reads it could use it."""
    router = APIRouter(prefix="/q")

    @router.get("/{token}/mail", include_in_schema=False)
    async def mail(token: str) -> str:
        if token == "t0ken-of-500":  # noqa: S105 - it is to be looked for
            raise ZeroDivisionError
        if token == "t0ken-of-503":  # noqa: S105 - as above
            raise asyncpg.CannotConnectNowError("starting up")
        return ""

    api = make_api(title="", description="", ready={}, alive={})
    api.include_router(router)
    with structlog.testing.capture_logs() as logs:
        async with running(api) as url, aiohttp.ClientSession(url) as session:
            for method, path in (
                ("GET", "/q/t0ken/mail?code=t0ken"),
                ("GET", "/q/t0ken-of-500/mail?code=t0ken"),
                ("GET", "/q/t0ken-of-503/mail?code=t0ken"),
                ("POST", "/q/t0ken/mail?code=t0ken"),
                ("GET", "/nothing/t0ken?code=t0ken"),
            ):
                async with session.request(method, path) as answer:
                    await answer.read()
    finished = spans.get_finished_spans()

    assert [one.name for one in finished] == [
        *["GET /q/{token}/mail"] * 3,
        "POST /q/{token}/mail",
        "GET unmatched",
    ]
    assert "t0ken" not in "".join(one.to_json() for one in finished)
    assert [entry.get("route") for entry in logs] == ["/q/{token}/mail"] * 2
    assert "t0ken" not in str([{**entry, "exc_info": ""} for entry in logs])
