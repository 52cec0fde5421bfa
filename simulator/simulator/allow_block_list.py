"""
The Tenant Allow/Block List of one tenant.

Source: Microsoft Learn, "Tenant Allow/Block List" and "New-TenantAllowBlockListItems". Entries that have expired are
gone: they are neither listed nor counted, and their value may be added again.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit
from uuid import uuid4

LIST_TYPES = ("Sender", "Url", "FileHash", "IP")

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})+")
_ADDRESS = re.compile(rf"[^\s@<>\"]{{1,64}}@{_LABEL}(\.{_LABEL})+")
_HASH = re.compile("[0-9a-f]{64}")
_URL = re.compile(r"[~*]?[^\s/?#:@]+([/?#]\S*)?")
_MAX_URL = 250


@dataclass
class ListEntry:
    """One entry. `expires` is None for an entry that never expires, or that goes some days after its last use."""

    list_type: str
    value: str
    action: str
    created: datetime
    modified: datetime
    expires: datetime | None
    notes: str
    modified_by: str
    remove_after: int | None = None
    list_subtype: str = "Tenant"
    identity: str = ""

    def __post_init__(self) -> None:
        """Assign an identity unless one is given."""
        self.identity = self.identity or "RgAAAA" + uuid4().hex.upper()

    @property
    def value_hash(self) -> str:
        """What Exchange calls EntryValueHash."""
        return hashlib.sha256(self.value.lower().encode()).hexdigest()


def invalid(list_type: str, value: str) -> str | None:
    """Return why *value* cannot be an entry of *list_type*, or None if it can."""
    lowered = value.lower()
    match list_type:
        case "Sender":
            valid = bool(_ADDRESS.fullmatch(lowered) or _DOMAIN.fullmatch(lowered))
            wanted = "an email address or a domain"
        case "FileHash":
            valid, wanted = bool(_HASH.fullmatch(lowered)), "a SHA-256 hash of 64 hexadecimal characters"
        case "IP":
            valid, wanted = _ipv6(value), "an IPv6 address or an IPv6 range in CIDR notation"
        case _:
            valid = len(value) <= _MAX_URL and (bool(_URL.fullmatch(value)) or _ip(value.partition("/")[0]))
            wanted = f"a host name or path without protocol, port or credentials, of at most {_MAX_URL} characters"
    return None if valid else f"The value '{value}' is not valid for ListType {list_type}: expected {wanted}."


def _ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _ipv6(value: str) -> bool:
    try:
        network = ipaddress.IPv6Network(value, strict=False)
    except ValueError:
        return False
    return network.prefixlen > 0


class AllowBlockList:
    """All entries of a tenant, of every list type."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], ListEntry] = {}

    def entries(self, now: datetime, list_type: str | None = None, action: str | None = None) -> list[ListEntry]:
        """Return the entries that are in force, oldest first."""
        for key in [key for key, entry in self._entries.items() if entry.expires is not None and entry.expires <= now]:
            del self._entries[key]
        return [
            entry
            for entry in self._entries.values()
            if list_type in (None, entry.list_type) and action in (None, entry.action)
        ]

    def find(self, now: datetime, list_type: str, value: str) -> ListEntry | None:
        """Return the entry with exactly this value, whatever its action."""
        entry = self._entries.get((list_type, value.lower()))
        return entry if entry and (entry.expires is None or entry.expires > now) else None

    def add(self, entry: ListEntry) -> None:
        """Put *entry* into the list."""
        self._entries[(entry.list_type, entry.value.lower())] = entry

    def remove(self, entry: ListEntry) -> None:
        """Remove *entry* from the list."""
        del self._entries[(entry.list_type, entry.value.lower())]

    def allowed_sender(self, now: datetime, addresses: Iterable[str]) -> str | None:
        """Return the allow entry that covers one of *addresses*. A plain domain does not cover its subdomains."""
        allows = {entry.value.lower(): entry.value for entry in self.entries(now, "Sender", "Allow")}
        for address in addresses:
            domain = address.rpartition("@")[2]
            parents = ["*." + ".".join(domain.split(".")[n:]) for n in range(1, domain.count(".") + 1)]
            for candidate in (address, domain, *parents):
                if candidate in allows:
                    return allows[candidate]
        return None

    def allowed_url(self, now: datetime, urls: Iterable[str]) -> str | None:
        """Return the first of *urls* that an allow entry covers."""
        patterns = [entry.value.lower() for entry in self.entries(now, "Url", "Allow")]
        return next((url for url in urls for pattern in patterns if _covers(pattern, url)), None)

    def allowed_file(self, now: datetime, hashes: Iterable[str]) -> str | None:
        """Return the first of *hashes* that an allow entry names."""
        allows = {entry.value.lower() for entry in self.entries(now, "FileHash", "Allow")}
        return next((value for value in hashes if value in allows), None)


def _covers(pattern: str, url: str) -> bool:
    """Return True if a Url entry covers *url*: `~` covers a domain and its subdomains, `*.` only its subdomains."""
    parts = urlsplit(url.lower())
    host, _, path = pattern.partition("/")
    found = parts.hostname or ""
    bare = host.lstrip("~*.")
    inside = found.endswith("." + bare)
    if host.startswith("~"):
        same = found == bare or inside
    elif host.startswith("*."):
        same = inside
    else:
        same = found == host
    if not same or path in ("", "*"):
        return same
    wanted, actual = "/" + path, parts.path + (f"?{parts.query}" if parts.query else "")
    return actual.startswith(wanted.rstrip("*")) if wanted.endswith("*") else actual.rstrip("/") == wanted.rstrip("/")
