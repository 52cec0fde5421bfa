"""What a recipient may do with a quarantined message now: its quarantine policy, type and status decide."""

from datetime import datetime

from quarantine.links import LinkAction
from quarantine.quarantine_policies import Permissions
from quarantine.rules import BY_RECIPIENT, HELD_STATUSES, ActionKind, MessageStatus
from quarantine.store import Action, QuarantinedMessage


def permitted_actions(message: QuarantinedMessage, now: datetime) -> list[LinkAction]:
    """
    Return what the recipient may do with a message now, besides viewing its facts.

    A message whose policy permits users nothing, or that is no longer held, allows no action.
    """
    permissions = message.permitted
    if not is_held(message, now) or not permissions:
        return []
    actions = []
    if may_release(message):
        actions.append(LinkAction.RELEASE)
    requestable = message.status in (MessageStatus.NOT_RELEASED, MessageStatus.ERROR)
    if requestable and Permissions.REQUEST_RELEASE in permissions:
        actions.append(LinkAction.REQUEST)
    if Permissions.BLOCK_SENDER in permissions and message.sender and not _is_from_own_domain(message):
        actions.append(LinkAction.BLOCK)
    if Permissions.PREVIEW in permissions:
        actions.append(LinkAction.REPORT)
    return actions


def is_held(message: QuarantinedMessage, now: datetime) -> bool:
    """Return True if the message is still in quarantine."""
    return message.status in HELD_STATUSES and message.expires_at > now


def may_release(message: QuarantinedMessage) -> bool:
    """Return True if the recipient may release the message without a request."""
    return Permissions.RELEASE in message.permitted and message.status is not MessageStatus.DENIED


def may_run(action: Action, message: QuarantinedMessage) -> bool:
    """
    Return True if an action is still permitted. Actions of admins always are.

    Exchange does not check this, because Backstop calls it as an administrator.
    """
    if action.kind is ActionKind.REQUEST:
        return bool(message.permitted & (Permissions.RELEASE | Permissions.REQUEST_RELEASE))
    return action.variant != BY_RECIPIENT or may_release(message)


def _is_from_own_domain(message: QuarantinedMessage) -> bool:
    """Return True if the sender is in the recipient's own domain, of which no address can be blocked."""
    return message.sender_domain == message.recipient.rpartition("@")[2]
