"""Carry out what is wanted of quarantined mails: each once, looked for before it is repeated, told with its outcome."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from backstop_contracts import (
    ActorKind,
    Channel,
    Event,
    Folder,
    Message,
    MessageReported,
    ReleaseDecided,
    ReportedAs,
    message_of,
)
from backstop_contracts.identity import report_id
from chassis import outbox
from chassis.postgres import Database
from chassis.worker import Lease, backoff, run_all
from m365 import Exchange, M365Error, Refused, Throttled, Unauthorised, Unavailable, until
from mail import MailFacts, MailStore, StoreUnavailable, parse
from quarantine import rules, store
from quarantine.mirror import look
from quarantine.offering import may_release
from quarantine.reading import NoMailError, export
from quarantine.rules import BY_RECIPIENT, DONE, NOT_PERMITTED, OUT, Kind, Permissions, Status
from quarantine.store import Action, QuarantinedMessage

log = structlog.get_logger()

LEASE = Lease(timedelta(seconds=75))
GIVE_UP_AFTER = timedelta(hours=1)
"""Somebody waits for it, and can say it again."""
ACTION_TYPES = {Kind.RELEASE: "Release", Kind.DENY: "Deny", Kind.REQUEST: "Request"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a wish. `failure` is None when it succeeded; `report` is the event of a report."""

    failure: str | None = None
    detail: str | None = None
    already_done: bool = False
    report: MessageReported | None = None


class _UnclearError(Exception):
    """Exchange has said no, but may have done it before and not show it yet."""


class Carrier:
    """Carries out what is due, at most *batch* wishes at a time."""

    def __init__(
        self, db: Database, exchange: Exchange, mails: MailStore, *, batch: int = 4, lease: Lease = LEASE
    ) -> None:
        self._db = db
        self._exchange = exchange
        self._mails = mails
        self._batch = batch
        self._lease = lease

    async def carry_due(self) -> int:
        """Do what is due. Returns how much that was."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            claimed = await store.claim_actions(tx, self._lease.length, self._batch)
        await run_all(*(self._carry(*one, deadline) for one in claimed))
        return len(claimed)

    async def _carry(self, action: Action, message: QuarantinedMessage, deadline: float) -> None:
        try:
            async with until(deadline):
                if message.expires_at <= datetime.now(UTC) and not action.unanswered:
                    outcome = Outcome("gone", "the mail's time in the quarantine is over")
                elif action.kind in ACTION_TYPES:
                    outcome = await self._act(action, message)
                else:
                    outcome = await self._report(action, message)
        except Refused as error:
            outcome = Outcome("gone" if error.status == 404 else "refused", error.reason or str(error))
        except Unauthorised as error:
            outcome = Outcome("not-allowed", error.reason or str(error))
        except (M365Error, TimeoutError, NoMailError, StoreUnavailable, _UnclearError) as error:
            postponed = await self._postpone(action, error)
            if postponed:
                return
            words = getattr(error, "reason", "") or str(error) or type(error).__name__
            outcome = Outcome("refused" if isinstance(error, _UnclearError) else "gave-up", words)
        await self._settle(action, message, outcome)

    async def _act(self, action: Action, message: QuarantinedMessage) -> Outcome:
        """Release, deny or ask, unless it is seen that an earlier call has."""
        if action.unanswered and await self._is_done(action, message):
            return Outcome()
        if not _is_permitted(action, message):
            if action.unanswered:
                raise _UnclearError(NOT_PERMITTED)
            return Outcome("refused", NOT_PERMITTED)
        # Of a shared row, Exchange may deny the rest: who has the message would then pass for somebody who has not.
        if action.kind is Kind.DENY and message.sharing > 1 and await self._status(message) in OUT:
            return Outcome("refused", "its recipient has the message already; nothing was denied")
        try:
            records = await self._exchange.invoke(
                message.tenant_id,
                "Release-QuarantineMessage",
                Identity=message.identity,
                ActionType=ACTION_TYPES[action.kind],
                User=[message.recipient],
            )
        except Refused as error:
            if await self._is_done(action, message):
                return Outcome(already_done=not action.unanswered)
            if action.unanswered:
                raise _UnclearError(error.reason or str(error)) from None
            raise
        if records.warnings and not await self._is_done(action, message):
            raise _UnclearError(" ".join(records.warnings))
        return Outcome()

    async def _is_done(self, action: Action, message: QuarantinedMessage) -> bool:
        return await self._status(message) in DONE[action.kind]

    async def _status(self, message: QuarantinedMessage) -> Status | None:
        """Return the state of the mail for its recipient as Exchange shows it; None when it shows no such mail."""
        row = await look(self._exchange, message.tenant_id, message.identity)
        mails = rules.read_row(row) if row else []
        return next((mail.status for mail in mails if mail.recipient == message.recipient), None)

    async def _report(self, action: Action, message: QuarantinedMessage) -> Outcome:
        """Put the mail into the mail store and make the report of it; nothing of that is harmed by a repetition."""
        raw = await export(self._exchange, message.tenant_id, message.identity)
        facts = await asyncio.to_thread(parse, raw)
        if not facts.is_mail:
            return Outcome("refused", "what Exchange exported is no mail")
        await self._mails.put(message.tenant_id, raw)
        about = _message_of(facts, message)
        said = ReportedAs(action.reported_as or ReportedAs.PHISHING)
        by_user = report_id(message.tenant_id, message.recipient, about, said)
        report = MessageReported(
            tenant_id=message.tenant_id,
            # An admin's decision must not be taken for the user's report, which may have been made before.
            report_id=action.action_id if action.kind is Kind.SUBMIT else by_user,
            reporter=message.recipient,
            reporter_id=action.by.id
            if action.by.kind == ActorKind.USER and action.by.id != message.recipient
            else None,
            reported_as=said,
            folder=Folder.QUARANTINE,
            channel=Channel.QUARANTINE,
            reported_at=action.requested_at,
            message=about,
            decision=action.decision,
        )
        return Outcome(report=report)

    async def _postpone(self, action: Action, error: Exception) -> bool:
        """Come back later; False when it has been tried for too long."""
        now = datetime.now(UTC)
        unclear = isinstance(error, _UnclearError)
        if now - action.requested_at > (store.SETTLING if unclear else GIVE_UP_AFTER):
            return False
        retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
        wait = timedelta(seconds=retry_after) if retry_after else backoff(action.attempts, first=1, most=60)
        lost = (
            unclear
            or isinstance(error, TimeoutError)
            or (isinstance(error, Unavailable) and error.may_have_happened)
            or (action.unanswered and isinstance(error, Throttled | Unavailable))
        )
        log.warning(
            "action.postponed",
            action_id=action.action_id,
            kind=action.kind,
            error=str(error) if isinstance(error, M365Error) else type(error).__name__,
            attempts=action.attempts,
        )
        async with self._db.transaction() as tx:
            words = getattr(error, "reason", "") or (str(error) if unclear else "")
            await store.postpone_action(tx, action.action_id, now + wait, unanswered=lost, detail=words[:500] or None)
        return True

    async def _settle(self, action: Action, message: QuarantinedMessage, outcome: Outcome) -> None:
        succeeded = outcome.failure is None
        async with self._db.transaction() as tx:
            settled = await store.settle_action(
                tx,
                action.action_id,
                succeeded=succeeded,
                already_done=outcome.already_done,
                failure=outcome.failure,
                detail=(outcome.detail or "")[:500] or None,
                report_id=outcome.report.report_id if outcome.report else None,
            )
            if not settled:
                return
            status = rules.after(action.kind, message.status) if succeeded else None
            if status:
                await store.mark(tx, message.message_id, status)
            events: list[Event] = []
            if outcome.report and await store.record_report(tx, outcome.report.report_id, message.message_id):
                events.append(outcome.report)
            if action.kind in ACTION_TYPES:
                events.append(_decided(action, message, outcome))
            await outbox.emit(tx, [(event, action.traceparent) for event in events])
        log.info("action.settled", action_id=action.action_id, kind=action.kind, failure=outcome.failure)


def _is_permitted(action: Action, message: QuarantinedMessage) -> bool:
    """
    Return whether what its recipient wants of a mail is still permitted; what admins want is.

    Exchange does not check it: it is called as an administrator.
    """
    if action.kind is Kind.REQUEST:
        return bool(message.permitted & (Permissions.RELEASE | Permissions.REQUEST_RELEASE))
    return action.variant != BY_RECIPIENT or may_release(message)


def _decided(action: Action, message: QuarantinedMessage, outcome: Outcome) -> ReleaseDecided:
    return ReleaseDecided(
        tenant_id=message.tenant_id,
        decision_id=action.action_id,
        message_id=message.message_id,
        network_message_id=message.network_message_id,
        internet_message_id=message.internet_message_id,
        identity=message.identity,
        recipient=message.recipient,
        decision=action.kind,
        succeeded=outcome.failure is None,
        already_done=outcome.already_done,
        detail=(outcome.detail or "")[:500] or None,
        reason=action.reason,
        decided_by=action.by,
        decided_at=datetime.now(UTC),
    )


def _message_of(facts: MailFacts, message: QuarantinedMessage) -> Message:
    """Return the facts of a message as events carry them; what its header lacks is taken from the quarantine."""
    found = message_of(facts)
    return found.model_copy(
        update={
            "internet_message_id": found.internet_message_id or message.internet_message_id,
            "network_message_id": found.network_message_id or message.network_message_id,
            "received_at": found.received_at or message.received_at,
        }
    )
