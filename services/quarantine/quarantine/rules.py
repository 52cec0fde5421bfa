"""The states of a quarantined message, what can be done about it, and the periods of digests. Pure functions."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid5


class MessageStatus(StrEnum):
    """The state of a quarantined message for one recipient: Exchange's ReleaseStatus, or `expired` or `deleted`."""

    NOT_RELEASED = "not-released"
    REQUESTED = "requested"
    PREPARING = "preparing"
    RELEASED = "released"
    APPROVED = "approved"
    DENIED = "denied"
    ERROR = "error"
    EXPIRED = "expired"
    DELETED = "deleted"


HELD_STATUSES = frozenset(
    {MessageStatus.NOT_RELEASED, MessageStatus.REQUESTED, MessageStatus.DENIED, MessageStatus.ERROR}
)
"""The message is in quarantine and can be released."""
RELEASED_STATUSES = frozenset({MessageStatus.PREPARING, MessageStatus.RELEASED, MessageStatus.APPROVED})
"""The message is in the mailbox, or on its way there."""


class ActionKind(StrEnum):
    """The kinds of actions on a quarantined message."""

    RELEASE = "release"
    DENY = "deny"
    REQUEST = "request"
    REPORT = "report"
    SUBMIT = "submit"


BY_RECIPIENT = "recipient"
"""The variant of a release by the recipient. A release by an admin is another action, which needs no permission."""
NOT_PERMITTED = (
    "The quarantine policy and the type of the message do not let its recipient do this. Nothing was changed."
)

ACHIEVED_STATUSES: Mapping[ActionKind, frozenset[MessageStatus]] = {
    ActionKind.RELEASE: RELEASED_STATUSES,
    ActionKind.DENY: frozenset({MessageStatus.DENIED}),
    ActionKind.REQUEST: RELEASED_STATUSES | {MessageStatus.REQUESTED},
}
"""The states in which the purpose of an action is achieved, whoever did it."""


def status_after(kind: ActionKind, before: MessageStatus) -> MessageStatus | None:
    """Return the status that Exchange will show after an action of *kind*; None if the action does not change it."""
    match kind:
        case ActionKind.RELEASE:
            return MessageStatus.APPROVED if before is MessageStatus.REQUESTED else MessageStatus.RELEASED
        case ActionKind.DENY:
            return MessageStatus.DENIED
        case ActionKind.REQUEST:
            return MessageStatus.REQUESTED
        case _:
            return None


def message_id(tenant_id: UUID, identity: str, recipient: str) -> UUID:
    """Return the id of a quarantined message for one recipient."""
    return uuid5(tenant_id, f"quarantined:{identity.lower()}:{recipient.lower()}")


def action_id(message_id: UUID, kind: ActionKind, variant: str, generation: int) -> UUID:
    """Return the id of an action. Two requests for the same action at the same time get the same id."""
    return uuid5(message_id, f"{kind}:{variant}:{generation}")


class DigestFrequency(StrEnum):
    """How often users get a digest; the choices that Microsoft's portal offers."""

    FOUR_HOURS = "4h"
    DAILY = "daily"
    WEEKLY = "weekly"
    NEVER = "never"


SHORTEST_PERIOD = timedelta(hours=4)


def period_end(
    every: DigestFrequency, now: datetime, hour: int, shortest: timedelta = SHORTEST_PERIOD
) -> datetime | None:
    """
    Return when the latest period ended: every four hours from midnight, every day at *hour*, every Monday at *hour*.

    Times are UTC. *shortest* replaces the four hours in trial installations.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match every:
        case DigestFrequency.FOUR_HOURS:
            return midnight + (now - midnight) // shortest * shortest
        case DigestFrequency.DAILY:
            end = midnight + timedelta(hours=hour)
            return end if end <= now else end - timedelta(days=1)
        case DigestFrequency.WEEKLY:
            end = midnight + timedelta(hours=hour) - timedelta(days=midnight.weekday())
            return end if end <= now else end - timedelta(days=7)
        case _:
            return None


def digest_id(tenant_id: UUID, recipient: str, every: DigestFrequency, ended_at: datetime) -> UUID:
    """Return the id of a recipient's digest for a period."""
    return uuid5(tenant_id, f"digest:{recipient.lower()}:{every}:{ended_at.astimezone(UTC).isoformat()}")


_LINK_PARTS = re.compile(r"(?<=\S)(?=[./@:](?=\S))")


def prevent_autolinking(text: str) -> str:
    """Return *text* on one line, with zero-width spaces that keep mail programs from turning parts of it into links."""
    return _LINK_PARTS.sub("\u200b", " ".join(text.split()))
