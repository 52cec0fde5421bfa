"""
Natural keys: what makes two reports the same report, and two messages the same case.

Services that never talk to each other arrive at the same ids, because each derives them here from the same facts: a
report that comes through two channels is one report, and an event that is handled twice creates nothing twice. Ids are
version 5 UUIDs below the tenant's id or the case's.
"""

import hashlib
from typing import TypeAlias
from uuid import UUID, uuid5

from backstop_contracts.events import Channel, Message, MessageReported, ReportedAs

CaseKey: TypeAlias = bytes
"""SHA-256 of one identity of a message. Hashed, because a Message-ID may be longer than an index row."""


def report_id(tenant_id: UUID, reporter: str, message: Message, reported_as: ReportedAs) -> UUID:
    """
    Return the id of a report: the same person saying the same of the same delivery, through whatever channel.

    *reporter* is the address of the mailbox. The delivery is Exchange's network message id, or the bytes without one.
    The id also covers Message-ID, sender and content, because a sender can reuse any one of these.
    """
    delivery = message.network_message_id or message.sha256
    same = f"{delivery} {message.internet_message_id or ''} {_sender(message)} {_content(message)}"
    return uuid5(tenant_id, f"report:{reporter.lower()}:{same}:{reported_as}")


def content_key(message: Message) -> CaseKey:
    """
    Return the key by which reports join a case: what the message says, and from whom it is.

    Copies of a campaign share it, although their Message-IDs differ. A message without a fingerprint is identified by
    its Message-ID (or SHA-256), subject and sender.
    """
    return hashlib.sha256(f"content {_content(message)}".encode()).digest()


def message_id_key(internet_message_id: str) -> CaseKey:
    """
    Return the key of a Message-ID. By it a decision about a quarantined message finds its case.

    The sender chooses the Message-ID: two messages that share it alone are not the same.
    """
    return hashlib.sha256(f"message-id {internet_message_id}".encode()).digest()


def case_id(report: MessageReported) -> UUID:
    """Return the id of the case that *report* opens. It differs from those of earlier cases of the same content."""
    opened_by = f"{content_key(report.message).hex()}:{report.reported_at.isoformat()}:{report.report_id}"
    return uuid5(report.tenant_id, f"case:{opened_by}")


def submission_id(case: UUID, number: int) -> UUID:
    """Return the id of a case's submission; *number* counts them from 1."""
    return uuid5(case, f"submission:{number}")


def tenant_block_id(case: UUID, kind: str, value: str, generation: int) -> UUID:
    """Return the id of a block for the tenant; *generation* counts a case's blocks of the same value from 1."""
    return uuid5(case, f"block:{kind}:{value}:{generation}")


def mailbox_block_id(channel: Channel, tenant_id: UUID, mailbox: str, sender: str, generation: int) -> UUID:
    """
    Return the id of a block for one mailbox; *generation* counts the blocks of one sender from 1.

    Each channel counts for itself, so its name is part of the id.
    """
    return uuid5(tenant_id, f"block:{channel}:{mailbox}:{sender}:{generation}")


def _content(message: Message) -> str:
    """Return what identifies the content of a message and where it comes from."""
    same = message.fingerprint
    if not same:
        same = f"{message.internet_message_id or message.sha256} {message.subject or ''} {_sender(message)}"
    return f"{same} {message.sender_domain or ''} {message.is_authenticated}"


def _sender(message: Message) -> str:
    return (message.sender or "").lower()
