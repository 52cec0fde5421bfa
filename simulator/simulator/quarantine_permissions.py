"""Who may do what in the quarantine: roles of the calling application, and what policies let users do."""

from typing import Literal

from simulator.calls import Call, RefusalError
from simulator.parameters import Parameters, holds
from simulator.quarantine import (
    PERMISSIONS,
    QuarantinedMail,
    end_user_permissions,
    read_permissions,
    written_permissions,
)
from simulator.tenant import Row, Tenant

_STRING, _NUMBER = "EndUserQuarantinePermissions", "EndUserQuarantinePermissionsValue"

Role = Literal["reader", "administrator"]
_ROLES: dict[str | None, Role] = {"Security Reader": "reader", "Security Administrator": "administrator"}


def required_role(call: Call, tenant: Tenant, parameters: Parameters, needed: Role = "reader") -> Role:
    """Return what the calling app is; refuse as the admin API does, with 403."""
    app = tenant.settings.app(call.app or "")
    given = app.security_role if app is not None else "Security Administrator"
    role = _ROLES.get(given)
    if role is None or (role == "reader" and (needed == "administrator" or "EntityType" in parameters)):
        raise RefusalError(403, "Forbidden", "The application's directory role does not allow this.")
    return role


def caller_permissions(tenant: Tenant, role: Role, mail: QuarantinedMail) -> dict[str, bool]:
    """Return the caller's own permissions, which for an administrator are not those that the policy grants to users."""
    if role == "administrator":
        return {name: name != "RequestRelease" for name in PERMISSIONS}
    return end_user_permissions(policy_value(tenant, mail.policy), mail.quarantine_type)


def policy_value(tenant: Tenant, policy: str) -> int:
    """Return what a quarantine policy lets users do, as a number; 0 when there is no such policy."""
    rows = tenant.rows("Get-QuarantinePolicy") or []
    found = next((row for row in rows if holds(row, "Name", policy)), {})
    return int(found.get(_NUMBER) or read_permissions(str(found.get(_STRING) or "")))


def with_permissions(row: Row, shape: str) -> Row:
    """Return *row* with the users' permissions in the configured shape; one ordered with the string is unchanged."""
    if shape == "number" or _STRING in row or not isinstance(row.get(_NUMBER), int):
        return row
    bare = {name: value for name, value in row.items() if name != _NUMBER}
    return bare if shape == "neither" else {**bare, _STRING: written_permissions(row[_NUMBER])}
