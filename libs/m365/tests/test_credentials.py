"""What proves who the application is: a federated token, a certificate with its key, and exactly one of them."""

# ruff: noqa: S106 - the secrets are made up

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID
from pydantic import SecretStr, ValidationError

from m365 import Credential, M365Settings, Tokens, Unauthorised

TENANT = UUID("11111111-1111-4111-8111-111111111111")
SCOPE = "https://graph.microsoft.com/.default"
Application = Callable[..., Tokens]


async def test_the_federated_token_is_read_anew_for_each_request(
    microsoft: Any, application: Application, tmp_path: Path
) -> None:
    """Kubernetes replaces the file; an old assertion would be refused."""
    file = tmp_path / "token"
    tokens = application(Credential(client_id="app", federated_token_file=file))
    file.write_text("first\n")
    tokens.drop(TENANT, SCOPE, await tokens.get(TENANT, SCOPE))
    file.write_text("second\n")
    await tokens.get(TENANT, SCOPE)

    assert [form["client_assertion"] for form in microsoft.forms] == ["first", "second"]
    assert "client_secret" not in microsoft.forms[0]


async def test_a_federated_token_that_is_not_there_is_no_reason_to_restart(
    application: Application, tmp_path: Path
) -> None:
    """The error says what is missing, and the token comes when the file does."""
    file = tmp_path / "token"
    tokens = application(Credential(client_id="app", federated_token_file=file))

    with pytest.raises(Unauthorised) as caught:
        await tokens.get(TENANT, SCOPE)
    file.write_text("assertion")

    assert caught.value.code == "UnusableCredential"
    assert "FileNotFoundError" in caught.value.reason
    assert await tokens.get(TENANT, SCOPE) == "token-1"


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    """Make the application's key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    """Make the application's certificate, signed by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app.example.com")])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def files(kind: str, folder: Path, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> Credential:
    """Write the key and the certificate in one of the forms in which administrators keep them."""
    locked = serialization.BestAvailableEncryption(b"passphrase")
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    match kind:
        case "one PEM file":
            (folder / "app.pem").write_bytes(key.private_bytes(*form, serialization.NoEncryption()) + pem)
            return Credential(client_id="app", certificate=folder / "app.pem")
        case "two PEM files":
            (folder / "app.crt").write_bytes(pem)
            (folder / "app.key").write_bytes(key.private_bytes(*form, locked))
            return Credential(
                client_id="app", certificate=folder / "app.crt", key=folder / "app.key", passphrase="passphrase"
            )
        case _:
            (folder / "app.pfx").write_bytes(
                pkcs12.serialize_key_and_certificates(b"app", key, certificate, None, locked)
            )
            return Credential(client_id="app", certificate=folder / "app.pfx", passphrase="passphrase")


@pytest.mark.parametrize("kind", ["one PEM file", "two PEM files", "PFX"])
def test_a_certificate_that_does_not_open_is_refused_at_the_start(
    kind: str, tmp_path: Path, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """And not at the first token, in a log."""
    credential = files(kind, tmp_path, key, certificate)
    assert credential.certificate
    settings = {
        "client_id": "app",
        "client_certificate": credential.certificate,
        "client_certificate_key": credential.key,
        "client_certificate_passphrase": credential.passphrase,
    }
    assert M365Settings.model_validate(settings).credential() == credential

    with pytest.raises(ValidationError, match="BACKSTOP_CLIENT_CERTIFICATE_PASSPHRASE does not open it"):
        M365Settings.model_validate(settings | {"client_certificate_passphrase": "another"})
    credential.certificate.write_bytes(b"\xffno certificate")
    with pytest.raises(ValidationError, match="holds no certificate and its key"):
        M365Settings.model_validate(settings)


@pytest.mark.parametrize("kind", ["one PEM file", "two PEM files", "PFX"])
async def test_a_certificate_signs_for_the_application(
    microsoft: Any,
    application: Application,
    tmp_path: Path,
    key: rsa.RSAPrivateKey,
    certificate: x509.Certificate,
    kind: str,
) -> None:
    """The assertion is what Entra ID checks: signed with the key, about the application, for this token endpoint."""
    tokens = application(files(kind, tmp_path, key, certificate))

    assert await tokens.get(TENANT, SCOPE) == "token-1"

    assertion = microsoft.forms[0]["client_assertion"]
    endpoint = f"{microsoft.url}/{TENANT}/oauth2/v2.0/token"
    claims = jwt.decode(assertion, key.public_key(), algorithms=["PS256"], audience=endpoint)
    assert (claims["iss"], claims["sub"]) == ("app", "app")
    assert jwt.get_unverified_header(assertion)["x5t#S256"]


@pytest.mark.parametrize("kind", ["one PEM file", "two PEM files", "PFX"])
async def test_a_key_that_cannot_be_used_is_read_again_when_it_has_been_put_right(
    application: Application, tmp_path: Path, key: rsa.RSAPrivateKey, certificate: x509.Certificate, kind: str
) -> None:
    """No restart after an administrator has repaired the files."""
    credential = files(kind, tmp_path, key, certificate)
    damaged = credential.key or credential.certificate
    assert damaged is not None
    damaged.write_bytes(
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    tokens = application(credential)

    with pytest.raises(Unauthorised) as caught:
        await tokens.get(TENANT, SCOPE)
    files(kind, tmp_path, key, certificate)

    assert caught.value.code == "UnusableCredential"
    assert await tokens.get(TENANT, SCOPE) == "token-1"


async def test_a_wrong_passphrase_is_told(
    application: Application, tmp_path: Path, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """As a credential that cannot be used, without a request to Entra ID."""
    credential = files("PFX", tmp_path, key, certificate)
    tokens = application(credential.model_copy(update={"passphrase": SecretStr("another")}))

    with pytest.raises(Unauthorised) as caught:
        await tokens.get(TENANT, SCOPE)

    assert caught.value.code == "UnusableCredential"
    assert "another" not in caught.value.reason


async def test_a_renewed_certificate_is_read_after_the_old_one_was_refused(
    microsoft: Any, application: Application, tmp_path: Path, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """The next assertion is signed with the key that lies there now."""
    tokens = application(files("one PEM file", tmp_path, key, certificate))
    microsoft.entra_answers(401, {"error": "invalid_client", "error_description": "AADSTS700027: expired"})
    with pytest.raises(Unauthorised):
        await tokens.get(TENANT, SCOPE)
    renewed = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    files("one PEM file", tmp_path, renewed, certificate)

    await tokens.get(TENANT, SCOPE)

    endpoint = f"{microsoft.url}/{TENANT}/oauth2/v2.0/token"
    assertion = microsoft.forms[1]["client_assertion"]
    assert jwt.decode(assertion, renewed.public_key(), algorithms=["PS256"], audience=endpoint)


@pytest.mark.parametrize(
    "proofs",
    [
        {},
        {"secret": ""},
        {"secret": "s", "certificate": "app.pem"},
        {"certificate": "app.pem", "federated_token_file": "token"},
        {"secret": "s", "passphrase": "p"},
        {"secret": "s", "unknown": "x"},
    ],
)
def test_a_credential_has_exactly_one_proof(proofs: dict[str, str]) -> None:
    """None, two, or parts of one that is not given are a mistake in the settings."""
    with pytest.raises(ValidationError):
        Credential.model_validate({"client_id": "app", **proofs})
