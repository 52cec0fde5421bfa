"""The SQL of reporter: one function per statement. Callers hold the transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import outcomes
from backstop_contracts import CaseStatus, CaseUpdated, MessageReported, ReportedAs
from chassis.postgres import Reads, Tx
from outcomes import MailboxBlock


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of storing a report. `mail_gone`: its message may have been deleted after it was stored."""

    new: bool
    mail_gone: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A row of `reports` with what is known of its case and its block."""

    report_id: UUID
    filed_by: tuple[str, ...]
    reporter: str
    reported_as: ReportedAs
    folder: str
    reported_at: datetime
    status: CaseStatus | None
    conclusion: str | None
    override: str | None
    block: MailboxBlock | None


async def set_lock_timeout(tx: Tx, seconds: float) -> None:
    """Limit how long this transaction waits for a lock."""
    await tx.execute("SELECT set_config('lock_timeout', $1, true)", f"{seconds * 1000:.0f}ms")


async def record_reports(tx: Tx, reports: Sequence[tuple[MessageReported, str]]) -> list[Stored]:
    """
    Store reports, each with its sender. Of concurrent inserts of one report, the second waits and is reported as known.

    Until the transaction ends, their messages are not deleted from the mail store.
    """
    rows = await tx.fetch(
        "WITH said AS MATERIALIZED (SELECT *, hold_message(tenant_id, sha256) AS gone FROM unnest($1::uuid[],"
        " $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[]) WITH ORDINALITY"
        " AS said (report_id, tenant_id, filer, reporter, reported_as, folder, sha256, reported_at, place)),"
        " new AS (INSERT INTO reports (report_id, tenant_id, filed_by, reporter, reported_as, folder, sha256,"
        " reported_at) SELECT report_id, tenant_id, ARRAY[filer], reporter, reported_as, folder, sha256, reported_at"
        " FROM said ORDER BY report_id, place ON CONFLICT DO NOTHING RETURNING report_id)"
        " SELECT gone, new.report_id IS NOT NULL AND place = min(place) OVER (PARTITION BY said.report_id) AS new"
        " FROM said LEFT JOIN new USING (report_id) ORDER BY place",
        [report.report_id for report, _ in reports],
        [report.tenant_id for report, _ in reports],
        [filer for _, filer in reports],
        [report.reporter for report, _ in reports],
        [report.reported_as for report, _ in reports],
        [report.folder for report, _ in reports],
        [report.message.sha256 for report, _ in reports],
        [report.reported_at for report, _ in reports],
    )
    return [Stored(row["new"], row["gone"]) for row in rows]


async def add_filer(tx: Tx, report: MessageReported, filed_by: str) -> None:
    """
    Let somebody else who sent the same report read its status.

    The same Message-ID may have come with other bytes; these then expire at once, because no report refers to them.
    """
    await tx.execute(
        "WITH heard AS (UPDATE reports SET filed_by = array_append(filed_by, $2) WHERE report_id = $1"
        " AND $2 <> ALL(filed_by)) INSERT INTO expired_messages (tenant_id, sha256) SELECT $3::uuid, $4::text"
        " WHERE NOT EXISTS (SELECT FROM reports WHERE tenant_id = $3 AND sha256 = $4)"
        " ON CONFLICT (tenant_id, sha256) DO UPDATE SET due_at = now(), deleted = false",
        report.report_id,
        filed_by,
        report.tenant_id,
        report.message.sha256,
    )


async def attach_block(tx: Tx, report_id: UUID, block_id: UUID) -> None:
    """Record which block was requested with a report."""
    await tx.execute("UPDATE reports SET block_id = $2 WHERE report_id = $1", report_id, block_id)


async def find_report(db: Reads, tenant_id: UUID, report_id: UUID) -> Report | None:
    """Return one report of a tenant with what is known of its case and its block."""
    row = await db.fetchrow(
        "SELECT report_id, filed_by, reporter, reported_as, folder, reported_at, cases.status AS case_status,"
        " verdict->>'conclusion' AS conclusion, verdict->>'override' AS override,"
        " blocks.block_id, mailbox, sender, generation, blocks.status, reason, detail"
        " FROM reports LEFT JOIN cases USING (case_id) LEFT JOIN blocks USING (block_id)"
        " WHERE reports.tenant_id = $1 AND report_id = $2",
        tenant_id,
        report_id,
    )
    if row is None:
        return None
    return Report(
        report_id=row["report_id"],
        filed_by=tuple(row["filed_by"]),
        reporter=row["reporter"],
        reported_as=ReportedAs(row["reported_as"]),
        folder=row["folder"],
        reported_at=row["reported_at"],
        status=CaseStatus(row["case_status"]) if row["case_status"] else None,
        conclusion=row["conclusion"],
        override=row["override"],
        block=MailboxBlock(**{field: row[field] for field in MailboxBlock.__slots__}) if row["block_id"] else None,
    )


async def record_other_channels(tx: Tx, reports: Sequence[MessageReported]) -> list[UUID]:
    """
    Store reports of other channels, so that their messages are kept. A known report changes nothing.

    Return the ids of reports whose message is being deleted at this moment, or was deleted a short while ago.
    """
    await _serialise_case_matching(tx)
    rows = await tx.fetch(
        "WITH told AS MATERIALIZED (SELECT *, hold_message(tenant_id, sha256) AS gone FROM unnest($1::uuid[],"
        " $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[]) AS new (report_id, tenant_id,"
        " reporter, reported_as, folder, sha256, reported_at)), early AS (DELETE FROM early_cases USING told"
        " WHERE early_cases.report_id = told.report_id RETURNING early_cases.report_id, early_cases.case_id),"
        " new AS (INSERT INTO reports (report_id, tenant_id, filed_by, reporter, reported_as, folder, sha256,"
        " reported_at, case_id) SELECT report_id, tenant_id, '{}', reporter, reported_as, folder, sha256, reported_at,"
        " early.case_id FROM told LEFT JOIN early USING (report_id) ON CONFLICT DO NOTHING RETURNING report_id)"
        " SELECT report_id FROM new JOIN told USING (report_id) WHERE gone",
        [report.report_id for report in reports],
        [report.tenant_id for report in reports],
        [report.reporter for report in reports],
        [report.reported_as for report in reports],
        [report.folder for report in reports],
        [report.message.sha256 for report in reports],
        [report.reported_at for report in reports],
    )
    return [row["report_id"] for row in rows]


async def assign_cases(tx: Tx, updates: Sequence[CaseUpdated]) -> None:
    """Record which cases reports belong to, including reports that have not arrived yet."""
    cases = outcomes.cases_of(updates)
    unknown = cases.keys() - await outcomes.assign_cases(tx, cases)
    if not unknown:
        return
    await _serialise_case_matching(tx)
    unknown -= await outcomes.assign_cases(tx, {report_id: cases[report_id] for report_id in unknown})
    await tx.execute(
        "INSERT INTO early_cases (report_id, case_id) SELECT * FROM unnest($1::uuid[], $2::uuid[])"
        " ON CONFLICT DO NOTHING",
        list(unknown),
        [cases[report_id] for report_id in unknown],
    )


async def _serialise_case_matching(tx: Tx) -> None:
    """Serialise matching reports to cases. Reports and case updates arrive on different topics, in either order."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('reporter'), hashtext('early cases'))")


async def purge_expired_cases(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Delete cases and their reports, and make the reports' messages due."""
    await tx.execute(
        "WITH gone AS (DELETE FROM reports WHERE case_id = ANY($1::uuid[]) RETURNING tenant_id, sha256),"
        " cases AS (DELETE FROM cases WHERE case_id = ANY($1::uuid[]))"
        " INSERT INTO expired_messages (tenant_id, sha256) SELECT DISTINCT tenant_id, sha256 FROM gone"
        " ORDER BY tenant_id, sha256 ON CONFLICT (tenant_id, sha256) DO UPDATE SET due_at = now(), deleted = false",
        case_ids,
    )
