"""HTTP as every service answers it: errors as problem details (RFC 9457), health, metrics, traces."""

import base64
import binascii
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry import trace
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import AfterValidator, AwareDatetime
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from chassis import telemetry
from chassis.postgres import POSSIBLY_TRANSIENT, is_transient, reason_of
from chassis.problem_details import Problem
from chassis.request_limits import LimitRequests
from chassis.settings import Limits

__all__ = ["Check", "Info", "Moment", "Problem", "in_utc", "make_api", "problems"]

log = structlog.get_logger()


class Info(str):
    """What a check reports without failing."""

    __slots__ = ()


Check = Callable[[], Awaitable[str | None]]
"""Returns what is wrong, or None if all is well. An `Info` is shown, and does not make the check fail."""

T = TypeVar("T")


def write_cursor(*parts: object) -> str:
    """Return the opaque cursor of a page, made of *parts*, none of which has a blank."""
    return base64.urlsafe_b64encode(" ".join(map(str, parts)).encode()).decode()


def read_cursor(cursor: str, read: Callable[[list[str]], T]) -> T:
    """Return what *read* makes of a cursor's parts. Raises Problem for anything that `write_cursor` has not made."""
    try:
        return read(base64.urlsafe_b64decode(cursor).decode().split(" "))
    except (ValueError, binascii.Error):
        raise Problem(422, "invalid-cursor", "Use `next_cursor` of an answer as it is, or no cursor.") from None


def in_utc(moment: datetime) -> datetime:
    """Return *moment* in UTC. Raises ValueError for one without a zone, or outside the years 1 to 9999 in UTC."""
    if moment.tzinfo is None:
        raise ValueError("the time has no zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC the time is outside the years 1 to 9999") from None


Moment = Annotated[AwareDatetime, AfterValidator(in_utc)]
"""A time that PostgreSQL takes, in UTC. For every time in a query or a body."""

FRAMEWORK_PROBLEMS = {
    400: ("unreadable-body", "The body could not be parsed. Nothing was saved."),
    404: ("not-found", "There is nothing at this address."),
    405: ("method-not-allowed", "This address does not take this method; `Allow` names those that it takes."),
}
"""Type and detail of what Starlette and FastAPI answer by themselves."""
_MOST_ERRORS = 20
_LONGEST_ERROR = 200

_PROBLEM = {
    "type": "object",
    "description": "Problem details (RFC 9457): what happened, what was saved, what to do.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "Stays the same for good: branch on it."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "results": {"type": "array", "description": "Of actions: the outcome for each message.", "items": {}},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["where", "what"],
                "properties": {"where": {"type": "string"}, "what": {"type": "string"}},
            },
        },
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of these *statuses* as problem details."""
    content = {"application/problem+json": {"schema": _PROBLEM}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def make_api(
    *,
    title: str,
    description: str,
    ready: Mapping[str, Check],
    alive: Mapping[str, Check],
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> FastAPI:
    """
    Make the FastAPI application of a service. Serve it with `chassis.service.server`, or not all of *limits* hold.

    It has GET /livez, /readyz and /metrics, which need no token; *ready* and *alive* are the named checks behind the
    first two. Every error leaves as problem details. PostgreSQL being away is 503 with Retry-After.
    """
    api = FastAPI(
        title=title,
        description=description,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_refuse_unknown_parameters)],
        # A request is one span, of _TraceMiddleware; FastAPI's own would be five more.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    api.state.limits = limits
    api.add_middleware(_TraceMiddleware)
    api.add_middleware(LimitRequests, limits=limits)
    api.add_exception_handler(Problem, _on_problem)
    api.add_exception_handler(HTTPException, _on_http_exception)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    # Named one by one, because what is handled as Exception is raised again after the answer.
    for kind in POSSIBLY_TRANSIENT:
        api.add_exception_handler(kind, _on_possibly_transient)
    api.add_exception_handler(Exception, _on_exception)

    @api.get("/livez", include_in_schema=False)
    async def livez() -> Response:
        return await _report(alive)

    @api.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        return await _report(ready)

    @api.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return api


async def _refuse_unknown_parameters(request: Request) -> None:
    """
    Reject unknown query parameters, and repeated ones that take a single value.

    A misspelt filter would otherwise match everything. Routes outside the document, such as the gateway's, check their
    parameters themselves.
    """
    if not request.query_params:
        return
    path = request.app.openapi()["paths"].get(request.scope["route"].path_format, {})
    operation = path.get(request.method.lower())
    if operation is None:
        return
    known = {one["name"]: one["schema"] for one in operation.get("parameters", ()) if one["in"] == "query"}
    given = Counter(name for name, _ in request.query_params.multi_items())
    wrong = {name: "Unknown parameter" for name in given if name not in known}
    wrong |= {
        name: "Given more than once" for name in given.keys() - wrong if given[name] > 1 and _is_single(known[name])
    }
    if wrong:
        errors = [{"where": _shortened(f"query.{name}"), "what": wrong[name]} for name in sorted(wrong)[:_MOST_ERRORS]]
        raise Problem(422, "invalid-request", "Nothing was saved. See `errors`.", errors=errors)


def _is_single(schema: Mapping[str, Any]) -> bool:
    return not any(one.get("type") == "array" for one in (schema, *schema.get("anyOf", ())))


async def _report(checks: Mapping[str, Check]) -> Response:
    results = {name: await check() or "ok" for name, check in checks.items()}
    good = all(result == "ok" or isinstance(result, Info) for result in results.values())
    return JSONResponse(results, status_code=200 if good else 503)


async def _on_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - Starlette dispatches by type
    return error.response()


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette dispatches by type
    name, detail = FRAMEWORK_PROBLEMS.get(error.status_code, ("unexpected-status", str(error.detail)))
    return Problem(error.status_code, name, detail, headers=error.headers).response()


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - Starlette dispatches by type
    errors = [
        {"where": _shortened(".".join(map(str, e["loc"]))), "what": _shortened(e["msg"])}
        for e in error.errors()[:_MOST_ERRORS]
    ]
    return Problem(422, "invalid-request", "Nothing was saved. See `errors`.", errors=errors).response()


def _shortened(text: str) -> str:
    """Return the beginning of what may be the client's own words, without what UTF-8 cannot encode: lone surrogates."""
    return text[:_LONGEST_ERROR].encode(errors="replace").decode()


async def _on_possibly_transient(request: Request, error: Exception) -> Response:
    if not is_transient(error):
        raise error
    log.warning("request.refused", route=route_of(request.scope), error=type(error).__name__, reason=reason_of(error))
    return Problem(
        503, "database-unavailable", "Send the same request again; a report counts once.", retry_after=5
    ).response()


async def _on_exception(_request: Request, _error: Exception) -> Response:
    return Problem(500, "internal-server-error", "The failure was logged with the trace id of this request.").response()


def route_of(scope: Scope) -> str:
    """Return the template of the route that a request has met: its path may hold the token of a link."""
    route = scope.get("route")
    return getattr(route, "path_format", "") or "unmatched"


class _TraceMiddleware:
    """Run each request as a span below the caller's traceparent, named by its method and route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        with telemetry.span(scope["method"], parent):
            try:
                await self._app(scope, receive, send)
            except Exception:
                log.exception("request.failed", route=route_of(scope))
                raise
            finally:
                # The router has found the route by now.
                trace.get_current_span().update_name(f"{scope['method']} {route_of(scope)}")
