"""
Why Microsoft would say a mail was let through: one ordered table of rules, the first that applies decides.

Microsoft does not publish how a verdict is reached. The categories and details are those of the Graph beta resource
`submissionResult`; which cause leads to which is inferred from Microsoft Learn, "Admin submission result definitions",
"Anti-spam message headers" and "Create safe sender lists".

`SFV`, `CAT`, `IPV`, `CIP`, `SCL`, `SRV` and `SFTY` are fields of X-Forefront-Antispam-Report, `BCL` of
X-Microsoft-Antispam. A sender is the From or the Return-Path address; a domain condition covers its subdomains unless
it says otherwise. ORG stands for allowedDueToOrganizationOverride, USER for allowedDueToUserOverride.

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
    suspicious_file      an attachment whose name matches RISKY_NAME
                         -> threatsFound, goodReclassifiedAsBad; detectedFiles
    suspicious_wording   two of PHRASES in subject and text
                         -> threatsFound, goodReclassifiedAsBad
    unreadable           the mail is encrypted
                         -> unknown, goodReclassifiedAsCannotMakeDecision
    clean                always
                         -> noThreatsFound, goodReclassifiedAsGood

Block entries do not count: they are made after the mail was delivered, and the question is why it was delivered.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from simulator.mail import Attachment, Mail
from simulator.submissions import Verdict
from simulator.tenant import Mailbox, Tenant

ORGANIZATION = "allowedDueToOrganizationOverride"
USER = "allowedDueToUserOverride"

PHRASES = (
    "verify your account",
    "confirm your identity",
    "confirm your password",
    "password will expire",
    "account will be suspended",
    "unusual sign-in",
    "update your payment",
    "wire transfer",
    "gift card",
    "change of bank details",
    "click the link below",
    "act immediately",
)

RISKY_NAME = re.compile(
    r".*\.(ace|ade|bat|chm|cmd|com|cpl|exe|hta|html?|img|iso|jar|jse?|lnk|msi|one|ps1|scr|shtml|svg|vb[es]|vhd|wsf)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Delivery:
    """A delivered mail under analysis: whose, in which tenant, when it was submitted, and by whom."""

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


Rule = Callable[[Delivery], Verdict | None]


def ordered(delivery: Delivery) -> Verdict | None:
    """Give the verdict that the tenant's settings order for this mail."""
    order = delivery.tenant.settings.verdicts.get(delivery.mail.internet_message_id)
    if order is None:
        return None
    return Verdict(
        order.category, order.detail, order.status, order.user_mailbox_setting, detected_urls=tuple(order.detected_urls)
    )


def not_submitted(delivery: Delivery) -> Verdict | None:
    """Answer when a user's report stayed in the organization's own reporting mailbox."""
    if delivery.source != "user" or all(
        row.get("EnableReportToMicrosoft", True) for row in delivery.rows("ReportSubmissionPolicy")
    ):
        return None
    return Verdict("notSubmittedToMicrosoft", "checkUserReportedSettings", status="skipped")


def not_found(delivery: Delivery) -> Verdict | None:
    """Answer when the recipient has no mailbox in Exchange Online."""
    accepted = delivery.tenant.accepts(delivery.recipient)
    return None if accepted and delivery.mailbox else Verdict("itemNotfound", "messageNotFound")


def simulation(delivery: Delivery) -> Verdict | None:
    """Answer for a phishing simulation announced under advanced delivery."""
    for row in delivery.rows("ExoPhishSimOverrideRule"):
        domains, ranges = _values(row, "Domains"), _values(row, "SenderIpRanges")
        if (domains or ranges) and _sent_from(delivery, domains) and (not ranges or _inside(delivery, ranges)):
            return Verdict("phishingSimulation", "simulatedThreat", simulation=True)
    return None


def secops(delivery: Delivery) -> Verdict | None:
    """Answer for a SecOps mailbox, which receives everything unfiltered."""
    mailboxes = {value for row in delivery.rows("ExoSecOpsOverrideRule") for value in _values(row, "SentTo")}
    return Verdict(ORGANIZATION, "allowedBySecOps") if delivery.recipient.lower() in mailboxes else None


def list_sender(delivery: Delivery) -> Verdict | None:
    """Answer when the Tenant Allow/Block List allows the sender."""
    if delivery.tenant.allow_block_list.allowed_sender(delivery.now, delivery.senders) is None:
        return None
    return Verdict(ORGANIZATION, "allowedSenderByTenantAllowBlockList")


def list_url(delivery: Delivery) -> Verdict | None:
    """Answer when the Tenant Allow/Block List allows a URL of the mail."""
    url = delivery.tenant.allow_block_list.allowed_url(delivery.now, [link.url for link in delivery.mail.links])
    return None if url is None else Verdict(ORGANIZATION, "allowedUrlByTenantAllowBlockList", detected_urls=(url,))


def list_file(delivery: Delivery) -> Verdict | None:
    """Answer when the Tenant Allow/Block List allows an attachment."""
    found = delivery.tenant.allow_block_list.allowed_file(delivery.now, [a.sha256 for a in delivery.mail.attachments])
    files = tuple(a for a in delivery.mail.attachments if a.sha256 == found)
    return Verdict(ORGANIZATION, "allowedFileByTenantAllowBlockList", detected_files=files) if files else None


def transport_rule(delivery: Delivery) -> Verdict | None:
    """Answer when a mail flow rule skips spam filtering for this mail."""
    bypassing = any(
        str(row.get("SetSCL")) == "-1" and row.get("State", "Enabled") == "Enabled" and _rule_matches(delivery, row)
        for row in delivery.rows("TransportRule")
    )
    skipped = delivery.mail.antispam("SFV") == "SKN"
    return Verdict(ORGANIZATION, "allowedByExchangeTransportRule") if bypassing or skipped else None


def connection(delivery: Delivery) -> Verdict | None:
    """Answer when the connecting address is on the IP Allow List."""
    ranges = [value for row in delivery.rows("HostedConnectionFilterPolicy") for value in _values(row, "IPAllowList")]
    allowed = delivery.mail.antispam("IPV") == "CAL" or _inside(delivery, ranges)
    return Verdict(ORGANIZATION, "allowedByConnection") if allowed else None


def tenant_senders(delivery: Delivery) -> Verdict | None:
    """Answer when an anti-spam policy lists the sender or its domain as allowed."""
    rows = delivery.rows("HostedContentFilterPolicy")
    senders = {value for row in rows for value in _values(row, "AllowedSenders")}
    domains = [value for row in rows for value in _values(row, "AllowedSenderDomains")]
    listed = bool(senders & set(delivery.senders)) or (bool(domains) and _sent_from(delivery, domains))
    return Verdict(ORGANIZATION, "allowedByTenant") if listed or delivery.mail.antispam("SFV") == "SKA" else None


def quarantine_release(delivery: Delivery) -> Verdict | None:
    """Answer when somebody released the mail from quarantine."""
    return Verdict(ORGANIZATION, "quarantineReleased") if delivery.mail.antispam("SFV") == "SKQ" else None


def user_setting(delivery: Delivery) -> Verdict | None:
    """Answer when the recipient's own lists trust the mail."""
    box = delivery.mailbox
    if box is None:
        return None
    trusted = {value.lower() for value in box.trusted}
    contacts = {value.lower() for value in box.contacts} if box.contacts_trusted else set()
    recipients = {value.lower() for value in box.trusted_recipients} & set(delivery.mail.recipients)
    addresses, domains = set(delivery.senders), {address.rpartition("@")[2] for address in delivery.senders}
    flags = [
        flag
        for flag, holds in (
            ("isFromAddressInAddressBook", addresses & contacts),
            ("isFromAddressInAddressSafeList", addresses & trusted),
            ("isFromDomainInDomainSafeList", domains & trusted),
            ("isRecipientInRecipientSafeList", recipients),
        )
        if holds
    ]
    if not flags and delivery.mail.antispam("SFV") == "SFE":
        flags = ["isFromAddressInAddressSafeList"]
    if not flags:
        return None
    flags += ["isJunkMailRuleEnabled"] if box.enabled else []
    return Verdict(USER, "allowedByUserSetting", user_mailbox_setting=",".join(flags))


def junk_rule_off(delivery: Delivery) -> Verdict | None:
    """Answer for recognized spam when the recipient's junk email rule is off."""
    scl = delivery.mail.level("SCL")
    box = delivery.mailbox
    return Verdict(USER, "junkMailRuleDisabled") if box and not box.enabled and scl is not None and scl >= 5 else None


def connector(delivery: Delivery) -> Verdict | None:
    """Answer when the mail came through another filter in front of Exchange Online."""
    for row in delivery.rows("InboundConnector"):
        if row.get("Enabled", True) and _inside(delivery, _values(row, "SenderIPAddresses")):
            enhanced = row.get("EFSkipLastIP") or row.get("EFSkipIPs")
            return Verdict(ORGANIZATION, "allowedByEnhancedFiltering" if enhanced else "allowedByThirdPartyFilters")
    return None


def spoof(delivery: Delivery) -> Verdict | None:
    """Answer for a spoofed sender, by an allowed pair or in spite of failed composite authentication."""
    allowed = any(
        str(row.get("Action", "")).lower() == "allow" and _pair_matches(delivery, row)
        for row in delivery.rows("TenantAllowBlockListSpoofItems")
    )
    return Verdict("spoofedAllowed") if allowed or delivery.mail.authenticated("compauth") == "fail" else None


def authentication(delivery: Delivery) -> Verdict | None:
    """Answer when the mail fails DMARC."""
    return Verdict("authenticationFailure") if delivery.mail.authenticated("dmarc") == "fail" else None


def impersonation(delivery: Delivery) -> Verdict | None:
    """Answer when the filter saw an impersonation and let it through."""
    kind = {"UIMP": "user", "DIMP": "domain", "BIMP": "brand"}.get(delivery.mail.antispam("CAT"))
    kind = kind or {"9.20": "user", "9.19": "domain"}.get(delivery.mail.antispam("SFTY"))
    return Verdict(f"{kind}Impersonation", f"{kind}Impersonation") if kind else None


def known_bad(delivery: Delivery) -> Verdict | None:
    """Answer when the mail links to a known bad host or carries a known bad file."""
    urls, files = bad_urls(delivery), bad_files(delivery)
    return _reclassified(urls, files) if urls or files else None


def phish_delivered(delivery: Delivery) -> Verdict | None:
    """Answer when the filter called it a threat, yet the policy's action delivered it."""
    bad = delivery.mail.antispam("CAT") in {"PHSH", "HPHSH", "HPHISH", "MALW"}
    return Verdict("threatsFound", "badReclassifiedAsBad") if bad else None


def bulk(delivery: Delivery) -> Verdict | None:
    """Answer when the mail is bulk by the tenant's threshold."""
    thresholds = [
        int(row["BulkThreshold"]) for row in delivery.rows("HostedContentFilterPolicy") if "BulkThreshold" in row
    ]
    level = delivery.mail.level("BCL")
    named = "BULK" in (delivery.mail.antispam("CAT"), delivery.mail.antispam("SRV"))
    above = level is not None and bool(thresholds) and level >= min(thresholds)
    return Verdict("bulk", "goodReclassifiedAsBulk") if named or above else None


def spam(delivery: Delivery) -> Verdict | None:
    """Answer when the filter called it spam, yet the policy's action delivered it."""
    scl = delivery.mail.level("SCL")
    named = delivery.mail.antispam("CAT") in {"SPM", "HSPM"} or delivery.mail.antispam("SFV") == "SPM"
    return Verdict("spam") if named or (scl is not None and scl >= 5) else None


def suspicious_link(delivery: Delivery) -> Verdict | None:
    """Answer when a link hides where it leads."""
    urls = tuple(link.url for link in delivery.mail.links if _hides(link.url, link.text))
    return _reclassified(tuple(dict.fromkeys(urls))) if urls else None


def suspicious_file(delivery: Delivery) -> Verdict | None:
    """Answer when an attachment runs, or carries script, when it is opened."""
    risky = [a for a in delivery.mail.attachments if RISKY_NAME.fullmatch(a.name)]
    return _reclassified(files=tuple(risky)) if risky else None


def suspicious_wording(delivery: Delivery) -> Verdict | None:
    """Answer when the text presses the reader as phishing does."""
    text = " ".join(f"{delivery.mail.subject} {delivery.mail.text}".lower().split())
    return _reclassified() if sum(phrase in text for phrase in PHRASES) >= 2 else None


def unreadable(delivery: Delivery) -> Verdict | None:
    """Answer when the content cannot be looked at."""
    return Verdict("unknown", "goodReclassifiedAsCannotMakeDecision") if delivery.mail.encrypted else None


def clean(_delivery: Delivery) -> Verdict:
    """Answer that nothing speaks against the mail."""
    return Verdict("noThreatsFound", "goodReclassifiedAsGood")


RULES: tuple[Rule, ...] = (
    ordered,
    not_submitted,
    not_found,
    simulation,
    secops,
    list_sender,
    list_url,
    list_file,
    transport_rule,
    connection,
    tenant_senders,
    quarantine_release,
    user_setting,
    junk_rule_off,
    connector,
    spoof,
    authentication,
    impersonation,
    known_bad,
    phish_delivered,
    bulk,
    spam,
    suspicious_link,
    suspicious_file,
    suspicious_wording,
    unreadable,
    clean,
)


def decide(delivery: Delivery) -> Verdict:
    """Return the verdict of the first rule that applies, marked with the rule's name."""
    for rule in RULES:
        verdict = rule(delivery)
        if verdict is not None:
            return replace(verdict, rule=rule.__name__)
    raise AssertionError("the last rule always applies")


def bad_urls(delivery: Delivery) -> tuple[str, ...]:
    """Return the mail's URLs whose host is known to be bad."""
    hosts = delivery.tenant.settings.known_bad_hosts
    return tuple(
        dict.fromkeys(
            link.url
            for link in delivery.mail.links
            if any(_host(link.url) == host or _host(link.url).endswith("." + host) for host in hosts)
        )
    )


def bad_files(delivery: Delivery) -> tuple[Attachment, ...]:
    """Return the mail's attachments whose hash is known to be bad."""
    hashes = delivery.tenant.settings.known_bad_hashes
    return tuple(attachment for attachment in delivery.mail.attachments if attachment.sha256 in hashes)


def _reclassified(urls: tuple[str, ...] = (), files: tuple[Attachment, ...] = ()) -> Verdict:
    return Verdict("threatsFound", "goodReclassifiedAsBad", detected_urls=urls, detected_files=files)


def _values(row: dict[str, Any], name: str) -> list[str]:
    """Return a property that may be absent, a single value or a list, lower-cased."""
    value = row.get(name)
    values: Iterable[Any] = value if isinstance(value, list) else [] if value is None else [value]
    return [str(item).lower() for item in values]


def _sent_from(delivery: Delivery, domains: list[str]) -> bool:
    """Whether a sender's domain is, or lies under, one of *domains*; no domains match every sender."""
    found = [address.rpartition("@")[2] for address in delivery.senders]
    return not domains or any(d == domain or d.endswith("." + domain) for d in found for domain in domains)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".").lower()


def _inside(delivery: Delivery, ranges: list[str]) -> bool:
    """Whether the connecting address lies in one of *ranges*: single addresses, CIDR or `a-b`."""
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


def _rule_matches(delivery: Delivery, row: dict[str, Any]) -> bool:
    """Whether every sender condition that the mail flow rule sets holds."""
    domains, addresses = _values(row, "SenderDomainIs"), set(_values(row, "From"))
    words, ranges = _values(row, "FromAddressContainsWords"), _values(row, "SenderIpRanges")
    return (
        _sent_from(delivery, domains)
        and (not addresses or bool(addresses & set(delivery.senders)))
        and (not words or any(word in address for word in words for address in delivery.senders))
        and (not ranges or _inside(delivery, ranges))
    )


def _pair_matches(delivery: Delivery, row: dict[str, Any]) -> bool:
    """Whether spoofed user and sending infrastructure are those of the mail."""
    spoofed, infrastructure = str(row.get("SpoofedUser", "")).lower(), str(row.get("SendingInfrastructure", "")).lower()
    user = spoofed in ("*", delivery.mail.sender, delivery.mail.sender_domain)
    envelope_domain = delivery.mail.envelope_sender.rpartition("@")[2]
    return user and (infrastructure in ("*", envelope_domain) or _inside(delivery, [infrastructure]))


def _hides(url: str, text: str) -> bool:
    host = _host(url)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        address = False
    else:
        address = True
    shown = re.match(r"(?:https?://)?((?:[a-z0-9-]+\.)+[a-z]{2,})(?=[/:?#\s]|$)", text.strip().lower())
    other = shown is not None and not _related(shown.group(1), host)
    return address or "@" in urlsplit(url).netloc or "xn--" in host or other


def _related(shown: str, host: str) -> bool:
    """Whether two hosts are the same or one lies under the other, `www.` aside."""
    shown, host = shown.removeprefix("www."), host.removeprefix("www.")
    return shown == host or shown.endswith("." + host) or host.endswith("." + shown)
