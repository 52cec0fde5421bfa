"""
The cmdlets of the Tenant Allow/Block List: New-, Get-, Set- and Remove-TenantAllowBlockListItems.

Names, parameters and rules are those of the cmdlets' reference pages on Microsoft Learn; how rows look on the wire was
measured by others and is not documented. The texts of errors are only alike.
"""

from datetime import datetime, timedelta
from typing import Any

from simulator.allow_block_list import LIST_TYPES, ListEntry, invalid
from simulator.calls import Call
from simulator.parameters import Cmdlet, CmdletError, Parameters, matched, moment, required, stamp, strings
from simulator.tenant import Row, Tenant

DEFAULT_BLOCK_DAYS = 30


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
    """Return the matching entries; a list type that matches nothing gives no rows and no error."""
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
}
