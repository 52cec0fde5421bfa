"""
Why Microsoft would say a message was allowed: one ordered table of rules, of which the first that applies decides.

Microsoft does not publish how a verdict is reached. The categories and details are those of the Graph beta resource
`submissionResult`; which cause leads to which is inferred from Microsoft Learn, "Admin submission result definitions",
"Anti-spam message headers" and "Create safe sender lists".

`SFV`, `CAT`, `IPV`, `CIP`, `SCL`, `SRV` and `SFTY` are fields of X-Forefront-Antispam-Report, `BCL` of
X-Microsoft-Antispam. A sender is the From or the Return-Path address; a domain condition covers its subdomains unless
it says otherwise. ORG stands for allowedDueToOrganizationOverride, USER for allowedDueToUserOverride. The rules up to
`spoof` are functions of `override_rules`, the others of `content_rules`.

    ordered              the tenant setting `verdicts` names the internet message id
                         -> as ordered
    not_submitted        reported by a user, and Get-ReportSubmissionPolicy has EnableReportToMicrosoft false
                         -> notSubmittedToMicrosoft, checkUserReportedSettings; status skipped
    not_found            the recipient's domain is not an accepted domain, or there is no such mailbox
                         -> itemNotfound, messageNotFound
    simulation           Get-ExoPhishSimOverrideRule: a sender is in Domains and CIP in SenderIpRanges; one may be empty
                         -> phishingSimulation, simulatedThreat; attackSimulationInfo is filled
    secops               Get-ExoSecOpsOverrideRule: the recipient is in SentTo
                         -> ORG, allowedBySecOps
    list_sender          an allow entry of the Tenant Allow/Block List names the sender, its domain, or *.its parent
                         -> ORG, allowedSenderByTenantAllowBlockList
    list_url             an allow entry covers a URL of the mail
                         -> ORG, allowedUrlByTenantAllowBlockList; detectedUrls
    list_file            an allow entry names an attachment's SHA-256
                         -> ORG, allowedFileByTenantAllowBlockList; detectedFiles
    transport_rule       Get-TransportRule: an enabled rule with SetSCL -1 whose SenderDomainIs, From,
                         FromAddressContainsWords and SenderIpRanges, as far as set, all match; or SFV:SKN
                         -> ORG, allowedByExchangeTransportRule
    connection           Get-HostedConnectionFilterPolicy: CIP is in IPAllowList; or IPV:CAL
                         -> ORG, allowedByConnection
    tenant_senders       Get-HostedContentFilterPolicy: AllowedSenders or AllowedSenderDomains has a sender; or SFV:SKA
                         -> ORG, allowedByTenant
    quarantine_release   SFV:SKQ
                         -> ORG, quarantineReleased
    user_setting         the mailbox trusts a sender, its domain (exactly), a recipient address, or a contact while
                         ContactsTrusted; or SFV:SFE
                         -> USER, allowedByUserSetting; userMailboxSetting
    junk_rule_off        SCL 5 or more, and the mailbox's junk email rule is off
                         -> USER, junkMailRuleDisabled
    connector            Get-InboundConnector: CIP is in SenderIPAddresses of an enabled connector
                         -> ORG, allowedByEnhancedFiltering if it has EFSkipLastIP or EFSkipIPs; otherwise
                            allowedByThirdPartyFilters
    spoof                Get-TenantAllowBlockListSpoofItems: a pair with Action Allow matches; or compauth=fail
                         -> spoofedAllowed, none
    authentication       dmarc=fail
                         -> authenticationFailure, none
    impersonation        CAT:UIMP or SFTY:9.20 (user), CAT:DIMP or SFTY:9.19 (domain), CAT:BIMP (brand)
                         -> userImpersonation, domainImpersonation or brandImpersonation, as category and detail
    known_bad            a URL's host is in known_bad_hosts, or an attachment's SHA-256 in known_bad_hashes
                         -> threatsFound, goodReclassifiedAsBad; detectedUrls, detectedFiles
    phish_delivered      CAT:PHSH, CAT:HPHSH, CAT:HPHISH or CAT:MALW
                         -> threatsFound, badReclassifiedAsBad
    bulk                 CAT:BULK, SRV:BULK, or BCL at or above the lowest BulkThreshold of the anti-spam policies
                         -> bulk, goodReclassifiedAsBulk
    spam                 CAT:SPM, CAT:HSPM, SFV:SPM, or SCL 5 or more
                         -> spam, none
    suspicious_link      a link to an IP address, with user info, with punycode, or whose text shows another host
                         -> threatsFound, goodReclassifiedAsBad; detectedUrls
    suspicious_file      an attachment whose name matches content_rules.RISKY_NAME
                         -> threatsFound, goodReclassifiedAsBad; detectedFiles
    suspicious_wording   two of content_rules.PHRASES in subject and text
                         -> threatsFound, goodReclassifiedAsBad
    unreadable           the mail is encrypted
                         -> unknown, goodReclassifiedAsCannotMakeDecision
    clean                always
                         -> noThreatsFound, goodReclassifiedAsGood

Block entries do not count: they are added after delivery, and the question is why the message was delivered.
"""

from collections.abc import Callable
from dataclasses import replace

from simulator import content_rules, override_rules
from simulator.delivery import Delivery
from simulator.submissions import Verdict

Rule = Callable[[Delivery], Verdict | None]

RULES: tuple[Rule, ...] = (
    override_rules.ordered,
    override_rules.not_submitted,
    override_rules.not_found,
    override_rules.simulation,
    override_rules.secops,
    override_rules.list_sender,
    override_rules.list_url,
    override_rules.list_file,
    override_rules.transport_rule,
    override_rules.connection,
    override_rules.tenant_senders,
    override_rules.quarantine_release,
    override_rules.user_setting,
    override_rules.junk_rule_off,
    override_rules.connector,
    override_rules.spoof,
    content_rules.authentication,
    content_rules.impersonation,
    content_rules.known_bad,
    content_rules.phish_delivered,
    content_rules.bulk,
    content_rules.spam,
    content_rules.suspicious_link,
    content_rules.suspicious_file,
    content_rules.suspicious_wording,
    content_rules.unreadable,
    content_rules.clean,
)


def decide(delivery: Delivery) -> Verdict:
    """Return the verdict of the first rule that applies, marked with the rule's name."""
    for rule in RULES:
        verdict = rule(delivery)
        if verdict is not None:
            return replace(verdict, rule=rule.__name__)
    raise AssertionError("the last rule always applies")
