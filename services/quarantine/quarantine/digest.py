"""Tell users what was held for them: one mail for each recipient and period, sent once whatever happens meanwhile."""

import base64
from collections import defaultdict
from collections.abc import Collection
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
from m365 import Graph, M365Error, Refused, Throttled, Unauthorised, Unavailable, until
from quarantine import rules, store
from quarantine.language import Words, of_user
from quarantine.links import LinkAction
from quarantine.offering import NAMES, Links, link_end, offered
from quarantine.rules import Every
from quarantine.settings import QuarantineSettings, settings_of
from quarantine.store import Digest, QuarantinedMessage

log = structlog.get_logger()

LEASE = Lease(timedelta(seconds=75))
MOST_ROWS = 50
GIVE_UP_AFTER = timedelta(hours=24)
GRACE_SECONDS = 20.0
"""How long a draft may take to leave the Drafts after it was sent, before it is sent again."""
VANISHED_AFTER = timedelta(minutes=15)
"""A draft of ours that is neither in Drafts nor in Sent Items for that long was sent: nobody else knows of it."""
PROPERTY = "String {b8a4f7d0-6b1e-4c57-9d0e-3f6a5b2c1d4e} Name Backstop-Digest"
IMMUTABLE = {"Prefer": 'IdType="ImmutableId"'}


@dataclass(frozen=True, slots=True)
class _Found:
    id: str
    is_draft: bool


class Digester:
    """Plans and sends the digests of *tenants*, at most *batch* at a time."""

    def __init__(
        self,
        db: Database,
        graph: Graph,
        tenants: Collection[UUID],
        links: Links,
        templates: Environment,
        *,
        shortest: timedelta = rules.SHORTEST_PERIOD,
        batch: int = 4,
        lease: Lease = LEASE,
    ) -> None:
        self._db = db
        self._graph = graph
        self._tenants = tenants
        self._links = links
        self._templates = templates
        self._batch = batch
        self._lease = lease
        self._shortest = shortest

    async def plan_due(self) -> int:
        """Plan the periods that have ended: who gets a digest, and of which mails. Returns how many that are."""
        planned = 0
        for tenant_id in self._tenants:
            settings = await settings_of(self._db.pool, tenant_id)
            if settings.sender is None:
                continue
            for every in {settings.every, *settings.policies.values()} - {Every.NEVER}:
                planned += await self._plan(tenant_id, settings, every)
        return planned

    async def _plan(self, tenant_id: UUID, settings: QuarantineSettings, every: Every) -> int:
        ended_at = rules.period_end(every, datetime.now(UTC), settings.hour, self._shortest)
        if ended_at is None:
            return 0
        async with self._db.transaction() as tx:
            if not await store.begin_period(tx, tenant_id, every, ended_at):
                return 0
            of_recipient: defaultdict[str, list[UUID]] = defaultdict(list)
            for message_id, recipient, policy in await store.untold(tx, tenant_id, ended_at):
                if settings.frequency(policy) is every:
                    of_recipient[recipient].append(message_id)
            ids = {recipient: rules.digest_id(tenant_id, recipient, every, ended_at) for recipient in of_recipient}
            await store.tell(tx, {one: ids[who] for who, messages in of_recipient.items() for one in messages})
            await store.record_digests(tx, tenant_id, every, ended_at, {ids[who]: who for who in of_recipient})
        if ids:
            log.info("digests.planned", tenant_id=tenant_id, every=every, digests=len(ids))
        return len(ids)

    async def send_due(self) -> int:
        """Send the digests that are due. Returns how many there were."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            digests = await store.claim_digests(tx, self._tenants, self._lease.length, self._batch)
            await store.tell_later(tx, [digest.digest_id for digest in digests if digest.draft_id is None])
        await run_all(*(self._send(digest, deadline) for digest in digests))
        return len(digests)

    async def _send(self, digest: Digest, deadline: float) -> None:
        settings = await settings_of(self._db.pool, digest.tenant_id)
        messages = [
            message
            for message in await store.messages_of_digest(self._db.pool, digest.digest_id)
            if offered(message, datetime.now(UTC))
        ]
        if settings.sender is None or (not messages and digest.draft_id is None):
            await self._settle(digest, "nothing", None if messages else "nothing is held any more")
            return
        try:
            async with until(deadline):
                sent = await self._bring_about(digest, settings, settings.sender, messages)
        except Refused as error:
            await self._settle(digest, "failed", error.reason or str(error))
        except (M365Error, TimeoutError) as error:
            await self._postpone(digest, error)
        else:
            if sent:
                await self._settle(digest, "sent")

    async def _bring_about(
        self, digest: Digest, settings: QuarantineSettings, sender: str, messages: list[QuarantinedMessage]
    ) -> bool:
        """
        Have the digest's draft sent; True when it is.

        Only the draft that was noted before is ever sent, so however often this is interrupted, no second mail
        leaves. A draft that was made and never noted is found by its mark, and noted.
        """
        draft_id = digest.draft_id
        if draft_id is not None:
            found = await self._read(digest, sender, draft_id) or await self._find(digest, sender)
            if found is None:
                return await self._vanished(digest)
            if not found.is_draft:
                return True
        else:
            found = await self._find(digest, sender) if digest.attempts > 1 else None
            if found and not found.is_draft:
                return True
            draft_id = found.id if found else await self._create(digest, settings, sender, messages)
            async with self._db.transaction() as tx:
                if not await store.note_draft(tx, digest, draft_id):
                    return False
        ids = {"user": sender, "message": draft_id}
        await self._graph.post(digest.tenant_id, "/v1.0/users/{user}/messages/{message}/send", ids=ids)
        return True

    async def _vanished(self, digest: Digest) -> bool:
        if datetime.now(UTC) - digest.planned_at > VANISHED_AFTER and digest.attempts > 2:
            return True
        async with self._db.transaction() as tx:
            wait = timedelta(seconds=GRACE_SECONDS * min(digest.attempts, 15))
            await store.postpone_digest(tx, digest.digest_id, wait, "waiting for the sent mail to be seen")
        return False

    async def _read(self, digest: Digest, sender: str, draft_id: str) -> _Found | None:
        try:
            found = await self._graph.get(
                digest.tenant_id,
                "/v1.0/users/{user}/messages/{message}",
                {"$select": "id,isDraft"},
                IMMUTABLE,
                ids={"user": sender, "message": draft_id},
            )
        except Refused as error:
            if error.status != 404:
                raise
            return None
        return _Found(str(found["id"]), found.get("isDraft") is not False)

    async def _find(self, digest: Digest, sender: str) -> _Found | None:
        """Look for the digest by its mark or its Message-ID, in all folders; one that was sent counts more."""
        mark = f"ep/id eq '{PROPERTY}' and ep/value eq '{digest.digest_id}'"
        found: list[_Found] = []
        for condition in (
            f"singleValueExtendedProperties/any(ep: {mark})",
            f"internetMessageId eq '{_message_id(digest, sender)}'",
        ):
            page = await self._graph.get(
                digest.tenant_id,
                "/v1.0/users/{user}/messages",
                {"$filter": condition, "$select": "id,isDraft", "$top": "10"},
                IMMUTABLE,
                ids={"user": sender},
            )
            found += [_Found(str(one["id"]), one.get("isDraft") is not False) for one in page.get("value") or ()]
        return next((one for one in found if not one.is_draft), next(iter(found), None))

    async def _create(
        self, digest: Digest, settings: QuarantineSettings, sender: str, messages: list[QuarantinedMessage]
    ) -> str:
        """Put the digest into the sender's Drafts, with the mark by which it is found again."""
        words = Words(await self._language(digest, settings))
        mime = self.compose(digest, settings, sender, messages, words)
        made = await self._graph.post_content(
            digest.tenant_id,
            "/v1.0/users/{user}/messages",
            base64.b64encode(mime),
            "text/plain",
            IMMUTABLE,
            ids={"user": sender},
        )
        draft_id = str(made["id"])
        await self._graph.patch(
            digest.tenant_id,
            "/v1.0/users/{user}/messages/{message}",
            {"singleValueExtendedProperties": [{"id": PROPERTY, "value": str(digest.digest_id)}]},
            IMMUTABLE,
            ids={"user": sender, "message": draft_id},
        )
        return draft_id

    async def _language(self, digest: Digest, settings: QuarantineSettings) -> str:
        """Return the recipient's language, the tenant's where nobody knows it: that is no reason to send nothing."""
        try:
            user = await self._graph.get(
                digest.tenant_id,
                "/v1.0/users/{user}",
                {"$select": "preferredLanguage"},
                ids={"user": digest.recipient},
            )
        except (Refused, Unauthorised):
            return settings.language
        return of_user(user.get("preferredLanguage"), settings.language)

    def compose(
        self,
        digest: Digest,
        settings: QuarantineSettings,
        sender: str,
        messages: list[QuarantinedMessage],
        words: Words,
    ) -> bytes:
        """Write the digest as MIME: text and HTML, the same whenever it is written again."""
        content = self.content(digest, settings, messages, words)
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender
        mail["To"] = digest.recipient
        mail["Subject"] = content["subject"]
        mail["Message-ID"] = _message_id(digest, sender)
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Auto-Response-Suppress"] = "All"
        mail.set_content(self._templates.get_template("digest.txt").render(content))
        mail.add_alternative(self.page(content), subtype="html")
        return mail.as_bytes()

    def page(self, content: dict[str, Any]) -> str:
        """Write the HTML of a digest."""
        return self._templates.get_template("digest.html").render(content)

    def content(
        self, digest: Digest, settings: QuarantineSettings, messages: list[QuarantinedMessage], words: Words
    ) -> dict[str, Any]:
        """Say what a digest holds, for its templates."""
        until, count = link_end(settings.link_days, digest.ended_at), len(messages)
        return {
            "words": words,
            "subject": words("digest.subject_one") if count == 1 else words("digest.subject_many", count=count),
            "rows": [self._row(message, until, words) for message in messages[:MOST_ROWS]],
            "more": max(0, count - MOST_ROWS),
            "until": words.date(until),
            "organisation": settings.organisation,
        }

    def _row(self, message: QuarantinedMessage, until: datetime, words: Words) -> dict[str, Any]:
        end = min(until, message.expires_at)
        actions = [LinkAction.VIEW, *offered(message, datetime.now(UTC))]
        return {
            "subject": rules.defused(message.subject or ""),
            "sender": rules.defused(message.sender or ""),
            "date": words.date(message.received_at, time=True),
            "expires": words.date(message.expires_at),
            "reason": words.reason(message.quarantine_type),
            "actions": [
                {"name": words(f"action.{NAMES[action]}"), "url": self._links.url(action, message, end)}
                for action in actions
            ],
        }

    async def _settle(self, digest: Digest, state: str, detail: str | None = None) -> None:
        async with self._db.transaction() as tx:
            await store.settle_digest(tx, digest.digest_id, state, (detail or "")[:500] or None)
        log.info("digest.settled", digest_id=digest.digest_id, state=state)

    async def _postpone(self, digest: Digest, error: Exception) -> None:
        words = getattr(error, "reason", "") or str(error) or type(error).__name__
        if datetime.now(UTC) - digest.planned_at > GIVE_UP_AFTER:
            await self._settle(digest, "failed", words)
            return
        retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
        lost = isinstance(error, TimeoutError) or (isinstance(error, Unavailable) and error.may_have_happened)
        wait = timedelta(seconds=retry_after) if retry_after else backoff(digest.attempts, first=2, most=600)
        if lost:
            # Graph may still be sending it.
            wait = max(wait, timedelta(seconds=GRACE_SECONDS))
        log.warning("digest.postponed", digest_id=digest.digest_id, error=str(error), attempts=digest.attempts)
        async with self._db.transaction() as tx:
            await store.postpone_digest(tx, digest.digest_id, wait, words[:500])


def _message_id(digest: Digest, sender: str) -> str:
    return f"<digest.{digest.digest_id}@{sender.rpartition('@')[2]}>"
