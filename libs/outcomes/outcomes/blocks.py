"""Blocks that users want for their own mailbox: request one, and keep what became of it. The SQL of `blocks`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from backstop_contracts import (
    Actor,
    Block,
    BlockApplied,
    BlockFailed,
    BlockKind,
    BlockRemoved,
    BlockRequested,
    BlockScope,
    Channel,
)
from backstop_contracts.identity import mailbox_block_id
from chassis.postgres import Reads, Tx


@dataclass(frozen=True, slots=True)
class MailboxBlock:
    """A row of `blocks`: a block of *sender* for *mailbox*, and what became of it."""

    block_id: UUID
    mailbox: str
    sender: str
    generation: int
    status: str = "requested"
    reason: str | None = None
    detail: str | None = None


async def last_block(db: Reads, tenant_id: UUID, mailbox: str, sender: str) -> MailboxBlock | None:
    """Return the latest generation of the block of *sender* for *mailbox*."""
    row = await db.fetchrow(
        "SELECT block_id, mailbox, sender, generation, status, reason, detail FROM blocks"
        " WHERE tenant_id = $1 AND mailbox = $2 AND sender = $3 ORDER BY generation DESC LIMIT 1",
        tenant_id,
        mailbox,
        sender,
    )
    return MailboxBlock(**row) if row else None


async def request_block(
    tx: Tx,
    tenant_id: UUID,
    *,
    channel: Channel,
    mailbox: str,
    sender: str,
    by: Actor,
    report_id: UUID | None = None,
) -> tuple[MailboxBlock, BlockRequested | None]:
    """
    Return the block of *sender* for *mailbox*, and the event that requests it, which the caller emits.

    There is no event for a block that is in force or on its way. One that failed or ended is requested anew.
    """
    last = await last_block(tx, tenant_id, mailbox, sender)
    if last and last.status in ("requested", "applied"):
        return last, None
    generation = last.generation + 1 if last else 1
    block = MailboxBlock(mailbox_block_id(channel, tenant_id, mailbox, sender, generation), mailbox, sender, generation)
    if not await _record(tx, tenant_id, block):
        # Somebody else has requested the same at the same time.
        return block, None
    return block, BlockRequested(
        tenant_id=tenant_id,
        block=Block(
            block_id=block.block_id,
            scope=BlockScope.MAILBOX,
            kind=BlockKind.SENDER,
            value=sender,
            mailbox=mailbox,
            report_id=report_id,
        ),
        requested_by=by,
        requested_at=datetime.now(UTC),
    )


async def _record(tx: Tx, tenant_id: UUID, block: MailboxBlock) -> bool:
    """Store a block; return False if it is known."""
    return bool(
        await tx.fetchval(
            "INSERT INTO blocks (block_id, tenant_id, mailbox, sender, generation)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING true",
            block.block_id,
            tenant_id,
            block.mailbox,
            block.sender,
            block.generation,
        )
    )


Outcome = BlockApplied | BlockFailed | BlockRemoved
_STATUS: Mapping[type[Outcome], str] = {BlockApplied: "applied", BlockFailed: "failed", BlockRemoved: "removed"}


async def settle_blocks(tx: Tx, outcomes: Sequence[Outcome]) -> None:
    """
    Record the outcomes of blocks, all of one kind.

    The three kinds come on topics of their own, in any order: only a block that still waits can be applied or fail,
    and one that was removed stays removed.
    """
    last = {outcome.block.block_id: outcome for outcome in outcomes}
    ordered = [last[block_id] for block_id in sorted(last)]
    await tx.execute(
        # The rows are locked in one order, whatever the order in which their outcomes came.
        "WITH new AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])"
        " AS new (block_id, status, reason, detail)), locked AS MATERIALIZED (SELECT block_id FROM blocks"
        " WHERE block_id = ANY($1::uuid[]) ORDER BY block_id FOR UPDATE)"
        " UPDATE blocks SET status = new.status, reason = new.reason, detail = new.detail FROM new JOIN locked"
        " USING (block_id) WHERE blocks.block_id = new.block_id"
        " AND (blocks.status = 'requested' OR new.status = 'removed')",
        [outcome.block.block_id for outcome in ordered],
        [_STATUS[type(outcome)] for outcome in ordered],
        [None if isinstance(outcome, BlockApplied) else outcome.reason for outcome in ordered],
        [outcome.detail if isinstance(outcome, BlockFailed) else None for outcome in ordered],
    )
