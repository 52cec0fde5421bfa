"""Requests and answers pass through as streams; what goes wrong behind the gateway is told as it is."""

import asyncio
import hashlib
import io
import socket
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

import gateway.app as gateway_app

MEGABYTE = 1 << 20


@pytest.fixture
async def reporter(token: Any) -> dict[str, str]:
    """Give the headers of somebody who may report."""
    return {"Authorization": f"Bearer {await token('Reporter')}", "Content-Type": "message/rfc822"}


@pytest.fixture
async def security(token: Any) -> dict[str, str]:
    """Give the headers of somebody who may read cases."""
    return {"Authorization": f"Bearer {await token('SecurityReader')}"}


async def test_a_request_arrives_as_it_was_sent(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """Path, query, body and the headers that matter arrive unchanged."""
    query = "?reported_as=phishing&reporter=a%2Bb%40contoso.example&x=%C3%A4&empty="
    url = URL("/v1/reports" + query, encoded=True)
    async with gateway.post(url, data=b"From: a\r\n\r\n\x00\xff", headers=reporter) as answer:
        assert await answer.json() == {"service": "here"}

    ((method, path, headers, body),) = service.asked
    assert (method, path, body) == ("POST", "/v1/reports" + query, b"From: a\r\n\r\n\x00\xff")
    assert headers["Authorization"] == reporter["Authorization"]
    assert headers["Content-Type"] == "message/rfc822"
    assert headers["Content-Length"] == str(len(body))


async def test_headers_from_outside_stay_outside(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """A service sees none of the headers that somebody outside could make it trust."""
    foreign = {"Cookie": "a=b", "X-Forwarded-For": "192.0.2.1", "X-Ms-Client-Principal": "x", "TE": "trailers"}
    async with gateway.get("/v1/cases", headers=security | foreign):
        pass

    ((_, _, headers, _),) = service.asked
    assert {name.lower() for name in headers} <= {"host", "accept", "authorization", "traceparent"}


async def test_the_trace_goes_on(gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]) -> None:
    """The service gets a span of its own below the caller's trace."""
    trace, caller = uuid4().hex, uuid4().hex[:16]
    async with gateway.get("/v1/cases", headers=security | {"traceparent": f"00-{trace}-{caller}-01"}):
        pass

    ((_, _, headers, _),) = service.asked
    version, same_trace, span, flags = headers["traceparent"].split("-")
    assert (version, same_trace, flags) == ("00", trace, "01")
    assert span != caller


@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
async def test_a_large_mail_passes_without_being_held(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str], *, announced: bool
) -> None:
    """The service reads the first bytes of 35 MB before the last ones are sent, and then all of them."""
    size = 35 * MEGABYTE
    begun = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for chunk in request.content.iter_any():
            begun.set()
            digest.update(chunk)
        return web.json_response({"sha256": digest.hexdigest(), "length": request.headers.get("Content-Length")})

    async def mail() -> AsyncIterator[bytes]:
        yield b"x" * MEGABYTE
        await asyncio.wait_for(begun.wait(), 10)
        for _ in range(34):
            yield b"x" * MEGABYTE

    service.answer = take
    length = {"Content-Length": str(size)} if announced else {}
    async with gateway.post("/v1/reports", data=mail(), headers=reporter | length) as answer:
        taken = await answer.json()

    assert taken == {"sha256": hashlib.sha256(b"x" * size).hexdigest(), "length": str(size) if announced else None}


async def test_an_answer_passes_without_being_held(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """The client reads the first half of an answer before the service has sent the second."""
    seen = asyncio.Event()

    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.wait_for(seen.wait(), 10)
        await response.write(b"second")
        return response

    service.answer = give
    async with gateway.get("/v1/cases", headers=security) as answer:
        assert await answer.content.read(5) == b"first"
        seen.set()
        assert await answer.read() == b"second"


async def test_an_answer_that_comes_before_the_upload_ends_is_passed_on(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """A service may refuse a mail by its announced size; the client hears why."""

    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response(
            {"title": "The mail is too large"}, status=413, content_type="application/problem+json"
        )

    service.answer = refuse
    async with gateway.post("/v1/reports", data=io.BytesIO(b"x" * 36 * MEGABYTE), headers=reporter) as answer:
        assert (answer.status, (await answer.json())["title"]) == (413, "The mail is too large")


async def test_an_upload_that_breaks_off_breaks_off_for_the_service_too(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """Half a mail never looks like a whole one to the service."""
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def take(request: web.Request) -> web.Response:
        try:
            await request.read()
        except Exception as error:
            ended.set_result(error)
            raise
        ended.set_result(None)
        return web.Response()

    async def half() -> AsyncIterator[bytes]:
        yield b"x" * MEGABYTE
        raise ConnectionAbortedError

    service.answer = take
    with pytest.raises(aiohttp.ClientError):
        await gateway.post("/v1/reports", data=half(), headers=reporter)
    assert await asyncio.wait_for(ended, 10) is not None


async def test_a_refusal_of_the_service_passes_as_it_is(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """Status, problem details and Retry-After come from the service; headers of its connection do not."""

    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(
            status=503,
            body=b'{"title":"The database is away","status":503}',
            content_type="application/problem+json",
            headers={"Retry-After": "5", "Location": "/v1/x", "Connection": "X-Internal", "X-Internal": "1"},
        )

    service.answer = refuse
    async with gateway.get("/v1/cases", headers=security) as answer:
        assert (answer.status, answer.content_type) == (503, "application/problem+json")
        assert await answer.read() == b'{"title":"The database is away","status":503}'
        assert (answer.headers["Retry-After"], answer.headers["Location"]) == ("5", "/v1/x")
        assert "X-Internal" not in answer.headers
        assert len(answer.headers.getall("Date")) == 1


async def test_a_service_that_is_away_is_503(run_gateway: Any, reporter: dict[str, str]) -> None:
    """A refused connection means that nothing was kept, and when to try again."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with run_gateway(f"http://127.0.0.1:{closed.getsockname()[1]}") as gateway:
            async with gateway.post("/v1/reports", data=b"x" * MEGABYTE, headers=reporter) as answer:
                assert (answer.status, answer.content_type) == (503, "application/problem+json")
                assert answer.headers["Retry-After"] == "5"
                assert "nothing was saved" in (await answer.json())["detail"]
            # Else one service that is away would take the routes of all others out of the load balancer.
            for path in ("/readyz", "/livez"):
                async with gateway.get(path) as answer:
                    assert answer.status == 200


async def test_a_service_that_keeps_silent_is_504(run_gateway: Any, service: Any, security: dict[str, str]) -> None:
    """Silence ends after the time of the settings."""
    release = asyncio.Event()

    async def keep_silent(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    service.answer = keep_silent
    async with (
        run_gateway(service.url, upstream_timeout_seconds=0.3) as gateway,
        gateway.get("/v1/cases", headers=security) as answer,
    ):
        assert (answer.status, answer.content_type) == (504, "application/problem+json")
    release.set()


async def test_a_service_that_breaks_off_is_502(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """The gateway does not claim to know what became of a request whose answer was lost, nor repeat it."""
    calls = 0

    async def break_off(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        await request.read()
        assert request.transport
        request.transport.abort()
        return web.Response()

    service.answer = break_off
    async with gateway.post("/v1/reports", data=b"From: a\r\n\r\n", headers=reporter) as answer:
        assert (answer.status, answer.content_type) == (502, "application/problem+json")
        assert "is not known" in (await answer.json())["detail"]
    assert calls == 1


async def test_a_service_that_takes_no_connection_was_not_reached(
    run_gateway: Any, security: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503: where nobody lets us in in time, nothing can have been kept."""
    async with run_gateway("http://127.0.0.1:1") as gateway:
        connect = aiohttp.TCPConnector.connect

        async def reach(connector: Any, request: Any, *rest: Any, **more: Any) -> Any:
            if request.url.port == 1:
                raise aiohttp.ConnectionTimeoutError("nobody comes")
            return await connect(connector, request, *rest, **more)

        monkeypatch.setattr(aiohttp.TCPConnector, "connect", reach)
        async with gateway.get("/v1/cases", headers=security) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "could not be reached" in (await answer.json())["detail"]


async def left(request: web.Request) -> bool:
    """Wait until whoever asks is gone."""
    async with asyncio.timeout(60):
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)
    return True


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/cases"), ("POST", "/v1/reports")])
async def test_a_client_that_goes_away_frees_the_service(
    run_gateway: Any, service: Any, reporter: dict[str, str], security: dict[str, str], method: str, path: str
) -> None:
    """The gateway does not wait for an answer that nobody wants; there is room for others at once."""
    asked: asyncio.Queue[web.Request] = asyncio.Queue()

    async def take_long(request: web.Request) -> web.Response:
        await request.read()
        await asked.put(request)
        await left(request)
        return web.Response()

    service.answer = take_long
    async with run_gateway(service.url, upstream_timeout_seconds=600, max_concurrent_requests=1) as gateway:
        headers = security if method == "GET" else reporter
        data = None if method == "GET" else b"From: a\r\n\r\n"
        for _ in range(2):
            asking = asyncio.create_task(gateway.request(method, path, headers=headers, data=data))
            request = await asyncio.wait_for(asked.get(), 60)
            asking.cancel()
            assert await left(request)
            service.answer = None
            while True:
                async with gateway.get("/v1/cases", headers=security) as answer:
                    if answer.status == 200:
                        break
            service.answer = take_long


async def test_a_client_that_goes_away_in_the_middle_of_an_answer_frees_the_service(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """An answer without an end ends with whoever asked for it."""
    gone = asyncio.Event()

    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await left(request)
        gone.set()
        return response

    service.answer = give
    answer = await gateway.get("/v1/cases", headers=security)
    assert await answer.content.read(5) == b"first"
    answer.close()
    await asyncio.wait_for(gone.wait(), 60)


async def test_an_upload_that_is_too_slow_is_given_up_on_both_sides(
    run_gateway: Any, service: Any, reporter: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client hears 408; the service sees an upload that broke off."""
    monkeypatch.setattr(gateway_app, "TURN_SECONDS", 0)
    broken, answered = asyncio.Event(), asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        try:
            await request.read()
        except Exception:
            broken.set()
            raise
        return web.Response()

    async def slow() -> AsyncIterator[bytes]:
        yield b"From: a"
        await answered.wait()

    service.answer = take
    async with run_gateway(service.url, upload_timeout_seconds=0.3) as gateway:
        async with gateway.post("/v1/reports", data=slow(), headers=reporter) as answer:
            assert (answer.status, answer.content_type) == (408, "application/problem+json")
        answered.set()
        await asyncio.wait_for(broken.wait(), 60)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_its_bound_is_refused(
    run_gateway: Any, service: Any, reporter: dict[str, str], token: Any, *, announced: bool
) -> None:
    """A mail may be large, a decision may not; neither is announced smaller than it is."""
    admin = {"Authorization": f"Bearer {await token('SecurityAdministrator')}"}
    paths = {"/v1/reports": (reporter, 2 * MEGABYTE), f"/v1/cases/{uuid4()}/decisions": (admin, MEGABYTE)}

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, 65536):
            yield b"x" * min(65536, size - start)

    async with run_gateway(service.url, max_upload_bytes=2 * MEGABYTE) as gateway:
        for path, (headers, most) in paths.items():
            for size, status in ((most, 200), (most + 1, 413)):
                data = io.BytesIO(b"x" * size) if announced else pieces(size)
                async with gateway.post(path, data=data, headers=headers) as answer:
                    assert answer.status == status
    assert [len(body) for *_, body in service.asked] == [2 * MEGABYTE, MEGABYTE]


async def test_a_request_with_two_lengths_reaches_no_service(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """Its end could be the beginning of another request, in somebody else's name."""
    assert gateway._base_url
    streams = await asyncio.open_connection(gateway._base_url.host, gateway._base_url.port)
    lines = ["POST /v1/reports HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in reporter.items())]
    streams[1].write("\r\n".join([*lines, "Content-Length: 4", "Transfer-Encoding: chunked", "", "0", "", ""]).encode())
    assert (await streams[0].readline()).split()[1] == b"400"
    streams[1].close()
    assert service.asked == []
