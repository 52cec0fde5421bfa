"""A delivered message as the verdict rules see it, and whether its senders match a condition."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from simulator.mail import Mail
from simulator.tenant import Mailbox, Tenant


@dataclass(frozen=True)
class Delivery:
    """A delivered message under analysis: recipient, tenant, time of submission, and who submitted it."""

    mail: Mail
    recipient: str
    tenant: Tenant
    now: datetime
    source: Literal["administrator", "user"] = "administrator"

    @property
    def senders(self) -> tuple[str, ...]:
        """The addresses that count as sender."""
        return tuple(dict.fromkeys(a for a in (self.mail.sender, self.mail.envelope_sender) if a))

    def rows(self, noun: str) -> list[dict[str, Any]]:
        """Return what `Get-<noun>` answers in the tenant."""
        return self.tenant.rows(f"Get-{noun}") or []

    @property
    def mailbox(self) -> Mailbox | None:
        """The recipient's mailbox."""
        return self.tenant.mailbox(self.recipient)


def values_of(row: dict[str, Any], name: str) -> list[str]:
    """Return a property that may be absent, a single value or a list, lower-cased."""
    value = row.get(name)
    values: Iterable[Any] = value if isinstance(value, list) else [] if value is None else [value]
    return [str(item).lower() for item in values]


def sent_from(delivery: Delivery, domains: list[str]) -> bool:
    """Return True if a sender's domain is, or lies under, one of *domains*; no domains match every sender."""
    found = [address.rpartition("@")[2] for address in delivery.senders]
    return not domains or any(d == domain or d.endswith("." + domain) for d in found for domain in domains)


def connected_from(delivery: Delivery, ranges: list[str]) -> bool:
    """Return True if the connecting address lies in one of *ranges*: single addresses, CIDR or `a-b`."""
    try:
        address = ipaddress.ip_address(delivery.mail.sender_ip)
    except ValueError:
        return False
    return any(_in_range(address, text) for text in ranges)


def _in_range(address: ipaddress.IPv4Address | ipaddress.IPv6Address, text: str) -> bool:
    first, dash, last = text.partition("-")
    try:
        if dash:
            low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
            return low.version == address.version == high.version and int(low) <= int(address) <= int(high)
        return address in ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
