"""
The control routes under `/simulator`: set up tenants and mailboxes, order faults, read the ledger.

They need no token, and their effects are not recorded in the ledger.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from simulator.calls import Call, json_body, json_response
from simulator.cmdlets import invoke
from simulator.faults import Fault
from simulator.graph_submissions import make_submission
from simulator.mail import NotAMailError, bodies, read_mail
from simulator.parameters import CmdletError
from simulator.settings import Settings
from simulator.state import State
from simulator.tenant import Mailbox, Tenant, TenantSettings
from simulator.tokens import GRAPH, TokenOrder, ordered_token

Handle = Callable[[State, web.Request], Awaitable[web.Response]]


class ClockOrder(BaseModel):
    """How far to advance the clock. It never goes back."""

    model_config = ConfigDict(extra="forbid")

    advance_seconds: float = Field(ge=0)


class MailOrder(BaseModel):
    """A mail: as text or in base64."""

    model_config = ConfigDict(extra="forbid")

    eml: str | None = None
    eml_base64: str | None = None

    def raw(self) -> bytes:
        """Return the mail's bytes; ValueError when there are none."""
        if self.eml_base64 is not None:
            return base64.b64decode(self.eml_base64, validate=True)
        if self.eml is None:
            raise ValueError("either eml or eml_base64 is needed")
        return self.eml.encode()


class MessageOrder(MailOrder):
    """A mail to put into a mailbox."""

    user: str
    message_id: str | None = None


class ReportOrder(MessageOrder):
    """A mail that *user* reported with Outlook's button."""

    category: Literal["notJunk", "spam", "phishing", "malware"] = "phishing"


class MailboxOrder(BaseModel):
    """The settings of a mailbox; what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    trusted: list[str] | None = None
    trusted_recipients: list[str] | None = None
    blocked: list[str] | None = None
    contacts: list[str] | None = None
    enabled: bool | None = None
    contacts_trusted: bool | None = None
    trusted_lists_only: bool | None = None


def control_route(app: web.Application, state: State, method: str, path: str, handle: Handle) -> None:
    """Serve *handle* under `/simulator`; a wrong order is answered 400 with the reason."""

    async def guarded(request: web.Request) -> web.Response:
        try:
            return await handle(state, request)
        except (ValidationError, CmdletError, NotAMailError, binascii.Error, ValueError) as error:
            return json_response({"error": str(error)}, 400)

    app.router.add_route(method, f"/simulator{path}", guarded)


def add_routes(app: web.Application, state: State) -> None:
    """Serve the control routes."""
    serve = partial(control_route, app, state)
    tenant = "/tenants/{tenant}"
    serve("GET", "/settings", _read_settings)
    serve("PATCH", "/settings", _change_settings)
    serve("GET", "/tenants", _list_tenants)
    serve("POST", "/tenants", _add_tenant)
    serve("GET", tenant, _read_tenant)
    serve("PATCH", tenant, _change_tenant)
    serve("POST", f"{tenant}/messages", _put_message)
    serve("DELETE", f"{tenant}/messages/{{user}}/{{message}}", _delete_message)
    serve("POST", f"{tenant}/user-reports", _report)
    serve("POST", f"{tenant}/allow-block-list", _add_to_list)
    serve("GET", f"{tenant}/mailboxes/{{address}}", _read_mailbox)
    serve("PATCH", f"{tenant}/mailboxes/{{address}}", _change_mailbox)
    serve("GET", f"{tenant}/mails/{{number}}", _read_sent)
    serve("POST", "/tokens", _order_token)
    serve("POST", "/keys/rotate", _rotate_keys)
    serve("GET", "/faults", _read_faults)
    serve("POST", "/faults", _order_faults)
    serve("DELETE", "/faults", _clear_faults)
    serve("GET", "/clock", _read_clock)
    serve("POST", "/clock", _advance_clock)
    serve("GET", "/ledger", _read_ledger)
    serve("POST", "/reset", _reset)


def tenant_of(state: State, request: web.Request) -> Tenant:
    """Return the tenant that the path names, or answer 404."""
    found = state.tenants.get(request.match_info["tenant"].lower())
    if found is None:
        raise web.HTTPNotFound(text="There is no such tenant.")
    return found


async def _fields(request: web.Request) -> dict[str, Any]:
    body = await json_body(request)
    if not isinstance(body, dict):
        raise ValueError("The body must be a JSON object.")  # noqa: TRY004 - the value is the client's
    return body


async def _read_settings(state: State, _request: web.Request) -> web.Response:
    return json_response(state.settings.model_dump())


async def _change_settings(state: State, request: web.Request) -> web.Response:
    changed = Settings.model_validate({**state.settings.model_dump(), **await _fields(request)})
    state.settings = changed
    return json_response(changed.model_dump())


async def _list_tenants(state: State, _request: web.Request) -> web.Response:
    return json_response({"tenants": [tenant.settings.model_dump() for tenant in state.tenants.values()]})


async def _add_tenant(state: State, request: web.Request) -> web.Response:
    tenant = state.add_tenant(TenantSettings.model_validate(await json_body(request)))
    return json_response(tenant.settings.model_dump(), 201)


async def _read_tenant(state: State, request: web.Request) -> web.Response:
    return json_response(tenant_of(state, request).settings.model_dump())


async def _change_tenant(state: State, request: web.Request) -> web.Response:
    """Replace what is named; `cmdlets` and `verdicts` are merged by name, and null takes one back."""
    tenant = tenant_of(state, request)
    current, wanted = tenant.settings.model_dump(), await _fields(request)
    for name in ("cmdlets", "verdicts"):
        if name in wanted:
            merged = {**current[name], **wanted[name]}
            wanted[name] = {key: value for key, value in merged.items() if value is not None}
    tenant.settings = TenantSettings.model_validate({**current, **wanted, "id": tenant.id})
    return json_response(tenant.settings.model_dump())


async def _put_message(state: State, request: web.Request) -> web.Response:
    tenant = tenant_of(state, request)
    order = MessageOrder.model_validate(await json_body(request))
    raw = order.raw()
    mailbox = _mailbox(tenant, order.user)
    mail = read_mail(raw)
    message_id = order.message_id or "AAMk" + mail.sha256[:40]
    mailbox.messages[message_id] = raw
    return json_response(
        {
            "user_id": mailbox.user_id,
            "message_id": message_id,
            "message_url": f"{GRAPH}/beta/users/{mailbox.user_id}/messages/{message_id}",
            "internet_message_id": mail.internet_message_id,
        },
        201,
    )


def _mailbox(tenant: Tenant, user: str) -> Mailbox:
    return tenant.mailbox(user) or tenant.add_mailbox(user)


async def _delete_message(state: State, request: web.Request) -> web.Response:
    mailbox = tenant_of(state, request).mailbox(request.match_info["user"])
    if mailbox is None or mailbox.messages.pop(request.match_info["message"], None) is None:
        raise web.HTTPNotFound(text="There is no such message.")
    return web.Response(status=204)


async def _report(state: State, request: web.Request) -> web.Response:
    """Make a submission as Outlook's button does: `source` is user, `createdBy` the reporter, and no limit applies."""
    tenant = tenant_of(state, request)
    order = ReportOrder.model_validate(await json_body(request))
    mailbox = _mailbox(tenant, order.user)
    creator: dict[str, str | None] = {"id": mailbox.user_id, "displayName": mailbox.address, "email": mailbox.address}
    kind = "#microsoft.graph.security.emailContentThreatSubmission"
    mail = read_mail(order.raw())
    submission = make_submission(tenant, state, mail, mailbox.address, order.category, "user", kind, creator)
    return json_response({"id": submission.id}, 201)


async def _add_to_list(state: State, request: web.Request) -> web.Response:
    """Add entries, given the parameters of New-TenantAllowBlockListItems."""
    call = Call(state, request, quiet=True)
    rows = invoke(call, tenant_of(state, request), "New-TenantAllowBlockListItems", await _fields(request))
    return json_response({"value": rows}, 201)


async def _read_mailbox(state: State, request: web.Request) -> web.Response:
    return json_response(_shown(_mailbox(tenant_of(state, request), request.match_info["address"])))


async def _change_mailbox(state: State, request: web.Request) -> web.Response:
    order = MailboxOrder.model_validate(await json_body(request))
    mailbox = _mailbox(tenant_of(state, request), request.match_info["address"])
    for name, value in order.model_dump(exclude_none=True).items():
        setattr(mailbox, name, value)
    return json_response(_shown(mailbox))


def _shown(mailbox: Mailbox) -> dict[str, Any]:
    fields = MailboxOrder.model_fields
    shown = {name: getattr(mailbox, name) for name in fields}
    return {"address": mailbox.address, "user_id": mailbox.user_id, **shown, "messages": list(mailbox.messages)}


async def _read_sent(state: State, request: web.Request) -> web.Response:
    """Return a sent message by the number of its ledger entry."""
    sent = tenant_of(state, request).mails.get(int(request.match_info["number"]))
    if sent is None:
        raise web.HTTPNotFound(text="There is no such mail.")
    mail, (text, html) = read_mail(sent.raw), bodies(sent.raw)
    return json_response(
        {
            "sender": sent.sender,
            "recipients": sent.recipients,
            "subject": sent.subject,
            "internet_message_id": sent.internet_message_id,
            "sha256": mail.sha256,
            "text": text,
            "html": html,
            "links": [{"url": link.url, "text": link.text} for link in mail.links],
            "eml_base64": base64.b64encode(sent.raw).decode(),
        }
    )


async def _order_token(state: State, request: web.Request) -> web.Response:
    order = TokenOrder.model_validate(await json_body(request))
    tenant = (order.tenant or next(iter(state.tenants))).lower()
    token = await asyncio.to_thread(ordered_token, state.keys, order, tenant, state.issuer(tenant))
    return json_response({"access_token": token}, 201)


async def _rotate_keys(state: State, _request: web.Request) -> web.Response:
    return json_response({"kid": await asyncio.to_thread(state.keys.rotate)}, 201)


async def _read_faults(state: State, _request: web.Request) -> web.Response:
    return json_response({"faults": state.faults.listed()})


async def _order_faults(state: State, request: web.Request) -> web.Response:
    state.faults.order(TypeAdapter(list[Fault]).validate_python(await json_body(request)))
    return json_response({"faults": state.faults.listed()}, 201)


async def _clear_faults(state: State, _request: web.Request) -> web.Response:
    state.faults.clear()
    return web.Response(status=204)


async def _read_clock(state: State, _request: web.Request) -> web.Response:
    return json_response({"now": state.clock.now().isoformat()})


async def _advance_clock(state: State, request: web.Request) -> web.Response:
    order = ClockOrder.model_validate(await json_body(request))
    return json_response({"now": state.clock.advance(order.advance_seconds).isoformat()})


async def _read_ledger(state: State, request: web.Request) -> web.Response:
    """Read `?tenant=<id>` for one tenant's entries, `?after=<number>` for later ones."""
    return json_response(state.ledger.contents(request.query.get("tenant"), int(request.query.get("after", "0"))))


async def _reset(state: State, _request: web.Request) -> web.Response:
    state.reset()
    return web.Response(status=204)
