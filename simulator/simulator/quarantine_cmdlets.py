"""
The cmdlets of the quarantine: Get-, Preview-, Export-, Release- and Delete-QuarantineMessage, and its policies.

Parameters and rules are those of the reference pages on Microsoft Learn; the fields of Preview-QuarantineMessage are
known from third-party code only.
"""

import base64
from collections.abc import Callable
from typing import Any

from simulator.calls import Call
from simulator.mail import bodies
from simulator.parameters import Cmdlet, CmdletError, Parameters, holds, matched, required, stamp, strings
from simulator.quarantine import QuarantinedMail, QuarantineError
from simulator.quarantine_listing import DATES, FILTERS, get_messages
from simulator.quarantine_permissions import required_role, with_permissions
from simulator.tenant import Row, Tenant

# Reading one mail


def _readable(call: Call, tenant: Tenant, identity: str) -> QuarantinedMail:
    try:
        mail = tenant.quarantine.find(identity)
        mail.check(call.state.clock.now())
    except QuarantineError as error:
        raise CmdletError(str(error), 404 if error.missing else 400) from error
    return mail


def _preview(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    required_role(call, tenant, parameters)
    mail = _readable(call, tenant, str(required(parameters, "Identity")))
    text, html = bodies(mail.raw)
    return [
        {
            "Identity": mail.identity,
            "ReceivedTime@data.type": "System.DateTime",
            "ReceivedTime": stamp(mail.received),
            "SenderAddress": mail.mail.sender,
            "RecipientAddress": list(mail.recipients),
            "Subject": mail.mail.subject,
            "Body": html or text,
            "IsHtml": bool(html),
        }
    ]


def _header(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    required_role(call, tenant, parameters)
    mail = _readable(call, tenant, str(required(parameters, "Identity")))
    header = mail.raw.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    return [{"Identity": mail.identity, "Header": header.decode("utf-8", "replace")}]


def _export(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    required_role(call, tenant, parameters)
    encoding = call.state.settings.exported_encoding
    rows = []
    for mail in [_readable(call, tenant, identity) for identity in _identities(parameters)]:
        eml = base64.b64encode(mail.raw).decode() if encoding == "Base64" else mail.raw.decode("utf-8", "replace")
        rows.append({"Identity": mail.identity, "Eml": eml, "BodyEncoding": encoding})
    return rows


# Acting


def _identities(parameters: Parameters) -> list[str]:
    """Return the Identities, which need an Identity beside them that is ignored, or the one Identity."""
    required(parameters, "Identity")
    return list(dict.fromkeys(strings(parameters, "Identities" if "Identities" in parameters else "Identity")))


def _addresses(parameters: Parameters, name: str) -> list[str] | None:
    return [address.lower() for address in strings(parameters, name)] if name in parameters else None


Act = Callable[[QuarantinedMail], tuple[str, ...]]


def _each(call: Call, tenant: Tenant, parameters: Parameters, action: str, act: Act, **more: Any) -> list[Row]:
    """
    Act on every mail that is named.

    One that fails does not keep the others from being acted on: what the admin API says then is a setting, since it
    is not documented. When all fail, the first reason is the error.
    """
    problems: list[QuarantineError] = []
    identities = _identities(parameters)
    for identity in identities:
        try:
            mail = tenant.quarantine.find(identity)
            recipients = act(mail)
        except QuarantineError as error:
            problems.append(error)
            call.warnings.append(f"{identity}: {error}")
            continue
        for recipient in recipients:
            call.record("quarantine_actions", {"action": action, **_named(mail), "recipient": recipient, **more})
    if problems and (len(problems) == len(identities) or call.state.settings.partly_failed == "error"):
        raise CmdletError(str(problems[0]), 404 if problems[0].missing else 400)
    return []


def _named(mail: QuarantinedMail) -> dict[str, Any]:
    return {
        "identity": mail.identity,
        "network_message_id": mail.network_message_id,
        "internet_message_id": mail.mail.internet_message_id,
    }


_NOBODY_NAMED = "You must either release the message to all recipients or to specific ones."


def _release(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """
    Release, deny or request. Without ActionType it is a release; without User as well, for all recipients.

    With ActionType, somebody has to be named.
    """
    required_role(call, tenant, parameters, "administrator")
    if "User" in parameters and "ReleaseToAll" in parameters:
        raise CmdletError("Parameter set cannot be resolved: specify either User or ReleaseToAll.")
    action = matched(parameters.get("ActionType", "Release"), ("Deny", "Release", "Request"))
    users, now, by = _addresses(parameters, "User"), call.state.clock.now(), call.app or ""
    if action is None:
        raise CmdletError("Cannot process argument transformation on parameter 'ActionType': Deny, Release or Request.")
    if "ActionType" in parameters and not users and "ReleaseToAll" not in parameters:
        identity = _identities(parameters)[0]
        raise CmdletError(f"Message '{identity}' could not be released. {_NOBODY_NAMED}")
    if action == "Deny":
        return _each(call, tenant, parameters, "deny", lambda mail: mail.deny(now, users))
    if action == "Request":
        return _each(call, tenant, parameters, "request", lambda mail: mail.request(now, users))
    stranger = next((user for user in users or [] if not tenant.accepts(user)), None)
    if stranger is not None:
        raise CmdletError(f"'{stranger}' is not an address of your organization.")
    allow, force, report = (name in parameters for name in ("AllowSender", "Force", "ReportFalsePositive"))
    if allow and not call.state.settings.allow_sender_available:
        raise CmdletError("The parameter 'AllowSender' can't be used here.")
    more = {"allow_sender": allow, "force": force, "report_false_positive": report}

    def act(mail: QuarantinedMail) -> tuple[str, ...]:
        return mail.release(now, by, users, force=force, report=report)

    return _each(call, tenant, parameters, "release", act, **more)


def _delete(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Delete for the named recipients, or all. Nobody is there to answer the prompt, so Confirm must be false."""
    required_role(call, tenant, parameters, "administrator")
    if parameters.get("Confirm") is not False:
        raise CmdletError("The command prompts for confirmation, which is not possible here: set Confirm to false.")
    users, now = _addresses(parameters, "RecipientAddress"), call.state.clock.now()
    hard = "HardDelete" in parameters
    return _each(call, tenant, parameters, "delete", lambda mail: mail.delete(now, users), hard=hard)


def _get_policies(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Return built-in and custom policies; the global one, for notifications, only if its type is requested."""
    kinds = ("QuarantinePolicy", "GlobalQuarantinePolicy")
    kind = matched(parameters.get("QuarantinePolicyType", kinds[0]), kinds) or ""
    rows = tenant.rows("Get-QuarantinePolicy") or []
    shape = call.state.settings.quarantine_permissions
    rows = [with_permissions(row, shape) for row in rows if row.get("QuarantinePolicyType", kinds[0]) == kind]
    if "Identity" not in parameters:
        return rows
    identity = str(parameters["Identity"])
    named = [row for row in rows if holds(row, "Identity", identity) or holds(row, "Name", identity)]
    if not named:
        message = f"The operation couldn't be performed because object '{identity}' couldn't be found on 'directory'."
        raise CmdletError(message, 404)
    return named


_ONE = {"Identity", "EntityType"}
_MANY = {*_ONE, "Identities"}

CMDLETS: dict[str, Cmdlet] = {
    "Get-QuarantineMessage": Cmdlet(
        get_messages,
        frozenset(
            {"Identity", "Page", "PageSize", "MyItems", "IncludeMessagesFromBlockedSenderAddress", *FILTERS, *DATES}
        ),
    ),
    "Preview-QuarantineMessage": Cmdlet(_preview, frozenset({*_ONE, "RecipientAddress"})),
    "Get-QuarantineMessageHeader": Cmdlet(_header, frozenset({*_ONE, "RecipientAddress"})),
    "Export-QuarantineMessage": Cmdlet(
        _export, frozenset({*_MANY, "ForceConversionToMime", "ReasonForExport", "RecipientAddress"})
    ),
    "Release-QuarantineMessage": Cmdlet(
        _release,
        frozenset({*_MANY, "ActionType", "AllowSender", "Force", "ReleaseToAll", "ReportFalsePositive", "User"}),
    ),
    "Delete-QuarantineMessage": Cmdlet(_delete, frozenset({*_MANY, "HardDelete", "RecipientAddress"})),
    "Get-QuarantinePolicy": Cmdlet(_get_policies, frozenset({"Identity", "QuarantinePolicyType"})),
}
