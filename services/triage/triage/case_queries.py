"""The SQL of what admins read: lists of cases, and a case with its blocks and its timeline."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from backstop_contracts import CaseStatus, ReportedAs
from chassis.postgres import Reads

_SUMMARY = (
    "case_id, status, reported_as, folders, report_count, sender, message->>'subject' AS subject, opened_at,"
    " last_reported_at, conclusion"
)


async def list_cases(
    db: Reads,
    tenant_id: UUID,
    *,
    status: CaseStatus | None,
    sender: str | None,
    sender_domain: str | None,
    reported_as: ReportedAs | None,
    folder: str | None,
    conclusion: str | None,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Mapping[str, Any]]:
    """Return a page of cases, newest first, that comes after the place *after*."""
    conditions = ["tenant_id = $1"]
    values: list[Any] = [tenant_id, limit]
    for condition, value in (
        ("status = ${}", status),
        ("sender = ${}", sender),
        ("sender_domain = ${}", sender_domain),
        ("${} = ANY(reported_as)", reported_as),
        ("${} = ANY(folders)", folder),
        ("conclusion = ${}", conclusion),
    ):
        if value is not None:
            values.append(value)
            conditions.append(condition.format(len(values)))
    if after:
        values.extend(after)
        conditions.append(f"(opened_at, case_id) < (${len(values) - 1}, ${len(values)})")
    rows = await db.fetch(
        f"SELECT {_SUMMARY} FROM cases WHERE {' AND '.join(conditions)} ORDER BY opened_at DESC, case_id DESC LIMIT $2",
        *values,
    )
    return [dict(row) for row in rows]


async def read_timeline(db: Reads, case_id: UUID) -> list[dict[str, Any]]:
    """Return what happened to a case, in order."""
    rows = await db.fetch("SELECT at, kind, actor, detail FROM timeline WHERE case_id = $1 ORDER BY at, seq", case_id)
    return [dict(row) for row in rows]


async def list_blocks(db: Reads, case_id: UUID) -> list[dict[str, Any]]:
    """Return the blocks of a case."""
    rows = await db.fetch(
        "SELECT block_id, kind, value, entry, status, reason, expires_at FROM blocks WHERE case_id = $1"
        " ORDER BY kind, value, generation",
        case_id,
    )
    return [dict(row) for row in rows]
