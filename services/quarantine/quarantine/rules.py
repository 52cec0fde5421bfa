"""What a row of the quarantine says, what users may do with it, and how far it has got. Pure functions over data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntFlag, StrEnum
from typing import Any, TypeAlias
from uuid import UUID, uuid5

Row: TypeAlias = Mapping[str, Any]

LONGEST_DAYS = 30
"""How far back Get-QuarantineMessage looks (Microsoft Learn: "Get-QuarantineMessage")."""
LATE = timedelta(minutes=30)
"""Mail is looked for again this long after the time at which it was received: it may be listed late."""


class Status(StrEnum):
    """What became of a quarantined mail for one recipient: Exchange's ReleaseStatus, and two of our own."""

    NOT_RELEASED = "not-released"
    REQUESTED = "requested"
    PREPARING = "preparing"
    RELEASED = "released"
    APPROVED = "approved"
    DENIED = "denied"
    ERROR = "error"
    EXPIRED = "expired"
    DELETED = "deleted"


HELD = frozenset({Status.NOT_RELEASED, Status.REQUESTED, Status.DENIED, Status.ERROR})
"""The mail lies in the quarantine, and can be released."""
OUT = frozenset({Status.PREPARING, Status.RELEASED, Status.APPROVED})
"""The mail is in the mailbox, or on its way there."""

_STATUSES = {
    "NOTRELEASED": Status.NOT_RELEASED,
    "REQUESTED": Status.REQUESTED,
    "PREPARINGTORELEASE": Status.PREPARING,
    "RELEASED": Status.RELEASED,
    "APPROVED": Status.APPROVED,
    "DENIED": Status.DENIED,
    "ERROR": Status.ERROR,
}
DECIDED = ("Requested", "Approved", "Denied", "Released", "PreparingToRelease", "Error")
"""Every ReleaseStatus of a mail about which something was done, as the parameter takes it."""


class Permissions(IntFlag):
    """What users may do; the bits of EndUserQuarantinePermissionsValue (Microsoft Learn: "New-QuarantinePolicy")."""

    DELETE = 1
    PREVIEW = 2
    RELEASE = 4
    REQUEST_RELEASE = 8
    BLOCK_SENDER = 16
    ALLOW_SENDER = 32
    DOWNLOAD = 64
    VIEW_HEADER = 128


NO_PERMISSIONS = Permissions(0)
_PERMISSION = re.compile(r"""PermissionTo([a-z]{1,40})["']?\s*[:=]\s*["']?\$?(true|false)\b""", re.IGNORECASE)
_BITS = {str(bit.name).replace("_", ""): bit for bit in Permissions}


class Doubt(StrEnum):
    """Why it is not certain what a quarantine policy lets users do."""

    UNREADABLE = "unreadable"
    CONTRADICTORY = "contradictory"


@dataclass(frozen=True, slots=True)
class Policy:
    """A quarantine policy: what it lets users do, and whether Microsoft's own notifications are on."""

    name: str
    permissions: Permissions
    notifies: bool
    doubt: Doubt | None = None


def read_policies(rows: Iterable[Row]) -> list[Policy]:
    """
    Read the answer of Get-QuarantinePolicy.

    It says what users may do as a string (EndUserQuarantinePermissions) or, by some accounts, as a number (...Value).
    Either is read wherever it stands. When both do and contradict each other, what grants less counts; when neither
    can be read, nothing is granted. Rows without a name are left out, and the global policy, which grants nothing.
    """
    policies = []
    for row in rows:
        name = _text(row.get("Name"))
        if not name or str(row.get("QuarantinePolicyType")).lower() == "globalquarantinepolicy":
            continue
        said = (row.get("EndUserQuarantinePermissions"), row.get("EndUserQuarantinePermissionsValue"))
        read = [found for value in said if (found := _permissions(value)) is not None]
        doubt = None if read else Doubt.UNREADABLE
        permissions = read[0] if read else NO_PERMISSIONS
        if len(set(read)) > 1:
            doubt, permissions = Doubt.CONTRADICTORY, _lesser(*read)
        policies.append(Policy(name, permissions, str(row.get("ESNEnabled")).lower() == "true", doubt))
    return policies


def policy_warning(policies: Sequence[Policy]) -> str | None:
    """Return which quarantine policies could not be read and what follows from it; None if all could."""
    found = {doubt: ", ".join(policy.name for policy in policies if policy.doubt is doubt) for doubt in Doubt}
    words = []
    if not policies:
        words.append("Get-QuarantinePolicy answers no quarantine policy: users get no digests and can do nothing.")
    if names := found[Doubt.UNREADABLE]:
        words.append(
            "What Get-QuarantinePolicy answers as EndUserQuarantinePermissions cannot be read: for messages under these"
            f" policies users get no digests and can do nothing: {names}."
        )
    if names := found[Doubt.CONTRADICTORY]:
        words.append(
            "EndUserQuarantinePermissions and EndUserQuarantinePermissionsValue contradict each other; what grants less"
            f" counts: {names}."
        )
    return " ".join(words)[:2000] or None


def _permissions(value: Any) -> Permissions | None:
    """Read permissions as a number or as text: a line `PermissionToRelease: True` for each, all of it in brackets."""
    text = str(value).strip()
    if re.fullmatch(r"[0-9]{1,3}(\.0)?", text):
        number = int(float(text))
        return Permissions(number) if number <= sum(Permissions) else None
    said = [(_BITS.get(name.upper()), allowed.lower() == "true") for name, allowed in _PERMISSION.findall(text)]
    named, denied = {bit for bit, _ in said if bit}, {bit for bit, allowed in said if not allowed}
    return Permissions(sum(named - denied)) if named else None


def _lesser(one: Permissions, other: Permissions) -> Permissions:
    """Return what both grant. Who may release may also ask for it."""
    both, releases = one & other, Permissions.RELEASE | Permissions.REQUEST_RELEASE
    if one & releases and other & releases and not both & releases:
        both |= Permissions.REQUEST_RELEASE
    return both


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
"""The QuarantineTypes of Get-QuarantineMessage, by their names and by how Microsoft displays them, without spaces."""
_RELEASED_BY_USERS = frozenset({"Bulk", "Spam", "Phish"})
"""
What users may release where the policy says so: bulk, spam (high confidence too) and phishing, as which Defender also
shows what anti-phishing policies hold. Source: Microsoft Learn, "Manage quarantined messages and files as a user".

All else is only asked for: malware, blocked file types (held as malware) and high confidence phishing, whatever the
policy says, and mail flow rules, which take no quarantine policy ("Quarantine policies"); data loss prevention,
AdminTriggered and PPI, as no page lets users release them; and what nobody knows yet.
"""


def _types_of(*values: Any) -> list[str]:
    """Read quarantine types, of which each value holds any number, by Microsoft's names; users' own ones last."""
    given = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    parts = [part for item in given if item is not None for part in re.split(r"[,;|+/\n]", str(item)) if part.strip()]
    names = dict.fromkeys(_TYPES.get(re.sub(r"[\s_-]", "", part).lower(), part.strip()) for part in parts)
    return sorted(names, key=lambda name: name in _RELEASED_BY_USERS)


def permitted(granted: Permissions, quarantine_type: str) -> Permissions:
    """
    Say what a user may do with a mail of this type, or these types, under a policy that grants *granted*.

    Users release only what every one of its types lets them: otherwise to release becomes to ask for it. A policy that
    grants both (it should not) grants the release. Source: Microsoft Learn, "Quarantine policies".
    """
    if Permissions.RELEASE in granted:
        granted &= ~Permissions.REQUEST_RELEASE
        types = _types_of(quarantine_type)
        if not types or not _RELEASED_BY_USERS.issuperset(types):
            granted = granted & ~Permissions.RELEASE | Permissions.REQUEST_RELEASE
    return granted


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A quarantined mail for one recipient, as Exchange lists it."""

    identity: str
    recipient: str
    sharing: int
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
    status: Status
    released_by: tuple[str, ...]

    @property
    def sender_domain(self) -> str | None:
        """The domain of the sender."""
        return self.sender.rpartition("@")[2] or None if self.sender else None


def message_id(tenant_id: UUID, identity: str, recipient: str) -> UUID:
    """Name a quarantined mail of one recipient."""
    return uuid5(tenant_id, f"quarantined:{identity.lower()}:{recipient.lower()}")


def read_row(row: Row) -> list[Quarantined]:
    """
    Read one row of Get-QuarantineMessage: one mail for each of its recipients.

    Empty for what is no mail (Teams, files), and for a row without the facts that name it. Who has the mail already
    is known of a row that was asked for by its Identity; a row of a list says it for all its recipients together.
    """
    identity = _text(row.get("Identity")) or ""
    received, expires = _moment(row.get("ReceivedTime")), _moment(row.get("Expires"))
    if "\\" not in identity or received is None or str(row.get("EntityType") or "Email").lower() != "email":
        return []
    recipients = list(dict.fromkeys(address.lower() for address in _texts(row.get("RecipientAddress"))))
    released = {address.lower() for address in _texts(row.get("ReleasedUser"))}
    deleted = {address.lower() for address in _texts(row.get("DeletedForRecipients"))}
    overall = _STATUSES.get(str(row.get("ReleaseStatus") or "").upper(), Status.NOT_RELEASED)

    def status_of(recipient: str) -> Status:
        if recipient in deleted:
            return Status.DELETED
        return Status.RELEASED if recipient in released and overall not in OUT else overall

    return [
        Quarantined(
            identity=identity,
            recipient=recipient,
            sharing=len(recipients),
            network_message_id=identity.partition("\\")[0].lower(),
            internet_message_id=_text(row.get("MessageId")),
            sender=(_text(row.get("SenderAddress")) or "").lower() or None,
            subject=_text(row.get("Subject")),
            size=_number(row.get("Size")),
            quarantine_type=_text(", ".join(_types_of(row.get("QuarantineTypes"), row.get("Type")))) or "Unknown",
            policy_type=_text(row.get("PolicyType")) or "",
            policy_name=_text(row.get("PolicyName")) or "",
            quarantine_policy=_text(row.get("TagName")) or "",
            direction=_text(row.get("Direction")) or "Inbound",
            received_at=received,
            expires_at=expires or received + timedelta(days=LONGEST_DAYS),
            status=status_of(recipient),
            released_by=tuple(_texts(row.get("ReleasedBy"))),
        )
        for recipient in recipients
    ]


def is_partly_released(row: Row) -> bool:
    """Tell whether some of several recipients have the mail, so that only the row itself says who."""
    recipients = _number(row.get("RecipientCount"))
    return recipients > 1 and 0 < _number(row.get("ReleasedCount")) < recipients


def named(rows: Sequence[Row], identity: str) -> Row | None:
    """Find the row of *identity*: asked for one that is not there, the cmdlet answers all others."""
    return next((row for row in rows if str(row.get("Identity") or "").lower() == identity.lower()), None)


def windows(read_until: datetime | None, now: datetime) -> list[tuple[datetime, datetime]]:
    """
    Divide the time since *read_until* (less what may be listed late) into days, the latest first.

    The latest ends a minute ahead: Exchange's clock is not ours, and it is told whole seconds.
    """
    earliest = now - timedelta(days=LONGEST_DAYS)
    start = max(earliest, read_until - LATE) if read_until else earliest
    found, end = [], now + timedelta(minutes=1)
    while end > start:
        found.append((max(start, end - timedelta(days=1)), end))
        end -= timedelta(days=1)
    return found


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [text for item in values if (text := _text(item))]


def _text(value: Any) -> str | None:
    """Take a text as PostgreSQL takes it: no NUL, no lone surrogate."""
    if not isinstance(value, str):
        return None
    return value.replace("\x00", "").encode("utf-8", "replace").decode().strip()[:2000] or None


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 62 else 0


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


class Kind(StrEnum):
    """What can be wanted of a quarantined mail."""

    RELEASE = "release"
    DENY = "deny"
    REQUEST = "request"
    REPORT = "report"
    SUBMIT = "submit"


BY_RECIPIENT = "recipient"
"""The variant of a release that the mail's recipient wants. An admin's is another wish: it needs no permission."""
NOT_PERMITTED = "The quarantine policy and the type of the message do not let its recipient do this; nothing was done."

DONE: Mapping[Kind, frozenset[Status]] = {
    Kind.RELEASE: OUT,
    Kind.DENY: frozenset({Status.DENIED}),
    Kind.REQUEST: OUT | {Status.REQUESTED},
}
"""The states in which a wish is fulfilled, by whomsoever."""


def after(kind: Kind, before: Status) -> Status | None:
    """Return the state of a mail after *kind* was done to it, as Exchange will show it; None: as it was."""
    match kind:
        case Kind.RELEASE:
            return Status.APPROVED if before is Status.REQUESTED else Status.RELEASED
        case Kind.DENY:
            return Status.DENIED
        case Kind.REQUEST:
            return Status.REQUESTED
        case _:
            return None


def action_id(message: UUID, kind: Kind, variant: str, round_: int) -> UUID:
    """Name the wish number *round_* of a kind for a mail: made twice at the same time, it is one."""
    return uuid5(message, f"{kind}:{variant}:{round_}")


class Every(StrEnum):
    """How often users hear of their quarantined mail, as the portal offers it."""

    FOUR_HOURS = "4h"
    DAILY = "daily"
    WEEKLY = "weekly"
    NEVER = "never"


SHORTEST_PERIOD = timedelta(hours=4)


def period_end(every: Every, now: datetime, hour: int, shortest: timedelta = SHORTEST_PERIOD) -> datetime | None:
    """
    Return when the latest period ended: each 4 hours from midnight on, each day at *hour*, each Monday at *hour*.

    Times are UTC. *shortest* is those 4 hours, unless somebody wants to see it work sooner.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match every:
        case Every.FOUR_HOURS:
            return midnight + (now - midnight) // shortest * shortest
        case Every.DAILY:
            end = midnight + timedelta(hours=hour)
            return end if end <= now else end - timedelta(days=1)
        case Every.WEEKLY:
            end = midnight + timedelta(hours=hour) - timedelta(days=midnight.weekday())
            return end if end <= now else end - timedelta(days=7)
        case _:
            return None


def digest_id(tenant_id: UUID, recipient: str, every: Every, ended_at: datetime) -> UUID:
    """Name the digest of a recipient for a period."""
    return uuid5(tenant_id, f"digest:{recipient.lower()}:{every}:{ended_at.astimezone(UTC).isoformat()}")


_BREAKS = re.compile(r"(?<=\S)(?=[./@:](?=\S))")


def defused(text: str) -> str:
    """Return *text* on one line, and so that mail programs make no links of it."""
    return _BREAKS.sub("\u200b", " ".join(text.split()))
