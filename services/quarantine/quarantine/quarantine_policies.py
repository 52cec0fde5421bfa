"""Quarantine policies: parse the answer of Get-QuarantinePolicy, and what a policy lets users do. Pure functions."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Any

from quarantine.exchange_rows import RELEASED_BY_USERS, ExchangeRow, quarantine_types, text_of


class Permissions(IntFlag):
    """What users may do: the bits of EndUserQuarantinePermissionsValue (Microsoft Learn: "New-QuarantinePolicy")."""

    DELETE = 1
    PREVIEW = 2
    RELEASE = 4
    REQUEST_RELEASE = 8
    BLOCK_SENDER = 16
    ALLOW_SENDER = 32
    DOWNLOAD = 64
    VIEW_HEADER = 128


NO_PERMISSIONS = Permissions(0)
_PERMISSION = re.compile(r"""PermissionTo([a-z]{1,40})["']?\s*[:=]\s*["']?\$?(true|false)\b""", re.IGNORECASE)
_BITS = {str(bit.name).replace("_", ""): bit for bit in Permissions}


class PolicyDoubt(StrEnum):
    """Why it is not certain what a quarantine policy permits."""

    UNREADABLE = "unreadable"
    CONTRADICTORY = "contradictory"


@dataclass(frozen=True, slots=True)
class Policy:
    """A quarantine policy: what it permits, and whether Microsoft's own notifications are on."""

    name: str
    permissions: Permissions
    notifies: bool
    doubt: PolicyDoubt | None = None


def parse_policies(rows: Iterable[ExchangeRow]) -> list[Policy]:
    """
    Parse the answer of Get-QuarantinePolicy.

    It returns permissions as a string (EndUserQuarantinePermissions) or, by some accounts, as a number (...Value). Both
    forms are understood in both columns. If the columns contradict each other, the lesser permissions count; if neither
    can be parsed, nothing is permitted. Rows without a name and the global policy, which grants nothing, are left out.
    """
    policies = []
    for row in rows:
        name = text_of(row.get("Name"))
        if not name or str(row.get("QuarantinePolicyType")).lower() == "globalquarantinepolicy":
            continue
        columns = (row.get("EndUserQuarantinePermissions"), row.get("EndUserQuarantinePermissionsValue"))
        parsed = [found for value in columns if (found := _parse_permissions(value)) is not None]
        doubt = None if parsed else PolicyDoubt.UNREADABLE
        permissions = parsed[0] if parsed else NO_PERMISSIONS
        if len(set(parsed)) > 1:
            doubt, permissions = PolicyDoubt.CONTRADICTORY, _common_permissions(*parsed)
        policies.append(Policy(name, permissions, str(row.get("ESNEnabled")).lower() == "true", doubt))
    return policies


def policy_warning(policies: Sequence[Policy]) -> str | None:
    """Return which quarantine policies could not be parsed and what follows from it; None if all could."""
    names = {doubt: ", ".join(policy.name for policy in policies if policy.doubt is doubt) for doubt in PolicyDoubt}
    warnings = []
    if not policies:
        warnings.append("Get-QuarantinePolicy returned no quarantine policy. Users get no digests and can do nothing.")
    if unreadable := names[PolicyDoubt.UNREADABLE]:
        warnings.append(
            "The EndUserQuarantinePermissions returned by Get-QuarantinePolicy could not be read. For messages under"
            f" these policies, users get no digests and can do nothing: {unreadable}."
        )
    if contradictory := names[PolicyDoubt.CONTRADICTORY]:
        warnings.append(
            "EndUserQuarantinePermissions and EndUserQuarantinePermissionsValue contradict each other. The lesser"
            f" permissions apply to: {contradictory}."
        )
    return " ".join(warnings)[:2000] or None


def _parse_permissions(value: Any) -> Permissions | None:
    """Parse a number, or a text with a line `PermissionToRelease: True` for each permission, all of it in brackets."""
    text = str(value).strip()
    if re.fullmatch(r"[0-9]{1,3}(\.0)?", text):
        number = int(float(text))
        return Permissions(number) if number <= sum(Permissions) else None
    found = [(_BITS.get(name.upper()), allowed.lower() == "true") for name, allowed in _PERMISSION.findall(text)]
    known, denied = {bit for bit, _ in found if bit}, {bit for bit, allowed in found if not allowed}
    return Permissions(sum(known - denied)) if known else None


def _common_permissions(one: Permissions, other: Permissions) -> Permissions:
    """Return what both grant. A user who may release a message may also request its release."""
    both, releases = one & other, Permissions.RELEASE | Permissions.REQUEST_RELEASE
    if one & releases and other & releases and not both & releases:
        both |= Permissions.REQUEST_RELEASE
    return both


def effective_permissions(granted: Permissions, quarantine_type: str) -> Permissions:
    """
    Return what a user may do with a message of this type, or these types, under a policy that grants *granted*.

    Users release a message only if all of its types allow it; otherwise the permission to release becomes the
    permission to request the release. If a policy grants both (it should not), it grants the release. Source:
    Microsoft Learn, "Quarantine policies".
    """
    if Permissions.RELEASE in granted:
        granted &= ~Permissions.REQUEST_RELEASE
        types = quarantine_types(quarantine_type)
        if not types or not RELEASED_BY_USERS.issuperset(types):
            granted = granted & ~Permissions.RELEASE | Permissions.REQUEST_RELEASE
    return granted
