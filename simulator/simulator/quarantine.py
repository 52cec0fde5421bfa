"""
The quarantined messages of one tenant, and what happens to them.

Sources: Microsoft Learn, "Get-QuarantineMessage", "Release-QuarantineMessage" and "Quarantine policies". Where those
pages are silent about an order of actions (a release after a denial, a request after a release), it is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from simulator.mail import Mail

QUARANTINE_TYPES = {
    "Bulk": "Bulk",
    "DataLossPrevention": "Data loss prevention",
    "FileTypeBlock": "File type block",
    "HighConfPhish": "High Confidence Phish",
    "Malware": "Malware",
    "Phish": "Phish",
    "Spam": "Spam",
    "SPOMalware": "SPOMalware",
    "TransportRule": "Transport rule",
    "AdminTriggered": "Admin triggered",
    "PPI": "PPI",
}
POLICY_TYPES = {
    "DataLossPrevention": "DataLossPreventionRule",
    "FileTypeBlock": "AntiMalwarePolicy",
    "Malware": "AntiMalwarePolicy",
    "SPOMalware": "SafeAttachmentPolicy",
    "TransportRule": "ExchangeTransportRule",
}
RETENTION_DAYS = {"HostedContentFilterPolicy": 15, "AntiPhishPolicy": 15}
ADMIN_ONLY = frozenset({"HighConfPhish", "Malware", "FileTypeBlock", "TransportRule"})

PERMISSIONS = {
    "ViewHeader": 128,
    "Download": 64,
    "AllowSender": 32,
    "BlockSender": 16,
    "RequestRelease": 8,
    "Release": 4,
    "Preview": 2,
    "Delete": 1,
}
_WRITTEN = ("BlockSender", "Delete", "Download", "Preview", "Release", "RequestRelease", "ViewHeader", "AllowSender")
# What users never release themselves, whatever the policy says.
_ASKED_FOR_ONLY = frozenset({"HighConfPhish", "Malware"})


class QuarantineError(ValueError):
    """The quarantine refuses an action. *missing* tells that there is no such mail."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True)
class Progress:
    """What has become of a quarantined mail at one moment: addresses, in the order of the actions."""

    released: tuple[str, ...] = ()
    released_by: tuple[str, ...] = ()
    requested: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    denied: bool = False
    reported: bool = False

    def waiting(self, recipients: Iterable[str]) -> tuple[str, ...]:
        """Return the *recipients* for whom the mail is still held."""
        return tuple(address for address in recipients if address not in self.released + self.deleted)


@dataclass
class QuarantinedMail:
    """One row of the quarantine: a mail that is held for one recipient, or for several in one row."""

    network_message_id: str
    raw: bytes
    mail: Mail
    recipients: tuple[str, ...]
    quarantine_type: str
    policy_type: str
    policy_name: str
    policy: str
    received: datetime
    expires: datetime
    direction: str = "Inbound"
    recipient_tags: tuple[str, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    recipient_id: str = field(default_factory=lambda: str(uuid4()))
    history: list[tuple[datetime, Progress]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """The network message id and the id of this row, joined by a backslash."""
        return f"{self.network_message_id}\\{self.recipient_id}"

    @property
    def progress(self) -> Progress:
        """What has become of it by now."""
        return self.history[-1][1] if self.history else Progress()

    def seen(self, at: datetime) -> Progress | None:
        """Return what had become of it at that time; None when it was not yet there, or gone for all recipients."""
        found = next((progress for moment, progress in reversed(self.history) if moment <= at), None)
        gone = found is not None and set(self.recipients) <= set(found.deleted)
        return None if gone or self.expires <= at else found

    def release_status(self, progress: Progress) -> str:
        """Return the ReleaseStatus on the wire. A release that was asked for reads APPROVED, any other RELEASED."""
        if progress.released and not progress.waiting(self.recipients):
            return "APPROVED" if progress.requested else "RELEASED"
        if progress.denied:
            return "DENIED"
        return "REQUESTED" if progress.requested else "NOTRELEASED"

    def release(
        self, now: datetime, by: str, users: Iterable[str] | None, *, force: bool = False, report: bool = False
    ) -> tuple[str, ...]:
        """
        Release to *users*, None for all recipients, and return those who get it now.

        Who has it already is skipped, unless *force*. Raises QuarantineError when nobody is left, when the mail has
        expired, and when its release was denied (unless *force*).
        """
        self.check(now)
        before = self.progress
        if before.denied and not force:
            raise QuarantineError("The request to release the message was denied.")
        wanted = self.recipients if users is None else tuple(users)
        if report and self.quarantine_type != "Spam":
            raise QuarantineError("ReportFalsePositive is available only for messages quarantined as spam.")
        reached = wanted if force else tuple(user for user in wanted if user not in before.released)
        if not reached:
            raise QuarantineError("The message was already released. Use Force to release it again.")
        after = replace(
            before,
            released=_joined(before.released, reached),
            released_by=_joined(before.released_by, (by,)),
            denied=False,
            reported=before.reported or report,
        )
        self.history.append((now, after))
        return reached

    def deny(self, now: datetime, users: Iterable[str] | None) -> tuple[str, ...]:
        """Deny the release to the whole row, whichever recipients *users* names; return who does not get the mail."""
        self.check(now)
        self._check_undecided()
        self._known(users or ())
        held = self.progress.waiting(self.recipients)
        self.history.append((now, replace(self.progress, denied=True)))
        return held

    def request(self, now: datetime, users: Iterable[str] | None) -> tuple[str, ...]:
        """Ask for the release to *users*, None for all recipients, and return those who had not asked before."""
        self.check(now)
        self._check_undecided()
        before = self.progress
        asking = self.recipients if users is None else self._known(users)
        new = tuple(user for user in asking if user not in before.requested)
        if new:
            self.history.append((now, replace(before, requested=_joined(before.requested, new))))
        return new

    def delete(self, now: datetime, users: Iterable[str] | None) -> tuple[str, ...]:
        """Delete for *users*, None for all recipients, and return those for whom it was still there."""
        self.check(now)
        before = self.progress
        named = self.recipients if users is None else self._known(users)
        new = tuple(user for user in named if user not in before.deleted)
        self.history.append((now, replace(before, deleted=_joined(before.deleted, new))))
        return new

    def check(self, now: datetime) -> None:
        """Raise QuarantineError when the mail has expired or was deleted."""
        if self.expires <= now:
            raise QuarantineError("The message has expired and can't be recovered.")
        if set(self.recipients) <= set(self.progress.deleted):
            raise QuarantineError("The message was deleted from quarantine.")

    def _check_undecided(self) -> None:
        if self.progress.released and not self.progress.waiting(self.recipients):
            raise QuarantineError("The message was already released.")
        if self.progress.denied:
            raise QuarantineError("The request to release the message was denied before.")

    def _known(self, users: Iterable[str]) -> tuple[str, ...]:
        wanted = tuple(users)
        stranger = next((user for user in wanted if user not in self.recipients), None)
        if stranger is not None:
            raise QuarantineError(f"'{stranger}' is not a recipient of the message.")
        return wanted


def _joined(before: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(before + more))


def retention(policy_type: str) -> timedelta:
    """Return how long a mail is kept: 15 days for spam and phishing policies as they come, 30 for all others."""
    return timedelta(days=RETENTION_DAYS.get(policy_type, 30))


def end_user_permissions(value: int, quarantine_type: str) -> dict[str, bool]:
    """Read EndUserQuarantinePermissionsValue: what users may do with a mail of this type."""
    allowed = {name: bool(value & bit) for name, bit in PERMISSIONS.items()}
    if quarantine_type in _ASKED_FOR_ONLY and allowed["Release"]:
        return {**allowed, "Release": False, "RequestRelease": True}
    return allowed


def written_permissions(value: int) -> str:
    """Write EndUserQuarantinePermissionsValue as the string that Get-QuarantinePolicy answers."""
    return "[" + "\r\n".join(f"PermissionTo{name}: {bool(value & PERMISSIONS[name])}" for name in _WRITTEN) + "]"


def read_permissions(text: str) -> int:
    """Read that string back."""
    return sum(bit for name, bit in PERMISSIONS.items() if f"PermissionTo{name}: True" in text)


class Quarantine:
    """A tenant's quarantined messages, including expired and deleted ones."""

    def __init__(self) -> None:
        self._mails: dict[str, QuarantinedMail] = {}

    def add(self, mail: QuarantinedMail, now: datetime) -> None:
        """Hold *mail* from *now* on."""
        mail.history.append((now, Progress()))
        self._mails[mail.identity.lower()] = mail

    def all(self) -> list[QuarantinedMail]:
        """Return all messages, latest received first."""
        return sorted(self._mails.values(), key=lambda mail: mail.received, reverse=True)

    def find(self, identity: str) -> QuarantinedMail:
        """Return the mail with this Identity; raise QuarantineError when there is none."""
        found = self._mails.get(identity.strip().lower())
        if found is None:
            raise QuarantineError(f"The message '{identity}' couldn't be found in quarantine.", missing=True)
        return found

    def copies(self, network_message_id: str) -> list[QuarantinedMail]:
        """Return the rows of one mail; raise QuarantineError when there are none."""
        found = [mail for mail in self._mails.values() if mail.network_message_id == network_message_id.lower()]
        if not found:
            raise QuarantineError(f"The message '{network_message_id}' couldn't be found in quarantine.", missing=True)
        return found
