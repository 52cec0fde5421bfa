"""What submitter does with events: requests become due rows, and those of expired cases go."""

from collections.abc import Sequence

from backstop_contracts import CaseExpired, SubmissionRequested
from chassis.kafka import Received
from chassis.postgres import Tx
from submitter import store


async def on_submission_requested(tx: Tx, requests: Sequence[Received[SubmissionRequested]]) -> None:
    """Store what is requested; the worker does the rest."""
    await store.record(tx, [(received.event, received.traceparent) for received in requests])


async def on_case_expired(tx: Tx, expired: Sequence[Received[CaseExpired]]) -> None:
    """
    Forget the submissions of cases, made or failed.

    A case expires weeks after the last of its submissions has ended, and its request is in no topic any more (triage
    refuses a shorter retention), so nothing of it can come after this. A submission that is still due, whatever the
    reason, is made: its case id is not used again, so it is nobody else's.
    """
    await store.forget(tx, [received.event.case_id for received in expired])
