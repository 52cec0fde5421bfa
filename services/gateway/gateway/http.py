"""The gateway over HTTP: each route of the table, and the OpenAPI document that describes them."""

import re
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from fastapi import APIRouter, Depends, Request, Response

from chassis.entra import require
from chassis.limits import Body
from gateway.routes import ROUTES, Route
from gateway.upstream import Upstream


def make_router(upstreams: Mapping[str, Upstream], *, upload_bytes: int, upload_timeout_seconds: float) -> APIRouter:
    """Make the routes of the table over *upstreams*; where a mail is taken, the body may be as large and slow."""
    router = APIRouter()
    for route in ROUTES:
        router.add_api_route(
            # A parameter that is no UUID is no route of ours: nothing else can get into an upstream's path.
            re.sub(r"{(\w+)}", r"{\1:uuid}", route.path),
            _forwarder(upstreams[route.upstream], route, upload_bytes, upload_timeout_seconds),
            methods=[route.method],
            dependencies=[Depends(require(*route.roles))],
            include_in_schema=False,
        )
    document = (files("backstop_contracts") / "openapi.json").read_bytes()
    router.add_api_route(
        "/openapi.json", lambda: Response(document, media_type="application/json"), include_in_schema=False
    )
    return router


def _forwarder(
    upstream: Upstream, route: Route, upload_bytes: int, upload_timeout_seconds: float
) -> Callable[[Request], Awaitable[Response]]:
    async def forward(request: Request) -> Response:
        if route.takes_mail:
            body: Body = request.scope[Body.KEY]
            body.allow(upload_bytes, upload_timeout_seconds)
        return await upstream.forward(request, route.path.format(**request.path_params))

    return forward
