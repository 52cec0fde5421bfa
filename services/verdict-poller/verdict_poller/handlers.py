"""Verdict-poller's subscribers: watch submissions, record the blocks of their cases, purge expired cases."""

from datetime import UTC, datetime
from typing import Annotated

from faststream import Context
from faststream.kafka import KafkaRouter

from backstop_contracts import AppliedBlock, BlockApplied, BlockRemoved, CaseExpired, SubmissionCreated
from chassis.subscribing import BATCH, Received, Tx
from verdict_poller import store
from verdict_poller.poll_schedule import Schedule

router = KafkaRouter()


@router.subscriber("submission-created", **BATCH)
async def on_submission_created(
    created: list[Received[SubmissionCreated]], tx: Tx, schedule: Annotated[Schedule, Context()]
) -> None:
    """Record each submission to watch."""
    first_due = schedule.next_due(datetime.now(UTC), 0)
    await store.record(tx, [(received.event, received.traceparent) for received in created], first_due)


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Record applied blocks of cases: a verdict lists those in force."""
    await store.record_blocks(
        tx,
        {
            event.block.block_id: (case_id, AppliedBlock(**event.block.model_dump(), entry=event.entry))
            for event in (received.event for received in applied)
            if (case_id := event.block.case_id)
        },
    )


@router.subscriber("block-removed", **BATCH)
async def on_block_removed(removed: list[Received[BlockRemoved]], tx: Tx) -> None:
    """Record that blocks of cases were removed."""
    blocks = [received.event.block for received in removed]
    await store.record_blocks(tx, {block.block_id: (block.case_id, None) for block in blocks if block.case_id})


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Delete the watches of expired cases whose verdict is published.

    No watch can be recorded after this: a case expires weeks after it has closed, when submission-created has left the
    topic (triage refuses a shorter retention). A watch that still awaits its verdict continues, for at most a week, and
    publishes it; triage ignores it.
    """
    await store.purge_expired_cases(tx, [received.event.case_id for received in expired])
