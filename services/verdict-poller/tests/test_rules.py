import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backstop_contracts.events import Cause, Conclusion, Delivery, DetectedFile, Message
from verdict_poller.results import covers, covers_url, within
from verdict_poller.rules import (
    RULES,
    Evidence,
    Query,
    Result,
    conclude,
    explain,
    is_final,
    override_of,
    queries,
    read_result,
)

RECIPIENT = "ana@contoso.example"
SENDER = "invoice@mail.fabrikam.example"
SHA256 = "ab" * 32
URL = "https://login.phish.test/a/b?c=d"

VERDICTS = {
    "notJunk": Conclusion.CLEAN,
    "spam": Conclusion.THREAT,
    "phishing": Conclusion.THREAT,
    "malware": Conclusion.THREAT,
    "allowedByPolicy": Conclusion.UNKNOWN,
    "blockedByPolicy": Conclusion.UNKNOWN,
    "spoof": Conclusion.THREAT,
    "unknown": Conclusion.UNKNOWN,
    "noResultAvailable": Conclusion.UNKNOWN,
    "unknownFutureValue": Conclusion.UNKNOWN,
    "beingAnalyzed": Conclusion.UNKNOWN,
    "notSubmittedToMicrosoft": Conclusion.UNKNOWN,
    "phishingSimulation": Conclusion.SIMULATION,
    "allowedDueToOrganizationOverride": Conclusion.UNKNOWN,
    "blockedDueToOrganizationOverride": Conclusion.UNKNOWN,
    "allowedDueToUserOverride": Conclusion.UNKNOWN,
    "blockedDueToUserOverride": Conclusion.UNKNOWN,
    "itemNotfound": Conclusion.UNKNOWN,
    "threatsFound": Conclusion.THREAT,
    "noThreatsFound": Conclusion.CLEAN,
    "domainImpersonation": Conclusion.THREAT,
    "userImpersonation": Conclusion.THREAT,
    "brandImpersonation": Conclusion.THREAT,
    "authenticationFailure": Conclusion.UNKNOWN,
    "spoofedBlocked": Conclusion.THREAT,
    "spoofedAllowed": Conclusion.THREAT,
    "reasonLostInTransit": Conclusion.UNKNOWN,
    "bulk": Conclusion.THREAT,
}
"""Every member of Microsoft's `submissionResultCategory`."""

DETAILS = {
    "none": ("R20", Conclusion.UNKNOWN),
    "underInvestigation": ("R20", Conclusion.UNKNOWN),
    "simulatedThreat": ("R08", Conclusion.SIMULATION),
    "allowedBySecOps": ("R07", Conclusion.UNKNOWN),
    "allowedByThirdPartyFilters": ("R09", Conclusion.UNKNOWN),
    "messageNotFound": ("R20", Conclusion.UNKNOWN),
    "urlFileShouldNotBeBlocked": ("R19", Conclusion.CLEAN),
    "urlFileShouldBeBlocked": ("R17", Conclusion.THREAT),
    "urlFileCannotMakeDecision": ("R20", Conclusion.UNKNOWN),
    "domainImpersonation": ("R14", Conclusion.THREAT),
    "userImpersonation": ("R14", Conclusion.THREAT),
    "brandImpersonation": ("R14", Conclusion.THREAT),
    "outboundShouldNotBeBlocked": ("R19", Conclusion.CLEAN),
    "outboundShouldBeBlocked": ("R17", Conclusion.THREAT),
    "outboundBulk": ("R18", Conclusion.THREAT),
    "outboundCannotMakeDecision": ("R20", Conclusion.UNKNOWN),
    "outboundNotRescanned": ("R20", Conclusion.UNKNOWN),
    "zeroHourAutoPurgeAllowed": ("R19", Conclusion.CLEAN),
    "zeroHourAutoPurgeBlocked": ("R23", Conclusion.THREAT),
    "zeroHourAutoPurgeQuarantineReleased": ("R10", Conclusion.THREAT),
    "onPremisesSkip": ("R22", Conclusion.UNKNOWN),
    "allowedByTenantAllowBlockList": ("R01", Conclusion.UNKNOWN),
    "blockedByTenantAllowBlockList": ("R23", Conclusion.UNKNOWN),
    "allowedUrlByTenantAllowBlockList": ("R01", Conclusion.UNKNOWN),
    "allowedFileByTenantAllowBlockList": ("R01", Conclusion.UNKNOWN),
    "allowedSenderByTenantAllowBlockList": ("R01", Conclusion.UNKNOWN),
    "allowedRecipientByTenantAllowBlockList": ("R01", Conclusion.UNKNOWN),
    "blockedUrlByTenantAllowBlockList": ("R23", Conclusion.UNKNOWN),
    "blockedFileByTenantAllowBlockList": ("R23", Conclusion.UNKNOWN),
    "blockedSenderByTenantAllowBlockList": ("R23", Conclusion.UNKNOWN),
    "blockedRecipientByTenantAllowBlockList": ("R23", Conclusion.UNKNOWN),
    "allowedByConnection": ("R03", Conclusion.UNKNOWN),
    "blockedByConnection": ("R23", Conclusion.UNKNOWN),
    "allowedByExchangeTransportRule": ("R02", Conclusion.UNKNOWN),
    "blockedByExchangeTransportRule": ("R23", Conclusion.UNKNOWN),
    "quarantineReleased": ("R10", Conclusion.UNKNOWN),
    "quarantineReleasedThenBlocked": ("R10", Conclusion.UNKNOWN),
    "junkMailRuleDisabled": ("R06", Conclusion.UNKNOWN),
    "allowedByUserSetting": ("R05", Conclusion.UNKNOWN),
    "blockedByUserSetting": ("R23", Conclusion.UNKNOWN),
    "allowedByTenant": ("R04", Conclusion.UNKNOWN),
    "blockedByTenant": ("R23", Conclusion.UNKNOWN),
    "invalidFalsePositive": ("R20", Conclusion.UNKNOWN),
    "invalidFalseNegative": ("R23", Conclusion.UNKNOWN),
    "spoofBlocked": ("R23", Conclusion.THREAT),
    "goodReclassifiedAsBad": ("R17", Conclusion.THREAT),
    "goodReclassifiedAsBulk": ("R18", Conclusion.THREAT),
    "goodReclassifiedAsGood": ("R19", Conclusion.CLEAN),
    "goodReclassifiedAsCannotMakeDecision": ("R20", Conclusion.UNKNOWN),
    "badReclassifiedAsGood": ("R19", Conclusion.CLEAN),
    "badReclassifiedAsBulk": ("R18", Conclusion.THREAT),
    "badReclassifiedAsBad": ("R17", Conclusion.THREAT),
    "badReclassifiedAsCannotMakeDecision": ("R20", Conclusion.UNKNOWN),
    "unknownFutureValue": ("R20", Conclusion.UNKNOWN),
    "willNotifyOnceDone": ("R20", Conclusion.UNKNOWN),
    "checkUserReportedSettings": ("R21", Conclusion.UNKNOWN),
    "partOfEducationCampaign": ("R08", Conclusion.SIMULATION),
    "allowedByAdvancedDelivery": ("R07", Conclusion.UNKNOWN),
    "allowedByEnhancedFiltering": ("R09", Conclusion.UNKNOWN),
    "itemDeleted": ("R20", Conclusion.UNKNOWN),
    "itemFoundClean": ("R19", Conclusion.CLEAN),
    "itemFoundMalicious": ("R17", Conclusion.THREAT),
    "unableToMakeDecision": ("R20", Conclusion.UNKNOWN),
    "domainResembledYourOrganization": ("R14", Conclusion.THREAT),
    "endUserBeingImpersonated": ("R14", Conclusion.THREAT),
    "associatedWithBrand": ("R14", Conclusion.THREAT),
    "senderFailedAuthentication": ("R13", Conclusion.UNKNOWN),
    "endUserBeingSpoofed": ("R13", Conclusion.THREAT),
    "itemFoundBulk": ("R18", Conclusion.THREAT),
    "itemNotReceivedByService": ("R20", Conclusion.UNKNOWN),
    "itemFoundSpam": ("R17", Conclusion.THREAT),
}
"""Every member of Microsoft's `submissionResultDetail`: what it explains and concludes beside the verdict `unknown`."""


def result(verdict: str = "threatsFound", detail: str | None = "none", **changes: Any) -> Result:
    """Say what Microsoft said: by default, that it found threats."""
    plain = Result(
        graph_id="5f1e1b0c",
        status="succeeded",
        verdict=verdict,
        detail=detail,
        user_mailbox_settings=(),
        detected_urls=(),
        detected_files=(),
        simulation=False,
    )
    return replace(plain, **changes)


def message(*, sender: str | None = SENDER, sender_ip: str | None = "192.0.2.25", **headers: Any) -> Message:
    """Build a mail that the filter let through; `headers` are what Exchange Online stamped."""
    return Message(
        sha256="0" * 64,
        size=1000,
        internet_message_id="<m1@mail.fabrikam.example>",
        sender=sender,
        sender_domain=sender and sender.rpartition("@")[2],
        envelope_sender="bounce@fabrikam.example",
        sender_ip=sender_ip,
        subject="Quarterly invoice",
        delivery=Delivery(**{"scl": 1, "sfv": "NSPM", "cat": "NONE", "ipv": "NLI", **headers}),
    )


def override(detail: str | None) -> Result:
    """Say that a setting of the organization overruled the filter."""
    return result("allowedDueToOrganizationOverride", detail)


def user_override(*flags: str, detail: str = "allowedByUserSetting") -> Result:
    """Say that a setting of the mailbox overruled the filter."""
    return result("allowedDueToUserOverride", detail, user_mailbox_settings=flags)


def explained(
    of: Result, mail: Message | None = None, rows: Mapping[Query, Sequence[Any]] | None = None
) -> list[Cause]:
    """Explain a mail by what is known of it."""
    return list(explain(Evidence(of, mail or message(), RECIPIENT, rows or {})))


def rules_of(causes: Sequence[Cause]) -> list[str]:
    """Give the ids of the rules, in order."""
    return [cause.rule for cause in causes]


def commands_of(causes: Sequence[Cause]) -> list[str]:
    """Give every cmdlet that is recommended."""
    return [change.cmdlet for cause in causes for change in cause.recommendations if change.cmdlet]


# The queries, spelled as they go to Exchange Online.

SENDER_ALLOWS = Query("Get-TenantAllowBlockListItems", (("ListType", "Sender"), ("Allow", True)))
URL_ALLOWS = Query("Get-TenantAllowBlockListItems", (("ListType", "Url"), ("Allow", True)))
FILE_ALLOWS = Query("Get-TenantAllowBlockListItems", (("ListType", "FileHash"), ("Allow", True)))
MAIL_FLOW_RULES = Query("Get-TransportRule")
CONNECTION_FILTER = Query("Get-HostedConnectionFilterPolicy")
ANTI_SPAM = Query("Get-HostedContentFilterPolicy")
ANTI_SPAM_RULES = Query("Get-HostedContentFilterRule")
ANTI_PHISHING = Query("Get-AntiPhishPolicy")
ANTI_MALWARE = Query("Get-MalwareFilterPolicy")
EOP_PRESETS = Query("Get-EOPProtectionPolicyRule")
MDO_PRESETS = Query("Get-ATPProtectionPolicyRule")
BUILT_IN = Query("Get-ATPBuiltInProtectionRule")
SAFE_LINKS = Query("Get-SafeLinksPolicy")
SAFE_LINKS_RULES = Query("Get-SafeLinksRule")
SAFE_ATTACHMENTS = Query("Get-SafeAttachmentPolicy")
JUNK = Query("Get-MailboxJunkEmailConfiguration", (("Identity", RECIPIENT),))
INBOX_RULES = Query("Get-InboxRule", (("Mailbox", RECIPIENT),))
SECOPS = Query("Get-ExoSecOpsOverrideRule")
SIMULATIONS = Query("Get-ExoPhishSimOverrideRule")
CONNECTORS = Query("Get-InboundConnector")
QUARANTINE = Query(
    "Get-QuarantineMessage",
    (
        ("MessageId", "<m1@mail.fabrikam.example>"),
        ("RecipientAddress", RECIPIENT),
        ("StartReceivedDate", timedelta(days=29, hours=23)),
    ),
)
SPOOF_ALLOWS = Query("Get-TenantAllowBlockListSpoofItems", (("Action", "Allow"),))
ANALYZER = Query("Get-ConfigAnalyzerPolicyRecommendation", (("RecommendedPolicyType", "Standard"),))
REPORTING = Query("Get-ReportSubmissionPolicy")


def default(**properties: Any) -> dict[str, Any]:
    """Build the row of a default policy."""
    return {"Name": "Default", "Identity": "Default", "IsDefault": True, **properties}


TASKS = "Microsoft.Exchange.MessagingPolicies.Rules.Tasks"
"""Where the classes live that Get-TransportRule names in `Conditions` and `Exceptions`."""
SENDER_IP = f"{TASKS}.SenderIpRangesPredicate"


def bypass(**properties: Any) -> dict[str, Any]:
    """Build the row of a mail flow rule that skips spam filtering."""
    return {"Name": "Partner bypass", "State": "Enabled", "Mode": "Enforce", "SetSCL": -1, **properties}


def allowed(value: str, **properties: Any) -> dict[str, Any]:
    """Build the row of an allow entry that ends 45 days after its last use."""
    return {"Value": value, "Action": "Allow", "ExpirationDate": None, "RemoveAfter": 45, **properties}


@dataclass
class Case:
    """One mail: what Microsoft said of it, what its headers say, how the tenant is set up."""

    rule: str
    told: Result
    mail: Message = field(default_factory=message)
    rows: Mapping[Query, Sequence[Any]] = field(default_factory=dict)
    shows: str = ""
    change: str | None = None

    def __str__(self) -> str:
        return f"{self.rule}-{self.told.verdict}-{self.told.detail}-{self.shows}".replace(" ", "_")[:110]


CULPRITS = [
    Case(
        "R01",
        override("allowedSenderByTenantAllowBlockList"),
        rows={SENDER_ALLOWS: [allowed("other@fabrikam.example"), allowed(SENDER)]},
        shows=f"Tenant Allow/Block List allows Sender {SENDER}",
        change=f"Remove-TenantAllowBlockListItems -ListType 'Sender' -Entries '{SENDER}'",
    ),
    Case(
        "R01",
        override("allowedByTenantAllowBlockList"),
        rows={SENDER_ALLOWS: [allowed("fabrikam.example", RemoveAfter=None)]},
        shows="Tenant Allow/Block List allows Sender fabrikam.example, without an end date",
        change="Remove-TenantAllowBlockListItems -ListType 'Sender' -Entries 'fabrikam.example'",
    ),
    Case(
        "R01",
        replace(override("allowedUrlByTenantAllowBlockList"), detected_urls=(URL,)),
        rows={URL_ALLOWS: [allowed("phish.test"), allowed("login.phish.test/a/*")]},
        shows="Tenant Allow/Block List allows Url login.phish.test/a/*",
        change="Remove-TenantAllowBlockListItems -ListType 'Url' -Entries 'login.phish.test/a/*'",
    ),
    Case(
        "R01",
        replace(override("allowedFileByTenantAllowBlockList"), detected_files=(DetectedFile(sha256=SHA256.upper()),)),
        rows={FILE_ALLOWS: [allowed(SHA256)]},
        shows=f"Tenant Allow/Block List allows FileHash {SHA256}",
        change=f"Remove-TenantAllowBlockListItems -ListType 'FileHash' -Entries '{SHA256}'",
    ),
    Case(
        "R01",
        override(None),
        rows={SENDER_ALLOWS: [allowed("mail.fabrikam.example")]},
        shows="allows Sender mail.fabrikam.example",
        change="Remove-TenantAllowBlockListItems -ListType 'Sender' -Entries 'mail.fabrikam.example'",
    ),
    Case(
        "R02",
        override("allowedByExchangeTransportRule"),
        rows={MAIL_FLOW_RULES: [bypass(SetSCL="-1", SenderDomainIs=["fabrikam.example"])]},
        shows="mail flow rule 'Partner bypass' sets SCL -1, its conditions match the mail "
        "(SenderDomainIs fabrikam.example)",
        change="Disable-TransportRule -Identity 'Partner bypass'",
    ),
    Case(
        "R02",
        override(None),
        rows={MAIL_FLOW_RULES: [bypass(From="bounce@fabrikam.example", SenderAddressLocation="HeaderOrEnvelope")]},
        shows="its conditions match the mail",
        change="Disable-TransportRule -Identity 'Partner bypass'",
    ),
    Case(
        "R02",
        result("phishing"),
        message(sfv="SKN", scl=-1),
        {MAIL_FLOW_RULES: [bypass(SenderIpRanges=["192.0.2.0/24"], SentToMemberOf=["Sales"])]},
        shows="whether it applied to the mail cannot be told from here",
    ),
    Case(
        "R03",
        override("allowedByConnection"),
        rows={CONNECTION_FILTER: [default(IPAllowList=["198.51.100.7", "192.0.2.0/24"])]},
        shows="setting IPAllowList of 'Default' lists 192.0.2.0/24",
        change="Set-HostedConnectionFilterPolicy -Identity 'Default' -IPAllowList @{Remove='192.0.2.0/24'}",
    ),
    Case(
        "R03",
        result("spam"),
        message(ipv="CAL", sfv="SKN", scl=-1),
        {CONNECTION_FILTER: [default(IPAllowList="192.0.2.20-192.0.2.30")]},
        shows="lists 192.0.2.20-192.0.2.30",
        change="Set-HostedConnectionFilterPolicy -Identity 'Default' -IPAllowList @{Remove='192.0.2.20-192.0.2.30'}",
    ),
    Case(
        "R03",
        override("allowedByConnection"),
        rows={CONNECTION_FILTER: [default(IPAllowList=[], EnableSafeList="True")]},
        shows="setting EnableSafeList of 'Default' is on",
        change="Set-HostedConnectionFilterPolicy -Identity 'Default' -EnableSafeList $false",
    ),
    Case(
        "R04",
        override("allowedByTenant"),
        rows={ANTI_SPAM: [default(AllowedSenderDomains=[{"Domain": "fabrikam.example"}])]},
        shows="setting AllowedSenderDomains of 'Default' lists fabrikam.example",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -AllowedSenderDomains @{Remove='fabrikam.example'}",
    ),
    Case(
        "R04",
        result("phishing"),
        message(sfv="SKA", scl=-1),
        {ANTI_SPAM: [default(AllowedSenders=[{"Sender": {"Address": SENDER.upper()}}])]},
        shows=f"setting AllowedSenders of 'Default' lists {SENDER.upper()}",
        change=f"Set-HostedContentFilterPolicy -Identity 'Default' -AllowedSenders @{{Remove='{SENDER.upper()}'}}",
    ),
    Case(
        "R04",
        result("threatsFound"),
        message(sfv=None, ipv=None, cat=None),
        {ANTI_SPAM: [default(AllowedSenderDomains="example.net, fabrikam.example")]},
        shows="lists fabrikam.example",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -AllowedSenderDomains @{Remove='fabrikam.example'}",
    ),
    Case(
        "R05",
        user_override("isFromDomainInDomainSafeList"),
        rows={JUNK: [{"TrustedSendersAndDomains": ["example.org", "@fabrikam.example"], "ContactsTrusted": True}]},
        shows=f"setting TrustedSendersAndDomains of '{RECIPIENT}' lists @fabrikam.example",
        change=f"Set-MailboxJunkEmailConfiguration -Identity '{RECIPIENT}'"
        " -TrustedSendersAndDomains @{Remove='@fabrikam.example'}",
    ),
    Case(
        "R05",
        user_override("isFromAddressInAddressBook"),
        rows={JUNK: [{"TrustedSendersAndDomains": [], "ContactsTrusted": True}]},
        shows=f"setting ContactsTrusted of '{RECIPIENT}' is on",
        change=f"Set-MailboxJunkEmailConfiguration -Identity '{RECIPIENT}' -ContactsTrusted $false",
    ),
    Case(
        "R05",
        result("phishing"),
        message(sfv="SFE", scl=-1),
        {JUNK: [{"TrustedSendersAndDomains": SENDER}]},
        shows=f"lists {SENDER}",
        change=f"Set-MailboxJunkEmailConfiguration -Identity '{RECIPIENT}'"
        f" -TrustedSendersAndDomains @{{Remove='{SENDER}'}}",
    ),
    Case(
        "R06",
        user_override(detail="junkMailRuleDisabled"),
        rows={JUNK: [{"Enabled": False}]},
        shows=f"setting Enabled of '{RECIPIENT}' is off",
        change=f"Set-MailboxJunkEmailConfiguration -Identity '{RECIPIENT}' -Enabled $true",
    ),
    Case(
        "R06",
        user_override("customRule"),
        rows={INBOX_RULES: [{"Name": "Keep bills", "Enabled": True, "From": [f'"Bills" [SMTP:{SENDER}]']}]},
        shows="inbox rule 'Keep bills' of the recipient's mailbox names the sender",
        change=f"Disable-InboxRule -Mailbox '{RECIPIENT}' -Identity 'Keep bills'",
    ),
    Case(
        "R07",
        override("allowedBySecOps"),
        rows={SECOPS: [{"Name": "_Exe:SecOpsOverrid:1", "SentTo": ["ANA@contoso.example"]}]},
        shows="the advanced delivery policy lists the recipient as a SecOps mailbox",
        change=f"Set-SecOpsOverridePolicy -Identity 'SecOpsOverridePolicy' -RemoveSentTo '{RECIPIENT}'",
    ),
    Case(
        "R08",
        override("allowedByAdvancedDelivery"),
        rows={SIMULATIONS: [{"Name": "Sim", "Domains": ["fabrikam.example"], "SenderIpRanges": ["192.0.2.25"]}]},
        shows="phishing simulation rule 'Sim' lists the mail's domain and IP address",
    ),
    Case(
        "R09",
        override("allowedByThirdPartyFilters"),
        rows={CONNECTORS: [{"Name": "Gateway", "Enabled": True, "EFSkipLastIP": False, "EFSkipIPs": []}]},
        shows="setting EFSkipLastIP of 'Gateway' is off",
        change="Set-InboundConnector -Identity 'Gateway' -EFSkipLastIP $true",
    ),
    Case(
        "R09",
        override("allowedByEnhancedFiltering"),
        rows={CONNECTORS: [{"Name": "Gateway", "Enabled": True, "EFSkipIPs": ["192.0.2.0/24"]}]},
        shows="setting EFSkipIPs of 'Gateway' lists 192.0.2.0/24",
        change="Set-InboundConnector -Identity 'Gateway' -EFSkipIPs @{Remove='192.0.2.0/24'}",
    ),
    Case(
        "R10",
        override("quarantineReleased"),
        rows={QUARANTINE: [{"ReleaseStatus": "RELEASED", "TagName": "Team policy", "ReleasedBy": [RECIPIENT]}]},
        shows="released from quarantine by its recipient, as quarantine policy 'Team policy' allows",
        change="Set-QuarantinePolicy -Identity 'Team policy' -EndUserQuarantinePermissionsValue 43",
    ),
    Case(
        "R10",
        result("phishing"),
        message(sfv="SKQ"),
        {QUARANTINE: [{"Released": True, "TagName": "AdminOnlyAccessPolicy", "ReleasedBy": ["admin@contoso.example"]}]},
        shows="released from quarantine by somebody other than its recipient",
    ),
    Case(
        "R10",
        override("quarantineReleased"),
        rows={QUARANTINE: [{"ReleaseStatus": "RELEASED", "TagName": "Team policy", "ReleasedBy": []}]},
        shows="the mail was released from quarantine; Exchange does not say by whom",
    ),
    Case(
        "R11",
        result("phishing"),
        rows={ANTI_SPAM: [default(PhishZapEnabled=False, SpamZapEnabled=True)]},
        shows="setting PhishZapEnabled of 'Default' is False; Microsoft recommends True",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -PhishZapEnabled $true",
    ),
    Case(
        "R11",
        result("malware"),
        rows={ANTI_MALWARE: [default(ZapEnabled="False")]},
        shows="setting ZapEnabled of 'Default' is False",
        change="Set-MalwareFilterPolicy -Identity 'Default' -ZapEnabled $true",
    ),
    Case(
        "R12",
        override(None),
        message(cat="PHSH"),
        {ANTI_SPAM: [default(PhishSpamAction="MoveToJmf")]},
        shows="header CAT:PHSH",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -PhishSpamAction 'Quarantine'",
    ),
    Case(
        "R12",
        result("phishing"),
        message(sfv="SPM", scl=8, cat="PHSH"),
        {ANTI_SPAM: [default(PhishSpamAction="MoveToJmf", HighConfidencePhishAction="Quarantine")]},
        shows="header CAT:PHSH: the filter recognised the mail",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -PhishSpamAction 'Quarantine'",
    ),
    Case(
        "R12",
        result("spam"),
        rows={ANTI_SPAM: [default(SpamAction="AddXHeader", HighConfidenceSpamAction="Quarantine")]},
        shows="setting SpamAction of 'Default' is AddXHeader; Microsoft recommends MoveToJmf",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -SpamAction 'MoveToJmf'",
    ),
    Case(
        "R13",
        result("spoofedAllowed"),
        rows={
            SPOOF_ALLOWS: [
                {"Identity": "pair-1", "SpoofedUser": "other.example", "SendingInfrastructure": "192.0.2.25/24"},
                {
                    "Identity": "pair-2",
                    "SpoofedUser": SENDER,
                    "SendingInfrastructure": "192.0.2.1/24",
                    "Action": "Allow",
                },
            ]
        },
        shows=f"Tenant Allow/Block List allows the spoofed sender {SENDER}, 192.0.2.1/24",
        change="Remove-TenantAllowBlockListSpoofItems -Identity 'Default' -Ids 'pair-2'",
    ),
    Case(
        "R13",
        result("phishing"),
        message(dmarc="fail", dmarc_action="oreject", compauth="fail", compauth_reason="000"),
        {ANTI_PHISHING: [default(Name="Office365 AntiPhish Default", HonorDmarcPolicy=False)]},
        shows="header dmarc=fail action=oreject",
        change="Set-AntiPhishPolicy -Identity 'Office365 AntiPhish Default' -HonorDmarcPolicy $true",
    ),
    Case(
        "R14",
        result("domainImpersonation"),
        rows={ANTI_PHISHING: [default(ExcludedDomains=["mail.fabrikam.example"])]},
        shows="setting ExcludedDomains of 'Default' lists mail.fabrikam.example",
        change="Set-AntiPhishPolicy -Identity 'Default' -ExcludedDomains @{Remove='mail.fabrikam.example'}",
    ),
    Case(
        "R14",
        result("phishing"),
        message(cat="UIMP", sfty="9.20"),
        {ANTI_PHISHING: [default(EnableTargetedUserProtection=True, TargetedUserProtectionAction="NoAction")]},
        shows="setting TargetedUserProtectionAction of 'Default' is NoAction",
        change="Set-AntiPhishPolicy -Identity 'Default' -TargetedUserProtectionAction 'Quarantine'",
    ),
    Case(
        "R15",
        result(detected_urls=(URL,)),
        rows={
            MAIL_FLOW_RULES: [bypass(SetSCL=None, SetHeaderName="X-MS-Exchange-Organization-SkipSafeLinksProcessing")]
        },
        shows="mail flow rule 'Partner bypass' makes the mail skip Safe Links",
        change="Disable-TransportRule -Identity 'Partner bypass'",
    ),
    Case(
        "R15",
        result(detected_urls=(URL,)),
        rows={SAFE_LINKS: [{"Name": "Links", "DoNotRewriteUrls": ["*.phish.test/*"]}]},
        shows="setting DoNotRewriteUrls of 'Links' lists *.phish.test/*",
        change="Set-SafeLinksPolicy -Identity 'Links' -DoNotRewriteUrls @{Remove='*.phish.test/*'}",
    ),
    Case(
        "R15",
        result("malware"),
        rows={SAFE_ATTACHMENTS: [{"Name": "Files", "Enable": True, "Action": "Allow"}]},
        shows="setting Action of 'Files' is Allow; Microsoft recommends Block",
        change="Set-SafeAttachmentPolicy -Identity 'Files' -Action 'Block'",
    ),
    Case(
        "R15",
        result(detected_urls=(URL,)),
        rows={SAFE_LINKS: [], SAFE_LINKS_RULES: [], MDO_PRESETS: []},
        shows="no Safe Links policy applies to the recipient",
    ),
    Case(
        "R16",
        result("phishing"),
        rows={EOP_PRESETS: [{"Name": "Standard Preset Security Policy", "State": "Disabled"}]},
        shows="the Standard and Strict presets are not turned on",
        change="Enable-EOPProtectionPolicyRule -Identity 'Standard Preset Security Policy'",
    ),
    Case(
        "R16",
        result("phishing"),
        rows={
            ANALYZER: [
                {
                    "PolicyGroup": "Anti-Phishing",
                    "SettingName": "PhishThresholdLevel",
                    "Policy": "Staff",
                    "AppliedTo": "12",
                    "CurrentConfiguration": "1",
                    "Recommendation": "3",
                }
            ]
        },
        shows="setting PhishThresholdLevel of 'Staff' is 1; Microsoft recommends 3",
        change="Set-AntiPhishPolicy -Identity 'Staff' -PhishThresholdLevel 3",
    ),
    Case(
        "R17",
        result("threatsFound", "goodReclassifiedAsBad"),
        shows="header SFV:NSPM",
        change=f"New-TenantAllowBlockListItems -ListType 'Sender' -Entries '{SENDER}' -Block",
    ),
    Case(
        "R18",
        result("bulk"),
        message(bcl=7),
        {ANTI_SPAM: [default(BulkThreshold="8", MarkAsSpamBulkMail="On")]},
        shows="setting BulkThreshold of 'Default' is 8; Microsoft recommends 6",
        change="Set-HostedContentFilterPolicy -Identity 'Default' -BulkThreshold 6",
    ),
    Case("R19", result("noThreatsFound"), shows="result noThreatsFound"),
    Case("R20", result("itemNotfound", "messageNotFound"), shows="result detail messageNotFound"),
    Case("R20", result("", None, status="failed"), shows="submission status failed"),
    Case(
        "R21",
        result("notSubmittedToMicrosoft", "checkUserReportedSettings"),
        rows={REPORTING: [{"Name": "DefaultReportSubmissionPolicy", "EnableReportToMicrosoft": False}]},
        shows="setting EnableReportToMicrosoft of 'DefaultReportSubmissionPolicy' is off",
        change="Set-ReportSubmissionPolicy -Identity 'DefaultReportSubmissionPolicy' -EnableReportToMicrosoft $true",
    ),
    Case("R22", result("reasonLostInTransit", "onPremisesSkip"), shows="result detail onPremisesSkip"),
    Case("R23", result("blockedDueToUserOverride", "blockedByUserSetting"), shows="result detail blockedByUserSetting"),
    Case("R00", override("unknownFutureValue"), shows="result allowedDueToOrganizationOverride"),
]


@pytest.mark.parametrize("case", CULPRITS, ids=str)
def test_a_cause_names_what_shows_it_and_the_cmdlet_that_mends_it(case: Case) -> None:
    """Every rule points at the very entry, rule or setting, and gives a cmdlet that can be pasted."""
    causes = explained(case.told, case.mail, case.rows)

    (cause,) = [cause for cause in causes if cause.rule == case.rule]

    assert case.shows in "\n".join(cause.evidence)
    assert commands_of([cause]) == ([case.change] if case.change else [])
    assert cause.recommendations
    assert (cause.source or "").startswith("https://learn.microsoft.com/")


@pytest.mark.parametrize(
    ("conditions", "sure"),
    [
        ({"HasSenderOverride": True}, False),
        ({"SCLOver": 4}, False),
        ({"FromScope": "NotInOrganization"}, False),
        ({"ExceptIfMessageSizeOver": "1 MB (1,048,576 bytes)"}, False),
        ({"ActivationDate": "2026-03-01T00:00:00Z"}, False),
        ({"Conditions": [SENDER_IP, f"{TASKS}.AnAfterthoughtOfMicrosoftsPredicate"]}, False),
        ({"Conditions": [SENDER_IP], "Exceptions": [f"{TASKS}.AnAfterthoughtOfMicrosoftsPredicate"]}, False),
        ({"Conditions": [SENDER_IP], "Exceptions": None}, True),
        ({"HasSenderOverride": False, "SCLOver": None, "MessageSizeOver": "", "SentToMemberOf": []}, True),
    ],
    ids=str,
)
def test_a_rule_that_hangs_on_what_is_not_known_is_only_suspected(conditions: dict[str, Any], sure: bool) -> None:
    """Whatever else of it matches, nobody is handed the command that turns it off."""
    rule = bypass(SenderIpRanges=["192.0.2.0/24"], **conditions)

    causes = explained(result("phishing"), message(sfv="SKN", scl=-1), {MAIL_FLOW_RULES: [rule]})

    (cause,) = [cause for cause in causes if cause.rule == "R02"]
    told = "its conditions match the mail" if sure else "whether it applied to the mail cannot be told"
    assert told in "\n".join(cause.evidence)
    assert cause.recommendations[0].action.startswith("Turn off" if sure else "Find out whether")
    assert bool(commands_of([cause])) is sure


def test_a_suspected_rule_is_told_after_the_entry_that_did_it() -> None:
    """What only may have let the mail through stands behind what surely did."""
    rows = {
        MAIL_FLOW_RULES: [bypass(FromScope="NotInOrganization")],
        ANTI_SPAM: [default(AllowedSenders=[SENDER])],
    }

    assert rules_of(explained(override(None), message(sfv="SKN"), rows)) == ["R04", "R02"]


@pytest.mark.parametrize("case", CULPRITS, ids=str)
def test_the_settings_that_show_a_cause_are_among_those_that_are_read(case: Case) -> None:
    """What a rule needs is asked for before it is asked to explain."""
    assert set(case.rows) <= queries(case.told, case.mail, RECIPIENT)


UNPROVEN = [
    Case("R01", override("allowedSenderByTenantAllowBlockList"), shows="Get-TenantAllowBlockListItems"),
    Case("R02", override("allowedByExchangeTransportRule"), shows="Get-TransportRule"),
    Case("R02", result("phishing"), message(sfv="SKN", scl=-1), shows="Get-TransportRule"),
    Case("R03", override("allowedByConnection"), shows="Get-HostedConnectionFilterPolicy"),
    Case("R03", result("phishing"), message(ipv="CAL", sfv="SKN"), shows="Get-HostedConnectionFilterPolicy"),
    Case("R04", override("allowedByTenant"), shows="Get-HostedContentFilterPolicy"),
    Case("R04", result("unknown"), message(sfv="SKA", scl=-1), shows="Get-HostedContentFilterPolicy"),
    Case("R05", user_override("isFromAddressInAddressSafeList"), shows="Get-MailboxJunkEmailConfiguration"),
    Case("R05", result("phishing"), message(sfv="sfe"), shows="Get-MailboxJunkEmailConfiguration"),
    Case("R06", user_override(detail="junkMailRuleDisabled"), shows="Get-MailboxJunkEmailConfiguration"),
    Case("R06", user_override("customRule"), shows="Get-InboxRule"),
    Case("R07", override("allowedBySecOps"), shows="Get-ExoSecOpsOverrideRule"),
    Case("R09", override("allowedByThirdPartyFilters"), shows="Get-InboundConnector"),
    Case("R10", result("phishing"), message(sfv="SKQ"), shows="Get-QuarantineMessage"),
    Case("R13", result("spoof"), shows="Get-TenantAllowBlockListSpoofItems"),
    Case("R14", result("userImpersonation"), shows="Get-AntiPhishPolicy"),
    Case("R18", result("bulk"), shows="Get-HostedContentFilterPolicy"),
    Case("R21", result("notSubmittedToMicrosoft"), shows="Get-ReportSubmissionPolicy"),
]


@pytest.mark.parametrize("case", UNPROVEN, ids=str)
def test_a_cause_that_settings_cannot_prove_says_where_to_look(case: Case) -> None:
    """What Microsoft or a header says holds without settings; an unread setting and an innocent one are told apart."""
    unread = explained(case.told, case.mail)
    needed = queries(case.told, case.mail, RECIPIENT)
    innocent = explained(case.told, case.mail, dict.fromkeys(needed, ()))

    for causes in (unread, innocent):
        cause = next(cause for cause in causes if cause.rule == case.rule)
        assert cause.recommendations
        assert not commands_of([cause])
    assert f"{case.shows} could not be read" in [
        line for cause in unread if cause.rule == case.rule for line in cause.evidence
    ]


@pytest.mark.parametrize("what", ["Url", "File", "Recipient"])
def test_an_allow_entry_for_what_microsoft_does_not_name_is_not_said_to_be_unreadable(what: str) -> None:
    """The result speaks of a URL, a file or a recipient, but not of which: there is nothing to look for."""
    told = override(f"allowed{what}ByTenantAllowBlockList")

    (cause,) = explained(told)

    assert queries(told, message(), RECIPIENT) == frozenset()
    assert "no list was read" in cause.evidence[-1]
    assert not any("could not be read" in line for line in cause.evidence)
    assert cause.recommendations


def test_a_list_that_could_not_be_read_is_not_said_to_show_nothing() -> None:
    """One of the lists was read and is innocent; the entry may be in the other."""
    told = replace(override("allowedByTenantAllowBlockList"), detected_urls=(URL,))

    (cause,) = explained(told, rows={SENDER_ALLOWS: []})

    assert "Get-TenantAllowBlockListItems could not be read" in cause.evidence


DRIFT = {"PolicyGroup": "Anti-Phishing", "SettingName": "PhishThresholdLevel", "CurrentConfiguration": "1"}

CLEARED = [
    Case(
        "R01", override("allowedByTenant"), rows={SENDER_ALLOWS: [allowed(SENDER)]}, shows="another override is named"
    ),
    Case("R01", override(None), rows={SENDER_ALLOWS: [allowed("*.mail.fabrikam.example")]}, shows="subdomains"),
    Case("R01", override(None), rows={SENDER_ALLOWS: [allowed(SENDER, Action="Block")]}, shows="a block entry"),
    Case("R02", result("phishing"), rows={MAIL_FLOW_RULES: [bypass()]}, shows="the headers say filtered"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(SenderDomainIs="example.net")]}, shows="another domain"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(From="bounce@fabrikam.example")]}, shows="MAIL FROM"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(State="Disabled")]}, shows="a rule turned off"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(Mode="Audit")]}, shows="a rule in test mode"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(SetSCL=5)]}, shows="a rule that marks as spam"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(ExceptIfFrom=[SENDER])]}, shows="an exception"),
    Case("R02", override(None), rows={MAIL_FLOW_RULES: [bypass(FromMemberOf=["Partners"])]}, shows="an unknown group"),
    Case(
        "R02",
        result("phishing"),
        message(ipv="CAL", sfv="SKN"),
        {MAIL_FLOW_RULES: [bypass(SubjectContainsWords="x")]},
        shows="the IP Allow List did it",
    ),
    Case(
        "R03",
        result("phishing"),
        rows={CONNECTION_FILTER: [default(IPAllowList=["192.0.2.25"])]},
        shows="the headers say filtered",
    ),
    Case(
        "R03",
        override(None),
        rows={CONNECTION_FILTER: [default(IPAllowList=["nonsense", "2001:db8::/32", "192.0.2.26"])]},
        shows="other addresses",
    ),
    Case("R03", override(None), rows={CONNECTION_FILTER: [default(EnableSafeList=True)]}, shows="a safe list alone"),
    Case(
        "R04",
        result("phishing"),
        rows={ANTI_SPAM: [default(AllowedSenderDomains=["fabrikam.example"])]},
        shows="the headers say filtered",
    ),
    Case(
        "R04",
        override(None),
        rows={ANTI_SPAM: [default(AllowedSenderDomains=["am.example", "x.fabrikam.example"])]},
        shows="other domains",
    ),
    Case(
        "R05",
        result("phishing"),
        rows={JUNK: [{"TrustedSendersAndDomains": [SENDER]}]},
        shows="the headers say filtered",
    ),
    Case("R05", user_override("customRule"), shows="an inbox rule is named"),
    Case("R05", user_override(detail="junkMailRuleDisabled"), shows="the junk email rule is named"),
    Case(
        "R06",
        user_override("isFromAddressInAddressSafeList"),
        rows={JUNK: [{"Enabled": False}]},
        shows="the safe senders are named",
    ),
    Case("R06", result("phishing", user_mailbox_settings=("customRule",)), shows="no override at all"),
    Case(
        "R07", override("allowedByTenant"), rows={SECOPS: [{"SentTo": [RECIPIENT]}]}, shows="another override is named"
    ),
    Case("R07", override(None), rows={SECOPS: [{"SentTo": ["soc@contoso.example"]}]}, shows="another mailbox"),
    Case(
        "R07",
        override("allowedByAdvancedDelivery"),
        rows={SIMULATIONS: [{"Name": "Sim", "Domains": "fabrikam.example", "SenderIpRanges": "192.0.2.25"}]},
        shows="a simulation explains it",
    ),
    Case(
        "R08",
        override("allowedByAdvancedDelivery"),
        rows={SIMULATIONS: [{"Domains": ["fabrikam.example"], "SenderIpRanges": ["192.0.2.26"]}]},
        shows="another address",
    ),
    Case("R08", result("phishing"), shows="a real threat"),
    Case("R09", override("allowedByTenant"), shows="another override is named"),
    Case("R10", result("phishing"), rows={QUARANTINE: [{"Released": True}]}, shows="the headers say filtered"),
    Case("R11", result("phishing"), rows={ANTI_SPAM: [default(PhishZapEnabled=True)]}, shows="purge is on"),
    Case("R11", result("phishing"), rows={ANTI_SPAM: [default(SpamZapEnabled=False)]}, shows="purge of another kind"),
    Case(
        "R11",
        result("unknown", "zeroHourAutoPurgeAllowed"),
        rows={ANTI_SPAM: [default(PhishZapEnabled=False)]},
        shows="purge gave back what it found clean",
    ),
    Case("R11", result("bulk"), rows={ANTI_SPAM: [default(SpamZapEnabled=False)]}, shows="bulk is not purged"),
    Case("R12", result("phishing"), rows={ANTI_SPAM: [default(PhishSpamAction="quarantine")]}, shows="as recommended"),
    Case("R12", result("phishing"), rows={ANTI_SPAM: [default(SpamAction="AddXHeader")]}, shows="another kind"),
    Case("R12", result("spam"), rows={ANTI_SPAM: [default(SpamAction="Quarantine")]}, shows="stricter"),
    Case(
        "R13",
        result("phishing"),
        rows={SPOOF_ALLOWS: [{"SpoofedUser": SENDER, "SendingInfrastructure": "*"}]},
        shows="the sender did not fail",
    ),
    Case(
        "R13",
        result("phishing"),
        message(compauth="fail", compauth_reason="001"),
        {SPOOF_ALLOWS: [], ANTI_PHISHING: [default(EnableSpoofIntelligence=True, HonorDmarcPolicy=False)]},
        shows="no setting tolerated it",
    ),
    Case(
        "R14",
        result("phishing"),
        rows={ANTI_PHISHING: [default(EnableTargetedUserProtection=False)]},
        shows="nobody was impersonated",
    ),
    Case("R15", result("phishing"), rows={SAFE_LINKS: [], SAFE_LINKS_RULES: [], MDO_PRESETS: []}, shows="no bad link"),
    Case("R15", result(detected_urls=(URL,)), rows={SAFE_LINKS: [], SAFE_LINKS_RULES: []}, shows="presets are unread"),
    Case(
        "R15",
        result(detected_urls=(URL,)),
        rows={SAFE_LINKS: [{"Name": "Links", "ScanUrls": True, "DoNotRewriteUrls": ["phish.test"]}]},
        shows="another link is exempt",
    ),
    Case(
        "R16",
        result("phishing"),
        rows={EOP_PRESETS: [{"Name": "Standard Preset Security Policy", "State": "Enabled"}]},
        shows="a preset applies",
    ),
    Case("R16", result("phishing"), rows={EOP_PRESETS: [], ANALYZER: []}, shows="custom policies are as good"),
    Case(
        "R16",
        result("spam"),
        rows={EOP_PRESETS: [], ANALYZER: [{**DRIFT, "AppliedTo": "3"}]},
        shows="drift of another kind",
    ),
    Case(
        "R16",
        result("phishing"),
        rows={EOP_PRESETS: [], ANALYZER: [{**DRIFT, "AppliedTo": ""}]},
        shows="drift of a policy for nobody",
    ),
    Case("R17", override("allowedByTenant"), shows="an override is stated"),
    Case("R17", result("phishing"), message(sfv="SKA"), shows="an override is stamped"),
    Case("R18", result("spam"), rows={ANTI_SPAM: [default(BulkThreshold=9)]}, shows="spam is not bulk"),
    Case("R19", result("phishing"), shows="a threat"),
    Case("R20", result("phishing", status="failed"), shows="there is a verdict"),
    Case("R20", result("blockedByPolicy", "blockedByTenant"), shows="there is an answer"),
    Case("R21", result("phishing"), rows={REPORTING: [{"EnableReportToMicrosoft": False}]}, shows="it was submitted"),
    Case("R22", result("phishing"), shows="no detour"),
    Case("R23", result("phishing"), shows="it was delivered"),
    Case("R00", result("phishing"), shows="there is a cause"),
]


@pytest.mark.parametrize("case", CLEARED, ids=str)
def test_a_cause_that_is_not_shown_is_not_told(case: Case) -> None:
    """A setting that does not concern the mail, or a result that does not call for it, blames nothing."""
    assert case.rule not in rules_of(explained(case.told, case.mail, case.rows))


@pytest.mark.parametrize(
    ("entry", "endless"),
    [
        (allowed(SENDER), False),
        (allowed(SENDER, RemoveAfter=None), True),
        (allowed(SENDER, RemoveAfter=None, ExpirationDate="2026-12-24T00:00:00Z"), False),
    ],
)
def test_an_allow_entry_without_an_end_is_told_so(entry: dict[str, Any], endless: bool) -> None:
    """An entry ends at a date or some days after its last use, or never."""
    (cause,) = explained(override("allowedSenderByTenantAllowBlockList"), rows={SENDER_ALLOWS: [entry]})

    assert any("without an end date" in line for line in cause.evidence) is endless


@pytest.mark.parametrize(
    ("headers", "failed"),
    [
        ({"compauth": "fail", "compauth_reason": "000"}, True),
        ({"compauth": "fail", "compauth_reason": "601"}, True),
        ({"compauth": "pass", "compauth_reason": "000"}, False),
        ({"compauth": "fail", "compauth_reason": "130"}, False),
        ({"dmarc": "fail", "dmarc_action": "none"}, True),
        ({"dmarc": "fail", "dmarc_action": "quarantine"}, False),
        ({"dmarc": "pass", "dmarc_action": "none"}, False),
    ],
)
def test_spoof_settings_are_read_when_a_sender_that_failed_authentication_got_in(
    headers: dict[str, str], failed: bool
) -> None:
    """Microsoft's reasons of composite authentication, and DMARC failures that were let pass."""
    assert (SPOOF_ALLOWS in queries(result("phishing"), message(**headers), RECIPIENT)) is failed


@pytest.mark.parametrize(
    ("row", "hit"),
    [
        ({"SpoofedUser": "*", "SendingInfrastructure": "fabrikam.example"}, True),
        ({"SpoofedUser": "mail.fabrikam.example", "SendingInfrastructure": "*"}, True),
        ({"SpoofedUser": "fabrikam.example", "SendingInfrastructure": "*"}, False),
        ({"SpoofedUser": SENDER, "SendingInfrastructure": "198.51.100.0/24"}, False),
        ({"SpoofedUser": SENDER, "SendingInfrastructure": ""}, False),
        ({"SpoofedUser": SENDER, "SendingInfrastructure": "*", "Action": "Block"}, False),
    ],
)
def test_a_spoof_pair_is_blamed_only_if_it_may_be_that_of_the_mail(row: dict[str, Any], hit: bool) -> None:
    """Both halves of the pair have to fit; an infrastructure given by name cannot be ruled out."""
    (cause, *_) = explained(result("spoof"), rows={SPOOF_ALLOWS: [{"Identity": "pair", **row}]})

    assert bool(commands_of([cause])) is hit


@pytest.mark.parametrize(
    ("connector", "plain"),
    [
        ({"EFSkipLastIP": True}, False),
        ({"EFSkipIPs": ["198.51.100.7"]}, False),
        ({"EFSkipLastIP": True, "EFUsers": ["bo@contoso.example"]}, True),
        ({"EFSkipLastIP": True, "EFUsers": [RECIPIENT]}, False),
        ({"EFSkipLastIP": True, "EFTestMode": True}, True),
        ({"EFSkipLastIP": False, "Enabled": False}, False),
        ({"EFSkipLastIP": False, "SenderIPAddresses": ["198.51.100.0/24"]}, False),
        ({"EFSkipLastIP": False, "SenderIPAddresses": ["192.0.2.0/24"]}, True),
    ],
)
def test_a_connector_is_blamed_when_it_carried_the_mail_without_enhanced_filtering(
    connector: dict[str, Any], plain: bool
) -> None:
    """Enhanced Filtering counts only where it is on, for the recipient, and not in test mode."""
    rows = {CONNECTORS: [{"Name": "Gateway", **connector}]}

    (cause,) = explained(override("allowedByThirdPartyFilters"), rows=rows)

    assert bool(commands_of([cause])) is plain


@pytest.mark.parametrize(("level", "shown"), [(7, True), (None, False)])
def test_the_bulk_complaint_level_is_told_when_the_mail_carries_it(level: int | None, shown: bool) -> None:
    """Evidence names headers that are there, and no others."""
    (cause, *_) = explained(result("bulk"), message(bcl=level))

    assert any(line.startswith("header BCL") for line in cause.evidence) is shown


@pytest.mark.parametrize(
    ("told", "mail", "wanted", "unwanted"),
    [
        (result("threatsFound"), message(), ANTI_SPAM, ANTI_MALWARE),
        (result(detected_files=(DetectedFile(sha256=SHA256),)), message(), ANTI_MALWARE, SPOOF_ALLOWS),
        (result("threatsFound"), message(cat="MALW"), ANTI_MALWARE, SAFE_LINKS),
        (result("phishing"), message(), ANTI_SPAM, SAFE_LINKS),
    ],
)
def test_only_settings_of_the_threats_kind_are_read(
    told: Result, mail: Message, wanted: Query, unwanted: Query
) -> None:
    """Result, detected files and the filter's category tell the kind; no more is asked of Exchange Online."""
    read = queries(told, mail, RECIPIENT)

    assert wanted in read
    assert unwanted not in read


def test_every_rule_is_shown_by_some_case_and_cleared_by_another() -> None:
    """A new row of the table needs its cases."""
    rules = {rule.id for rule in RULES}

    assert {case.rule for case in CULPRITS} == rules
    assert {case.rule for case in CLEARED} == rules


# Microsoft's words.


@pytest.mark.parametrize(("verdict", "conclusion"), VERDICTS.items())
def test_every_verdict_comes_to_one_conclusion(verdict: str, conclusion: Conclusion) -> None:
    """Each member of `submissionResultCategory` is one of threat, clean, simulation and unknown."""
    assert conclude(result(verdict)) is conclusion


@pytest.mark.parametrize(("detail", "expected"), DETAILS.items())
def test_every_detail_has_its_cause(detail: str, expected: tuple[str, Conclusion]) -> None:
    """Where the verdict leaves it open, each member of `submissionResultDetail` is concluded from and explained."""
    told = result("unknown", detail)

    assert (explained(told)[0].rule, conclude(told)) == expected


@pytest.mark.parametrize(
    ("told", "override"),
    [
        (result("allowedDueToOrganizationOverride", "allowedBySecOps"), "allowed"),
        (result("allowedDueToOrganizationOverride", None), "allowed"),
        (result("allowedByPolicy"), "allowed"),
        (result("allowedDueToUserOverride", "junkMailRuleDisabled"), "allowed"),
        (result("unknown", "allowedByConnection"), "allowed"),
        (result("unknown", "quarantineReleased"), "allowed"),
        (result("blockedDueToOrganizationOverride", "blockedByConnection"), "blocked"),
        (result("blockedDueToUserOverride", None), "blocked"),
        (result("blockedByPolicy"), "blocked"),
        (result("unknown", "blockedByTenant"), "blocked"),
        (result("allowedDueToOrganizationOverride", "goodReclassifiedAsBad"), None),
        (result("noThreatsFound", "allowedByTenant"), None),
        (result("threatsFound", "blockedByTenant"), None),
        (result("phishingSimulation", "allowedByAdvancedDelivery"), None),
        (result("unknown"), None),
        (result("", None, status="failed"), None),
    ],
    ids=lambda value: f"{value.verdict}-{value.detail}" if isinstance(value, Result) else value,
)
def test_an_override_is_told_where_microsoft_says_no_more(told: Result, override: str | None) -> None:
    """That a setting allowed or blocked a mail does not say whether it is a threat."""
    assert override_of(told) == override
    if override:
        assert conclude(told) is Conclusion.UNKNOWN


@pytest.mark.parametrize("verdict", [*VERDICTS, "", "somethingNew"])
def test_every_pair_of_words_is_explained(verdict: str) -> None:
    """Whatever verdict comes with whatever detail, there is a cause, with settings or without."""
    for detail in [*DETAILS, None, "somethingNew"]:
        told = result(verdict, detail)
        needed = dict.fromkeys(queries(told, message(), RECIPIENT), ())

        for rows in ({}, needed):
            causes = explained(told, rows=rows)

            assert causes
            assert len(set(rules_of(causes))) == len(causes)


@pytest.mark.parametrize(
    ("told", "final"),
    [
        (result("threatsFound"), True),
        (result("noThreatsFound", status=""), True),
        (result("allowedDueToUserOverride", status="unknownFutureValue"), True),
        (result("", None, status="failed"), True),
        (result("beingAnalyzed", "underInvestigation", status="skipped"), True),
        (result("", None, status="succeeded"), False),
        (result("", None, status=""), False),
        (result("threatsFound", status="running"), False),
        (result("unknown", status="notStarted"), False),
        (result("beingAnalyzed"), False),
        (result("unknown", "underInvestigation"), False),
        (result("unknown", "willNotifyOnceDone"), False),
    ],
)
def test_a_result_is_final_when_microsoft_has_nothing_more_to_say(told: Result, final: bool) -> None:
    """Analysing is not final; given up is; a success without a verdict waits for it."""
    assert is_final(told) is final


@pytest.mark.parametrize("verdict", VERDICTS)
def test_only_a_mail_being_analysed_is_not_final_once_the_submission_succeeded(verdict: str) -> None:
    """Every verdict but `beingAnalyzed` ends the watch."""
    assert is_final(result(verdict)) is (verdict != "beingAnalyzed")


@pytest.mark.parametrize(
    ("told", "conclusion"),
    [
        (result("threatsFound", simulation=True), Conclusion.SIMULATION),
        (result("noThreatsFound", "partOfEducationCampaign"), Conclusion.SIMULATION),
        (override("allowedBySecOps"), Conclusion.UNKNOWN),
        (override("allowedByAdvancedDelivery"), Conclusion.UNKNOWN),
        (result("threatsFound", "goodReclassifiedAsGood"), Conclusion.THREAT),
        (result("noThreatsFound", "goodReclassifiedAsBad"), Conclusion.CLEAN),
        (result("unknownFutureValue", "goodReclassifiedAsBad"), Conclusion.THREAT),
        (result("", None, status="failed"), Conclusion.UNKNOWN),
    ],
)
def test_simulations_come_first_and_details_decide_only_what_verdicts_leave_open(
    told: Result, conclusion: Conclusion
) -> None:
    """A simulation is one whatever the verdict; mail delivered on purpose was never judged."""
    assert conclude(told) is conclusion


def test_a_submission_is_read_as_microsoft_documents_it() -> None:
    """The documented shape: a result with flags in one string, files and URLs."""
    entity = {
        "@odata.type": "#microsoft.graph.security.emailUrlThreatSubmission",
        "id": "49c5ef5b-1f65-444a-e6b9-08d772ea2059",
        "status": "succeeded",
        "createdBy": {"user": {"identity": "c52ce8db", "displayName": "Ronald Admin"}},
        "emailSubject": "drifted name",
        "attackSimulationInfo": None,
        "result": {
            "category": "allowedDueToUserOverride",
            "detail": "allowedByUserSetting",
            "detectedUrls": [URL, None, 7],
            "detectedFiles": [{"fileName": "bill.zip", "fileHash": SHA256}, {"fileName": ""}, "odd"],
            "userMailboxSetting": "isFromDomainInDomainSafeList, isJunkMailRuleEnabled,none",
        },
    }

    assert read_result(entity) == Result(
        graph_id="49c5ef5b-1f65-444a-e6b9-08d772ea2059",
        status="succeeded",
        verdict="allowedDueToUserOverride",
        detail="allowedByUserSetting",
        user_mailbox_settings=("isFromDomainInDomainSafeList", "isJunkMailRuleEnabled"),
        detected_urls=(URL,),
        detected_files=(DetectedFile(name="bill.zip", sha256=SHA256),),
        simulation=False,
    )


def test_a_submission_without_result_or_with_flags_as_a_list_is_read() -> None:
    """Drifted shapes: no result yet, a null, flags as a list, a simulation."""
    assert read_result({"id": "1", "status": "running", "result": None}).verdict == ""
    assert read_result({"attackSimulationInfo": {"attackSimId": "1"}}).simulation
    assert read_result({"result": {"userMailboxSetting": ["customRule", "customRule", 3]}}).user_mailbox_settings == (
        "customRule",
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["fileName", "Domain"]), inner),
    max_leaves=4,
)
RESULT = ["category", "detail", "detectedUrls", "detectedFiles", "userMailboxSetting"]
ANSWERS = st.fixed_dictionaries({}, optional=dict.fromkeys(RESULT, JSON))
ENTITIES = st.fixed_dictionaries(
    {}, optional={"id": JSON, "status": JSON, "attackSimulationInfo": JSON, "result": JSON | ANSWERS}
)


@given(ENTITIES)
@settings(max_examples=150)
def test_no_answer_of_microsoft_breaks_the_reading(entity: dict[str, Any]) -> None:
    """Any JSON object is read, judged and explained."""
    told = read_result(entity)

    assert isinstance(is_final(told), bool)
    assert explained(told)


PROPERTIES = sorted(
    {key for case in CULPRITS for rows in case.rows.values() for row in rows for key in row}
    | {"RecipientDomainIs", "SentTo", "ExceptIfSentTo", "HostedContentFilterPolicy", "Priority", "IsBuiltInProtection"}
)


@given(st.data())
@settings(max_examples=150)
def test_no_row_of_a_cmdlet_breaks_the_explanation(data: st.DataObject) -> None:
    """Rows are read tolerantly: whatever type a property has, there is an explanation."""
    case = data.draw(st.sampled_from(CULPRITS))
    values = JSON | st.sampled_from([SENDER, "fabrikam.example", "192.0.2.0/24", "True", "Default", URL])
    row = st.dictionaries(st.sampled_from(PROPERTIES), values, max_size=6)
    rows = {query: data.draw(st.lists(row, max_size=2)) for query in queries(case.told, case.mail, RECIPIENT)}

    assert explained(case.told, case.mail, rows)


# The order of causes, and what is left unsaid.


def test_what_microsoft_states_comes_before_headers_and_headers_before_weak_settings() -> None:
    """Strongest first: result, then header or named setting, then settings below the recommendation."""
    causes = explained(
        result("allowedDueToOrganizationOverride", "allowedByConnection"),
        message(sfv="SKA", cat="PHSH"),
        {ANTI_SPAM: [default(PhishZapEnabled=False, AllowedSenderDomains=["fabrikam.example"])]},
    )

    assert rules_of(causes) == ["R03", "R04", "R11"]


def test_of_two_stated_causes_the_proven_one_comes_first() -> None:
    """Among equally strong causes the one whose culprit is named leads."""
    causes = explained(
        user_override("customRule", "isFromAddressInAddressSafeList"),
        rows={INBOX_RULES: [{"Name": "Keep", "Enabled": True, "FromAddressContainsWords": ["fabrikam"]}]},
    )

    assert rules_of(causes) == ["R06", "R05"]


def test_a_filter_miss_is_told_before_the_settings_that_contributed() -> None:
    """Without an override the filter missed the mail; weak settings only helped."""
    causes = explained(result("malware"), rows={ANTI_MALWARE: [default(ZapEnabled=False)]})

    assert rules_of(causes) == ["R17", "R11"]


def test_a_change_is_recommended_once() -> None:
    """A weaker cause does not repeat the change of a stronger one, and disappears when nothing is left of it."""
    rows = {
        ANTI_PHISHING: [default(PhishThresholdLevel=1)],
        ANALYZER: [
            {**DRIFT, "Policy": "Default", "AppliedTo": 3},
        ],
    }

    assert rules_of(explained(result("brandImpersonation"), rows=rows)) == ["R14"]


WEAK = default(
    PhishZapEnabled=False,
    SpamZapEnabled=False,
    PhishSpamAction="MoveToJmf",
    AllowedSenderDomains=["fabrikam.example"],
    BulkThreshold=9,
)


def test_a_clean_mail_is_explained_without_a_word_about_settings() -> None:
    """No threat, no cause: whatever the headers and settings, only R19, and nothing is read for it."""
    told, mail = result("noThreatsFound", "allowedByTenant"), message(sfv="SKA", cat="PHSH", dmarc="fail")

    assert rules_of(explained(told, mail, {ANTI_SPAM: [WEAK]})) == ["R19"]
    assert queries(told, mail, RECIPIENT) == frozenset()


def test_a_simulation_is_explained_by_nothing_else() -> None:
    """A simulation was meant to get in: only R08, and nothing is read for one of Microsoft's own."""
    told, mail = result("threatsFound", simulation=True), message(sfv="SKA")

    assert rules_of(explained(told, mail, {ANTI_SPAM: [WEAK]})) == ["R08"]
    assert queries(told, mail, RECIPIENT) == frozenset()


def test_a_mail_that_could_not_be_analysed_is_still_explained_by_its_headers() -> None:
    """No result says why, but the filter's own stamp does; the advice to submit again stays."""
    causes = explained(result("itemNotfound", "messageNotFound"), message(sfv="SKA"), {ANTI_SPAM: [WEAK]})

    assert rules_of(causes) == ["R04", "R20"]


def test_only_settings_that_matter_for_the_kind_of_threat_contribute() -> None:
    """A spam mail says nothing about phishing actions."""
    causes = explained(result("spam"), rows={ANTI_SPAM: [WEAK]})

    assert {
        cause.rule: [change.setting for change in cause.recommendations] for cause in causes if cause.rule == "R11"
    } == {"R11": ["SpamZapEnabled"]}
    assert "R12" not in rules_of(causes)


def test_a_mail_that_claims_the_recipients_domain_is_not_answered_by_blocking_it() -> None:
    """A block of the own domain would stop the tenant's own mail."""
    causes = explained(result("phishing"), message(sender="ceo@mail.contoso.example"))

    assert commands_of(causes) == []


def test_a_spoofed_domain_of_the_tenant_asks_for_its_dns_records() -> None:
    """Composite authentication's reasons 010 and 6xx mean the tenant's own domain."""
    causes = explained(result("spoof"), message(sender="ceo@contoso.example", compauth="fail", compauth_reason="601"))

    assert "DMARC policy for your own domain contoso.example" in causes[0].recommendations[-1].action


def test_evidence_never_quotes_the_mail() -> None:
    """Neither subject nor Message-ID of the mail gets into a cause."""
    for case in CULPRITS:
        told = "".join(cause.model_dump_json() for cause in explained(case.told, case.mail, case.rows))

        assert "Quarterly" not in told
        assert "m1@mail" not in told


# Which policies apply.


def policies_of(rows: Mapping[Query, Sequence[Any]]) -> set[str | None]:
    """Name the anti-spam policies that are blamed for a mail that an allow list let in."""
    listed = {"AllowedSenderDomains": ["fabrikam.example"]}
    policies = [
        {"Name": "Default", "IsDefault": "True", **listed},
        {"Name": "Sales", **listed},
        {"Name": "Board", **listed},
        {"Name": "Strict Preset Security Policy1643", "RecommendedPolicyType": "Strict", **listed},
    ]
    causes = explained(override("allowedByTenant"), rows={ANTI_SPAM: policies, **rows})
    return {change.policy for cause in causes if cause.rule == "R04" for change in cause.recommendations}


def rule_for(policy: str, **conditions: Any) -> dict[str, Any]:
    """Build the row of a rule that assigns an anti-spam policy."""
    return {"Name": f"{policy} rule", "State": "Enabled", "HostedContentFilterPolicy": policy, **conditions}


STRICT = {"Name": "Strict Preset Security Policy", "HostedContentFilterPolicy": "Strict Preset Security Policy1643"}


@pytest.mark.parametrize(
    ("rules", "presets", "blamed"),
    [
        ([], [], {"Default"}),
        ([rule_for("Sales", RecipientDomainIs=["contoso.example"])], [], {"Sales"}),
        ([rule_for("Sales", SentTo=[RECIPIENT]), rule_for("Board", SentTo="bo@contoso.example")], [], {"Sales"}),
        ([rule_for("Sales", State="Disabled")], [], {"Default"}),
        ([rule_for("Sales", SentToMemberOf=["Sales team"])], [], {"Sales", "Default"}),
        ([rule_for("Sales", SentTo=["Ana"], ExceptIfSentTo=[RECIPIENT])], [], {"Default"}),
        ([rule_for("Sales", Priority=1), rule_for("Board", Priority="0")], [], {"Board"}),
        ([rule_for("Sales")], [{**STRICT, "State": "Enabled"}], {"Strict Preset Security Policy1643"}),
        ([rule_for("Sales")], [{**STRICT, "State": "Disabled"}], {"Sales"}),
        ([], [{**STRICT, "State": "Enabled", "RecipientDomainIs": ["example.org"]}], {"Default"}),
    ],
)
def test_only_a_policy_that_may_apply_to_the_recipient_is_blamed(
    rules: list[Any], presets: list[Any], blamed: set[str]
) -> None:
    """The first policy in Microsoft's order applies; a group's members are unknown, so what follows may apply too."""
    assert policies_of({ANTI_SPAM_RULES: rules, EOP_PRESETS: presets}) == blamed


def test_every_custom_policy_may_apply_while_their_rules_are_unread() -> None:
    """Not to know the rules is no alibi for a custom policy; a preset's policy without its rule is not in force."""
    assert policies_of({}) == {"Default", "Sales", "Board"}


@pytest.mark.parametrize(
    "own", [{"Name": "Default"}, {"Name": "Tenant default", "IsDefault": "true"}, {"Name": "Only"}]
)
def test_a_default_policy_is_known_by_name_by_flag_or_by_being_the_only_one(own: dict[str, Any]) -> None:
    """Every tenant has a default policy; if none is marked as such, any policy may apply."""
    policies = {
        ANTI_SPAM: [{**own, "AllowedSenderDomains": ["fabrikam.example"]}],
        ANTI_SPAM_RULES: [],
        EOP_PRESETS: [],
    }

    (cause, *_) = explained(override("allowedByTenant"), rows=policies)

    assert cause.recommendations[0].policy == own["Name"]


@pytest.mark.parametrize("mark", [{"Name": "Built-In Protection Policy"}, {"Name": "P1", "IsBuiltInProtection": True}])
def test_built_in_protection_is_a_policy_of_microsofts_own(mark: dict[str, Any]) -> None:
    """It reaches whom nothing else reaches, and its settings cannot be changed."""
    rows = {SAFE_LINKS: [{**mark, "AllowClickThrough": True}], SAFE_LINKS_RULES: [], MDO_PRESETS: [], BUILT_IN: []}

    assert "R15" not in rules_of(explained(result(detected_urls=(URL,)), rows=rows))


def test_presets_are_never_called_weak() -> None:
    """Nobody but Microsoft can change a preset's policy."""
    preset = {"Name": "Standard Preset Security Policy7", "RecommendedPolicyType": "Standard", "PhishZapEnabled": False}
    rows = {
        ANTI_SPAM: [preset],
        EOP_PRESETS: [{"Name": "Standard Preset Security Policy", "HostedContentFilterPolicy": preset["Name"]}],
    }

    assert rules_of(explained(result("phishing"), rows=rows)) == ["R17"]


def test_a_recipient_excluded_from_built_in_protection_has_no_safe_links() -> None:
    """Built-in protection is the last policy; an exception to it leaves none."""
    rows: dict[Query, Sequence[Any]] = {
        SAFE_LINKS: [{"Name": "Built-In Protection Policy", "IsBuiltInProtection": True}],
        SAFE_LINKS_RULES: [],
        MDO_PRESETS: [],
        BUILT_IN: [{"State": "Enabled", "ExceptIfSentTo": [RECIPIENT]}],
    }
    told = result(detected_urls=(URL,))

    assert "R15" in rules_of(explained(told, rows=rows))
    assert "R15" not in rules_of(explained(told, rows={**rows, BUILT_IN: [{"State": "Enabled"}]}))


@pytest.mark.parametrize(
    ("entry", "address", "subdomains", "covered"),
    [
        ("fabrikam.example", SENDER, True, True),
        ("fabrikam.example", SENDER, False, False),
        ("mail.fabrikam.example", SENDER, False, True),
        ("*.fabrikam.example", SENDER, False, True),
        ("*.mail.fabrikam.example", SENDER, True, False),
        ("@mail.fabrikam.example", SENDER, True, True),
        ("smtp:Invoice@Mail.Fabrikam.example", SENDER, True, True),
        ("other@mail.fabrikam.example", SENDER, True, False),
        ("brikam.example", SENDER, True, False),
        ("*", SENDER, True, False),
        ("", SENDER, True, False),
        ("fabrikam.example", None, True, False),
    ],
)
def test_a_list_entry_covers_an_address_by_address_or_by_whole_labels_of_its_domain(
    entry: str, address: str | None, subdomains: bool, covered: bool
) -> None:
    """Entries are addresses or domains; a domain is never matched inside a label."""
    assert covers(entry, address, subdomains=subdomains) is covered


@pytest.mark.parametrize(
    ("entry", "url", "covered"),
    [
        ("contoso.example", "https://contoso.example/", True),
        ("contoso.example", "contoso.example/a", False),
        ("contoso.example", "https://www.contoso.example", False),
        ("contoso.example", "https://contoso.example@phish.test", False),
        ("contoso.example", "https://abc-contoso.example", False),
        ("contoso.example/a", "http://CONTOSO.example:8080/a", True),
        ("contoso.example/*", "https://contoso.example/?q=1", True),
        ("contoso.example/*", "https://contoso.example", False),
        ("contoso.example/a/*", "contoso.example/a/b/c", True),
        ("contoso.example/a/*", "contoso.example/a", False),
        ("*.contoso.example", "xyz.abc.contoso.example", True),
        ("*.contoso.example", "contoso.example", False),
        ("*.contoso.example/*", "www.contoso.example/b", True),
        ("~contoso.example", "www.contoso.example", True),
        ("~contoso.example", "contoso.example/abc", False),
        ("~contoso.example~", "www.contoso.example/a/b", True),
        ("1.2.3.4", "1.2.3.4/a", False),
        ("", "contoso.example", False),
    ],
)
def test_an_allowed_url_implies_neither_subdomains_nor_subpaths(entry: str, url: str, covered: bool) -> None:
    """The scenarios of Microsoft's URL syntax for allow entries."""
    assert covers_url(entry, url) is covered


@pytest.mark.parametrize(
    ("entry", "within_it"),
    [
        ("192.0.2.25", True),
        ("192.0.2.99/24", True),
        ("192.0.2.1-192.0.2.30", True),
        ("192.0.2.26-192.0.2.30", False),
        ("2001:db8::/32", False),
        ("2001:db8::1-2001:db8::2", False),
        ("mail.fabrikam.example", False),
        ("", False),
    ],
)
def test_an_ip_entry_is_an_address_a_network_or_a_range(entry: str, within_it: bool) -> None:
    """What cannot be read as one of them holds nothing."""
    assert within(entry, "192.0.2.25") is within_it
    assert not within(entry, None)


# Cmdlets are pasted by people with power over the tenant, and hold what attackers chose.

PARAMETER = r"-[A-Z]\w+"
VALUE = r"(?:#|\$true|\$false|\d+|@\{Remove=#\})"
COMMAND = re.compile(rf"[A-Z][a-z]+-\w+(?: {PARAMETER}(?: {VALUE})?)+")
QUOTES = "'\u2018\u2019\u201a\u201b"


def literals(cmdlet: str) -> list[str]:
    """Read a cmdlet as PowerShell does; outside of its single-quoted strings it must be nothing but parameters."""
    values: list[str] = []
    outside, position = "", 0
    while position < len(cmdlet):
        if cmdlet[position] not in QUOTES:
            outside += cmdlet[position]
            position += 1
            continue
        value, position = "", position + 1
        while cmdlet[position] not in QUOTES or cmdlet[position + 1 : position + 2] in tuple(QUOTES):
            value += cmdlet[position]
            position += 2 if cmdlet[position] in QUOTES else 1
        values.append(value)
        outside += "#"
        position += 1
    assert COMMAND.fullmatch(outside), outside
    return values


@pytest.mark.parametrize(
    "hostile",
    [
        "x'; Remove-Mailbox -Identity ana; '",
        "''",
        "'",
        "$(Remove-Item *)",
        "`n; calc",
        "\u2019; Remove-Mailbox ana; \u2018",
        "a\u201ab\u201b",
        '"; calc; "',
        "@{Remove='x'}; calc #",
        "-Confirm:$false",
    ],
)
def test_a_hostile_policy_name_stays_inside_its_quotes(hostile: str) -> None:
    """PowerShell reads back the very name: no quote, straight or curly, ends the string early."""
    rows = {ANTI_SPAM: [default(Name=hostile, AllowedSenderDomains=["fabrikam.example"])]}

    (command,) = commands_of(explained(override("allowedByTenant"), rows=rows))

    assert literals(command) == [hostile, "fabrikam.example"]


@pytest.mark.parametrize("hostile", ["a\nb", "a\r\nRemove-Mailbox ana", "a\x00b", "a\u2028b", "a\u202eb", "a\x1b[2Jb"])
def test_a_name_with_invisible_characters_gets_no_cmdlet(hostile: str) -> None:
    """What cannot be seen is not offered for pasting; the policy is still named, made visible."""
    rows = {ANTI_SPAM: [default(Name=hostile, AllowedSenderDomains=["fabrikam.example"])]}

    (cause, *_) = explained(override("allowedByTenant"), rows=rows)

    assert commands_of([cause]) == []
    assert cause.recommendations[0].policy
    assert all(character.isprintable() for line in cause.evidence for character in line)


def test_a_hostile_sender_is_quoted_in_the_cmdlet_that_blocks_it() -> None:
    """The From address is the attacker's to choose."""
    sender = "o'neil$(calc)`;@fabrikam.example"

    (command,) = commands_of(explained(result("phishing"), message(sender=sender)))

    assert literals(command) == ["Sender", sender]
    assert commands_of(explained(result("phishing"), message(sender="a\n@fabrikam.example"))) == []


@given(st.sampled_from([case for case in CULPRITS if case.rows]), st.text(max_size=40))
@settings(max_examples=300)
def test_no_name_breaks_out_of_any_cmdlet(case: Case, hostile: str) -> None:
    """Whatever the tenant's objects are called, every cmdlet is one command with quoted values."""
    rows = {
        query: [{**row, "Name": hostile, "Identity": hostile, "TagName": hostile} for row in found]
        for query, found in case.rows.items()
    }

    for command in commands_of(explained(case.told, case.mail, rows)):
        literals(command)


def test_endless_names_are_cut_for_people() -> None:
    """Evidence stays readable whatever an entry's length."""
    rows = {ANTI_SPAM: [default(Name="x" * 5000, AllowedSenderDomains=["fabrikam.example"])]}

    assert all(len(line) < 400 for line in explained(override("allowedByTenant"), rows=rows)[0].evidence)
