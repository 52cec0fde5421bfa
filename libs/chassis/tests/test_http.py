"""What a failure looks like to whoever asked, and to whoever reads the log."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

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
