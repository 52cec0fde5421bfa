"""
What finders are made of: evidence and findings, their texts and commands, signs of a cause, recommended settings.

Weak is what falls below level Standard of Microsoft Learn, "Recommended settings for EOP and Microsoft Defender for
Office 365 security". Nobody but Microsoft can change the policies of the preset security policies, so those are never
held against a tenant.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple, TypeAlias

from backstop_contracts.events import Conclusion, Message, Recommendation
from verdict_poller.results import (
    ORGANIZATION_OVERRIDES,
    USER_OVERRIDES,
    Family,
    Query,
    Result,
    Row,
    Settings,
    conclude,
    flag,
    is_preset,
    name,
    number,
    override_of,
    rows,
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one mail. A query that is missing from `settings` could not be read."""

    result: Result
    message: Message
    recipient: str
    settings: Settings

    def rows(self, query: Query) -> tuple[Row, ...]:
        """Give the rows of a cmdlet; none when it could not be read."""
        return rows(self.settings, query)

    def in_force(self, family: Family) -> tuple[Row, ...]:
        """Give the policies of a family that may apply to the recipient."""
        return family.in_force(self.settings, self.recipient)


class Strength(IntEnum):
    """How directly something shows a cause; smaller is stronger."""

    STATED = 0  # Microsoft's result names it.
    SHOWN = 1  # A header, or a setting that names this very mail, shows it.
    REMARK = 2  # It is about the submission rather than about the mail's way in.
    CONTRIBUTING = 3  # A setting below Microsoft's recommendation made it easier.


class Hit(NamedTuple):
    """What shows a cause, and the change that mends it."""

    evidence: str
    recommendation: Recommendation


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found. It is exact when it names the entry, rule or setting that did it."""

    strength: Strength
    evidence: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]
    exact: bool = False


# Text for people and for PowerShell. Names and entries can hold what an attacker chose.

_SINGLE_QUOTES = str.maketrans({quote: quote * 2 for quote in "'\u2018\u2019\u201a\u201b"})
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_LONGEST = 200


class Removed(NamedTuple):
    """An entry to take out of a list: `@{Remove='...'}`."""

    entry: str


Value: TypeAlias = str | bool | int | Removed


def powershell(cmdlet: str, **parameters: Value) -> str | None:
    """
    Compose a cmdlet that can be pasted into PowerShell; None when a value is empty or holds invisible characters.

    In a single-quoted string PowerShell takes nothing but a closing quote as special, and takes the typographic
    quotes U+2018 to U+201B for one too (PowerShell's own `EscapeSingleQuotedStringContent`): all are doubled.
    """
    words = [cmdlet]
    for parameter, value in parameters.items():
        literal = _literal(value)
        if literal is None:
            return None
        words += [f"-{parameter}", literal]
    return " ".join(words)


def _literal(value: Value) -> str | None:
    if isinstance(value, Removed):
        entry = _literal(value.entry)
        return entry and f"@{{Remove={entry}}}"
    if isinstance(value, bool):
        return "$true" if value else "$false"
    if isinstance(value, int):
        return str(value)
    if not value or any(map(_is_invisible, value)):
        return None
    return f"'{value.translate(_SINGLE_QUOTES)}'"


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE


def readable(value: object) -> str:
    """Make a value fit for one line that people read: no invisible characters, not endless."""
    whole = str(value)
    cut = whole if len(whole) <= _LONGEST else f"{whole[: _LONGEST - 3]}..."
    return "".join("\ufffd" if _is_invisible(character) else character for character in cut)


def make_hit(
    evidence: str, action: str, setting: str | None = None, policy: str = "", cmdlet: str | None = None
) -> Hit:
    """Compose a hit from its texts. An empty policy counts as none."""
    change = Recommendation(action=action, setting=setting, policy=readable(policy) or None, cmdlet=cmdlet)
    return Hit(evidence, change)


def listed_entry(setter: str, policy: str, setting: str, entry: str, why: str) -> Hit:
    """Compose a hit: an entry of a list, to be removed from it."""
    place = f"{setting} of '{readable(policy)}'"
    cmdlet = powershell(setter, Identity=policy, **{setting: Removed(entry)})
    return make_hit(
        f"setting {place} lists {readable(entry)}",
        f"Remove {readable(entry)} from {place}: {why}.",
        setting,
        policy,
        cmdlet,
    )


def wrong_switch(setter: str, policy: str, setting: str, why: str, *, to: bool) -> Hit:
    """Compose a hit: a switch, to be turned on or off."""
    place = f"{setting} of '{readable(policy)}'"
    cmdlet = powershell(setter, Identity=policy, **{setting: to})
    evidence = f"setting {place} is {'off' if to else 'on'}"
    return make_hit(evidence, f"Turn {'on' if to else 'off'} {place}: {why}.", setting, policy, cmdlet)


# What result and headers say.


class Kind(StrEnum):
    """The kinds of threat that Microsoft's policies tell apart."""

    PHISHING = "phishing"
    MALWARE = "malware"
    SPAM = "spam"
    BULK = "bulk"


PHISHING, MALWARE = frozenset({Kind.PHISHING}), frozenset({Kind.MALWARE})
SPAM, BULK = frozenset({Kind.SPAM}), frozenset({Kind.BULK})

_FOUND_BAD = frozenset({"threatsFound", "goodReclassifiedAsBad", "badReclassifiedAsBad", "itemFoundMalicious"})
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
    """Give the words of the result: its verdict and its detail."""
    return frozenset({result.verdict, result.detail or ""})


def upper(value: str | None) -> str:
    """Give a header's value in capitals, or an empty string."""
    return (value or "").strip().upper()


def kinds_of(result: Result, message: Message) -> frozenset[Kind]:
    """Tell what kind of threat the mail is; empty when neither result nor headers say."""
    kinds = _KINDS_BY_CATEGORY.get(upper(message.delivery.cat), frozenset())
    for word in words_of(result):
        kinds |= _KINDS_BY_WORD.get(word, frozenset())
    if result.detected_files:
        kinds |= MALWARE
    if result.detected_urls or (words_of(result) & _FOUND_BAD and not kinds):
        kinds |= PHISHING
    return kinds


def is_known_threat(result: Result, message: Message) -> bool:
    """Tell whether the mail is a threat of a known kind, or was let in as one may be."""
    suspicious = conclude(result) is Conclusion.THREAT or override_of(result) == "allowed"
    return suspicious and bool(kinds_of(result, message))


def is_override(result: Result) -> bool:
    """Tell whether Microsoft reports an override, the organization's or the user's."""
    by_verdict = result.verdict in ORGANIZATION_OVERRIDES | USER_OVERRIDES
    return by_verdict or (result.detail or "").startswith("allowed")


def is_unnamed(result: Result) -> bool:
    """Tell whether Microsoft reports an override of the organization without saying which."""
    return result.verdict in ORGANIZATION_OVERRIDES and (result.detail or "none") in {"none", "unknownFutureValue"}


def _is_unmarked(result: Result, message: Message) -> bool:
    """Tell whether the mail lacks the headers that would name an override, so that only settings can."""
    delivery = message.delivery
    marked = delivery.sfv or delivery.ipv or delivery.cat
    return conclude(result) is Conclusion.THREAT and not marked and not is_override(result)


@dataclass(frozen=True, slots=True)
class Sign:
    """What names a cause beyond doubt: a word of the result, a filter verdict (SFV) or an IP verdict (IPV)."""

    words: frozenset[str] = frozenset()
    sfv: str = ""
    ipv: str = ""

    def is_stated(self, result: Result) -> bool:
        """Tell whether Microsoft's result names the cause."""
        return bool(self.words & words_of(result))

    def headers(self, message: Message) -> tuple[str, ...]:
        """Give the headers of the mail that name the cause."""
        delivery = message.delivery
        shown = {f"header SFV:{self.sfv}": (self.sfv, delivery.sfv), f"header IPV:{self.ipv}": (self.ipv, delivery.ipv)}
        return tuple(header for header, (sign, stamp) in shown.items() if sign and sign == upper(stamp))

    def appears(self, result: Result, message: Message) -> bool:
        """Tell whether result or headers name the cause."""
        return self.is_stated(result) or bool(self.headers(message))

    def suspects(self, result: Result, message: Message) -> bool:
        """Tell whether the cause is named, or an unnamed override of the organization may be this one."""
        return self.appears(result, message) or is_unnamed(result) or _is_unmarked(result, message)


def _said(result: Result) -> tuple[str, ...]:
    verdict = f"result {readable(result.verdict)}" if result.verdict else "no result"
    detail = (f"result detail {readable(result.detail)}",) if result.detail not in {None, "none"} else ()
    return (verdict, *detail)


def weigh(
    evidence: Evidence, hits: Sequence[Hit], look: Hit | None, *, stated: bool, headers: Sequence[str] = ()
) -> Finding | None:
    """
    Weigh a cause: stated by the result, shown by headers, or else worth telling only if a setting names the mail.

    `look` is what to say and recommend when the settings do not show the culprit.
    """
    shown = hits or ([look] if look and (stated or headers) else [])
    if not shown:
        return None
    return Finding(
        Strength.STATED if stated else Strength.SHOWN,
        (*_said(evidence.result), *headers, *(hit.evidence for hit in shown)),
        tuple(hit.recommendation for hit in shown),
        exact=bool(hits),
    )


def weigh_sign(evidence: Evidence, sign: Sign, hits: Sequence[Hit], look: Hit) -> Finding | None:
    """Weigh a cause by its sign in result and headers."""
    headers = sign.headers(evidence.message)
    return weigh(evidence, hits, look, stated=sign.is_stated(evidence.result), headers=headers)


def contribute(hits: Sequence[Hit]) -> Finding | None:
    """Give the hits as a contributing cause; None without hits."""
    if not hits:
        return None
    shown, changes = tuple(hit.evidence for hit in hits), tuple(hit.recommendation for hit in hits)
    return Finding(Strength.CONTRIBUTING, shown, changes, exact=True)


def advise(evidence: Evidence, strength: Strength, *actions: str) -> Finding:
    """Compose a finding that rests on the result alone."""
    return Finding(strength, _said(evidence.result), tuple(Recommendation(action=action) for action in actions))


def where_to_look(evidence: Evidence, query: Query, action: str, setting: str | None = None) -> Hit:
    """Compose a hit for a setting that could not be shown: it says where to look."""
    known = query in evidence.settings
    why = f"{query.cmdlet} shows no setting that explains it now" if known else f"{query.cmdlet} could not be read"
    return make_hit(why, action, setting)


# Settings that Microsoft recommends.

EOP_PRESETS = Query("Get-EOPProtectionPolicyRule")
MDO_PRESETS = Query("Get-ATPProtectionPolicyRule")
ANTI_SPAM = Family("anti-spam policy", "HostedContentFilter", EOP_PRESETS)
ANTI_PHISHING = Family("anti-phishing policy", "AntiPhish", EOP_PRESETS)
ANTI_MALWARE = Family("anti-malware policy", "MalwareFilter", EOP_PRESETS)
SAFE_LINKS = Family("Safe Links policy", "SafeLinks", MDO_PRESETS, has_default=False)
SAFE_ATTACHMENTS = Family("Safe Attachments policy", "SafeAttachment", MDO_PRESETS, has_default=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """
    A setting, its recommended value, and what else is good enough.

    `kinds` are the threats that it matters for; `categories` (header CAT) the mail that it decides about.
    """

    name: str
    value: bool | int | str
    also: frozenset[str] = frozenset()
    kinds: frozenset[Kind] = frozenset()
    categories: frozenset[str] = frozenset()
    at_least: bool = False

    def is_below(self, value: object) -> bool:
        """Tell whether a policy's value is below the recommendation. An absent setting is not."""
        if isinstance(self.value, bool):
            return flag(value) is (not self.value)
        if isinstance(self.value, int):
            amount = number(value)
            return amount is not None and (amount < self.value if self.at_least else amount > self.value)
        enough = {word.lower() for word in (self.value, *self.also)}
        return isinstance(value, str) and value.strip().lower() not in {"", *enough}


_DELETE, _STRICTER = frozenset({"Delete"}), frozenset({"Quarantine", "Delete"})

ZAP_SETTINGS = (
    (ANTI_SPAM, Setting("PhishZapEnabled", value=True, kinds=PHISHING)),
    (ANTI_SPAM, Setting("SpamZapEnabled", value=True, kinds=SPAM)),
    (ANTI_MALWARE, Setting("ZapEnabled", value=True, kinds=MALWARE)),
)
ACTION_SETTINGS = (
    Setting("PhishSpamAction", "Quarantine", _DELETE, PHISHING, frozenset({"PHSH"})),
    Setting("HighConfidencePhishAction", "Quarantine", _DELETE, PHISHING, frozenset({"HPHSH", "HPHISH"})),
    Setting("HighConfidenceSpamAction", "Quarantine", _DELETE, SPAM, frozenset({"HSPM"})),
    Setting("SpamAction", "MoveToJmf", _STRICTER, SPAM, frozenset({"SPM"})),
    Setting("BulkSpamAction", "MoveToJmf", _STRICTER, BULK, frozenset({"BULK"})),
)
BULK_SETTINGS = (Setting("BulkThreshold", 6), Setting("MarkAsSpamBulkMail", "On"))
SPOOF_SETTINGS = (Setting("EnableSpoofIntelligence", value=True),)
DMARC_SETTINGS = (
    Setting("HonorDmarcPolicy", value=True),
    Setting("DmarcQuarantineAction", "Quarantine"),
    Setting("DmarcRejectAction", "Reject", frozenset({"Quarantine"})),
)
IMPERSONATION_SETTINGS: Mapping[str, tuple[Setting, ...]] = {
    "domain": (
        Setting("EnableOrganizationDomainsProtection", value=True),
        Setting("EnableTargetedDomainsProtection", value=True),
        Setting("TargetedDomainProtectionAction", "Quarantine", _DELETE),
    ),
    "user": (
        Setting("EnableTargetedUserProtection", value=True),
        Setting("TargetedUserProtectionAction", "Quarantine", _DELETE),
    ),
    "mailbox intelligence": (
        Setting("EnableMailboxIntelligence", value=True),
        Setting("EnableMailboxIntelligenceProtection", value=True),
        Setting("MailboxIntelligenceProtectionAction", "MoveToJmf", _STRICTER),
    ),
    "brand": (Setting("PhishThresholdLevel", 3, at_least=True),),
}
DETONATION_SETTINGS: Mapping[Family, tuple[Setting, ...]] = {
    SAFE_LINKS: (
        Setting("EnableSafeLinksForEmail", value=True),
        Setting("ScanUrls", value=True),
        Setting("DeliverMessageAfterScan", value=True),
        Setting("AllowClickThrough", value=False),
    ),
    SAFE_ATTACHMENTS: (
        Setting("Enable", value=True),
        Setting("Action", "Block", frozenset({"DynamicDelivery", "Replace"})),
    ),
}
ANALYZED_SETTINGS = (
    (ANTI_MALWARE, Setting("EnableFileFilter", value=True, kinds=MALWARE)),
    (ANTI_PHISHING, Setting("PhishThresholdLevel", 3, kinds=PHISHING, at_least=True)),
    (ANTI_PHISHING, Setting("EnableMailboxIntelligenceProtection", value=True, kinds=PHISHING)),
    (ANTI_PHISHING, Setting("EnableSpoofIntelligence", value=True, kinds=PHISHING)),
    (ANTI_PHISHING, Setting("HonorDmarcPolicy", value=True, kinds=PHISHING)),
)


def weak_settings(evidence: Evidence, family: Family, settings: Iterable[Setting]) -> list[Hit]:
    """Give the settings below the recommendation in the policies that may apply to the recipient."""
    return [
        weakness(family, name(policy), setting, policy.get(setting.name))
        for policy in evidence.in_force(family)
        if not is_preset(policy)
        for setting in settings
        if setting.is_below(policy.get(setting.name))
    ]


def weakness(family: Family, policy: str, setting: Setting, current: object) -> Hit:
    """Compose a hit: a setting below the recommendation, to be raised to it."""
    place = f"{setting.name} of '{readable(policy)}'"
    return make_hit(
        f"setting {place} is {readable(current)}; Microsoft recommends {setting.value}",
        f"Set {setting.name} to {setting.value} in the {family.noun} '{readable(policy)}'.",
        setting.name,
        policy,
        powershell(family.setter, Identity=policy, **{setting.name: setting.value}),
    )
