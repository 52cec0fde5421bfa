"""Delete the closed cases whose retention is over, and announce it, so that other services delete them too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from uuid import UUID

import asyncpg
import structlog

from backstop_contracts import BlockRequested, CaseExpired, MessageReported, SubmissionCreated, SubmissionRequested
from chassis import outbox
from chassis.postgres import Database, Reads, Tx
from triage import store

log = structlog.get_logger()

CASES = 200
"""Maximum number of cases that one transaction deletes."""
REPORTS = 10_000
"""Maximum number of their reports, unless a single case has more: new reports of the tenant wait meanwhile."""

_TOPIC_DAYS = max(
    model.RETENTION_DAYS for model in (MessageReported, SubmissionRequested, BlockRequested, SubmissionCreated)
)
_SEGMENT_DAYS = 7
"""A record outlives its topic's retention by up to a log segment: Kafka's `segment.ms`, 7 days by default."""
LEAST_RETENTION_DAYS = _TOPIC_DAYS + _SEGMENT_DAYS + 1


@dataclass(frozen=True, slots=True)
class Retention:
    """
    For how many days a closed case is kept after the last thing that happened to it, in general and by tenant.

    Raises ValueError for fewer than LEAST_RETENTION_DAYS.
    """

    days: int = 30
    by_tenant: Mapping[UUID, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for days in (self.days, *self.by_tenant.values()):
            if days < LEAST_RETENTION_DAYS:
                raise ValueError(
                    f"the retention is too short; {LEAST_RETENTION_DAYS} days are the least: Kafka may hold the"
                    f" events of a case for {_TOPIC_DAYS + _SEGMENT_DAYS} days ({_TOPIC_DAYS} of the topic, a log"
                    " segment more), and if they were read again after the case is deleted, its message would be"
                    " reported, submitted and blocked once more"
                )

    def of(self, tenant_id: UUID) -> timedelta:
        """Return how long a tenant's cases are kept."""
        return timedelta(days=self.by_tenant.get(tenant_id, self.days))


async def expire_due(db: Database, retention: Retention) -> int:
    """
    Delete closed cases to which nothing has happened for the tenant's retention. Return how many were checked.

    Each batch is one transaction, events included: killed at any point, it has happened or it has not. A case that is
    open or submitted is never touched, whatever its age. Cases of tenants that are not served any more expire, too.
    """
    return sum([await _expire(db, tenant_id, retention) for tenant_id in await _tenants_of_closed_cases(db.pool)])


async def _expire(db: Database, tenant_id: UUID, retention: Retention) -> int:
    days = retention.of(tenant_id)
    if not await _has_quiet_cases(db.pool, tenant_id, days):
        return 0
    async with db.transaction() as tx:
        # A report that is being matched finds the case and joins it, or finds nothing and opens another.
        await store.lock_tenant(tx, tenant_id)
        quiet = await _lock_quiet_cases(tx, tenant_id, days, CASES)
        case_ids = fitting(quiet, REPORTS)
        await _update_quiet_since(tx, case_ids)
        expired = await _delete_cases(tx, case_ids, days)
        now = datetime.now(UTC)
        events = [
            CaseExpired(
                tenant_id=case["tenant_id"],
                case_id=case["case_id"],
                report_count=case["report_count"],
                last_active_at=case["quiet_since"],
                expired_at=now,
            )
            for case in expired
        ]
        await outbox.emit(tx, [(event, case["traceparent"]) for event, case in zip(events, expired, strict=True)])
    if expired:
        log.info("cases.expired", tenant_id=tenant_id, cases=len(expired), reports=sum(e.report_count for e in events))
    return len(case_ids)


def fitting(counts: Mapping[UUID, int], most: int) -> list[UUID]:
    """Return the first ids whose counts sum to at most *most*, and always at least one id."""
    sums = accumulate(counts.values())
    return [id_ for n, (id_, total) in enumerate(zip(counts, sums, strict=True)) if n == 0 or total <= most]


async def _tenants_of_closed_cases(db: Reads) -> list[UUID]:
    """Return the tenants that have closed cases, hopping from one to the next along the index."""
    first = "(SELECT tenant_id FROM cases WHERE status IN ('resolved', 'dismissed'){} ORDER BY tenant_id LIMIT 1)"
    rows = await db.fetch(
        f"WITH RECURSIVE found AS ({first.format('')} UNION ALL"
        f" SELECT {first.format(' AND cases.tenant_id > found.tenant_id')} FROM found WHERE tenant_id IS NOT NULL)"
        " SELECT tenant_id FROM found WHERE tenant_id IS NOT NULL"
    )
    return [row["tenant_id"] for row in rows]


async def _has_quiet_cases(db: Reads, tenant_id: UUID, retention: timedelta) -> bool:
    """Return True if a tenant has closed cases that may have expired."""
    return bool(
        await db.fetchval(
            "SELECT EXISTS (SELECT FROM cases WHERE tenant_id = $1 AND status IN ('resolved', 'dismissed')"
            " AND quiet_since < now() - $2::interval)",
            tenant_id,
            retention,
        )
    )


async def _lock_quiet_cases(tx: Tx, tenant_id: UUID, retention: timedelta, limit: int) -> dict[UUID, int]:
    """Lock closed cases of a tenant that may have expired; return the number of reports of each."""
    rows = await tx.fetch(
        "SELECT case_id, report_count FROM cases WHERE tenant_id = $1 AND status IN ('resolved', 'dismissed')"
        " AND quiet_since < now() - $2::interval ORDER BY quiet_since LIMIT $3 FOR UPDATE SKIP LOCKED",
        tenant_id,
        retention,
        limit,
    )
    return {row["case_id"]: row["report_count"] for row in rows}


async def _update_quiet_since(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Record since when nothing has happened to cases, which are locked."""
    await tx.execute(
        "UPDATE cases SET quiet_since = last.at FROM (SELECT case_id, max(at) AS at FROM timeline"
        " WHERE case_id = ANY($1::uuid[]) GROUP BY case_id) AS last WHERE cases.case_id = last.case_id",
        case_ids,
    )


async def _delete_cases(tx: Tx, case_ids: Sequence[UUID], retention: timedelta) -> list[asyncpg.Record]:
    """Delete those of the locked cases that have expired, with all that belongs to them; return what they were."""
    rows = await tx.fetch(
        "WITH expired AS (DELETE FROM cases WHERE case_id = ANY($1::uuid[]) AND quiet_since < now() - $2::interval"
        " RETURNING case_id, tenant_id, report_count, quiet_since, traceparent),"
        " keys AS (DELETE FROM case_keys USING expired WHERE case_keys.case_id = expired.case_id),"
        " taken AS (DELETE FROM reports USING expired WHERE reports.case_id = expired.case_id),"
        " entries AS (DELETE FROM timeline USING expired WHERE timeline.case_id = expired.case_id),"
        " wanted AS (DELETE FROM blocks USING expired WHERE blocks.case_id = expired.case_id)"
        " SELECT * FROM expired",
        case_ids,
        retention,
    )
    return list(rows)
