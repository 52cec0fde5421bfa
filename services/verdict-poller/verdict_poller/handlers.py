"""What verdict-poller does with events: submissions become watches, blocks are remembered for their verdicts."""

from datetime import UTC, datetime
from typing import Annotated

from faststream import Context
from faststream.kafka import KafkaRouter

from backstop_contracts import AppliedBlock, BlockApplied, BlockRemoved, CaseExpired, SubmissionCreated
from chassis.events import BATCH, Received, Tx
from verdict_poller import store
from verdict_poller.schedule import Schedule

router = KafkaRouter()


@router.subscriber("submission-created", **BATCH)
async def on_submission_created(
    created: list[Received[SubmissionCreated]], tx: Tx, schedule: Annotated[Schedule, Context()]
) -> None:
    """Watch each submission from now on."""
    first_due = schedule.next_due(datetime.now(UTC), 0)
    await store.record(tx, [(received.event, received.traceparent) for received in created], first_due)


@router.subscriber("block-applied", **BATCH)
async def on_block_applied(applied: list[Received[BlockApplied]], tx: Tx) -> None:
    """Remember the blocks of cases: the verdict names those in force."""
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
    """Remember that blocks of cases ended."""
    blocks = [received.event.block for received in removed]
    await store.record_blocks(tx, {block.block_id: (block.case_id, None) for block in blocks if block.case_id})


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Forget the watches of cases whose verdict is told.

    A case closes after that and expires weeks later, when submission-created is in no topic any more (triage refuses
    a shorter retention), so no watch can come after this. One that still waits for its verdict goes on waiting, at
    most a week, and tells it: triage then drops it.
    """
    await store.forget(tx, [received.event.case_id for received in expired])
