"""
The settings that Microsoft recommends, and which of a tenant's settings are below them.

A setting is weak if it is below level Standard of Microsoft Learn, "Recommended settings for EOP and Microsoft Defender
for Office 365 security". Only Microsoft can change preset security policies, so these are never reported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from verdict_poller.exchange_settings import Family, Query, flag, is_preset, name, number
from verdict_poller.findings import BULK, MALWARE, PHISHING, SPAM, Evidence, Hit, Kind, make_hit
from verdict_poller.powershell import powershell, readable

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
    A setting, its recommended value, and other values that are good enough.

    `kinds` are the threats that it protects from; `categories` (header CAT) the messages that it decides about.
    """

    name: str
    value: bool | int | str
    also_good: frozenset[str] = frozenset()
    kinds: frozenset[Kind] = frozenset()
    categories: frozenset[str] = frozenset()
    at_least: bool = False

    def is_below(self, value: object) -> bool:
        """Return True if a policy's value is below the recommendation. An absent setting is not."""
        if isinstance(self.value, bool):
            return flag(value) is (not self.value)
        if isinstance(self.value, int):
            amount = number(value)
            return amount is not None and (amount < self.value if self.at_least else amount > self.value)
        good_enough = {word.lower() for word in (self.value, *self.also_good)}
        return isinstance(value, str) and value.strip().lower() not in {"", *good_enough}


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
    """Return a hit for each setting below the recommendation in the policies that may apply to the recipient."""
    return [
        weak_setting_hit(family, name(policy), setting, policy.get(setting.name))
        for policy in evidence.in_force(family)
        if not is_preset(policy)
        for setting in settings
        if setting.is_below(policy.get(setting.name))
    ]


def weak_setting_hit(family: Family, policy: str, setting: Setting, current: object) -> Hit:
    """Compose a hit for a setting that should be raised to the recommendation."""
    place = f"{setting.name} of '{readable(policy)}'"
    return make_hit(
        f"setting {place} is {readable(current)}; Microsoft recommends {setting.value}",
        f"Set {setting.name} to {setting.value} in the {family.noun} '{readable(policy)}'.",
        setting.name,
        policy,
        powershell(family.setter, Identity=policy, **{setting.name: setting.value}),
    )
