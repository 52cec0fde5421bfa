"""Quarantine over HTTP for admins: list, look, release or deny, submit and block, with the outcome in the answer."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import structlog
from fastapi import APIRouter, Body, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from backstop_contracts import Actor, ActorKind, AdminDecision, CaseStatus, Category, ReportedAs, Verdict
from backstop_contracts.api import NO_NUL, BlockInput
from chassis.entra import Caller, require
from chassis.http import Moment, Problem, in_utc, problems, read_cursor, write_cursor
from chassis.postgres import Database
from mail import DOCUMENT_HEADERS, document
from quarantine import filing, store
from quarantine.reading import Reading
from quarantine.rules import Kind, Permissions, Status
from quarantine.settings import QuarantineSettings, settings_of
from quarantine.store import Action, QuarantinedMessage, Submission

log = structlog.get_logger()

Reader = Annotated[Caller, Depends(require("SecurityReader", "SecurityAdministrator"))]
Admin = Annotated[Caller, Depends(require("SecurityAdministrator"))]

PATIENCE = timedelta(seconds=10)
FOR_THE_CASE = timedelta(seconds=3)
"""How long an answer waits for triage to say which case a submission has become."""
MOST_AT_ONCE = 200
REPORTED_AS = {
    Category.PHISHING: ReportedAs.PHISHING,
    Category.MALWARE: ReportedAs.MALWARE,
    Category.SPAM: ReportedAs.JUNK,
    Category.NOT_JUNK: ReportedAs.NOT_JUNK,
}


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _About(_Input):
    messages: Annotated[list[UUID], Field(min_length=1, max_length=MOST_AT_ONCE)]
    all_recipients: Annotated[
        bool, Field(description="Also the same mails of all their other recipients, whoever is named.")
    ] = False


class Release(_About):
    """Release the mails to their recipients; a pending request is approved by that."""

    action: Literal["release", "approve"]
    reason: Annotated[str | None, Field(max_length=500, pattern=NO_NUL)] = None


class Deny(_About):
    """Deny the release. Name all recipients that share a row of the quarantine: Defender may deny it as a whole."""

    action: Literal["deny"]
    reason: Annotated[str, Field(min_length=1, max_length=500, pattern=NO_NUL)]


class SubmitFromQuarantine(_About):
    """Have Microsoft analyse the messages, and make `blocks` meanwhile."""

    action: Literal["submit"]
    category: Category
    blocks: Annotated[list[BlockInput], Field(max_length=20)] = []
    note: Annotated[str | None, Field(max_length=500, pattern=NO_NUL)] = None


QuarantineWish = Annotated[Release | Deny | SubmitFromQuarantine, Body(discriminator="action")]


class SubmissionState(BaseModel):
    """A report of the mail from the quarantine: its case, and Microsoft's verdict when it is there."""

    report_id: UUID
    case_id: UUID | None
    case_status: CaseStatus | None
    verdict: Verdict | None


class QuarantinedSummary(BaseModel):
    """A quarantined message of one recipient, as a row of a list."""

    message_id: UUID
    network_message_id: str
    internet_message_id: str | None
    recipient: str
    sender: str | None
    subject: str | None
    received_at: datetime
    expires_at: datetime
    size: int
    direction: str
    quarantine_type: str
    policy_type: str
    policy_name: str
    quarantine_policy: str
    status: Status
    status_changed_at: datetime
    recipient_count: Annotated[int, Field(description="Recipients who share the row in Defender's quarantine.")]
    user_permissions: Annotated[list[str], Field(description="What the recipient may do with it.")]


class QuarantinePage(BaseModel):
    """
    A page of quarantined messages: pending release requests first, then the latest.

    `next_cursor` is the `cursor` of the following page; null on the last. `synced_at` is when the list last agreed with
    Defender. `warning` says why it does not now, or which quarantine policies could not be read, so that their users
    are not served.
    """

    items: list[QuarantinedSummary]
    next_cursor: str | None
    synced_at: datetime | None
    warning: str | None


class ActionState(BaseModel):
    """An action and its outcome. `already_done`: somebody had done the same before."""

    action_id: UUID
    message_id: UUID
    recipient: str
    action: Kind
    state: Literal["running", "succeeded", "failed"]
    already_done: bool
    failure: Annotated[str | None, Field(description="refused, not-allowed, gone or gave-up.")]
    detail: Annotated[str | None, Field(description="Microsoft's own reason where there is one.")]
    reason: str | None
    requested_by: Actor
    requested_at: datetime
    settled_at: datetime | None
    submission: SubmissionState | None


class QuarantinedDetail(QuarantinedSummary):
    """A quarantined mail with everything that was wanted of it, and what was reported of it."""

    submissions: list[SubmissionState]
    copies: Annotated[list[QuarantinedSummary], Field(description="The same mail of its other recipients.")]


class ActionResults(BaseModel):
    """What became of each mail that was named."""

    results: list[ActionState]


class LinkState(BaseModel):
    """A link of the mail and where it really leads, its host as DNS knows it."""

    text: str
    target: str
    host: str | None
    warnings: list[str]


class MailPreview(BaseModel):
    """What can be shown of a mail. `document` is a whole page for `<iframe sandbox srcdoc>`: nothing in it can act."""

    from_name: str | None
    from_address: str | None
    from_is_deceptive: bool
    to: list[str]
    subject: str | None
    text: str
    document: str
    links: list[LinkState]
    attachments: list[dict[str, Any]]
    is_cut: bool


class MailHeaders(BaseModel):
    """The header of a mail."""

    headers: str


def make_router(db: Database, reading: Reading, *, sign_in: bool = False, patience: timedelta = PATIENCE) -> APIRouter:
    """
    Make the admins' routes over *db*; an answer waits for the outcome for *patience* at most.

    *sign_in* tells whether users can be asked to sign in.
    """
    router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"])
    _add_actions(router, db, patience)
    _add_settings(router, db, sign_in=sign_in)
    _add_lists(router, db)
    _add_mails(router, db, reading)
    return router


def _add_settings(router: APIRouter, db: Database, *, sign_in: bool) -> None:
    @router.get("/settings", operation_id="read_quarantine_settings", responses=problems(401, 403, 422, 503))
    async def read_quarantine_settings(caller: Reader) -> QuarantineSettings:
        """Read how users hear of their quarantined mail."""
        return await settings_of(db.pool, caller.tenant_id)

    @router.put("/settings", operation_id="write_quarantine_settings", responses=problems(400, 401, 403, 409, 422, 503))
    async def write_quarantine_settings(caller: Admin, settings: QuarantineSettings) -> QuarantineSettings:
        """Decide how users hear of their quarantined mail; holds from the next period on."""
        if settings.sign_in and not sign_in:
            detail = "Set BACKSTOP_SIGN_IN_CLIENT_ID and BACKSTOP_SIGN_IN_CLIENT_SECRET first. Nothing was changed."
            raise Problem(409, "sign-in-not-configured", detail)
        async with db.transaction() as tx:
            await store.record_settings(tx, caller.tenant_id, settings.model_dump(mode="json"), caller.oid)
        log.info("settings.changed", tenant_id=caller.tenant_id, by=caller.oid)
        return settings


def _add_lists(router: APIRouter, db: Database) -> None:
    @router.get("", operation_id="list_quarantine", responses=problems(401, 403, 422, 503))
    async def list_quarantine(
        caller: Reader,
        status: Annotated[list[Status] | None, Query(max_length=9)] = None,
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
        """List quarantined mails, one row for each recipient: pending release requests first, then the latest."""
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
            after=read_cursor(cursor, _place) if cursor else None,
            limit=limit + 1,
        )
        sync = await store.sync_state(db.pool, caller.tenant_id) or {}
        return QuarantinePage(
            items=[QuarantinedSummary(**_summary(message)) for message in found[:limit]],
            next_cursor=_write_cursor(found[limit - 1]) if len(found) > limit else None,
            synced_at=sync.get("succeeded_at"),
            warning=sync.get("warning"),
        )

    @router.get("/{message_id}", operation_id="read_quarantined", responses=problems(401, 403, 404, 422, 503))
    async def read_quarantined(caller: Reader, message_id: UUID) -> QuarantinedDetail:
        """Read what is known of one mail: its state, its other recipients, what was reported, Microsoft's verdict."""
        message = await _find(db, caller, message_id)
        copies = await store.find_copies(db.pool, caller.tenant_id, [message_id])
        reported = await store.submissions(db.pool, [message_id])
        return QuarantinedDetail(
            **_summary(message),
            submissions=[_submission(one) for one in reported],
            copies=[QuarantinedSummary(**_summary(copy)) for copy in copies if copy.message_id != message_id],
        )


def _add_mails(router: APIRouter, db: Database, reading: Reading) -> None:
    @router.get(
        "/{message_id}/preview",
        operation_id="preview_quarantined",
        responses=problems(400, 401, 403, 404, 409, 422, 502, 503),
    )
    async def preview_quarantined(caller: Admin, message_id: UUID) -> MailPreview:
        """Show the mail without danger: sanitised, its links defused, nothing loaded from outside."""
        message = await _find(db, caller, message_id)
        shown = await reading.preview(caller.tenant_id, message.identity)
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
            **problems(400, 401, 403, 404, 409, 422, 502, 503),
        },
    )
    async def show_quarantined(caller: Admin, message_id: UUID) -> Response:
        """Show the same as a page, with the header fields that keep it harmless."""
        message = await _find(db, caller, message_id)
        shown = await reading.preview(caller.tenant_id, message.identity)
        return Response(document(shown), headers=dict(DOCUMENT_HEADERS))

    @router.get(
        "/{message_id}/headers",
        operation_id="read_quarantined_headers",
        responses=problems(400, 401, 403, 404, 409, 422, 502, 503),
    )
    async def read_quarantined_headers(caller: Admin, message_id: UUID) -> MailHeaders:
        """Read the mail's header."""
        message = await _find(db, caller, message_id)
        return MailHeaders(headers=await reading.headers(caller.tenant_id, message.identity))

    @router.get(
        "/{message_id}/download",
        operation_id="download_quarantined",
        response_class=Response,
        responses={
            200: {"content": {"message/rfc822": {}}, "description": "The mail as it came. It may be dangerous."},
            **problems(400, 401, 403, 404, 409, 422, 502, 503),
        },
    )
    async def download_quarantined(caller: Admin, message_id: UUID) -> Response:
        """Download the mail as it came."""
        message = await _find(db, caller, message_id)
        raw = await reading.raw(caller.tenant_id, message.identity)
        log.info("mail.downloaded", message_id=message_id, by=caller.oid)
        headers = {
            "Content-Disposition": f'attachment; filename="{message_id}.eml"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cache-Control": "no-store",
        }
        return Response(raw, media_type="message/rfc822", headers=headers)


def _add_actions(router: APIRouter, db: Database, patience: timedelta) -> None:
    @router.post(
        "/actions",
        operation_id="act_on_quarantine",
        responses={
            202: {"model": ActionResults, "description": "Some are still running, and none has failed yet."},
            207: {"model": ActionResults, "description": "Some have failed, others have not: see the results."},
            **problems(400, 401, 403, 404, 409, 422, 502, 503),
        },
    )
    async def act_on_quarantine(caller: Admin, wish: QuarantineWish, response: Response) -> ActionResults:
        """
        Release or deny, or submit and block, for one mail or for many.

        200: all of it is done. 202: some is still running; ask for its action. 207: some has failed, the rest has not.
        409: Microsoft refused all of it. 502: Microsoft could not be reached, or does not let Backstop do any of it.
        `results` has the outcome for each message, in the problem as well. Sending the same request again joins the
        action that exists, unless that failed.
        """
        by = Actor(kind=ActorKind.APP if caller.is_app else ActorKind.USER, id=caller.oid, name=caller.name)
        messages, ids = await _file(db, caller, wish, by)
        actions = await filing.outcomes(db, caller.tenant_id, ids, patience)
        await filing.cases_known(db, actions, min(patience, FOR_THE_CASE))
        states = await _states(db, actions, messages)
        failed = [state for state in states if state.state == "failed"]
        if len(failed) == len(states):
            results = [state.model_dump(mode="json") for state in states]
            others = [state for state in failed if state.failure not in ("refused", "gone")]
            detail = (others or failed)[0].detail or "Microsoft gave no reason."
            if others:
                raise Problem(502, "action-not-carried-out", detail, results=results)
            raise Problem(409, "refused-by-microsoft", detail, results=results)
        running = any(state.state == "running" for state in states)
        response.status_code = 207 if failed else 202 if running else 200
        return ActionResults(results=states)

    @router.get("/actions/{action_id}", operation_id="read_action", responses=problems(401, 403, 404, 422, 503))
    async def read_action(caller: Reader, action_id: UUID) -> ActionState:
        """Read what became of a wish."""
        actions = await store.find_actions(db.pool, caller.tenant_id, [action_id])
        if not actions:
            raise Problem(404, "unknown-action", f"There is no action {action_id} in your tenant.")
        messages = await store.find_messages(db.pool, caller.tenant_id, [actions[0].message_id])
        return (await _states(db, actions, messages))[0]


async def _find(db: Database, caller: Caller, message_id: UUID) -> QuarantinedMessage:
    message = await store.find_message(db.pool, caller.tenant_id, message_id)
    if message is None:
        raise Problem(
            404, "unknown-quarantined-message", f"There is no quarantined message {message_id} in your tenant."
        )
    return message


async def _file(
    db: Database, caller: Caller, wish: Release | Deny | SubmitFromQuarantine, by: Actor
) -> tuple[list[QuarantinedMessage], list[UUID]]:
    async with db.transaction() as tx:
        named = await store.find_messages(tx, caller.tenant_id, wish.messages)
        if unknown := set(wish.messages) - {message.message_id for message in named}:
            detail = f"Not in your tenant: {', '.join(sorted(map(str, unknown)))}. Nothing was done."
            raise Problem(404, "unknown-quarantined-message", detail)
        copies = await store.find_copies(tx, caller.tenant_id, wish.messages)
        messages = copies if wish.all_recipients else named
        if len(messages) > MOST_AT_ONCE:
            raise Problem(
                422,
                "too-many-messages",
                f"The request names {len(messages)} messages; at most {MOST_AT_ONCE} are accepted. Nothing was done.",
            )
        match wish:
            case Release():
                ids = await filing.file(tx, messages, Kind.RELEASE, by=by, reason=wish.reason)
            case Deny():
                _check_denial(messages, copies)
                ids = await filing.file(tx, messages, Kind.DENY, by=by, reason=wish.reason)
            case SubmitFromQuarantine():
                decision = AdminDecision(
                    category=wish.category,
                    blocks=tuple(block.decided() for block in wish.blocks),
                    note=wish.note,
                    decided_by=by,
                )
                said = REPORTED_AS[wish.category]
                ids = await filing.file(
                    tx, messages, Kind.SUBMIT, by=by, reason=wish.note, reported_as=said, decision=decision
                )
    return messages, ids


def _check_denial(messages: Sequence[QuarantinedMessage], copies: Sequence[QuarantinedMessage]) -> None:
    """Refuse a denial that would hit recipients who were not named."""
    named = {message.message_id for message in messages}
    rows = {message.identity for message in messages if message.sharing > 1}
    missing = [copy for copy in copies if copy.identity in rows and copy.message_id not in named]
    if missing:
        raise Problem(
            422,
            "denial-affects-others",
            f"Defender keeps this message in one row for {missing[0].sharing} recipients: name them all, or set"
            " `all_recipients`. Nothing was done.",
        )


async def _states(db: Database, actions: Sequence[Action], messages: Sequence[QuarantinedMessage]) -> list[ActionState]:
    known = {message.message_id: message for message in messages}
    reported = await store.submissions(db.pool, list(known))
    by_report = {one.report_id: one for one in reported}
    return [
        ActionState(
            action_id=action.action_id,
            message_id=action.message_id,
            recipient=known[action.message_id].recipient,
            action=action.kind,
            state="running" if action.state == "pending" else "succeeded" if action.state == "succeeded" else "failed",
            already_done=action.already_done,
            failure=action.failure,
            detail=action.detail,
            reason=action.reason,
            requested_by=action.by,
            requested_at=action.requested_at,
            settled_at=action.settled_at,
            submission=_submission(by_report[action.report_id]) if action.report_id in by_report else None,
        )
        for action in actions
    ]


def _submission(one: Submission) -> SubmissionState:
    return SubmissionState(report_id=one.report_id, case_id=one.case_id, case_status=one.status, verdict=one.verdict)


def _summary(message: QuarantinedMessage) -> dict[str, Any]:
    same = QuarantinedSummary.model_fields.keys() - {"recipient_count", "user_permissions"}
    return {
        **{name: getattr(message, name) for name in same},
        "recipient_count": message.sharing,
        "user_permissions": [
            str(bit.name).lower().replace("_", "-") for bit in Permissions if bit in message.permitted
        ],
    }


def _write_cursor(message: QuarantinedMessage) -> str:
    pending = int(message.status is Status.REQUESTED)
    return write_cursor(pending, message.received_at.isoformat(), message.message_id)


def _place(parts: list[str]) -> tuple[bool, datetime, UUID]:
    pending, received_at, message_id = parts
    return pending == "1", in_utc(datetime.fromisoformat(received_at)), UUID(message_id)
