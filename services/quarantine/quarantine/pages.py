"""The pages behind the links of a digest: GET shows, POST acts after a confirming page, and nothing needs script."""

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qs

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment

from backstop_contracts import Actor, ReportedAs
from chassis.http import Problem
from chassis.postgres import Database
from m365 import M365Error
from mail import DOCUMENT_HEADERS, document
from quarantine import filing, links, rules, store
from quarantine.language import Words, choose
from quarantine.links import Claim, ExpiredError, InvalidLinkError, LinkAction
from quarantine.offering import NAMES, Links, offered
from quarantine.reading import Reading
from quarantine.rules import BY_RECIPIENT, NOT_PERMITTED, Kind, Permissions
from quarantine.settings import QuarantineSettings, settings_of
from quarantine.sign_in import Person, SignIn, SignInError
from quarantine.store import QuarantinedMessage

log = structlog.get_logger()

PATIENCE = timedelta(seconds=10)
FORM_BYTES = 32_768
"""An answer of Entra ID is the largest form that comes here."""
CHOICES = (ReportedAs.PHISHING, ReportedAs.JUNK, ReportedAs.NOT_JUNK)
KINDS = {LinkAction.RELEASE: Kind.RELEASE, LinkAction.REQUEST: Kind.REQUEST, LinkAction.REPORT: Kind.REPORT}
Tone = Literal["good", "note", "bad"]


class _PageError(Exception):
    """Something else than the page has to be shown: the texts `invalid.<name>_title` and `invalid.<name>`."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(name)
        self.name = name
        self.status = status


class _SignInNeededError(Exception):
    """Nobody has signed in yet."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A link that was checked: what it is for, whose mail it is, who opens it."""

    claim: Claim
    message: QuarantinedMessage
    settings: QuarantineSettings
    words: Words
    person: Person | None

    @property
    def who(self) -> str:
        """What a confirming page is bound to, besides its link."""
        return self.person.oid if self.person else ""

    @property
    def actor(self) -> Actor:
        """In whose name something is done: the person who signed in, or whoever has the recipient's link."""
        if self.person:
            return Actor(kind="user", id=self.person.oid, name=self.person.name)
        return Actor(kind="user", id=self.message.recipient, name=self.message.recipient)


class Pages:
    """Serves the pages over *db*; what is shown of mails comes from *reading*."""

    def __init__(
        self,
        db: Database,
        reading: Reading,
        links: Links,
        templates: Environment,
        sign_in: SignIn | None,
        *,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._db = db
        self._reading = reading
        self._links = links
        self._templates = templates
        self._sign_in = sign_in
        self._patience = patience

    def router(self) -> APIRouter:
        """Make the routes. They are for people, so no API document shows them."""
        router = APIRouter(prefix="/q", include_in_schema=False)
        router.add_api_route("/signed-in", self.signed_in, methods=["POST"])
        router.add_api_route("/{token}", self.show, methods=["GET"])
        router.add_api_route("/{token}", self.act, methods=["POST"])
        router.add_api_route("/{token}/mail", self.mail, methods=["GET"])
        router.add_api_route("/{token}/sign-in", self.begin_sign_in, methods=["GET"])
        return router

    async def show(self, token: str, request: Request) -> Response:
        """Show the mail, or ask whether to do what the link is for. Changes nothing, whoever follows the link."""
        try:
            visit = await self._visit(token, request)
            if visit.claim.action is LinkAction.VIEW:
                return self._message(visit, as_text=request.query_params.get("as") == "text")
            self._check_offered(visit)
        except (_PageError, _SignInNeededError) as error:
            return await self._instead(error, token, request)
        return self._confirm(visit)

    async def act(self, token: str, request: Request) -> Response:
        """Do what the link is for, once its page has been seen and confirmed; what is permitted is looked at anew."""
        try:
            visit = await self._visit(token, request)
            said = await self._confirmed(visit, request)
            if visit.claim.action is LinkAction.BLOCK:
                return await self._block(visit)
            return await self._wish(visit, said)
        except (_PageError, _SignInNeededError) as error:
            return await self._instead(error, token, request)

    async def _confirmed(self, visit: _Visit, request: Request) -> str | None:
        """Return what was chosen on the confirming page. Raises _PageError when it was not that page that was sent."""
        form = await _form(request)
        confirmation, said = form.get("confirmation", ""), form.get("reported_as")
        if not self._links.signer.is_confirmed(confirmation, visit.claim.token, visit.who, datetime.now(UTC)):
            raise _PageError("stale", 403)
        return said

    async def mail(self, token: str, request: Request) -> Response:
        """Show the mail itself, made safe, for the frame in the page."""
        try:
            visit = await self._visit(token, request)
            self._check_shown(visit)
        except (_PageError, _SignInNeededError) as error:
            return await self._instead(error, token, request, framed=True)
        try:
            words = visit.words.preview()
            shown = await self._reading.preview(visit.message.tenant_id, visit.message.identity, words)
        except Problem as problem:
            name = "not_permitted" if problem.status in (404, 409) else "away"
            return await self._instead(_PageError(name, problem.status), token, request, framed=True)
        if request.query_params.get("as") == "text":
            shown = replace(shown, html=None)
        return Response(document(shown, words), headers=dict(DOCUMENT_HEADERS))

    async def begin_sign_in(self, token: str, request: Request) -> Response:
        """Go to Entra ID and come back."""
        response = RedirectResponse("/", 303, headers=_headers(""))
        try:
            claim, _ = await self._link(token)
            response.headers["Location"] = await self._offered_sign_in().start(response, claim.tenant_id, token)
        except _PageError as error:
            return await self._instead(error, token, request)
        except SignInError:
            return await self._instead(_PageError("away", 503), token, request)
        return response

    async def signed_in(self, request: Request) -> Response:
        """Take the answer of Entra ID, and go on with the link."""
        response = RedirectResponse("/", 303, headers=_headers(""))
        try:
            token = await self._offered_sign_in().finish(request, response, await _form(request))
        except (SignInError, _PageError):
            return await self._instead(_PageError("", 403), "", request)
        response.headers["Location"] = f"/q/{token}"
        return response

    def _offered_sign_in(self) -> SignIn:
        if self._sign_in is None:
            raise _PageError("away", 503)
        return self._sign_in

    async def _link(self, token: str) -> tuple[Claim, QuarantinedMessage]:
        """Check a link. Raises _PageError."""
        try:
            claim = links.read(token)
        except InvalidLinkError:
            raise _PageError("", 404) from None
        message = await store.find_message(self._db.pool, claim.tenant_id, claim.message_id)
        if message is None:
            raise _PageError("", 404)
        try:
            self._links.signer.check(claim, message.recipient, datetime.now(UTC))
        except InvalidLinkError:
            raise _PageError("", 404) from None
        except ExpiredError:
            raise _PageError("expired", 410) from None
        return claim, message

    async def _visit(self, token: str, request: Request) -> _Visit:
        """Check the link and, where the tenant wants it, who opens it. Raises _PageError or _SignInNeededError."""
        claim, message = await self._link(token)
        settings = await settings_of(self._db.pool, claim.tenant_id)
        person = await self._person(request, message) if settings.sign_in else None
        words = choose(request.headers.get("accept-language", ""), settings.language)
        return _Visit(claim, message, settings, words, person)

    async def _person(self, request: Request, message: QuarantinedMessage) -> Person:
        sign_in = self._offered_sign_in()
        person = sign_in.person(request)
        if person is None or person.tenant_id != message.tenant_id:
            raise _SignInNeededError
        try:
            theirs = await sign_in.is_recipient(person, message.tenant_id, message.recipient)
        except M365Error:
            raise _PageError("away", 503) from None
        if not theirs:
            raise _PageError("not_yours", 403)
        return person

    def _check_offered(self, visit: _Visit) -> None:
        if visit.claim.action not in offered(visit.message, datetime.now(UTC)):
            raise _PageError("not_permitted", 409)

    def _check_shown(self, visit: _Visit) -> None:
        if visit.claim.action is not LinkAction.VIEW or Permissions.PREVIEW not in visit.message.permitted:
            raise _PageError("not_permitted", 403)

    def _message(self, visit: _Visit, *, as_text: bool) -> Response:
        message, here = visit.message, f"/q/{visit.claim.token}"
        held = message.status in rules.HELD and message.expires_at > datetime.now(UTC)
        shown = held and Permissions.PREVIEW in message.permitted
        actions = [
            (NAMES[action], f"/q/{self._links.token(action, message, visit.claim.expires_at)}")
            for action in offered(message, datetime.now(UTC))
        ]
        return self._page(
            "message.html",
            visit.words,
            title=message.subject or visit.words("digest.no_subject"),
            message=message,
            actions=actions,
            here=here,
            as_text=as_text,
            held=held,
            frame=(f"{here}/mail" + ("?as=text" if as_text else "")) if shown else None,
        )

    def _confirm(self, visit: _Visit) -> Response:
        message, token, name = visit.message, visit.claim.token, NAMES[visit.claim.action]
        return self._page(
            "confirm.html",
            visit.words,
            title=visit.words(f"confirm.{name}", sender=message.sender or ""),
            message=message,
            action=name,
            here=f"/q/{token}",
            back=self._back(visit),
            confirmation=self._links.signer.confirmation(token, visit.who, datetime.now(UTC)),
            choices=CHOICES,
        )

    def _back(self, visit: _Visit) -> str:
        return f"/q/{self._links.token(LinkAction.VIEW, visit.message, visit.claim.expires_at)}"

    async def _wish(self, visit: _Visit, said: str | None) -> Response:
        """Release, ask for it, or report, and say what became of that."""
        kind = KINDS.get(visit.claim.action)
        if kind is None:
            raise _PageError("", 404)
        if kind is Kind.REPORT and said not in CHOICES:
            raise _PageError("stale", 422)
        reported_as = said if kind is Kind.REPORT else None
        variant = BY_RECIPIENT if kind is Kind.RELEASE else reported_as or ""
        async with self._db.transaction() as tx:
            last = await store.last_actions(tx, [visit.message.message_id], kind, variant)
            known = last.get(visit.message.message_id)
            # A page that is sent twice is answered twice, and acts once.
            if known is None or known.state == "failed":
                self._check_offered(visit)
            (action_id,) = await filing.file(
                tx, [visit.message], kind, by=visit.actor, variant=variant, reported_as=reported_as
            )
        (action,) = await filing.outcomes(self._db, visit.message.tenant_id, [action_id], self._patience)
        log.info("link.used", action=kind, action_id=action_id, state=action.state)
        if action.state == "failed":
            if action.detail == NOT_PERMITTED:
                raise _PageError("not_permitted", 409)
            return await self._failed(visit, action.detail, away=action.failure in ("gave-up", "not-allowed"))
        return await self._done(visit, str(kind), running=action.state == "pending", already=action.already_done)

    async def _block(self, visit: _Visit) -> Response:
        """Block the sender for the recipient's mailbox, and say what became of that."""
        self._check_offered(visit)
        message = visit.message
        async with self._db.transaction() as tx:
            block = await filing.block_sender(tx, message, message.sender or "", by=visit.actor)
        found = await filing.block_outcome(self._db, message.tenant_id, block, self._patience)
        log.info("link.used", action="block", block_id=found.block_id, state=found.status)
        if found.status in ("failed", "removed"):
            return await self._failed(visit, found.detail, away=found.reason == "gave-up")
        return await self._done(visit, "block", running=found.status == "requested", already=block.status == "applied")

    async def _done(self, visit: _Visit, name: str, *, running: bool, already: bool) -> Response:
        words = visit.words
        title = words("done.running_title") if running else words(f"action.{name}")
        text = words("done.running") if running else words("done.already" if already else f"done.{name}")
        tone: Tone = "note" if running else "good"
        return await self._outcome(visit, title, text, tone, 202 if running else 200)

    async def _failed(self, visit: _Visit, detail: str | None, *, away: bool) -> Response:
        words = visit.words
        text = words("done.failed", detail=detail) if detail else words("done.failed_unknown")
        return await self._outcome(visit, words("done.failed_title"), text, "bad", 502 if away else 409)

    async def _outcome(self, visit: _Visit, title: str, text: str, tone: Tone, status: int) -> Response:
        message = await store.find_message(self._db.pool, visit.message.tenant_id, visit.message.message_id)
        return self._page(
            "outcome.html",
            visit.words,
            status=status,
            title=title,
            text=text,
            tone=tone,
            message=message,
            button=None,
            back=self._back(visit),
        )

    async def _instead(
        self, error: _PageError | _SignInNeededError, token: str, request: Request, *, framed: bool = False
    ) -> Response:
        words = choose(request.headers.get("accept-language", ""), "en")
        if isinstance(error, _SignInNeededError):
            sign_in = (words("invalid.sign_in_button"), f"/q/{token}/sign-in")
            return self._problem(words, _PageError("sign_in", 401), button=None if framed else sign_in, framed=framed)
        again = None
        if error.name == "stale":
            again = (words("page.back"), f"/q/{token}")
        return self._problem(words, error, button=again, framed=framed)

    def _problem(
        self, words: Words, error: _PageError, *, button: tuple[str, str] | None = None, framed: bool = False
    ) -> Response:
        name = error.name
        return self._page(
            "outcome.html",
            words,
            status=error.status,
            framed=framed,
            title=words(f"invalid.{name}_title" if name else "invalid.title"),
            text=words(f"invalid.{name}" if name else "invalid.text"),
            tone="note" if name == "sign_in" else "bad",
            message=None,
            button=button,
            back=None,
        )

    def _page(
        self, template: str, words: Words, *, status: int = HTTPStatus.OK, framed: bool = False, **content: Any
    ) -> Response:
        nonce = secrets.token_urlsafe(16)
        text = self._templates.get_template(template).render(words=words, nonce=nonce, **content)
        return HTMLResponse(text, status, headers={**_headers(nonce, framed=framed), "Content-Language": words.code})


async def _form(request: Request) -> dict[str, str]:
    """Read a small form; the first of a name counts. Raises _PageError."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise _PageError("stale", 413)
    return {name: values[0] for name, values in parse_qs(body.decode("ascii", "replace")).items()}


def _headers(nonce: str, *, framed: bool = False) -> dict[str, str]:
    """Let a page load nothing but its own style and frame, be kept nowhere, and be framed by nobody else."""
    policy = (
        "default-src 'none'",
        f"style-src 'nonce-{nonce}'" if nonce else "style-src 'none'",
        "frame-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'self'" if framed else "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex, nofollow",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }
