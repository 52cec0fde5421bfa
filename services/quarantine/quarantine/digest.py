"""Send users digests of quarantined messages: one email per recipient and period, sent once despite any failure."""

import base64
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any
from uuid import UUID

import structlog
from jinja2 import Environment

from chassis.postgres import Database
from chassis.worker import Lease, backoff, run_all
from m365 import Graph, M365Error, Refused, Throttled, Unauthorised, Unavailable
from quarantine import rules, store
from quarantine.links import LinkAction, Signer
from quarantine.notification_settings import QuarantineSettings, read_settings
from quarantine.recipient_permissions import permitted_actions
from quarantine.rendering import link_path
from quarantine.rules import DigestFrequency
from quarantine.store import Digest, QuarantinedMessage
from quarantine.translations import Texts, user_language

log = structlog.get_logger()

LEASE = Lease(timedelta(seconds=75))
MAX_ROWS = 50
GIVE_UP_AFTER = timedelta(hours=24)
SENDING_SECONDS = 20.0
"""How long a draft may take to leave the Drafts folder after it was sent, before it is sent again."""
ASSUME_SENT_AFTER = timedelta(minutes=15)
"""A draft that has been in neither Drafts nor Sent Items for this long was sent: nobody but us knows of it."""
MARKER_PROPERTY = "String {b8a4f7d0-6b1e-4c57-9d0e-3f6a5b2c1d4e} Name Backstop-Digest"
IMMUTABLE_IDS = {"Prefer": 'IdType="ImmutableId"'}


@dataclass(frozen=True, slots=True)
class _DigestEmail:
    """The digest's email as Graph shows it."""

    id: str
    is_draft: bool


class DigestWorker:
    """Plans and sends the digests of *tenants*, at most *batch* at a time; links begin with *public_url*."""

    def __init__(
        self,
        db: Database,
        graph: Graph,
        tenants: Collection[UUID],
        signer: Signer,
        templates: Environment,
        *,
        public_url: str,
        shortest_period: timedelta = rules.SHORTEST_PERIOD,
        batch: int = 4,
        lease: Lease = LEASE,
    ) -> None:
        self._db = db
        self._graph = graph
        self._tenants = tenants
        self._signer = signer
        self._templates = templates
        self._public_url = public_url.rstrip("/")
        self._shortest_period = shortest_period
        self._batch = batch
        self._lease = lease

    async def plan_due(self) -> int:
        """Plan the digests of all periods that have ended; return the number of new digests."""
        planned = 0
        for tenant_id in self._tenants:
            settings = await read_settings(self._db.pool, tenant_id)
            if settings.sender is None:
                continue
            for every in {settings.every, *settings.policies.values()} - {DigestFrequency.NEVER}:
                planned += await self._plan(tenant_id, settings, every)
        return planned

    async def _plan(self, tenant_id: UUID, settings: QuarantineSettings, every: DigestFrequency) -> int:
        ended_at = rules.period_end(every, datetime.now(UTC), settings.hour, self._shortest_period)
        if ended_at is None:
            return 0
        async with self._db.transaction() as tx:
            if not await store.record_period(tx, tenant_id, every, ended_at):
                return 0
            by_recipient: defaultdict[str, list[UUID]] = defaultdict(list)
            for message_id, recipient, policy in await store.lock_messages_without_digest(tx, tenant_id, ended_at):
                if settings.frequency(policy) is every:
                    by_recipient[recipient].append(message_id)
            ids = {recipient: rules.digest_id(tenant_id, recipient, every, ended_at) for recipient in by_recipient}
            digests = {message: ids[recipient] for recipient, found in by_recipient.items() for message in found}
            await store.assign_digests(tx, digests)
            await store.record_digests(tx, tenant_id, every, ended_at, {ids[who]: who for who in by_recipient})
        if ids:
            log.info("digests.planned", tenant_id=tenant_id, every=every, digests=len(ids))
        return len(ids)

    async def send_due(self) -> int:
        """Send the digests that are due; return how many there were."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            digests = await store.claim_digests(tx, self._tenants, self._lease.length, self._batch)
            await store.defer_messages(tx, [digest.digest_id for digest in digests if digest.draft_id is None])
        await run_all(*(self._send(digest, deadline) for digest in digests))
        return len(digests)

    async def _send(self, digest: Digest, deadline: float) -> None:
        settings = await read_settings(self._db.pool, digest.tenant_id)
        messages = [
            message
            for message in await store.find_digest_messages(self._db.pool, digest.digest_id)
            if permitted_actions(message, datetime.now(UTC))
        ]
        if settings.sender is None or (not messages and digest.draft_id is None):
            await self._settle(digest, "nothing", None if messages else "No message is held any more.")
            return
        try:
            async with self._graph.before(deadline):
                sent = await self._ensure_sent(digest, settings, settings.sender, messages)
        except Refused as error:
            await self._settle(digest, "failed", error.reason or str(error))
        except (M365Error, TimeoutError) as error:
            await self._postpone(digest, error)
        else:
            if sent:
                await self._settle(digest, "sent")

    async def _ensure_sent(
        self, digest: Digest, settings: QuarantineSettings, sender: str, messages: Sequence[QuarantinedMessage]
    ) -> bool:
        """
        Send the digest's draft unless it has left; return True if it is sent.

        Only the recorded draft is ever sent, so no second email leaves, however often this is interrupted. A draft that
        was created but not recorded is found by its marker, and recorded.
        """
        draft_id = digest.draft_id
        if draft_id is not None:
            found = await self._get_draft(digest, sender, draft_id) or await self._find_email(digest, sender)
            if found is None:
                return await self._is_assumed_sent(digest)
            if not found.is_draft:
                return True
        else:
            found = await self._find_email(digest, sender) if digest.attempts > 1 else None
            if found and not found.is_draft:
                return True
            draft_id = found.id if found else await self._create_draft(digest, settings, sender, messages)
            async with self._db.transaction() as tx:
                if not await store.record_draft(tx, digest, draft_id):
                    return False
        ids = {"user": sender, "message": draft_id}
        await self._graph.post(digest.tenant_id, "/v1.0/users/{user}/messages/{message}/send", ids=ids)
        return True

    async def _is_assumed_sent(self, digest: Digest) -> bool:
        """Return True if the email has been missing for so long that it must have left; else schedule a retry."""
        if datetime.now(UTC) - digest.planned_at > ASSUME_SENT_AFTER and digest.attempts > 2:
            return True
        async with self._db.transaction() as tx:
            wait = timedelta(seconds=SENDING_SECONDS * min(digest.attempts, 15))
            await store.postpone_digest(tx, digest.digest_id, wait, "Waiting for the email to appear in Sent Items.")
        return False

    async def _get_draft(self, digest: Digest, sender: str, draft_id: str) -> _DigestEmail | None:
        try:
            found = await self._graph.get(
                digest.tenant_id,
                "/v1.0/users/{user}/messages/{message}",
                {"$select": "id,isDraft"},
                IMMUTABLE_IDS,
                ids={"user": sender, "message": draft_id},
            )
        except Refused as error:
            if error.status != 404:
                raise
            return None
        return _DigestEmail(str(found["id"]), found.get("isDraft") is not False)

    async def _find_email(self, digest: Digest, sender: str) -> _DigestEmail | None:
        """Find the email in any folder, by its marker or Message-ID; a sent one takes precedence over a draft."""
        marker = f"ep/id eq '{MARKER_PROPERTY}' and ep/value eq '{digest.digest_id}'"
        found: list[_DigestEmail] = []
        for condition in (
            f"singleValueExtendedProperties/any(ep: {marker})",
            f"internetMessageId eq '{_internet_message_id(digest, sender)}'",
        ):
            page = await self._graph.get(
                digest.tenant_id,
                "/v1.0/users/{user}/messages",
                {"$filter": condition, "$select": "id,isDraft", "$top": "10"},
                IMMUTABLE_IDS,
                ids={"user": sender},
            )
            found += [
                _DigestEmail(str(item["id"]), item.get("isDraft") is not False) for item in page.get("value") or ()
            ]
        return next((message for message in found if not message.is_draft), next(iter(found), None))

    async def _create_draft(
        self, digest: Digest, settings: QuarantineSettings, sender: str, messages: Sequence[QuarantinedMessage]
    ) -> str:
        """Create the email in the sender's Drafts folder and set its marker; return its id."""
        texts = Texts(await self._recipient_language(digest, settings))
        mime = self.compose_mime(digest, settings, sender, messages, texts)
        draft = await self._graph.post_content(
            digest.tenant_id,
            "/v1.0/users/{user}/messages",
            base64.b64encode(mime),
            "text/plain",
            IMMUTABLE_IDS,
            ids={"user": sender},
        )
        draft_id = str(draft["id"])
        await self._graph.patch(
            digest.tenant_id,
            "/v1.0/users/{user}/messages/{message}",
            {"singleValueExtendedProperties": [{"id": MARKER_PROPERTY, "value": str(digest.digest_id)}]},
            IMMUTABLE_IDS,
            ids={"user": sender, "message": draft_id},
        )
        return draft_id

    async def _recipient_language(self, digest: Digest, settings: QuarantineSettings) -> str:
        """Return the recipient's language, or the tenant's if Graph does not tell it."""
        try:
            user = await self._graph.get(
                digest.tenant_id,
                "/v1.0/users/{user}",
                {"$select": "preferredLanguage"},
                ids={"user": digest.recipient},
            )
        except (Refused, Unauthorised):
            return settings.language
        return user_language(user.get("preferredLanguage"), settings.language)

    def compose_mime(
        self,
        digest: Digest,
        settings: QuarantineSettings,
        sender: str,
        messages: Sequence[QuarantinedMessage],
        texts: Texts,
    ) -> bytes:
        """Return the email as MIME, with a text and an HTML part."""
        variables = self.template_variables(digest, settings, messages, texts)
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender
        mail["To"] = digest.recipient
        mail["Subject"] = variables["subject"]
        mail["Message-ID"] = _internet_message_id(digest, sender)
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Auto-Response-Suppress"] = "All"
        mail.set_content(self._templates.get_template("digest.txt").render(variables))
        mail.add_alternative(self.render_html(variables), subtype="html")
        return mail.as_bytes()

    def render_html(self, variables: dict[str, Any]) -> str:
        """Return the HTML part of a digest."""
        return self._templates.get_template("digest.html").render(variables)

    def template_variables(
        self, digest: Digest, settings: QuarantineSettings, messages: Sequence[QuarantinedMessage], texts: Texts
    ) -> dict[str, Any]:
        """Return the variables of the digest's templates."""
        links_expire_at, count = digest.ended_at + timedelta(days=settings.link_days), len(messages)
        return {
            "texts": texts,
            "subject": texts("digest.subject_one") if count == 1 else texts("digest.subject_many", count=count),
            "rows": [self._message_row(message, links_expire_at, texts) for message in messages[:MAX_ROWS]],
            "more": max(0, count - MAX_ROWS),
            "links_expire": texts.date(links_expire_at.astimezone(UTC)),
            "organisation": settings.organisation,
        }

    def _message_row(self, message: QuarantinedMessage, links_expire_at: datetime, texts: Texts) -> dict[str, Any]:
        expires_at = min(links_expire_at, message.expires_at)
        actions = [LinkAction.VIEW, *permitted_actions(message, datetime.now(UTC))]
        return {
            "subject": rules.prevent_autolinking(message.subject or ""),
            "sender": rules.prevent_autolinking(message.sender or ""),
            "date": texts.date(message.received_at, time=True),
            "expires": texts.date(message.expires_at),
            "reason": texts.reason(message.quarantine_type),
            "actions": [
                {"name": texts(f"action.{action.text_key}"), "url": self._link_url(action, message, expires_at)}
                for action in actions
            ],
        }

    def _link_url(self, action: LinkAction, message: QuarantinedMessage, expires_at: datetime) -> str:
        return self._public_url + link_path(self._signer, action, message, expires_at)

    async def _settle(self, digest: Digest, state: str, detail: str | None = None) -> None:
        async with self._db.transaction() as tx:
            await store.settle_digest(tx, digest.digest_id, state, (detail or "")[:500] or None)
        log.info("digest.settled", digest_id=digest.digest_id, state=state)

    async def _postpone(self, digest: Digest, error: Exception) -> None:
        reason = getattr(error, "reason", "") or str(error) or type(error).__name__
        if datetime.now(UTC) - digest.planned_at > GIVE_UP_AFTER:
            await self._settle(digest, "failed", reason)
            return
        retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
        wait = timedelta(seconds=retry_after) if retry_after else backoff(digest.attempts, first=2, most=600)
        if isinstance(error, TimeoutError) or (isinstance(error, Unavailable) and error.may_have_happened):
            # Graph may still be sending the draft.
            wait = max(wait, timedelta(seconds=SENDING_SECONDS))
        log.warning("digest.postponed", digest_id=digest.digest_id, error=str(error), attempts=digest.attempts)
        async with self._db.transaction() as tx:
            await store.postpone_digest(tx, digest.digest_id, wait, reason[:500])


def _internet_message_id(digest: Digest, sender: str) -> str:
    return f"<digest.{digest.digest_id}@{sender.rpartition('@')[2]}>"
