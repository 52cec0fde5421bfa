"""What verdict-poller does with events: submissions become watches, and those of expired cases go."""

from collections.abc import Sequence
from datetime import UTC, datetime

from backstop_contracts import CaseExpired, SubmissionCreated
from chassis.db import Tx
from chassis.kafka import Received
from verdict_poller import store
from verdict_poller.schedule import Schedule


async def on_submission_created(tx: Tx, created: Sequence[Received[SubmissionCreated]], *, schedule: Schedule) -> None:
    """Watch each submission from now on."""
    first_due = schedule.next_due(datetime.now(UTC), 0)
    await store.record(tx, [(received.event, received.traceparent) for received in created], first_due)


async def on_case_expired(tx: Tx, expired: Sequence[Received[CaseExpired]]) -> None:
    """
    Forget the watches of cases whose verdict is told.

    A case closes after that and expires weeks later, when submission-created is in no topic any more (triage refuses
    a shorter retention), so no watch can come after this. One that still waits for its verdict goes on waiting, at
    most a week, and tells it: triage then drops it.
    """
    await store.forget(tx, [received.event.case_id for received in expired])
