"""
The junk email settings of a mailbox: Get- and Set-MailboxJunkEmailConfiguration.

Names, parameters and rules are those of the cmdlets' reference pages on Microsoft Learn; how rows look on the wire was
measured by others and is not documented. The texts of errors are only alike.
"""

import re
from typing import Any

from simulator.calls import Call
from simulator.parameters import Cmdlet, CmdletError, Parameters, find_mailbox, required, strings
from simulator.tenant import Mailbox, Row, Tenant

HASHTABLE = "#Exchange.GenericHashTable"

_BLOCKABLE = re.compile(r"([^\s@]+@)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+", re.IGNORECASE)


def _get_junk(_call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    return [_junk_row(find_mailbox(tenant, required(parameters, "Identity")))]


def _set_junk(call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Blocked senders beyond the limit are dropped without an error, as documented."""
    box = find_mailbox(tenant, required(parameters, "Identity"))
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


CMDLETS: dict[str, Cmdlet] = {
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
