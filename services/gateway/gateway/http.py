"""The gateway over HTTP: each route of the table, and one OpenAPI document for all of them."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from chassis.auth import require
from chassis.http import Problem
from chassis.limits import Body
from gateway.openapi import IncompleteError, merge
from gateway.routes import ROUTES, Route
from gateway.upstream import Upstream

OPENAPI_SECONDS = 60


def make_router(upstreams: Mapping[str, Upstream], *, upload_bytes: int, upload_seconds: float) -> APIRouter:
    """Make the routes of the table over *upstreams*; where a mail is taken, the body may be as large and slow."""
    router = APIRouter()
    for route in ROUTES:
        router.add_api_route(
            # A parameter that is no UUID is no route of ours: nothing else can get into an upstream's path.
            re.sub(r"{(\w+)}", r"{\1:uuid}", route.path),
            _forwarder(upstreams[route.upstream], route, upload_bytes, upload_seconds),
            methods=[route.method],
            dependencies=[Depends(require(*route.roles))],
            include_in_schema=False,
        )
    router.add_api_route(
        "/openapi.json", _document(upstreams), dependencies=[Depends(require())], include_in_schema=False
    )
    return router


def _forwarder(
    upstream: Upstream, route: Route, upload_bytes: int, upload_seconds: float
) -> Callable[[Request], Awaitable[Response]]:
    async def forward(request: Request) -> Response:
        if route.takes_mail:
            body: Body = request.scope[Body.KEY]
            body.allow(upload_bytes, upload_seconds)
        return await upstream.forward(request, route.path.format(**request.path_params))

    return forward


def _document(upstreams: Mapping[str, Upstream]) -> Callable[[Request], Awaitable[dict[str, Any]]]:
    """Merge the upstreams' documents at most once a minute; they are the same for every caller."""
    merged: dict[str, Any] = {}
    fresh_until = 0.0

    async def openapi(request: Request) -> dict[str, Any]:
        nonlocal merged, fresh_until
        if time.monotonic() > fresh_until:
            authorization = request.headers["authorization"]
            documents = await asyncio.gather(*(upstream.openapi(authorization) for upstream in upstreams.values()))
            try:
                merged = merge(dict(zip(upstreams, documents, strict=True)), ROUTES)
            except IncompleteError as error:
                raise Problem(502, "The services do not fit this gateway", f"{error}: run the same version") from None
            fresh_until = time.monotonic() + OPENAPI_SECONDS
        return merged

    return openapi
