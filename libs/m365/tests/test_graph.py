"""Graph is spoken to with the right headers, paged safely, and its refusals say what the caller can do."""

import asyncio
import time
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import pytest
from aiohttp import web

from m365 import Graph, M365Error, Refused, Tokens, Unauthorised, Unavailable

TENANT = UUID("11111111-1111-4111-8111-111111111111")
OTHER_TENANT = UUID("22222222-2222-4222-8222-222222222222")
THINGS = "/v1.0/things"
ERROR = {"error": {"code": "BadRequest", "message": "user@contoso.example is not a mailbox."}}


async def test_a_request_carries_the_token_and_asks_for_new_enum_members(microsoft: Any, graph: Graph) -> None:
    """Without the Prefer header Microsoft hides the enum members that are newer than the API."""
    microsoft.answers(200, {"id": "1", "later": "unknown"})

    assert await graph.get(TENANT, THINGS) == {"id": "1", "later": "unknown"}

    [request] = microsoft.requests
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.headers["Prefer"] == "include-unknown-enum-members"


async def test_each_request_has_an_id_that_microsoft_can_find(microsoft: Any, graph: Graph) -> None:
    """No two requests share a client-request-id."""
    await graph.get(TENANT, THINGS)
    await graph.get(TENANT, THINGS)

    first, second = (UUID(request.headers["client-request-id"]) for request in microsoft.requests)
    assert first != second


async def test_the_callers_preferences_are_added_to_ours(microsoft: Any, graph: Graph) -> None:
    """One Prefer header holds both, however the caller spells its name."""
    await graph.get(TENANT, THINGS, headers={"prefer": 'IdType="ImmutableId"', "ConsistencyLevel": "eventual"})

    [request] = microsoft.requests
    assert request.headers.getall("Prefer") == ['include-unknown-enum-members, IdType="ImmutableId"']
    assert request.headers["ConsistencyLevel"] == "eventual"


async def test_ids_are_quoted_into_the_path(microsoft: Any, graph: Graph) -> None:
    """An id stays one segment, whatever characters it holds."""
    await graph.get(
        TENANT, "/v1.0/users/{user}/messages/{message}", ids={"user": "a#EXT#@b.test", "message": "x/../y?z"}
    )

    assert microsoft.requests[0].raw_path == "/v1.0/users/a%23EXT%23%40b.test/messages/x%2F..%2Fy%3Fz"


@pytest.mark.parametrize("odd", ["", ".", ".."])
async def test_an_id_cannot_change_the_path(microsoft: Any, graph: Graph, odd: str) -> None:
    """An empty id or a dot segment would name another resource."""
    with pytest.raises(ValueError, match="change the path"):
        await graph.get(TENANT, "/v1.0/users/{user}/messages", ids={"user": odd})

    assert microsoft.requests == []


async def test_a_path_cannot_change_the_host(graph: Graph) -> None:
    """`@evil.example` behind our host name would make that a user name."""
    with pytest.raises(ValueError, match="slash"):
        await graph.get(TENANT, "@evil.example/v1.0")


async def test_a_query_is_encoded_for_odata(microsoft: Any, graph: Graph) -> None:
    """A plus in a time stays a plus, a space is never sent as one."""
    await graph.get(TENANT, THINGS, {"$filter": "createdDateTime ge 2026-01-01T00:00:00+00:00", "$top": "5"})

    assert microsoft.requests[0].raw_path == (
        f"{THINGS}?$filter=createdDateTime%20ge%202026-01-01T00%3A00%3A00%2B00%3A00&$top=5"
    )


@pytest.mark.parametrize("method", ["post", "patch"])
async def test_a_body_is_sent_as_json_and_the_answer_read(microsoft: Any, graph: Graph, method: str) -> None:
    """What Microsoft made of it comes back."""
    microsoft.answers(201, {"id": "1"})

    assert await getattr(graph, method)(TENANT, THINGS, {"name": "ä"}) == {"id": "1"}

    assert microsoft.requests[0].method == method.upper()
    assert microsoft.requests[0].headers["Content-Type"] == "application/json"
    assert orjson.loads(microsoft.bodies[0]) == {"name": "ä"}


async def test_an_action_may_answer_nothing(microsoft: Any, graph: Graph) -> None:
    """202 and 204 have no body."""
    microsoft.answers(202)
    microsoft.answers(204)

    assert await graph.post(TENANT, "/v1.0/users/{user}/sendMail", {}, ids={"user": "u"}) == {}
    await graph.delete(TENANT, "/v1.0/things/{id}", ids={"id": "1"})

    assert [request.method for request in microsoft.requests] == ["POST", "DELETE"]


async def test_a_raw_mail_comes_as_bytes(microsoft: Any, graph: Graph) -> None:
    """Not decoded, not parsed."""
    microsoft.answers(200, body=b"Subject: \xff\r\n\r\n")

    got = await graph.content(TENANT, "/v1.0/users/{user}/messages/{id}/$value", ids={"user": "u", "id": "m"})

    assert got == b"Subject: \xff\r\n\r\n"


async def test_pages_are_followed_to_the_end(microsoft: Any, graph: Graph) -> None:
    """The link is used as Microsoft wrote it."""
    microsoft.answers(200, {"value": [1, 2], "@odata.nextLink": f"{microsoft.url}{THINGS}?$skiptoken=a%2Bb%20c%3D"})
    microsoft.answers(200, {"value": [3]})

    pages = [page async for page in graph.pages(TENANT, THINGS, {"$top": "2"})]

    assert [page["value"] for page in pages] == [[1, 2], [3]]
    assert [request.raw_path for request in microsoft.requests] == [
        f"{THINGS}?$top=2",
        f"{THINGS}?$skiptoken=a%2Bb%20c%3D",
    ]
    assert microsoft.requests[1].headers["Prefer"] == "include-unknown-enum-members"


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/v1.0/things",
        "http://localhost:{port}/v1.0/things",
        "https://localhost:1/v1.0/things",
        "https://localhost:{port}@evil.example/v1.0/things",
        "https://someone@localhost:{port}/v1.0/things",
        "//localhost:{port}/v1.0/things",
        "https://:secret@localhost:{port}/v1.0/things",
        "https://localhost:99999/v1.0/things",
        "https://[localhost/v1.0/things",
        "/v1.0/things",
        "",
    ],
)
async def test_a_page_cannot_lead_the_token_elsewhere(microsoft: Any, graph: Graph, link: str) -> None:
    """The page that was read is kept, the link is not followed."""
    port = microsoft.url.rpartition(":")[2]
    microsoft.answers(200, {"value": [1], "@odata.nextLink": link.replace("{port}", port)})
    pages = graph.pages(TENANT, THINGS)
    first = await anext(pages)

    with pytest.raises(Refused) as caught:
        await anext(pages)

    assert caught.value.code == "ForeignNextLink"
    assert first["value"] == [1]
    assert len(microsoft.requests) == 1


async def test_a_token_is_only_sent_over_https(session: aiohttp.ClientSession, tokens: Tokens) -> None:
    """A base URL without TLS is a mistake in the settings."""
    with pytest.raises(ValueError, match="https"):
        Graph(tokens, session, base_url="http://graph.microsoft.com")


async def test_after_a_401_the_request_is_repeated_once_with_a_fresh_token(microsoft: Any, graph: Graph) -> None:
    """A revoked token is not the caller's trouble."""
    await graph.get(TENANT, THINGS)
    microsoft.tokens.remove("token-1")
    microsoft.tokens.add("token-that-nobody-has")

    assert await graph.post(TENANT, THINGS, {"name": "x"}) == {}

    assert [request.headers["Authorization"] for request in microsoft.requests] == [
        "Bearer token-1",
        "Bearer token-1",
        "Bearer token-2",
    ]
    assert microsoft.bodies[1] == microsoft.bodies[2] == b'{"name":"x"}'


async def test_many_who_meet_a_401_get_one_fresh_token(microsoft: Any, graph: Graph) -> None:
    """One revoked token causes one token request."""
    await graph.get(TENANT, THINGS)
    microsoft.tokens.remove("token-1")
    microsoft.tokens.add("token-that-nobody-has")

    await asyncio.gather(*(graph.get(TENANT, THINGS) for _ in range(8)))

    assert len(microsoft.forms) == 2


async def test_a_second_401_is_told(microsoft: Any, graph: Graph) -> None:
    """A token that is refused although it is fresh lacks a permission."""
    for _ in range(2):
        microsoft.answers(401, {"error": {"code": "InvalidAuthenticationToken", "message": "No."}})

    with pytest.raises(Unauthorised) as caught:
        await graph.get(TENANT, THINGS)

    assert (caught.value.status, caught.value.code) == (401, "InvalidAuthenticationToken")
    assert len(microsoft.requests) == 2


async def test_a_tenant_has_so_many_requests_at_a_time(
    microsoft: Any, session: aiohttp.ClientSession, tokens: Tokens
) -> None:
    """Six wait for two places; another tenant has its own."""
    graph = Graph(tokens, session, base_url=microsoft.url, concurrency=2)
    release = asyncio.Event()

    async def wait(_: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({})

    for _ in range(2):
        microsoft.does(wait)
    waiting = [asyncio.create_task(graph.get(TENANT, THINGS)) for _ in range(6)]
    while microsoft.active < 2:
        await asyncio.sleep(0)

    await graph.get(OTHER_TENANT, THINGS)
    seen_while_full = len(microsoft.requests)
    release.set()
    await asyncio.gather(*waiting)

    assert seen_while_full == 3
    assert len(microsoft.requests) == 7


async def test_cookies_are_not_kept(microsoft: Any, graph: Graph) -> None:
    """What one tenant's answer sets must not travel with another tenant's request."""
    microsoft.answers(200, {}, headers={"Set-Cookie": "tenant=1"})
    await graph.get(TENANT, THINGS)
    await graph.get(OTHER_TENANT, THINGS)

    assert "Cookie" not in microsoft.requests[1].headers


async def test_without_a_token_nothing_is_sent(microsoft: Any, graph: Graph) -> None:
    """What Entra ID said is what the caller hears."""
    microsoft.entra_answers(401, {"error": "invalid_client", "error_description": "AADSTS7000222: expired"})

    with pytest.raises(M365Error) as caught:
        await graph.get(TENANT, THINGS)

    assert caught.value.reason == "AADSTS7000222: expired"
    assert microsoft.requests == []


@pytest.mark.parametrize("connected", [True, False])
async def test_a_process_that_was_frozen_past_the_deadline_sends_nothing(
    microsoft: Any, graph: Graph, connected: bool
) -> None:
    """Whatever was ready to be sent: somebody else may have claimed the row and called by now."""
    if connected:
        await graph.get(TENANT, THINGS)
    before = len(microsoft.requests)

    with pytest.raises((Unavailable, TimeoutError)):
        async with Graph.before(asyncio.get_running_loop().time() + 0.01):
            time.sleep(0.02)  # noqa: ASYNC251 - as a process that is stopped
            await graph.post(TENANT, THINGS, {})

    assert len(microsoft.requests) == before
