"""
The control routes of the quarantine: mail that Defender quarantines, and what users and admins do in Defender itself.

Nothing of it is written into the ledger.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from simulator.calls import json_body, json_response
from simulator.control import MailOrder, control_route, tenant_of
from simulator.mail import read_mail
from simulator.quarantine import (
    ADMIN_ONLY,
    POLICY_TYPES,
    QUARANTINE_TYPES,
    QuarantinedMail,
    QuarantineError,
    end_user_permissions,
    retention,
)
from simulator.quarantine_permissions import policy_value
from simulator.state import State
from simulator.tenant import Lower, Tenant

Act = Callable[[QuarantinedMail, "ActionOrder", datetime], tuple[str, ...]]


class QuarantineOrder(MailOrder):
    """
    A mail to quarantine, for those in its To and Cc unless *recipients* says otherwise.

    Each recipient gets a row of their own, or all share one with *one_row*. Policy, expiry and the rest follow from
    the quarantine type as they do by default at Microsoft.
    """

    recipients: list[Lower] = Field([])
    quarantine_type: str = "Spam"
    policy_type: str | None = None
    policy_name: str = "Default"
    quarantine_policy: str | None = Field(None, description="Name of a quarantine policy: TagName of the row.")
    received: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    direction: Literal["Inbound", "Outbound"] = "Inbound"
    recipient_tags: list[str] = Field([])
    network_message_id: Lower | None = Field(None, pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    one_row: bool = False
    columns: dict[str, Any] = Field({}, description="What Get-QuarantineMessage shows instead in columns of the row.")


class ActionOrder(BaseModel):
    """Whom it is about, all recipients when absent; *by* is the admin who acts."""

    model_config = ConfigDict(extra="forbid")

    recipients: list[Lower] | None = None
    by: str = "admin@contoso.example"


def add_routes(app: web.Application, state: State) -> None:
    """Serve the control routes of the quarantine."""
    serve = partial(control_route, app, state)
    root = "/tenants/{tenant}/quarantine"
    serve("GET", root, _list)
    serve("POST", root, _quarantine)
    serve("POST", f"{root}/{{network}}/requests", _action(_request))
    serve("POST", f"{root}/{{network}}/releases", _action(_release))
    serve("POST", f"{root}/{{network}}/denials", _action(_deny))
    serve("POST", f"{root}/{{network}}/deletions", _action(_delete))


async def _list(state: State, request: web.Request) -> web.Response:
    """Return the real state of all messages, regardless of the lag; includes expired and deleted ones."""
    tenant = tenant_of(state, request)
    return json_response({"quarantine": [_shown(mail, state.clock.now()) for mail in tenant.quarantine.all()]})


def _shown(mail: QuarantinedMail, now: datetime) -> dict[str, Any]:
    progress = mail.progress
    return {
        "identity": mail.identity,
        "network_message_id": mail.network_message_id,
        "internet_message_id": mail.mail.internet_message_id,
        "recipients": mail.recipients,
        "quarantine_type": mail.quarantine_type,
        "quarantine_policy": mail.policy,
        "received": mail.received.isoformat(),
        "expires": mail.expires.isoformat(),
        "expired": mail.expires <= now,
        "release_status": mail.release_status(progress),
        "released": progress.released,
        "released_by": progress.released_by,
        "requested": progress.requested,
        "deleted": progress.deleted,
    }


async def _quarantine(state: State, request: web.Request) -> web.Response:
    tenant, now = tenant_of(state, request), state.clock.now()
    order = QuarantineOrder.model_validate(await json_body(request))
    made = _mails(order, now)
    for mail in made:
        tenant.quarantine.add(mail, now)
    items = [{"identity": mail.identity, "recipients": mail.recipients} for mail in made]
    found = {"network_message_id": made[0].network_message_id, "internet_message_id": made[0].mail.internet_message_id}
    return json_response({**found, "items": items}, 201)


def _mails(order: QuarantineOrder, now: datetime) -> list[QuarantinedMail]:
    raw = order.raw()
    mail = read_mail(raw)
    if order.quarantine_type not in QUARANTINE_TYPES:
        raise ValueError(f"quarantine_type must be one of {', '.join(QUARANTINE_TYPES)}")
    recipients = tuple(dict.fromkeys(order.recipients or mail.recipients))
    if not recipients:
        raise ValueError("the mail names no recipients: recipients are needed")
    policy_type = order.policy_type or POLICY_TYPES.get(order.quarantine_type, "HostedContentFilterPolicy")
    usual = "AdminOnlyAccessPolicy" if order.quarantine_type in ADMIN_ONLY else "DefaultFullAccessPolicy"
    received = (order.received or now).astimezone(UTC)
    network = order.network_message_id or str(uuid4())
    return [
        QuarantinedMail(
            network_message_id=network,
            raw=raw,
            mail=mail,
            recipients=group,
            quarantine_type=order.quarantine_type,
            policy_type=policy_type,
            policy_name=order.policy_name,
            policy=order.quarantine_policy or usual,
            received=received,
            expires=order.expires or received + retention(policy_type),
            direction=order.direction,
            recipient_tags=tuple(order.recipient_tags),
            columns=order.columns,
        )
        for group in ([recipients] if order.one_row else [(recipient,) for recipient in recipients])
    ]


def _action(act: Act) -> Callable[[State, web.Request], Awaitable[web.Response]]:
    """Return a route that acts on the rows of one mail that have one of the ordered recipients."""

    async def handle(state: State, request: web.Request) -> web.Response:
        tenant, now = tenant_of(state, request), state.clock.now()
        order = ActionOrder.model_validate(await json_body(request) if request.body_exists else {})
        copies = [mail for mail in _copies(tenant, request) if _concerns(order, mail)]
        if not copies:
            raise ValueError("none of the recipients has this mail in quarantine")
        for mail in copies:
            _check_permitted(act, tenant, mail)
            act(mail, _narrowed(order, mail), now)
        return json_response({"quarantine": [_shown(mail, now) for mail in copies]}, 201)

    return handle


def _copies(tenant: Tenant, request: web.Request) -> list[QuarantinedMail]:
    try:
        return tenant.quarantine.copies(request.match_info["network"])
    except QuarantineError as error:
        raise web.HTTPNotFound(text=str(error)) from error


def _concerns(order: ActionOrder, mail: QuarantinedMail) -> bool:
    return order.recipients is None or bool(set(order.recipients) & set(mail.recipients))


def _narrowed(order: ActionOrder, mail: QuarantinedMail) -> ActionOrder:
    if order.recipients is None:
        return order
    return order.model_copy(update={"recipients": [r for r in order.recipients if r in mail.recipients]})


def _check_permitted(act: Act, tenant: Tenant, mail: QuarantinedMail) -> None:
    """Users ask only where the quarantine policy lets them ask or release."""
    allowed = end_user_permissions(policy_value(tenant, mail.policy), mail.quarantine_type)
    if act is _request and not (allowed["RequestRelease"] or allowed["Release"]):
        raise ValueError(f"The quarantine policy {mail.policy} does not let users request a release.")


def _request(mail: QuarantinedMail, order: ActionOrder, now: datetime) -> tuple[str, ...]:
    return mail.request(now, order.recipients)


def _release(mail: QuarantinedMail, order: ActionOrder, now: datetime) -> tuple[str, ...]:
    return mail.release(now, order.by, order.recipients)


def _deny(mail: QuarantinedMail, order: ActionOrder, now: datetime) -> tuple[str, ...]:
    return mail.deny(now, order.recipients)


def _delete(mail: QuarantinedMail, order: ActionOrder, now: datetime) -> tuple[str, ...]:
    return mail.delete(now, order.recipients)
