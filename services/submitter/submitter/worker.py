"""Submit to Microsoft what is due: once, within the quota, and after a lookup if an answer was lost."""

import asyncio
import base64
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from backstop_contracts import (
    Category,
    DelayReason,
    SubmissionCreated,
    SubmissionDelayed,
    SubmissionFailed,
    SubmissionFailure,
)
from chassis import outbox, telemetry
from chassis.postgres import Database, Tx
from chassis.worker import Lease, backoff, run_all
from m365 import Graph, M365Error, Refused, Throttled, Unauthorised, Unavailable
from mail import MailCorrupt, MailMissing, MailStore, StoreUnavailable
from submitter import store
from submitter.rules import Due, Quota, is_other_message, item_of_other, link_of, matches, plan, throttles_tenant
from submitter.store import Submission

log = structlog.get_logger()

PATH = "/beta/security/threatSubmission/emailThreats"
CLOCK_SKEW = timedelta(minutes=5)
GIVE_UP_AFTER = timedelta(hours=24)

SLOW_DOWN = "Microsoft asks to slow down"
NO_ANSWER = "no answer came in time"


GRAPH_CATEGORIES = {
    Category.PHISHING: "phishing",
    Category.MALWARE: "malware",
    Category.SPAM: "spam",
    Category.NOT_JUNK: "notJunk",
}
"""Graph's `submissionCategory`."""


class Worker:
    """
    Submits to Microsoft what is due, at most *batch* messages at a time.

    A call whose answer was lost is repeated only when Microsoft's list does not have it although it is older than
    *missing_after*: a list may lag behind what was made, and a repetition would be a second submission.
    """

    def __init__(
        self,
        db: Database,
        graph: Graph,
        mails: MailStore,
        quota: Quota,
        batch: int,
        *,
        lease: Lease,
        missing_after: timedelta,
    ) -> None:
        self._db = db
        self._graph = graph
        self._mails = mails
        self._quota = quota
        self._batch = batch
        self._lease = lease
        self._missing_after = missing_after

    async def submit_due(self) -> int:
        """Claim due submissions, look up those whose call was never answered, submit the rest. Return how many."""
        deadline = self._lease.deadline()
        to_send, to_look_up = await self._claim_within_quota()
        by_tenant: defaultdict[UUID, list[Submission]] = defaultdict(list)
        for submission in to_look_up:
            by_tenant[submission.tenant_id].append(submission)
        await run_all(
            *(self._submit(submission, deadline) for submission in to_send),
            *(self._look_up(tenant_id, submissions, deadline) for tenant_id, submissions in by_tenant.items()),
        )
        return len(to_send) + len(to_look_up)

    async def purge_calls(self) -> int:
        """Delete calls that no longer count against a quota."""
        async with self._db.transaction() as tx:
            await store.purge_calls(tx)
        return 0

    async def _claim_within_quota(self) -> tuple[list[Submission], list[Submission]]:
        async with self._db.transaction() as tx:
            await store.lock_quota(tx)
            rows = {row.submission_id: row for row in await store.lock_due(tx, self._batch)}
            wanted = [
                Due(row.submission_id, row.tenant_id, row.item, is_lookup=row.sent_at is not None)
                for row in rows.values()
            ]
            planned = plan(
                wanted, await store.count_calls(tx, wanted, self._quota.window), self._quota, datetime.now(UTC)
            )
            to_look_up = [rows[submission_id] for submission_id in planned.now if rows[submission_id].sent_at]
            to_send = [rows[submission_id] for submission_id in planned.now if not rows[submission_id].sent_at]
            await store.claim_lookup(tx, [row.submission_id for row in to_look_up], self._lease.length)
            await store.claim(tx, [row.submission_id for row in to_send], self._lease.length)
            await store.record_waits(tx, planned.wait)
            for waiting in planned.wait:
                text = {
                    DelayReason.QUOTA: f"{self._quota.submissions} submissions per 15 minutes are used up",
                    DelayReason.SAME_ITEM: "Microsoft takes the same item once per 15 minutes and 3 times per 24 hours",
                    DelayReason.THROTTLED: SLOW_DOWN,
                }[waiting.reason]
                await _publish_delay(tx, rows[waiting.submission_id], waiting.reason, text, waiting.until)
        return [_claimed(row) for row in to_send], [_claimed(row) for row in to_look_up]

    async def _submit(self, submission: Submission, deadline: float) -> None:
        with telemetry.span("submit", submission.traceparent):
            await self._call(submission, deadline)

    async def _call(self, submission: Submission, deadline: float) -> None:
        called = False
        try:
            async with self._graph.before(deadline):
                body = await self._body(submission)
                called = True
                entity = await self._graph.post(submission.tenant_id, PATH, body)
        except Throttled as error:
            await self._throttled(submission, error)
        except Unauthorised as error:
            await self._postpone(submission, DelayReason.UNAUTHORISED, str(error), backoff(submission.attempts))
        except TimeoutError:
            await self._postpone(
                submission, DelayReason.UNAVAILABLE, NO_ANSWER, backoff(submission.attempts), unanswered=called
            )
        except (Unavailable, StoreUnavailable) as error:
            unanswered = isinstance(error, Unavailable) and error.may_have_happened
            pause = backoff(submission.attempts)
            await self._postpone(submission, DelayReason.UNAVAILABLE, str(error), pause, unanswered=unanswered)
        except Refused as error:
            await self._refused(submission, error)
        except (MailMissing, MailCorrupt) as error:
            await self._fail(submission, SubmissionFailure.MAIL_MISSING, str(error))
        else:
            by_link = link_of(submission.message, submission.mailbox_message) is not None
            if by_link and is_other_message(entity, submission.message):
                await self._strayed(submission, entity)
            else:
                await self._created(submission, entity, adopted=False)

    async def _body(self, submission: Submission) -> dict[str, Any]:
        """Return the request: with a link if the message lies in a known mailbox, else with the message itself."""
        common = {"category": GRAPH_CATEGORIES[submission.category], "recipientEmailAddress": submission.recipient}
        if link := link_of(submission.message, submission.mailbox_message):
            return {
                "@odata.type": "#microsoft.graph.security.emailUrlThreatSubmission",
                "messageUrl": link,
                **common,
            }
        raw = await self._mails.get(str(submission.tenant_id), submission.message.sha256)
        return {
            "@odata.type": "#microsoft.graph.security.emailContentThreatSubmission",
            "fileContent": (await asyncio.to_thread(base64.b64encode, raw)).decode(),
            **common,
        }

    async def _refused(self, submission: Submission, error: Refused) -> None:
        if link_of(submission.message, submission.mailbox_message) is None:
            await self._fail(submission, SubmissionFailure.REFUSED, error.reason)
            return
        # The message is no longer where the link says (users delete what they report): send it itself.
        log.info("submission.link_refused", submission_id=submission.submission_id)
        async with self._db.transaction() as tx:
            if await store.is_still_claimed(tx, submission.submission_id, submission.attempts):
                await store.release_item(tx, submission.submission_id)
                await store.make_due(tx, submission.submission_id, without_link=True)

    async def _strayed(self, submission: Submission, entity: Mapping[str, Any]) -> None:
        """Submit the message itself, because the link led Microsoft to another one."""
        graph_id = str(entity["id"])
        log.warning("submission.strayed", submission_id=submission.submission_id, graph_id=graph_id)
        item = item_of_other(entity, submission.recipient)
        async with self._db.transaction() as tx:
            await store.record_stray(tx, submission.submission_id, graph_id, item)
            if await store.is_still_claimed(tx, submission.submission_id, submission.attempts):
                await store.make_due(tx, submission.submission_id, without_link=True)

    async def _look_up(self, tenant_id: UUID, submissions: list[Submission], deadline: float) -> None:
        """Look up which of *submissions*, whose calls were never answered, Microsoft has."""
        # Not since the last call: an earlier one may turn up late.
        since = min(submission.requested_at for submission in submissions) - CLOCK_SKEW
        query = f"source eq 'administrator' and createdDateTime ge {since:%Y-%m-%dT%H:%M:%SZ}"
        try:
            async with self._graph.before(deadline):
                entities = [
                    entity
                    async for page in self._graph.pages(tenant_id, PATH, {"$filter": query})
                    for entity in page["value"]
                ]
        except Throttled as error:
            for submission in submissions:
                await self._throttled(submission, error, is_lookup=True)
            return
        except (M365Error, TimeoutError) as error:
            # Nothing may be repeated before Microsoft's list was read.
            for submission in submissions:
                pause = backoff(submission.attempts)
                await self._postpone(
                    submission, DelayReason.UNAVAILABLE, str(error) or NO_ANSWER, pause, unanswered=True
                )
            return
        known = await store.find_known_graph_ids(self._db.pool, tenant_id, [str(entity["id"]) for entity in entities])
        for submission in submissions:
            found = next(
                (
                    entity
                    for entity in entities
                    if str(entity["id"]) not in known and matches(entity, submission.message, submission.recipient)
                ),
                None,
            )
            log.info("submission.looked_up", submission_id=submission.submission_id, found=found is not None)
            if found:
                known.add(str(found["id"]))
                await self._created(submission, found, adopted=True)
            else:
                await self._not_found(submission)

    async def _not_found(self, submission: Submission) -> None:
        """Repeat the call of a submission that Microsoft does not list, or look again while it may still appear."""
        now = datetime.now(UTC)
        listed_by = (submission.sent_at or now) + self._missing_after
        async with self._db.transaction() as tx:
            if not await store.is_still_claimed(tx, submission.submission_id, submission.attempts):
                return
            if now < listed_by:
                retry_at = min(listed_by, now + backoff(submission.attempts))
                await store.postpone_lookup(tx, submission.submission_id, retry_at)
            else:
                await store.release_item(tx, submission.submission_id)
                await store.make_due(tx, submission.submission_id)

    async def _created(self, submission: Submission, entity: Mapping[str, Any], *, adopted: bool) -> None:
        graph_id = str(entity["id"])
        event = SubmissionCreated(
            tenant_id=submission.tenant_id,
            submission_id=submission.submission_id,
            case_id=submission.case_id,
            graph_id=graph_id,
            category=submission.category,
            recipient=submission.recipient,
            folders=submission.folders,
            adopted=adopted,
            message=submission.message,
            created_at=_when(entity.get("createdDateTime")),
        )
        async with self._db.transaction() as tx:
            if await store.settle(tx, submission.submission_id, "created", graph_id):
                await outbox.emit(tx, [(event, submission.traceparent)])

    async def _fail(self, submission: Submission, reason: SubmissionFailure, detail: str) -> None:
        event = SubmissionFailed(
            tenant_id=submission.tenant_id,
            submission_id=submission.submission_id,
            case_id=submission.case_id,
            reason=reason,
            detail=detail[:500],
            failed_at=datetime.now(UTC),
        )
        async with self._db.transaction() as tx:
            held = await store.is_still_claimed(tx, submission.submission_id, submission.attempts)
            if held and await store.settle(tx, submission.submission_id, "failed"):
                await outbox.emit(tx, [(event, submission.traceparent)])

    async def _throttled(self, submission: Submission, error: Throttled, *, is_lookup: bool = False) -> None:
        """Postpone the submission until Microsoft allows a retry. Pause the whole tenant if the 429 concerns it."""
        pause = timedelta(seconds=error.retry_after) if error.retry_after else backoff(submission.attempts)
        if is_lookup or throttles_tenant(pause, self._quota, known=submission.unanswered_at is not None):
            async with self._db.transaction() as tx:
                await store.pause_tenant(tx, submission.tenant_id, datetime.now(UTC) + pause)
        await self._postpone(submission, DelayReason.THROTTLED, SLOW_DOWN, pause, unanswered=is_lookup)

    async def _postpone(
        self, submission: Submission, reason: DelayReason, detail: str, pause: timedelta, *, unanswered: bool = False
    ) -> None:
        now = datetime.now(UTC)
        failing = reason in (DelayReason.UNAVAILABLE, DelayReason.UNAUTHORISED)
        if failing and submission.failing_since and now - submission.failing_since > GIVE_UP_AFTER:
            await self._fail(submission, SubmissionFailure.GAVE_UP, detail)
            return
        async with self._db.transaction() as tx:
            if not await store.is_still_claimed(tx, submission.submission_id, submission.attempts):
                return
            await store.postpone(
                tx, submission.submission_id, now + pause, reason, failing=failing, unanswered=unanswered
            )
            if not unanswered:
                await store.release_item(tx, submission.submission_id)
            await _publish_delay(tx, submission, reason, detail, now + pause)


def _claimed(row: Submission) -> Submission:
    """Return the row with its new claim counted. The number of attempts distinguishes a claim from later ones."""
    return replace(row, attempts=row.attempts + 1)


async def _publish_delay(tx: Tx, submission: Submission, reason: DelayReason, detail: str, retry_at: datetime) -> None:
    """Publish that a submission waits, once for each reason."""
    if reason in submission.delays_published:
        return
    event = SubmissionDelayed(
        tenant_id=submission.tenant_id,
        submission_id=submission.submission_id,
        case_id=submission.case_id,
        reason=reason,
        detail=detail[:500],
        retry_at=retry_at,
        delayed_at=datetime.now(UTC),
    )
    await outbox.emit(tx, [(event, submission.traceparent)])


def _when(value: Any) -> datetime:
    """Return Microsoft's time; now, if it is missing or malformed."""
    try:
        read = datetime.fromisoformat(str(value))
    except ValueError:
        return datetime.now(UTC)
    return read if read.tzinfo else read.replace(tzinfo=UTC)
