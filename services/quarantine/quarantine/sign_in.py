"""Sign users in with Entra ID before a link shows anything: OpenID Connect, the code flow with PKCE, by MSAL."""

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
    """Entra ID did not say who this is."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who signed in. `name` is for display only."""

    tenant_id: UUID
    oid: str
    name: str | None


class SignIn:
    """
    Signs people in, for an hour, by cookies that only this service can write.

    *client_id* is a web application in Entra ID with the redirect address `<public_url>/q/signed-in`. The cookies are
    for the host alone; they are not sent with requests that other sites cause, but for following a link.
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
            # REQUESTS_CA_BUNDLE would win over `verify`.
            self._http.trust_env = False
        self._secure = urlsplit(public_url).scheme == "https"
        self._graph = graph

    def close(self) -> None:
        """Let go of the connections to Entra ID."""
        self._http.close()

    def person(self, request: Request) -> Person | None:
        """Return who has signed in; None when nobody has, or too long ago."""
        held = self._read(request, _SESSION)
        return Person(UUID(held["tid"]), held["oid"], held["name"]) if held else None

    async def start(self, response: Response, tenant_id: UUID, token: str) -> str:
        """Return the address at Entra ID to go to, and have *response* remember the way back to the link *token*."""
        try:
            flow = await asyncio.to_thread(self._begin, tenant_id)
        except (requests.RequestException, ValueError) as error:
            log.warning("sign_in.unavailable", error=type(error).__name__)
            raise SignInError from None
        self._write(response, _FLOW, {"flow": flow, "tid": str(tenant_id), "token": token}, FLOW_SECONDS)
        return str(flow["auth_uri"])

    async def finish(self, request: Request, response: Response, answer: dict[str, str]) -> str:
        """Take Entra ID's *answer*; returns the token of the link to go on with. Raises SignInError."""
        held = self._read(request, _FLOW)
        if held is None:
            raise SignInError
        tenant_id = UUID(held["tid"])
        try:
            result = await asyncio.to_thread(self._end, tenant_id, held["flow"], answer)
        except (requests.RequestException, ValueError) as error:
            # ValueError: the state is not ours, so this answer is for somebody else's browser.
            log.warning("sign_in.failed", error=type(error).__name__)
            raise SignInError from None
        claims = result.get("id_token_claims")
        if not claims or str(claims.get("tid")) != str(tenant_id) or not claims.get("oid"):
            # The browser sends this code, so it may be anything.
            code = str(result.get("error", ""))
            log.warning("sign_in.failed", error=code if re.fullmatch("[a-z_]{1,40}", code) else "unknown")
            raise SignInError
        session = {"tid": str(tenant_id), "oid": str(claims["oid"]), "name": claims.get("preferred_username")}
        self._write(response, _SESSION, session, SESSION_SECONDS)
        response.delete_cookie(self._name(_FLOW), path="/", secure=self._secure, httponly=True, samesite="lax")
        return str(held["token"])

    async def is_recipient(self, person: Person, tenant_id: UUID, recipient: str) -> bool:
        """Tell whether *person* is the user with the mailbox *recipient*, by object id. Raises one of M365Error."""
        if person.tenant_id != tenant_id:
            return False
        try:
            user = await self._graph.get(tenant_id, "/v1.0/users/{user}", {"$select": "id"}, ids={"user": recipient})
        except Refused:
            return False
        return str(user.get("id", "")).lower() == person.oid.lower()

    def _application(self, tenant_id: UUID) -> Any:
        return ConfidentialClientApplication(
            self._client_id,
            client_credential=self._client_secret,
            authority=f"{self._authority}/{tenant_id}",
            instance_discovery=False,
            http_client=self._http,
        )

    def _begin(self, tenant_id: UUID) -> dict[str, Any]:
        flow: dict[str, Any] = self._application(tenant_id).initiate_auth_code_flow(
            [], redirect_uri=self._redirect_uri, prompt="select_account", response_mode="form_post"
        )
        return flow

    def _end(self, tenant_id: UUID, flow: dict[str, Any], answer: dict[str, str]) -> dict[str, Any]:
        result: dict[str, Any] = self._application(tenant_id).acquire_token_by_auth_code_flow(flow, answer)
        return result

    def _name(self, purpose: str) -> str:
        # The prefix makes browsers refuse a cookie that another host of the domain has set.
        return f"__Host-backstop-{purpose}" if self._secure else f"backstop-{purpose}"

    def _write(self, response: Response, purpose: str, content: dict[str, Any], seconds: int) -> None:
        sealed = self._signer.seal(purpose, json.dumps({**content, "until": time.time() + seconds}).encode())
        response.set_cookie(
            self._name(purpose),
            sealed,
            max_age=seconds,
            path="/",
            secure=self._secure,
            httponly=True,
            # Entra ID's page posts its answer, and a browser sends that from another site.
            samesite="none" if purpose == _FLOW and self._secure else "lax",
        )

    def _read(self, request: Request, purpose: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(
                self._signer.unseal(purpose, request.cookies.get(self._name(purpose), ""))
            )
        except (InvalidLinkError, ValueError):
            return None
        return content if content["until"] > time.time() else None
