"""Application access tokens (no user), obtained by MSAL without blocking the event loop."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import aiohttp
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from cryptography.x509 import load_pem_x509_certificate
from msal import ConfidentialClientApplication  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, SecretStr, model_validator
from yarl import URL

from m365.errors import M365Error, Throttled, Unauthorised, Unavailable
from m365.http import json_object, send
from m365.session import proxy_for

log = structlog.get_logger()

RENEW_WITH_LEFT = 300.0
USELESS_WITH_LEFT = 10.0
ROUTE = "POST /{tenant}/oauth2/v2.0/token"


class Credential(BaseModel):
    """
    The application's identity: `client_id` and exactly one of the following.

    - `secret`
    - `certificate`: a .pfx or .p12 file, or a PEM file with the certificate; the PEM key is in the same file or in
      `key`. `passphrase` decrypts the key or the PFX.
    - `federated_token_file`: a token issued and renewed by a third party, such as Kubernetes for workload identity
      (AZURE_FEDERATED_TOKEN_FILE). Read again for each token request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_id: str
    secret: SecretStr | None = None
    certificate: Path | None = None
    key: Path | None = None
    passphrase: SecretStr | None = None
    federated_token_file: Path | None = None

    @model_validator(mode="after")
    def _has_one_proof(self) -> "Credential":
        if sum(map(bool, (self.secret, self.certificate, self.federated_token_file))) != 1:
            raise ValueError("give exactly one of secret, certificate, federated_token_file")
        if self.certificate is None and (self.key or self.passphrase):
            raise ValueError("key and passphrase belong to a certificate")
        return self


@dataclass(frozen=True, slots=True)
class _CachedToken:
    token: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class _CachedFailure:
    error: M365Error
    until: float


class Tokens:
    """
    Tokens for one application in any number of tenants.

    A token is cached until five minutes before it expires. Then the next caller starts a renewal in the background and
    still gets the old token, so that no caller waits and short outages of Entra ID go unnoticed. Concurrent callers
    share one request per tenant and scope. After a failure, no request is made for as long as Retry-After says, or
    else for *pause* seconds; meanwhile callers get the same error.

    After a refusal the credential's files are read again, so a renewed certificate needs no restart.
    """

    def __init__(
        self,
        credential: Credential,
        session: aiohttp.ClientSession,
        *,
        authority: str = "https://login.microsoftonline.com",
        timeout: float = 15.0,
        pause: float = 5.0,
    ) -> None:
        self._credential = credential
        self._session = session
        self._authority = authority.rstrip("/")
        self._timeout = timeout
        self._pause = pause
        # Not the loop's default pool: it resolves host names for the requests that these threads wait for.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="msal")
        self._applications: dict[UUID, ConfidentialClientApplication] = {}
        self._held: dict[tuple[UUID, str], _CachedToken] = {}
        self._failed: dict[tuple[UUID, str], _CachedFailure] = {}
        self._pending: dict[tuple[UUID, str], asyncio.Task[str]] = {}

    async def get(self, tenant_id: UUID, scope: str) -> str:
        """
        Return a token for *scope* (`https://<resource>/.default`) in *tenant_id*.

        Raises Unauthorised when Entra ID refuses or the credential is unusable, Throttled, or Unavailable. Never
        raises while the cached token is valid.
        """
        key = (tenant_id, scope)
        held = self._held.get(key)
        left = held.expires_at - monotonic() if held else 0.0
        if held and left > RENEW_WITH_LEFT:
            return held.token
        failed = self._failed.get(key)
        resting = failed is not None and failed.until > monotonic()
        if held and left > USELESS_WITH_LEFT:
            if not resting:
                self._request(key)
            return held.token
        if failed and resting:
            raise failed.error.with_traceback(None)
        return await asyncio.shield(self._request(key))

    def drop(self, tenant_id: UUID, scope: str, token: str) -> None:
        """Remove *token*, which was rejected with 401, from the cache. A newer token is kept."""
        held = self._held.get((tenant_id, scope))
        if held and held.token == token:
            del self._held[tenant_id, scope]

    async def close(self) -> None:
        """Cancel requests in progress and shut down the threads."""
        pending = list(self._pending.values())
        for request in pending:
            request.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _request(self, key: tuple[UUID, str]) -> asyncio.Task[str]:
        request = self._pending.get(key)
        if request is None:
            request = self._pending[key] = asyncio.create_task(self._fetch(*key))
            request.add_done_callback(lambda done: self._finish(key, done))
        return request

    def _finish(self, key: tuple[UUID, str], request: asyncio.Task[str]) -> None:
        del self._pending[key]
        # Reading the exception also marks it as retrieved, which nothing else does for a background renewal.
        error = None if request.cancelled() else request.exception()
        if isinstance(error, M365Error):
            rest = getattr(error, "retry_after", None) or self._pause
            self._failed[key] = _CachedFailure(error, monotonic() + rest)
            log.warning("token.failed", tenant_id=str(key[0]), scope=key[1], error=str(error), retry_in=rest)
        else:
            self._failed.pop(key, None)

    async def _fetch(self, tenant_id: UUID, scope: str) -> str:
        loop = asyncio.get_running_loop()
        asked_at = monotonic()
        try:
            answer = await loop.run_in_executor(self._threads, self._request_token, tenant_id, scope, loop)
            token = str(answer["access_token"])
            self._held[tenant_id, scope] = _CachedToken(token, asked_at + float(answer["expires_in"]))
        except (Throttled, Unavailable):
            raise
        except Exception as error:
            self._applications.pop(tenant_id, None)
            raise _refusal(error) from error
        return token

    def _request_token(self, tenant_id: UUID, scope: str, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        """Request a token with MSAL. Runs in a thread, because discovery, files and signatures block."""
        application = self._applications.get(tenant_id)
        if application is None:
            application = self._applications[tenant_id] = ConfidentialClientApplication(
                self._credential.client_id,
                client_credential=_proof(self._credential),
                authority=f"{self._authority}/{tenant_id}",
                # Only needed for aliases of public clouds, and fails for any other host.
                instance_discovery=False,
                http_client=_EntraHttp(self._session, loop, self._timeout),
            )
        # Otherwise MSAL returns tokens from its own cache, including one that was dropped.
        application.remove_tokens_for_client()
        answer: dict[str, Any] = application.acquire_token_for_client([scope])
        return answer


def _refusal(error: Exception) -> M365Error:
    """Return the error for a failed token request. MSAL raises arbitrary exceptions for unusable files and keys."""
    if not isinstance(error, M365Error):
        return Unauthorised(ROUTE, code="UnusableCredential", reason=f"{type(error).__name__}: {error}")
    details: dict[str, Any] = {
        "status": error.status,
        "code": error.code,
        "reason": error.reason,
        "request_id": error.request_id,
    }
    if error.code == "temporarily_unavailable":
        return Unavailable(error.route, may_have_happened=False, **details)
    return Unauthorised(error.route, **details)


def _proof(credential: Credential) -> str | dict[str, Any]:
    """Return *credential* in the form that MSAL expects."""
    if credential.secret:
        return credential.secret.get_secret_value()
    if token_file := credential.federated_token_file:
        return {"client_assertion": lambda: token_file.read_text().strip()}
    if credential.certificate is None:
        raise ValueError("the credential holds no proof")
    passphrase = credential.passphrase.get_secret_value() if credential.passphrase else None
    if credential.certificate.suffix.lower() in {".pfx", ".p12"}:
        return {
            "private_key_pfx_path": str(credential.certificate),
            "passphrase": passphrase,
            "public_certificate": True,
        }
    return {
        "private_key": (credential.key or credential.certificate).read_text(),
        "passphrase": passphrase,
        "public_certificate": credential.certificate.read_text(),
    }


def check_certificate(credential: Credential) -> None:
    """Read a certificate's files as MSAL will. Raises OSError, or ValueError if their content is unusable."""
    if credential.certificate is None:
        return
    proof = _proof(credential)
    assert isinstance(proof, dict)  # noqa: S101 - a certificate is no secret
    passphrase = proof["passphrase"].encode() if proof["passphrase"] else None
    try:
        if file := proof.get("private_key_pfx_path"):
            key, certificate, _ = pkcs12.load_key_and_certificates(Path(file).read_bytes(), passphrase)
            if key is None or certificate is None:
                raise ValueError("the file holds no key, or no certificate")
        else:
            load_pem_private_key(proof["private_key"].encode(), passphrase)
            load_pem_x509_certificate(proof["public_certificate"].encode())
    except (TypeError, UnsupportedAlgorithm) as error:
        # A passphrase for an unencrypted key, or none for an encrypted one.
        raise ValueError("the key does not open") from error


@dataclass(frozen=True, slots=True)
class _EntraAnswer:
    status_code: int
    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _EntraHttp:
    """
    The HTTP client that MSAL uses.

    MSAL runs in a thread and waits there, while the request is sent through our session in the event loop. Thus trust
    store, proxy settings and error handling are shared, and REQUESTS_CA_BUNDLE has no effect. MSAL only sees 200
    responses: everything else raises M365Error.
    """

    session: aiohttp.ClientSession
    loop: asyncio.AbstractEventLoop
    timeout: float

    def get(
        self, url: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None, **_: Any
    ) -> _EntraAnswer:
        return self._wait("GET", URL(url).update_query(params), "GET /{tenant}/openid-configuration", headers, None)

    def post(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | str | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> _EntraAnswer:
        form = data if isinstance(data, str) else urlencode(data or {})
        return self._wait("POST", URL(url).update_query(params), ROUTE, headers, form.encode())

    def _wait(
        self, method: str, url: URL, route: str, headers: Mapping[str, str] | None, data: bytes | None
    ) -> _EntraAnswer:
        content_type = {"Content-Type": "application/x-www-form-urlencoded"} if data else {}
        sending = send(
            self.session,
            method,
            url,
            route=route,
            explain=_explain,
            effect=False,
            timeout=self.timeout,
            max_body=1024 * 1024,
            proxy=proxy_for(url),
            headers={**(headers or {}), **content_type},
            data=data,
        )
        # The extra seconds only matter if the loop has stopped: the thread must not wait for ever.
        answer = asyncio.run_coroutine_threadsafe(sending, self.loop).result(self.timeout + 5)
        answer.json()
        return _EntraAnswer(answer.status, answer.body.decode(), {})


def _explain(body: bytes) -> tuple[str, str]:
    """Return code and description of an OAuth 2.0 error (RFC 6749 5.2), without Entra ID's trailing trace ids."""
    error = json_object(body) or {}
    return str(error.get("error", "")), str(error.get("error_description", "")).partition("Trace ID:")[0].strip()
