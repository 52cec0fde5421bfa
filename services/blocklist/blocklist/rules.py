"""What may be blocked, and what an entry that is there already means. Pure functions over data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import SplitResult, quote, unquote, urlsplit
from uuid import UUID

from backstop_contracts import Block, BlockFailure, BlockKind, BlockScope
from blocklist import shared
from mail import normal_url

Rows: TypeAlias = Sequence[Mapping[str, Any]]

LONGEST_URL = 250
"""Characters of a URL entry (Microsoft Learn: "Allow or block URLs using the Tenant Allow/Block List")."""

SLACK = timedelta(minutes=1)
"""Exchange keeps times less precisely than we do."""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?!\d+\Z){_LABEL}")
_NEVER_IN_A_LOCAL_PART = frozenset('"(),:;<>[\\]')
_MARK = re.compile(r"Backstop block ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f-])")
_LIMIT = re.compile(r"\b(limit|maximum number|quota|capacity|too many)\b", re.IGNORECASE)
_DUPLICATE = re.compile(r"\b(duplicate|already exists?)\b", re.IGNORECASE)


class Refusal(NamedTuple):
    """Why a sender is not blocked: the reason of the event `block-failed`, and its detail."""

    reason: BlockFailure
    detail: str


def refuse(block: Block, protected: frozenset[str] = frozenset()) -> Refusal | None:
    """
    Say why *block* cannot be made, as far as that is known without asking Exchange.

    *protected* are domains that nobody here wants blocked, beside those that are known to be shared by strangers.
    """
    if mistake := _mistake(block):
        return Refusal(BlockFailure.INVALID, mistake)
    if block.kind == BlockKind.URL and (refusal := _refuse_entry(_url_entry(block.value))):
        return refusal
    hit = _bystanders(block, protected)
    return Refusal(BlockFailure.PROTECTED_DOMAIN, hit) if hit else None


def _mistake(block: Block) -> str | None:
    if block.scope not in set(BlockScope):
        return "this scope of a block is not known"
    if not _is_valid(block):
        return _INVALID.get(block.kind, "this kind of block is not known")
    if block.scope == BlockScope.TENANT:
        return None
    if not block.mailbox:
        return "the block is for a mailbox, but names none"
    if block.expires_at:
        return "the Blocked Senders list of a mailbox has no end dates"
    return "a mailbox blocks senders, not URLs" if block.kind == BlockKind.URL else None


def _refuse_entry(entry: str) -> Refusal | None:
    if len(entry) > LONGEST_URL:
        return Refusal(BlockFailure.INVALID, f"the list takes URLs of at most {LONGEST_URL} characters")
    if _url_entry(f"https://{entry}") != entry:
        return Refusal(BlockFailure.INVALID, "the URL is wrapped too often: give the one that it leads to")
    return None


def _bystanders(block: Block, protected: frozenset[str]) -> str | None:
    """Say whom *block* would hit beside whoever sent the message."""
    if block.kind == BlockKind.URL:
        parts = _target(block.value)
        has_query = bool(parts.query)
        return shared.why_not_url(parts.hostname or "", parts.path, has_query=has_query, protected=protected)
    domain = block.value.lower().rpartition("@")[2]
    if block.kind == BlockKind.DOMAIN:
        return shared.why_not_domain(domain, for_tenant=block.scope == BlockScope.TENANT, protected=protected)
    return shared.why_not_sender(domain) if block.scope == BlockScope.TENANT else None


def _target(url: str) -> SplitResult:
    """Split *url* as a browser reads it, with wrappers undone."""
    return urlsplit(normal_url(url) or "")


_INVALID = {
    "sender": "the address is not valid",
    "domain": "the domain is not valid",
    "url": "the URL is not valid: http or https, and a host name or an IPv4 address",
}


def _is_valid(block: Block) -> bool:
    """
    Tell whether the value is one address, one domain or one URL: lower case or not, the domain as DNS knows it.

    Wildcards are not taken: nobody here asks for more than the domain of one mail.
    """
    if block.kind == BlockKind.URL:
        return _is_url(block.value)
    if block.kind not in (BlockKind.SENDER, BlockKind.DOMAIN):
        return False
    local, at, domain = block.value.rpartition("@")
    if bool(at) != (block.kind == BlockKind.SENDER) or not _DOMAIN.fullmatch(domain.lower()):
        return False
    return not at or (
        0 < len(local.encode(errors="replace")) <= 64
        and "@" not in local
        and " " not in local
        and local.isprintable()
        and not _NEVER_IN_A_LOCAL_PART & set(local)
    )


def _is_url(value: str) -> bool:
    """Tell whether *value* leads to what the list can hold: a host name or an IPv4 address, and no wildcards."""
    try:
        parts = _target(value)
        is_whole = parts.port is None or parts.port > 0
    except ValueError:
        return False
    fits = value.isprintable() and " " not in value and not {*parts.path} & {*"*~"}
    return is_whole and fits and parts.scheme in ("http", "https") and _is_host(parts.hostname or "")


def _is_host(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return bool(_DOMAIN.fullmatch(name))
    return True


@dataclass(frozen=True, slots=True)
class AcceptedDomain:
    """A domain for which the tenant receives mail."""

    name: str
    with_subdomains: bool


def read_accepted_domains(rows: Rows) -> tuple[AcceptedDomain, ...]:
    """Read the answer of Get-AcceptedDomain."""
    return tuple(
        AcceptedDomain(str(row["DomainName"]).lower(), row.get("MatchSubDomains") is True)
        for row in rows
        if row.get("DomainName")
    )


def refuse_own(block: Block, accepted: Iterable[AcceptedDomain]) -> Refusal | None:
    """
    Say why *block* would hit the tenant itself: its value is an own domain, or an address of one.

    Entries of the Tenant Allow/Block List hold for internal senders too, and nobody in the organization can write to
    a blocked address; such a mail is returned for all its recipients. So one spoofed colleague in a From header would
    cut the real one off. Outlook's Blocked Senders list takes no addresses of the own organization either.
    Source: Microsoft Learn, "Manage allows and blocks in the Tenant Allow/Block List".
    """
    if block.kind == BlockKind.URL:
        host = _target(block.value).hostname or ""
        own_site = next((own for own in accepted if _is_own_site(host, own)), None)
        return (
            Refusal(BlockFailure.OWN_DOMAIN, f"{host} is a site of this organization ({own_site.name})")
            if own_site
            else None
        )
    domain = block.value.lower().rpartition("@")[2]
    for own in accepted:
        below = own.with_subdomains or block.scope == BlockScope.TENANT
        if domain == own.name or (below and domain.endswith(f".{own.name}")):
            return Refusal(
                BlockFailure.OWN_DOMAIN, f"{own.name} is a domain of this organization: a block would stop its own mail"
            )
    return None


def _is_own_site(host: str, own: AcceptedDomain) -> bool:
    """Tell whether *host* is a site of *own*, one below it, one that covers it, or the tenant's SharePoint."""
    tenant = own.name.removesuffix(".onmicrosoft.com")
    sharepoint = {f"{tenant}.sharepoint.com", f"{tenant}-my.sharepoint.com"} if tenant != own.name else set()
    return host == own.name or host.endswith(f".{own.name}") or own.name.endswith(f".{host}") or host in sharepoint


def place_of(block: Block) -> tuple[str, str]:
    """
    Name the list and the entry that *block* wants: the mailbox (empty: the tenant's list) and the value.

    Both are what a database index takes, whatever a forged sender looks like; only valid values ever get further.
    """
    value = (
        f"https://{_url_entry(block.value)}" if block.kind == BlockKind.URL and _is_url(block.value) else block.value
    )
    return _tame(block.mailbox or "") if block.scope == BlockScope.MAILBOX else "", _tame(value)


def _tame(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:400].lower())


def list_of(value: str) -> Literal["Sender", "Url"]:
    """Name the ListType that holds *value*: no address and no domain has a scheme."""
    return "Url" if "://" in value else "Sender"


def entry_of(value: str) -> str:
    """
    Write a value as the Tenant Allow/Block List wants it.

    Of an address special characters are percent-encoded, `a%2Bb@x.example`. Of a URL, with wrappers undone, host and
    path are left: the list takes no scheme and no port, and what a query holds is often made for each recipient.
    Sources: Microsoft Learn, "Allow or block email using the Tenant Allow/Block List" and "Allow or block URLs using
    the Tenant Allow/Block List".
    """
    if list_of(value) == "Url":
        return _url_entry(value)
    local, at, domain = value.rpartition("@")
    return quote(local, safe="").replace("~", "%7E") + at + domain


def _url_entry(url: str) -> str:
    parts = _target(url)
    return f"{parts.hostname}{parts.path}".rstrip("/")


def notes_of(block: Block) -> str:
    """Write the notes by which an entry is known as the one that *block* made."""
    return f"Backstop block {block.block_id}" + (f", case {block.case_id}" if block.case_id else "")


@dataclass(frozen=True, slots=True)
class Found:
    """
    An entry of the Tenant Allow/Block List.

    `ends` is None for an entry that never expires. `maker` is the block that its notes name, None for somebody else's.
    """

    identity: str
    blocks: bool
    ends: datetime | None
    maker: UUID | None


def read_entry(rows: Rows, value: str) -> Found | None:
    """Find the entry for exactly *value* in the answer of Get-TenantAllowBlockListItems."""
    for row in rows:
        shown = str(row.get("Value") or "").lower()
        if value in (shown, unquote(shown)) or shown == entry_of(value).lower():
            mark = _MARK.search(str(row.get("Notes") or ""))
            return Found(
                identity=str(row["Identity"]),
                blocks=row.get("Action") == "Block",
                ends=_moment(row.get("ExpirationDate")),
                maker=UUID(mark[1]) if mark else None,
            )
    return None


def _moment(value: Any) -> datetime | None:
    if not value:
        return None
    moment = datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def latest(ends: Iterable[datetime | None]) -> datetime | None:
    """Return the latest of *ends*; None stands for never."""
    known = list(ends)
    return None if None in known else max(end for end in known if end)


def ends_before(one: datetime | None, other: datetime | None) -> bool:
    """Tell whether *one* is an earlier end than *other*, by more than the slack; None stands for never."""
    return one is not None and (other is None or one < other - SLACK)


def is_same_end(one: datetime | None, other: datetime | None) -> bool:
    """Tell whether two ends are the same, but for the slack."""
    return not ends_before(one, other) and not ends_before(other, one)


def is_blocked(rows: Rows, value: str) -> bool:
    """Tell from the answer of Get-MailboxJunkEmailConfiguration whether the mailbox blocks *value*."""
    return any(
        value == str(blocked).lower().lstrip("@")
        for row in rows
        for blocked in row.get("BlockedSendersAndDomains") or ()
    )


def read_refusal(words: str) -> Refusal:
    """Sort what Exchange says when it refuses a block. Its words are not documented; they go on as they are."""
    return Refusal(BlockFailure.LIMIT if _LIMIT.search(words) else BlockFailure.REFUSED, words)


def says_duplicate(words: str) -> bool:
    """Tell whether Exchange refuses a block because the entry is there (seen: "Duplicate value")."""
    return bool(_DUPLICATE.search(words))
