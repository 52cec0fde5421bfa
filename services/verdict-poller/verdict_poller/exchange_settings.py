"""
The tenant's settings as rows of Exchange Online's cmdlets: read tolerantly, without ever raising.

Covers the values of rows, how entries match addresses, networks and URLs, how the conditions of a rule are evaluated,
and which policies apply to a recipient.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
"""One row of a cmdlet's output, as Exchange Online's admin API returns it."""

ConditionTest: TypeAlias = Callable[[tuple[str, ...]], bool | None]
"""Evaluates the values of a rule's condition. None means unknown."""


@dataclass(frozen=True, slots=True)
class Query:
    """A cmdlet that reads settings, with its parameters. A timedelta stands for the time that long before the call."""

    cmdlet: str
    parameters: tuple[tuple[str, str | bool | int | timedelta], ...] = ()


TenantSettings: TypeAlias = Mapping[Query, Sequence[Row]]
"""The rows of each cmdlet that could be read."""


def rows(settings: TenantSettings, query: Query) -> tuple[Row, ...]:
    """Return the rows of a cmdlet; none if it could not be read."""
    return tuple(row for row in settings.get(query, ()) if isinstance(row, Mapping))


_TRUE = frozenset({"true", "$true", "on", "yes", "1"})
_FALSE = frozenset({"false", "$false", "off", "no", "0"})
_ENTRY_KEYS = ("Domain", "Address", "Sender", "Value", "Name")
_MAX_NESTING = 4


def text(row: Row, *properties: str) -> str:
    """Return the first of the properties that is a non-empty string, or an empty string."""
    values = (row.get(key) for key in properties)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")


def name(row: Row) -> str:
    """Return the name of a policy, rule or connector."""
    return text(row, "Name", "Identity")


def is_on(row: Row) -> bool:
    """Return True if a rule or connector is enabled, by its state or by its switch."""
    return text(row, "State").lower() != "disabled" and flag(row.get("Enabled")) is not False


def flag(value: object) -> bool | None:
    """Read a switch, sent as a boolean, "True" or "On". Return None if it is neither on nor off."""
    word = str(value).strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def number(value: object) -> int | None:
    """Read a whole number, sent as a number or as a string."""
    match = re.fullmatch(r"\s*(-?[0-9]{1,9})\s*", str(value))
    return int(match[1]) if match else None


def entries(value: object) -> tuple[str, ...]:
    """Read the entries of a list, sent as strings, as objects with a domain or an address, or as one string."""
    return _flatten(re.split(r"[,;\n]", value) if isinstance(value, str) else value, _MAX_NESTING)


def _flatten(value: object, nesting: int) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if not nesting:
        return ()
    if isinstance(value, Mapping):
        parts = (_flatten(value.get(key), nesting - 1) for key in _ENTRY_KEYS)
        return next(filter(None, parts), ())
    items = value if isinstance(value, list | tuple) else ()
    return tuple(entry for item in items for entry in _flatten(item, nesting - 1))


def covers(entry: str, address: str | None, *, subdomains: bool = True) -> bool:
    """Return True if a list entry, an address or a domain, covers *address*. `*.` matches subdomains only."""
    entry, address = entry.strip().lower().removeprefix("smtp:"), (address or "").strip().lower()
    if "@" in entry.lstrip("*@"):
        return entry == address
    domain, base = address.rpartition("@")[2], entry.lstrip("*@.")
    if not domain or not base:
        return False
    if domain == base:
        return not entry.startswith("*.")
    return (subdomains or entry.startswith("*.")) and domain.endswith(f".{base}")


def is_ip_or_network(entry: str) -> bool:
    """Return True if an entry is an IP address or a network."""
    try:
        ip_network(entry.strip(), strict=False)
    except ValueError:
        return False
    return True


def within(entry: str, address: str | None) -> bool:
    """Return True if an entry, an IP address, a range `a-b` or a network, contains *address*."""
    try:
        ip = ip_address((address or "").strip())
        first, dash, last = entry.partition("-")
        if not dash:
            return ip in ip_network(entry.strip(), strict=False)
        low, high = ip_address(first.strip()), ip_address(last.strip())
    except ValueError:
        return False
    return low.version == ip.version == high.version and int(low) <= int(ip) <= int(high)


def covers_url(entry: str, url: str) -> bool:
    """
    Return True if an allow entry covers a URL. Subpaths and subdomains are not implied.

    Source: Microsoft Learn, "Allow or block URLs using the Tenant Allow/Block List", URL syntax.
    """
    entry_host, entry_path = _split_url(entry.rstrip("~"))
    host, path = _split_url(url)
    base = entry_host.lstrip("~*.")
    is_same_host = host == base and not entry_host.startswith("*")
    is_subdomain = entry_host.startswith(("~", "*")) and host.endswith(f".{base}")
    if not base or not (is_same_host or is_subdomain):
        return False
    if entry_path.endswith("*"):
        return path.startswith(entry_path[:-1]) and path != entry_path[:-1]
    return entry.endswith("~") or path == entry_path


def _split_url(url: str) -> tuple[str, str]:
    rest = url.strip().lower()
    rest = rest.partition("://")[2] or rest
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    host = re.sub(r":[0-9]+$", "", authority.rpartition("@")[2])
    return host, rest[len(authority) :].removeprefix("/")


def is_among(values: Iterable[str], *addresses: str | None) -> bool | None:
    """Return True if a value covers one of the addresses; None if a value is a name, which cannot be resolved here."""
    if any(covers(value, address) for value in values for address in addresses):
        return True
    is_decidable = any(addresses) and all("@" in value or "." in value for value in values)
    return False if is_decidable else None


def is_unknown(_values: tuple[str, ...]) -> None:
    """Evaluate a condition on something that is not known here: always None."""


def _condition_values(condition: object) -> tuple[str, ...]:
    """Return the values of a condition: entries, a size, a switch that is on; nothing if the rule does not use it."""
    if flag(condition) is False:
        return ()
    return (str(condition),) if isinstance(condition, bool | int | float) else entries(condition)


def _outcomes(rule: Row, tests: Mapping[str, ConditionTest], prefix: str, classes: str) -> list[bool | None]:
    used = {key: values for key in tests if (values := _condition_values(rule.get(f"{prefix}{key}")))}
    outcomes = [tests[key](values) for key, values in used.items()]
    return [*outcomes, *([None] if len(entries(rule.get(classes))) > len(outcomes) else [])]


def matches(rule: Row, tests: Mapping[str, ConditionTest]) -> bool | None:
    """
    Return True if all of a rule's conditions hold and none of its exceptions does; None means unknown.

    `Conditions` and `Exceptions` of the row name one class for each condition that the rule uses. More classes than
    evaluated conditions mean that the rule depends on something that is not known here.
    """
    conditions = _outcomes(rule, tests, "", "Conditions")
    exceptions = _outcomes(rule, tests, "ExceptIf", "Exceptions")
    if False in conditions or True in exceptions:
        return False
    return None if None in (*conditions, *exceptions) else True


def reaches(rule: Row, recipient: str) -> bool | None:
    """Return True if a policy's rule applies to the recipient; None if that depends on a group or a name."""
    return matches(
        rule,
        {
            "SentTo": lambda values: is_among(values, recipient),
            "RecipientDomainIs": lambda values: is_among(values, recipient),
            "SentToMemberOf": is_unknown,
        },
    )


@dataclass(frozen=True, slots=True)
class Family:
    """The policies of one kind of protection. The names of their cmdlets share one stem."""

    noun: str
    stem: str
    presets: Query
    has_default: bool = True

    @property
    def policies(self) -> Query:
        """The cmdlet that reads the policies."""
        return Query(f"Get-{self.stem}Policy")

    @property
    def rules(self) -> Query:
        """The cmdlet that reads the rules, which assign custom policies to recipients."""
        return Query(f"Get-{self.stem}Rule")

    @property
    def reads(self) -> tuple[Query, ...]:
        """The cmdlets that have to be read to determine which policies apply."""
        return self.policies, self.rules, self.presets

    @property
    def setter(self) -> str:
        """The cmdlet that changes a policy."""
        return f"Set-{self.stem}Policy"

    def in_force(self, settings: TenantSettings, recipient: str) -> tuple[Row, ...]:
        """
        Return the policies that may apply to the recipient, the likeliest first.

        Only the first policy of a kind applies: Strict preset, Standard preset, custom by priority, then the default
        (Microsoft Learn, "Order and precedence of email protection"). Group membership is not known here, so a rule
        for a group may apply, and so may the policies after it.
        """
        policies = rows(settings, self.policies)
        found: list[Row] = []
        for rule in (*_by_priority(rows(settings, self.presets)), *_by_priority(rows(settings, self.rules))):
            policy_name = text(rule, f"{self.stem}Policy")
            assigned = [policy for policy in policies if policy_name in (name(policy), policy.get("Identity"))]
            applies = reaches(rule, recipient) if is_on(rule) else False
            if applies is not False:
                found += assigned
            if applies and assigned:
                return tuple(found)
        if self.rules not in settings:
            found += [policy for policy in policies if not is_preset(policy) and not _is_default(policy)]
        found += [policy for policy in policies if _is_default(policy)]
        return tuple(found) or (policies if self.has_default else ())


def is_built_in(policy: Row) -> bool:
    """Return True if a policy is the one of Built-in protection."""
    return flag(policy.get("IsBuiltInProtection")) is True or name(policy).startswith("Built-In Protection Policy")


def is_preset(policy: Row) -> bool:
    """Return True if a policy belongs to a preset security policy, which only Microsoft can change."""
    by_type = text(policy, "RecommendedPolicyType") in {"Standard", "Strict"}
    return by_type or is_built_in(policy) or "Preset Security Policy" in name(policy)


def _is_default(policy: Row) -> bool:
    by_name = name(policy) in {"Default", "Office365 AntiPhish Default"}
    return by_name or flag(policy.get("IsDefault")) is True or is_built_in(policy)


def _by_priority(rules: Iterable[Row]) -> list[Row]:
    return sorted(rules, key=lambda rule: ("strict" not in name(rule).lower(), number(rule.get("Priority")) or 0))
