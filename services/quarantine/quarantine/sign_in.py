"""Sign users in with Entra ID before a link shows anything: OpenID Connect's code flow with PKCE, through MSAL."""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import requests
import structlog
from fastapi import Request, Response
from msal import ConfidentialClientApplication  # type: ignore[import-untyped]

from m365 import Graph, Refused
from quarantine.links import InvalidLinkError, Signer

log = structlog.get_logger()

FLOW_SECONDS = 600
SESSION_SECONDS = 3600
_FLOW, _SESSION = "flow", "session"


class SignInError(Exception):
    """Entra ID did not confirm who the user is."""


@dataclass(frozen=True, slots=True)
class Person:
    """A user who signed in. `name` is for display only."""

    tenant_id: UUID
    oid: str
    name: str | None


class SignIn:
    """
    Signs users in for an hour, with signed cookies.

    *client_id* is a web application in Entra ID with the redirect URI `<public_url>/q/signed-in`. The cookies are bound
    to the host. Browsers do not send them with requests that other sites trigger, except when a user follows a link.
    """

    def __init__(
        self,
        signer: Signer,
        graph: Graph,
        *,
        public_url: str,
        authority: str,
        client_id: str,
        client_secret: str,
        ca_file: Path | None = None,
    ) -> None:
        self._signer = signer
        self._redirect_uri = f"{public_url.rstrip('/')}/q/signed-in"
        self._authority = authority.rstrip("/")
        self._client_id = client_id
        self._client_secret = client_secret
        self._http = requests.Session()
        if ca_file:
            self._http.verify = str(ca_file)
            # Otherwise REQUESTS_CA_BUNDLE would override `verify`.
            self._http.trust_env = False
        self._secure = urlsplit(public_url).scheme == "https"
        self._graph = graph

    def close(self) -> None:
        """Close the connections to Entra ID."""
        self._http.close()

    def signed_in_person(self, request: Request) -> Person | None:
        """Return who signed in; None if nobody has, or the session has expired."""
        session = self._read_cookie(request, _SESSION)
        return Person(UUID(session["tid"]), session["oid"], session["name"]) if session else None

    async def start(self, response: Response, tenant_id: UUID, token: str) -> str:
        """Return the URL of Entra ID's sign-in; *response* remembers the link to return to. Raises SignInError."""
        try:
            flow = await asyncio.to_thread(self._start_flow, tenant_id)
        except (requests.RequestException, ValueError) as error:
            log.warning("sign_in.unavailable", error=type(error).__name__)
            raise SignInError from None
        self._write_cookie(response, _FLOW, {"flow": flow, "tid": str(tenant_id), "token": token}, FLOW_SECONDS)
        return str(flow["auth_uri"])

    async def finish(self, request: Request, response: Response, answer: dict[str, str]) -> str:
        """Check Entra ID's *answer* and start a session; return the token of the link. Raises SignInError."""
        started = self._read_cookie(request, _FLOW)
        if started is None:
            raise SignInError
        tenant_id = UUID(started["tid"])
        try:
            result = await asyncio.to_thread(self._finish_flow, tenant_id, started["flow"], answer)
        except (requests.RequestException, ValueError) as error:
            # ValueError: the state is unknown, so this answer belongs to another browser.
            log.warning("sign_in.failed", error=type(error).__name__)
            raise SignInError from None
        claims = result.get("id_token_claims")
        if not claims or str(claims.get("tid")) != str(tenant_id) or not claims.get("oid"):
            # This code comes from the browser, so it may be any text.
            code = str(result.get("error", ""))
            log.warning("sign_in.failed", error=code if re.fullmatch("[a-z_]{1,40}", code) else "unknown")
            raise SignInError
        session = {"tid": str(tenant_id), "oid": str(claims["oid"]), "name": claims.get("preferred_username")}
        self._write_cookie(response, _SESSION, session, SESSION_SECONDS)
        response.delete_cookie(self._cookie_name(_FLOW), path="/", secure=self._secure, httponly=True, samesite="lax")
        return str(started["token"])

    async def is_recipient(self, person: Person, tenant_id: UUID, recipient: str) -> bool:
        """Return True if *person* owns the mailbox *recipient*; object ids are compared. Raises M365Error."""
        if person.tenant_id != tenant_id:
            return False
        try:
            user = await self._graph.get(tenant_id, "/v1.0/users/{user}", {"$select": "id"}, ids={"user": recipient})
        except Refused:
            return False
        return str(user.get("id", "")).lower() == person.oid.lower()

    def _msal_application(self, tenant_id: UUID) -> Any:
        return ConfidentialClientApplication(
            self._client_id,
            client_credential=self._client_secret,
            authority=f"{self._authority}/{tenant_id}",
            instance_discovery=False,
            http_client=self._http,
        )

    def _start_flow(self, tenant_id: UUID) -> dict[str, Any]:
        flow: dict[str, Any] = self._msal_application(tenant_id).initiate_auth_code_flow(
            [], redirect_uri=self._redirect_uri, prompt="select_account", response_mode="form_post"
        )
        return flow

    def _finish_flow(self, tenant_id: UUID, flow: dict[str, Any], answer: dict[str, str]) -> dict[str, Any]:
        result: dict[str, Any] = self._msal_application(tenant_id).acquire_token_by_auth_code_flow(flow, answer)
        return result

    def _cookie_name(self, purpose: str) -> str:
        # With this prefix, browsers refuse a cookie that another host of the domain has set.
        return f"__Host-backstop-{purpose}" if self._secure else f"backstop-{purpose}"

    def _write_cookie(self, response: Response, purpose: str, content: dict[str, Any], seconds: int) -> None:
        sealed = self._signer.seal(purpose, json.dumps({**content, "expires": time.time() + seconds}).encode())
        response.set_cookie(
            self._cookie_name(purpose),
            sealed,
            max_age=seconds,
            path="/",
            secure=self._secure,
            httponly=True,
            # Entra ID's page posts its answer, which browsers treat as a request from another site.
            samesite="none" if purpose == _FLOW and self._secure else "lax",
        )

    def _read_cookie(self, request: Request, purpose: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(
                self._signer.unseal(purpose, request.cookies.get(self._cookie_name(purpose), ""))
            )
        except (InvalidLinkError, ValueError):
            return None
        return content if content["expires"] > time.time() else None
