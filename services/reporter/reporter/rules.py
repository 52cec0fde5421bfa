"""Who reports, what makes a report the same one, and what its reporter is told. Pure functions over data."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from backstop_contracts import BlockFailure, BlockRemoval, CaseStatus, Conclusion, Folder, Message, Override
from mail import MailFacts

LONGEST_ADDRESS = 320
"""Characters of a mail address that can be blocked: 64, an @ and 255."""


class NotYoursError(Exception):
    """The caller may not speak for that mailbox; the text says why."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Whose report it is: the `address` that received the mail, and the `mailbox` that a block is for."""

    address: str
    mailbox: str


def person(oid: str, name: str | None, claimed: str | None) -> Reporter:
    """
    Say who reports when a signed-in person calls: that person and nobody else.

    *name* is the token's preferred_username, *claimed* what the request says. A block is for the mailbox of *oid*,
    never for an address that the caller could choose. Raises NotYoursError when *claimed* is somebody else.
    """
    if name is None or "@" not in name:
        raise NotYoursError("The token's preferred_username is no email address, so the reporter is not known")
    if claimed is not None and claimed.lower() != name.lower():
        raise NotYoursError("A signed-in person can report for themselves only: leave out reporter")
    return Reporter(address=name, mailbox=oid)


def own_mailbox(oid: str, name: str | None, user_id: str) -> str:
    """
    Return the mailbox in which a signed-in person says that the mail lies: their own.

    Raises NotYoursError for any other: Microsoft would be made to read somebody else's mail.
    """
    if user_id.lower() not in {oid.lower(), (name or oid).lower()}:
        raise NotYoursError("A signed-in person can point at their own mailbox only")
    return oid


def carries_messages(facts: MailFacts) -> bool:
    """
    Tell whether other messages are attached to the mail, whatever type the attachment says it has.

    Report buttons, add-ins and "forward as attachment" wrap what they report in a mail of the user's own.
    """
    return any(
        file.content_type in _MESSAGES or (file.name or "").lower().endswith((".eml", ".msg"))
        for file in facts.attachments
    )


_MESSAGES = frozenset({"message/rfc822", "message/global", "application/vnd.ms-outlook"})


def folder_of(facts: MailFacts) -> Folder:
    """Say where Exchange Online put the mail, as its headers tell; the Inbox when they do not."""
    return Folder.JUNK if facts.delivery_folder == "junk" else Folder.INBOX


def blockable(message: Message) -> str | None:
    """Return the sender that a user can block, in lower case; None when the mail names none, or only pretends one."""
    sender = message.sender if message.delivery.header_from in (None, message.sender_domain) else None
    return sender if sender and len(sender) <= LONGEST_ADDRESS else None


class Status(StrEnum):
    """Where a report has got to."""

    RECEIVED = "received"
    IN_TRIAGE = "in-triage"
    SUBMITTED = "submitted"
    VERDICT = "verdict"
    DISMISSED = "dismissed"


VERDICTS: Mapping[str, str] = {
    Conclusion.THREAT: "Microsoft confirms that this mail is a threat. Do not open its links or attachments.",
    Conclusion.CLEAN: "Microsoft looked at this mail and found no threat in it.",
    Conclusion.SIMULATION: "This mail was a phishing simulation of your own organisation. Well spotted.",
    Conclusion.UNKNOWN: "Microsoft could not reach a verdict. Your security team decides what happens next.",
}
OVERRIDES: Mapping[str, str] = {
    Override.ALLOWED: "Microsoft says that a setting of your organisation or of your mailbox let this mail in, and not "
    "whether it is a threat. Do not open its links or attachments.",
    Override.BLOCKED: "Microsoft says that a setting of your organisation or of your mailbox blocks this mail, and not "
    "whether it is a threat. Do not open its links or attachments.",
}
PROGRESS = {
    Status.RECEIVED: "Your report has arrived.",
    Status.IN_TRIAGE: "Your security team is looking at the mail.",
    Status.SUBMITTED: "The mail was submitted to Microsoft, whose analysis can take some hours.",
    Status.DISMISSED: "Your security team looked at the mail and found nothing malicious about it.",
}
_FINAL = {Conclusion.THREAT, Conclusion.CLEAN, Conclusion.SIMULATION}


def progress(status: CaseStatus | None, conclusion: str | None, override: str | None = None) -> tuple[Status, str]:
    """
    Say where a report has got to and explain it in one sentence, from what is known of its case.

    The two come on topics of their own, in any order. A definite verdict is the last word, and so is the *override*
    that Microsoft names instead of one: neither a case that was
    submitted nor a resolved one whose verdict is still on its way can hide it or run ahead of it. When Microsoft
    reached no verdict the case is open again, and what triage then does is told instead.
    """
    if conclusion in _FINAL:
        return Status.VERDICT, VERDICTS[conclusion]
    if explanation := OVERRIDES.get(override or ""):
        return Status.VERDICT, explanation
    if status is None or status is CaseStatus.OPEN:
        if conclusion:
            return Status.VERDICT, VERDICTS.get(conclusion, VERDICTS[Conclusion.UNKNOWN])
        told = Status.RECEIVED if status is None else Status.IN_TRIAGE
    else:
        told = Status.DISMISSED if status is CaseStatus.DISMISSED else Status.SUBMITTED
    return told, PROGRESS[told]


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


def block_explained(status: str, reason: str | None) -> str:
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
