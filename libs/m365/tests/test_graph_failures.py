"""What went wrong at Graph, or on the way there, says what the caller can do."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from m365 import Graph, Refused, Throttled, Tokens, Unauthorised, Unavailable, open_session

TENANT = UUID("11111111-1111-4111-8111-111111111111")
THINGS = "/v1.0/things"
ERROR = {"error": {"code": "BadRequest", "message": "user@contoso.example is not a mailbox."}}


async def test_a_403_is_not_repeated(microsoft: Any, graph: Graph) -> None:
    """Another token would have the same permissions."""
    microsoft.answers(403, {"error": {"code": "Authorization_RequestDenied", "message": "Insufficient privileges."}})

    with pytest.raises(Unauthorised) as caught:
        await graph.get(TENANT, THINGS)

    assert caught.value.reason == "Insufficient privileges."
    assert len(microsoft.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("1e9", 86400.0),
        ("soon", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
async def test_throttling_tells_when_to_come_back(
    microsoft: Any, graph: Graph, header: str | None, seconds: float | None
) -> None:
    """Retry-After is handed on, within a day; without a readable one the caller backs off. Nothing is repeated."""
    microsoft.answers(429, {"error": {}}, headers={} if header is None else {"Retry-After": header})

    with pytest.raises(Throttled) as caught:
        await graph.post(TENANT, THINGS, {})

    assert caught.value.retry_after == seconds
    assert len(microsoft.requests) == 1


@pytest.mark.parametrize(("ahead", "least", "most"), [(90, 80.0, 90.0), (-90, 0.0, 0.0)])
async def test_throttling_may_name_a_date(microsoft: Any, graph: Graph, ahead: int, least: float, most: float) -> None:
    """A date becomes seconds from now; one that has passed means at once."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    microsoft.answers(429, headers={"Retry-After": date})

    with pytest.raises(Throttled) as caught:
        await graph.get(TENANT, THINGS)

    assert caught.value.retry_after is not None
    assert least <= caught.value.retry_after <= most


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
async def test_after_a_5xx_a_change_may_have_happened(microsoft: Any, graph: Graph, status: int) -> None:
    """The caller has to look before repeating it; a read has nothing to look for."""
    for _ in range(2):
        microsoft.answers(status, headers={"Retry-After": "7"})

    with pytest.raises(Unavailable) as change:
        await graph.post(TENANT, THINGS, {})
    with pytest.raises(Unavailable) as read:
        await graph.get(TENANT, THINGS)

    assert (change.value.may_have_happened, read.value.may_have_happened) == (True, False)
    assert (change.value.status, change.value.retry_after) == (status, 7.0)


@pytest.mark.parametrize("fault", ["cut", "hang"])
async def test_when_no_answer_comes_a_change_may_have_happened(
    microsoft: Any, session: aiohttp.ClientSession, tokens: Tokens, fault: str
) -> None:
    """The connection broke, or time ran out, after the request had been sent."""
    graph = Graph(tokens, session, base_url=microsoft.url, timeout={"cut": 60.0, "hang": 2.0}[fault])
    await tokens.get(TENANT, "https://graph.microsoft.com/.default")
    microsoft.does(getattr(microsoft, fault))

    with pytest.raises(Unavailable) as change:
        await graph.post(TENANT, THINGS, {"name": "x"})

    assert microsoft.bodies == [b'{"name":"x"}']
    assert change.value.may_have_happened is True
    assert change.value.status is None


async def test_a_body_that_breaks_off_is_no_answer(microsoft: Any, graph: Graph) -> None:
    """Half a JSON document is not taken for a whole one."""

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"value": [')
        assert request.transport is not None
        request.transport.abort()
        return response

    microsoft.does(half)

    with pytest.raises(Unavailable) as caught:
        await graph.post(TENANT, THINGS, {})

    assert caught.value.may_have_happened is True


async def test_when_no_connection_comes_about_nothing_happened(
    session: aiohttp.ClientSession, tokens: Tokens, closed_port: int
) -> None:
    """A refused connection carried no request."""
    graph = Graph(tokens, session, base_url=f"https://localhost:{closed_port}")

    with pytest.raises(Unavailable) as caught:
        await graph.post(TENANT, THINGS, {})

    assert caught.value.may_have_happened is False
    assert str(caught.value) == f"POST {THINGS}: no answer ClientConnectorError"


async def test_a_server_that_we_do_not_trust_sees_no_request(microsoft: Any, tokens: Tokens) -> None:
    """Without its certificate authority the connection ends before the token is sent."""
    async with open_session() as session:
        with pytest.raises(Unavailable) as caught:
            await Graph(tokens, session, base_url=microsoft.url).post(TENANT, THINGS, {})

    assert caught.value.may_have_happened is False
    assert caught.value.code == "ClientConnectorCertificateError"
    assert microsoft.requests == []


async def test_a_gateways_page_is_not_an_answer(microsoft: Any, graph: Graph) -> None:
    """HTML with status 200 comes from something between Microsoft and us."""
    microsoft.answers(200, body=b"<html></html>")

    with pytest.raises(Unavailable) as caught:
        await graph.get(TENANT, THINGS)

    assert caught.value.code == "NotJson"


async def test_a_refusal_keeps_microsofts_words_out_of_the_text(microsoft: Any, graph: Graph) -> None:
    """The reason may name people; the text names the route and what Microsoft's support asks for."""
    microsoft.answers(400, ERROR, headers={"request-id": "0000-42"})
    microsoft.answers(404, ERROR, headers={"request-id": "0000-43"})

    with pytest.raises(Refused) as template:
        await graph.get(TENANT, "/v1.0/users/{user}/messages", ids={"user": "user@contoso.example"})
    with pytest.raises(Refused) as literal:
        await graph.get(TENANT, "/v1.0/users/user@contoso.example/messages/AAMk0=/microsoft.graph.x/$value?a=b")

    assert template.value.reason == "user@contoso.example is not a mailbox."
    assert str(template.value) == "GET /v1.0/users/{user}/messages: 400 BadRequest (request id 0000-42)"
    assert str(literal.value) == (
        "GET /v1.0/users/{}/messages/{}/microsoft.graph.x/$value: 404 BadRequest (request id 0000-43)"
    )


@pytest.mark.parametrize("body", [b"", b"\0\0", b"[]", b'{"error": "text"}', b"<html>"])
async def test_a_refusal_without_an_odata_error_is_still_a_refusal(microsoft: Any, graph: Graph, body: bytes) -> None:
    """The status is enough."""
    microsoft.answers(400, body=body)

    with pytest.raises(Refused) as caught:
        await graph.get(TENANT, THINGS)

    assert (caught.value.status, caught.value.code, caught.value.reason) == (400, "", "")


async def test_a_redirect_is_not_followed(microsoft: Any, graph: Graph) -> None:
    """The token goes nowhere that we did not choose."""
    microsoft.answers(302, headers={"Location": f"{microsoft.url}/elsewhere"})

    with pytest.raises(Refused) as caught:
        await graph.get(TENANT, THINGS)

    assert caught.value.status == 302
    assert len(microsoft.requests) == 1


async def test_an_answer_that_would_fill_the_memory_is_refused(
    microsoft: Any, session: aiohttp.ClientSession, tokens: Tokens
) -> None:
    """One mail cannot bring the service down, and reading it again would not help."""
    graph = Graph(tokens, session, base_url=microsoft.url, max_body=1000)
    microsoft.answers(200, body=b"x" * 1000)
    microsoft.answers(200, body=b"x" * 1001)

    assert len(await graph.content(TENANT, THINGS)) == 1000
    with pytest.raises(Refused) as caught:
        await graph.content(TENANT, THINGS)

    assert caught.value.code == "AnswerTooLarge"
