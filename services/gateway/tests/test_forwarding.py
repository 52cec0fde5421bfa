"""Requests and answers are streamed; failures behind the gateway become problems that say what happened."""

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
    """Return the headers of a caller who may report."""
    return {"Authorization": f"Bearer {await token('Reporter')}", "Content-Type": "message/rfc822"}


@pytest.fixture
async def security(token: Any) -> dict[str, str]:
    """Return the headers of a caller who may read cases."""
    return {"Authorization": f"Bearer {await token('SecurityReader')}"}


async def test_a_request_arrives_as_it_was_sent(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """Path, query, body and the headers that matter arrive unchanged."""
    query = "?reported_as=phishing&reporter=a%2Bb%40contoso.example&x=%C3%A4&empty="
    url = URL("/v1/reports" + query, encoded=True)
    async with gateway.post(url, data=b"From: a\r\n\r\n\x00\xff", headers=reporter) as answer:
        assert await answer.json() == {"service": "here"}

    ((method, path, headers, body),) = service.requests
    assert (method, path, body) == ("POST", "/v1/reports" + query, b"From: a\r\n\r\n\x00\xff")
    assert headers["Authorization"] == reporter["Authorization"]
    assert headers["Content-Type"] == "message/rfc822"
    assert headers["Content-Length"] == str(len(body))


async def test_other_headers_are_not_forwarded(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """A service receives no header that it might trust although it comes from outside."""
    others = {"Cookie": "a=b", "X-Forwarded-For": "192.0.2.1", "X-Ms-Client-Principal": "x", "TE": "trailers"}
    async with gateway.get("/v1/cases", headers=security | others):
        pass

    ((_, _, headers, _),) = service.requests
    assert {name.lower() for name in headers} <= {"host", "accept", "authorization", "traceparent"}


async def test_the_trace_continues(gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]) -> None:
    """The service receives a new span of the caller's trace."""
    trace, caller = uuid4().hex, uuid4().hex[:16]
    async with gateway.get("/v1/cases", headers=security | {"traceparent": f"00-{trace}-{caller}-01"}):
        pass

    ((_, _, headers, _),) = service.requests
    version, same_trace, span, flags = headers["traceparent"].split("-")
    assert (version, same_trace, flags) == ("00", trace, "01")
    assert span != caller


@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
async def test_a_large_message_is_streamed(
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

    async def message() -> AsyncIterator[bytes]:
        yield b"x" * MEGABYTE
        await asyncio.wait_for(begun.wait(), 10)
        for _ in range(34):
            yield b"x" * MEGABYTE

    service.answer = take
    length = {"Content-Length": str(size)} if announced else {}
    async with gateway.post("/v1/reports", data=message(), headers=reporter | length) as answer:
        taken = await answer.json()

    assert taken == {"sha256": hashlib.sha256(b"x" * size).hexdigest(), "length": str(size) if announced else None}


async def test_an_answer_is_streamed(gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]) -> None:
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


async def test_an_answer_before_the_end_of_the_upload_is_forwarded(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """A service may refuse a message by its Content-Length; the client learns why."""

    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response(
            {"title": "The message is too large"}, status=413, content_type="application/problem+json"
        )

    service.answer = refuse
    async with gateway.post("/v1/reports", data=io.BytesIO(b"x" * 36 * MEGABYTE), headers=reporter) as answer:
        assert (answer.status, (await answer.json())["title"]) == (413, "The message is too large")


async def test_an_aborted_upload_is_aborted_for_the_service_too(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """A part of a message never looks complete to the service."""
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


async def test_a_problem_of_the_service_is_forwarded_unchanged(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """Status, body and Retry-After are the service's; headers of its connection are dropped."""

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


async def test_an_unreachable_service_is_503(run_gateway: Any, reporter: dict[str, str]) -> None:
    """Nothing was saved, and Retry-After says when to try again. The gateway itself stays ready."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with run_gateway(f"http://127.0.0.1:{closed.getsockname()[1]}") as gateway:
            async with gateway.post("/v1/reports", data=b"x" * MEGABYTE, headers=reporter) as answer:
                assert (answer.status, answer.content_type) == (503, "application/problem+json")
                assert answer.headers["Retry-After"] == "5"
                assert "nothing was saved" in (await answer.json())["detail"]
            # Otherwise one unreachable service would take the routes of all others out of the load balancer.
            for path in ("/readyz", "/livez"):
                async with gateway.get(path) as answer:
                    assert answer.status == 200


async def test_a_service_that_does_not_respond_is_504(run_gateway: Any, service: Any, security: dict[str, str]) -> None:
    """The settings say how long it may be silent."""
    release = asyncio.Event()

    async def stay_silent(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    service.answer = stay_silent
    async with (
        run_gateway(service.url, upstream_timeout_seconds=0.3) as gateway,
        gateway.get("/v1/cases", headers=security) as answer,
    ):
        assert (answer.status, answer.content_type) == (504, "application/problem+json")
    release.set()


async def test_a_service_that_disconnects_is_502(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """The gateway says that the outcome is not known, and does not repeat the request."""
    calls = 0

    async def disconnect(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        await request.read()
        assert request.transport
        request.transport.abort()
        return web.Response()

    service.answer = disconnect
    async with gateway.post("/v1/reports", data=b"From: a\r\n\r\n", headers=reporter) as answer:
        assert (answer.status, answer.content_type) == (502, "application/problem+json")
        assert "is not known" in (await answer.json())["detail"]
    assert calls == 1


async def test_a_service_that_accepts_no_connection_is_503(
    run_gateway: Any, security: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can have been saved if the connection timed out."""
    async with run_gateway("http://127.0.0.1:1") as gateway:
        connect = aiohttp.TCPConnector.connect

        async def connect_or_time_out(connector: Any, request: Any, *rest: Any, **more: Any) -> Any:
            if request.url.port == 1:
                raise aiohttp.ConnectionTimeoutError("timed out")
            return await connect(connector, request, *rest, **more)

        monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_or_time_out)
        async with gateway.get("/v1/cases", headers=security) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "could not be reached" in (await answer.json())["detail"]


async def disconnected(request: web.Request) -> bool:
    """Wait until the client has disconnected."""
    async with asyncio.timeout(60):
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)
    return True


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/cases"), ("POST", "/v1/reports")])
async def test_a_client_that_disconnects_frees_the_service(
    run_gateway: Any, service: Any, reporter: dict[str, str], security: dict[str, str], method: str, path: str
) -> None:
    """The gateway cancels the call at once, which makes room for other requests."""
    arrived: asyncio.Queue[web.Request] = asyncio.Queue()

    async def hang(request: web.Request) -> web.Response:
        await request.read()
        await arrived.put(request)
        await disconnected(request)
        return web.Response()

    service.answer = hang
    async with run_gateway(service.url, upstream_timeout_seconds=600, max_concurrent_requests=1) as gateway:
        headers = security if method == "GET" else reporter
        data = None if method == "GET" else b"From: a\r\n\r\n"
        for _ in range(2):
            calling = asyncio.create_task(gateway.request(method, path, headers=headers, data=data))
            request = await asyncio.wait_for(arrived.get(), 60)
            calling.cancel()
            assert await disconnected(request)
            service.answer = None
            while True:
                async with gateway.get("/v1/cases", headers=security) as answer:
                    if answer.status == 200:
                        break
            service.answer = hang


async def test_a_client_that_disconnects_during_an_answer_frees_the_service(
    gateway: aiohttp.ClientSession, service: Any, security: dict[str, str]
) -> None:
    """An endless answer ends when its client disconnects."""
    gone = asyncio.Event()

    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await disconnected(request)
        gone.set()
        return response

    service.answer = give
    answer = await gateway.get("/v1/cases", headers=security)
    assert await answer.content.read(5) == b"first"
    answer.close()
    await asyncio.wait_for(gone.wait(), 60)


async def test_a_slow_upload_is_aborted_on_both_sides(
    run_gateway: Any, service: Any, reporter: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets 408; the service sees an aborted upload."""
    monkeypatch.setattr(gateway_app, "UPLOAD_QUEUE_SECONDS", 0)
    aborted, answered = asyncio.Event(), asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        try:
            await request.read()
        except Exception:
            aborted.set()
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
        await asyncio.wait_for(aborted.wait(), 60)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_its_limit_is_refused(
    run_gateway: Any, service: Any, reporter: dict[str, str], token: Any, *, announced: bool
) -> None:
    """A message may be larger than a decision. The limits hold with and without a Content-Length."""
    admin = {"Authorization": f"Bearer {await token('SecurityAdministrator')}"}
    paths = {"/v1/reports": (reporter, 2 * MEGABYTE), f"/v1/cases/{uuid4()}/decisions": (admin, MEGABYTE)}

    async def chunks(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, 65536):
            yield b"x" * min(65536, size - start)

    async with run_gateway(service.url, max_upload_bytes=2 * MEGABYTE) as gateway:
        for path, (headers, most) in paths.items():
            for size, status in ((most, 200), (most + 1, 413)):
                data = io.BytesIO(b"x" * size) if announced else chunks(size)
                async with gateway.post(path, data=data, headers=headers) as answer:
                    assert answer.status == status
    assert [len(body) for *_, body in service.requests] == [2 * MEGABYTE, MEGABYTE]


async def test_a_request_with_two_lengths_reaches_no_service(
    gateway: aiohttp.ClientSession, service: Any, reporter: dict[str, str]
) -> None:
    """Otherwise its end could pass for the start of another caller's request."""
    assert gateway._base_url
    streams = await asyncio.open_connection(gateway._base_url.host, gateway._base_url.port)
    lines = ["POST /v1/reports HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in reporter.items())]
    streams[1].write("\r\n".join([*lines, "Content-Length: 4", "Transfer-Encoding: chunked", "", "0", "", ""]).encode())
    assert (await streams[0].readline()).split()[1] == b"400"
    streams[1].close()
    assert service.requests == []
