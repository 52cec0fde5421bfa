"""What a recipient is offered for a mail, and the links to it."""

from datetime import UTC, datetime, timedelta

from quarantine.links import LinkAction, Signer
from quarantine.rules import HELD, Permissions, Status
from quarantine.store import QuarantinedMessage

NAMES = {
    LinkAction.VIEW: "view",
    LinkAction.RELEASE: "release",
    LinkAction.REQUEST: "request",
    LinkAction.BLOCK: "block",
    LinkAction.REPORT: "report",
}


def offered(message: QuarantinedMessage, now: datetime) -> list[LinkAction]:
    """
    List what the recipient may do with a mail now: its quarantine policy and its state decide.

    To look at the facts and to report is offered for every mail that is held and not for admins only.
    """
    may = message.permitted
    held = message.status in HELD and message.expires_at > now
    if not held or not may:
        return []
    actions = []
    if may_release(message):
        actions.append(LinkAction.RELEASE)
    if Permissions.REQUEST_RELEASE in may and message.status in (Status.NOT_RELEASED, Status.ERROR):
        actions.append(LinkAction.REQUEST)
    if Permissions.BLOCK_SENDER in may and message.sender and not _is_own(message):
        actions.append(LinkAction.BLOCK)
    if Permissions.PREVIEW in may:
        actions.append(LinkAction.REPORT)
    return actions


def may_release(message: QuarantinedMessage) -> bool:
    """Return whether the recipient may release a mail without asking."""
    return Permissions.RELEASE in message.permitted and message.status is not Status.DENIED


def _is_own(message: QuarantinedMessage) -> bool:
    """Tell whether the sender belongs to the recipient's own domain, of which nothing can be blocked."""
    return message.sender_domain == message.recipient.rpartition("@")[2]


class Links:
    """Makes the links to the users' pages below *public_url*."""

    def __init__(self, signer: Signer, public_url: str) -> None:
        self.signer = signer
        self._root = public_url.rstrip("/")

    def url(self, action: LinkAction, message: QuarantinedMessage, expires_at: datetime) -> str:
        """Return the address of a page for the recipient of *message*."""
        return f"{self._root}/q/{self.token(action, message, expires_at)}"

    def token(self, action: LinkAction, message: QuarantinedMessage, expires_at: datetime) -> str:
        """Return the token of such an address."""
        return self.signer.link(
            action,
            tenant_id=message.tenant_id,
            message_id=message.message_id,
            recipient=message.recipient,
            expires_at=expires_at,
        )


def link_end(days: int, ended_at: datetime) -> datetime:
    """Say until when the links of a digest work: the same for whoever makes it again."""
    return (ended_at + timedelta(days=days)).astimezone(UTC)
