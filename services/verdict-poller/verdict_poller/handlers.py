"""What verdict-poller does with events: submissions become watches, blocks are remembered for their verdicts."""

from collections.abc import Sequence
from datetime import UTC, datetime

from backstop_contracts import AppliedBlock, BlockApplied, BlockRemoved, CaseExpired, SubmissionCreated
from chassis.kafka import Received
from chassis.postgres import Tx
from verdict_poller import store
from verdict_poller.schedule import Schedule


async def on_submission_created(tx: Tx, created: Sequence[Received[SubmissionCreated]], *, schedule: Schedule) -> None:
    """Watch each submission from now on."""
    first_due = schedule.next_due(datetime.now(UTC), 0)
    await store.record(tx, [(received.event, received.traceparent) for received in created], first_due)


async def on_block_applied(tx: Tx, applied: Sequence[Received[BlockApplied]]) -> None:
    """Remember the blocks of cases: the verdict names those in force."""
    await store.record_blocks(
        tx,
        {
            event.block.block_id: (case_id, AppliedBlock(**event.block.model_dump(), entry=event.entry))
            for event in (received.event for received in applied)
            if (case_id := event.block.case_id)
        },
    )


async def on_block_removed(tx: Tx, removed: Sequence[Received[BlockRemoved]]) -> None:
    """Remember that blocks of cases ended."""
    blocks = [received.event.block for received in removed]
    await store.record_blocks(tx, {block.block_id: (block.case_id, None) for block in blocks if block.case_id})


async def on_case_expired(tx: Tx, expired: Sequence[Received[CaseExpired]]) -> None:
    """
    Forget the watches of cases whose verdict is told.

    A case closes after that and expires weeks later, when submission-created is in no topic any more (triage refuses
    a shorter retention), so no watch can come after this. One that still waits for its verdict goes on waiting, at
    most a week, and tells it: triage then drops it.
    """
    await store.forget(tx, [received.event.case_id for received in expired])
