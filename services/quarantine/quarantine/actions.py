"""Run requested actions on quarantined messages: each takes effect once, and its outcome is published."""

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
from m365 import Exchange, M365Error, Refused, Throttled, Unauthorised, Unavailable
from mail import MailFacts, MailStore, StoreUnavailable, parse
from quarantine import rules, store
from quarantine.exchange_rows import parse_row
from quarantine.message_source import NoMessageError, export_message, find_row
from quarantine.recipient_permissions import may_run
from quarantine.rules import ACHIEVED_STATUSES, NOT_PERMITTED, RELEASED_STATUSES, ActionKind, MessageStatus
from quarantine.store import Action, QuarantinedMessage

log = structlog.get_logger()

LEASE = Lease(timedelta(seconds=75))
GIVE_UP_AFTER = timedelta(hours=1)
"""Short, because somebody waits for the outcome and can repeat the request."""
ACTION_TYPES = {ActionKind.RELEASE: "Release", ActionKind.DENY: "Deny", ActionKind.REQUEST: "Request"}


@dataclass(frozen=True, slots=True)
class ActionOutcome:
    """The outcome of an action. `failure` is None if it succeeded; `report` is the event that a report emits."""

    failure: str | None = None
    detail: str | None = None
    already_done: bool = False
    report: MessageReported | None = None


class _InDoubtError(Exception):
    """Exchange refused the action, but an earlier call may have taken effect without showing yet."""


class ActionWorker:
    """Runs due actions, at most *batch* at a time."""

    def __init__(
        self, db: Database, exchange: Exchange, mail_store: MailStore, *, batch: int = 4, lease: Lease = LEASE
    ) -> None:
        self._db = db
        self._exchange = exchange
        self._mail_store = mail_store
        self._batch = batch
        self._lease = lease

    async def run_due(self) -> int:
        """Run the actions that are due; return how many there were."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            claimed = await store.claim_actions(tx, self._lease.length, self._batch)
        await run_all(*(self._run(action, message, deadline) for action, message in claimed))
        return len(claimed)

    async def _run(self, action: Action, message: QuarantinedMessage, deadline: float) -> None:
        try:
            async with self._exchange.before(deadline):
                if message.expires_at <= datetime.now(UTC) and not action.in_doubt:
                    outcome = ActionOutcome("gone", "The message's time in quarantine is over.")
                elif action.kind in ACTION_TYPES:
                    outcome = await self._change_status(action, message)
                else:
                    outcome = await self._report_message(action, message)
        except Refused as error:
            outcome = ActionOutcome("gone" if error.status == 404 else "refused", error.reason or str(error))
        except Unauthorised as error:
            outcome = ActionOutcome("not-allowed", error.reason or str(error))
        except (M365Error, TimeoutError, NoMessageError, StoreUnavailable, _InDoubtError) as error:
            if await self._postpone(action, error):
                return
            reason = getattr(error, "reason", "") or str(error) or type(error).__name__
            outcome = ActionOutcome("refused" if isinstance(error, _InDoubtError) else "gave-up", reason)
        await self._settle(action, message, outcome)

    async def _change_status(self, action: Action, message: QuarantinedMessage) -> ActionOutcome:
        """Release the message, deny its release or request it, unless an earlier call already has."""
        if action.in_doubt and await self._is_achieved(action, message):
            return ActionOutcome()
        if not may_run(action, message):
            if action.in_doubt:
                raise _InDoubtError(NOT_PERMITTED)
            return ActionOutcome("refused", NOT_PERMITTED)
        # A denial of a shared row may also hit a recipient who already has the message, and who would then be shown as
        # one who does not.
        shared = message.recipient_count > 1
        if action.kind is ActionKind.DENY and shared and await self._status_in_exchange(message) in RELEASED_STATUSES:
            return ActionOutcome("refused", "The recipient already has the message. Nothing was denied.")
        try:
            records = await self._exchange.invoke(
                message.tenant_id,
                "Release-QuarantineMessage",
                Identity=message.identity,
                ActionType=ACTION_TYPES[action.kind],
                User=[message.recipient],
            )
        except Refused as error:
            if await self._is_achieved(action, message):
                return ActionOutcome(already_done=not action.in_doubt)
            if action.in_doubt:
                raise _InDoubtError(error.reason or str(error)) from None
            raise
        if records.warnings and not await self._is_achieved(action, message):
            raise _InDoubtError(" ".join(records.warnings))
        return ActionOutcome()

    async def _is_achieved(self, action: Action, message: QuarantinedMessage) -> bool:
        return await self._status_in_exchange(message) in ACHIEVED_STATUSES[action.kind]

    async def _status_in_exchange(self, message: QuarantinedMessage) -> MessageStatus | None:
        """Return the status that Exchange shows for the recipient; None if it shows no such message."""
        row = await find_row(self._exchange, message.tenant_id, message.identity)
        listed = parse_row(row) if row else []
        return next((found.status for found in listed if found.recipient == message.recipient), None)

    async def _report_message(self, action: Action, message: QuarantinedMessage) -> ActionOutcome:
        """Store the raw message in the mail store and make its report. Both can safely be repeated."""
        raw = await export_message(self._exchange, message.tenant_id, message.identity)
        facts = await asyncio.to_thread(parse, raw)
        if not facts.is_mail:
            return ActionOutcome("refused", "What Exchange exported is not an email message. Nothing was reported.")
        await self._mail_store.put(message.tenant_id, raw)
        return ActionOutcome(report=_report_event(action, message, _message_facts(facts, message)))

    async def _postpone(self, action: Action, error: Exception) -> bool:
        """Schedule a retry; return False if the action has been retried for too long."""
        now = datetime.now(UTC)
        refused_in_doubt = isinstance(error, _InDoubtError)
        if now - action.requested_at > (store.STATUS_LAG if refused_in_doubt else GIVE_UP_AFTER):
            return False
        retry_after = error.retry_after if isinstance(error, Throttled | Unavailable) else None
        wait = timedelta(seconds=retry_after) if retry_after else backoff(action.attempts, first=1, most=60)
        in_doubt = (
            refused_in_doubt
            or isinstance(error, TimeoutError)
            or (isinstance(error, Unavailable) and error.may_have_happened)
            or (action.in_doubt and isinstance(error, Throttled | Unavailable))
        )
        log.warning(
            "action.postponed",
            action_id=action.action_id,
            kind=action.kind,
            error=str(error) if isinstance(error, M365Error) else type(error).__name__,
            attempts=action.attempts,
        )
        reason = getattr(error, "reason", "") or (str(error) if refused_in_doubt else "")
        async with self._db.transaction() as tx:
            await store.postpone_action(
                tx, action.action_id, now + wait, in_doubt=in_doubt, detail=reason[:500] or None
            )
        return True

    async def _settle(self, action: Action, message: QuarantinedMessage, outcome: ActionOutcome) -> None:
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
            status = rules.status_after(action.kind, message.status) if succeeded else None
            if status:
                await store.set_message_status(tx, message.message_id, status)
            events: list[Event] = []
            if outcome.report and await store.record_report(tx, outcome.report.report_id, message.message_id):
                events.append(outcome.report)
            if action.kind in ACTION_TYPES:
                events.append(_decision_event(action, message, outcome))
            await outbox.emit(tx, [(event, action.traceparent) for event in events])
        log.info("action.settled", action_id=action.action_id, kind=action.kind, failure=outcome.failure)


def _decision_event(action: Action, message: QuarantinedMessage, outcome: ActionOutcome) -> ReleaseDecided:
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
        decided_by=action.requested_by,
        decided_at=datetime.now(UTC),
    )


def _report_event(action: Action, message: QuarantinedMessage, facts: Message) -> MessageReported:
    reported_as = ReportedAs(action.reported_as or ReportedAs.PHISHING)
    actor = action.requested_by
    return MessageReported(
        tenant_id=message.tenant_id,
        # An admin's decision must not pass for the user's own report, which may have been made before.
        report_id=action.action_id
        if action.kind is ActionKind.SUBMIT
        else report_id(message.tenant_id, message.recipient, facts, reported_as),
        reporter=message.recipient,
        reporter_id=actor.id if actor.kind == ActorKind.USER and actor.id != message.recipient else None,
        reported_as=reported_as,
        folder=Folder.QUARANTINE,
        channel=Channel.QUARANTINE,
        reported_at=action.requested_at,
        message=facts,
        decision=action.decision,
    )


def _message_facts(facts: MailFacts, message: QuarantinedMessage) -> Message:
    """Return the facts of a message as events carry them, completed from the quarantine where its headers lack them."""
    parsed = message_of(facts)
    return parsed.model_copy(
        update={
            "internet_message_id": parsed.internet_message_id or message.internet_message_id,
            "network_message_id": parsed.network_message_id or message.network_message_id,
            "received_at": parsed.received_at or message.received_at,
        }
    )
