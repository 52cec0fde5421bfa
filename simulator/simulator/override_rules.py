"""
Rules for messages that were allowed by configuration of the tenant or the mailbox, whatever the filter thought of them.

`simulator.verdicts` lists all rules in order and the condition of each.
"""

from typing import Any

from simulator.delivery import Delivery, connected_from, sent_from, values_of
from simulator.submissions import Verdict

ORGANIZATION = "allowedDueToOrganizationOverride"
USER = "allowedDueToUserOverride"


def ordered(delivery: Delivery) -> Verdict | None:
    """Return the verdict that the tenant's settings prescribe for this message."""
    order = delivery.tenant.settings.verdicts.get(delivery.mail.internet_message_id)
    if order is None:
        return None
    return Verdict(
        order.category, order.detail, order.status, order.user_mailbox_setting, detected_urls=tuple(order.detected_urls)
    )


def not_submitted(delivery: Delivery) -> Verdict | None:
    """Return a verdict if a user's report stayed in the organization's own reporting mailbox."""
    if delivery.source != "user" or all(
        row.get("EnableReportToMicrosoft", True) for row in delivery.rows("ReportSubmissionPolicy")
    ):
        return None
    return Verdict("notSubmittedToMicrosoft", "checkUserReportedSettings", status="skipped")


def not_found(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the recipient has no mailbox in Exchange Online."""
    accepted = delivery.tenant.accepts(delivery.recipient)
    return None if accepted and delivery.mailbox else Verdict("itemNotfound", "messageNotFound")


def simulation(delivery: Delivery) -> Verdict | None:
    """Return a verdict for a phishing simulation announced under advanced delivery."""
    for row in delivery.rows("ExoPhishSimOverrideRule"):
        domains, ranges = values_of(row, "Domains"), values_of(row, "SenderIpRanges")
        if (domains or ranges) and sent_from(delivery, domains) and (not ranges or connected_from(delivery, ranges)):
            return Verdict("phishingSimulation", "simulatedThreat", simulation=True)
    return None


def secops(delivery: Delivery) -> Verdict | None:
    """Return a verdict for a SecOps mailbox, which receives everything unfiltered."""
    mailboxes = {value for row in delivery.rows("ExoSecOpsOverrideRule") for value in values_of(row, "SentTo")}
    return Verdict(ORGANIZATION, "allowedBySecOps") if delivery.recipient.lower() in mailboxes else None


def list_sender(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the Tenant Allow/Block List allows the sender."""
    if delivery.tenant.allow_block_list.allowed_sender(delivery.now, delivery.senders) is None:
        return None
    return Verdict(ORGANIZATION, "allowedSenderByTenantAllowBlockList")


def list_url(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the Tenant Allow/Block List allows a URL of the message."""
    url = delivery.tenant.allow_block_list.allowed_url(delivery.now, [link.url for link in delivery.mail.links])
    return None if url is None else Verdict(ORGANIZATION, "allowedUrlByTenantAllowBlockList", detected_urls=(url,))


def list_file(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the Tenant Allow/Block List allows an attachment."""
    found = delivery.tenant.allow_block_list.allowed_file(delivery.now, [a.sha256 for a in delivery.mail.attachments])
    files = tuple(a for a in delivery.mail.attachments if a.sha256 == found)
    return Verdict(ORGANIZATION, "allowedFileByTenantAllowBlockList", detected_files=files) if files else None


def transport_rule(delivery: Delivery) -> Verdict | None:
    """Return a verdict if a mail flow rule skips spam filtering for this message."""
    bypassing = any(
        str(row.get("SetSCL")) == "-1" and row.get("State", "Enabled") == "Enabled" and _rule_matches(delivery, row)
        for row in delivery.rows("TransportRule")
    )
    skipped = delivery.mail.antispam("SFV") == "SKN"
    return Verdict(ORGANIZATION, "allowedByExchangeTransportRule") if bypassing or skipped else None


def connection(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the connecting address is on the IP Allow List."""
    ranges = [value for row in delivery.rows("HostedConnectionFilterPolicy") for value in values_of(row, "IPAllowList")]
    allowed = delivery.mail.antispam("IPV") == "CAL" or connected_from(delivery, ranges)
    return Verdict(ORGANIZATION, "allowedByConnection") if allowed else None


def tenant_senders(delivery: Delivery) -> Verdict | None:
    """Return a verdict if an anti-spam policy lists the sender or its domain as allowed."""
    rows = delivery.rows("HostedContentFilterPolicy")
    senders = {value for row in rows for value in values_of(row, "AllowedSenders")}
    domains = [value for row in rows for value in values_of(row, "AllowedSenderDomains")]
    listed = bool(senders & set(delivery.senders)) or (bool(domains) and sent_from(delivery, domains))
    return Verdict(ORGANIZATION, "allowedByTenant") if listed or delivery.mail.antispam("SFV") == "SKA" else None


def quarantine_release(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the message was released from quarantine."""
    return Verdict(ORGANIZATION, "quarantineReleased") if delivery.mail.antispam("SFV") == "SKQ" else None


def user_setting(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the recipient's own lists trust the sender."""
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
    """Return a verdict for recognized spam when the recipient's junk email rule is off."""
    scl = delivery.mail.level("SCL")
    box = delivery.mailbox
    return Verdict(USER, "junkMailRuleDisabled") if box and not box.enabled and scl is not None and scl >= 5 else None


def connector(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the message came through another filter in front of Exchange Online."""
    for row in delivery.rows("InboundConnector"):
        if row.get("Enabled", True) and connected_from(delivery, values_of(row, "SenderIPAddresses")):
            enhanced = row.get("EFSkipLastIP") or row.get("EFSkipIPs")
            return Verdict(ORGANIZATION, "allowedByEnhancedFiltering" if enhanced else "allowedByThirdPartyFilters")
    return None


def spoof(delivery: Delivery) -> Verdict | None:
    """Return a verdict for a spoofed sender: an allowed pair, or failed composite authentication."""
    allowed = any(
        str(row.get("Action", "")).lower() == "allow" and _pair_matches(delivery, row)
        for row in delivery.rows("TenantAllowBlockListSpoofItems")
    )
    return Verdict("spoofedAllowed") if allowed or delivery.mail.authenticated("compauth") == "fail" else None


def _rule_matches(delivery: Delivery, row: dict[str, Any]) -> bool:
    """Return True if every sender condition of the mail flow rule holds."""
    domains, addresses = values_of(row, "SenderDomainIs"), set(values_of(row, "From"))
    words, ranges = values_of(row, "FromAddressContainsWords"), values_of(row, "SenderIpRanges")
    return (
        sent_from(delivery, domains)
        and (not addresses or bool(addresses & set(delivery.senders)))
        and (not words or any(word in address for word in words for address in delivery.senders))
        and (not ranges or connected_from(delivery, ranges))
    )


def _pair_matches(delivery: Delivery, row: dict[str, Any]) -> bool:
    """Return True if the spoofed user and the sending infrastructure match the message."""
    spoofed, infrastructure = str(row.get("SpoofedUser", "")).lower(), str(row.get("SendingInfrastructure", "")).lower()
    user = spoofed in ("*", delivery.mail.sender, delivery.mail.sender_domain)
    envelope_domain = delivery.mail.envelope_sender.rpartition("@")[2]
    return user and (infrastructure in ("*", envelope_domain) or connected_from(delivery, [infrastructure]))
