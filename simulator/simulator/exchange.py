"""
Exchange Online's admin API, `InvokeCommand`: the envelope around cmdlets.

The interface is what the ExchangeOnlineManagement module uses; Microsoft does not document it. What is imitated here
was measured by others: the nested error shape with a generic outer message, 403 with NUL bytes instead of JSON, the
type annotations beside properties, and a next link that can't be replayed.
"""

import re
from typing import Any

from aiohttp import web

from simulator.calls import Call, RefusalError, answer, authenticate, json_body, json_response
from simulator.cmdlets import canonical, invoke
from simulator.parameters import CmdletError
from simulator.state import State
from simulator.tenant import Row, Tenant
from simulator.tokens import EXCHANGE

PATH = "/adminapi/beta/{tenant}/InvokeCommand"
ROLE = "Exchange.ManageAsApp"

_DEFAULT_PAGE = 1000
_PAGE = re.compile(r"odata\.maxpagesize=(\d+)", re.IGNORECASE)
_EXCEPTIONS = {
    400: "Microsoft.Exchange.Configuration.Tasks.TaskException",
    404: "Microsoft.Exchange.Configuration.Tasks.ManagementObjectNotFoundException",
}


def add_routes(app: web.Application, state: State) -> None:
    """Serve the admin API under `/adminapi/beta/{tenant}/InvokeCommand`. The route's name is `exchange.<Cmdlet>`."""

    async def handle(request: web.Request) -> web.Response:
        call = Call(state, request)
        name, parameters = await _command(request)
        tenant = state.tenants.get(request.match_info["tenant"].lower())
        cmdlet = canonical(tenant, name) if tenant else None

        async def perform(call: Call) -> web.Response:
            allowed = _authorized(call)
            if cmdlet is None:
                raise RefusalError(403, "Forbidden", f"There is no cmdlet '{name}'.")
            return _performed(call, allowed, cmdlet, parameters)

        return await answer(call, f"exchange.{cmdlet or name or 'unknown'}", render, perform)

    app.router.add_post(PATH, handle)


async def _command(request: web.Request) -> tuple[str, Any]:
    """Return the cmdlet's name and its parameters; the name is empty when the body has no command."""
    try:
        body = await json_body(request)
    except ValueError:
        return "", None
    command = body.get("CmdletInput") if isinstance(body, dict) else None
    if not isinstance(command, dict) or not isinstance(command.get("CmdletName"), str):
        return "", None
    return command["CmdletName"], command.get("Parameters", {})


def _authorized(call: Call) -> Tenant:
    tenant, roles = authenticate(call, EXCHANGE)
    if call.request.match_info["tenant"].lower() != tenant.id or ROLE not in roles:
        raise RefusalError(401, "Unauthorized", "The token does not open this tenant's Exchange Online.")
    app = tenant.settings.app(call.app or "")
    if app is not None and not app.exchange_role:
        raise RefusalError(403, "Forbidden", "The application has no directory role.")
    return tenant


def _performed(call: Call, tenant: Tenant, cmdlet: str, parameters: Any) -> web.Response:
    if "$skiptoken" in call.request.query:
        raise RefusalError(400, "BadRequest", "Expired or Invalid pagination request.")
    if not isinstance(parameters, dict):
        raise RefusalError(400, "BadRequest", "The property 'Parameters' must be an object.")
    try:
        rows = invoke(call, tenant, cmdlet, parameters)
    except CmdletError as error:
        code = "NotFound" if error.status == 404 else "BadRequest"
        raise RefusalError(error.status, code, str(error)) from error
    found = _PAGE.search(",".join(call.request.headers.getall("Prefer", [])))
    size = int(found[1]) if found and int(found[1]) else _DEFAULT_PAGE
    body: dict[str, Any] = {
        "@odata.context": f"{EXCHANGE}/adminapi/beta/{tenant.id}/$metadata#Collection(Exchange.GenericHashTable)",
        "adminapi.warnings@odata.type": "#Collection(String)",
        "@adminapi.warnings": call.warnings,
    }
    if len(rows) > size:
        body["@odata.nextLink"] = f"{call.request.url.origin()}{call.request.path}?$skiptoken={size}"
    body["value"] = [_annotated(row) for row in rows[:size]]
    return json_response(body)


def _annotated(row: Row) -> Row:
    """*row* with the type annotations that travel beside its properties."""
    annotated: Row = {}
    for name, value in row.items():
        if isinstance(value, list):
            annotated[f"{name}@odata.type"] = "#Collection(String)"
        elif isinstance(value, bool):
            annotated[f"{name}@data.type"] = "System.Boolean"
        annotated[name] = value
    return annotated


def render(_call: Call, refusal: RefusalError) -> web.Response:
    """Word a refusal as the admin API does."""
    if refusal.status == 401:
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="", error="{refusal.code}"'})
    if refusal.status == 403:
        return web.Response(body=bytes(32), status=403, content_type="application/json")
    kind = _EXCEPTIONS.get(refusal.status, _EXCEPTIONS[400])
    body = {
        "error": {
            "code": refusal.code,
            "message": "Invalid Operation",
            "details": [{"code": "Context", "target": "", "message": f"|{kind}|{refusal.message}"}],
            "innererror": {
                "message": "Error executing cmdlet",
                "type": "Microsoft.Exchange.Admin.OData.Core.ODataServiceException",
                "stacktrace": "",
                "internalexception": {"message": refusal.message, "type": kind, "stacktrace": ""},
            },
        },
        "adminapi.warnings@odata.type": "#Collection(String)",
        "@adminapi.warnings": [],
    }
    return json_response(body, refusal.status, refusal.headers)
