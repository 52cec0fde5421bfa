"""
Entra ID: discovery, keys and the token endpoint for applications.

Error codes and texts follow Microsoft Learn, "Microsoft Entra authentication and authorization error codes".
"""

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from simulator.calls import Call, RefusalError, answer, json_response
from simulator.state import State
from simulator.tenant import App, FederatedCredential, Tenant
from simulator.tokens import EXCHANGE, GRAPH, app_token

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def add_routes(app: web.Application, state: State) -> None:
    """Serve Entra ID under `/{tenant}/`."""

    async def discover(request: web.Request) -> web.Response:
        return await answer(Call(state, request), "entra.discovery", _render, _discovery)

    async def publish(request: web.Request) -> web.Response:
        return await answer(Call(state, request), "entra.keys", _render, _keys)

    async def issue(request: web.Request) -> web.Response:
        return await answer(Call(state, request), "entra.token", _render, _token)

    app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", discover)
    app.router.add_get("/{tenant}/discovery/v2.0/keys", publish)
    app.router.add_post("/{tenant}/oauth2/v2.0/token", issue)


def _render(call: Call, refusal: RefusalError) -> web.Response:
    trace, correlation = str(uuid4()), call.request.headers.get("client-request-id") or str(uuid4())
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    number = refusal.message.removeprefix("AADSTS").partition(":")[0]
    trail = f"Trace ID: {trace} Correlation ID: {correlation} Timestamp: {stamp}"
    body = {
        "error": refusal.code,
        "error_description": f"{refusal.message} {trail}",
        "error_codes": [int(number)] if number.isdigit() else [],
        "timestamp": stamp,
        "trace_id": trace,
        "correlation_id": correlation,
    }
    return json_response(body, refusal.status, refusal.headers)


def _tenant(call: Call) -> Tenant:
    named = call.request.match_info["tenant"].lower()
    tenant = call.state.tenants.get(named)
    if tenant is None:
        message = f"AADSTS90002: Tenant '{named}' not found. Check to make sure you have the correct tenant ID."
        raise RefusalError(400, "invalid_tenant", message)
    call.tenant = tenant
    return tenant


async def _discovery(call: Call) -> web.Response:
    tenant = _tenant(call)
    base = f"{call.state.url}/{tenant.id}"
    return json_response(
        {
            "issuer": call.state.issuer(tenant.id),
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
        }
    )


async def _keys(call: Call) -> web.Response:
    tenant = _tenant(call)
    return json_response({"keys": call.state.keys.published(call.state.issuer(tenant.id))})


async def _token(call: Call) -> web.Response:
    form = {key: str(value) for key, value in (await call.request.post()).items()}
    tenant = _tenant(call)
    if form.get("grant_type") != "client_credentials":
        message = f"AADSTS70003: The app requested an unsupported grant type '{form.get('grant_type', '')}'."
        raise RefusalError(400, "unsupported_grant_type", message)
    client = _client(form, tenant)
    call.app = client.client_id
    _authenticate(form, client, tenant, call.state)
    resource, roles = _resource(form.get("scope", ""), client)
    lifetime = call.state.settings.token_lifetime_seconds
    issuer = call.state.issuer(tenant.id)
    token = app_token(
        call.state.keys,
        issuer,
        tenant.id,
        resource,
        client.client_id,
        client.object_id,
        roles,
        lifetime,
        azpacr="2" if "client_assertion" in form else "1",
    )
    return json_response(
        {"token_type": "Bearer", "expires_in": lifetime, "ext_expires_in": lifetime, "access_token": token},
        headers={"Cache-Control": "no-store"},
    )


def _client(form: dict[str, str], tenant: Tenant) -> App:
    client_id = form.get("client_id", "")
    found = tenant.settings.app(client_id)
    if found is None:
        message = (
            f"AADSTS700016: Application with identifier '{client_id}' was not found in the directory "
            f"'{tenant.settings.name}'."
        )
        raise RefusalError(400, "unauthorized_client", message)
    return found


def _resource(scope: str, client: App) -> tuple[str, list[str]]:
    resource, slash, rest = scope.rpartition("/")
    if not slash or rest != ".default":
        message = f"AADSTS1002012: The provided value for scope {scope} is not valid: it needs the suffix /.default."
        raise RefusalError(400, "invalid_scope", message)
    roles = {GRAPH: client.graph_roles, EXCHANGE: client.exchange_roles}.get(resource.rstrip("/"))
    if roles is None:
        message = f"AADSTS500011: The resource principal named {resource} was not found in the tenant."
        raise RefusalError(400, "invalid_resource", message)
    return resource.rstrip("/"), roles


def _authenticate(form: dict[str, str], client: App, tenant: Tenant, state: State) -> None:
    if "client_assertion" in form:
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            message = "AADSTS900144: The request body must contain the parameter 'client_assertion_type'."
            raise RefusalError(400, "invalid_request", message)
        _check_assertion(form["client_assertion"], client, tenant, state)
    elif "client_secret" not in form:
        message = "AADSTS7000218: The request body must contain 'client_assertion' or 'client_secret'."
        raise RefusalError(401, "invalid_client", message)
    elif form["client_secret"] not in client.secrets:
        message = (
            "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client "
            f"secret value, not the client secret ID, for a secret added to app '{client.client_id}'."
        )
        raise RefusalError(401, "invalid_client", message)


def _check_assertion(assertion: str, client: App, tenant: Tenant, state: State) -> None:
    try:
        header = jwt.get_unverified_header(assertion)
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except jwt.InvalidTokenError as error:
        message = f"AADSTS50027: JWT token is invalid or malformed. {error}"
        raise RefusalError(401, "invalid_client", message) from error
    if claims.get("iss") == client.client_id:
        _check_certificate(assertion, header, client, f"{state.url}/{tenant.id}")
    else:
        _check_federated(assertion, claims, client)


def _check_certificate(assertion: str, header: dict[str, Any], client: App, base: str) -> None:
    key = _registered_key(header, client)
    if key is None:
        message = (
            "AADSTS700027: The certificate with identifier used to sign the client assertion is not registered on "
            f"application '{client.client_id}'."
        )
        raise RefusalError(401, "invalid_client", message)
    audiences = [f"{base}/oauth2/v2.0/token", f"{base}/v2.0", base]
    required: Any = {"require": ["exp", "iss", "sub", "jti"]}
    try:
        jwt.decode(assertion, key, ["RS256", "PS256"], audience=audiences, subject=client.client_id, options=required)
    except jwt.InvalidTokenError as error:
        message = f"AADSTS700027: The certificate's client assertion is not valid: {error}."
        raise RefusalError(401, "invalid_client", message) from error


def _registered_key(header: dict[str, Any], client: App) -> RSAPublicKey | None:
    """Return the key of the registered certificate that the header names. MSAL pads the thumbprints."""
    named = {str(header.get(name, "")).rstrip("=") for name in ("x5t", "x5t#S256")}
    for pem in client.certificates:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        key = certificate.public_key()
        if isinstance(key, RSAPublicKey) and _thumbprints(certificate) & named:
            return key
    return None


def _thumbprints(certificate: x509.Certificate) -> set[str]:
    sha1 = certificate.fingerprint(hashes.SHA1())  # noqa: S303 - the `x5t` header is defined with SHA-1
    sha256 = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    return {base64.urlsafe_b64encode(digest).decode().rstrip("=") for digest in (sha1, sha256)}


def _check_federated(assertion: str, claims: dict[str, Any], client: App) -> None:
    for trusted in client.federated:
        if (trusted.issuer, trusted.subject) == (claims.get("iss"), claims.get("sub")):
            return _check_workload(assertion, trusted)
    message = (
        "AADSTS700213: No matching federated identity record found for presented assertion subject "
        f"'{claims.get('sub')}'."
    )
    raise RefusalError(401, "invalid_client", message)


def _check_workload(assertion: str, trusted: FederatedCredential) -> None:
    key = load_pem_public_key(trusted.public_key.encode())
    if not isinstance(key, RSAPublicKey):
        raise RefusalError(401, "invalid_client", "AADSTS50027: The federated issuer's key is not an RSA key.")
    try:
        jwt.decode(assertion, key, ["RS256"], audience=trusted.audience, options={"require": ["exp", "iss", "sub"]})
    except jwt.InvalidAudienceError as error:
        message = "AADSTS700212: No matching federated identity record found for presented assertion audience."
        raise RefusalError(401, "invalid_client", message) from error
    except jwt.InvalidTokenError as error:
        message = f"AADSTS700211: The federated assertion is not valid: {error}."
        raise RefusalError(401, "invalid_client", message) from error
