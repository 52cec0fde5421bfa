"""Who holds a valid token is let in, and nobody else; an outage of Entra ID locks nobody out who was known before."""

import asyncio
import base64
import json
from typing import Any
from uuid import UUID

import jwt
import pytest

from chassis.entra import Authenticator
from chassis.http import Problem
from conftest import AUDIENCE
from simulator import Simulator

ELSEWHERE = "99999999-9999-4999-8999-999999999999"


async def refusal(authenticator: Authenticator, token: str) -> Problem:
    """Present a token that is not to be accepted."""
    with pytest.raises(Problem) as raised:
        await authenticator.caller(token)
    return raised.value


async def test_a_person_and_an_application_are_told_apart(
    authenticator: Authenticator, token: Any, tenant_id: UUID
) -> None:
    """A person's token has scopes, an application's has roles alone."""
    person = await authenticator.caller(token("Reporter", oid="person", preferred_username="p@contoso.example"))
    app = await authenticator.caller(token("Reporter", "SecurityReader", oid="app", app=True, scp=None))

    assert (person.tenant_id, person.oid, person.name, person.is_app) == (
        tenant_id,
        "person",
        "p@contoso.example",
        False,
    )
    assert (app.oid, app.is_app, app.roles) == ("app", True, {"Reporter", "SecurityReader"})


USER = {"scp": "access_as_user", "azpacr": "1", "idtyp": None}
APP = {"scp": None, "azpacr": None, "idtyp": None}
KINDS: dict[str, tuple[dict[str, Any], bool | None]] = {
    "a user's": (USER, False),
    "a user's of a public client": (USER | {"azpacr": "0"}, False),
    "a user's that says so": (USER | {"idtyp": "user"}, False),
    "a user's with more scopes": (USER | {"scp": "profile access_as_user  Cases.Read"}, False),
    "a user's for another scope": (USER | {"scp": "Cases.Read"}, None),
    "a user's for a scope with a longer name": (USER | {"scp": "access_as_user_2 my.access_as_user"}, None),
    "a user's for a scope in other letters": (USER | {"scp": "Access_As_User"}, None),
    "a user's without any scope": (USER | {"scp": ""}, None),
    "an application's that says so": (APP | {"idtyp": "app"}, True),
    "an application's that says so and has a secret": (APP | {"idtyp": "app", "azpacr": "1"}, True),
    "an application's with a secret": (APP | {"azpacr": "1"}, True),
    "an application's with a certificate": (APP | {"azpacr": "2"}, True),
    "an application's with a secret, as v1 says it": (APP | {"appidacr": "1"}, True),
    "an application's with a certificate, as v1 says it": (APP | {"appidacr": "2"}, True),
    "an application's that proved nothing": (APP | {"azpacr": "0"}, None),
    "of nobody": (APP, None),
    "an ID token": (APP | {"nonce": "n"}, None),
    "a user's with a nonce": (USER | {"nonce": "n"}, None),
    "an application's with a nonce": (APP | {"idtyp": "app", "azpacr": "1", "nonce": ""}, None),
    "both": (USER | {"idtyp": "app"}, None),
    "both, and with no scope": (USER | {"idtyp": "app", "scp": ""}, None),
    "a device's": (APP | {"idtyp": "device", "azpacr": "2"}, None),
    "a user's without scopes": (APP | {"idtyp": "user", "azpacr": "1"}, None),
}


@pytest.mark.parametrize(("claims", "is_app"), KINDS.values(), ids=KINDS)
async def test_a_token_is_a_users_or_an_applications_or_nobodys(
    authenticator: Authenticator, token: Any, claims: dict[str, Any], is_app: bool | None
) -> None:
    """Who is refused hears what to ask Entra ID for."""
    presented = token("Reporter", claims=claims)
    if is_app is not None:
        assert (await authenticator.caller(presented)).is_app is is_app
        return
    problem = await refusal(authenticator, presented)
    assert problem.status == 401
    assert f"{AUDIENCE}/access_as_user" in problem.detail
    assert f"{AUDIENCE}/.default" in problem.detail


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        *((USER, name) for name in ("scp", "idtyp")),
        *((APP, name) for name in ("idtyp", "azpacr", "appidacr", "nonce")),
    ],
)
async def test_a_claim_about_the_kind_of_caller_counts_only_as_a_text_that_is_known(
    authenticator: Authenticator, token: Any, claims: dict[str, Any], name: str
) -> None:
    """Nothing is read into a number, a list or a space."""
    for odd in (1, True, 1.5, ["access_as_user"], ["app"], ["1"], {"app": 1}, " ", []):
        assert (await refusal(authenticator, token("Reporter", claims=claims | {name: odd}))).status == 401, odd


@pytest.mark.parametrize("odd", [1, "Reporter", {"Reporter": 1}, None, True, [["Reporter"], 1]])
async def test_roles_that_are_no_list_of_texts_are_no_roles(
    authenticator: Authenticator, token: Any, odd: object
) -> None:
    """Nobody gets more, and nothing fails."""
    assert (await authenticator.caller(token(claims={"roles": odd}))).roles == frozenset()


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf", "aud", "iss", "tid"])
async def test_a_claim_of_another_type_is_a_refusal_and_no_failure(
    authenticator: Authenticator, token: Any, microsoft: Simulator, claim: str
) -> None:
    """Also where Python would make a number of it."""
    claims = jwt.decode(token(), options={"verify_signature": False})
    keys = microsoft.state.keys
    for odd in ("99999999999", "0", "", 1.5, float("inf"), float("nan"), True, [], [1], {}, {"a": 1}, "\ud800"):
        # By hand: PyJWT writes no issuer that is not a text.
        odd_token = jwt.api_jws.encode(
            json.dumps({**claims, claim: odd}).encode(), keys._keys[keys.kid], "RS256", headers={"kid": keys.kid}
        )
        assert (await refusal(authenticator, odd_token)).status == 401, odd


@pytest.mark.parametrize(
    "spoiled",
    [
        {"expires_in": -120},
        {"not_before_in": 600},
        {"audience": "00000003-0000-0000-c000-000000000000"},
        {"issuer": "https://login.example.com/x/v2.0"},
        {"foreign_key": True},
        {"kid": "unknown"},
        {"algorithm": "none"},
        {"algorithm": "HS256"},
        {"tenant": ELSEWHERE},
        {"claims": {"tid": ELSEWHERE}},
        {"claims": {"oid": None}},
        {"claims": {"exp": None}},
    ],
    ids=lambda spoiled: str(next(iter(spoiled.items()))),
)
async def test_a_token_that_is_not_right_in_every_way_is_refused(
    authenticator: Authenticator, token: Any, spoiled: dict[str, Any]
) -> None:
    """Expired, not yet valid, for another API, from elsewhere, forged, unsigned, or incomplete."""
    problem = await refusal(authenticator, token("Reporter", **spoiled))
    assert problem.status == 401
    assert problem.headers["WWW-Authenticate"] == "Bearer"


async def test_a_token_that_was_let_in_ends_when_it_ends(authenticator: Authenticator, token: Any) -> None:
    """It is remembered, and not for longer than it says."""

    async def let_in(ending: str) -> bool:
        try:
            await authenticator.caller(ending)
        except Problem as problem:
            return problem.status != 401
        return True

    async with asyncio.timeout(60):
        # One that ends in a second; on a busy machine it may have ended before it is shown.
        while not await let_in(ending := token("Reporter", expires_in=-58)):
            pass
        while await let_in(ending):
            await asyncio.sleep(0.1)


async def test_a_token_that_was_let_in_is_looked_at_again_with_new_keys(
    authenticator: Authenticator, token: Any
) -> None:
    """A key that Entra ID has withdrawn lets nobody in, not even who was let in before."""
    known_before = token("Reporter")
    await authenticator.caller(known_before)
    for tenant, known in authenticator._known.items():
        authenticator._known[tenant] = type(known)({"another": next(iter(known.keys.values()))}, *_times(known))

    assert (await refusal(authenticator, known_before)).status == 401


def _times(known: Any) -> tuple[float, float]:
    return known.fetched_at, known.tried_at


@pytest.mark.parametrize("nonsense", ["", "x", "a.b.c", "e30.e30.e30", "\x00", "ey" * 5000])
async def test_nonsense_is_refused(authenticator: Authenticator, nonsense: str) -> None:
    """Never an error of our own."""
    assert (await refusal(authenticator, nonsense)).status == 401


async def test_a_key_that_is_rotated_in_is_found(
    authenticator: Authenticator, token: Any, microsoft: Simulator
) -> None:
    """An unknown key id asks Entra ID again, but not more often than every half minute: until then try again."""
    await authenticator.caller(token("Reporter"))
    microsoft.state.keys.rotate()
    problem = await refusal(authenticator, token("Reporter"))
    assert problem.status == 401
    assert 25 <= int(problem.headers["Retry-After"]) <= 30
    for tenant, known in authenticator._known.items():
        authenticator._known[tenant] = type(known)(known.keys, known.fetched_at, known.tried_at - 31)
    await authenticator.caller(token("Reporter"))


async def test_while_entra_id_is_away_known_keys_are_used_and_unknown_callers_wait(
    authenticator: Authenticator, token: Any, microsoft: Simulator, tenant_id: UUID
) -> None:
    """503 says that it is not the token's fault; old keys are better than none."""
    known = token("Reporter")
    await authenticator.caller(known)
    stale = authenticator._known[tenant_id]
    authenticator._known[tenant_id] = type(stale)(stale.keys, stale.fetched_at - 100_000, stale.tried_at - 100_000)
    authenticator._ca_file = None
    await authenticator.caller(known)

    stranger = Authenticator(authority=microsoft.url, tenants=frozenset([tenant_id]), audience="x", ca_file=None)
    problem = await refusal(stranger, known)
    assert (problem.status, problem.headers["Retry-After"]) == (503, "5")


async def test_an_unknown_key_makes_no_other_token_wait_while_entra_id_hangs(
    authenticator: Authenticator, token: Any, tenant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can send an unknown key id; a new token with a known key is checked at once."""
    await authenticator.caller(token("Reporter"))
    known = authenticator._known[tenant_id]
    authenticator._known[tenant_id] = type(known)(known.keys, known.fetched_at, known.tried_at - 31)
    asked = asyncio.Event()

    async def hang(_tenant_id: UUID) -> Any:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(authenticator, "_fetch_keys", hang)
    forged = asyncio.create_task(authenticator.caller(token("Reporter", kid="unknown")))
    async with asyncio.timeout(5):
        await asked.wait()
        assert (await authenticator.caller(token("Reporter"))).roles == {"Reporter"}
    forged.cancel()


@pytest.mark.parametrize("deep", ["header", "payload"])
async def test_a_token_that_is_nested_too_deeply_is_no_token(authenticator: Authenticator, deep: str) -> None:
    """Anybody can send one: it must not cost more than a refusal."""
    parts = dict.fromkeys(("header", "payload"), b'{"alg":"RS256","kid":"k"}') | {deep: b"[" * 40_000}
    token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts.values(), b"x"))
    with pytest.raises(Problem) as caught:
        await authenticator.caller(token)
    assert caught.value.status == 401


async def test_what_a_token_says_can_be_kept(authenticator: Authenticator, token: Any) -> None:
    """A name with NUL would be refused by PostgreSQL, long after the caller was let in."""
    caller = await authenticator.caller(token("Reporter", preferred_username="a\0b@contoso.example"))
    assert caller.name == "a\ufffdb@contoso.example"
