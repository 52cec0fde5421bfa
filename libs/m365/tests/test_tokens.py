"""Tokens are asked for once, kept, renewed in time, and never get in the way of the event loop."""

# ruff: noqa: S105, S106 - the secrets are made up

import asyncio
import os
import threading
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
import structlog

from m365 import Credential, Graph, M365Error, Throttled, Tokens, Unauthorised, Unavailable, open_session

TENANT = UUID("11111111-1111-4111-8111-111111111111")
OTHER_TENANT = UUID("22222222-2222-4222-8222-222222222222")
SCOPE = "https://graph.microsoft.com/.default"
OTHER_SCOPE = "https://outlook.office365.com/.default"

Application = Callable[..., Tokens]


async def test_a_token_is_asked_for_with_the_secret_and_then_kept(microsoft: Any, tokens: Tokens) -> None:
    """The second caller gets the same token, and Entra ID is asked once."""
    assert await tokens.get(TENANT, SCOPE) == "token-1"
    assert await tokens.get(TENANT, SCOPE) == "token-1"

    [form] = microsoft.forms
    assert form["grant_type"] == "client_credentials"
    assert form["client_id"] == "app"
    assert form["client_secret"] == "right-secret"
    assert form["scope"] == SCOPE


async def test_callers_who_come_together_share_one_request(microsoft: Any, tokens: Tokens) -> None:
    """Eight at once make one token request."""
    got = await asyncio.gather(*(tokens.get(TENANT, SCOPE) for _ in range(8)))

    assert set(got) == {"token-1"}
    assert len(microsoft.forms) == 1


async def test_callers_who_come_together_share_the_failure(microsoft: Any, tokens: Tokens) -> None:
    """Eight at once do not ask eight times for what is refused."""
    microsoft.secret = "another"

    got = await asyncio.gather(*(tokens.get(TENANT, SCOPE) for _ in range(8)), return_exceptions=True)

    assert [type(error) for error in got] == [Unauthorised] * 8
    assert len(microsoft.forms) == 1


async def test_each_tenant_and_each_scope_has_its_own_token(microsoft: Any, tokens: Tokens) -> None:
    """A token is never served for another tenant or another scope."""
    got = await asyncio.gather(
        tokens.get(TENANT, SCOPE), tokens.get(TENANT, OTHER_SCOPE), tokens.get(OTHER_TENANT, SCOPE)
    )

    assert set(got) == {"token-1", "token-2", "token-3"}
    assert sorted(form["scope"] for form in microsoft.forms) == [SCOPE, SCOPE, OTHER_SCOPE]


async def test_a_caller_who_gives_up_does_not_take_the_token_from_the_others(microsoft: Any, tokens: Tokens) -> None:
    """The shared request goes on when the first who wanted it is cancelled."""
    first = asyncio.create_task(tokens.get(TENANT, SCOPE))
    second = asyncio.create_task(tokens.get(TENANT, SCOPE))
    await asyncio.sleep(0)
    first.cancel()

    assert await second == "token-1"
    assert first.cancelled()
    assert len(microsoft.forms) == 1


async def test_an_expired_token_is_not_served(microsoft: Any, tokens: Tokens) -> None:
    """With seconds left, a token is too old to send: the caller waits for the next."""
    microsoft.expires_in = 5

    assert await tokens.get(TENANT, SCOPE) == "token-1"
    assert await tokens.get(TENANT, SCOPE) == "token-2"


async def test_a_token_is_renewed_with_five_minutes_left_and_nobody_waits(microsoft: Any, tokens: Tokens) -> None:
    """The old token, still valid, is served while the new one is on its way."""
    microsoft.expires_in = 299
    assert await tokens.get(TENANT, SCOPE) == "token-1"
    microsoft.expires_in = 3600

    assert await tokens.get(TENANT, SCOPE) == "token-1"
    while await tokens.get(TENANT, SCOPE) == "token-1":
        await asyncio.sleep(0)

    assert await tokens.get(TENANT, SCOPE) == "token-2"
    assert len(microsoft.forms) == 2


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_a_valid_token_is_served_while_its_renewal_fails(
    microsoft: Any, application: Application, status: int
) -> None:
    """Whatever is wrong with Entra ID, callers do not notice as long as the token is good, and Entra ID gets a rest."""
    tokens = application(pause=60.0)
    microsoft.expires_in = 299
    await tokens.get(TENANT, SCOPE)
    microsoft.entra_answers(status, {"error": "whatever"})

    with structlog.testing.capture_logs() as logs:
        while not logs:
            assert await tokens.get(TENANT, SCOPE) == "token-1"
            await asyncio.sleep(0)
    assert await tokens.get(TENANT, SCOPE) == "token-1"

    assert [entry["event"] for entry in logs] == ["token.failed"]
    assert tokens._pending == {}
    assert len(microsoft.forms) == 2


async def test_after_a_failure_entra_is_not_asked_for_a_while(microsoft: Any, application: Application) -> None:
    """Meanwhile everybody is told what went wrong, without another request."""
    tokens = application(pause=60.0)
    microsoft.entra_answers(500)

    with pytest.raises(Unavailable) as first:
        await tokens.get(TENANT, SCOPE)
    with pytest.raises(Unavailable) as second:
        await tokens.get(TENANT, SCOPE)

    assert second.value is first.value
    assert len(microsoft.forms) == 1


async def test_after_the_pause_the_next_caller_asks_entra_again(microsoft: Any, tokens: Tokens) -> None:
    """An outage of Entra ID ends without a restart of ours."""
    microsoft.entra_answers(500)
    with pytest.raises(Unavailable):
        await tokens.get(TENANT, SCOPE)

    assert await tokens.get(TENANT, SCOPE) == "token-1"


async def test_entra_says_how_long_to_wait(microsoft: Any, tokens: Tokens) -> None:
    """A 429 of Entra ID is Throttled, and is obeyed."""
    microsoft.entra_answers(429, {"error": "too_many"}, headers={"Retry-After": "120"})

    for _ in range(2):
        with pytest.raises(Throttled) as caught:
            await tokens.get(TENANT, SCOPE)
        assert caught.value.retry_after == 120.0
    assert len(microsoft.forms) == 1


async def test_a_wrong_secret_is_told_in_microsofts_words(microsoft: Any, application: Application) -> None:
    """The reason starts with the AADSTS code; neither text holds the secret."""
    tokens = application(Credential(client_id="app", secret="wrong-secret"))

    with pytest.raises(Unauthorised) as caught:
        await tokens.get(TENANT, SCOPE)

    error = caught.value
    assert (error.status, error.code) == (401, "invalid_client")
    assert error.reason == "AADSTS7000215: Invalid client secret provided."
    assert str(error) == f"POST /{{tenant}}/oauth2/v2.0/token: 401 invalid_client (request id {error.request_id})"
    assert "wrong-secret" not in repr(tokens._credential)
    assert [form["client_secret"] for form in microsoft.forms] == ["wrong-secret"]


async def test_the_ids_of_one_refusal_are_not_its_reason(microsoft: Any, tokens: Tokens) -> None:
    """Entra ID adds them on the same line or on lines of their own."""
    microsoft.entra_answers(
        401, {"error": "invalid_client", "error_description": "AADSTS700016: Unknown. Trace ID: 1 Correlation ID: 2"}
    )

    with pytest.raises(Unauthorised) as caught:
        await tokens.get(TENANT, SCOPE)

    assert caught.value.reason == "AADSTS700016: Unknown."


async def test_a_netrc_file_does_not_matter(graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its default entry would put a password where the token belongs."""
    (tmp_path / "netrc").write_text("default login me password pass\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    assert await graph.get(TENANT, "/v1.0/things") == {}


async def test_a_request_that_entra_refuses_with_400_is_a_matter_of_authorisation(
    microsoft: Any, tokens: Tokens
) -> None:
    """A scope that nobody consented to is for an administrator, not for the caller."""
    microsoft.entra_answers(400, {"error": "invalid_scope", "error_description": "AADSTS70011: no.\r\nTrace ID: 0"})

    with pytest.raises(Unauthorised) as caught:
        await tokens.get(TENANT, SCOPE)

    assert caught.value.reason == "AADSTS70011: no."


async def test_an_unknown_tenant_is_a_matter_of_authorisation(tokens: Tokens) -> None:
    """Entra ID says so at discovery already."""
    with pytest.raises(Unauthorised) as caught:
        await tokens.get(UUID("33333333-3333-4333-8333-333333333333"), SCOPE)

    assert caught.value.reason.startswith("AADSTS90002: ")


async def test_entra_being_busy_is_not_a_refusal(microsoft: Any, tokens: Tokens) -> None:
    """Entra ID may say `temporarily_unavailable` with a 400."""
    microsoft.entra_answers(400, {"error": "temporarily_unavailable"})

    with pytest.raises(Unavailable):
        await tokens.get(TENANT, SCOPE)


@pytest.mark.parametrize("body", [b"<html>sign in to the hotel's network</html>", b"[]"])
async def test_an_answer_that_is_not_entras_is_unavailable(microsoft: Any, tokens: Tokens, body: bytes) -> None:
    """A gateway's page with status 200 is not a token."""
    microsoft.entra_answers(200, body=body)

    with pytest.raises(Unavailable) as caught:
        await tokens.get(TENANT, SCOPE)

    assert caught.value.code == "NotJson"


async def test_nobody_listening_is_unavailable(application: Application, closed_port: int) -> None:
    """Nothing can have happened."""
    tokens = application(authority=f"https://localhost:{closed_port}")

    with pytest.raises(Unavailable) as caught:
        await tokens.get(TENANT, SCOPE)

    assert caught.value.may_have_happened is False


async def test_entra_not_answering_in_time_is_unavailable(microsoft: Any, application: Application) -> None:
    """Asking for a token changes nothing, so nothing can have happened."""
    tokens = application(timeout=0.2)
    microsoft.entra_does(microsoft.hang)

    with pytest.raises(Unavailable) as caught:
        await tokens.get(TENANT, SCOPE)

    assert caught.value.may_have_happened is False


async def test_a_dropped_token_is_not_served_again(microsoft: Any, tokens: Tokens) -> None:
    """MSAL's own cache does not bring it back."""
    token = await tokens.get(TENANT, SCOPE)
    tokens.drop(TENANT, SCOPE, token)

    assert await tokens.get(TENANT, SCOPE) == "token-2"
    assert len(microsoft.forms) == 2


async def test_dropping_an_old_token_does_not_touch_the_new_one(microsoft: Any, tokens: Tokens) -> None:
    """Several who were refused with the same token cause one renewal, not one each."""
    old = await tokens.get(TENANT, SCOPE)
    tokens.drop(TENANT, SCOPE, old)
    new = await tokens.get(TENANT, SCOPE)
    tokens.drop(TENANT, SCOPE, old)

    assert await tokens.get(TENANT, SCOPE) == new
    assert len(microsoft.forms) == 2


async def test_the_event_loop_runs_on_while_a_token_is_fetched(
    microsoft: Any, application: Application, tmp_path: Path
) -> None:
    """The token file is a pipe that stays empty until the loop has turned fifty times."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    tokens = application(Credential(client_id="app", federated_token_file=pipe))
    turned = threading.Event()

    async def turn_fifty_times() -> None:
        for _ in range(50):
            await asyncio.sleep(0.001)
        turned.set()

    def fill_pipe() -> None:
        pipe.write_text("loop ran" if turned.wait(30) else "loop stood still")

    threading.Thread(target=fill_pipe, daemon=True).start()
    await asyncio.gather(turn_fifty_times(), tokens.get(TENANT, SCOPE))

    assert microsoft.forms[0]["client_assertion"] == "loop ran"


async def test_variables_meant_for_requests_do_not_matter(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE would replace our certificate authority if MSAL brought its own HTTP client."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    monkeypatch.setenv("CURL_CA_BUNDLE", "/nowhere.pem")

    assert await tokens.get(TENANT, SCOPE) == "token-1"


async def test_everything_goes_through_the_proxy_that_the_environment_names(
    microsoft: Any, session: aiohttp.ClientSession, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY is asked for a tunnel, with the password it comes with, unless NO_PROXY names the host."""
    tunnels: list[str] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        tunnels.append(head)
        host, port = head.split()[1].split(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))

    proxy = await asyncio.start_server(tunnel, "localhost", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass@localhost:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("no_proxy", "localhost")
    tokens = application()
    await Graph(tokens, session, base_url=microsoft.url).get(TENANT, "/v1.0/things")
    direct = len(tunnels)
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    tokens = application()
    await tokens.get(TENANT, SCOPE)
    for_token = len(tunnels)
    session_without_connections = open_session(microsoft.ca_file)
    async with session_without_connections:
        await Graph(tokens, session_without_connections, base_url=microsoft.url).get(TENANT, "/v1.0/things")
    proxy.close()

    assert (direct, for_token > 0, len(tunnels) > for_token) == (0, True, True)
    assert all(f"CONNECT {microsoft.url.removeprefix('https://')} " in head for head in tunnels)
    assert all(f"Proxy-Authorization: Basic {b64encode(b'me:pass').decode()}" in head for head in tunnels)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_closing_gives_up_what_is_under_way(microsoft: Any, application: Application) -> None:
    """A service that stops does not wait for Entra ID."""
    tokens = application()
    microsoft.entra_does(microsoft.hang)
    waiting = asyncio.create_task(tokens.get(TENANT, SCOPE))
    while not microsoft.forms:
        await asyncio.sleep(0)

    await tokens.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_every_error_is_one_of_a_tree() -> None:
    """Whoever catches M365Error catches all that a call to Microsoft can raise."""
    assert all(issubclass(error, M365Error) for error in (Throttled, Unauthorised, Unavailable))
