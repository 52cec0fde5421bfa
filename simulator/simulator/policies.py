"""
What the `Get-` cmdlets answer in a tenant whose administrator has changed nothing.

Property names and default values follow the reference page of each `Set-` cmdlet on Microsoft Learn. The rows are a
selection of properties: those that say why a mail was let through.
"""

from typing import Any

_CHANGED = "2026-01-15T08:00:00.0000000Z"

_CONNECTION_FILTER = {
    "Identity": "Default",
    "Name": "Default",
    "IsDefault": True,
    "AdminDisplayName": "",
    "IPAllowList": [],
    "IPBlockList": [],
    "EnableSafeList": False,
    "WhenChangedUTC": _CHANGED,
}

_CONTENT_FILTER = {
    "Identity": "Default",
    "Name": "Default",
    "IsDefault": True,
    "RecommendedPolicyType": "Custom",
    "SpamAction": "MoveToJmf",
    "HighConfidenceSpamAction": "MoveToJmf",
    "PhishSpamAction": "MoveToJmf",
    "HighConfidencePhishAction": "Quarantine",
    "BulkSpamAction": "MoveToJmf",
    "MarkAsSpamBulkMail": "On",
    "BulkThreshold": 7,
    "SpamZapEnabled": True,
    "PhishZapEnabled": True,
    "QuarantineRetentionPeriod": 15,
    "SpamQuarantineTag": "DefaultFullAccessPolicy",
    "HighConfidenceSpamQuarantineTag": "DefaultFullAccessPolicy",
    "PhishQuarantineTag": "DefaultFullAccessPolicy",
    "HighConfidencePhishQuarantineTag": "AdminOnlyAccessPolicy",
    "BulkQuarantineTag": "DefaultFullAccessPolicy",
    "AllowedSenders": [],
    "AllowedSenderDomains": [],
    "BlockedSenders": [],
    "BlockedSenderDomains": [],
    "IntraOrgFilterState": "Default",
    "WhenChangedUTC": _CHANGED,
}

_ANTI_PHISH = {
    "Identity": "Office365 AntiPhish Default",
    "Name": "Office365 AntiPhish Default",
    "IsDefault": True,
    "Enabled": True,
    "RecommendedPolicyType": "Custom",
    "PhishThresholdLevel": 1,
    "EnableSpoofIntelligence": True,
    "HonorDmarcPolicy": True,
    "DmarcQuarantineAction": "Quarantine",
    "DmarcRejectAction": "Reject",
    "AuthenticationFailAction": "MoveToJmf",
    "EnableUnauthenticatedSender": True,
    "EnableViaTag": True,
    "EnableFirstContactSafetyTips": False,
    "EnableTargetedUserProtection": False,
    "TargetedUsersToProtect": [],
    "TargetedUserProtectionAction": "NoAction",
    "EnableTargetedDomainsProtection": False,
    "EnableOrganizationDomainsProtection": False,
    "TargetedDomainsToProtect": [],
    "TargetedDomainProtectionAction": "NoAction",
    "EnableMailboxIntelligence": True,
    "EnableMailboxIntelligenceProtection": False,
    "MailboxIntelligenceProtectionAction": "NoAction",
    "EnableSimilarUsersSafetyTips": False,
    "EnableSimilarDomainsSafetyTips": False,
    "EnableUnusualCharactersSafetyTips": False,
    "ExcludedSenders": [],
    "ExcludedDomains": [],
    "WhenChangedUTC": _CHANGED,
}

_MALWARE_FILTER = {
    "Identity": "Default",
    "Name": "Default",
    "IsDefault": True,
    "RecommendedPolicyType": "Custom",
    "ZapEnabled": True,
    "EnableFileFilter": True,
    "FileTypeAction": "Reject",
    "FileTypes": ["ace", "ani", "apk", "app", "exe", "iso", "jar", "js", "lnk", "scr", "vbs", "wsf"],
    "QuarantineTag": "AdminOnlyAccessPolicy",
    "WhenChangedUTC": _CHANGED,
}

_SAFE_LINKS = {
    "Identity": "Built-In Protection Policy",
    "Name": "Built-In Protection Policy",
    "IsBuiltInProtection": True,
    "RecommendedPolicyType": "Built-In",
    "EnableSafeLinksForEmail": True,
    "EnableSafeLinksForTeams": True,
    "EnableSafeLinksForOffice": True,
    "ScanUrls": True,
    "DeliverMessageAfterScan": True,
    "EnableForInternalSenders": False,
    "DisableUrlRewrite": True,
    "TrackClicks": True,
    "AllowClickThrough": True,
    "DoNotRewriteUrls": [],
    "WhenChangedUTC": _CHANGED,
}

_SAFE_ATTACHMENTS = {
    "Identity": "Built-In Protection Policy",
    "Name": "Built-In Protection Policy",
    "IsBuiltInProtection": True,
    "RecommendedPolicyType": "Built-In",
    "Enable": True,
    "Action": "Block",
    "Redirect": False,
    "QuarantineTag": "AdminOnlyAccessPolicy",
    "WhenChangedUTC": _CHANGED,
}

_REPORT_SUBMISSION = {
    "Identity": "DefaultReportSubmissionPolicy",
    "Name": "DefaultReportSubmissionPolicy",
    "EnableReportToMicrosoft": True,
    "EnableThirdPartyAddress": False,
    "ThirdPartyReportAddresses": [],
    "ReportJunkToCustomizedAddress": False,
    "ReportJunkAddresses": [],
    "ReportNotJunkToCustomizedAddress": False,
    "ReportNotJunkAddresses": [],
    "ReportPhishToCustomizedAddress": False,
    "ReportPhishAddresses": [],
    "EnableUserEmailNotification": False,
    "DisableQuarantineReportingOption": False,
    "WhenChangedUTC": _CHANGED,
}


def _quarantine_policy(name: str, permissions: int, *, notify: bool, custom: bool = False) -> dict[str, Any]:
    return {
        "Identity": name,
        "Name": name,
        "QuarantinePolicyType": "QuarantinePolicy",
        "EndUserQuarantinePermissionsValue": permissions,
        "ESNEnabled": notify,
        "IncludeMessagesFromBlockedSenderAddress": False,
        "BuiltIn": not custom,
        "WhenChangedUTC": _CHANGED,
    }


# The custom policy has Preview, Delete, RequestRelease and BlockSender: no preset has the last one.
_QUARANTINE_POLICIES = [
    _quarantine_policy("AdminOnlyAccessPolicy", 0, notify=False),
    _quarantine_policy("DefaultFullAccessPolicy", 39, notify=False),
    _quarantine_policy("DefaultFullAccessWithNotificationPolicy", 39, notify=True),
    _quarantine_policy("RequestAndBlockPolicy", 27, notify=True, custom=True),
    {
        "Identity": "DefaultGlobalTag",
        "Name": "DefaultGlobalTag",
        "QuarantinePolicyType": "GlobalQuarantinePolicy",
        "EndUserSpamNotificationFrequency": "1.00:00:00",
        "EndUserSpamNotificationCustomFromAddress": "",
        "MultiLanguageSetting": ["Default"],
        "MultiLanguageSenderName": [],
        "MultiLanguageCustomDisclaimer": [],
        "ESNCustomSubject": [],
        "OrganizationBrandingEnabled": False,
        "WhenChangedUTC": _CHANGED,
    },
]


def _recommendation(group: str, setting: str, current: str, recommended: str, policy: str) -> dict[str, Any]:
    return {
        "PolicyGroup": group,
        "SettingName": setting,
        "SettingNameDescription": setting,
        "Policy": policy,
        "AppliedTo": "All recipients",
        "CurrentConfiguration": current,
        "Recommendation": recommended,
        "LastModified": _CHANGED,
        "SettingType": "Customizable",
    }


_RECOMMENDATIONS = [
    _recommendation("Anti-spam", "PhishSpamAction", "MoveToJmf", "Quarantine", "Default"),
    _recommendation("Anti-spam", "BulkThreshold", "7", "6", "Default"),
    _recommendation(
        "Anti-phishing", "EnableMailboxIntelligenceProtection", "False", "True", "Office365 AntiPhish Default"
    ),
    _recommendation("Anti-phishing", "PhishThresholdLevel", "1", "3", "Office365 AntiPhish Default"),
]

_ROWS: dict[str, list[dict[str, Any]]] = {
    "Get-TransportRule": [],
    "Get-HostedConnectionFilterPolicy": [_CONNECTION_FILTER],
    "Get-HostedContentFilterPolicy": [_CONTENT_FILTER],
    "Get-HostedContentFilterRule": [],
    "Get-AntiPhishPolicy": [_ANTI_PHISH],
    "Get-AntiPhishRule": [],
    "Get-MalwareFilterPolicy": [_MALWARE_FILTER],
    "Get-MalwareFilterRule": [],
    "Get-SafeLinksPolicy": [_SAFE_LINKS],
    "Get-SafeLinksRule": [],
    "Get-SafeAttachmentPolicy": [_SAFE_ATTACHMENTS],
    "Get-SafeAttachmentRule": [],
    "Get-TenantAllowBlockListSpoofItems": [],
    "Get-InboundConnector": [],
    "Get-ExoSecOpsOverrideRule": [],
    "Get-ExoPhishSimOverrideRule": [],
    "Get-EOPProtectionPolicyRule": [],
    "Get-ATPProtectionPolicyRule": [],
    "Get-ATPBuiltInProtectionRule": [{"Identity": "ATP Built-In Protection Rule", "State": "Enabled"}],
    "Get-ReportSubmissionPolicy": [_REPORT_SUBMISSION],
    "Get-InboxRule": [],
    "Get-QuarantinePolicy": _QUARANTINE_POLICIES,
    "Get-ConfigAnalyzerPolicyRecommendation": _RECOMMENDATIONS,
}


CMDLETS = ("Get-AcceptedDomain", *_ROWS)


def default_rows(cmdlet: str, accepted_domains: list[str]) -> list[dict[str, Any]] | None:
    """Return the default rows of a `Get-` cmdlet; None when the simulator does not know it."""
    if cmdlet == "Get-AcceptedDomain":
        return [
            {
                "Identity": domain,
                "Name": domain,
                "DomainName": domain,
                "DomainType": "Authoritative",
                "Default": position == 0,
                "MatchSubDomains": False,
            }
            for position, domain in enumerate(accepted_domains)
        ]
    return _ROWS.get(cmdlet)
