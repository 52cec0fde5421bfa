"""Query parameters that a route does not have are refused."""

from typing import Annotated, Any

import aiohttp
import pytest
from fastapi import FastAPI, Query

from chassis.http import make_api
from conftest import running


def api() -> FastAPI:
    """Make an application with a route of each kind."""
    made = make_api(title="t", description="d", ready={}, alive={})

    @made.get("/list")
    async def read(limit: int = 5, status: Annotated[list[str] | None, Query()] = None) -> dict[str, Any]:
        return {"limit": limit, "status": status}

    @made.get("/passed-on", include_in_schema=False)
    async def passed_on() -> dict[str, Any]:
        return {}

    return made


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", []),
        ("limit=3&status=open&status=closed", []),
        ("limti=3", [{"where": "query.limti", "what": "Unknown parameter"}]),
        ("limit=3&limit=4", [{"where": "query.limit", "what": "Given more than once"}]),
        ("%FF=1", [{"where": "query.\ufffd", "what": "Unknown parameter"}]),
    ],
)
async def test_a_parameter_that_the_route_does_not_have_is_refused(query: str, errors: list[dict[str, str]]) -> None:
    """A filter with a typo would otherwise match everything, and of two values one would be ignored."""
    async with running(api()) as url, aiohttp.ClientSession() as session, session.get(f"{url}/list?{query}") as answer:
        assert answer.status == (422 if errors else 200)
        assert (await answer.json()).get("errors", []) == errors


async def test_a_route_that_passes_requests_on_leaves_that_to_whom_it_asks() -> None:
    """The gateway does not know the parameters of the services."""
    async with running(api()) as url, aiohttp.ClientSession() as session, session.get(f"{url}/passed-on?x=1") as answer:
        assert answer.status == 200
