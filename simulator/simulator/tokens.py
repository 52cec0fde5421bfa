"""
Access tokens as Entra ID v2.0 issues them, and the checks that Microsoft's services make on them.

Claims follow Microsoft Learn, "Access token claims reference". Tokens live on real time, not on the simulator's clock:
the services that validate them cannot be told to advance theirs.
"""

import time
from typing import Any, Literal
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import RSAAlgorithm
from pydantic import BaseModel, ConfigDict, Field

GRAPH = "https://graph.microsoft.com"
EXCHANGE = "https://outlook.office365.com"


def _new_key() -> RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class SigningKeys:
    """The keys that sign tokens. All keys that ever signed stay published, as during Entra's key rollover."""

    def __init__(self) -> None:
        self._keys: dict[str, RSAPrivateKey] = {}
        self._foreign: RSAPrivateKey | None = None
        self.rotate()

    def rotate(self) -> str:
        """Sign with a new key from now on and return its id."""
        self.kid = uuid4().hex
        self._keys[self.kid] = _new_key()
        return self.kid

    def sign(self, claims: dict[str, Any], kid: str | None = None, *, foreign: bool = False) -> str:
        """Sign *claims* with RS256. *foreign* signs with a key that is not published, under a published key's id."""
        if foreign:
            self._foreign = self._foreign or _new_key()
        key = self._foreign if foreign and self._foreign else self._keys[self.kid]
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": kid or self.kid})

    def verify(self, token: str, audience: str) -> dict[str, Any]:
        """Return the claims of *token*; raise `jwt.InvalidTokenError` when it is not ours, expired or for others."""
        kid = jwt.get_unverified_header(token).get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise jwt.InvalidTokenError("the signing key is not known")
        required = ["exp", "iss", "tid", "aud"]
        return jwt.decode(token, key.public_key(), ["RS256"], audience=audience, options={"require": required})

    def published(self, issuer: str) -> list[dict[str, Any]]:
        """Return the JSON Web Key Set, each key with the issuer it is valid for."""
        return [
            {
                **RSAAlgorithm.to_jwk(key.public_key(), as_dict=True),
                "use": "sig",
                "kid": kid,
                "x5t": kid,
                "issuer": issuer,
            }
            for kid, key in self._keys.items()
        ]


class TokenOrder(BaseModel):
    """
    A token to order for a test user or app of any API, good or bad.

    The defaults make a valid access token of a user. With `app` it is an application's, whose proof `azpacr` names:
    "1", a secret, or "2", a certificate. With `id_token` it is the ID token of a user who signs in to `audience`. The
    rest makes it bad in one way each: `expires_in` may be negative, `issuer` and `kid` may be wrong, `foreign_key`
    signs with an unpublished key, `algorithm` may be `none` or `HS256`, `claims` overrides single claims and removes
    those given as null.
    """

    model_config = ConfigDict(extra="forbid")

    tenant: str | None = Field(None, description="Tenant id; the first registered tenant when absent.")
    audience: str
    roles: list[str] = []
    oid: str | None = None
    preferred_username: str | None = None
    name: str | None = None
    scp: str | None = None
    app: bool = False
    id_token: bool = False
    azp: str | None = None
    azpacr: Literal["0", "1", "2"] | None = None
    expires_in: int = 3600
    not_before_in: int = 0
    issuer: str | None = None
    kid: str | None = None
    foreign_key: bool = False
    algorithm: Literal["RS256", "HS256", "none"] = "RS256"
    claims: dict[str, Any] = {}


def ordered_claims(order: TokenOrder, tenant: str, issuer: str) -> dict[str, Any]:
    """Write the claims of an ordered token."""
    now = int(time.time())
    oid = order.oid or str(uuid4())
    claims: dict[str, Any] = {
        "aud": order.audience,
        "iss": order.issuer or issuer,
        "iat": now,
        "nbf": now + order.not_before_in,
        "exp": now + order.expires_in,
        "oid": oid,
        "sub": oid,
        "tid": tenant,
        "uti": uuid4().hex[:22],
        "ver": "2.0",
    }
    if order.roles:
        claims["roles"] = order.roles
    if order.id_token:
        claims["nonce"] = uuid4().hex
    else:
        claims["azp"] = order.azp or str(uuid4())
        claims["azpacr"] = order.azpacr or ("1" if order.app else "0")
    if order.app:
        claims["idtyp"] = "app"
    else:
        if not order.id_token:
            claims["scp"] = order.scp or "access_as_user"
        claims["preferred_username"] = order.preferred_username or "user@contoso.example"
        claims["name"] = order.name or claims["preferred_username"]
    claims.update(order.claims)
    return {name: value for name, value in claims.items() if value is not None}


def ordered_token(keys: SigningKeys, order: TokenOrder, tenant: str, issuer: str) -> str:
    """Issue an ordered token."""
    claims = ordered_claims(order, tenant, issuer)
    if order.algorithm == "RS256":
        return keys.sign(claims, order.kid, foreign=order.foreign_key)
    key = "" if order.algorithm == "none" else "0" * 32
    return jwt.encode(claims, key, algorithm=order.algorithm, headers={"kid": order.kid or keys.kid})


def app_token(
    keys: SigningKeys,
    issuer: str,
    tenant: str,
    resource: str,
    app: str,
    oid: str,
    roles: list[str],
    lifetime: int,
    azpacr: Literal["1", "2"],
) -> str:
    """Issue the token that an application gets for *resource* with its own credentials."""
    order = TokenOrder(audience=resource, roles=roles, oid=oid, azp=app, azpacr=azpacr, app=True, expires_in=lifetime)
    return keys.sign(ordered_claims(order, tenant, issuer))
