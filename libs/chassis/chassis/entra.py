"""
Who is calling: Entra ID access tokens, checked in every service.

Source: Microsoft Learn, "Access tokens in the Microsoft identity platform", "Access token claims reference" and
"Optional claims reference" (`idtyp`).
"""

import asyncio
import hashlib
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import jwt
import structlog
from fastapi import Request

from chassis.http import Problem
from chassis.settings import SCOPE

log = structlog.get_logger()

KEYS_LIVE_SECONDS = 24 * 60 * 60
REFRESH_PAUSE_SECONDS = 30
"""Keys are fetched at most this often, so that forged key ids cannot make us hammer Entra ID."""
LEEWAY_SECONDS = 60
REMEMBERED_TOKENS = 1_000
"""Tokens whose signature is not verified again: an application sends the same one for an hour."""


@dataclass(frozen=True, slots=True)
class Caller:
    """
    The person or application that presented a valid token.

    People and applications are known by `oid` and `tenant_id`. `name` (preferred_username) can be changed by its
    owner: it is for display only.
    """

    tenant_id: UUID
    oid: str
    name: str | None
    roles: frozenset[str]
    is_app: bool


@dataclass(frozen=True, slots=True)
class _Keys:
    """The signing keys of a tenant by their ids, when they were fetched, and when that was last tried."""

    keys: Mapping[str, jwt.PyJWK] = field(default_factory=dict)
    fetched_at: float = -KEYS_LIVE_SECONDS
    tried_at: float = -KEYS_LIVE_SECONDS


@dataclass(frozen=True, slots=True)
class _Verified:
    """Whose token it is, when it expires (seconds of the epoch), and the keys of its tenant when it was verified."""

    caller: Caller
    expires_at: float
    keys: _Keys


class Authenticator:
    """
    Checks bearer tokens: RS256 only, a key of the token's own tenant, exact issuer and audience, validity in time.

    A token is a user's, for *scope*, or an application's that has proved who it is. An ID token is neither.

    A verified token is cached until it expires or its tenant's signing keys are fetched again, which happens once a
    day and when a key id is unknown. Tokens of other tenants than *tenants* are refused.
    """

    def __init__(
        self,
        *,
        authority: str,
        tenants: frozenset[UUID],
        audience: str,
        scope: str = SCOPE,
        ca_file: Path | None = None,
    ) -> None:
        self._authority = authority.rstrip("/")
        self._tenants = tenants
        self._audience = audience
        self._scope = scope
        self._ca_file = ca_file
        self._known: dict[UUID, _Keys] = {}
        self._locks: dict[UUID, asyncio.Lock] = {}
        self._seen: dict[bytes, _Verified] = {}

    async def caller(self, token: str) -> Caller:
        """Return who *token* speaks for. Raises Problem 401 with the reason, or 503 if no key can be fetched."""
        name = hashlib.sha256(token.encode(errors="replace")).digest()
        if (seen := self._seen.get(name)) and self._still_holds(seen):
            return seen.caller
        try:
            header = jwt.get_unverified_header(token)
            claimed = UUID(str(jwt.decode(token, options={"verify_signature": False}).get("tid")))
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise _unauthorised("The token is not an Entra ID access token.") from None
        if header.get("alg") != "RS256":
            raise _unauthorised("The token is not signed with RS256.")
        if claimed not in self._tenants:
            raise _unauthorised("The token is from a tenant that is not served here.")
        key = await self._key(claimed, str(header.get("kid")))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                audience=self._audience,
                issuer=f"{self._authority}/{claimed}/v2.0",
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "nbf", "iss", "aud", "tid", "oid"]},
            )
        except jwt.InvalidTokenError as error:
            raise _unauthorised(f"The token is not valid: {error}.") from None
        if not all(type(claims[name]) is int for name in ("exp", "iat", "nbf")):
            raise _unauthorised("The token is not valid: exp, iat and nbf must be whole numbers.")
        caller = self._caller(claims)
        if len(self._seen) >= REMEMBERED_TOKENS:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = _Verified(caller, claims["exp"] + LEEWAY_SECONDS, self._known[claimed])
        return caller

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        roles = claims.get("roles")
        return Caller(
            tenant_id=UUID(str(claims["tid"])),
            oid=_kept(claims["oid"]),
            name=_kept(name) if (name := claims.get("preferred_username")) else None,
            roles=frozenset(role for role in roles if isinstance(role, str))
            if isinstance(roles, list)
            else frozenset(),
            is_app=self._is_app(claims),
        )

    def _is_app(self, claims: Mapping[str, Any]) -> bool:
        """Return whether this is an application's token. Raises Problem 401 when it is not a user's either."""
        scopes, kind = claims.get("scp"), claims.get("idtyp")
        if "nonce" in claims:
            raise _unauthorised(f"The token has a nonce, as ID tokens have. {self._ask_for}")
        if "scp" not in claims:
            proved = any(claims.get(name) in ("1", "2") for name in ("azpacr", "appidacr"))
            if kind == "app" or (kind is None and proved):
                return True
            raise _unauthorised(
                "The token is neither a user's, which has scopes (scp), nor that of an application that proved who"
                f" it is (idtyp app, or azpacr 1 or 2). {self._ask_for}"
            )
        if kind not in (None, "user"):
            raise _unauthorised(f"The token has scopes (scp) and an idtyp that is not user. {self._ask_for}")
        if not isinstance(scopes, str) or self._scope not in scopes.split():
            raise _unauthorised(f"The token's scopes (scp) are without {self._scope}. {self._ask_for}")
        return False

    @property
    def _ask_for(self) -> str:
        return (
            f"Ask Entra ID for an access token: a user's for the scope {self._audience}/{self._scope}, an application's"
            f" for {self._audience}/.default with its own secret or certificate."
        )

    def _still_holds(self, seen: _Verified) -> bool:
        fresh = time.monotonic() - seen.keys.fetched_at <= KEYS_LIVE_SECONDS
        return fresh and time.time() < seen.expires_at and self._known.get(seen.caller.tenant_id) is seen.keys

    async def _key(self, tenant_id: UUID, kid: str) -> jwt.PyJWK:
        began = time.monotonic()
        if not self._wants_keys(tenant_id, kid, began):
            # A request with an unknown key id makes no other wait for Entra ID.
            return self._known[tenant_id].keys[kid]
        async with self._locks.setdefault(tenant_id, asyncio.Lock()):
            known, now = self._known.get(tenant_id, _Keys()), time.monotonic()
            pause = REFRESH_PAUSE_SECONDS if known.keys else 1
            if self._wants_keys(tenant_id, kid, now) and now - known.tried_at > pause:
                try:
                    known = _Keys(await self._fetch_keys(tenant_id), now, now)
                except (aiohttp.ClientError, TimeoutError, jwt.PyJWTError, KeyError, ValueError) as error:
                    log.warning("keys.unreadable", tenant_id=tenant_id, error=type(error).__name__)
                    known = replace(known, tried_at=now)
                self._known[tenant_id] = known
        if not known.keys:
            raise Problem(503, "token-verification-unavailable", "Entra ID does not answer. Try again.", retry_after=5)
        if kid in known.keys:
            return known.keys[kid]
        if known.fetched_at < began:
            wait = max(1, math.ceil(known.tried_at + REFRESH_PAUSE_SECONDS - time.monotonic()))
            # Anybody can send such a token, so it must not look as if the service were unavailable.
            detail = f"The token is signed with an unknown key. New keys are fetched in {wait} s: try again then."
            raise _unauthorised(detail, retry_after=wait)
        raise _unauthorised("The token is signed with an unknown key.")

    def _wants_keys(self, tenant_id: UUID, kid: str, now: float) -> bool:
        known = self._known.get(tenant_id, _Keys())
        return kid not in known.keys or now - known.fetched_at > KEYS_LIVE_SECONDS

    async def _fetch_keys(self, tenant_id: UUID) -> dict[str, jwt.PyJWK]:
        tls = ssl.create_default_context()
        if self._ca_file:
            tls.load_verify_locations(self._ca_file)
        issuer = f"{self._authority}/{tenant_id}/v2.0"
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=10), connector=aiohttp.TCPConnector(ssl=tls), trust_env=True
        ) as session:
            metadata = await _json(session, f"{issuer}/.well-known/openid-configuration")
            if metadata["issuer"] != issuer:
                raise ValueError("the metadata names another issuer")
            keys = (await _json(session, metadata["jwks_uri"]))["keys"]
        # A key may name the tenant it signs for; one of another tenant must not vouch for this one.
        return {key["kid"]: jwt.PyJWK(key, algorithm="RS256") for key in keys if key.get("issuer", issuer) == issuer}


async def _json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url, raise_for_status=True) as response:
        return await response.json()


def _kept(claim: Any) -> str:
    """Return a claim as PostgreSQL and JSON can keep it: without NUL and lone surrogates."""
    return str(claim).replace("\0", "\ufffd").encode(errors="replace").decode()


def _unauthorised(detail: str, *, retry_after: int | None = None) -> Problem:
    return Problem(401, "not-signed-in", detail, headers={"WWW-Authenticate": "Bearer"}, retry_after=retry_after)


def require(*roles: str) -> Callable[[Request], Awaitable[Caller]]:
    """
    Return the FastAPI dependency that returns the caller if it has at least one of *roles*.

    Without roles any caller with a valid token is accepted.
    """

    async def check(request: Request) -> Caller:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthorised("Send the header 'Authorization: Bearer <token>'.")
        authenticator: Authenticator = request.app.state.authenticator
        caller = await authenticator.caller(token.strip())
        if roles and not caller.roles & set(roles):
            raise Problem(403, "not-allowed", f"This needs one of the app roles {', '.join(roles)}.")
        return caller

    return check
