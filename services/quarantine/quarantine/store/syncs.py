"""The SQL of `syncs`: when each tenant's quarantine was read, and who reads it now."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chassis.postgres import Reads, Tx


@dataclass(frozen=True, slots=True)
class Sync:
    """A claimed row of `syncs`."""

    tenant_id: UUID
    attempts: int
    lease_number: int
    read_until: datetime | None
    sweep: int
    swept_at: datetime | None


async def add_tenants(tx: Tx, tenant_ids: Collection[UUID]) -> None:
    """Start syncing the quarantine of these tenants."""
    await tx.execute(
        "INSERT INTO syncs (tenant_id) SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING", list(tenant_ids)
    )


async def claim_syncs(tx: Tx, tenant_ids: Collection[UUID], lease: timedelta, limit: int) -> list[Sync]:
    """Claim tenants that are due for *lease*. They come due again unless the lease is extended or the sync settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT tenant_id FROM syncs WHERE due_at <= now() AND tenant_id = ANY($1::uuid[])"
        " ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " UPDATE syncs SET due_at = now() + $2::interval, attempts = attempts + 1,"
        " lease_number = lease_number + 1 FROM due WHERE syncs.tenant_id = due.tenant_id RETURNING syncs.*",
        list(tenant_ids),
        lease,
        limit,
    )
    return [
        Sync(row["tenant_id"], row["attempts"], row["lease_number"], row["read_until"], row["sweep"], row["swept_at"])
        for row in rows
    ]


async def extend_lease(tx: Tx, sync: Sync, lease: timedelta) -> bool:
    """Extend the lease of a tenant and lock its row; return False if another worker has claimed it since."""
    return bool(
        await tx.fetchval(
            "UPDATE syncs SET due_at = now() + $3::interval WHERE tenant_id = $1 AND lease_number = $2 RETURNING true",
            sync.tenant_id,
            sync.lease_number,
            lease,
        )
    )


async def settle_sync(
    tx: Tx, sync: Sync, *, read_until: datetime, swept: bool, due_in: timedelta, warning: str | None
) -> None:
    """Record how far the quarantine was read, whether that was a whole sweep, and when the next sync is due."""
    await tx.execute(
        "UPDATE syncs SET due_at = now() + $5::interval, attempts = 0, read_until = $3, succeeded_at = now(),"
        " warning = $7, sweep = $6, swept_at = CASE WHEN $4::bool THEN now() ELSE swept_at END"
        " WHERE tenant_id = $1 AND lease_number = $2",
        sync.tenant_id,
        sync.lease_number,
        read_until,
        swept,
        due_in,
        sync.sweep,
        warning,
    )


async def postpone_sync(tx: Tx, sync: Sync, wait: timedelta, warning: str) -> None:
    """Retry a tenant after *wait*."""
    await tx.execute(
        "UPDATE syncs SET due_at = now() + $3::interval, warning = $4 WHERE tenant_id = $1 AND lease_number = $2",
        sync.tenant_id,
        sync.lease_number,
        wait,
        warning,
    )


async def find_sync_state(db: Reads, tenant_id: UUID) -> dict[str, Any] | None:
    """Return when the last sync succeeded, and the current warning."""
    row = await db.fetchrow("SELECT succeeded_at, swept_at, warning FROM syncs WHERE tenant_id = $1", tenant_id)
    return dict(row) if row else None
