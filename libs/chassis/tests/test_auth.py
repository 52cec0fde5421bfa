"""Who holds a valid token is let in, and nobody else; an outage of Entra ID locks nobody out who was known before."""

import asyncio
import base64
from typing import Any
from uuid import UUID

import pytest

from chassis.auth import Authenticator
from chassis.http import Problem
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
    """An unknown key id asks Entra ID again, but not more often than every half minute."""
    await authenticator.caller(token("Reporter"))
    microsoft.state.keys.rotate()
    assert (await refusal(authenticator, token("Reporter"))).status == 401
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
