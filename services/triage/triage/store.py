"""The SQL of triage: one function per statement. Callers hold the transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
class Entry:
    """One thing that happened to a case. `entry` names the thing itself, so that it is recorded once."""

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


async def lock_tenant(tx: Tx, tenant_id: UUID) -> None:
    """
    Let one transaction at a time match reports of a tenant to cases.

    Two reports of one mail can lie in two partitions (same content, other Message-ID), so two replicas could open a
    case each.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtext('triage'), hashtext($1))", str(tenant_id))


async def find_unknown_reports(tx: Tx, report_ids: Sequence[UUID]) -> set[UUID]:
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
    """Assign *keys* to their cases."""
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

    A person is counted by object id. An application's report counts by address, or by the object id of the person who
    signed in with that address.
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


async def record_case_reports(tx: Tx, cases: Sequence[Case]) -> None:
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


async def set_submitted(tx: Tx, cases: Mapping[UUID, UUID]) -> None:
    """Record that cases (keys) are being submitted as submissions (values)."""
    if not cases:
        return
    await tx.execute(
        "UPDATE cases SET status = 'submitted', submission_id = new.submission_id, submissions = submissions + 1"
        " FROM unnest($1::uuid[], $2::uuid[]) AS new (case_id, submission_id) WHERE cases.case_id = new.case_id",
        list(cases),
        list(cases.values()),
    )


async def set_status(tx: Tx, case_ids: Sequence[UUID], status: CaseStatus) -> None:
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


async def add_to_timeline(tx: Tx, entries: Sequence[Entry]) -> set[str]:
    """
    Add *entries* to the timelines; return the names of those that are new.

    A case that has expired has no timeline any more: its entries are dropped.
    """
    if not entries:
        return set()
    rows = await tx.fetch(
        "WITH present AS (SELECT case_id FROM cases WHERE case_id = ANY($1::uuid[]) ORDER BY case_id FOR KEY SHARE)"
        " INSERT INTO timeline (case_id, entry, at, kind, actor, detail)"
        " SELECT case_id, entry, at, kind, actor, detail FROM unnest($1::uuid[], $2::text[], $3::timestamptz[],"
        " $4::text[], $5::jsonb[], $6::jsonb[]) WITH ORDINALITY AS new (case_id, entry, at, kind, actor, detail, place)"
        " JOIN present USING (case_id) ORDER BY place ON CONFLICT DO NOTHING RETURNING entry",
        [entry.case_id for entry in entries],
        [entry.entry for entry in entries],
        [entry.at for entry in entries],
        [entry.kind for entry in entries],
        [entry.actor.model_dump() if entry.actor else None for entry in entries],
        [entry.detail for entry in entries],
    )
    return {row["entry"] for row in rows}


async def find_blocks(
    tx: Tx, wanted: Collection[tuple[UUID, str, str]]
) -> dict[tuple[UUID, str, str], tuple[int, bool]]:
    """
    Return what cases have requested already, by case, kind and value; what was never requested is left out.

    Of each: how many generations there were, and whether one is in force or on its way.
    """
    if not wanted:
        return {}
    rows = await tx.fetch(
        "SELECT case_id, kind, value, count(*) AS generations, bool_or(status IN ('requested', 'applied')) AS in_force"
        " FROM blocks JOIN unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (case_id, kind, value)"
        " USING (case_id, kind, value) GROUP BY case_id, kind, value",
        *map(list, zip(*wanted, strict=True)),
    )
    return {(row["case_id"], row["kind"], row["value"]): (row["generations"], row["in_force"]) for row in rows}


async def record_blocks(tx: Tx, blocks: Sequence[tuple[Block, int]]) -> None:
    """Store blocks that are requested now, each with its generation."""
    if not blocks:
        return
    await tx.execute(
        "INSERT INTO blocks (block_id, case_id, kind, value, expires_at, generation, status)"
        " SELECT *, 'requested' FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[],"
        " $6::int[])",
        [block.block_id for block, _ in blocks],
        [block.case_id for block, _ in blocks],
        [block.kind for block, _ in blocks],
        [block.value for block, _ in blocks],
        [block.expires_at for block, _ in blocks],
        [generation for _, generation in blocks],
    )


async def settle_blocks(tx: Tx, outcomes: Mapping[UUID, tuple[str, str | None, str | None]]) -> None:
    """
    Record the outcome of blocks: status, the entry that was made, and why it failed or ended.

    One that was removed stays so, because its events come on topics of their own.
    """
    await tx.execute(
        # Topics are read side by side: rows that are locked in one order make no deadlock.
        "WITH locked AS MATERIALIZED (SELECT block_id FROM blocks WHERE block_id = ANY($1::uuid[])"
        " ORDER BY block_id FOR UPDATE) UPDATE blocks SET entry = coalesce(new.entry, blocks.entry),"
        " reason = CASE blocks.status WHEN 'removed' THEN blocks.reason ELSE new.reason END,"
        " status = CASE blocks.status WHEN 'removed' THEN blocks.status ELSE new.status END"
        " FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS new (block_id, status, entry, reason)"
        " JOIN locked USING (block_id) WHERE blocks.block_id = new.block_id",
        list(outcomes),
        [status for status, _, _ in outcomes.values()],
        [entry for _, entry, _ in outcomes.values()],
        [reason for _, _, reason in outcomes.values()],
    )
