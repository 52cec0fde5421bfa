"""HTTP routes: report a message, and read what became of the report."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from backstop_contracts import Actor, ActorKind, Channel, MailboxMessage, MessageReported, folder_of, message_of
from backstop_contracts.block_schemas import BlockState
from backstop_contracts.identity import report_id
from chassis import telemetry
from chassis.entra import Caller, require
from chassis.http import Problem, problems
from chassis.postgres import Database
from mail import MailFacts, MailStore, StoreUnavailable, parse
from reporter import report_status
from reporter.intake import Intake, ReportRequest
from reporter.mailbox_blocks import NOT_POSSIBLE, block_state
from reporter.upload import SMALL_BYTES, Attributes, MailboxPlace, Uploads
from reporter.upload_openapi import REPORT_REQUEST

log = structlog.get_logger()

Filer = Annotated[Caller, Depends(require("Reporter"))]

OLE = bytes.fromhex("d0cf11e0a1b11ae1")
"""How the files of Outlook and of older Office begin."""


class Accepted(BaseModel):
    """The report is durable and acts once. `repeated`: it was sent before, and is not published again."""

    report_id: UUID
    status_url: str
    repeated: bool
    block: BlockState | None = None


def make_router(db: Database, mails: MailStore, uploads: Uploads) -> APIRouter:
    """Make reporter's routes over *db* and the mail store."""
    router = APIRouter(prefix="/v1/reports", tags=["reports"])
    intake = Intake(db, mails)

    async def allow_upload(request: Request, _caller: Filer) -> None:
        uploads.allow(request)

    @router.post(
        "",
        operation_id="report_mail",
        status_code=202,
        openapi_extra=REPORT_REQUEST,
        dependencies=[Depends(allow_upload)],
        responses=problems(400, 401, 403, 408, 413, 415, 422, 503),
    )
    async def report_mail(request: Request, response: Response, caller: Filer) -> Accepted:
        """
        Report a message that the filter let through, and optionally block its sender for the reporter's mailbox.

        202: message and report are durable. The same report is recorded once, however often it is sent. 503: it may or
        may not have been kept; send it again. Anything else: nothing was kept.
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
            block=(block_state(recorded.block) if recorded.block else NOT_POSSIBLE) if wanted else None,
        )

    report_status.add_routes(router, db)
    return router


async def _facts(raw: bytes) -> MailFacts:
    facts = parse(raw) if len(raw) <= SMALL_BYTES else await asyncio.to_thread(parse, raw)
    if not facts.is_mail:
        detail = "Send the raw message with its headers, as in an .eml file. Nothing was saved."
        if raw.startswith(OLE):
            detail = f"Outlook's .msg files are not read: save the message as .eml. {detail}"
        raise Problem(422, "not-a-message", detail)
    if facts.carries_messages:
        raise Problem(
            422,
            "carries-another-message",
            "A report wraps the message in one of the reporter's own, which is not what was reported. Send the"
            " attached message itself, as an .eml file with its headers, one report for each. Nothing was saved.",
        )
    return facts


def _report(caller: Caller, said: Attributes, facts: MailFacts) -> tuple[MessageReported, str]:
    """Return the event of a report, and the mailbox that a block would be for."""
    reporter, mailbox = _resolve_reporter(caller, said.reporter)
    message = message_of(facts)
    report = MessageReported(
        tenant_id=caller.tenant_id,
        report_id=report_id(caller.tenant_id, reporter, message, said.reported_as),
        reporter=reporter,
        reporter_id=None if caller.is_app else caller.oid,
        reported_as=said.reported_as,
        folder=said.folder or folder_of(facts),
        channel=Channel.API,
        reported_at=datetime.now(UTC),
        message=message,
        mailbox_message=_place(caller, said.mailbox_message) if said.mailbox_message else None,
    )
    return report, mailbox


def _resolve_reporter(caller: Caller, claimed: str | None) -> tuple[str, str]:
    """
    Return the address that received the message, and the mailbox for which its sender can be blocked.

    A signed-in person is the reporter and nobody else; their mailbox is that of their object id, never an address that
    they could choose. Raises Problem if *claimed* is somebody else.
    """
    if caller.is_app:
        if claimed is None:
            raise Problem(422, "missing-reporter", "Applications must set `reporter`. The report was not saved.")
        return claimed, claimed.lower()
    if caller.name is None or "@" not in caller.name:
        raise _not_allowed("The token's preferred_username is no email address, so the reporter is not known")
    if claimed is not None and claimed.lower() != caller.name.lower():
        raise _not_allowed("A signed-in person can report for themselves only: leave out reporter")
    return caller.name, caller.oid


def _place(caller: Caller, said: MailboxPlace) -> MailboxMessage:
    """Return where the message is. Raises Problem if a signed-in person names somebody else's mailbox."""
    place = MailboxMessage(**said.model_dump())
    if caller.is_app:
        return place
    if place.user_id.lower() not in {caller.oid.lower(), (caller.name or caller.oid).lower()}:
        # Microsoft would read a message in somebody else's mailbox.
        raise _not_allowed("A signed-in person can point at their own mailbox only")
    return place.model_copy(update={"user_id": caller.oid})


def _not_allowed(why: str) -> Problem:
    return Problem(403, "not-allowed", f"{why}. Nothing was saved.")
