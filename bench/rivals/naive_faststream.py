"""
FastStream as its documentation teaches it: one message per call, pydantic models, and a transaction that publishes.

Source: FastStream documentation, "Getting Started" (subscriber, publishing) and "FastAPI Plugin". Its defaults are
kept: acknowledgement before the handler runs, acks=1; so unlike the other programs it may lose events. Logging of each
message is off. The rows and events are the same as those of the others.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import asyncpg
import orjson
import uvicorn
from fastapi import FastAPI, Request
from faststream import FastStream
from faststream.kafka import KafkaBroker

from backstop_contracts import (
    Actor,
    CaseStatus,
    CaseUpdated,
    Category,
    Event,
    Folder,
    MessageReported,
    ReportedAs,
    SubmissionRequested,
    headers_for,
    message_of,
)
from bench.rivals.settings import DSN, KAFKA, MAILS, PORT, PREFIX, TENANT, keep, keys_of
from mail import parse

RULE = Actor(kind="policy", id="phishing that reached an Inbox", name="phishing that reached an Inbox")

broker = KafkaBroker(KAFKA, logger=None)
pools: list[Any] = []


async def publish(event: Event) -> None:
    """Publish an event."""
    await broker.publish(
        event,
        topic=f"{PREFIX}.{event.topic()}",
        key=event.key.encode(),
        headers={**headers_for(event, source="/naive"), "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"},
    )


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Keep the broker and the pool open while the application runs."""
    MAILS.mkdir(parents=True, exist_ok=True)
    async with asyncpg.create_pool(DSN, min_size=8, max_size=8) as pool:
        pools.append(pool)
        await broker.start()
        yield
        await broker.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/v1/reports", status_code=202)
async def report_mail(request: Request, reported_as: ReportedAs, folder: Folder, reporter: str) -> dict[str, UUID]:
    """Accept one report."""
    raw = await request.body()
    message = message_of(parse(raw))
    await asyncio.to_thread(keep, raw, message.sha256)
    identity = f"{message.internet_message_id}:{message.fingerprint}"
    event = MessageReported(
        tenant_id=UUID(TENANT),
        report_id=uuid5(UUID(TENANT), f"report:{reporter}:{identity}:{reported_as}"),
        reporter=reporter,
        reported_as=reported_as,
        folder=folder,
        channel="api",
        reported_at=datetime.now(UTC),
        message=message,
    )
    async with pools[0].acquire() as connection, connection.transaction():
        await connection.execute(
            "INSERT INTO reporter.reports (report_id, tenant_id, filed_by, reporter, reported_as, folder, sha256,"
            " reported_at) VALUES ($1, $2, ARRAY[$3::text], $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            *(event.report_id, event.tenant_id, "app", reporter, reported_as, folder, message.sha256),
            event.reported_at,
        )
        await publish(event)
    return {"report_id": event.report_id}


async def on_message_reported(report: MessageReported) -> None:
    """Add one report to its case, and submit the case if it is new."""
    async with pools[0].acquire() as connection, connection.transaction():
        if await connection.fetchval("SELECT true FROM triage.reports WHERE report_id = $1", report.report_id):
            return
        keys = keys_of(report.message.model_dump())
        standing = await connection.fetchval(
            "SELECT case_id FROM triage.case_keys WHERE tenant_id = $1 AND key = ANY($2::bytea[]) LIMIT 1",
            *(report.tenant_id, keys),
        )
        case_id = standing or uuid4()
        await connection.execute(
            "INSERT INTO triage.reports (report_id, tenant_id, case_id, reporter, reported_as, folder, sha256,"
            " reported_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            *(report.report_id, report.tenant_id, case_id, report.reporter, report.reported_as, report.folder),
            *(report.message.sha256, report.reported_at),
        )
        for key in keys:
            await connection.execute(
                "INSERT INTO triage.case_keys VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                *(report.tenant_id, key, case_id),
            )
        count = await (join if standing else open_case)(connection, case_id, report)
        detail = report.model_dump(mode="json", include={"report_id", "reporter", "reported_as", "folder"})
        entry = f"report:{report.report_id}"
        await add_timeline_entry(connection, case_id, entry, report.reported_at, "message.reported", detail)
        updated = CaseUpdated(
            tenant_id=report.tenant_id,
            case_id=case_id,
            change="joined" if standing else "opened",
            status=CaseStatus.OPEN,
            report_ids=(report.report_id,),
            report_count=count,
            changed_at=datetime.now(UTC),
        )
        await publish(updated)
        if not standing:
            await submit(connection, report, updated)


async def open_case(connection: Any, case_id: UUID, report: MessageReported) -> int:
    """Store a new case."""
    await connection.execute(
        "INSERT INTO triage.cases (case_id, tenant_id, status, reported_as, folders, report_count, recipient, sender,"
        " sender_domain, message, opened_at, last_reported_at) VALUES ($1, $2, 'open', ARRAY[$3::text],"
        " ARRAY[$4::text], 1, $5, $6, $7, $8, now(), $9)",
        *(case_id, report.tenant_id, report.reported_as, report.folder, report.reporter, report.message.sender),
        *(report.message.sender_domain, report.message.model_dump_json(), report.reported_at),
    )
    return 1


async def join(connection: Any, case_id: UUID, report: MessageReported) -> int:
    """Increment the report count of a case; return the new count."""
    return int(
        await connection.fetchval(
            "UPDATE triage.cases SET report_count = report_count + 1, last_reported_at = $2 WHERE case_id = $1"
            " RETURNING report_count",
            *(case_id, report.reported_at),
        )
    )


async def add_timeline_entry(connection: Any, case_id: UUID, entry: str, at: datetime, kind: str, detail: Any) -> None:
    """Add to the timeline of a case."""
    await connection.execute(
        "INSERT INTO triage.timeline (case_id, entry, at, kind, detail) VALUES ($1, $2, $3, $4, $5)",
        *(case_id, entry, at, kind, orjson.dumps(detail).decode()),
    )


async def submit(connection: Any, report: MessageReported, opened: CaseUpdated) -> None:
    """Submit a new case."""
    submission_id, now = uuid4(), datetime.now(UTC)
    await connection.execute(
        "UPDATE triage.cases SET status = 'submitted', submission_id = $2, submissions = 1 WHERE case_id = $1",
        *(opened.case_id, submission_id),
    )
    detail = {"submission_id": str(submission_id), "category": "phishing", "note": None}
    await add_timeline_entry(connection, opened.case_id, f"submit:{submission_id}", now, "case.submitted", detail)
    change = {"change": "submitted", "status": CaseStatus.SUBMITTED, "report_ids": (), "changed_by": RULE}
    await publish(opened.model_copy(update=change))
    await publish(
        SubmissionRequested(
            tenant_id=report.tenant_id,
            submission_id=submission_id,
            case_id=opened.case_id,
            category=Category.PHISHING,
            recipient=report.reporter,
            message=report.message,
            requested_by=RULE,
            requested_at=now,
        )
    )


async def triage() -> None:
    """Consume reports until the process is ended."""
    broker.subscriber(f"{PREFIX}.message-reported", group_id=f"{PREFIX}.naive", auto_offset_reset="earliest")(
        on_message_reported
    )
    async with asyncpg.create_pool(DSN, min_size=1, max_size=2) as pool:
        pools.append(pool)
        await FastStream(broker, logger=None).run()


if __name__ == "__main__":
    if sys.argv[1] == "reporter":
        uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
    else:
        asyncio.run(triage())
