"""What all of Microsoft Graph has in common: permissions, the shape of errors, query options, times."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from aiohttp import web

from simulator.calls import Call, RefusalError, authenticate, json_body, json_response
from simulator.tenant import Tenant
from simulator.tokens import GRAPH


def render(call: Call, refusal: RefusalError) -> web.Response:
    """Word a refusal as Graph does."""
    request_id = str(uuid4())
    inner: dict[str, Any] = {
        "date": call.state.clock.now().strftime("%Y-%m-%dT%H:%M:%S"),
        "request-id": request_id,
        "client-request-id": call.request.headers.get("client-request-id") or request_id,
    }
    if refusal.status == 429:
        inner |= {"code": "429", "message": "Please retry after", "status": "429"}
    body = {"error": {"code": refusal.code, "message": refusal.message, "innerError": inner}}
    return json_response(body, refusal.status, {**refusal.headers, "request-id": request_id})


def authorized(call: Call, roles: Iterable[str]) -> Tenant:
    """Return the caller's tenant; refuse an app that has none of *roles*."""
    tenant, granted = authenticate(call, GRAPH)
    if not granted & set(roles):
        message = f"The application needs one of these permissions: {', '.join(roles)}."
        raise RefusalError(403, "Forbidden", message)
    return tenant


def bad(message: str) -> RefusalError:
    """Return a refusal with 400."""
    return RefusalError(400, "BadRequest", message)


async def json_object(call: Call) -> dict[str, Any]:
    """Read the JSON object of the request's body."""
    try:
        body = await json_body(call.request)
    except ValueError as error:
        raise bad("Unable to read JSON request payload. Please ensure Content-Type header is set.") from error
    if not isinstance(body, dict):
        raise bad("Unable to read JSON request payload: an object is expected.")
    return body


def only_options(call: Call, options: set[str]) -> None:
    """Refuse every query option that is not one of *options*."""
    other = sorted(set(call.request.query) - options)
    if other:
        raise bad(f"The query option '{other[0]}' is not served for this resource.")


def stamp(moment: datetime) -> str:
    """Write a time as Graph does."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "0Z")
