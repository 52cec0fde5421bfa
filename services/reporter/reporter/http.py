"""Reporter over HTTP: report a mail, and hear what became of the report."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from backstop_contracts import (
    Actor,
    ActorKind,
    BlockKind,
    BlockScope,
    Channel,
    MailboxMessage,
    MessageReported,
    ReportedAs,
    message_of,
)
from backstop_contracts.api import BlockState
from backstop_contracts.identity import report_id
from chassis import telemetry
from chassis.entra import Caller, require
from chassis.http import Problem, problems
from chassis.postgres import Database
from mail import MailFacts, MailStore, StoreUnavailable, parse
from outcomes import MailboxBlock
from reporter import rules, store
from reporter.intake import Intake, ReportRequest
from reporter.openapi import REPORT_REQUEST
from reporter.upload import SMALL_BYTES, Attributes, Uploads

log = structlog.get_logger()

Filer = Annotated[Caller, Depends(require("Reporter"))]
Reader = Annotated[Caller, Depends(require("Reporter", "SecurityReader", "SecurityAdministrator"))]

SECURITY = {"SecurityReader", "SecurityAdministrator"}
OLE = bytes.fromhex("d0cf11e0a1b11ae1")
"""How the files of Outlook and of older Office begin."""
NOT_POSSIBLE = BlockState(
    scope=BlockScope.MAILBOX,
    kind=BlockKind.SENDER,
    status="not-possible",
    explanation="The message names no sender that could be blocked. The report was saved without the block.",
)


class Accepted(BaseModel):
    """The report is durable and acts once. `repeated`: it was sent before, and nothing new comes of the message."""

    report_id: UUID
    status_url: str
    repeated: bool
    block: BlockState | None = None


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


def make_router(db: Database, mails: MailStore, uploads: Uploads) -> APIRouter:
    """Make reporter's routes over *db* and the mail store."""
    router = APIRouter(prefix="/v1/reports", tags=["reports"])
    intake = Intake(db, mails)

    @router.post(
        "",
        operation_id="report_mail",
        status_code=202,
        openapi_extra=REPORT_REQUEST,
        responses=problems(400, 401, 403, 408, 413, 415, 422, 503),
    )
    async def report_mail(request: Request, response: Response, caller: Filer) -> Accepted:
        """
        Report a mail that the filter let through, and block its sender for the reporter's own mailbox if wanted.

        202: mail and report are durable. The same reporter saying the same of the same mail is one report, however
        often it is sent. 503: send it again, it may be kept or not. Anything else: nothing was kept.
        """
        by = Actor(kind=ActorKind.APP if caller.is_app else ActorKind.USER, id=caller.oid, name=caller.name)
        async with uploads.receive(request) as upload:
            facts = await _facts(upload.raw)
            report, mailbox = _report(caller, upload.said, facts)
            wanted = upload.said.block_sender
            try:
                await mails.put(caller.tenant_id, upload.raw)
                recorded = await intake.record(
                    ReportRequest(report, upload.raw, by, mailbox if wanted else None, telemetry.current_traceparent())
                )
            except StoreUnavailable:
                raise Problem(
                    503, "mail-store-unavailable", "Nothing was saved. Send the same request again.", retry_after=5
                ) from None
        log.info("report.accepted", report_id=report.report_id, repeated=recorded.repeated, block=bool(recorded.block))
        response.headers["Location"] = f"/v1/reports/{report.report_id}"
        return Accepted(
            report_id=report.report_id,
            status_url=response.headers["Location"],
            repeated=recorded.repeated,
            block=_block(recorded.block) or NOT_POSSIBLE if wanted else None,
        )

    @router.get("/{report_id}", operation_id="read_report", responses=problems(401, 403, 404, 422, 503))
    async def read_report(caller: Reader, report_id: UUID) -> ReportState:
        """Tell what became of a report: whoever filed it, and security staff. To others it is unknown."""
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
            block=_block(report.block),
        )

    return router


async def _facts(raw: bytes) -> MailFacts:
    facts = parse(raw) if len(raw) <= SMALL_BYTES else await asyncio.to_thread(parse, raw)
    if not facts.is_mail:
        detail = "Send the raw message with its headers, as in an .eml file. Nothing was saved."
        if raw.startswith(OLE):
            detail = f"Outlook's .msg files are not read: save the message as .eml. {detail}"
        raise Problem(422, "not-a-message", detail)
    if rules.carries_messages(facts):
        raise Problem(
            422,
            "carries-another-message",
            "A report wraps the message in one of the reporter's own, which is not what was reported. Send the"
            " attached message itself, as an .eml file with its headers, one report for each. Nothing was saved.",
        )
    return facts


def _report(caller: Caller, said: Attributes, facts: MailFacts) -> tuple[MessageReported, str]:
    """Make the event of a report, and say which mailbox a block would be for."""
    place = MailboxMessage(**said.mailbox_message.model_dump()) if said.mailbox_message else None
    try:
        if caller.is_app:
            if said.reporter is None:
                raise Problem(422, "missing-reporter", "Applications must set `reporter`. The report was not saved.")
            reporter = rules.Reporter(said.reporter, said.reporter.lower())
        else:
            reporter = rules.person(caller.oid, caller.name, said.reporter)
            if place:
                own = rules.own_mailbox(caller.oid, caller.name, place.user_id)
                place = place.model_copy(update={"user_id": own})
    except rules.NotYoursError as error:
        raise Problem(403, "not-allowed", f"{error}. Nothing was saved.") from None
    message = message_of(facts)
    report = MessageReported(
        tenant_id=caller.tenant_id,
        report_id=report_id(caller.tenant_id, reporter.address, message, said.reported_as),
        reporter=reporter.address,
        reporter_id=None if caller.is_app else caller.oid,
        reported_as=said.reported_as,
        folder=said.folder or rules.folder_of(facts),
        channel=Channel.API,
        reported_at=datetime.now(UTC),
        message=message,
        mailbox_message=place,
    )
    return report, reporter.mailbox


def _block(block: MailboxBlock | None) -> BlockState | None:
    if block is None:
        return None
    return BlockState(
        block_id=block.block_id,
        scope=BlockScope.MAILBOX,
        kind=BlockKind.SENDER,
        value=block.sender,
        status=block.status,
        reason=block.reason,
        explanation=rules.block_explained(block.status, block.reason),
    )
