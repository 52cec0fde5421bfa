"""The admin API: list and view quarantined messages, act on them, and set how users are notified."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Query, Response

from backstop_contracts import Actor, ActorKind, AdminDecision, Category, ReportedAs
from backstop_contracts.block_schemas import NO_NUL
from chassis.entra import Caller, require
from chassis.http import Moment, Problem, in_utc, problems, read_cursor, write_cursor
from chassis.postgres import Database, Tx
from mail import DOCUMENT_HEADERS, document
from quarantine import action_requests, store
from quarantine.api_schemas import (
    MAX_MESSAGES,
    ActionRequest,
    ActionResults,
    ActionState,
    Deny,
    LinkState,
    MailHeaders,
    MailPreview,
    QuarantinedDetail,
    QuarantinedSummary,
    QuarantinePage,
    Release,
    SubmissionState,
    SubmitFromQuarantine,
    action_state,
    summary_fields,
)
from quarantine.message_source import MessageSource
from quarantine.notification_settings import QuarantineSettings, read_settings
from quarantine.rules import ActionKind, MessageStatus
from quarantine.store import Action, QuarantinedMessage

log = structlog.get_logger()

Reader = Annotated[Caller, Depends(require("SecurityReader", "SecurityAdministrator"))]
Admin = Annotated[Caller, Depends(require("SecurityAdministrator"))]

MAX_WAIT = timedelta(seconds=10)
"""How long an answer waits for the outcome of its actions."""
MAX_WAIT_FOR_CASES = timedelta(seconds=3)
"""How long an answer then waits for triage to assign cases to submissions."""
REPORTED_AS = {
    Category.PHISHING: ReportedAs.PHISHING,
    Category.MALWARE: ReportedAs.MALWARE,
    Category.SPAM: ReportedAs.JUNK,
    Category.NOT_JUNK: ReportedAs.NOT_JUNK,
}
CONTENT_PROBLEMS = problems(400, 401, 403, 404, 409, 422, 502, 503)


def make_router(
    db: Database, source: MessageSource, *, sign_in: bool = False, max_wait: timedelta = MAX_WAIT
) -> APIRouter:
    """
    Return the admins' routes. An answer waits for outcomes for *max_wait* at most.

    *sign_in* is True if the service is configured to let users sign in.
    """
    router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"])
    _add_action_routes(router, db, max_wait)
    _add_settings_routes(router, db, sign_in=sign_in)
    _add_list_routes(router, db)
    _add_content_routes(router, db, source)
    return router


def _add_action_routes(router: APIRouter, db: Database, max_wait: timedelta) -> None:
    @router.post(
        "/actions",
        operation_id="act_on_quarantine",
        responses={
            202: {"model": ActionResults, "description": "Some actions are still running, and none has failed yet."},
            207: {"model": ActionResults, "description": "Some actions have failed, others have not: see the results."},
            **CONTENT_PROBLEMS,
        },
    )
    async def act_on_quarantine(caller: Admin, request: ActionRequest, response: Response) -> ActionResults:
        """
        Release, deny, or submit and block, for one message or many.

        200: all actions are done. 202: some are still running; ask for each action. 207: some have failed, the rest
        have not. 409: Microsoft refused all of them. 502: Microsoft could not be reached, or does not let Backstop do
        any of it. `results` has the outcome for each message, also in a problem. Sending the same request again joins
        the existing actions, except those that failed.
        """
        by = Actor(kind=ActorKind.APP if caller.is_app else ActorKind.USER, id=caller.oid, name=caller.name)
        async with db.transaction() as tx:
            messages, ids = await _request_actions(tx, caller.tenant_id, request, by)
        actions = await action_requests.wait_for_actions(db, caller.tenant_id, ids, max_wait)
        await action_requests.wait_for_cases(db, actions, min(max_wait, MAX_WAIT_FOR_CASES))
        states = await _action_states(db, actions, messages)
        failed = [state for state in states if state.state == "failed"]
        if len(failed) == len(states):
            raise _all_failed(failed)
        running = any(state.state == "running" for state in states)
        response.status_code = 207 if failed else 202 if running else 200
        return ActionResults(results=states)

    @router.get("/actions/{action_id}", operation_id="read_action", responses=problems(401, 403, 404, 422, 503))
    async def read_action(caller: Reader, action_id: UUID) -> ActionState:
        """Read an action and its outcome."""
        actions = await store.find_actions(db.pool, caller.tenant_id, [action_id])
        if not actions:
            raise Problem(404, "unknown-action", f"There is no action {action_id} in your tenant.")
        messages = await store.find_messages(db.pool, caller.tenant_id, [actions[0].message_id])
        return (await _action_states(db, actions, messages))[0]


async def _request_actions(
    tx: Tx, tenant_id: UUID, request: Release | Deny | SubmitFromQuarantine, by: Actor
) -> tuple[list[QuarantinedMessage], list[UUID]]:
    """Record the actions of a request; return their messages and ids."""
    named = await store.find_messages(tx, tenant_id, request.messages)
    if unknown := set(request.messages) - {message.message_id for message in named}:
        detail = f"Not in your tenant: {', '.join(sorted(map(str, unknown)))}. Nothing was done."
        raise Problem(404, "unknown-quarantined-message", detail)
    copies = await store.find_copies(tx, tenant_id, request.messages)
    messages = copies if request.all_recipients else named
    if len(messages) > MAX_MESSAGES:
        detail = f"The request names {len(messages)} messages; at most {MAX_MESSAGES} are accepted. Nothing was done."
        raise Problem(422, "too-many-messages", detail)
    match request:
        case Release():
            ids = await action_requests.request_actions(tx, messages, ActionKind.RELEASE, by=by, reason=request.reason)
        case Deny():
            _require_all_recipients(messages, copies)
            ids = await action_requests.request_actions(tx, messages, ActionKind.DENY, by=by, reason=request.reason)
        case SubmitFromQuarantine():
            decision = AdminDecision(
                category=request.category,
                blocks=tuple(block.decided() for block in request.blocks),
                note=request.note,
                decided_by=by,
            )
            reported_as = REPORTED_AS[request.category]
            ids = await action_requests.request_actions(
                tx, messages, ActionKind.SUBMIT, by=by, reason=request.note, reported_as=reported_as, decision=decision
            )
    return messages, ids


def _require_all_recipients(messages: Sequence[QuarantinedMessage], copies: Sequence[QuarantinedMessage]) -> None:
    """Refuse a denial that would also affect recipients who were not named."""
    named = {message.message_id for message in messages}
    shared = {message.identity for message in messages if message.recipient_count > 1}
    missing = [copy for copy in copies if copy.identity in shared and copy.message_id not in named]
    if missing:
        raise Problem(
            422,
            "denial-affects-others",
            f"Defender keeps this message in one row for {missing[0].recipient_count} recipients: name them all, or set"
            " `all_recipients`. Nothing was done.",
        )


def _all_failed(failed: Sequence[ActionState]) -> Problem:
    """Return the problem of a request of which every action has failed."""
    results = [state.model_dump(mode="json") for state in failed]
    not_refused = [state for state in failed if state.failure not in ("refused", "gone")]
    detail = (not_refused or failed)[0].detail or "Microsoft gave no reason."
    if not_refused:
        return Problem(502, "action-not-carried-out", detail, results=results)
    return Problem(409, "refused-by-microsoft", detail, results=results)


async def _action_states(
    db: Database, actions: Sequence[Action], messages: Sequence[QuarantinedMessage]
) -> list[ActionState]:
    by_id = {message.message_id: message for message in messages}
    reports = {report.report_id: report for report in await store.find_reports(db.pool, list(by_id))}
    return [
        action_state(action, by_id[action.message_id], reports.get(action.report_id) if action.report_id else None)
        for action in actions
    ]


def _add_settings_routes(router: APIRouter, db: Database, *, sign_in: bool) -> None:
    @router.get("/settings", operation_id="read_quarantine_settings", responses=problems(401, 403, 422, 503))
    async def read_quarantine_settings(caller: Reader) -> QuarantineSettings:
        """Read how users are notified of quarantined messages."""
        return await read_settings(db.pool, caller.tenant_id)

    @router.put("/settings", operation_id="write_quarantine_settings", responses=problems(400, 401, 403, 409, 422, 503))
    async def write_quarantine_settings(caller: Admin, settings: QuarantineSettings) -> QuarantineSettings:
        """Set how users are notified of quarantined messages, from the next period on."""
        if settings.sign_in and not sign_in:
            detail = "Set BACKSTOP_SIGN_IN_CLIENT_ID and BACKSTOP_SIGN_IN_CLIENT_SECRET first. Nothing was changed."
            raise Problem(409, "sign-in-not-configured", detail)
        async with db.transaction() as tx:
            await store.record_settings(tx, caller.tenant_id, settings.model_dump(mode="json"), caller.oid)
        log.info("settings.changed", tenant_id=caller.tenant_id, by=caller.oid)
        return settings


def _add_list_routes(router: APIRouter, db: Database) -> None:
    @router.get("", operation_id="list_quarantine", responses=problems(401, 403, 422, 503))
    async def list_quarantine(
        caller: Reader,
        status: Annotated[list[MessageStatus] | None, Query(max_length=9)] = None,
        sender: Annotated[str | None, Query(max_length=320, pattern=NO_NUL)] = None,
        sender_domain: Annotated[str | None, Query(max_length=255, pattern=NO_NUL)] = None,
        recipient: Annotated[str | None, Query(max_length=320, pattern=NO_NUL)] = None,
        subject: Annotated[str | None, Query(max_length=200, pattern=NO_NUL, description="A part of it.")] = None,
        quarantine_type: Annotated[str | None, Query(max_length=40, pattern=NO_NUL)] = None,
        quarantine_policy: Annotated[str | None, Query(max_length=200, pattern=NO_NUL)] = None,
        internet_message_id: Annotated[str | None, Query(max_length=998, pattern=NO_NUL)] = None,
        network_message_id: UUID | None = None,
        received_after: Moment | None = None,
        received_before: Moment | None = None,
        cursor: Annotated[str | None, Query(max_length=200, pattern=NO_NUL)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> QuarantinePage:
        """List quarantined messages, one item for each recipient: pending release requests first, then the latest."""
        filters = {
            "status": [str(one) for one in status] if status else None,
            "sender": sender and sender.lower(),
            "sender_domain": sender_domain and sender_domain.lower(),
            "recipient": recipient and recipient.lower(),
            "subject": subject,
            "quarantine_type": quarantine_type,
            "quarantine_policy": quarantine_policy,
            "internet_message_id": internet_message_id,
            "network_message_id": network_message_id and str(network_message_id),
            "received_after": received_after,
            "received_before": received_before,
        }
        found = await store.list_messages(
            db.pool,
            caller.tenant_id,
            filters=filters,
            after=read_cursor(cursor, _parse_position) if cursor else None,
            limit=limit + 1,
        )
        sync = await store.find_sync_state(db.pool, caller.tenant_id) or {}
        return QuarantinePage(
            items=[QuarantinedSummary(**summary_fields(message)) for message in found[:limit]],
            next_cursor=_write_cursor(found[limit - 1]) if len(found) > limit else None,
            synced_at=sync.get("succeeded_at"),
            warning=sync.get("warning"),
        )

    @router.get("/{message_id}", operation_id="read_quarantined", responses=problems(401, 403, 404, 422, 503))
    async def read_quarantined(caller: Reader, message_id: UUID) -> QuarantinedDetail:
        """Read one message: its state, its copies for other recipients, its reports with Microsoft's verdict."""
        message = await _find_message(db, caller, message_id)
        copies = await store.find_copies(db.pool, caller.tenant_id, [message_id])
        reports = await store.find_reports(db.pool, [message_id])
        return QuarantinedDetail(
            **summary_fields(message),
            submissions=[SubmissionState.of(report) for report in reports],
            copies=[QuarantinedSummary(**summary_fields(copy)) for copy in copies if copy.message_id != message_id],
        )


def _write_cursor(message: QuarantinedMessage) -> str:
    pending = int(message.status is MessageStatus.REQUESTED)
    return write_cursor(pending, message.received_at.isoformat(), message.message_id)


def _parse_position(parts: list[str]) -> tuple[bool, datetime, UUID]:
    pending, received_at, message_id = parts
    return pending == "1", in_utc(datetime.fromisoformat(received_at)), UUID(message_id)


def _add_content_routes(router: APIRouter, db: Database, source: MessageSource) -> None:
    @router.get("/{message_id}/preview", operation_id="preview_quarantined", responses=CONTENT_PROBLEMS)
    async def preview_quarantined(caller: Admin, message_id: UUID) -> MailPreview:
        """Preview the message safely: sanitised, with inert links, nothing loaded from outside."""
        message = await _find_message(db, caller, message_id)
        shown = await source.preview(caller.tenant_id, message.identity)
        log.info("mail.previewed", message_id=message_id, by=caller.oid)
        return MailPreview(
            from_name=shown.from_name,
            from_address=shown.from_address,
            from_is_deceptive=shown.from_is_deceptive,
            to=list(shown.to),
            subject=shown.subject,
            text=shown.text,
            document=document(shown),
            links=[
                LinkState(text=link.text, target=link.target, host=link.host, warnings=list(link.warnings))
                for link in shown.links
            ],
            attachments=[
                {"name": file.name, "content_type": file.content_type, "size": file.size} for file in shown.attachments
            ],
            is_cut=shown.is_cut,
        )

    @router.get(
        "/{message_id}/document",
        operation_id="show_quarantined",
        response_class=Response,
        responses={
            200: {"content": {"text/html": {}}, "description": "The page for a sandboxed frame."},
            **CONTENT_PROBLEMS,
        },
    )
    async def show_quarantined(caller: Admin, message_id: UUID) -> Response:
        """Return the preview as a page, with response headers that sandbox it."""
        message = await _find_message(db, caller, message_id)
        shown = await source.preview(caller.tenant_id, message.identity)
        return Response(document(shown), headers=dict(DOCUMENT_HEADERS))

    @router.get("/{message_id}/headers", operation_id="read_quarantined_headers", responses=CONTENT_PROBLEMS)
    async def read_quarantined_headers(caller: Admin, message_id: UUID) -> MailHeaders:
        """Read the message's headers."""
        message = await _find_message(db, caller, message_id)
        return MailHeaders(headers=await source.headers(caller.tenant_id, message.identity))

    @router.get(
        "/{message_id}/download",
        operation_id="download_quarantined",
        response_class=Response,
        responses={
            200: {"content": {"message/rfc822": {}}, "description": "The raw message. It may be dangerous."},
            **CONTENT_PROBLEMS,
        },
    )
    async def download_quarantined(caller: Admin, message_id: UUID) -> Response:
        """Download the raw message."""
        message = await _find_message(db, caller, message_id)
        raw = await source.raw(caller.tenant_id, message.identity)
        log.info("mail.downloaded", message_id=message_id, by=caller.oid)
        headers = {
            "Content-Disposition": f'attachment; filename="{message_id}.eml"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cache-Control": "no-store",
        }
        return Response(raw, media_type="message/rfc822", headers=headers)


async def _find_message(db: Database, caller: Caller, message_id: UUID) -> QuarantinedMessage:
    message = await store.find_message(db.pool, caller.tenant_id, message_id)
    if message is None:
        detail = f"There is no quarantined message {message_id} in your tenant."
        raise Problem(404, "unknown-quarantined-message", detail)
    return message
