"""What is known about a message, and how findings about it are composed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

from backstop_contracts.events import Conclusion, Message, Recommendation
from verdict_poller.exchange_settings import Family, Query, Row, TenantSettings, rows
from verdict_poller.powershell import Removed, powershell, readable
from verdict_poller.submission_result import ORGANIZATION_OVERRIDES, USER_OVERRIDES, Result, conclude, override_of


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one message. A query that is missing from `settings` could not be read."""

    result: Result
    message: Message
    recipient: str
    settings: TenantSettings

    def rows(self, query: Query) -> tuple[Row, ...]:
        """Return the rows of a cmdlet; none if it could not be read."""
        return rows(self.settings, query)

    def in_force(self, family: Family) -> tuple[Row, ...]:
        """Return the policies of a family that may apply to the recipient."""
        return family.in_force(self.settings, self.recipient)


class Strength(IntEnum):
    """How directly a cause is shown; smaller is stronger."""

    STATED = 0  # Microsoft's result names it.
    SHOWN = 1  # A header, or a setting that names this message, shows it.
    REMARK = 2  # It concerns the submission rather than the delivery of the message.
    CONTRIBUTING = 3  # A setting below Microsoft's recommendation made it easier.


class Hit(NamedTuple):
    """One piece of evidence for a cause, and the change that fixes it."""

    evidence: str
    recommendation: Recommendation


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of a rule. It is exact if it names the entry, rule or setting that let the message through."""

    strength: Strength
    evidence: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]
    exact: bool = False


def make_hit(
    evidence: str, action: str, setting: str | None = None, policy: str = "", cmdlet: str | None = None
) -> Hit:
    """Compose a hit. An empty policy counts as none."""
    change = Recommendation(action=action, setting=setting, policy=readable(policy) or None, cmdlet=cmdlet)
    return Hit(evidence, change)


def listed_entry_hit(setter: str, policy: str, setting: str, entry: str, why: str) -> Hit:
    """Compose a hit for a list entry that should be removed."""
    place = f"{setting} of '{readable(policy)}'"
    cmdlet = powershell(setter, Identity=policy, **{setting: Removed(entry)})
    return make_hit(
        f"setting {place} lists {readable(entry)}",
        f"Remove {readable(entry)} from {place}: {why}.",
        setting,
        policy,
        cmdlet,
    )


def wrong_switch_hit(setter: str, policy: str, setting: str, why: str, *, to: bool) -> Hit:
    """Compose a hit for a switch that should be turned on or off."""
    place = f"{setting} of '{readable(policy)}'"
    cmdlet = powershell(setter, Identity=policy, **{setting: to})
    evidence = f"setting {place} is {'off' if to else 'on'}"
    return make_hit(evidence, f"Turn {'on' if to else 'off'} {place}: {why}.", setting, policy, cmdlet)


# What the result and the headers show.


class Kind(StrEnum):
    """The kinds of threat that Microsoft's policies distinguish."""

    PHISHING = "phishing"
    MALWARE = "malware"
    SPAM = "spam"
    BULK = "bulk"


PHISHING, MALWARE = frozenset({Kind.PHISHING}), frozenset({Kind.MALWARE})
SPAM, BULK = frozenset({Kind.SPAM}), frozenset({Kind.BULK})

_THREAT_WORDS = frozenset({"threatsFound", "goodReclassifiedAsBad", "badReclassifiedAsBad", "itemFoundMalicious"})
BULK_WORDS = frozenset({"bulk", "itemFoundBulk", "goodReclassifiedAsBulk", "badReclassifiedAsBulk", "outboundBulk"})
IMPERSONATION_WORDS = {
    "domainImpersonation": "domain",
    "domainResembledYourOrganization": "domain",
    "userImpersonation": "user",
    "endUserBeingImpersonated": "user",
    "brandImpersonation": "brand",
    "associatedWithBrand": "brand",
}
_KINDS_BY_WORD: Mapping[str, frozenset[Kind]] = {
    **dict.fromkeys(("phishing", "spoof", "spoofedAllowed", "endUserBeingSpoofed", *IMPERSONATION_WORDS), PHISHING),
    **dict.fromkeys(("spam", "itemFoundSpam"), SPAM),
    **dict.fromkeys(BULK_WORDS, BULK),
    "malware": MALWARE,
}
_KINDS_BY_CATEGORY: Mapping[str, frozenset[Kind]] = {
    **dict.fromkeys(("PHSH", "HPHSH", "HPHISH", "SPOOF", "DIMP", "UIMP", "GIMP", "BIMP", "INTOS"), PHISHING),
    **dict.fromkeys(("MALW", "AMP", "SAP", "FTBP"), MALWARE),
    **dict.fromkeys(("SPM", "HSPM"), SPAM),
    "BULK": BULK,
}


def words_of(result: Result) -> frozenset[str]:
    """Return the words of the result: its verdict and its detail."""
    return frozenset({result.verdict, result.detail or ""})


def upper_case(value: str | None) -> str:
    """Return a header's value in upper case, or an empty string."""
    return (value or "").strip().upper()


def kinds_of(result: Result, message: Message) -> frozenset[Kind]:
    """Return the kinds of threat that the result and the headers indicate; empty if they indicate none."""
    kinds = _KINDS_BY_CATEGORY.get(upper_case(message.delivery.cat), frozenset())
    for word in words_of(result):
        kinds |= _KINDS_BY_WORD.get(word, frozenset())
    if result.detected_files:
        kinds |= MALWARE
    if result.detected_urls or (words_of(result) & _THREAT_WORDS and not kinds):
        kinds |= PHISHING
    return kinds


def is_known_threat(result: Result, message: Message) -> bool:
    """Return True if the kind of threat is known, and Microsoft reports it or an override that allowed the message."""
    is_suspicious = conclude(result) is Conclusion.THREAT or override_of(result) == "allowed"
    return is_suspicious and bool(kinds_of(result, message))


def is_override(result: Result) -> bool:
    """Return True if Microsoft reports an override, the organization's or the user's."""
    by_verdict = result.verdict in ORGANIZATION_OVERRIDES | USER_OVERRIDES
    return by_verdict or (result.detail or "").startswith("allowed")


def is_unnamed_override(result: Result) -> bool:
    """Return True if Microsoft reports an override of the organization without naming it."""
    return result.verdict in ORGANIZATION_OVERRIDES and (result.detail or "none") in {"none", "unknownFutureValue"}


def _lacks_override_headers(result: Result, message: Message) -> bool:
    """Return True if the message lacks the headers that would name an override, so that only settings can show it."""
    delivery = message.delivery
    has_headers = delivery.sfv or delivery.ipv or delivery.cat
    return conclude(result) is Conclusion.THREAT and not has_headers and not is_override(result)


@dataclass(frozen=True, slots=True)
class Sign:
    """What identifies a cause: words of the result, a filter verdict (SFV) or an IP verdict (IPV)."""

    words: frozenset[str] = frozenset()
    sfv: str = ""
    ipv: str = ""

    def is_stated(self, result: Result) -> bool:
        """Return True if Microsoft's result names the cause."""
        return bool(self.words & words_of(result))

    def headers(self, message: Message) -> tuple[str, ...]:
        """Return the headers of the message that name the cause."""
        delivery = message.delivery
        shown = {f"header SFV:{self.sfv}": (self.sfv, delivery.sfv), f"header IPV:{self.ipv}": (self.ipv, delivery.ipv)}
        return tuple(header for header, (sign, stamp) in shown.items() if sign and sign == upper_case(stamp))

    def appears(self, result: Result, message: Message) -> bool:
        """Return True if the result or the headers name the cause."""
        return self.is_stated(result) or bool(self.headers(message))

    def suspects(self, result: Result, message: Message) -> bool:
        """Return True if the cause is named, or if an override that nothing names may be this one."""
        return self.appears(result, message) or is_unnamed_override(result) or _lacks_override_headers(result, message)


def _result_lines(result: Result) -> tuple[str, ...]:
    verdict = f"result {readable(result.verdict)}" if result.verdict else "no result"
    detail = (f"result detail {readable(result.detail)}",) if result.detail not in {None, "none"} else ()
    return (verdict, *detail)


def finding_of(
    evidence: Evidence, hits: Sequence[Hit], fallback: Hit | None, *, stated: bool, headers: Sequence[str] = ()
) -> Finding | None:
    """
    Compose the finding of a cause, or None if nothing shows that cause.

    The result may state it; headers, or *hits* among the settings, may show it. Without hits, *fallback* is used.
    """
    shown = hits or ([fallback] if fallback and (stated or headers) else [])
    if not shown:
        return None
    return Finding(
        Strength.STATED if stated else Strength.SHOWN,
        (*_result_lines(evidence.result), *headers, *(hit.evidence for hit in shown)),
        tuple(hit.recommendation for hit in shown),
        exact=bool(hits),
    )


def finding_of_sign(evidence: Evidence, sign: Sign, hits: Sequence[Hit], fallback: Hit) -> Finding | None:
    """Compose the finding of a cause that a sign in the result or the headers identifies."""
    headers = sign.headers(evidence.message)
    return finding_of(evidence, hits, fallback, stated=sign.is_stated(evidence.result), headers=headers)


def contributing_finding(hits: Sequence[Hit]) -> Finding | None:
    """Compose the finding of a contributing cause; None without hits."""
    if not hits:
        return None
    shown, changes = tuple(hit.evidence for hit in hits), tuple(hit.recommendation for hit in hits)
    return Finding(Strength.CONTRIBUTING, shown, changes, exact=True)


def advising_finding(evidence: Evidence, strength: Strength, *actions: str) -> Finding:
    """Compose a finding that is based on the result alone."""
    return Finding(strength, _result_lines(evidence.result), tuple(Recommendation(action=action) for action in actions))


def where_to_look(evidence: Evidence, query: Query, action: str, setting: str | None = None) -> Hit:
    """Compose a hit that says where to look when no setting shows the cause."""
    was_read = query in evidence.settings
    why = f"{query.cmdlet} shows no setting that explains it now" if was_read else f"{query.cmdlet} could not be read"
    return make_hit(why, action, setting)
