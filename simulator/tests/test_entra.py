"""Entra ID: who gets a token, what is in it, and what a client is told who gets none."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt
import msal  # type: ignore[import-untyped]
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.entra import ASSERTION_TYPE
from simulator.state import DEFAULT_TENANT
from simulator.tokens import EXCHANGE, GRAPH

OTHER_APP = "0a1b2c3d-0000-4000-8000-00000000a002"
ISSUER, SUBJECT = "https://cluster.example/oidc", "system:serviceaccount:backstop:submitter"


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    """Make a key of a client."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def certificate(key: RSAPrivateKey) -> x509.Certificate:
    """Make the certificate of that key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "submitter")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


def pem(key: RSAPrivateKey) -> str:
    """Write the private key in PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: RSAPrivateKey) -> str:
    """Write the public key in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture
def build(sim: Simulator) -> Callable[..., Any]:
    """Build an MSAL application that trusts the simulator's CA, whatever the environment says about CAs."""

    def build_app(credential: Any, client_id: str = DEFAULT_APP) -> Any:
        session = requests.Session()
        session.trust_env, session.verify = False, str(sim.ca_file)
        return msal.ConfidentialClientApplication(
            client_id,
            client_credential=credential,
            authority=f"{sim.url}/{DEFAULT_TENANT}",
            instance_discovery=False,
            http_client=session,
        )

    return build_app


async def acquire(build: Callable[..., Any], credential: Any, scope: str = GRAPH, client_id: str = DEFAULT_APP) -> Any:
    """Build the application and ask for a token, off the event loop as MSAL blocks."""

    def ask() -> Any:
        return build(credential, client_id).acquire_token_for_client([f"{scope}/.default"])

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize(
    ("scope", "roles"),
    [
        (GRAPH, ["ThreatSubmission.ReadWrite.All", "Mail.Send", "Mail.ReadWrite"]),
        (EXCHANGE, ["Exchange.ManageAsApp"]),
    ],
)
async def test_msal_gets_a_token_for_a_secret(build: Any, sim: Simulator, scope: str, roles: list[str]) -> None:
    """The token is a v2.0 app-only token for one audience, signed by a published key."""
    answer = await acquire(build, DEFAULT_SECRET, scope)

    claims = sim.state.keys.verify(answer["access_token"], scope)
    assert (claims["aud"], claims["roles"], claims["idtyp"], claims["ver"]) == (scope, roles, "app", "2.0")
    assert (claims["tid"], claims["azp"], claims["azpacr"]) == (DEFAULT_TENANT, DEFAULT_APP, "1")
    assert claims["iss"] == f"{sim.url}/{DEFAULT_TENANT}/v2.0"
    assert claims["oid"] == claims["sub"]
    assert claims["iat"] <= time.time() < claims["exp"]
    assert "scp" not in claims
    assert answer["expires_in"] == 3599


async def test_msal_gets_a_token_for_a_certificate(
    build: Any, control: Any, key: RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """A client assertion signed by a registered certificate is as good as a secret, with either thumbprint."""
    registered = certificate.public_bytes(Encoding.PEM).decode()
    await control.tenant(apps=[{"client_id": OTHER_APP, "certificates": [registered]}])
    sha1 = certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - MSAL names certificates so

    by_sha1 = await acquire(build, {"private_key": pem(key), "thumbprint": sha1}, client_id=OTHER_APP)
    by_sha256 = await acquire(build, {"private_key": pem(key), "public_certificate": registered}, client_id=OTHER_APP)

    for answer in (by_sha1, by_sha256):
        claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
        assert claims["azpacr"] == "2"


async def test_a_certificate_that_is_not_registered_opens_nothing(
    build: Any, control: Any, key: RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """Neither an unknown thumbprint nor a known one with another key's signature is accepted."""
    sha1 = certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - MSAL names certificates so
    await control.tenant(apps=[{"client_id": OTHER_APP}])
    unknown = await acquire(build, {"private_key": pem(key), "thumbprint": sha1}, client_id=OTHER_APP)

    registered = certificate.public_bytes(Encoding.PEM).decode()
    await control.tenant(apps=[{"client_id": OTHER_APP, "certificates": [registered]}])
    stolen = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    forged = await acquire(build, {"private_key": stolen, "thumbprint": sha1}, client_id=OTHER_APP)

    assert [answer["error"] for answer in (unknown, forged)] == ["invalid_client"] * 2
    assert [answer["error_codes"] for answer in (unknown, forged)] == [[700027]] * 2


def workload_token(key: RSAPrivateKey, **changes: Any) -> str:
    """Write the token of a Kubernetes service account."""
    claims = {"iss": ISSUER, "sub": SUBJECT, "aud": "api://AzureADTokenExchange", "exp": int(time.time()) + 600}
    return jwt.encode({**claims, **changes}, key, algorithm="RS256")


async def test_msal_gets_a_token_for_a_workload_identity(build: Any, control: Any, key: RSAPrivateKey) -> None:
    """A federated token of a trusted issuer and subject is accepted."""
    trusted = {"issuer": ISSUER, "subject": SUBJECT, "public_key": public_pem(key)}
    await control.tenant(apps=[{"client_id": OTHER_APP, "federated": [trusted]}])

    answer = await acquire(build, {"client_assertion": lambda: workload_token(key)}, client_id=OTHER_APP)

    assert "access_token" in answer


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sub": "system:serviceaccount:other:other"}, 700213),
        ({"iss": "https://elsewhere.example"}, 700213),
        ({"aud": "api://other"}, 700212),
        ({"exp": 1}, 700211),
    ],
)
async def test_a_workload_that_is_not_trusted_gets_no_token(
    client: Any, control: Any, key: RSAPrivateKey, changes: dict[str, Any], code: int
) -> None:
    """Issuer, subject, audience and lifetime must all fit."""
    trusted = {"issuer": ISSUER, "subject": SUBJECT, "public_key": public_pem(key)}
    await control.tenant(apps=[{"client_id": DEFAULT_APP, "federated": [trusted]}])

    answer = await client.token(
        GRAPH, client_assertion=workload_token(key, **changes), client_assertion_type=ASSERTION_TYPE
    )

    assert (answer.status, answer.body["error"], answer.body["error_codes"]) == (401, "invalid_client", [code])


async def test_a_wrong_secret_is_refused_as_entra_words_it(build: Any) -> None:
    """MSAL returns the error, it does not raise."""
    answer = await acquire(build, "guessed")

    assert answer["error"] == "invalid_client"
    assert answer["error_codes"] == [7000215]
    assert answer["error_description"].startswith("AADSTS7000215: Invalid client secret provided.")
    assert {"trace_id", "correlation_id", "timestamp"} <= set(answer)


@pytest.mark.parametrize(
    ("fields", "status", "error", "code"),
    [
        ({"client_id": str(uuid4()), "client_secret": "x"}, 400, "unauthorized_client", 700016),
        ({"client_id": DEFAULT_APP}, 401, "invalid_client", 7000218),
        ({"client_secret": DEFAULT_SECRET, "grant_type": "password"}, 400, "unsupported_grant_type", 70003),
        ({"client_secret": DEFAULT_SECRET, "scope": f"{GRAPH}/User.Read"}, 400, "invalid_scope", 1002012),
        ({"client_secret": DEFAULT_SECRET, "scope": "api://x/.default"}, 400, "invalid_resource", 500011),
        ({"client_assertion": "x.y.z", "client_assertion_type": ASSERTION_TYPE}, 401, "invalid_client", 50027),
        ({"client_assertion": "x.y.z"}, 400, "invalid_request", 900144),
    ],
)
async def test_a_wrong_request_is_refused(
    client: Any, fields: dict[str, str], status: int, error: str, code: int
) -> None:
    """Each mistake has Entra's own code."""
    answer = await client.token(GRAPH, **fields)

    assert (answer.status, answer.body["error"], answer.body["error_codes"]) == (status, error, [code])


async def test_an_unknown_tenant_is_refused(client: Any) -> None:
    """Nobody gets a token of a directory that does not exist."""
    answer = await client.token(GRAPH, str(uuid4()))

    assert (answer.status, answer.body["error_codes"]) == (400, [90002])


async def test_published_keys_verify_ordered_tokens(client: Any, control: Any) -> None:
    """A token for a user of our API can be validated with discovery and keys alone."""
    metadata = (await client.call("GET", f"/{DEFAULT_TENANT}/v2.0/.well-known/openid-configuration")).body
    order = {"audience": "api-client-id", "roles": ["Analyst"], "oid": "1", "preferred_username": "ada@contoso.example"}
    token = (await control.ask("POST", "/tokens", order))["access_token"]

    keys = (await client.call("GET", metadata["jwks_uri"].removeprefix(client.url))).body["keys"]
    (entry,) = [entry for entry in keys if entry["kid"] == jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, jwt.PyJWK(entry, "RS256"), ["RS256"], audience="api-client-id")

    assert entry["issuer"] == metadata["issuer"] == claims["iss"]
    assert (claims["roles"], claims["oid"], claims["scp"]) == (["Analyst"], "1", "access_as_user")
    assert "idtyp" not in claims


async def test_an_id_token_says_nothing_of_an_application(control: Any) -> None:
    """It has a nonce and the user's roles, and neither scopes nor who asked for it."""
    order = {"audience": "a", "id_token": True, "roles": ["Reporter"], "preferred_username": "ada@contoso.example"}
    token = (await control.ask("POST", "/tokens", order))["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})

    assert (claims["roles"], claims["preferred_username"]) == (["Reporter"], "ada@contoso.example")
    assert "nonce" in claims
    assert not {"scp", "idtyp", "azp", "azpacr"} & claims.keys()


async def test_after_a_key_rollover_both_keys_are_published(client: Any, control: Any, sim: Simulator) -> None:
    """A validator that knows the old key meets an unknown key id, and old tokens stay valid."""
    old = (await control.ask("POST", "/tokens", {"audience": "a"}))["access_token"]
    kid = (await control.ask("POST", "/keys/rotate"))["kid"]
    new = (await control.ask("POST", "/tokens", {"audience": "a"}))["access_token"]

    published = {
        key["kid"] for key in (await client.call("GET", f"/{DEFAULT_TENANT}/discovery/v2.0/keys")).body["keys"]
    }

    assert jwt.get_unverified_header(new)["kid"] == kid != jwt.get_unverified_header(old)["kid"]
    assert {kid, jwt.get_unverified_header(old)["kid"]} <= published
    assert sim.state.keys.verify(old, "a")


async def test_bad_tokens_are_bad_in_the_ordered_way(control: Any) -> None:
    """An order can spoil one claim or the header, and nothing else."""

    async def ordered(**order: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        token = (await control.ask("POST", "/tokens", {"audience": "a", **order}))["access_token"]
        return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})

    assert (await ordered(expires_in=-5))[1]["exp"] < time.time()
    assert (await ordered(not_before_in=60))[1]["nbf"] > time.time()
    assert (await ordered(issuer="https://a.invalid"))[1]["iss"] == "https://a.invalid"
    assert (await ordered(kid="k"))[0]["kid"] == "k"
    assert (await ordered(algorithm="none"))[0]["alg"] == "none"
    assert (await ordered(algorithm="HS256"))[0]["alg"] == "HS256"
    claims = (await ordered(claims={"oid": None, "tid": "other"}))[1]
    assert "oid" not in claims
    assert claims["tid"] == "other"


async def test_a_foreign_key_hides_behind_a_published_id(control: Any, sim: Simulator) -> None:
    """The header is right, the signature is not."""
    token = (await control.ask("POST", "/tokens", {"audience": "a", "foreign_key": True}))["access_token"]

    assert jwt.get_unverified_header(token)["kid"] == sim.state.keys.kid
    with pytest.raises(jwt.InvalidSignatureError):
        sim.state.keys.verify(token, "a")
