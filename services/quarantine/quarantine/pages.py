"""The users' pages behind the links of a digest. Following a link changes nothing; only a confirmed form does."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import parse_qs

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment

from backstop_contracts import Actor, ReportedAs
from chassis.http import Problem
from chassis.postgres import Database
from m365 import M365Error
from mail import DOCUMENT_HEADERS, document
from quarantine import action_requests, store
from quarantine.links import ExpiredLinkError, InvalidLinkError, LinkAction, LinkClaims, Signer, parse_link
from quarantine.message_source import MessageSource
from quarantine.notification_settings import QuarantineSettings, read_settings
from quarantine.quarantine_policies import Permissions
from quarantine.recipient_permissions import is_held, permitted_actions
from quarantine.rendering import link_path, page_headers, render_page
from quarantine.rules import BY_RECIPIENT, NOT_PERMITTED, ActionKind
from quarantine.sign_in import Person, SignIn, SignInError
from quarantine.store import Action, QuarantinedMessage
from quarantine.translations import Texts, choose_language

log = structlog.get_logger()

MAX_WAIT = timedelta(seconds=10)
"""How long a page waits for the outcome of an action."""
MAX_FORM_BYTES = 32_768
"""Entra ID's response is the largest form."""
REPORT_CHOICES = (ReportedAs.PHISHING, ReportedAs.JUNK, ReportedAs.NOT_JUNK)
ACTION_KINDS = {
    LinkAction.RELEASE: ActionKind.RELEASE,
    LinkAction.REQUEST: ActionKind.REQUEST,
    LinkAction.REPORT: ActionKind.REPORT,
}


class _PageError(Exception):
    """The page cannot be shown; the texts `invalid.<key>_title` and `invalid.<key>` say why."""

    def __init__(self, key: str, status: int) -> None:
        super().__init__(key)
        self.key = key
        self.status = status


@dataclass(frozen=True, slots=True)
class _Visit:
    """A verified link, the message that it is for, and who opened it."""

    link: LinkClaims
    message: QuarantinedMessage
    settings: QuarantineSettings
    texts: Texts
    person: Person | None

    @property
    def user(self) -> str:
        """Who a confirmation page is bound to, besides its link."""
        return self.person.oid if self.person else ""

    @property
    def actor(self) -> Actor:
        """In whose name something is done: the person who signed in, or else the recipient."""
        if self.person:
            return Actor(kind="user", id=self.person.oid, name=self.person.name)
        return Actor(kind="user", id=self.message.recipient, name=self.message.recipient)


class Pages:
    """Serves the users' pages."""

    def __init__(
        self,
        db: Database,
        source: MessageSource,
        signer: Signer,
        templates: Environment,
        sign_in: SignIn | None,
        *,
        max_wait: timedelta = MAX_WAIT,
    ) -> None:
        self._db = db
        self._source = source
        self._signer = signer
        self._templates = templates
        self._sign_in = sign_in
        self._max_wait = max_wait

    def router(self) -> APIRouter:
        """Return the routes. They are for people, so no API document shows them."""
        router = APIRouter(prefix="/q", include_in_schema=False)
        router.add_api_route("/signed-in", self.finish_sign_in, methods=["POST"])
        router.add_api_route("/{token}", self.show_page, methods=["GET"])
        router.add_api_route("/{token}", self.submit_form, methods=["POST"])
        router.add_api_route("/{token}/mail", self.show_preview, methods=["GET"])
        router.add_api_route("/{token}/sign-in", self.begin_sign_in, methods=["GET"])
        return router

    async def show_page(self, token: str, request: Request) -> Response:
        """Show the message, or ask for confirmation of the link's action. Changes nothing, whoever follows the link."""
        try:
            visit = await self._verify_visit(token, request)
            if visit.link.action is LinkAction.VIEW:
                return self._message_page(visit, as_text=request.query_params.get("as") == "text")
            _check_permitted(visit)
        except _PageError as error:
            return self._error_page(error, token, request)
        return self._confirmation_page(visit)

    async def submit_form(self, token: str, request: Request) -> Response:
        """Perform the link's action if its confirmation page was sent and the action is still permitted."""
        try:
            visit = await self._verify_visit(token, request)
            reported_as = await self._read_confirmation(visit, request)
            if visit.link.action is LinkAction.BLOCK:
                return await self._block_sender(visit)
            return await self._request_action(visit, reported_as)
        except _PageError as error:
            return self._error_page(error, token, request)

    async def show_preview(self, token: str, request: Request) -> Response:
        """Show the content of the message, made safe, for the frame in the page."""
        try:
            visit = await self._verify_visit(token, request)
            _check_preview_permitted(visit)
            texts = visit.texts.preview()
            shown = await self._source.preview(visit.message.tenant_id, visit.message.identity, texts)
        except _PageError as error:
            return self._error_page(error, token, request, framed=True)
        except Problem as problem:
            key = "not_permitted" if problem.status in (404, 409) else "away"
            return self._error_page(_PageError(key, problem.status), token, request, framed=True)
        if request.query_params.get("as") == "text":
            shown = replace(shown, html=None)
        return Response(document(shown, texts), headers=dict(DOCUMENT_HEADERS))

    async def begin_sign_in(self, token: str, request: Request) -> Response:
        """Redirect to Entra ID, which sends the user back to `finish_sign_in`."""
        response = RedirectResponse("/", 303, headers=page_headers())
        try:
            link, _ = await self._check_link(token)
            response.headers["Location"] = await self._require_sign_in().start(response, link.tenant_id, token)
        except _PageError as error:
            return self._error_page(error, token, request)
        except SignInError:
            return self._error_page(_PageError("away", 503), token, request)
        return response

    async def finish_sign_in(self, request: Request) -> Response:
        """Accept Entra ID's response and redirect to the link."""
        response = RedirectResponse("/", 303, headers=page_headers())
        try:
            token = await self._require_sign_in().finish(request, response, await _read_form(request))
        except (SignInError, _PageError):
            return self._error_page(_PageError("", 403), "", request)
        response.headers["Location"] = f"/q/{token}"
        return response

    def _require_sign_in(self) -> SignIn:
        if self._sign_in is None:
            raise _PageError("away", 503)
        return self._sign_in

    async def _verify_visit(self, token: str, request: Request) -> _Visit:
        """Check the link and, if the tenant requires it, who opened it. Raises _PageError."""
        link, message = await self._check_link(token)
        settings = await read_settings(self._db.pool, link.tenant_id)
        person = await self._check_person(request, message) if settings.sign_in else None
        texts = choose_language(request.headers.get("accept-language", ""), settings.language)
        return _Visit(link, message, settings, texts, person)

    async def _check_link(self, token: str) -> tuple[LinkClaims, QuarantinedMessage]:
        """Return a verified link and its message. Raises _PageError."""
        try:
            link = parse_link(token)
        except InvalidLinkError:
            raise _PageError("", 404) from None
        message = await store.find_message(self._db.pool, link.tenant_id, link.message_id)
        if message is None:
            raise _PageError("", 404)
        try:
            self._signer.check_link(link, message.recipient, datetime.now(UTC))
        except InvalidLinkError:
            raise _PageError("", 404) from None
        except ExpiredLinkError:
            raise _PageError("expired", 410) from None
        return link, message

    async def _check_person(self, request: Request, message: QuarantinedMessage) -> Person:
        """Return who signed in, if that is the recipient. Raises _PageError."""
        sign_in = self._require_sign_in()
        person = sign_in.signed_in_person(request)
        if person is None or person.tenant_id != message.tenant_id:
            raise _PageError("sign_in", 401)
        try:
            is_recipient = await sign_in.is_recipient(person, message.tenant_id, message.recipient)
        except M365Error:
            raise _PageError("away", 503) from None
        if not is_recipient:
            raise _PageError("not_yours", 403)
        return person

    async def _read_confirmation(self, visit: _Visit, request: Request) -> str | None:
        """Return what was chosen on the confirmation page. Raises _PageError if the form is not from that page."""
        form = await _read_form(request)
        confirmation, reported_as = form.get("confirmation", ""), form.get("reported_as")
        if not self._signer.is_confirmed(confirmation, visit.link.token, visit.user, datetime.now(UTC)):
            raise _PageError("stale", 403)
        return reported_as

    async def _request_action(self, visit: _Visit, reported_as: str | None) -> Response:
        """Release the message, request its release or report it, and show the outcome."""
        kind = ACTION_KINDS.get(visit.link.action)
        if kind is None:
            raise _PageError("", 404)
        if kind is not ActionKind.REPORT:
            reported_as = None
        elif reported_as not in REPORT_CHOICES:
            raise _PageError("stale", 422)
        variant = BY_RECIPIENT if kind is ActionKind.RELEASE else reported_as or ""
        message = visit.message
        async with self._db.transaction() as tx:
            latest = await store.find_latest_actions(tx, [message.message_id], kind, variant)
            known = latest.get(message.message_id)
            # A form that is sent twice shows the same outcome twice.
            if known is None or known.state == "failed":
                _check_permitted(visit)
            (action_id,) = await action_requests.request_actions(
                tx, [message], kind, by=visit.actor, variant=variant, reported_as=reported_as
            )
        (action,) = await action_requests.wait_for_actions(self._db, message.tenant_id, [action_id], self._max_wait)
        log.info("link.used", action=kind, action_id=action_id, state=action.state)
        return await self._action_page(visit, action)

    async def _action_page(self, visit: _Visit, action: Action) -> Response:
        if action.state != "failed":
            running = action.state == "pending"
            return await self._success_page(visit, str(action.kind), running=running, already=action.already_done)
        if action.detail == NOT_PERMITTED:
            raise _PageError("not_permitted", 409)
        return await self._failure_page(visit, action.detail, away=action.failure in ("gave-up", "not-allowed"))

    async def _block_sender(self, visit: _Visit) -> Response:
        """Block the sender for the recipient's mailbox, and show the outcome."""
        _check_permitted(visit)
        message = visit.message
        async with self._db.transaction() as tx:
            block = await action_requests.request_sender_block(tx, message, message.sender or "", by=visit.actor)
        found = await action_requests.wait_for_block(self._db, message.tenant_id, block, self._max_wait)
        log.info("link.used", action="block", block_id=found.block_id, state=found.status)
        if found.status in ("failed", "removed"):
            return await self._failure_page(visit, found.detail, away=found.reason == "gave-up")
        running, already = found.status == "requested", block.status == "applied"
        return await self._success_page(visit, "block", running=running, already=already)

    def _message_page(self, visit: _Visit, *, as_text: bool) -> Response:
        message, here, now = visit.message, f"/q/{visit.link.token}", datetime.now(UTC)
        held = is_held(message, now)
        shown = held and Permissions.PREVIEW in message.permitted
        return render_page(
            self._templates,
            "message.html",
            visit.texts,
            title=message.subject or visit.texts("digest.no_subject"),
            message=message,
            actions=[(action.text_key, self._page_path(visit, action)) for action in permitted_actions(message, now)],
            here=here,
            as_text=as_text,
            held=held,
            frame=(f"{here}/mail" + ("?as=text" if as_text else "")) if shown else None,
        )

    def _confirmation_page(self, visit: _Visit) -> Response:
        message, token, key = visit.message, visit.link.token, visit.link.action.text_key
        return render_page(
            self._templates,
            "confirm.html",
            visit.texts,
            title=visit.texts(f"confirm.{key}", sender=message.sender or ""),
            message=message,
            action=key,
            here=f"/q/{token}",
            back=self._page_path(visit, LinkAction.VIEW),
            confirmation=self._signer.sign_confirmation(token, visit.user, datetime.now(UTC)),
            choices=REPORT_CHOICES,
        )

    async def _success_page(self, visit: _Visit, key: str, *, running: bool, already: bool) -> Response:
        texts = visit.texts
        if running:
            return await self._outcome_page(visit, texts("done.running_title"), texts("done.running"), "note", 202)
        text = texts("done.already" if already else f"done.{key}")
        return await self._outcome_page(visit, texts(f"action.{key}"), text, "good", 200)

    async def _failure_page(self, visit: _Visit, detail: str | None, *, away: bool) -> Response:
        texts = visit.texts
        text = texts("done.failed", detail=detail) if detail else texts("done.failed_unknown")
        return await self._outcome_page(visit, texts("done.failed_title"), text, "bad", 502 if away else 409)

    async def _outcome_page(
        self, visit: _Visit, title: str, text: str, tone: Literal["good", "note", "bad"], status: int
    ) -> Response:
        return render_page(
            self._templates,
            "outcome.html",
            visit.texts,
            status=status,
            title=title,
            text=text,
            tone=tone,
            message=await store.find_message(self._db.pool, visit.message.tenant_id, visit.message.message_id),
            button=None,
            back=self._page_path(visit, LinkAction.VIEW),
        )

    def _error_page(self, error: _PageError, token: str, request: Request, *, framed: bool = False) -> Response:
        texts, key = choose_language(request.headers.get("accept-language", ""), "en"), error.key
        button = None
        if key == "sign_in" and not framed:
            button = (texts("invalid.sign_in_button"), f"/q/{token}/sign-in")
        elif key == "stale":
            button = (texts("page.back"), f"/q/{token}")
        return render_page(
            self._templates,
            "outcome.html",
            texts,
            status=error.status,
            framed=framed,
            title=texts(f"invalid.{key}_title" if key else "invalid.title"),
            text=texts(f"invalid.{key}" if key else "invalid.text"),
            tone="note" if key == "sign_in" else "bad",
            message=None,
            button=button,
            back=None,
        )

    def _page_path(self, visit: _Visit, action: LinkAction) -> str:
        """Return the path of another page for the same message, which expires with the visited link."""
        return link_path(self._signer, action, visit.message, visit.link.expires_at)


def _check_permitted(visit: _Visit) -> None:
    if visit.link.action not in permitted_actions(visit.message, datetime.now(UTC)):
        raise _PageError("not_permitted", 409)


def _check_preview_permitted(visit: _Visit) -> None:
    if visit.link.action is not LinkAction.VIEW or Permissions.PREVIEW not in visit.message.permitted:
        raise _PageError("not_permitted", 403)


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a small form; the first field of a name counts. Raises _PageError."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise _PageError("stale", 413)
    return {name: values[0] for name, values in parse_qs(body.decode("ascii", "replace")).items()}
