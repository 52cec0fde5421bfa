"""
What Microsoft answers, as data: the result of a submission, and the tenant's settings as rows of cmdlets.

Both are read tolerantly and never raise. The words of a result are those of the Microsoft Graph beta enumerations
`submissionResultCategory`, `submissionResultDetail` and `longRunningOperationStatus`. What they amount to follows
Microsoft Learn, "Submission result definitions", and the tables of Microsoft Graph's "submissionResult resource type",
which described the details one by one until 2023; of details added since then, only the names are known. An unknown
word is kept as it came and amounts to nothing known.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any, TypeAlias

from backstop_contracts.events import Conclusion, DetectedFile

ORGANIZATION_OVERRIDES = frozenset({"allowedDueToOrganizationOverride", "allowedByPolicy"})
USER_OVERRIDES = frozenset({"allowedDueToUserOverride"})

_ANALYSING_STATUS = frozenset({"notStarted", "running"})
_ENDED_STATUS = frozenset({"failed", "skipped"})
_ANALYSING = frozenset({"beingAnalyzed", "underInvestigation", "willNotifyOnceDone"})
_BLOCKING = frozenset({"blockedByPolicy", "blockedDueToOrganizationOverride", "blockedDueToUserOverride"})
_LET_IN = frozenset({"junkMailRuleDisabled", "quarantineReleased"})

_VERDICTS: Mapping[Conclusion, frozenset[str]] = {
    Conclusion.THREAT: frozenset(
        {
            "brandImpersonation",
            "bulk",
            "domainImpersonation",
            "malware",
            "phishing",
            "spam",
            "spoof",
            "spoofedAllowed",
            "spoofedBlocked",
            "threatsFound",
            "userImpersonation",
        }
    ),
    Conclusion.CLEAN: frozenset({"notJunk", "noThreatsFound"}),
    Conclusion.SIMULATION: frozenset({"phishingSimulation"}),
}

_DETAILS: Mapping[Conclusion, frozenset[str]] = {
    Conclusion.THREAT: frozenset(
        {
            "associatedWithBrand",
            "badReclassifiedAsBad",
            "badReclassifiedAsBulk",
            "brandImpersonation",
            "domainImpersonation",
            "domainResembledYourOrganization",
            "endUserBeingImpersonated",
            "endUserBeingSpoofed",
            "goodReclassifiedAsBad",
            "goodReclassifiedAsBulk",
            "itemFoundBulk",
            "itemFoundMalicious",
            "itemFoundSpam",
            "outboundBulk",
            "outboundShouldBeBlocked",
            "spoofBlocked",
            "urlFileShouldBeBlocked",
            "userImpersonation",
            "zeroHourAutoPurgeBlocked",
            "zeroHourAutoPurgeQuarantineReleased",
        }
    ),
    Conclusion.CLEAN: frozenset(
        {
            "badReclassifiedAsGood",
            "goodReclassifiedAsGood",
            "itemFoundClean",
            "outboundShouldNotBeBlocked",
            "urlFileShouldNotBeBlocked",
            "zeroHourAutoPurgeAllowed",
        }
    ),
    Conclusion.SIMULATION: frozenset({"simulatedThreat", "partOfEducationCampaign"}),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What Microsoft said about one submission, in Microsoft's own words. Empty strings stand for absent words."""

    graph_id: str
    status: str
    verdict: str
    detail: str | None
    user_mailbox_settings: tuple[str, ...]
    detected_urls: tuple[str, ...]
    detected_files: tuple[DetectedFile, ...]
    simulation: bool


def read_result(entity: Mapping[str, Any]) -> Result:
    """
    Read an `emailThreatSubmission` as Microsoft Graph sent it; never raises.

    Whatever is absent, null or of an unexpected type counts as absent. `userMailboxSetting` is a flags enumeration,
    which Graph sends as one comma-separated string; a list is read as well.
    """
    result = entity.get("result")
    said: Mapping[str, Any] = result if isinstance(result, Mapping) else {}
    files = (_detected_file(file) for file in _items(said.get("detectedFiles")))
    return Result(
        graph_id=_word(entity.get("id")),
        status=_word(entity.get("status")),
        verdict=_word(said.get("category")),
        detail=_word(said.get("detail")) or None,
        user_mailbox_settings=_flags(said.get("userMailboxSetting")),
        detected_urls=tuple(filter(None, map(_word, _items(said.get("detectedUrls"))))),
        detected_files=tuple(file for file in files if file is not None),
        simulation=bool(entity.get("attackSimulationInfo")),
    )


def is_final(result: Result) -> bool:
    """
    Tell whether Microsoft has said its last word.

    A submission that Microsoft gave up (`failed`, `skipped`) is final and has no result. One that is `succeeded` but
    carries no verdict yet is not: to wait costs little, a verdict that comes a minute later would be lost for good.
    """
    if result.status in _ENDED_STATUS:
        return True
    if result.status in _ANALYSING_STATUS or result.verdict in _ANALYSING or result.detail in _ANALYSING:
        return False
    return result.verdict != ""


def conclude(result: Result) -> Conclusion:
    """
    Say Microsoft's verdict in one of four words. A simulation is one whatever else is said.

    Of mail that a setting allowed or blocked Microsoft says just that (Microsoft Learn, "Submission result
    definitions"), so whether it is a threat is not known: see `override_of`. The detail decides only where the verdict
    leaves it open.
    """
    if result.simulation or _look_up(_DETAILS, result.detail) is Conclusion.SIMULATION:
        return Conclusion.SIMULATION
    by_verdict = _look_up(_VERDICTS, result.verdict)
    return by_verdict if by_verdict is not Conclusion.UNKNOWN else _look_up(_DETAILS, result.detail)


def override_of(result: Result) -> str | None:
    """Tell whether a setting `allowed` or `blocked` the mail; None when Microsoft says more than that, or nothing."""
    if conclude(result) is not Conclusion.UNKNOWN:
        return None
    detail = result.detail or ""
    if result.verdict in ORGANIZATION_OVERRIDES | USER_OVERRIDES:
        return "allowed"
    if result.verdict in _BLOCKING or detail.startswith("blocked") or detail == "quarantineReleasedThenBlocked":
        return "blocked"
    return "allowed" if detail.startswith("allowed") or detail in _LET_IN else None


def _look_up(table: Mapping[Conclusion, frozenset[str]], word: str | None) -> Conclusion:
    return next((conclusion for conclusion, words in table.items() if word in words), Conclusion.UNKNOWN)


def _word(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _flags(value: object) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else _items(value)
    flags = dict.fromkeys(map(_word, words))
    return tuple(flag for flag in flags if flag not in {"", "none"})


def _detected_file(value: object) -> DetectedFile | None:
    if not isinstance(value, Mapping):
        return None
    file = DetectedFile(name=_word(value.get("fileName")) or None, sha256=_word(value.get("fileHash")) or None)
    return file if file.name or file.sha256 else None


# Settings. A list comes as strings, as objects or as one string, a switch as a boolean, "True" or "On".

Row: TypeAlias = Mapping[str, Any]
"""One row of a cmdlet's output, as Exchange Online's admin API sends it."""

Test: TypeAlias = Callable[[tuple[str, ...]], bool | None]
"""Whether the values of a rule's condition hold; None is unknown."""


@dataclass(frozen=True, slots=True)
class Query:
    """A cmdlet to read, with its parameters. A timedelta stands for the moment so long before the question."""

    cmdlet: str
    parameters: tuple[tuple[str, str | bool | int | timedelta], ...] = ()


Settings: TypeAlias = Mapping[Query, Sequence[Row]]
"""The rows of each cmdlet that could be read."""


def rows(settings: Settings, query: Query) -> tuple[Row, ...]:
    """Give the rows of a cmdlet; none when it could not be read."""
    return tuple(row for row in settings.get(query, ()) if isinstance(row, Mapping))


_TRUE = frozenset({"true", "$true", "on", "yes", "1"})
_FALSE = frozenset({"false", "$false", "off", "no", "0"})
_ENTRY_KEYS = ("Domain", "Address", "Sender", "Value", "Name")
_NESTING = 4


def text(row: Row, *properties: str) -> str:
    """Give the first of the properties that is a string with something in it, or an empty string."""
    values = (row.get(one) for one in properties)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")


def name(row: Row) -> str:
    """Give the name of a policy, rule or connector."""
    return text(row, "Name", "Identity")


def is_on(row: Row) -> bool:
    """Tell whether a rule or connector works, be it told by a state or by a switch."""
    return text(row, "State").lower() != "disabled" and flag(row.get("Enabled")) is not False


def flag(value: object) -> bool | None:
    """Read a switch; None when it is neither on nor off."""
    word = str(value).strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def number(value: object) -> int | None:
    """Read a whole number, sent as such or as a string."""
    match = re.fullmatch(r"\s*(-?[0-9]{1,9})\s*", str(value))
    return int(match[1]) if match else None


def entries(value: object) -> tuple[str, ...]:
    """Read the entries of a list: strings, objects with a domain or an address, or one string with separators."""
    return _flatten(re.split(r"[,;\n]", value) if isinstance(value, str) else value, _NESTING)


def _flatten(value: object, nesting: int) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if not nesting:
        return ()
    if isinstance(value, Mapping):
        parts = (_flatten(value.get(key), nesting - 1) for key in _ENTRY_KEYS)
        return next(filter(None, parts), ())
    return tuple(entry for part in _items(value) for entry in _flatten(part, nesting - 1))


def covers(entry: str, address: str | None, *, subdomains: bool = True) -> bool:
    """Tell whether a list entry, an address or a domain, covers an address. `*.` stands for subdomains alone."""
    entry, address = entry.strip().lower().removeprefix("smtp:"), (address or "").strip().lower()
    if "@" in entry.lstrip("*@"):
        return entry == address
    domain, base = address.rpartition("@")[2], entry.lstrip("*@.")
    if not domain or not base:
        return False
    if domain == base:
        return not entry.startswith("*.")
    return (subdomains or entry.startswith("*.")) and domain.endswith(f".{base}")


def is_network(entry: str) -> bool:
    """Tell whether an entry is an IP address or a network."""
    try:
        ip_network(entry.strip(), strict=False)
    except ValueError:
        return False
    return True


def within(entry: str, address: str | None) -> bool:
    """Tell whether an entry, an IP address, a range `a-b` or a network, holds an address."""
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
    Tell whether an allow entry covers a URL. Neither subpaths nor subdomains are implied.

    Source: Microsoft Learn, "Allow or block URLs using the Tenant Allow/Block List", URL syntax.
    """
    entry_host, entry_path = _split_url(entry.rstrip("~"))
    host, path = _split_url(url)
    base = entry_host.lstrip("~*.")
    same_site = host == base and not entry_host.startswith("*")
    below = entry_host.startswith(("~", "*")) and host.endswith(f".{base}")
    if not base or not (same_site or below):
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
    """Tell whether values mean one of the addresses; None when a value is a name, which cannot be resolved here."""
    if any(covers(value, address) for value in values for address in addresses):
        return True
    known = any(addresses) and all("@" in value or "." in value for value in values)
    return False if known else None


def cannot_tell(_values: tuple[str, ...]) -> None:
    """Stand for a condition on what is not known here."""


def _wanted(condition: object) -> tuple[str, ...]:
    """Read what a condition asks for: entries, a size, a switch that is on; nothing when the rule has none."""
    if flag(condition) is False:
        return ()
    return (str(condition),) if isinstance(condition, bool | int | float) else entries(condition)


def _outcomes(rule: Row, tests: Mapping[str, Test], prefix: str, classes: str) -> list[bool | None]:
    tried = [test(values) for key, test in tests.items() if (values := _wanted(rule.get(f"{prefix}{key}")))]
    return [*tried, *([None] if len(entries(rule.get(classes))) > len(tried) else [])]


def matches(rule: Row, tests: Mapping[str, Test]) -> bool | None:
    """
    Try a rule's conditions, which all have to hold, and its exceptions, of which none may; None is unknown.

    `Conditions` and `Exceptions` of the row name one class for each that the rule has. More of them than there are
    tests for means that the rule asks for something that is not known here.
    """
    conditions = _outcomes(rule, tests, "", "Conditions")
    exceptions = _outcomes(rule, tests, "ExceptIf", "Exceptions")
    if False in conditions or True in exceptions:
        return False
    return None if None in (*conditions, *exceptions) else True


def reaches(rule: Row, recipient: str) -> bool | None:
    """Tell whether the rule of a policy holds the recipient; None when that hangs on a group or a name."""
    return matches(
        rule,
        {
            "SentTo": lambda values: is_among(values, recipient),
            "RecipientDomainIs": lambda values: is_among(values, recipient),
            "SentToMemberOf": cannot_tell,
        },
    )


@dataclass(frozen=True, slots=True)
class Family:
    """The policies of one kind of protection. Their cmdlets are all named after one stem."""

    noun: str
    stem: str
    presets: Query
    has_default: bool = True

    @property
    def policies(self) -> Query:
        """The cmdlet that lists the policies."""
        return Query(f"Get-{self.stem}Policy")

    @property
    def rules(self) -> Query:
        """The cmdlet that lists the rules, which say whom custom policies apply to."""
        return Query(f"Get-{self.stem}Rule")

    @property
    def reads(self) -> tuple[Query, ...]:
        """What has to be read to know the policies that apply."""
        return self.policies, self.rules, self.presets

    @property
    def setter(self) -> str:
        """The cmdlet that changes a policy."""
        return f"Set-{self.stem}Policy"

    def in_force(self, settings: Settings, recipient: str) -> tuple[Row, ...]:
        """
        Give the policies that may apply to the recipient, the likeliest first.

        Only the first policy of a kind applies: Strict preset, Standard preset, custom by priority, then the default
        (Microsoft Learn, "Order and precedence of email protection"). Group membership is not known here, so a rule
        that hangs on a group may apply, and so may what comes after it.
        """
        policies = rows(settings, self.policies)
        found: list[Row] = []
        for rule in (*_by_priority(rows(settings, self.presets)), *_by_priority(rows(settings, self.rules))):
            link = text(rule, f"{self.stem}Policy")
            assigned = [policy for policy in policies if link in (name(policy), policy.get("Identity"))]
            reached = reaches(rule, recipient) if is_on(rule) else False
            if reached is not False:
                found += assigned
            if reached and assigned:
                return tuple(found)
        if self.rules not in settings:
            found += [policy for policy in policies if not is_preset(policy) and not _is_default(policy)]
        found += [policy for policy in policies if _is_default(policy)]
        return tuple(found) or (policies if self.has_default else ())


def is_built_in(policy: Row) -> bool:
    """Tell whether a policy is that of Built-in protection."""
    return flag(policy.get("IsBuiltInProtection")) is True or name(policy).startswith("Built-In Protection Policy")


def is_preset(policy: Row) -> bool:
    """Tell whether a policy belongs to a preset security policy, which nobody but Microsoft can change."""
    by_type = text(policy, "RecommendedPolicyType") in {"Standard", "Strict"}
    return by_type or is_built_in(policy) or "Preset Security Policy" in name(policy)


def _is_default(policy: Row) -> bool:
    by_name = name(policy) in {"Default", "Office365 AntiPhish Default"}
    return by_name or flag(policy.get("IsDefault")) is True or is_built_in(policy)


def _by_priority(rules: Iterable[Row]) -> list[Row]:
    return sorted(rules, key=lambda rule: ("strict" not in name(rule).lower(), number(rule.get("Priority")) or 0))
