"""
Get-QuarantineMessage: what is in the quarantine, filtered and page by page.

Parameters and rules are those of the reference page on Microsoft Learn. How a row looks on the wire was measured by
others.
"""

from datetime import datetime, timedelta

from simulator.calls import Call
from simulator.parameters import CmdletError, Parameters, holds, matched, moment, stamp
from simulator.quarantine import QUARANTINE_TYPES, Progress, QuarantinedMail
from simulator.quarantine_permissions import Role, caller_permissions, required_role
from simulator.tenant import Row, Tenant

DEFAULT_DAYS, LONGEST_DAYS = 16, 30

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
FILTERS: dict[str, tuple[str, tuple[str, ...] | None]] = {
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
DATES = {
    "StartReceivedDate": ("ReceivedTime", True),
    "EndReceivedDate": ("ReceivedTime", False),
    "StartExpiresDate": ("Expires", True),
    "EndExpiresDate": ("Expires", False),
}


def get_messages(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """
    Return a page of quarantined messages, latest received first; a short page is the last one.

    An Identity that does not exist returns all rows, as the cmdlet's page warns; a PageSize of 0 returns none. An
    enumeration is matched by prefix, and a value that matches nothing returns no rows.
    """
    role = required_role(call, tenant, parameters)
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
    """Return the rows of all messages as they were before the lag; released and waiting users only by Identity."""
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
    for name, (column, members) in FILTERS.items():
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
    given = {name: moment(parameters[name], name) for name in DATES if name in parameters}
    days = LONGEST_DAYS if {"StartReceivedDate", "EndReceivedDate"} & given.keys() else DEFAULT_DAYS
    earliest = now - timedelta(days=days)
    given["StartReceivedDate"] = max(given.get("StartReceivedDate", earliest), earliest)
    return [(DATES[name][0], limit, DATES[name][1]) for name, limit in given.items()]


def _within(row: Row, window: list[tuple[str, datetime, bool]]) -> bool:
    """Return True if a row lies in the window. A column that is missing in an ordered row matches any window."""
    for column, limit, earliest in window:
        if row.get(column) is not None:
            at = moment(row[column], column)
            if (at < limit) if earliest else (at > limit):
                return False
    return True


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
        **{f"PermissionTo{name}": allowed for name, allowed in caller_permissions(tenant, role, mail).items()},
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
