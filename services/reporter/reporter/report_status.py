"""HTTP route: read what became of a report, for those who sent it and for security staff."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from backstop_contracts import ReportedAs
from backstop_contracts.block_schemas import BlockState
from chassis.entra import Caller, require
from chassis.http import Problem, problems
from chassis.postgres import Database
from reporter import rules, store
from reporter.mailbox_blocks import block_state

Reader = Annotated[Caller, Depends(require("Reporter", "SecurityReader", "SecurityAdministrator"))]

SECURITY = {"SecurityReader", "SecurityAdministrator"}


class ReportState(BaseModel):
    """A report and what became of it, so far."""

    report_id: UUID
    reporter: str
    reported_as: ReportedAs
    folder: str
    reported_at: datetime
    status: rules.Status
    conclusion: Annotated[str | None, Field(description="Microsoft's verdict; null until there is one.")]
    explanation: str
    block: BlockState | None


def add_routes(router: APIRouter, db: Database) -> None:
    """Add the routes that read reports."""

    @router.get("/{report_id}", operation_id="read_report", responses=problems(401, 403, 404, 422, 503))
    async def read_report(caller: Reader, report_id: UUID) -> ReportState:
        """Return what became of a report to whoever sent it, and to security staff. To others it is unknown."""
        report = await store.find_report(db.pool, caller.tenant_id, report_id)
        if report is None or not (caller.oid in report.filed_by or caller.roles & SECURITY):
            raise Problem(404, "unknown-report", f"There is no report {report_id} of yours.")
        status, explanation = rules.progress(report.status, report.conclusion, report.override)
        return ReportState(
            report_id=report_id,
            reporter=report.reporter,
            reported_as=report.reported_as,
            folder=report.folder,
            reported_at=report.reported_at,
            status=status,
            conclusion=report.conclusion if status is rules.Status.VERDICT else None,
            explanation=explanation,
            block=block_state(report.block) if report.block else None,
        )
