"""The SQL of triage: one function per statement. Callers hold the transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from backstop_contracts import (
    Actor,
    Block,
    CaseStatus,
    MailboxMessage,
    Message,
    MessageReported,
    ReportedAs,
    Verdict,
    VerdictReady,
)
from backstop_contracts.identity import CaseKey
from chassis.postgres import Reads, Tx


@dataclass(frozen=True, slots=True)
class Case:
    """A row of `cases`."""

    case_id: UUID
    tenant_id: UUID
    status: CaseStatus
    reported_as: tuple[ReportedAs, ...]
    folders: tuple[str, ...]
    report_count: int
    recipient: str
    message: Message
    mailbox_message: MailboxMessage | None
    opened_at: datetime
    last_reported_at: datetime
    submissions: int
    submission_id: UUID | None
    verdict: Verdict | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """What a list shows of a case."""

    case_id: UUID
    status: CaseStatus
    reported_as: tuple[ReportedAs, ...]
    folders: tuple[str, ...]
    report_count: int
    sender: str | None
    subject: str | None
    opened_at: datetime
    last_reported_at: datetime
    conclusion: str | None


_SUMMARY = (
    "case_id, status, reported_as, folders, report_count, sender, message->>'subject' AS subject, opened_at,"
    " last_reported_at, conclusion"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a case. `entry` names the thing itself, so that it is told once."""

    case_id: UUID
    entry: str
    at: datetime
    kind: str
    detail: Mapping[str, Any]
    actor: Actor | None = None


def _case(row: asyncpg.Record) -> Case:
    return Case(
        case_id=row["case_id"],
        tenant_id=row["tenant_id"],
        status=CaseStatus(row["status"]),
        reported_as=tuple(map(ReportedAs, row["reported_as"])),
        folders=tuple(row["folders"]),
        report_count=row["report_count"],
        recipient=row["recipient"],
        message=Message.model_validate(row["message"]),
        mailbox_message=MailboxMessage.model_validate(row["mailbox_message"]) if row["mailbox_message"] else None,
        opened_at=row["opened_at"],
        last_reported_at=row["last_reported_at"],
        submissions=row["submissions"],
        submission_id=row["submission_id"],
        verdict=Verdict.model_validate(row["verdict"]) if row["verdict"] else None,
        traceparent=row["traceparent"],
    )


async def take_turn(tx: Tx, tenant_id: UUID) -> None:
    """
    Let one transaction at a time match reports of a tenant to cases.

    Two reports of one mail can lie in two partitions (same content, other Message-ID), so two replicas could open a
    case each.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('triage'), hashtext($1))", str(tenant_id))


async def unknown_reports(tx: Tx, report_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of *report_ids* that no case has yet."""
    rows = await tx.fetch(
        "SELECT id FROM unnest($1::uuid[]) AS id WHERE NOT EXISTS (SELECT FROM reports WHERE report_id = id)",
        report_ids,
    )
    return {row["id"] for row in rows}


async def find_keys(tx: Tx, tenant_id: UUID, keys: Iterable[CaseKey]) -> dict[CaseKey, UUID]:
    """Return the cases that own some of *keys*."""
    rows = await tx.fetch(
        "SELECT key, case_id FROM case_keys WHERE tenant_id = $1 AND key = ANY($2::bytea[])", tenant_id, list(keys)
    )
    return {row["key"]: row["case_id"] for row in rows}


async def record_keys(tx: Tx, tenant_id: UUID, keys: Mapping[CaseKey, UUID]) -> None:
    """Give *keys* to their cases."""
    if not keys:
        return
    await tx.execute(
        "INSERT INTO case_keys SELECT $1, key, case_id FROM unnest($2::bytea[], $3::uuid[]) AS new (key, case_id)"
        " ON CONFLICT (tenant_id, key) DO UPDATE SET case_id = excluded.case_id",
        tenant_id,
        list(keys),
        list(keys.values()),
    )


async def record_reports(tx: Tx, reports: Sequence[tuple[MessageReported, UUID]]) -> None:
    """Store *reports* with their cases."""
    await tx.execute(
        "INSERT INTO reports (report_id, tenant_id, case_id, reporter, reported_as, folder, sha256, reported_at,"
        " reporter_id) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[],"
        " $7::text[], $8::timestamptz[], $9::text[])",
        [report.report_id for report, _ in reports],
        [report.tenant_id for report, _ in reports],
        [case_id for _, case_id in reports],
        [report.reporter for report, _ in reports],
        [report.reported_as for report, _ in reports],
        [report.folder for report, _ in reports],
        [report.message.sha256 for report, _ in reports],
        [report.reported_at for report, _ in reports],
        [report.reporter_id for report, _ in reports],
    )


async def count_people(tx: Tx, case_ids: Sequence[UUID]) -> dict[UUID, int]:
    """
    Return how many people have reported each case.

    A person is known by the object id, and by the address where only an application has spoken for them; an address
    that somebody signed in with is that person's.
    """
    if not case_ids:
        return {}
    rows = await tx.fetch(
        "SELECT case_id, count(DISTINCT coalesce(reporter_id, known, address)) AS people"
        " FROM (SELECT case_id, reporter_id, lower(reporter) AS address,"
        " max(reporter_id) OVER (PARTITION BY case_id, lower(reporter)) AS known"
        " FROM reports WHERE case_id = ANY($1::uuid[])) AS said GROUP BY case_id",
        case_ids,
    )
    return {row["case_id"]: row["people"] for row in rows}


async def record_cases(tx: Tx, cases: Sequence[Case]) -> None:
    """Store new cases."""
    if not cases:
        return
    await tx.execute(
        "INSERT INTO cases (case_id, tenant_id, status, reported_as, folders, report_count, recipient, sender,"
        " sender_domain, message, mailbox_message, opened_at, last_reported_at, submissions, submission_id,"
        " traceparent) SELECT case_id, tenant_id, status, string_to_array(reported_as, ','),"
        " string_to_array(folders, ','), report_count, recipient, sender, sender_domain, message, mailbox_message,"
        " opened_at, last_reported_at, submissions, submission_id, traceparent FROM unnest($1::uuid[], $2::uuid[],"
        " $3::text[], $4::text[], $5::text[], $6::int[], $7::text[], $8::text[], $9::text[], $10::jsonb[],"
        " $11::jsonb[], $12::timestamptz[], $13::timestamptz[], $14::int[], $15::uuid[], $16::text[])"
        " AS new (case_id, tenant_id, status, reported_as, folders, report_count, recipient, sender, sender_domain,"
        " message, mailbox_message, opened_at, last_reported_at, submissions, submission_id, traceparent)",
        [case.case_id for case in cases],
        [case.tenant_id for case in cases],
        [case.status for case in cases],
        [",".join(case.reported_as) for case in cases],
        [",".join(case.folders) for case in cases],
        [case.report_count for case in cases],
        [case.recipient for case in cases],
        [case.message.sender for case in cases],
        [case.message.sender_domain for case in cases],
        [orjson.Fragment(case.message.model_dump_json()) for case in cases],
        [case.mailbox_message.model_dump(mode="json") if case.mailbox_message else None for case in cases],
        [case.opened_at for case in cases],
        [case.last_reported_at for case in cases],
        [case.submissions for case in cases],
        [case.submission_id for case in cases],
        [case.traceparent for case in cases],
    )


async def join_cases(tx: Tx, cases: Sequence[Case]) -> None:
    """Write back what reports changed in *cases*, which are locked."""
    if not cases:
        return
    await tx.execute(
        "UPDATE cases SET report_count = new.report_count, last_reported_at = new.last_reported_at,"
        " reported_as = string_to_array(new.reported_as, ','), folders = string_to_array(new.folders, ',')"
        " FROM unnest($1::uuid[], $2::int[], $3::timestamptz[], $4::text[], $5::text[])"
        " AS new (case_id, report_count, last_reported_at, reported_as, folders) WHERE cases.case_id = new.case_id",
        [case.case_id for case in cases],
        [case.report_count for case in cases],
        [case.last_reported_at for case in cases],
        [",".join(case.reported_as) for case in cases],
        [",".join(case.folders) for case in cases],
    )


async def lock_cases(tx: Tx, case_ids: Iterable[UUID]) -> dict[UUID, Case]:
    """Lock and return cases, always in the order of their ids, so that no two transactions wait for each other."""
    rows = await tx.fetch(
        "SELECT * FROM cases WHERE case_id = ANY($1::uuid[]) ORDER BY case_id FOR UPDATE", list(set(case_ids))
    )
    return {row["case_id"]: _case(row) for row in rows}


async def find_case(db: Reads, tenant_id: UUID, case_id: UUID, *, lock: bool = False) -> Case | None:
    """Return one case of a tenant, locked if it is to be decided on."""
    row = await db.fetchrow(
        "SELECT * FROM cases WHERE tenant_id = $1 AND case_id = $2" + (" FOR UPDATE" if lock else ""),
        tenant_id,
        case_id,
    )
    return _case(row) if row else None


async def mark_submitted(tx: Tx, cases: Mapping[UUID, UUID]) -> None:
    """Note that cases (keys) are being submitted as submissions (values)."""
    if not cases:
        return
    await tx.execute(
        "UPDATE cases SET status = 'submitted', submission_id = new.submission_id, submissions = submissions + 1"
        " FROM unnest($1::uuid[], $2::uuid[]) AS new (case_id, submission_id) WHERE cases.case_id = new.case_id",
        list(cases),
        list(cases.values()),
    )


async def move(tx: Tx, case_ids: Sequence[UUID], status: CaseStatus) -> None:
    """Set the status of cases."""
    await tx.execute("UPDATE cases SET status = $2 WHERE case_id = ANY($1::uuid[])", case_ids, status)


async def record_verdicts(tx: Tx, verdicts: Sequence[VerdictReady]) -> None:
    """Keep the latest verdict of cases; one verdict per case."""
    if not verdicts:
        return
    await tx.execute(
        "UPDATE cases SET verdict = new.verdict, conclusion = new.conclusion"
        " FROM unnest($1::uuid[], $2::jsonb[], $3::text[]) AS new (case_id, verdict, conclusion)"
        " WHERE cases.case_id = new.case_id",
        [verdict.case_id for verdict in verdicts],
        [verdict.model_dump(mode="json", include=set(Verdict.model_fields)) for verdict in verdicts],
        [verdict.conclusion for verdict in verdicts],
    )


async def tell(tx: Tx, entries: Sequence[Entry]) -> set[str]:
    """
    Add *entries* to the timelines; return the names of those that were not told before.

    A case that has expired has no timeline any more: what is told of it is dropped.
    """
    if not entries:
        return set()
    rows = await tx.fetch(
        "WITH standing AS (SELECT case_id FROM cases WHERE case_id = ANY($1::uuid[]) ORDER BY case_id FOR KEY SHARE)"
        " INSERT INTO timeline (case_id, entry, at, kind, actor, detail)"
        " SELECT case_id, entry, at, kind, actor, detail FROM unnest($1::uuid[], $2::text[], $3::timestamptz[],"
        " $4::text[], $5::jsonb[], $6::jsonb[]) WITH ORDINALITY AS new (case_id, entry, at, kind, actor, detail, place)"
        " JOIN standing USING (case_id) ORDER BY place ON CONFLICT DO NOTHING RETURNING entry",
        [entry.case_id for entry in entries],
        [entry.entry for entry in entries],
        [entry.at for entry in entries],
        [entry.kind for entry in entries],
        [entry.actor.model_dump() if entry.actor else None for entry in entries],
        [entry.detail for entry in entries],
    )
    return {row["entry"] for row in rows}


async def timeline(db: Reads, case_id: UUID) -> list[dict[str, Any]]:
    """Return what happened to a case, in order."""
    rows = await db.fetch("SELECT at, kind, actor, detail FROM timeline WHERE case_id = $1 ORDER BY at, seq", case_id)
    return [dict(row) for row in rows]


async def count_blocks(
    tx: Tx, wanted: Collection[tuple[UUID, str, str]]
) -> dict[tuple[UUID, str, str], tuple[int, bool]]:
    """
    Look up what cases have already asked for, by case, kind and value; what nobody asked for is left out.

    Returns how many blocks there were, and whether one of them stands or is on its way.
    """
    if not wanted:
        return {}
    rows = await tx.fetch(
        "SELECT case_id, kind, value, count(*) AS rounds, bool_or(status IN ('requested', 'applied')) AS standing"
        " FROM blocks JOIN unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (case_id, kind, value)"
        " USING (case_id, kind, value) GROUP BY case_id, kind, value",
        *map(list, zip(*wanted, strict=True)),
    )
    return {(row["case_id"], row["kind"], row["value"]): (row["rounds"], row["standing"]) for row in rows}


async def record_blocks(tx: Tx, blocks: Sequence[tuple[Block, int]]) -> None:
    """Store blocks that are now requested, each with its round."""
    if not blocks:
        return
    await tx.execute(
        "INSERT INTO blocks (block_id, case_id, kind, value, expires_at, round, status)"
        " SELECT *, 'requested' FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[],"
        " $6::int[])",
        [block.block_id for block, _ in blocks],
        [block.case_id for block, _ in blocks],
        [block.kind for block, _ in blocks],
        [block.value for block, _ in blocks],
        [block.expires_at for block, _ in blocks],
        [round_ for _, round_ in blocks],
    )


async def settle_blocks(tx: Tx, outcomes: Mapping[UUID, tuple[str, str | None, str | None]]) -> None:
    """
    Record the outcome of blocks: status, the entry that was made, and why it failed or ended.

    One that was removed stays so, because its events come on topics of their own.
    """
    await tx.execute(
        "UPDATE blocks SET entry = coalesce(new.entry, blocks.entry),"
        " reason = CASE blocks.status WHEN 'removed' THEN blocks.reason ELSE new.reason END,"
        " status = CASE blocks.status WHEN 'removed' THEN blocks.status ELSE new.status END"
        " FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS new (block_id, status, entry, reason)"
        " WHERE blocks.block_id = new.block_id",
        list(outcomes),
        [status for status, _, _ in outcomes.values()],
        [entry for _, entry, _ in outcomes.values()],
        [reason for _, _, reason in outcomes.values()],
    )


async def blocks(db: Reads, case_id: UUID) -> list[dict[str, Any]]:
    """Return the blocks of a case."""
    rows = await db.fetch(
        "SELECT block_id, kind, value, entry, status, reason, expires_at FROM blocks WHERE case_id = $1"
        " ORDER BY kind, value, round",
        case_id,
    )
    return [dict(row) for row in rows]


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
) -> list[CaseSummary]:
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
    return [
        CaseSummary(
            **{
                **row,
                "status": CaseStatus(row["status"]),
                "reported_as": tuple(map(ReportedAs, row["reported_as"])),
                "folders": tuple(row["folders"]),
            }
        )
        for row in rows
    ]


async def tenants_of_closed_cases(db: Reads) -> list[UUID]:
    """Return the tenants that have closed cases, hopping from one to the next along the index."""
    first = "(SELECT tenant_id FROM cases WHERE status IN ('resolved', 'dismissed'){} ORDER BY tenant_id LIMIT 1)"
    rows = await db.fetch(
        f"WITH RECURSIVE found AS ({first.format('')} UNION ALL"
        f" SELECT {first.format(' AND cases.tenant_id > found.tenant_id')} FROM found WHERE tenant_id IS NOT NULL)"
        " SELECT tenant_id FROM found WHERE tenant_id IS NOT NULL"
    )
    return [row["tenant_id"] for row in rows]


async def has_quiet_cases(db: Reads, tenant_id: UUID, retention: timedelta) -> bool:
    """Tell whether a tenant has closed cases that may have expired."""
    return bool(
        await db.fetchval(
            "SELECT EXISTS (SELECT FROM cases WHERE tenant_id = $1 AND status IN ('resolved', 'dismissed')"
            " AND quiet_since < now() - $2::interval)",
            tenant_id,
            retention,
        )
    )


async def lock_quiet_cases(tx: Tx, tenant_id: UUID, retention: timedelta, limit: int) -> dict[UUID, int]:
    """Lock closed cases of a tenant that may have expired; return the number of reports of each."""
    rows = await tx.fetch(
        "SELECT case_id, report_count FROM cases WHERE tenant_id = $1 AND status IN ('resolved', 'dismissed')"
        " AND quiet_since < now() - $2::interval ORDER BY quiet_since LIMIT $3 FOR UPDATE SKIP LOCKED",
        tenant_id,
        retention,
        limit,
    )
    return {row["case_id"]: row["report_count"] for row in rows}


async def note_last_activity(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Write down since when nothing has happened to cases, which are locked."""
    await tx.execute(
        "UPDATE cases SET quiet_since = last.at FROM (SELECT case_id, max(at) AS at FROM timeline"
        " WHERE case_id = ANY($1::uuid[]) GROUP BY case_id) AS last WHERE cases.case_id = last.case_id",
        case_ids,
    )


async def forget_cases(tx: Tx, case_ids: Sequence[UUID], retention: timedelta) -> list[asyncpg.Record]:
    """Delete those of the locked cases that have expired, with all that belongs to them; return what they were."""
    rows = await tx.fetch(
        "WITH expired AS (DELETE FROM cases WHERE case_id = ANY($1::uuid[]) AND quiet_since < now() - $2::interval"
        " RETURNING case_id, tenant_id, report_count, quiet_since, traceparent),"
        " keys AS (DELETE FROM case_keys USING expired WHERE case_keys.case_id = expired.case_id),"
        " gone AS (DELETE FROM reports USING expired WHERE reports.case_id = expired.case_id),"
        " told AS (DELETE FROM timeline USING expired WHERE timeline.case_id = expired.case_id),"
        " wanted AS (DELETE FROM blocks USING expired WHERE blocks.case_id = expired.case_id)"
        " SELECT * FROM expired",
        case_ids,
        retention,
    )
    return list(rows)
