"""
The cmdlets of the quarantine: Get-, Preview-, Export-, Release- and Delete-QuarantineMessage, and its policies.

Parameters and rules are those of the reference pages on Microsoft Learn. How a row looks on the wire was measured by
others; the fields of Preview-QuarantineMessage are known from third-party code only.
"""

import base64
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

from simulator.calls import Call, RefusalError
from simulator.mail import bodies
from simulator.parameters import Cmdlet, CmdletError, Parameters, holds, matched, moment, required, stamp, strings
from simulator.quarantine import (
    PERMISSIONS,
    QUARANTINE_TYPES,
    Progress,
    QuarantinedMail,
    QuarantineError,
    end_user_permissions,
    read_permissions,
    written_permissions,
)
from simulator.tenant import Row, Tenant

DEFAULT_DAYS, LONGEST_DAYS = 16, 30
_STRING, _NUMBER = "EndUserQuarantinePermissions", "EndUserQuarantinePermissionsValue"

Role = Literal["reader", "administrator"]
_ROLES: dict[str | None, Role] = {"Security Reader": "reader", "Security Administrator": "administrator"}

_STATUSES = ("Approved", "Denied", "Error", "NotReleased", "PreparingToRelease", "Released", "Requested")
_POLICY_TYPES = (
    "AntiMalwarePolicy",
    "AntiPhishPolicy",
    "DataLossPreventionRule",
    "ExchangeTransportRule",
    "HostedContentFilterPolicy",
    "SafeAttachmentPolicy",
)
_ENTITY_TYPES = ("Email", "SharePointOnline", "Teams", "DataLossPrevention")

# Parameter: column of the row, and the members when it is an enumeration.
_FILTERS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "Direction": ("Direction", ("Inbound", "Outbound")),
    "EntityType": ("EntityType", _ENTITY_TYPES),
    "MessageId": ("MessageId", None),
    "PolicyName": ("PolicyName", None),
    "PolicyTypes": ("PolicyType", _POLICY_TYPES),
    "QuarantineTypes": ("QuarantineTypes", tuple(QUARANTINE_TYPES)),
    "RecipientAddress": ("RecipientAddress", None),
    "RecipientTag": ("RecipientTag", None),
    "ReleaseStatus": ("ReleaseStatus", _STATUSES),
    "Reported": ("Reported", ("True", "False")),
    "SenderAddress": ("SenderAddress", None),
    "Subject": ("Subject", None),
    "Type": ("QuarantineTypes", tuple(QUARANTINE_TYPES)),
}
_DATES = {
    "StartReceivedDate": ("ReceivedTime", True),
    "EndReceivedDate": ("ReceivedTime", False),
    "StartExpiresDate": ("Expires", True),
    "EndExpiresDate": ("Expires", False),
}


def _role(call: Call, tenant: Tenant, parameters: Parameters, needed: Role = "reader") -> Role:
    """Return what the calling app is; refuse as the admin API does, with 403."""
    app = tenant.settings.app(call.app or "")
    given = app.security_role if app is not None else "Security Administrator"
    role = _ROLES.get(given)
    if role is None or (role == "reader" and (needed == "administrator" or "EntityType" in parameters)):
        raise RefusalError(403, "Forbidden", "The application's directory role does not allow this.")
    return role


def _get_messages(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """
    Answer quarantined mails page by page, latest received first; a short page is the last one.

    An Identity that does not exist answers all rows, as the cmdlet's page warns; a PageSize of 0 answers none. An
    enumeration is matched by prefix, and a value that matches nothing answers no rows.
    """
    role = _role(call, tenant, parameters)
    page, size = _paging(parameters, "Page", 1, 1), _paging(parameters, "PageSize", 100, 0)
    identity = str(parameters.get("Identity", ""))
    rows = _ordered_rows(tenant)
    if rows is None:
        rows = _seen_rows(call, tenant, role, identity)
    found = [row for row in rows if holds(row, "Identity", identity)]
    if found:
        return found
    if "MyItems" in parameters:  # an application is nobody's recipient
        return []
    wanted = _wanted(parameters)
    window = _window(parameters, call.state.clock.now())
    kept = [row for row in rows if _matches(row, wanted) and _within(row, window)]
    return kept[(page - 1) * size : page * size]


def _ordered_rows(tenant: Tenant) -> list[Row] | None:
    return tenant.settings.cmdlets.get("Get-QuarantineMessage")


def _seen_rows(call: Call, tenant: Tenant, role: Role, identity: str) -> list[Row]:
    """Return the rows of all mails as they were before the lag; released and waiting users only by Identity."""
    now = call.state.clock.now()
    at = now - timedelta(seconds=call.state.settings.quarantine_lag_seconds)
    rows = []
    for mail in tenant.quarantine.all():
        progress = mail.seen(at)
        if progress is not None and mail.expires > now:
            in_detail = mail.identity.lower() == identity.lower()
            rows.append(_row(tenant, role, mail, progress, in_detail=in_detail))
    return rows


def _paging(parameters: Parameters, name: str, default: int, least: int) -> int:
    try:
        number = int(parameters.get(name, default))
    except (TypeError, ValueError) as error:
        raise CmdletError(f"Cannot process argument transformation on parameter '{name}': not a number.") from error
    if not least <= number <= 1000:
        raise CmdletError(f"Cannot validate argument on parameter '{name}': {number} is not between 1 and 1000.")
    return number


def _wanted(parameters: Parameters) -> list[tuple[str, set[str]]]:
    """Return columns and the values of which a row must have one, in lower case."""
    wanted: list[tuple[str, set[str]]] = []
    for name, (column, members) in _FILTERS.items():
        if name not in parameters:
            continue
        given = parameters[name] if isinstance(parameters[name], list) else [parameters[name]]
        values = [str(value) if members is None else matched(value, members) for value in given]
        wanted.append((column, {value.lower() for value in values if value is not None}))
    return wanted


def _matches(row: Row, wanted: list[tuple[str, set[str]]]) -> bool:
    return all(any(holds(row, column, value) for value in values) for column, values in wanted)


def _window(parameters: Parameters, now: datetime) -> list[tuple[str, datetime, bool]]:
    """Return (column, limit, whether it is the earliest). A start of more than 30 days ago is taken for 30 days."""
    given = {name: moment(parameters[name], name) for name in _DATES if name in parameters}
    days = LONGEST_DAYS if {"StartReceivedDate", "EndReceivedDate"} & given.keys() else DEFAULT_DAYS
    earliest = now - timedelta(days=days)
    given["StartReceivedDate"] = max(given.get("StartReceivedDate", earliest), earliest)
    return [(_DATES[name][0], limit, _DATES[name][1]) for name, limit in given.items()]


def _within(row: Row, window: list[tuple[str, datetime, bool]]) -> bool:
    """Tell whether a row lies in the window; a column that an ordered row does not have is in any window."""
    for column, limit, earliest in window:
        if row.get(column) is not None:
            at = moment(row[column], column)
            if (at < limit) if earliest else (at > limit):
                return False
    return True


def _permissions(tenant: Tenant, role: Role, mail: QuarantinedMail) -> dict[str, bool]:
    """Return the caller's own permissions, which for an administrator are not those that the policy grants to users."""
    if role == "administrator":
        return {name: name != "RequestRelease" for name in PERMISSIONS}
    return end_user_permissions(policy_value(tenant, mail.policy), mail.quarantine_type)


def policy_value(tenant: Tenant, policy: str) -> int:
    """Return what a quarantine policy lets users do, as a number; 0 when there is no such policy."""
    rows = tenant.rows("Get-QuarantinePolicy") or []
    found = next((row for row in rows if holds(row, "Name", policy)), {})
    return int(found.get(_NUMBER) or read_permissions(str(found.get(_STRING) or "")))


def _row(tenant: Tenant, role: Role, mail: QuarantinedMail, progress: Progress, *, in_detail: bool) -> Row:
    status = mail.release_status(progress)
    return {
        "Identity": mail.identity,
        "ReceivedTime@data.type": "System.DateTime",
        "ReceivedTime": stamp(mail.received),
        "Organization@data.type": "System.Guid",
        "Organization": tenant.id,
        "MessageId": mail.mail.internet_message_id,
        "SenderAddress": mail.mail.sender,
        "RecipientAddress": list(mail.recipients),
        "Subject": mail.mail.subject,
        "Size@data.type": "System.Int32",
        "Size": len(mail.raw),
        "Type": QUARANTINE_TYPES[mail.quarantine_type],
        "PolicyType": mail.policy_type,
        "PolicyName": mail.policy_name,
        "TagName": mail.policy,
        **{f"PermissionTo{name}": allowed for name, allowed in _permissions(tenant, role, mail).items()},
        "Released": status in {"RELEASED", "APPROVED"},
        "ReleaseStatus": status,
        "SystemReleased": False,
        "RecipientCount@data.type": "System.Int32",
        "RecipientCount": len(mail.recipients),
        "QuarantineTypes": mail.quarantine_type,
        "Expires@data.type": "System.DateTime",
        "Expires": stamp(mail.expires),
        "RecipientTag": list(mail.recipient_tags),
        "DeletedForRecipients": list(progress.deleted),
        "QuarantinedUser": list(progress.waiting(mail.recipients)) if in_detail else [],
        "ReleasedUser": list(progress.released) if in_detail else [],
        "Reported": progress.reported,
        "Direction": mail.direction,
        "CustomData": None,
        "EntityType": "Email",
        "SourceId": "",
        "TeamsConversationType": "",
        "ApprovalUPN": "",
        "ApprovalId": "",
        "MoveToQuarantineAdminActionTakenBy": "",
        "MoveToQuarantineApprovalId": "",
        "OverrideReasonIntValue@data.type": "System.Int32",
        "OverrideReasonIntValue": 0,
        "OverrideReason": "None",
        "ReleasedCount@data.type": "System.Int32",
        "ReleasedCount": len(progress.released),
        "ReleasedBy": list(progress.released_by),
        **mail.columns,
    }


# Reading one mail


def _readable(call: Call, tenant: Tenant, identity: str) -> QuarantinedMail:
    try:
        mail = tenant.quarantine.find(identity)
        mail.check(call.state.clock.now())
    except QuarantineError as error:
        raise CmdletError(str(error), 404 if error.missing else 400) from error
    return mail


def _preview(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    _role(call, tenant, parameters)
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
    _role(call, tenant, parameters)
    mail = _readable(call, tenant, str(required(parameters, "Identity")))
    header = mail.raw.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    return [{"Identity": mail.identity, "Header": header.decode("utf-8", "replace")}]


def _export(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    _role(call, tenant, parameters)
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
    _role(call, tenant, parameters, "administrator")
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
    _role(call, tenant, parameters, "administrator")
    if parameters.get("Confirm") is not False:
        raise CmdletError("The command prompts for confirmation, which is not possible here: set Confirm to false.")
    users, now = _addresses(parameters, "RecipientAddress"), call.state.clock.now()
    hard = "HardDelete" in parameters
    return _each(call, tenant, parameters, "delete", lambda mail: mail.delete(now, users), hard=hard)


def _get_policies(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Answer built-in and custom policies; the global one with the notifications only when its type is asked for."""
    kinds = ("QuarantinePolicy", "GlobalQuarantinePolicy")
    kind = matched(parameters.get("QuarantinePolicyType", kinds[0]), kinds) or ""
    rows = tenant.rows("Get-QuarantinePolicy") or []
    shape = call.state.settings.quarantine_permissions
    rows = [_with_permissions(row, shape) for row in rows if row.get("QuarantinePolicyType", kinds[0]) == kind]
    if "Identity" not in parameters:
        return rows
    identity = str(parameters["Identity"])
    named = [row for row in rows if holds(row, "Identity", identity) or holds(row, "Name", identity)]
    if not named:
        message = f"The operation couldn't be performed because object '{identity}' couldn't be found on 'directory'."
        raise CmdletError(message, 404)
    return named


def _with_permissions(row: Row, shape: str) -> Row:
    """Say what users may do in the shape that is set; a row that was ordered with the string is answered as it is."""
    if shape == "number" or _STRING in row or not isinstance(row.get(_NUMBER), int):
        return row
    bare = {name: value for name, value in row.items() if name != _NUMBER}
    return bare if shape == "neither" else {**bare, _STRING: written_permissions(row[_NUMBER])}


_ONE = {"Identity", "EntityType"}
_MANY = {*_ONE, "Identities"}

CMDLETS: dict[str, Cmdlet] = {
    "Get-QuarantineMessage": Cmdlet(
        _get_messages,
        frozenset(
            {"Identity", "Page", "PageSize", "MyItems", "IncludeMessagesFromBlockedSenderAddress", *_FILTERS, *_DATES}
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
