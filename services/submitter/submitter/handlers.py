"""Consume events: requests become due rows, and rows of expired cases are deleted."""

from faststream.kafka import KafkaRouter

from backstop_contracts import CaseExpired, SubmissionRequested
from chassis.subscribing import BATCH, Received, Tx
from submitter import store

router = KafkaRouter()


@router.subscriber("submission-requested", **BATCH)
async def on_submission_requested(requests: list[Received[SubmissionRequested]], tx: Tx) -> None:
    """Store the requested submissions; the worker makes them."""
    await store.record(tx, [(received.event, received.traceparent) for received in requests])


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Delete the submissions of cases, made or failed.

    A case expires weeks after the last of its submissions has ended, and its request is in no topic any more (triage
    refuses a shorter retention), so nothing of it can come after this. A submission that is still due, whatever the
    reason, is made: its case id is not used again, so it is nobody else's.
    """
    await store.purge_expired_cases(tx, [received.event.case_id for received in expired])
