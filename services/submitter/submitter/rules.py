"""Microsoft's quota, and how a submission is found again. Pure functions over data."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

from backstop_contracts import DelayReason, MailboxMessage, Message

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Quota:
    """
    How much a tenant may submit.

    Source: Microsoft Learn, "Admin submissions": 150 submissions per 15 minutes; the same item once per 15 minutes
    and 3 times per 24 hours. Whether Graph counts apart from the portal is not documented; we assume it does not.
    """

    submissions: int = 150
    per_item_per_day: int = 3
    window: timedelta = timedelta(minutes=15, seconds=5)
    """A little longer than Microsoft's, because calls arrive later than they are sent."""


@dataclass(frozen=True, slots=True)
class Due:
    """A due submission: to be made or, if `is_lookup`, to be looked for first, which counts against no quota."""

    submission_id: UUID
    tenant_id: UUID
    item: str
    is_lookup: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """How many calls of a tenant count in the window, and when the first of them was made."""

    calls: int
    first: datetime


@dataclass(frozen=True, slots=True)
class Calls:
    """
    Earlier calls: of the tenants in the window, of the items in the last 24 hours.

    `paused_until`: when Microsoft accepts calls about a throttled tenant again.
    """

    of_tenant: Mapping[UUID, Used]
    of_item: Mapping[tuple[UUID, str], Sequence[datetime]]
    paused_until: Mapping[UUID, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """A submission that has to wait, until when and why."""

    submission_id: UUID
    until: datetime
    reason: DelayReason


@dataclass(slots=True)
class Plan:
    """Which submissions may be made now, and which must wait."""

    now: list[UUID] = field(default_factory=list)
    wait: list[Wait] = field(default_factory=list)


def plan(due: Sequence[Due], calls: Calls, quota: Quota, now: datetime) -> Plan:
    """Decide, in order, which of *due* may be made now: within every quota, and not for throttled tenants."""
    result = Plan()
    taken: Counter[UUID] = Counter()
    waiting: Counter[UUID] = Counter()
    items: set[tuple[UUID, str]] = set()
    for one in due:
        paused_until = calls.paused_until.get(one.tenant_id, now)
        if paused_until > now:
            result.wait.append(Wait(one.submission_id, paused_until, DelayReason.THROTTLED))
            continue
        if one.is_lookup:
            result.now.append(one.submission_id)
            continue
        place = (one.tenant_id, one.item)
        free_at = _item_available_at(calls.of_item.get(place, ()), quota, now)
        if place in items:
            free_at = now + quota.window
        used = calls.of_tenant.get(one.tenant_id, Used(0, now))
        if free_at > now:
            result.wait.append(Wait(one.submission_id, free_at, DelayReason.SAME_ITEM))
        elif used.calls + taken[one.tenant_id] >= quota.submissions:
            windows = 1 + waiting[one.tenant_id] // quota.submissions
            waiting[one.tenant_id] += 1
            result.wait.append(Wait(one.submission_id, used.first + windows * quota.window, DelayReason.QUOTA))
        else:
            taken[one.tenant_id] += 1
            items.add(place)
            result.now.append(one.submission_id)
    return result


def throttles_tenant(pause: timedelta, quota: Quota, *, known: bool) -> bool:
    """
    Return True if a 429 that asks for *pause* is about the tenant, and not about the one item.

    Microsoft's answer does not say which. A tenant's limit is free again within its window; and when Microsoft may
    have *known* the item already, because an earlier call was never answered, that is the likelier reason.
    """
    return pause <= quota.window and not known


def _item_available_at(calls: Sequence[datetime], quota: Quota, now: datetime) -> datetime:
    if not calls:
        return now
    recent = sorted(at for at in calls if at > now - DAY)
    free_at = max(recent, default=now - quota.window) + quota.window
    if len(recent) >= quota.per_item_per_day:
        free_at = max(free_at, recent[-quota.per_item_per_day] + DAY)
    return free_at


def link_of(message: Message, place: MailboxMessage | None) -> str | None:
    """
    Return the `messageUrl` of the message at *place*; None if its content is to be submitted instead.

    The reporter names the place, so another message may lie there. Only the internet message id shows that, which
    Exchange gives to every message: without one, no link.
    """
    if place is None or message.internet_message_id is None or {place.user_id, place.message_id} & {"", ".", ".."}:
        return None
    user, mail = (quote(part, safe="@=") for part in (place.user_id, place.message_id))
    return f"https://graph.microsoft.com/beta/users/{user}/messages/{mail}"


def is_other_message(entity: Mapping[str, Any], message: Message) -> bool:
    """Return True if an emailThreatSubmission of Graph certainly belongs to another message than *message*."""
    found = _message_id(entity)
    return bool(found and message.internet_message_id and found != _bare(message.internet_message_id))


def item_of(message: Message, recipient: str) -> str:
    """Return the key of what Microsoft counts as the same item: the message and its recipient."""
    return _item(message.internet_message_id or message.sha256, recipient)


def item_of_other(entity: Mapping[str, Any], recipient: str) -> str:
    """Return the key of the item that a submission was made of instead."""
    return _item(f"<{_message_id(entity)}>", recipient)


def _item(identity: str, recipient: str) -> str:
    return hashlib.sha256(f"{identity}\n{recipient.lower()}".encode()).hexdigest()


def matches(entity: Mapping[str, Any], message: Message, recipient: str) -> bool:
    """
    Return True if an emailThreatSubmission of Graph belongs to *message* and *recipient*.

    Its key is the internet message id and the recipient. A message without that id is recognised by sender and subject.
    """
    if str(entity.get("recipientEmailAddress") or "").lower() != recipient.lower():
        return False
    if message.internet_message_id:
        return _message_id(entity) == _bare(message.internet_message_id)
    subject = str(entity.get("subject") or entity.get("emailSubject") or "")
    sender = str(entity.get("sender") or "").lower()
    return subject.split() == (message.subject or "").split() and sender == (message.sender or "").lower()


def _message_id(entity: Mapping[str, Any]) -> str:
    return _bare(str(entity.get("internetMessageId") or ""))


def _bare(message_id: str) -> str:
    return message_id.strip().removeprefix("<").removesuffix(">")
