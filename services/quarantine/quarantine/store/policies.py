"""The SQL of `policies`, the quarantine policies of tenants, and of `settings`, what their admins chose."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from chassis.postgres import Reads, Tx
from quarantine.quarantine_policies import Policy


async def record_policies(tx: Tx, tenant_id: UUID, policies: Sequence[Policy]) -> None:
    """Replace the quarantine policies of a tenant."""
    await tx.execute("DELETE FROM policies WHERE tenant_id = $1", tenant_id)
    await tx.execute(
        "INSERT INTO policies SELECT $1, * FROM unnest($2::text[], $3::int[], $4::bool[]) ON CONFLICT DO NOTHING",
        tenant_id,
        [policy.name for policy in policies],
        [int(policy.permissions) for policy in policies],
        [policy.notifies for policy in policies],
    )


async def find_settings(db: Reads, tenant_id: UUID) -> dict[str, Any] | None:
    """Return the stored settings of a tenant; None if there are none."""
    found: dict[str, Any] | None = await db.fetchval("SELECT settings FROM settings WHERE tenant_id = $1", tenant_id)
    return found


async def record_settings(tx: Tx, tenant_id: UUID, settings: Mapping[str, Any], by: str) -> None:
    """Store the settings of a tenant."""
    await tx.execute(
        "INSERT INTO settings (tenant_id, settings, changed_by) VALUES ($1, $2, $3) ON CONFLICT (tenant_id)"
        " DO UPDATE SET settings = excluded.settings, changed_by = excluded.changed_by, changed_at = now()",
        tenant_id,
        dict(settings),
        by,
    )
