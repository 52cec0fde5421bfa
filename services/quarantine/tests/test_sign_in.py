"""Users sign in with Entra ID before a link shows anything; small fakes stand in for Entra ID and Graph."""

import base64
import hashlib
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import aiohttp
import jwt
import pytest
import structlog
import trustme
from aiohttp import web
from pydantic import SecretStr

from m365 import Credential, Graph, Tokens, open_session
from quarantine.links import LinkAction, Signer
from quarantine.sign_in import SignIn

CLIENT, SECRET = "5f0c1c52-0000-4000-8000-000000000001", "a secret"
KEY = "a-key-of-the-tests-that-is-long-enough-0001"
ANNA = "anna@contoso.example"
FULL = 1 | 2 | 4 | 16


class Entra:
    """As much of Entra ID and Graph as a sign-in needs. `oid` is the user who signs in next."""

    def __init__(self) -> None:
        self.url = ""
        self.oid = str(uuid4())
        self.users: dict[str, str] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.app = web.Application()
        self.app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self.metadata)
        self.app.router.add_get("/{tenant}/oauth2/v2.0/authorize", self.authorize)
        self.app.router.add_post("/{tenant}/oauth2/v2.0/token", self.token)
        self.app.router.add_get("/v1.0/users/{user}", self.user)

    async def metadata(self, request: web.Request) -> web.Response:
        """Return the OpenID configuration."""
        root = f"{self.url}/{request.match_info['tenant']}"
        return web.json_response(
            {
                "issuer": f"{root}/v2.0",
                "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
                "token_endpoint": f"{root}/oauth2/v2.0/token",
                "jwks_uri": f"{root}/keys",
            }
        )

    async def authorize(self, request: web.Request) -> web.Response:
        """Sign the user in at once and return the form that sends them back with a code."""
        asked = dict(request.query)
        assert (asked["client_id"], asked["response_type"], asked["code_challenge_method"]) == (CLIENT, "code", "S256")
        code = uuid4().hex
        self.codes[code] = {**asked, "tenant": request.match_info["tenant"]}
        assert asked["response_mode"] == "form_post"
        return web.json_response({"to": asked["redirect_uri"], "form": {"code": code, "state": asked["state"]}})

    async def token(self, request: web.Request) -> web.Response:
        """Issue tokens: to the application itself, or once for a code with the right verifier."""
        form = await request.post()
        tenant, now = request.match_info["tenant"], int(time.time())
        if form["grant_type"] == "client_credentials":
            return web.json_response({"access_token": "graph", "expires_in": 3600, "token_type": "Bearer"})
        asked = self.codes.pop(str(form["code"]))
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == asked["code_challenge"]
        assert form["client_secret"] == SECRET
        claims = {
            "iss": f"{self.url}/{tenant}/v2.0",
            "aud": CLIENT,
            "tid": tenant,
            "oid": self.oid,
            "sub": self.oid,
            "preferred_username": "anna@contoso.example",
            "nonce": asked["nonce"],
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
        }
        identity = jwt.encode(claims, "k" * 32, algorithm="HS256")
        return web.json_response(
            {"access_token": "a", "id_token": identity, "expires_in": 3600, "token_type": "Bearer", "scope": "openid"}
        )

    async def user(self, request: web.Request) -> web.Response:
        """Return the user of a mailbox."""
        found = self.users.get(request.match_info["user"])
        if found is None:
            return web.json_response({"error": {"code": "Request_ResourceNotFound", "message": "no"}}, status=404)
        return web.json_response({"id": found})


@pytest.fixture
async def entra(tmp_path: Path) -> AsyncIterator[Entra]:
    """Serve Entra ID and Graph over TLS."""
    entra, authority = Entra(), trustme.CA()
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(trust)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    runner = web.AppRunner(entra.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust)
    await site.start()
    entra.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield entra
    await runner.cleanup()


class Visitor:
    """A browser that does not follow redirects and keeps the cookies of the pages."""

    def __init__(self, url: str, entra: Entra, ca_file: Path) -> None:
        self.url = url
        self.entra = entra
        self.trust = ssl.create_default_context(cafile=str(ca_file))
        self.cookies: dict[str, str] = {}
        self.text = ""

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and Location."""
        return await self._ask("GET", path)

    async def post(self, path: str, form: dict[str, str]) -> tuple[int, str]:
        """Return status and Location."""
        return await self._ask("POST", path, form)

    async def _ask(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession(cookies=self.cookies) as session,
            session.request(method, self.url + path, data=form, allow_redirects=False) as answer,
        ):
            self.text = await answer.text()
            for name, cookie in answer.cookies.items():
                assert cookie["httponly"]
                assert cookie["samesite"] == "lax"
                self.cookies[name] = cookie.value
            return answer.status, answer.headers.get("Location", "")

    async def sign_in(self, path: str) -> tuple[int, str]:
        """Sign in at Entra ID; return status and Location of the page that it leads back to."""
        status, location = await self.get(f"{path}/sign-in")
        assert (status, location.startswith(self.entra.url)) == (303, True)
        async with aiohttp.ClientSession() as session, session.get(location, ssl=self.trust) as answer:
            page = await answer.json()
        return await self.post(urlsplit(page["to"]).path, page["form"])


@pytest.fixture
async def visitor(world: Any, serve_router: Any, entra: Entra, tmp_path: Path) -> AsyncIterator[Visitor]:
    """Return a browser before the pages of a tenant that requires a sign-in, with a message for Anna."""
    await world.hold(FULL)
    await world.save_settings(sign_in=True)
    entra.users[ANNA] = entra.oid
    ca_file = tmp_path / "ca.pem"
    async with open_session(ca_file) as session:
        tokens = Tokens(Credential(client_id=CLIENT, secret=SecretStr(SECRET)), session, authority=entra.url)
        sign_in = SignIn(
            Signer([KEY]),
            Graph(tokens, session, base_url=entra.url),
            public_url="http://quarantine.contoso.example",
            authority=entra.url,
            client_id=CLIENT,
            client_secret=SECRET,
            ca_file=ca_file,
        )
        async with serve_router(world.pages(sign_in=sign_in).router()) as url:
            yield Visitor(url, entra, ca_file)
        await tokens.close()
        sign_in.close()


def session(tenant_id: UUID, oid: str, *, seconds: float, key: str = KEY) -> str:
    """Return the cookie of a session that expires in *seconds*."""
    content = {"tid": str(tenant_id), "oid": oid, "name": None, "expires": time.time() + seconds}
    return Signer([key]).seal("session", json.dumps(content).encode())


async def test_the_recipient_signs_in_and_returns_to_the_link(world: Any, visitor: Visitor) -> None:
    """Nothing is shown before; actions are then done in their name."""
    path = await world.link(LinkAction.RELEASE)
    assert (await visitor.get(path))[0] == 401
    assert "fabrikam" not in visitor.text
    assert f'href="{path}/sign-in"' in visitor.text
    assert await visitor.sign_in(path) == (303, path)
    assert (await visitor.get(path))[0] == 200
    (confirmation,) = re.findall(r'name="confirmation" value="([^"]+)"', visitor.text)

    async with world.running_actions():
        async with (
            aiohttp.ClientSession() as stranger,
            stranger.post(visitor.url + path, data={"confirmation": confirmation}) as answer,
        ):
            assert answer.status == 401
        async with (
            aiohttp.ClientSession(cookies=visitor.cookies) as session,
            session.post(visitor.url + path, data={"confirmation": confirmation}) as answer,
        ):
            assert answer.status == 200
    (event,) = await world.emitted()
    assert (event.decided_by.id, event.recipient) == (visitor.entra.oid, ANNA)


async def test_another_user_sees_nothing(world: Any, visitor: Visitor) -> None:
    """Whatever their address is: the object id counts."""
    visitor.entra.users[ANNA] = str(uuid4())
    path = await world.link()
    await visitor.sign_in(path)
    assert (await visitor.get(path))[0] == 403
    assert "This message is not yours" in visitor.text
    assert "fabrikam" not in visitor.text
    del visitor.entra.users[ANNA]
    assert (await visitor.get(f"{path}/mail"))[0] == 403


async def test_a_forged_answer_or_cookie_signs_nobody_in(world: Any, visitor: Visitor) -> None:
    """The state of another browser, no state, a cookie with another purpose, a cookie signed with another key."""
    path = await world.link()
    _, location = await visitor.get(f"{path}/sign-in")
    state = parse_qs(urlsplit(location).query)["state"][0]
    assert (await visitor.post("/q/signed-in", {"code": "x", "state": "other"}))[0] == 403
    flow = visitor.cookies.pop("backstop-flow")
    assert (await visitor.post("/q/signed-in", {"code": "x", "state": state}))[0] == 403
    visitor.cookies["backstop-session"] = flow
    assert (await visitor.get(path))[0] == 401
    stranger = "another-key-that-nobody-here-has-0001"
    visitor.cookies["backstop-session"] = session(world.tenant_id, visitor.entra.oid, seconds=60, key=stranger)
    assert (await visitor.get(path))[0] == 401


async def test_a_session_of_another_tenant_is_not_accepted(world: Any, visitor: Visitor) -> None:
    """The user has to sign in again."""
    visitor.cookies["backstop-session"] = session(UUID(int=7), visitor.entra.oid, seconds=60)
    assert (await visitor.get(await world.link()))[0] == 401


async def test_an_expired_session_is_not_accepted(world: Any, visitor: Visitor) -> None:
    """The user has to sign in again."""
    visitor.cookies["backstop-session"] = session(world.tenant_id, visitor.entra.oid, seconds=-1)
    assert (await visitor.get(await world.link()))[0] == 401


async def test_no_log_contains_a_link_or_a_text_from_the_browser(
    world: Any, visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader of the logs could use the link, and a browser can send any text as an error code."""
    path = await world.link()
    with structlog.testing.capture_logs() as logs:
        assert await visitor.sign_in(path) == (303, path)
        assert (await visitor.get(path))[0] == 200
        for error in ("access_denied", "c0de of a sign-in"):
            _, location = await visitor.get(f"{path}/sign-in")
            state = parse_qs(urlsplit(location).query)["state"][0]
            assert (await visitor.post("/q/signed-in", {"error": error, "state": state}))[0] == 403
            assert (await visitor.post("/q/signed-in", {"code": "c0de", "state": "c0de"}))[0] == 403
        await world.db.close()
        assert (await visitor.get(path))[0] == 503
    logged = f"{logs} {caplog.text}"

    assert [entry["error"] for entry in logs if entry["event"] == "sign_in.failed"][::2] == ["access_denied", "unknown"]
    assert [entry["route"] for entry in logs if entry["event"] == "request.refused"] == ["/q/{token}"]
    assert path.removeprefix("/q/") not in logged
    assert "c0de" not in logged
