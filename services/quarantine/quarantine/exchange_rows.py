"""Parse the rows of Get-QuarantineMessage, whose shape Microsoft does not document. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from quarantine.rules import RELEASED_STATUSES, MessageStatus

ExchangeRow: TypeAlias = Mapping[str, Any]

QUARANTINE_DAYS = 30
"""How far back Get-QuarantineMessage looks (Microsoft Learn: "Get-QuarantineMessage")."""
SYNC_OVERLAP = timedelta(minutes=30)
"""How far a sync reads back behind the previous one: Exchange may list a message late."""
CHANGED_STATUSES = ("Requested", "Approved", "Denied", "Released", "PreparingToRelease", "Error")
"""The values of the ReleaseStatus parameter that list messages somebody has acted on."""

_STATUSES = {
    "NOTRELEASED": MessageStatus.NOT_RELEASED,
    "REQUESTED": MessageStatus.REQUESTED,
    "PREPARINGTORELEASE": MessageStatus.PREPARING,
    "RELEASED": MessageStatus.RELEASED,
    "APPROVED": MessageStatus.APPROVED,
    "DENIED": MessageStatus.DENIED,
    "ERROR": MessageStatus.ERROR,
}

_TYPES = {
    "highconfidencephish": "HighConfPhish",
    "highconfidencephishing": "HighConfPhish",
    "phishing": "Phish",
    "highconfidencespam": "Spam",
    "mailflowrule": "TransportRule",
    "adminactionfiletypeblock": "FileTypeBlock",
} | {
    name.lower(): name
    for name in (
        *("Bulk", "DataLossPrevention", "FileTypeBlock", "HighConfPhish", "Malware", "Phish", "Spam", "SPOMalware"),
        *("TransportRule", "AdminTriggered", "PPI"),
    )
}
"""The QuarantineTypes of Get-QuarantineMessage, by name and by Microsoft's display name without spaces."""
RELEASED_BY_USERS = frozenset({"Bulk", "Spam", "Phish"})
"""
The types that users may release if the quarantine policy lets them: bulk, spam (high confidence too) and phishing,
which is also how Defender shows messages held by anti-phishing policies. Source: Microsoft Learn, "Manage quarantined
messages and files as a user".

Users can only request the release of all other types: malware, blocked file types (held as malware) and high confidence
phishing, whatever the policy says; mail flow rules, which have no quarantine policy ("Quarantine policies"); data loss
prevention, AdminTriggered and PPI, for which no page mentions a release by users; and unknown types.
"""


@dataclass(frozen=True, slots=True)
class ListedMessage:
    """A quarantined message for one recipient, as Exchange lists it."""

    identity: str
    recipient: str
    recipient_count: int
    network_message_id: str
    internet_message_id: str | None
    sender: str | None
    subject: str | None
    size: int
    quarantine_type: str
    policy_type: str
    policy_name: str
    quarantine_policy: str
    direction: str
    received_at: datetime
    expires_at: datetime
    status: MessageStatus
    released_by: tuple[str, ...]

    @property
    def sender_domain(self) -> str | None:
        """The domain of the sender."""
        return self.sender.rpartition("@")[2] or None if self.sender else None


def parse_row(row: ExchangeRow) -> list[ListedMessage]:
    """
    Return the messages of one row of Get-QuarantineMessage, one for each recipient.

    The list is empty if the row is not a message (Teams, files) or lacks what identifies it. Only a row that was read
    by its Identity says which recipients have the message; a row of a list has one status for all of them.
    """
    identity = text_of(row.get("Identity")) or ""
    received, expires = _time_of(row.get("ReceivedTime")), _time_of(row.get("Expires"))
    if "\\" not in identity or received is None or str(row.get("EntityType") or "Email").lower() != "email":
        return []
    recipients = list(dict.fromkeys(address.lower() for address in _texts_of(row.get("RecipientAddress"))))
    released = {address.lower() for address in _texts_of(row.get("ReleasedUser"))}
    deleted = {address.lower() for address in _texts_of(row.get("DeletedForRecipients"))}
    overall = _STATUSES.get(str(row.get("ReleaseStatus") or "").upper(), MessageStatus.NOT_RELEASED)

    def status_of(recipient: str) -> MessageStatus:
        if recipient in deleted:
            return MessageStatus.DELETED
        return MessageStatus.RELEASED if recipient in released and overall not in RELEASED_STATUSES else overall

    return [
        ListedMessage(
            identity=identity,
            recipient=recipient,
            recipient_count=len(recipients),
            network_message_id=identity.partition("\\")[0].lower(),
            internet_message_id=text_of(row.get("MessageId")),
            sender=(text_of(row.get("SenderAddress")) or "").lower() or None,
            subject=text_of(row.get("Subject")),
            size=_number_of(row.get("Size")),
            quarantine_type=text_of(", ".join(quarantine_types(row.get("QuarantineTypes"), row.get("Type"))))
            or "Unknown",
            policy_type=text_of(row.get("PolicyType")) or "",
            policy_name=text_of(row.get("PolicyName")) or "",
            quarantine_policy=text_of(row.get("TagName")) or "",
            direction=text_of(row.get("Direction")) or "Inbound",
            received_at=received,
            expires_at=expires or received + timedelta(days=QUARANTINE_DAYS),
            status=status_of(recipient),
            released_by=tuple(_texts_of(row.get("ReleasedBy"))),
        )
        for recipient in recipients
    ]


def quarantine_types(*values: Any) -> list[str]:
    """Return Microsoft's names of the types in *values*, each of which may hold several; user-releasable ones last."""
    items = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    parts = [part for item in items if item is not None for part in re.split(r"[,;|+/\n]", str(item)) if part.strip()]
    names = dict.fromkeys(_TYPES.get(re.sub(r"[\s_-]", "", part).lower(), part.strip()) for part in parts)
    return sorted(names, key=lambda name: name in RELEASED_BY_USERS)


def is_partly_released(row: ExchangeRow) -> bool:
    """Return True if some, but not all, recipients of a shared row have the message; the detailed row names them."""
    recipients = _number_of(row.get("RecipientCount"))
    return recipients > 1 and 0 < _number_of(row.get("ReleasedCount")) < recipients


def row_with_identity(rows: Sequence[ExchangeRow], identity: str) -> ExchangeRow | None:
    """Return the row of *identity*: the cmdlet returns all other rows when asked for one that does not exist."""
    return next((row for row in rows if str(row.get("Identity") or "").lower() == identity.lower()), None)


def day_windows(read_until: datetime | None, now: datetime) -> list[tuple[datetime, datetime]]:
    """
    Split the time since *read_until* into windows of at most a day, the latest first.

    The first window starts SYNC_OVERLAP before *read_until*. The latest ends a minute from now, because the clock of
    Exchange may be ahead and the cmdlet takes whole seconds.
    """
    earliest = now - timedelta(days=QUARANTINE_DAYS)
    start = max(earliest, read_until - SYNC_OVERLAP) if read_until else earliest
    found, end = [], now + timedelta(minutes=1)
    while end > start:
        found.append((max(start, end - timedelta(days=1)), end))
        end -= timedelta(days=1)
    return found


def _texts_of(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [text for item in values if (text := text_of(item))]


def text_of(value: Any) -> str | None:
    """Return a text that PostgreSQL can store: without NUL and lone surrogates. None if *value* is not a text."""
    if not isinstance(value, str):
        return None
    return value.replace("\x00", "").encode("utf-8", "replace").decode().strip()[:2000] or None


def _number_of(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 62 else 0


def _time_of(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
