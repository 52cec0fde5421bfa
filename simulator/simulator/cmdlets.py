"""
The Exchange Online cmdlets that the simulator knows, as functions of their parameters.

Names, parameters and rules are those of the cmdlets' reference pages on Microsoft Learn; how rows look on the wire was
measured by others and is not documented. The texts of errors are only alike.
"""

import re
from datetime import datetime, timedelta
from typing import Any

from simulator import policies, quarantine_cmdlets
from simulator.allow_block_list import LIST_TYPES, ListEntry, invalid
from simulator.calls import Call
from simulator.parameters import (
    Cmdlet,
    CmdletError,
    Parameters,
    checked,
    holds,
    matched,
    moment,
    narrowed,
    required,
    stamp,
    strings,
)
from simulator.tenant import Mailbox, Row, Tenant

HASHTABLE = "#Exchange.GenericHashTable"
DEFAULT_BLOCK_DAYS = 30

_BLOCKABLE = re.compile(r"([^\s@]+@)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+", re.IGNORECASE)


def invoke(call: Call, tenant: Tenant, name: str, given: Parameters) -> list[Row]:
    """Run the cmdlet *name*; raise CmdletError for what it refuses."""
    cmdlet = CMDLETS.get(name)
    if cmdlet is None:
        return _rows(tenant, name, given)
    return cmdlet.run(call, tenant, checked(given, cmdlet.parameters))


def canonical(tenant: Tenant, name: str) -> str | None:
    """Return the cmdlet's name in its own spelling; None when the tenant has no such cmdlet."""
    known = (*CMDLETS, *policies.CMDLETS, *tenant.settings.cmdlets)
    return next((cmdlet for cmdlet in known if cmdlet.lower() == name.lower()), None)


# Tenant Allow/Block List


def _matched_list_type(parameters: Parameters) -> str | None:
    """Match an enumeration by prefix, whatever the case. None for a value that matches nothing."""
    return matched(required(parameters, "ListType"), LIST_TYPES)


def _list_type(parameters: Parameters) -> str:
    matched = _matched_list_type(parameters)
    if matched is None:
        raise CmdletError(
            f"Cannot process argument transformation on parameter 'ListType'. Cannot convert value "
            f"'{parameters['ListType']}' to one of: {', '.join(LIST_TYPES)}."
        )
    return matched


def _action(parameters: Parameters) -> str | None:
    if "Allow" in parameters and "Block" in parameters:
        raise CmdletError("Parameter set cannot be resolved: specify either Allow or Block.")
    return "Allow" if "Allow" in parameters else "Block" if "Block" in parameters else None


def _expiry(parameters: Parameters, action: str, list_type: str, now: datetime) -> tuple[datetime | None, int | None]:
    """Return the time at which an entry goes, and after how many days of disuse."""
    chosen = [name for name in ("ExpirationDate", "NoExpiration", "RemoveAfter") if name in parameters]
    if len(chosen) > 1:
        raise CmdletError(f"Parameter set cannot be resolved: {' and '.join(chosen)} exclude each other.")
    if "ExpirationDate" in parameters:
        expires = moment(parameters["ExpirationDate"], "ExpirationDate")
        if expires <= now:
            raise CmdletError("The expiration date must be in the future.")
        return expires, None
    if "RemoveAfter" in parameters:
        if parameters["RemoveAfter"] != 45 or action == "Block":
            raise CmdletError("The value of RemoveAfter must be 45, and is for allow entries only.")
        return None, 45
    if "NoExpiration" in parameters:
        advanced = list_type == "Url" and parameters.get("ListSubType") == "AdvancedDelivery"
        if action == "Allow" and list_type != "IP" and not advanced:
            raise CmdletError("NoExpiration is not available for allow entries of this type.")
        return None, None
    return (None if list_type == "IP" else now + timedelta(days=DEFAULT_BLOCK_DAYS)), None


def _new_list_items(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    now, action, list_type = call.state.clock.now(), _action(parameters), _list_type(parameters)
    if action is None:
        raise CmdletError("Parameter set cannot be resolved: specify Allow or Block.")
    required(parameters, "Entries")
    values = strings(parameters, "Entries")
    expires, remove_after = _expiry(parameters, action, list_type, now)
    accepted: list[ListEntry] = []
    rows: list[Row] = []
    for value in values:
        problem = _problem(call, tenant, list_type, action, value, [entry.value for entry in accepted])
        if problem is None:
            entry = ListEntry(
                list_type=list_type,
                value=value,
                action=action,
                created=now,
                modified=now,
                expires=expires,
                notes=str(parameters.get("Notes", "")),
                modified_by=call.app or "",
                remove_after=remove_after,
                list_subtype=str(parameters.get("ListSubType", "Tenant")),
            )
            accepted.append(entry)
            rows.append(_list_row(entry))
        elif "OutputJson" in parameters:
            rows.append({"Value": value, "Action": action, "Error": problem})
        else:
            raise CmdletError(problem)
    for entry in accepted:
        tenant.allow_block_list.add(entry)
        call.record("tenant_blocks", _list_record(entry))
    return rows


def _problem(call: Call, tenant: Tenant, list_type: str, action: str, value: str, before: list[str]) -> str | None:
    """Why *value* cannot be added, given the values accepted *before* it in the same call."""
    now, settings = call.state.clock.now(), call.state.settings
    malformed = invalid(list_type, value)
    if malformed is not None:
        return malformed
    known = tenant.allow_block_list.find(now, list_type, value)
    if known or value.lower() in {other.lower() for other in before}:
        return f"Duplicate value: an entry for '{value}' already exists in the Tenant Allow/Block List."
    limit = settings.list_block_limit if action == "Block" else settings.list_allow_limit
    if len(tenant.allow_block_list.entries(now, list_type, action)) + len(before) >= limit:
        return f"The limit of {limit} {action} entries for ListType {list_type} has been reached."
    return None


def _get_list_items(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Answer no rows and no error for a list type that matches nothing."""
    list_type = _matched_list_type(parameters)
    if list_type is None:
        return []
    entries = tenant.allow_block_list.entries(call.state.clock.now(), list_type, _action(parameters))
    if "Entry" in parameters:
        entries = [entry for entry in entries if entry.value.lower() == str(parameters["Entry"]).lower()]
    if "NoExpiration" in parameters:
        entries = [entry for entry in entries if entry.expires is None]
    if "ListSubType" in parameters:
        entries = [entry for entry in entries if entry.list_subtype == parameters["ListSubType"]]
    if "ExpirationDate" in parameters:
        until = moment(parameters["ExpirationDate"], "ExpirationDate")
        entries = [entry for entry in entries if entry.expires is not None and entry.expires <= until]
    return [_list_row(entry) for entry in entries]


def _named_entries(call: Call, tenant: Tenant, parameters: Parameters) -> list[ListEntry]:
    """Return the entries that Ids or Entries name; all of them or none."""
    list_type = _list_type(parameters)
    if ("Ids" in parameters) == ("Entries" in parameters):
        raise CmdletError("Parameter set cannot be resolved: specify either Ids or Entries.")
    by = "Ids" if "Ids" in parameters else "Entries"
    entries = tenant.allow_block_list.entries(call.state.clock.now(), list_type)
    found = {(entry.identity if by == "Ids" else entry.value).lower(): entry for entry in entries}
    named = strings(parameters, by)
    for name in named:
        if name.lower() not in found:
            raise CmdletError(f"The entry '{name}' couldn't be found in the Tenant Allow/Block List.", 404)
    return [found[name] for name in dict.fromkeys(name.lower() for name in named)]


def _set_list_items(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    now, action = call.state.clock.now(), _action(parameters)
    entries = _named_entries(call, tenant, parameters)
    timed = {"ExpirationDate", "NoExpiration", "RemoveAfter"} & set(parameters)
    changes = [
        _expiry(parameters, entry.action, entry.list_type, now) if timed else (entry.expires, entry.remove_after)
        for entry in entries
    ]
    if any(action not in (None, entry.action) for entry in entries):
        raise CmdletError("The action of an entry can't be changed; remove the entry and add it anew.")
    for entry, (expires, remove_after) in zip(entries, changes, strict=True):
        entry.expires, entry.remove_after, entry.modified = expires, remove_after, now
        entry.modified_by, entry.notes = call.app or "", str(parameters.get("Notes", entry.notes))
        call.record("changes", {"scope": "tenant", **_list_record(entry)})
    return [_list_row(entry) for entry in entries]


def _remove_list_items(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    entries = _named_entries(call, tenant, parameters)
    for entry in entries:
        tenant.allow_block_list.remove(entry)
        call.record("removals", {"scope": "tenant", **_list_record(entry)})
    return [_list_row(entry) for entry in entries]


def _list_record(entry: ListEntry) -> dict[str, Any]:
    return {
        "list_type": entry.list_type,
        "value": entry.value,
        "action": entry.action,
        "expires": entry.expires.isoformat() if entry.expires else None,
        "notes": entry.notes,
        "identity": entry.identity,
    }


def _list_row(entry: ListEntry) -> Row:
    """Write an entry as on the wire. The list type is not echoed, and one property name arrives mangled."""
    return {
        "Identity": entry.identity,
        "Value": entry.value,
        "Action": entry.action,
        "Notes": entry.notes,
        "SubmissionID": "Non-Submission",
        "ListSubType": entry.list_subtype,
        "SysManaged": False,
        "LastModifiedDateTime@data.type": "System.DateTime",
        "LastModifiedDateTime": stamp(entry.modified),
        "ExpirationDate@data.type": "System.DateTime",
        "ExpirationDate": stamp(entry.expires),
        "ObjectState": "New",
        "EntryValueHash": entry.value_hash,
        "ModifiedBy": entry.modified_by,
        "RemoveAfter": entry.remove_after,
        "CreatedDateTime@data.type": "System.DateTime",
        "CreatedDateTime": stamp(entry.created),
        "LastUsedDate(DateTime])": None,
        "LastUsedDate": None,
        "Error": "",
    }


# Junk email settings of a mailbox


def _mailbox(tenant: Tenant, identity: Any) -> Mailbox:
    found = tenant.mailbox(str(identity))
    if found is None:
        message = f"The operation couldn't be performed because object '{identity}' couldn't be found on 'directory'."
        raise CmdletError(message, 404)
    return found


def _get_junk(_call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    return [_junk_row(_mailbox(tenant, required(parameters, "Identity")))]


def _set_junk(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Blocked senders beyond the limit are dropped without an error, as documented."""
    box = _mailbox(tenant, required(parameters, "Identity"))
    before = _settings_of(box)
    after: dict[str, Any] = {
        name: _edited(value, parameters, name) if isinstance(value, list) else bool(parameters.get(name, value))
        for name, value in before.items()
    }
    own = next((value for value in after["TrustedSendersAndDomains"] if tenant.accepts(value)), None)
    if own is not None:
        raise CmdletError(f"'{own}' belongs to your organization and can't be a trusted sender.")
    after["BlockedSendersAndDomains"] = after["BlockedSendersAndDomains"][: call.state.settings.blocked_senders_limit]
    box.blocked, box.trusted = after["BlockedSendersAndDomains"], after["TrustedSendersAndDomains"]
    box.trusted_recipients, box.enabled = after["TrustedRecipientsAndDomains"], after["Enabled"]
    box.contacts_trusted, box.trusted_lists_only = after["ContactsTrusted"], after["TrustedListsOnly"]
    _record_junk(call, box, before, after)
    return []


def _settings_of(box: Mailbox) -> dict[str, Any]:
    return {
        "Enabled": box.enabled,
        "ContactsTrusted": box.contacts_trusted,
        "TrustedListsOnly": box.trusted_lists_only,
        "TrustedSendersAndDomains": list(box.trusted),
        "BlockedSendersAndDomains": list(box.blocked),
        "TrustedRecipientsAndDomains": list(box.trusted_recipients),
    }


def _record_junk(call: Call, box: Mailbox, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Write what really changed: blocked senders one by one, everything else as a change."""
    where = {"scope": "mailbox", "mailbox": box.address}
    was, now = before.pop("BlockedSendersAndDomains"), after.pop("BlockedSendersAndDomains")
    for value in now:
        if value not in was:
            call.record("mailbox_blocks", {**where, "value": value})
    for value in was:
        if value not in now:
            call.record("removals", {**where, "value": value})
    for name, value in after.items():
        if value != before[name]:
            call.record("changes", {**where, "setting": name, "value": value})


def _edited(current: list[str], parameters: Parameters, name: str) -> list[str]:
    """Return a list after the edit that *parameters* ask for: a hashtable adds and removes, a plain list replaces."""
    if name not in parameters:
        return current
    wanted = parameters[name]
    if isinstance(wanted, dict):
        if wanted.get("@odata.type") != HASHTABLE or set(wanted) - {"@odata.type", "Add", "Remove"}:
            raise CmdletError(
                f"Cannot process argument transformation on parameter '{name}': a hashtable of Add and Remove."
            )
        added, removed = (strings(wanted, key) if key in wanted else [] for key in ("Add", "Remove"))
    else:
        current, added, removed = [], strings(parameters, name), []
    for value in added:
        if not _BLOCKABLE.fullmatch(value):
            raise CmdletError(f"'{value}' is neither an SMTP address nor a domain.")
    gone = {value.lower() for value in removed}
    return list(dict.fromkeys([v for v in current if v not in gone] + [value.lower() for value in added]))


def _junk_row(box: Mailbox) -> Row:
    return {
        "Identity": box.address,
        "MailboxOwnerId": box.user_id,
        **_settings_of(box),
        "IsValid": True,
        "ObjectState": "Unchanged",
    }


# Everything that is only read

_FILTERS: dict[str, tuple[str, ...]] = {
    "Get-TransportRule": ("State",),
    "Get-TenantAllowBlockListSpoofItems": ("Action", "SpoofType"),
    "Get-EOPProtectionPolicyRule": ("State",),
    "Get-ATPProtectionPolicyRule": ("State",),
}


def _rows(tenant: Tenant, name: str, given: Parameters) -> list[Row]:
    """Return the tenant's rows of a `Get-` cmdlet; Identity picks one by Identity or Name."""
    filters = _FILTERS.get(name, ())
    parameters = checked(given, frozenset({"Identity", "ResultSize", *filters}))
    rows = narrowed(tenant.rows(name) or [], parameters, filters)
    if "Identity" not in parameters or name == "Get-TenantAllowBlockListSpoofItems":
        return rows
    identity = str(parameters["Identity"])
    named = [row for row in rows if holds(row, "Identity", identity) or holds(row, "Name", identity)]
    if not named:
        message = f"The operation couldn't be performed because object '{identity}' couldn't be found on 'directory'."
        raise CmdletError(message, 404)
    return named


def _get_inbox_rules(_call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    owner = _mailbox(tenant, required(parameters, "Mailbox")).address
    return [row for row in tenant.rows("Get-InboxRule") or [] if holds(row, "MailboxOwnerId", owner)]


def _get_recommendations(_call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Answer the same rows for both baselines, except those that name one as RecommendedPolicyType."""
    baseline = str(required(parameters, "RecommendedPolicyType"))
    if baseline not in ("Standard", "Strict"):
        raise CmdletError("Cannot process argument transformation on parameter 'RecommendedPolicyType'.")
    rows = tenant.rows("Get-ConfigAnalyzerPolicyRecommendation") or []
    return [row for row in rows if row.get("RecommendedPolicyType", baseline) == baseline]


_EXPIRY = {"ExpirationDate", "NoExpiration", "RemoveAfter"}
_LIST = {"ListType", "ListSubType", "Allow", "Block", "OutputJson"}

CMDLETS: dict[str, Cmdlet] = {
    "New-TenantAllowBlockListItems": Cmdlet(
        _new_list_items, frozenset({"Entries", "Notes", "SubmissionID", *_LIST, *_EXPIRY})
    ),
    "Get-TenantAllowBlockListItems": Cmdlet(
        _get_list_items, frozenset({"Entry", "ExpirationDate", "NoExpiration", *_LIST})
    ),
    "Set-TenantAllowBlockListItems": Cmdlet(_set_list_items, frozenset({"Ids", "Entries", "Notes", *_LIST, *_EXPIRY})),
    "Remove-TenantAllowBlockListItems": Cmdlet(
        _remove_list_items, frozenset({"Ids", "Entries", "ListType", "ListSubType", "OutputJson"})
    ),
    "Get-InboxRule": Cmdlet(_get_inbox_rules, frozenset({"Mailbox", "Identity", "ResultSize"})),
    "Get-ConfigAnalyzerPolicyRecommendation": Cmdlet(
        _get_recommendations, frozenset({"RecommendedPolicyType", "Identity"})
    ),
    **quarantine_cmdlets.CMDLETS,
    "Get-MailboxJunkEmailConfiguration": Cmdlet(_get_junk, frozenset({"Identity", "ResultSize"})),
    "Set-MailboxJunkEmailConfiguration": Cmdlet(
        _set_junk,
        frozenset(
            {
                "Identity",
                "Enabled",
                "ContactsTrusted",
                "TrustedListsOnly",
                "BlockedSendersAndDomains",
                "TrustedSendersAndDomains",
                "TrustedRecipientsAndDomains",
            }
        ),
    ),
}
