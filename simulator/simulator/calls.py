"""The way of every call from arrival to answer: counted, met by an ordered fault, performed, noted."""

from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import orjson
from aiohttp import web

from simulator.faults import Fault
from simulator.state import Entry, Kind, State
from simulator.tenant import Tenant


class RefusalError(Exception):
    """The service says no. Each protocol words it in its own shape."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the refusal."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class Call:
    """One call of a client, and the effects it had so far. The effects of a *quiet* one stay out of the ledger."""

    def __init__(self, state: State, request: web.Request, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self.state = state
        self.request = request
        self.tenant: Tenant | None = None
        self.app: str | None = None
        self.effects: list[Entry] = []
        self.warnings: list[str] = []

    def record(self, kind: Kind, entry: dict[str, Any]) -> Entry | None:
        """Write an effect of this call into the ledger, and return the entry."""
        if self._quiet:
            return None
        who = {"tenant": self.tenant.id if self.tenant else None, "app": self.app}
        self.effects.append(self.state.ledger.record(kind, {**who, **entry}))
        return self.effects[-1]

    def answered(self, status: int, outcome: str) -> None:
        """Note in the ledger what became of the answer."""
        for entry in self.effects:
            entry["answer"] = {"status": status, "outcome": outcome}


Perform = Callable[[Call], Awaitable[web.Response]]
Render = Callable[[Call, RefusalError], web.Response]


async def answer(call: Call, route: str, render: Render, perform: Perform) -> web.Response:
    """
    Answer *call* on *route*: perform it, or let a fault happen to it.

    *render* words a refusal in the protocol's shape. A call whose connection is to be dropped is answered into a
    closed connection.
    """
    ledger = call.state.ledger
    ledger.count_request(route)
    fault = call.state.faults.take(route)
    kind = fault.kind if fault else None
    if kind == "drop_before_effect":
        ledger.count_answer(route, "dropped")
        return _hang_up(call)
    try:
        if fault and kind in ("throttle", "error", "refuse"):
            raise _refusal(fault)
        response = await perform(call)
    except RefusalError as refusal:
        response = render(call, refusal)
    if kind == "drop_after_effect":
        call.answered(response.status, "dropped")
        ledger.count_answer(route, "dropped")
        return _hang_up(call)
    call.answered(response.status, "held" if kind == "timeout" else "sent")
    ledger.count_answer(route, response.status)
    if fault and kind == "timeout":
        await call.state.faults.hold(fault.seconds)
    return response


def _refusal(fault: Fault) -> RefusalError:
    message = fault.message or f"A fault was ordered: {fault.kind}."
    return RefusalError(fault.answer_status, fault.answer_code, message, fault.retry_after)


def _hang_up(call: Call) -> web.Response:
    if call.request.transport is not None:
        call.request.transport.abort()
    return web.Response(status=500)


def authenticate(call: Call, audience: str) -> tuple[Tenant, frozenset[str]]:
    """
    Check the call's bearer token for *audience* and return its tenant and app roles.

    Raises RefusalError 401 for no token, a bad one, one for another audience, and one of a user: only applications
    are served.
    """
    scheme, _, token = call.request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise RefusalError(401, "InvalidAuthenticationToken", "Access token is empty.")
    try:
        claims = call.state.keys.verify(token.strip(), audience)
    except jwt.ExpiredSignatureError as error:
        message = "Lifetime validation failed, the token is expired."
        raise RefusalError(401, "InvalidAuthenticationToken", message) from error
    except jwt.InvalidAudienceError as error:
        message = "Access token validation failure. Invalid audience."
        raise RefusalError(401, "InvalidAuthenticationToken", message) from error
    except jwt.InvalidTokenError as error:
        message = f"Access token validation failure: {error}."
        raise RefusalError(401, "InvalidAuthenticationToken", message) from error
    tenant = call.state.tenants.get(str(claims["tid"]))
    if tenant is None or claims["iss"] != call.state.issuer(tenant.id):
        raise RefusalError(401, "InvalidAuthenticationToken", "Access token validation failure. Invalid issuer.")
    if claims.get("idtyp") != "app":
        raise RefusalError(401, "InvalidAuthenticationToken", "The simulator serves app-only tokens.")
    call.tenant, call.app = tenant, str(claims.get("azp", ""))
    return tenant, frozenset(claims.get("roles", ()))


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON response."""
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


async def json_body(request: web.Request) -> Any:
    """Read the request's JSON; raise ValueError when it is none."""
    raw = await request.read()
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"The body is not JSON: {error}") from error
