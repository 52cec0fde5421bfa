"""Forget the closed cases whose retention is over, and tell the other services to forget them too."""

from datetime import UTC, datetime
from uuid import UUID

import structlog

from backstop_contracts import CaseExpired
from chassis import outbox
from chassis.postgres import Database
from triage import store
from triage.rules import Retention, fitting

log = structlog.get_logger()

CASES = 200
"""Most cases that one transaction forgets."""
REPORTS = 10_000
"""Most reports of these together, unless a single case has more: reports of the tenant wait meanwhile."""


async def expire_due(db: Database, retention: Retention) -> int:
    """
    Forget closed cases to which nothing has happened for the tenant's retention. Returns how many were looked at.

    Each batch is one transaction, events included: killed at any point, it has happened or it has not. A case that is
    open or submitted is never touched, whatever its age. It serves the tenants of the cases that there are, also of
    those that are not served any more.
    """
    return sum([await _expire(db, tenant_id, retention) for tenant_id in await store.tenants_of_closed_cases(db.pool)])


async def _expire(db: Database, tenant_id: UUID, retention: Retention) -> int:
    days = retention.of(tenant_id)
    if not await store.has_quiet_cases(db.pool, tenant_id, days):
        return 0
    async with db.transaction() as tx:
        # A report that is being matched finds the case and joins it, or finds nothing and opens another.
        await store.take_turn(tx, tenant_id)
        quiet = await store.lock_quiet_cases(tx, tenant_id, days, CASES)
        case_ids = fitting(quiet, REPORTS)
        await store.note_last_activity(tx, case_ids)
        expired = await store.forget_cases(tx, case_ids, days)
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
