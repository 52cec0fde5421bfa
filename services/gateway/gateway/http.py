"""The HTTP routes of the gateway: those of the table, and the OpenAPI document that describes them."""

import re
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from fastapi import APIRouter, Depends, Request, Response

from chassis.entra import require
from chassis.request_limits import Body
from gateway.routing_table import ROUTES, Route
from gateway.upstream import Upstream


def make_router(
    upstreams: Mapping[str, Upstream], *, max_upload_bytes: int, upload_timeout_seconds: float
) -> APIRouter:
    """Return the routes of the table, forwarded to *upstreams*. The limits apply to routes that accept a message."""
    router = APIRouter()
    for route in ROUTES:
        router.add_api_route(
            # Only UUIDs match, so a parameter cannot inject anything into the path of the upstream.
            re.sub(r"{(\w+)}", r"{\1:uuid}", route.path),
            _make_endpoint(upstreams[route.upstream], route, max_upload_bytes, upload_timeout_seconds),
            methods=[route.method],
            dependencies=[Depends(require(*route.roles))],
            include_in_schema=False,
        )
    document = (files("backstop_contracts") / "openapi.json").read_bytes()
    router.add_api_route(
        "/openapi.json", lambda: Response(document, media_type="application/json"), include_in_schema=False
    )
    return router


def _make_endpoint(
    upstream: Upstream, route: Route, max_upload_bytes: int, upload_timeout_seconds: float
) -> Callable[[Request], Awaitable[Response]]:
    async def forward(request: Request) -> Response:
        if route.accepts_message:
            body: Body = request.scope[Body.KEY]
            body.allow(max_upload_bytes, upload_timeout_seconds)
        return await upstream.forward(request, route.path.format(**request.path_params))

    return forward
