"""Which blocks are refused, and how blocks and list entries are written and read. Pure functions over data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import SplitResult, quote, unquote, urlsplit
from uuid import UUID

from backstop_contracts import Block, BlockFailure, BlockKind, BlockScope
from blocklist import shared_domains
from mail import normal_url

Rows: TypeAlias = Sequence[Mapping[str, Any]]

MAX_URL_LENGTH = 250
"""Maximum length of a URL entry (Microsoft Learn: "Allow or block URLs using the Tenant Allow/Block List")."""

TIME_TOLERANCE = timedelta(minutes=1)
"""Exchange stores times less precisely than Backstop does."""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?!\d+\Z){_LABEL}")
_FORBIDDEN_IN_LOCAL_PART = frozenset('"(),:;<>[\\]')
_NOTES = re.compile(r"Backstop block ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f-])")
_LIMIT_MESSAGE = re.compile(r"\b(limit|maximum number|quota|capacity|too many)\b", re.IGNORECASE)
_DUPLICATE_MESSAGE = re.compile(r"\b(duplicate|already exists?)\b", re.IGNORECASE)


class Refusal(NamedTuple):
    """Why a block is not made: the reason and the detail of `block-failed`."""

    reason: BlockFailure
    detail: str


def refusal_for(block: Block, protected: frozenset[str] = frozenset()) -> Refusal | None:
    """
    Return why *block* cannot be made, as far as that is known without asking Exchange.

    *protected* are domains never to be blocked as a whole, in addition to the shared domains known here.
    """
    if mistake := _mistake_in(block):
        return Refusal(BlockFailure.INVALID, mistake)
    if block.kind == BlockKind.URL and (refusal := _url_entry_refusal(_url_entry(block.value))):
        return refusal
    reason = _why_shared(block, protected)
    return Refusal(BlockFailure.PROTECTED_DOMAIN, reason) if reason else None


def _mistake_in(block: Block) -> str | None:
    if block.scope not in set(BlockScope):
        return "the scope of the block is not known"
    if not _is_valid(block):
        return _INVALID.get(block.kind, "the kind of the block is not known")
    if block.scope == BlockScope.TENANT:
        return None
    if not block.mailbox:
        return "the block is for a mailbox, but no mailbox is given"
    if block.expires_at:
        return "entries in a mailbox's Blocked Senders list cannot expire"
    return "a mailbox can block senders, but not URLs" if block.kind == BlockKind.URL else None


def _url_entry_refusal(entry: str) -> Refusal | None:
    if len(entry) > MAX_URL_LENGTH:
        return Refusal(BlockFailure.INVALID, f"the list takes URLs of at most {MAX_URL_LENGTH} characters")
    if _url_entry(f"https://{entry}") != entry:
        return Refusal(BlockFailure.INVALID, "the URL is wrapped in too many redirects: block the URL that it leads to")
    return None


def _why_shared(block: Block, protected: frozenset[str]) -> str | None:
    """Return whom *block* would hit in addition to the sender of the message, or None."""
    if block.kind == BlockKind.URL:
        parts = _split_target(block.value)
        has_query = bool(parts.query)
        return shared_domains.why_url_is_shared(
            parts.hostname or "", parts.path, has_query=has_query, protected=protected
        )
    domain = block.value.lower().rpartition("@")[2]
    for_tenant = block.scope == BlockScope.TENANT
    if block.kind == BlockKind.DOMAIN:
        return shared_domains.why_domain_is_shared(domain, for_tenant=for_tenant, protected=protected)
    return shared_domains.why_sender_is_shared(domain) if for_tenant else None


def _split_target(url: str) -> SplitResult:
    """Split *url* as a browser reads it, after undoing link wrappers."""
    return urlsplit(normal_url(url) or "")


_INVALID = {
    "sender": "the address is not valid",
    "domain": "the domain is not valid",
    "url": "the URL is not valid: http or https, and a host name or an IPv4 address",
}


def _is_valid(block: Block) -> bool:
    """
    Return True if the value is one address, one domain in DNS form, or one URL, in upper or lower case.

    Wildcards are rejected: no caller needs to block more than the domain of one message.
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
        and not _FORBIDDEN_IN_LOCAL_PART & set(local)
    )


def _is_url(value: str) -> bool:
    """Return True if the list can hold the target of *value*: a host name or an IPv4 address, without wildcards."""
    try:
        parts = _split_target(value)
        is_port_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_plain = value.isprintable() and " " not in value and not {*parts.path} & {*"*~"}
    return is_port_valid and is_plain and parts.scheme in ("http", "https") and _is_host(parts.hostname or "")


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
    """Read the output of Get-AcceptedDomain."""
    return tuple(
        AcceptedDomain(str(row["DomainName"]).lower(), row.get("MatchSubDomains") is True)
        for row in rows
        if row.get("DomainName")
    )


def own_domain_refusal(block: Block, accepted: Iterable[AcceptedDomain]) -> Refusal | None:
    """
    Return a refusal if *block* would hit the tenant itself: one of its domains, addresses or sites.

    Entries of the Tenant Allow/Block List apply to internal senders too, and nobody in the organization can write to
    a blocked address: such a message is returned for all its recipients. One spoofed colleague in a From header would
    cut off the real one. Outlook's Blocked Senders list takes no addresses of the own organization either.
    Source: Microsoft Learn, "Manage allows and blocks in the Tenant Allow/Block List".
    """
    if block.kind == BlockKind.URL:
        host = _split_target(block.value).hostname or ""
        own_site = next((own for own in accepted if _is_own_site(host, own)), None)
        return (
            Refusal(BlockFailure.OWN_DOMAIN, f"{host} is a site of this organization ({own_site.name})")
            if own_site
            else None
        )
    domain = block.value.lower().rpartition("@")[2]
    for own in accepted:
        includes_subdomains = own.with_subdomains or block.scope == BlockScope.TENANT
        if domain == own.name or (includes_subdomains and domain.endswith(f".{own.name}")):
            return Refusal(
                BlockFailure.OWN_DOMAIN, f"{own.name} is a domain of this organization: a block would stop its own mail"
            )
    return None


def _is_own_site(host: str, own: AcceptedDomain) -> bool:
    """Return True if *host* is *own*, a subdomain or a parent domain of it, or the tenant's SharePoint."""
    tenant = own.name.removesuffix(".onmicrosoft.com")
    sharepoint = {f"{tenant}.sharepoint.com", f"{tenant}-my.sharepoint.com"} if tenant != own.name else set()
    return host == own.name or host.endswith(f".{own.name}") or own.name.endswith(f".{host}") or host in sharepoint


def entry_key(block: Block) -> tuple[str, str]:
    """
    Return the key of the list entry that *block* needs: the mailbox (empty for the tenant's list) and the value.

    Both fit a database index, whatever a forged sender looks like; invalid values are refused before any call.
    """
    value = (
        f"https://{_url_entry(block.value)}" if block.kind == BlockKind.URL and _is_url(block.value) else block.value
    )
    return _indexable(block.mailbox or "") if block.scope == BlockScope.MAILBOX else "", _indexable(value)


def _indexable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:400].lower())


def list_type(value: str) -> Literal["Sender", "Url"]:
    """Return the ListType that holds *value*. Only URLs contain a scheme."""
    return "Url" if "://" in value else "Sender"


def list_entry(value: str) -> str:
    """
    Return *value* in the form that the Tenant Allow/Block List takes.

    Special characters of an address are percent-encoded, as in `a%2Bb@x.example`. A URL is unwrapped and reduced to
    host and path: the list takes no scheme and no port, and a query often differs for each recipient.
    Sources: Microsoft Learn, "Allow or block email using the Tenant Allow/Block List" and "Allow or block URLs using
    the Tenant Allow/Block List".
    """
    if list_type(value) == "Url":
        return _url_entry(value)
    local, at, domain = value.rpartition("@")
    return quote(local, safe="").replace("~", "%7E") + at + domain


def _url_entry(url: str) -> str:
    parts = _split_target(url)
    return f"{parts.hostname}{parts.path}".rstrip("/")


def entry_notes(block: Block) -> str:
    """Return the notes that identify an entry as the one made for *block*."""
    return f"Backstop block {block.block_id}" + (f", case {block.case_id}" if block.case_id else "")


@dataclass(frozen=True, slots=True)
class TenantListEntry:
    """
    An entry of the Tenant Allow/Block List.

    `expires_at` is None if the entry never expires. `made_for` is the block named in its notes, None if the entry is
    somebody else's.
    """

    identity: str
    is_block: bool
    expires_at: datetime | None
    made_for: UUID | None


def find_entry(rows: Rows, value: str) -> TenantListEntry | None:
    """Return the entry for exactly *value* in the output of Get-TenantAllowBlockListItems."""
    for row in rows:
        listed = str(row.get("Value") or "").lower()
        if value in (listed, unquote(listed)) or listed == list_entry(value).lower():
            notes = _NOTES.search(str(row.get("Notes") or ""))
            return TenantListEntry(
                identity=str(row["Identity"]),
                is_block=row.get("Action") == "Block",
                expires_at=_datetime(row.get("ExpirationDate")),
                made_for=UUID(notes[1]) if notes else None,
            )
    return None


def _datetime(value: Any) -> datetime | None:
    if not value:
        return None
    moment = datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def latest_end(ends: Iterable[datetime | None]) -> datetime | None:
    """Return the latest of *ends*; None means never."""
    known = list(ends)
    return None if None in known else max(end for end in known if end)


def ends_before(one: datetime | None, other: datetime | None) -> bool:
    """Return True if *one* is earlier than *other* by more than the tolerance; None means never."""
    return one is not None and (other is None or one < other - TIME_TOLERANCE)


def is_same_end(one: datetime | None, other: datetime | None) -> bool:
    """Return True if two ends are equal within the tolerance; None means never."""
    return not ends_before(one, other) and not ends_before(other, one)


def is_blocked(rows: Rows, value: str) -> bool:
    """Return True if the output of Get-MailboxJunkEmailConfiguration lists *value* as a blocked sender or domain."""
    return any(
        value == str(blocked).lower().lstrip("@")
        for row in rows
        for blocked in row.get("BlockedSendersAndDomains") or ()
    )


def classify_refusal(message: str) -> Refusal:
    """Classify Exchange's error message, which is not documented and is passed on unchanged."""
    return Refusal(BlockFailure.LIMIT if _LIMIT_MESSAGE.search(message) else BlockFailure.REFUSED, message)


def is_duplicate(message: str) -> bool:
    """Return True if Exchange's error message says that the entry exists (observed: "Duplicate value")."""
    return bool(_DUPLICATE_MESSAGE.search(message))
