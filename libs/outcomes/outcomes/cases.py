"""The SQL of `cases`: how far triage is with the cases of this service's reports, and what Microsoft concluded."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from backstop_contracts import CaseUpdated, Verdict, VerdictReady
from chassis.postgres import Tx


def cases_of(updates: Sequence[CaseUpdated]) -> dict[UUID, UUID]:
    """Return the latest case of each report that *updates* name."""
    in_order = sorted(updates, key=lambda update: update.changed_at)
    return {report_id: update.case_id for update in in_order for report_id in update.report_ids}


async def assign_cases(tx: Tx, cases: Mapping[UUID, UUID]) -> set[UUID]:
    """Record the cases (values) of reports (keys); return the ids of the reports that are here."""
    rows = await tx.fetch(
        "UPDATE reports SET case_id = new.case_id FROM unnest($1::uuid[], $2::uuid[]) AS new (report_id, case_id)"
        " WHERE reports.report_id = new.report_id RETURNING reports.report_id",
        list(cases),
        list(cases.values()),
    )
    return {row["report_id"] for row in rows}


async def record_cases(tx: Tx, updates: Sequence[CaseUpdated]) -> None:
    """Keep the status of cases, unless a later one is known or no report of the case is here."""
    newest = {update.case_id: update for update in sorted(updates, key=lambda update: update.changed_at)}
    await tx.execute(
        "INSERT INTO cases (case_id, status, changed_at)"
        " SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS new (case_id, status, changed_at)"
        " WHERE EXISTS (SELECT FROM reports WHERE reports.case_id = new.case_id)"
        # Two topics are handled side by side: rows that are locked in one order make no deadlock.
        " ORDER BY case_id ON CONFLICT (case_id)"
        " DO UPDATE SET status = excluded.status, changed_at = excluded.changed_at"
        " WHERE cases.changed_at IS NULL OR cases.changed_at <= excluded.changed_at",
        list(newest),
        [update.status for update in newest.values()],
        [update.changed_at for update in newest.values()],
    )


async def record_verdicts(tx: Tx, verdicts: Sequence[VerdictReady]) -> None:
    """Keep Microsoft's verdicts on cases, unless a later one is known. Their cases may become known afterwards."""
    newest = {verdict.case_id: verdict for verdict in sorted(verdicts, key=lambda verdict: verdict.read_at)}
    await tx.execute(
        "INSERT INTO cases (case_id, verdict, read_at) SELECT * FROM unnest($1::uuid[], $2::jsonb[], $3::timestamptz[])"
        " AS new (case_id, verdict, read_at) ORDER BY case_id"
        " ON CONFLICT (case_id) DO UPDATE SET verdict = excluded.verdict, read_at = excluded.read_at"
        " WHERE cases.read_at IS NULL OR cases.read_at <= excluded.read_at",
        list(newest),
        [verdict.model_dump(mode="json", include=set(Verdict.model_fields)) for verdict in newest.values()],
        [verdict.read_at for verdict in newest.values()],
    )


async def purge_unreported_cases(tx: Tx, age: timedelta) -> None:
    """Delete cases without a report in this service that last changed more than *age* ago."""
    await tx.execute(
        "DELETE FROM cases WHERE greatest(changed_at, read_at) < now() - $1::interval"
        " AND NOT EXISTS (SELECT FROM reports WHERE reports.case_id = cases.case_id)",
        age,
    )
