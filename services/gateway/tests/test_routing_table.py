"""Each role may call its own routes, and nothing else gets through."""

import asyncio
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from conftest import BAD_TOKENS
from gateway.routing_table import ROUTES

ID = UUID("99999999-9999-4999-8999-999999999999")
EVERYONE = {"Reporter", "SecurityReader", "SecurityAdministrator"}
SECURITY = {"SecurityReader", "SecurityAdministrator"}
ALLOWED = {
    ("POST", "/v1/reports"): {"Reporter"},
    ("GET", f"/v1/reports/{ID}"): EVERYONE,
    ("GET", "/v1/cases"): SECURITY,
    ("GET", f"/v1/cases/{ID}"): SECURITY,
    ("POST", f"/v1/cases/{ID}/decisions"): {"SecurityAdministrator"},
}


@pytest.mark.parametrize(("operation", "roles"), ALLOWED.items(), ids=lambda value: " ".join(sorted(value)))
@pytest.mark.parametrize("role", [*sorted(EVERYONE), "Unheard.Of", None])
async def test_a_role_may_call_only_its_own_routes(
    gateway: aiohttp.ClientSession,
    service: Any,
    token: Any,
    operation: tuple[str, str],
    roles: set[str],
    role: str | None,
) -> None:
    """A caller with one of the route's roles reaches the service; all others get 403 from the gateway."""
    headers = {"Authorization": f"Bearer {await token(*filter(None, [role]))}"}
    async with gateway.request(*operation, headers=headers) as answer:
        body = await answer.json()

    if role in roles:
        assert answer.status == 200
        assert [(method, path) for method, path, _, _ in service.requests] == [operation]
    else:
        assert (answer.status, answer.content_type) == (403, "application/problem+json")
        assert (body["type"], body["title"]) == ("urn:backstop:problem:not-allowed", "Not allowed")
        assert service.requests == []


@pytest.mark.parametrize("order", BAD_TOKENS.values(), ids=BAD_TOKENS)
@pytest.mark.parametrize("path", ["/v1/cases", "/v1/quarantine"])
async def test_a_bad_token_reaches_no_service(
    gateway: aiohttp.ClientSession, service: Any, token: Any, order: dict[str, Any], path: str
) -> None:
    """Whatever is wrong with it, the gateway answers 401 itself."""
    headers = {"Authorization": f"Bearer {await token(*EVERYONE, **order)}"}
    async with gateway.get(path, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (401, "application/problem+json")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert service.requests == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic dTpw"}])
async def test_every_route_needs_a_token(gateway: aiohttp.ClientSession, service: Any, headers: dict[str, str]) -> None:
    """A missing or malformed bearer token is 401."""
    async with gateway.get("/v1/cases", headers=headers) as answer:
        assert answer.status == 401
    assert service.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/cases/", 404),
        ("GET", "/v1/cases/17", 404),
        ("GET", f"/v1/cases/{ID}/timeline", 404),
        ("GET", f"/v1/cases/{ID}%2Fdecisions", 405),
        ("GET", "/v1/cases/..%2F..%2Fmetrics", 404),
        ("GET", "/v1/cases/../../metrics", 404),
        ("GET", "/v1/cases/%2e%2e/%2e%2e/metrics", 404),
        ("GET", f"/v1/cases/{ID}%3Fx=1", 404),
        ("GET", f"//v1/cases/{ID}", 404),
        ("GET", "http://elsewhere.example.com/v1/secrets", 404),
        ("DELETE", "/v1/reports", 405),
        ("GET", "/v1/reports", 405),
        ("PUT", f"/v1/cases/{ID}", 405),
        ("GET", f"/v1/cases/{ID}/decisions", 405),
        ("TRACE", "/v1/cases", 405),
    ],
)
async def test_a_request_that_is_not_in_the_table_is_not_forwarded(
    gateway: aiohttp.ClientSession, service: Any, token: Any, method: str, path: str, status: int
) -> None:
    """An unknown route is 404, a wrong method 405, however the path is written."""
    head, body = await _raw(gateway, method, path, await token(*EVERYONE))

    assert head.startswith(f"HTTP/1.1 {status} ")
    assert "application/problem+json" in head
    assert f'"status":{status}' in body
    assert service.requests == []


async def _raw(gateway: aiohttp.ClientSession, method: str, path: str, token: str) -> tuple[str, str]:
    """Send a request line unchanged: a client would normalise the path."""
    url = gateway._base_url
    assert url
    assert url.host
    reader, writer = await asyncio.open_connection(url.host, url.port)
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {token}", "Connection: close"]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def test_the_openapi_document_needs_no_token(gateway: aiohttp.ClientSession, service: Any) -> None:
    """It is the same for everybody, and the gateway serves it itself."""
    async with gateway.get("/openapi.json", headers={}) as answer:
        document = await answer.json()

    assert (answer.status, answer.content_type) == (200, "application/json")
    assert set(document["paths"]) == {route.path for route in ROUTES}
    assert service.requests == []
