"""The SQL of `reports`: what was reported from the quarantine, and the case of each report."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from backstop_contracts import CaseStatus, Verdict
from chassis.postgres import Reads, Tx


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """A report of a quarantined message, with the state of its case."""

    report_id: UUID
    message_id: UUID
    case_id: UUID | None
    status: CaseStatus | None
    verdict: Verdict | None


async def record_report(tx: Tx, report_id: UUID, message_id: UUID) -> bool:
    """Record the report of a message; return False if it was recorded before."""
    return bool(
        await tx.fetchval(
            "INSERT INTO reports (report_id, message_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
            report_id,
            message_id,
        )
    )


async def find_reports(db: Reads, message_ids: Collection[UUID]) -> list[QuarantineReport]:
    """Return the reports of the messages, with the state of their cases."""
    rows = await db.fetch(
        "SELECT reports.*, status, verdict FROM reports LEFT JOIN cases USING (case_id)"
        " WHERE message_id = ANY($1::uuid[]) ORDER BY report_id",
        list(message_ids),
    )
    return [
        QuarantineReport(
            report_id=row["report_id"],
            message_id=row["message_id"],
            case_id=row["case_id"],
            status=CaseStatus(row["status"]) if row["status"] else None,
            verdict=Verdict.model_validate(row["verdict"]) if row["verdict"] else None,
        )
        for row in rows
    ]


async def purge_expired_cases(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Delete cases and their reports."""
    await tx.execute(
        "WITH reports AS (DELETE FROM reports WHERE case_id = ANY($1::uuid[]))"
        " DELETE FROM cases WHERE case_id = ANY($1::uuid[])",
        case_ids,
    )
