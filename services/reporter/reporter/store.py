"""The SQL of reporter: one function per statement. Callers hold the transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from backstop_contracts import CaseStatus, CaseUpdated, MessageReported, ReportedAs
from chassis.postgres import Reads, Tx
from outcomes import MailboxBlock

Mail: TypeAlias = tuple[UUID, str]
"""A raw mail in the mail store: tenant and SHA-256."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a report. `mail_gone`: its mail may have been deleted after it had been put into the store."""

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


async def patient_for(tx: Tx, seconds: float) -> None:
    """Wait at most so long for a lock of others in this transaction."""
    await tx.execute("SELECT set_config('lock_timeout', $1, true)", f"{seconds * 1000:.0f}ms")


async def record_reports(tx: Tx, reports: Sequence[tuple[MessageReported, str]]) -> list[Recorded]:
    """
    Store reports, each with who filed it, unless they are known. Of two at the same time, one waits and is not new.

    Until the transaction ends, nobody deletes the reports' mails from the mail store.
    """
    rows = await tx.fetch(
        "WITH said AS MATERIALIZED (SELECT *, hold_mail(tenant_id, sha256) AS gone FROM unnest($1::uuid[], $2::uuid[],"
        " $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[]) WITH ORDINALITY AS said"
        " (report_id, tenant_id, filer, reporter, reported_as, folder, sha256, reported_at, place)),"
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
    return [Recorded(row["new"], row["gone"]) for row in rows]


async def add_filer(tx: Tx, report: MessageReported, filed_by: str) -> None:
    """
    Let somebody else who filed the same report hear what becomes of it.

    The same Message-ID may have come with other bytes; these then expire at once, because no report refers to them.
    """
    await tx.execute(
        "WITH heard AS (UPDATE reports SET filed_by = array_append(filed_by, $2) WHERE report_id = $1"
        " AND $2 <> ALL(filed_by)) INSERT INTO expired_mails (tenant_id, sha256) SELECT $3::uuid, $4::text"
        " WHERE NOT EXISTS (SELECT FROM reports WHERE tenant_id = $3 AND sha256 = $4)"
        " ON CONFLICT (tenant_id, sha256) DO UPDATE SET due_at = now(), deleted = false",
        report.report_id,
        filed_by,
        report.tenant_id,
        report.message.sha256,
    )


async def attach_block(tx: Tx, report_id: UUID, block_id: UUID) -> None:
    """Note which block was asked for with a report."""
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


async def record_others(tx: Tx, reports: Sequence[MessageReported]) -> list[UUID]:
    """
    Store reports of other channels, which refer to their mails as our own do; one that is known changes nothing.

    Returns those whose mail is being deleted at this moment, or was a short while ago.
    """
    await _take_turn(tx)
    rows = await tx.fetch(
        "WITH told AS MATERIALIZED (SELECT *, hold_mail(tenant_id, sha256) AS gone FROM unnest($1::uuid[], $2::uuid[],"
        " $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[]) AS new (report_id, tenant_id, reporter,"
        " reported_as, folder, sha256, reported_at)), early AS (DELETE FROM early_cases USING told"
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
    """Record which cases reports belong to; of a report that is not here yet, for when it comes."""
    in_order = sorted(updates, key=lambda update: update.changed_at)
    cases = {report_id: update.case_id for update in in_order for report_id in update.report_ids}
    unknown = cases.keys() - await _assign(tx, cases)
    if not unknown:
        return
    await _take_turn(tx)
    unknown -= await _assign(tx, {report_id: cases[report_id] for report_id in unknown})
    await tx.execute(
        "INSERT INTO early_cases (report_id, case_id) SELECT * FROM unnest($1::uuid[], $2::uuid[])"
        " ON CONFLICT DO NOTHING",
        list(unknown),
        [cases[report_id] for report_id in unknown],
    )


async def _assign(tx: Tx, cases: Mapping[UUID, UUID]) -> set[UUID]:
    rows = await tx.fetch(
        "UPDATE reports SET case_id = new.case_id FROM unnest($1::uuid[], $2::uuid[]) AS new (report_id, case_id)"
        " WHERE reports.report_id = new.report_id RETURNING reports.report_id",
        list(cases),
        list(cases.values()),
    )
    return {row["report_id"] for row in rows}


async def _take_turn(tx: Tx) -> None:
    """Let one transaction at a time bring reports of other channels and their cases together: two topics, any order."""
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('reporter'), hashtext('early cases'))")


async def forget_cases(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Delete cases and their reports; the reports' mails are due to be deleted, unless others refer to them."""
    await tx.execute(
        "WITH gone AS (DELETE FROM reports WHERE case_id = ANY($1::uuid[]) RETURNING tenant_id, sha256),"
        " cases AS (DELETE FROM cases WHERE case_id = ANY($1::uuid[]))"
        " INSERT INTO expired_mails (tenant_id, sha256) SELECT DISTINCT tenant_id, sha256 FROM gone"
        " ORDER BY tenant_id, sha256 ON CONFLICT (tenant_id, sha256) DO UPDATE SET due_at = now(), deleted = false",
        case_ids,
    )


async def claim_expired_mails(tx: Tx, lease: timedelta, limit: int) -> list[Mail]:
    """Take mails that are due, for *lease*: then they come due again unless they are settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT tenant_id, sha256 FROM expired_mails WHERE due_at <= now() ORDER BY due_at LIMIT $2"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE expired_mails AS mail SET due_at = now() + $1::interval, attempts = attempts + 1 FROM due"
        " WHERE mail.tenant_id = due.tenant_id AND mail.sha256 = due.sha256"
        " RETURNING mail.tenant_id, mail.sha256",
        lease,
        limit,
    )
    return [(row["tenant_id"], row["sha256"]) for row in rows]


async def lock_mails(tx: Tx, mails: Sequence[Mail]) -> list[Mail]:
    """
    Keep *mails* from being reported until the transaction ends; return those that nobody else has to do with now.

    It waits for nobody. Which of them reports refer to must be asked in a later statement: only that one sees all.
    """
    rows = await tx.fetch(
        # Locked before the join: within it, PostgreSQL may try the lock of every row of the table.
        "WITH due AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::text[]) AS due (tenant_id, sha256)"
        " WHERE pg_try_advisory_xact_lock(mail_lock(tenant_id, sha256)))"
        " SELECT mail.tenant_id, mail.sha256 FROM expired_mails AS mail JOIN due USING (tenant_id, sha256)"
        " FOR UPDATE OF mail SKIP LOCKED",
        [tenant_id for tenant_id, _ in mails],
        [sha256 for _, sha256 in mails],
    )
    return [(row["tenant_id"], row["sha256"]) for row in rows]


async def release_mails(tx: Tx, mails: Sequence[Mail]) -> set[Mail]:
    """Drop those of *mails*, which are locked, that reports refer to, or that are deleted; return which they were."""
    rows = await tx.fetch(
        "DELETE FROM expired_mails AS mail USING unnest($1::uuid[], $2::text[]) AS held (tenant_id, sha256)"
        " WHERE mail.tenant_id = held.tenant_id AND mail.sha256 = held.sha256 AND (mail.deleted OR EXISTS"
        " (SELECT FROM reports WHERE reports.tenant_id = mail.tenant_id AND reports.sha256 = mail.sha256))"
        " RETURNING mail.tenant_id, mail.sha256",
        [tenant_id for tenant_id, _ in mails],
        [sha256 for _, sha256 in mails],
    )
    return {(row["tenant_id"], row["sha256"]) for row in rows}


async def settle_mails(tx: Tx, mails: Sequence[Mail], remembered: timedelta) -> None:
    """Note that mails are deleted, and remember it for a while."""
    await tx.execute(
        "UPDATE expired_mails AS mail SET deleted = true, due_at = now() + $3::interval"
        " FROM unnest($1::uuid[], $2::text[]) AS held (tenant_id, sha256)"
        " WHERE mail.tenant_id = held.tenant_id AND mail.sha256 = held.sha256",
        [tenant_id for tenant_id, _ in mails],
        [sha256 for _, sha256 in mails],
        remembered,
    )


async def expire_unreported(tx: Tx, mails: Sequence[Mail]) -> None:
    """Make those of *mails* due that no report refers to."""
    await tx.execute(
        "INSERT INTO expired_mails (tenant_id, sha256)"
        " SELECT * FROM unnest($1::uuid[], $2::text[]) AS mail (tenant_id, sha256) WHERE NOT EXISTS"
        " (SELECT FROM reports WHERE reports.tenant_id = mail.tenant_id AND reports.sha256 = mail.sha256)"
        " ON CONFLICT DO NOTHING",
        [tenant_id for tenant_id, _ in mails],
        [sha256 for _, sha256 in mails],
    )


async def forget_unreported_cases(tx: Tx, age: timedelta) -> None:
    """Delete what was heard, more than *age* ago, of cases of which no report is here."""
    await tx.execute("DELETE FROM early_cases WHERE noted_at < now() - $1::interval", age)
    await tx.execute(
        "DELETE FROM cases WHERE greatest(changed_at, read_at) < now() - $1::interval"
        " AND NOT EXISTS (SELECT FROM reports WHERE reports.case_id = cases.case_id)",
        age,
    )
