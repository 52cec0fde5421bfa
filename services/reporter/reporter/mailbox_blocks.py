"""Block a sender for the reporter's mailbox: which senders can be blocked, and how a block is explained."""

from collections.abc import Mapping

from backstop_contracts import BlockFailure, BlockKind, BlockRemoval, BlockScope, Message
from backstop_contracts.block_schemas import BlockState
from outcomes import MailboxBlock

MAX_ADDRESS_CHARACTERS = 320
"""Longest address that can be blocked: 64 characters, an @ and 255."""
NOT_POSSIBLE = BlockState(
    scope=BlockScope.MAILBOX,
    kind=BlockKind.SENDER,
    status="not-possible",
    explanation="The message names no sender that could be blocked. The report was saved without the block.",
)


def blockable_sender(message: Message) -> str | None:
    """Return the sender that a user can block, in lower case; None if the message names none, or only pretends one."""
    sender = message.sender if message.delivery.header_from in (None, message.sender_domain) else None
    return sender if sender and len(sender) <= MAX_ADDRESS_CHARACTERS else None


def block_state(block: MailboxBlock) -> BlockState:
    """Return a block as the API shows it."""
    return BlockState(
        block_id=block.block_id,
        scope=BlockScope.MAILBOX,
        kind=BlockKind.SENDER,
        value=block.sender,
        status=block.status,
        reason=block.reason,
        explanation=explain_block(block.status, block.reason),
    )


_REFUSED: Mapping[str, str] = {
    BlockFailure.OWN_DOMAIN: "the sender belongs to your own organisation",
    BlockFailure.PROTECTED_DOMAIN: "the sender is one that your organisation never blocks",
    BlockFailure.INVALID: "the sender's address is not valid",
    BlockFailure.LIMIT: "your list of blocked senders is full",
    BlockFailure.REFUSED: "Exchange Online refused it",
    BlockFailure.GAVE_UP: "Exchange Online could not be reached for too long",
}
_ENDED: Mapping[str, str] = {
    BlockRemoval.EXPIRED: "its time was over",
    BlockRemoval.VERDICT_CLEAN: "Microsoft found the mail clean",
}


def explain_block(status: str, reason: str | None) -> str:
    """Explain in one sentence what became of a block."""
    match status:
        case "requested":
            return "The sender is about to be blocked for your mailbox."
        case "applied":
            return "The sender is blocked for your mailbox."
        case "failed":
            return f"The sender was not blocked: {_REFUSED.get(reason or '', 'Exchange Online refused it')}."
        case _:
            return f"The sender is not blocked any more: {_ENDED.get(reason or '', 'the block ended')}."
