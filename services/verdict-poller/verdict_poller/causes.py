"""
How each cause shows in results, headers and settings: one section per rule, in the order of `RULES`.

A rule that always gives the same advice has no function here; its row in the table has the text.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta

from backstop_contracts.events import Conclusion, Message, Recommendation
from verdict_poller.exchange_settings import (
    ConditionTest,
    Family,
    Query,
    Row,
    covers,
    covers_url,
    entries,
    flag,
    is_among,
    is_built_in,
    is_ip_or_network,
    is_on,
    is_unknown,
    matches,
    name,
    number,
    reaches,
    text,
    within,
)
from verdict_poller.findings import (
    BULK,
    IMPERSONATION_WORDS,
    MALWARE,
    PHISHING,
    SPAM,
    Evidence,
    Finding,
    Hit,
    Kind,
    Sign,
    Strength,
    advising_finding,
    contributing_finding,
    finding_of,
    finding_of_sign,
    is_known_threat,
    is_unnamed_override,
    kinds_of,
    listed_entry_hit,
    make_hit,
    upper_case,
    where_to_look,
    words_of,
    wrong_switch_hit,
)
from verdict_poller.powershell import powershell, readable
from verdict_poller.recommended_settings import (
    ACTION_SETTINGS,
    ANALYZED_SETTINGS,
    ANTI_PHISHING,
    ANTI_SPAM,
    BULK_SETTINGS,
    DETONATION_SETTINGS,
    DMARC_SETTINGS,
    EOP_PRESETS,
    IMPERSONATION_SETTINGS,
    SAFE_ATTACHMENTS,
    SAFE_LINKS,
    SPOOF_SETTINGS,
    ZAP_SETTINGS,
    Setting,
    weak_setting_hit,
    weak_settings,
)
from verdict_poller.submission_result import USER_OVERRIDES, Result, conclude

# R01: allow entries in the Tenant Allow/Block List.

TENANT_LIST = "Tenant Allow/Block List"
_LISTS_BY_DETAIL: Mapping[str, tuple[str, ...]] = {
    "allowedByTenantAllowBlockList": ("Sender", "Url", "FileHash"),
    "allowedSenderByTenantAllowBlockList": ("Sender",),
    "allowedUrlByTenantAllowBlockList": ("Url",),
    "allowedFileByTenantAllowBlockList": ("FileHash",),
    "allowedRecipientByTenantAllowBlockList": (),
}
ALLOW_ENTRY = Sign(frozenset(_LISTS_BY_DETAIL))


def _allow_list(kind: str) -> Query:
    return Query("Get-TenantAllowBlockListItems", (("ListType", kind), ("Allow", True)))


def _lists(result: Result, message: Message) -> dict[str, tuple[str, ...]]:
    """Return the lists that may hold the entry, each with the values of the message that an entry can match."""
    hashes = tuple(file.sha256.lower() for file in result.detected_files if file.sha256)
    senders = tuple(filter(None, (message.sender, message.envelope_sender)))
    values = {"Sender": senders, "Url": result.detected_urls, "FileHash": hashes}
    kinds = _LISTS_BY_DETAIL.get(result.detail or "", tuple(values))
    return {kind: values[kind] for kind in kinds if values[kind]}


def read_allow_entry(result: Result, message: Message, _recipient: str) -> list[Query]:
    """Return the queries for the lists that may hold the allow entry."""
    return [_allow_list(kind) for kind in _lists(result, message)]


def find_allow_entry(evidence: Evidence) -> Finding | None:
    """Find the allow entries that match the message's sender, URLs or files."""
    lists = _lists(evidence.result, evidence.message)
    hits = [
        _allow_entry(kind, row)
        for kind, values in lists.items()
        for row in evidence.rows(_allow_list(kind))
        if text(row, "Action").lower() != "block"
        and any(_entry_matches(kind, text(row, "Value"), value) for value in values)
    ]
    return finding_of_sign(
        evidence, ALLOW_ENTRY, hits, _entry_not_shown(evidence, [_allow_list(kind) for kind in lists])
    )


def _entry_not_shown(evidence: Evidence, queries: list[Query]) -> Hit:
    action = (
        f"Find the allow entry for the message's sender, recipient, URL or file in the {TENANT_LIST} and remove it."
    )
    if not queries:
        why = "the result does not say which sender, URL or file the entry matches, so no list was read"
        return make_hit(why, action, TENANT_LIST)
    unread = (query for query in queries if query not in evidence.settings)
    return where_to_look(evidence, next(unread, queries[0]), action, TENANT_LIST)


def _entry_matches(kind: str, entry: str, value: str) -> bool:
    if kind == "Sender":
        return covers(entry, value, subdomains=False)
    return covers_url(entry, value) if kind == "Url" else entry.lower() == value


def _allow_entry(kind: str, row: Row) -> Hit:
    entry = text(row, "Value")
    never_expires = not text(row, "ExpirationDate") and row.get("RemoveAfter") in (None, "", 0)
    return make_hit(
        f"{TENANT_LIST} allows {kind} {readable(entry)}{', without an end date' if never_expires else ''}",
        f"Remove the allow entry {readable(entry)}. Where an allow is needed, give it an end date.",
        f"{kind} allow entry {readable(entry)}",
        TENANT_LIST,
        powershell("Remove-TenantAllowBlockListItems", ListType=kind, Entries=entry),
    )


# R02: mail flow rules that skip spam filtering.

MAIL_FLOW_RULES = Query("Get-TransportRule")
SKIPPED = Sign(frozenset({"allowedByExchangeTransportRule"}), sfv="SKN")
_UNKNOWN_CONDITIONS = (
    "ADComparisonAttribute",
    "ActivationDate",
    "AnyOfCcHeader",
    "AnyOfCcHeaderMemberOf",
    "AnyOfRecipientAddressContainsWords",
    "AnyOfRecipientAddressMatchesPatterns",
    "AnyOfToCcHeader",
    "AnyOfToCcHeaderMemberOf",
    "AnyOfToHeader",
    "AnyOfToHeaderMemberOf",
    "AttachmentContainsWords",
    "AttachmentExtensionMatchesWords",
    "AttachmentHasExecutableContent",
    "AttachmentIsPasswordProtected",
    "AttachmentIsUnsupported",
    "AttachmentMatchesPatterns",
    "AttachmentNameMatchesPatterns",
    "AttachmentProcessingLimitExceeded",
    "AttachmentPropertyContainsWords",
    "AttachmentSizeOver",
    "BetweenMemberOf1",
    "BetweenMemberOf2",
    "ContentCharacterSetContainsWords",
    "ExpiryDate",
    "FromAddressMatchesPatterns",
    "FromMemberOf",
    "FromScope",
    "HasClassification",
    "HasNoClassification",
    "HasSenderOverride",
    "HeaderContainsMessageHeader",
    "HeaderMatchesMessageHeader",
    "ManagerAddresses",
    "MessageContainsDataClassifications",
    "MessageSizeOver",
    "MessageTypeMatches",
    "RecipientADAttributeContainsWords",
    "RecipientADAttributeMatchesPatterns",
    "RecipientAddressContainsWords",
    "RecipientAddressMatchesPatterns",
    "RecipientInSenderList",
    "SCLOver",
    "SenderADAttributeContainsWords",
    "SenderADAttributeMatchesPatterns",
    "SenderInRecipientList",
    "SenderManagementRelationship",
    "SentToMemberOf",
    "SentToScope",
    "SubjectContainsWords",
    "SubjectMatchesPatterns",
    "SubjectOrBodyContainsWords",
    "SubjectOrBodyMatchesPatterns",
    "WithImportance",
)
"""All conditions except those of `_condition_tests`, and time limits (Microsoft Learn, "New-TransportRule")."""


def find_mail_flow_rule(evidence: Evidence) -> Finding | None:
    """Find the mail flow rules that set SCL -1 for the message."""
    stated = SKIPPED.is_stated(evidence.result)
    # Messages from the IP Allow List have SFV:SKN, too, beside IPV:CAL, without any mail flow rule.
    from_allowed_ip = bool(ALLOWED_IP.headers(evidence.message))
    headers = () if from_allowed_ip else SKIPPED.headers(evidence.message)
    rules = _applying_rules(evidence, lambda rule: number(rule.get("SetSCL")) == -1)
    hits = [_skipping_rule(rule, sure=sure) for rule, sure in rules if sure or stated or headers]
    fallback = where_to_look(
        evidence,
        MAIL_FLOW_RULES,
        "Look for mail flow rules that bypass spam filtering (set the SCL to -1) for this message, and turn them off "
        "or narrow them. Also look for inbound connectors that treat the message as internal.",
        "SetSCL",
    )
    finding = finding_of(evidence, hits, fallback, stated=stated, headers=headers)
    # A rule that only may have applied does not identify the cause.
    return finding and replace(finding, exact=any(sure for _, sure in rules))


def _applying_rules(evidence: Evidence, does: Callable[[Row], bool]) -> list[tuple[Row, bool]]:
    """Return the rules that certainly applied to the message and do something, else those that may have; flagged."""
    enforced = [rule for rule in evidence.rows(MAIL_FLOW_RULES) if text(rule, "Mode").lower() in {"", "enforce"}]
    outcomes = [
        (rule, matches(rule, _condition_tests(rule, evidence))) for rule in enforced if is_on(rule) and does(rule)
    ]
    sure = [(rule, True) for rule, outcome in outcomes if outcome]
    return sure or [(rule, False) for rule, outcome in outcomes if outcome is None]


def _condition_tests(rule: Row, evidence: Evidence) -> Mapping[str, ConditionTest]:
    message, recipient = evidence.message, evidence.recipient
    location = text(rule, "SenderAddressLocation").lower()
    header = () if location == "envelope" else (message.sender,)
    senders = (*header, *((message.envelope_sender,) if "envelope" in location else ()))

    def from_network(values: tuple[str, ...]) -> bool | None:
        return any(within(value, message.sender_ip) for value in values) if message.sender_ip else None

    def from_words(values: tuple[str, ...]) -> bool | None:
        known = [sender.lower() for sender in senders if sender]
        return any(value.lower() in sender for value in values for sender in known) if known else None

    return {
        **dict.fromkeys(_UNKNOWN_CONDITIONS, is_unknown),
        "From": lambda values: is_among(values, *senders),
        "FromAddressContainsWords": from_words,
        "RecipientDomainIs": lambda values: is_among(values, recipient),
        "SenderDomainIs": lambda values: is_among(values, *senders),
        "SenderIpRanges": from_network,
        "SentTo": lambda values: is_among(values, recipient),
    }


def _skipping_rule(rule: Row, *, sure: bool) -> Hit:
    title, domains = f"the mail flow rule '{readable(name(rule))}'", ", ".join(entries(rule.get("SenderDomainIs")))
    return make_hit(
        f"mail flow rule '{readable(name(rule))}' sets SCL -1, "
        + ("its conditions match the message" if sure else "and whether it applied to the message is unknown")
        + (f" (SenderDomainIs {readable(domains)})" if domains else ""),
        (f"Turn off {title}" if sure else f"Find out whether {title} applied to the message; if so, turn it off")
        + ", or narrow it: a sender's domain alone must never skip spam filtering; require dmarc=pass in "
        "Authentication-Results, or the sender's IP address, as well.",
        "SetSCL",
        name(rule),
        # A rule that may be unrelated to the message should not be turned off.
        powershell("Disable-TransportRule", Identity=name(rule)) if sure else None,
    )


# R03: the IP Allow List.

CONNECTION_FILTER = Query("Get-HostedConnectionFilterPolicy")
ALLOWED_IP = Sign(frozenset({"allowedByConnection"}), ipv="CAL")


def find_allowed_ip(evidence: Evidence) -> Finding | None:
    """Find the sending IP address in the IP Allow List, or the safe list switched on."""
    setter, policies = "Set-HostedConnectionFilterPolicy", evidence.rows(CONNECTION_FILTER)
    why = (
        "its mail skips spam filtering and sender authentication; what must stay should be /24 or smaller, and no "
        "shared infrastructure"
    )
    hits = [
        listed_entry_hit(setter, name(policy), "IPAllowList", entry, why)
        for policy in policies
        for entry in entries(policy.get("IPAllowList"))
        if within(entry, evidence.message.sender_ip)
    ]
    if not hits and ALLOWED_IP.is_stated(evidence.result):
        safe = [policy for policy in policies if flag(policy.get("EnableSafeList"))]
        why = "its senders skip spam filtering"
        hits = [wrong_switch_hit(setter, name(policy), "EnableSafeList", why, to=False) for policy in safe]
    fallback = where_to_look(
        evidence,
        CONNECTION_FILTER,
        "Look for the sending IP address in the IP Allow List of the connection filter policy and remove it.",
        "IPAllowList",
    )
    return finding_of_sign(evidence, ALLOWED_IP, hits, fallback)


# R04: allowed senders and domains of anti-spam policies, which check only the From address.

ALLOWED_SENDER = Sign(frozenset({"allowedByTenant"}), sfv="SKA")


def find_allowed_sender(evidence: Evidence) -> Finding | None:
    """Find the sender in the allow lists of the anti-spam policies that may apply."""
    why = (
        "anybody who uses it as sender skips spam, spoof and phishing filtering; where an allow is needed, use the "
        f"{TENANT_LIST}"
    )
    hits = [
        listed_entry_hit(ANTI_SPAM.setter, name(policy), setting, entry, why)
        for policy in evidence.in_force(ANTI_SPAM)
        for setting in ("AllowedSenders", "AllowedSenderDomains")
        for entry in entries(policy.get(setting))
        if covers(entry, evidence.message.sender)
    ]
    fallback = where_to_look(
        evidence,
        ANTI_SPAM.policies,
        "Look for the sender in the allowed senders and allowed domains of the anti-spam policies and empty the "
        "lists; also look for actions of the policies that deliver what the filter recognises.",
        "AllowedSenders, AllowedSenderDomains",
    )
    return finding_of_sign(evidence, ALLOWED_SENDER, hits, fallback)


# R05: safe lists and contacts of the recipient's mailbox.

_SAFE_SENDER = Sign(USER_OVERRIDES | {"allowedByUserSetting"}, sfv="SFE")
_SAFE_FLAGS = frozenset(
    {"isFromAddressInAddressSafeList", "isFromDomainInDomainSafeList", "isRecipientInRecipientSafeList"}
)
_TRUST_FLAGS = _SAFE_FLAGS | {"isFromAddressInAddressBook", "isFromAddressInAddressImplicitSafeList"}
_JUNK_SETTER = "Set-MailboxJunkEmailConfiguration"


def _junk_settings(recipient: str) -> Query:
    return Query("Get-MailboxJunkEmailConfiguration", (("Identity", recipient),))


def _mailbox_flags(result: Result, flags: frozenset[str]) -> tuple[str, ...]:
    return tuple(f"mailbox setting {setting}" for setting in result.user_mailbox_settings if setting in flags)


def suspects_safe_sender(result: Result, message: Message) -> bool:
    """Return True if the mailbox's safe lists or contacts may have let the message through."""
    if _SAFE_SENDER.is_stated(result):
        by_rule = _JUNK_RULE_OFF.is_stated(result) or bool(_mailbox_flags(result, _RULE_FLAGS))
        return bool(_mailbox_flags(result, _TRUST_FLAGS)) or not by_rule
    return _SAFE_SENDER.appears(result, message) or bool(_mailbox_flags(result, _SAFE_FLAGS))


def read_safe_sender(_result: Result, _message: Message, recipient: str) -> list[Query]:
    """Return the query for the mailbox's junk email settings."""
    return [_junk_settings(recipient)]


def find_safe_sender(evidence: Evidence) -> Finding | None:
    """Find the sender among the mailbox's trusted senders, domains and contacts."""
    result, recipient = evidence.result, evidence.recipient
    hits = []
    for row in evidence.rows(_junk_settings(recipient)):
        trusted = [
            entry for entry in entries(row.get("TrustedSendersAndDomains")) if covers(entry, evidence.message.sender)
        ]
        why = "its mail skips filtering in this mailbox; keep such entries out by Group Policy"
        hits += [listed_entry_hit(_JUNK_SETTER, recipient, "TrustedSendersAndDomains", entry, why) for entry in trusted]
        if "isFromAddressInAddressBook" in result.user_mailbox_settings and flag(row.get("ContactsTrusted")):
            why = "an address in the contacts skips filtering"
            hits.append(wrong_switch_hit(_JUNK_SETTER, recipient, "ContactsTrusted", why, to=False))
    fallback = where_to_look(
        evidence,
        _junk_settings(recipient),
        "Look for the sender in the mailbox's safe senders, safe recipients and trusted contacts, and remove it.",
        "TrustedSendersAndDomains",
    )
    headers = (*_mailbox_flags(result, _TRUST_FLAGS), *_SAFE_SENDER.headers(evidence.message))
    return finding_of(evidence, hits, fallback, stated=_SAFE_SENDER.is_stated(result), headers=headers)


# R06: rules of the recipient's mailbox that keep messages out of Junk Email.

_JUNK_RULE_OFF = Sign(frozenset({"junkMailRuleDisabled"}))
_RULE_FLAGS = frozenset({"customRule"})


def _inbox_rules(recipient: str) -> Query:
    return Query("Get-InboxRule", (("Mailbox", recipient),))


def suspects_mailbox_rule(result: Result, _message: Message) -> bool:
    """Return True if an inbox rule, or a junk email rule that is off, may have let the message through."""
    by_rule = _SAFE_SENDER.is_stated(result) and bool(_mailbox_flags(result, _RULE_FLAGS))
    return _JUNK_RULE_OFF.is_stated(result) or by_rule


def read_mailbox_rule(result: Result, _message: Message, recipient: str) -> list[Query]:
    """Return the query for the junk email settings or the inbox rules, whichever are suspected."""
    return [_junk_settings(recipient) if _JUNK_RULE_OFF.is_stated(result) else _inbox_rules(recipient)]


def find_mailbox_rule(evidence: Evidence) -> Finding | None:
    """Find the junk email rule turned off, or the inbox rules that name the sender."""
    recipient = evidence.recipient
    (query,) = read_mailbox_rule(evidence.result, evidence.message, recipient)
    if _JUNK_RULE_OFF.is_stated(evidence.result):
        off = [row for row in evidence.rows(query) if flag(row.get("Enabled")) is False]
        why = "the mailbox's lists are used after delivery only while it is on"
        hits = [wrong_switch_hit(_JUNK_SETTER, recipient, "Enabled", why, to=True) for _ in off]
    else:
        named = [
            rule for rule in evidence.rows(query) if is_on(rule) and _inbox_rule_names_sender(rule, evidence.message)
        ]
        hits = [_inbox_rule(recipient, name(rule)) for rule in named]
    fallback = where_to_look(
        evidence,
        query,
        "Review the mailbox's inbox rules and junk email settings: one of them kept the message out of Junk Email.",
        "Inbox rules",
    )
    return finding_of(evidence, hits, fallback, stated=True, headers=_mailbox_flags(evidence.result, _RULE_FLAGS))


def _inbox_rule_names_sender(rule: Row, message: Message) -> bool:
    """Return True if an inbox rule names the sender, as `"Name" [SMTP:address]` or by words of the address."""
    sender = (message.sender or "").lower()
    senders = (value.lower() for value in entries(rule.get("From")))
    words = (value.lower() for value in entries(rule.get("FromAddressContainsWords")))
    return bool(sender) and (any(sender in value for value in senders) or any(word in sender for word in words))


def _inbox_rule(mailbox: str, rule: str) -> Hit:
    return make_hit(
        f"inbox rule '{readable(rule)}' of the recipient's mailbox names the sender",
        f"Review the inbox rule '{readable(rule)}' with its owner and turn it off.",
        f"Inbox rule {readable(rule)}",
        mailbox,
        powershell("Disable-InboxRule", Mailbox=mailbox, Identity=rule),
    )


# R07: advanced delivery to SecOps mailboxes.

SECOPS_MAILBOXES = Query("Get-ExoSecOpsOverrideRule")
_SECOPS = Sign(frozenset({"allowedBySecOps", "allowedByAdvancedDelivery"}))


def suspects_secops_mailbox(result: Result, message: Message) -> bool:
    """Return True if the message may have gone to a SecOps mailbox."""
    return _SECOPS.appears(result, message) or is_unnamed_override(result)


def find_secops_mailbox(evidence: Evidence) -> Finding | None:
    """Find the recipient among the SecOps mailboxes; None if a simulation explains the message better."""
    mailboxes = [entry.lower() for row in evidence.rows(SECOPS_MAILBOXES) for entry in entries(row.get("SentTo"))]
    listed = evidence.recipient.lower() in mailboxes
    if not listed and _simulations(evidence):
        return None
    fallback = where_to_look(
        evidence,
        SECOPS_MAILBOXES,
        "Check that the mailbox belongs among the SecOps mailboxes of the advanced delivery policy.",
        "SentTo",
    )
    return finding_of_sign(evidence, _SECOPS, [_secops_mailbox(evidence.recipient)] if listed else [], fallback)


def _secops_mailbox(mailbox: str) -> Hit:
    policy = "SecOpsOverridePolicy"
    return make_hit(
        "the advanced delivery policy lists the recipient as a SecOps mailbox",
        "Leave it if this is the reporting mailbox, which has to get mail unfiltered. Otherwise remove it from the "
        "SecOps mailboxes.",
        "SentTo",
        policy,
        powershell("Set-SecOpsOverridePolicy", Identity=policy, RemoveSentTo=mailbox),
    )


# R08: advanced delivery of phishing simulations.

PHISHING_SIMULATIONS = Query("Get-ExoPhishSimOverrideRule")


def _simulations(evidence: Evidence) -> list[str]:
    """Return the names of the phishing simulation rules that match the message's domain and sending IP address."""
    message = evidence.message
    return [
        name(row)
        for row in evidence.rows(PHISHING_SIMULATIONS)
        if is_among(entries(row.get("Domains")), message.envelope_sender, message.sender)
        and any(within(entry, message.sender_ip) for entry in entries(row.get("SenderIpRanges")))
    ]


def suspects_simulation(result: Result, _message: Message) -> bool:
    """Return True if the message may be a simulated attack."""
    return conclude(result) is Conclusion.SIMULATION or result.detail == "allowedByAdvancedDelivery"


def read_simulation(result: Result, _message: Message, _recipient: str) -> list[Query]:
    """Return the query for the phishing simulations; none if the submission itself is marked as one."""
    return [] if result.simulation else [PHISHING_SIMULATIONS]


def find_simulation(evidence: Evidence) -> Finding | None:
    """Find what shows that the message is a simulation."""
    rules = _simulations(evidence)
    if not rules and conclude(evidence.result) is not Conclusion.SIMULATION:
        return None
    training = ("the submission carries attack simulation details",) if evidence.result.simulation else ()
    named = (f"phishing simulation rule '{readable(rule)}' lists the message's domain and IP address" for rule in rules)
    action = "Close the case as a simulation and thank the user who reported it. Block nothing."
    finding = advising_finding(evidence, Strength.STATED, action)
    return replace(finding, evidence=(*finding.evidence, *training, *named), exact=bool(rules))


# R09: another filter in front of Microsoft 365.

INBOUND_CONNECTORS = Query("Get-InboundConnector")
OTHER_FILTER = Sign(frozenset({"allowedByEnhancedFiltering", "allowedByThirdPartyFilters"}))


def find_other_filter(evidence: Evidence) -> Finding | None:
    """Find the inbound connectors on which Enhanced Filtering is missing or skips the sending IP address."""
    used = [row for row in evidence.rows(INBOUND_CONNECTORS) if is_on(row) and _carries(row, evidence.message)]
    if evidence.result.detail == "allowedByEnhancedFiltering":
        hits = [
            listed_entry_hit(
                "Set-InboundConnector", name(row), "EFSkipIPs", entry, "only addresses of your own gateway belong there"
            )
            for row in used
            for entry in entries(row.get("EFSkipIPs"))
            if within(entry, evidence.message.sender_ip)
        ]
    else:
        why = "Enhanced Filtering lets Microsoft 365 see the original sending IP address instead of the last hop"
        plain = [row for row in used if not _is_enhanced(row, evidence.recipient)]
        hits = [wrong_switch_hit("Set-InboundConnector", name(row), "EFSkipLastIP", why, to=True) for row in plain]
    fallback = where_to_look(
        evidence,
        INBOUND_CONNECTORS,
        "Point the MX record at Microsoft 365. With another filter in front, configure Enhanced Filtering for "
        "Connectors and trusted ARC sealers, and remove mail flow rules that set SCL -1 for its addresses.",
        "Enhanced Filtering for Connectors",
    )
    return finding_of_sign(evidence, OTHER_FILTER, hits, fallback)


def _carries(connector: Row, message: Message) -> bool:
    """Return True if the message may have come through a connector."""
    addresses, sender = entries(connector.get("SenderIPAddresses")), message.sender_ip
    return not addresses or not sender or any(within(address, sender) for address in addresses)


def _is_enhanced(connector: Row, recipient: str) -> bool:
    """Return True if Enhanced Filtering for Connectors is active for the recipient on a connector."""
    configured = flag(connector.get("EFSkipLastIP")) is True or bool(entries(connector.get("EFSkipIPs")))
    users = entries(connector.get("EFUsers"))
    included = not users or is_among(users, recipient) is not False
    return configured and included and flag(connector.get("EFTestMode")) is not True


# R10: messages released from quarantine.

RELEASED = Sign(
    frozenset({"quarantineReleased", "quarantineReleasedThenBlocked", "zeroHourAutoPurgeQuarantineReleased"}), sfv="SKQ"
)
_PERMISSIONS = "EndUserQuarantinePermissionsValue"
_LIMITED_ACCESS = 43  # Delete 1, preview 2, request release 8, allow sender 32.
_FIXED_POLICIES = frozenset(
    {
        "AdminOnlyAccessPolicy",
        "DefaultFullAccessPolicy",
        "DefaultFullAccessWithNotificationPolicy",
        "NotificationEnabledPolicy",
    }
)


_QUARANTINE_PERIOD = timedelta(days=30) - timedelta(hours=1)
"""Longest period that Get-QuarantineMessage searches, less a margin for clock skew; its default is 16 days."""


def _quarantined(message: Message, recipient: str) -> Query:
    filters = (("MessageId", message.internet_message_id or ""), ("RecipientAddress", recipient))
    return Query("Get-QuarantineMessage", (*filters, ("StartReceivedDate", _QUARANTINE_PERIOD)))


def read_release(_result: Result, message: Message, recipient: str) -> list[Query]:
    """Return the query for the message in quarantine."""
    # Without a Message-ID the cmdlet would list the whole quarantine.
    return [_quarantined(message, recipient)] if message.internet_message_id else []


def find_release(evidence: Evidence) -> Finding | None:
    """Find out that the message was released from quarantine, and whether its recipient did it."""
    query = _quarantined(evidence.message, evidence.recipient)
    released = [
        row
        for row in evidence.rows(query)
        if text(row, "ReleaseStatus").lower() == "released" or flag(row.get("Released"))
    ]
    fallback = where_to_look(
        evidence,
        query,
        "Find out who released the message from quarantine. Let users request a release instead of releasing "
        "messages themselves.",
        _PERMISSIONS,
    )
    return finding_of_sign(evidence, RELEASED, [_release(row, evidence.recipient) for row in released], fallback)


def _release(row: Row, recipient: str) -> Hit:
    policy, people = text(row, "TagName"), {person.lower() for person in entries(row.get("ReleasedBy"))}
    if not people:
        shown = "the message was released from quarantine; Exchange does not say by whom"
        return make_hit(shown, "Find out who released the message from quarantine, and review why.")
    if recipient.lower() not in people:
        shown = "the message was released from quarantine by somebody other than its recipient"
        return make_hit(shown, "Review with whoever approved the release why it was approved.")
    change = powershell("Set-QuarantinePolicy", Identity=policy, **{_PERMISSIONS: _LIMITED_ACCESS})
    return make_hit(
        f"the message was released from quarantine by its recipient, as quarantine policy '{readable(policy)}' allows",
        "Use a quarantine policy by which users request a release instead of releasing messages themselves.",
        _PERMISSIONS,
        policy,
        None if policy in _FIXED_POLICIES else change,
    )


# R11: zero-hour auto purge.


def _zap_settings(result: Result, message: Message) -> list[tuple[Family, Setting]]:
    kinds = kinds_of(result, message)
    return [(family, setting) for family, setting in ZAP_SETTINGS if setting.kinds & kinds]


def read_zap(result: Result, message: Message, _recipient: str) -> list[Query]:
    """Return the queries for the policies whose zero-hour auto purge should have removed the message."""
    return [query for family, _ in _zap_settings(result, message) for query in family.reads]


def find_zap(evidence: Evidence) -> Finding | None:
    """Find the policies in which zero-hour auto purge is off for this kind of threat."""
    expected = _zap_settings(evidence.result, evidence.message)
    return contributing_finding(
        [hit for family, setting in expected for hit in weak_settings(evidence, family, [setting])]
    )


# R12: policy actions that deliver messages recognised as a threat.


def find_weak_action(evidence: Evidence) -> Finding | None:
    """Find the anti-spam actions below the recommendation; decisive if the message's category triggered one of them."""
    category = upper_case(evidence.message.delivery.cat)
    decisive = weak_settings(
        evidence, ANTI_SPAM, [setting for setting in ACTION_SETTINGS if category in setting.categories]
    )
    if decisive:
        recognised = f"header CAT:{category}: the filter recognised the message and took the policy's action"
        return finding_of(evidence, decisive, None, stated=False, headers=[recognised])
    kinds = kinds_of(evidence.result, evidence.message)
    return contributing_finding(
        weak_settings(evidence, ANTI_SPAM, [setting for setting in ACTION_SETTINGS if setting.kinds & kinds])
    )


# R13: spoofing.

SPOOF_ALLOWS = Query("Get-TenantAllowBlockListSpoofItems", (("Action", "Allow"),))
_SPOOFED = Sign(
    frozenset({"spoof", "spoofedAllowed", "authenticationFailure", "senderFailedAuthentication", "endUserBeingSpoofed"})
)


def _compauth_reason(message: Message) -> str:
    return (message.delivery.compauth_reason or "").strip()


def _claims_own_domain(message: Message) -> bool:
    return _compauth_reason(message) == "010" or bool(re.fullmatch("6[0-9]{2}", _compauth_reason(message)))


def _failed_checks(message: Message) -> list[str]:
    """Return the headers that show failed authentication (Microsoft Learn, "Anti-spam message headers")."""
    delivery, reason = message.delivery, _compauth_reason(message)
    action, failed = (delivery.dmarc_action or "").lower(), []
    if (delivery.compauth or "").lower() == "fail" and (reason in {"000", "001"} or _claims_own_domain(message)):
        failed.append(f"header compauth=fail reason={reason}")
    if (delivery.dmarc or "").lower() == "fail" and action in {"none", "oreject", "pct.quarantine", "pct.reject"}:
        failed.append(f"header dmarc=fail action={action}")
    return failed


def suspects_spoof(result: Result, message: Message) -> bool:
    """Return True if the result or a failed authentication shows spoofing."""
    return _SPOOFED.is_stated(result) or bool(_failed_checks(message))


def find_spoof(evidence: Evidence) -> Finding | None:
    """Find the spoofed sender among the allowed pairs, and spoof protection below the recommendation."""
    message, stated = evidence.message, _SPOOFED.is_stated(evidence.result)
    # Reasons 000 and 010: the sender's DMARC policy asks for quarantine or rejection.
    unmet = DMARC_SETTINGS if _compauth_reason(message) in {"000", "010"} else ()
    pairs = [row for row in evidence.rows(SPOOF_ALLOWS) if _pair_matches(row, message)]
    hits = [*map(_spoof_pair, pairs), *weak_settings(evidence, ANTI_PHISHING, (*SPOOF_SETTINGS, *unmet))]
    fallback = where_to_look(
        evidence,
        SPOOF_ALLOWS,
        f"Look for the sender among the spoofed senders that the {TENANT_LIST} allows, and check that the "
        "anti-phishing policies use spoof intelligence and honour DMARC policies.",
        "EnableSpoofIntelligence, HonorDmarcPolicy",
    )
    # A failed check alone explains nothing: much legitimate mail fails, and spoof intelligence judges it.
    finding = finding_of(
        evidence, hits, fallback, stated=stated, headers=_failed_checks(message) if stated or hits else ()
    )
    if finding and _claims_own_domain(message) and message.sender_domain:
        action = (
            f"Publish SPF, DKIM and an enforced DMARC policy for your own domain {readable(message.sender_domain)}."
        )
        return replace(finding, recommendations=(*finding.recommendations, Recommendation(action=action)))
    return finding


def _pair_matches(row: Row, message: Message) -> bool:
    """Return True if an allow pair may match the message. An infrastructure given by name cannot be checked here."""
    user, infrastructure = text(row, "SpoofedUser"), text(row, "SendingInfrastructure")
    if text(row, "Action").lower() == "block" or not infrastructure:
        return False
    from_user = user == "*" or covers(user, message.sender, subdomains=False)
    return from_user and (not is_ip_or_network(infrastructure) or within(infrastructure, message.sender_ip))


def _spoof_pair(row: Row) -> Hit:
    pair = f"{readable(text(row, 'SpoofedUser'))}, {readable(text(row, 'SendingInfrastructure'))}"
    return make_hit(
        f"{TENANT_LIST} allows the spoofed sender {pair}",
        f"Remove the allow entry for the spoofed sender {pair}; such entries never expire.",
        f"Spoofed sender allow entry {pair}",
        TENANT_LIST,
        powershell("Remove-TenantAllowBlockListSpoofItems", Identity="Default", Ids=text(row, "Identity")),
    )


# R14: impersonation.

_IMPERSONATED = Sign(frozenset(IMPERSONATION_WORDS))
_IMPERSONATION_CATEGORIES = {"DIMP": "domain", "UIMP": "user", "GIMP": "mailbox intelligence", "BIMP": "brand"}
_IMPERSONATION_TIPS = {"9.19": "domain", "9.20": "user"}


def _impersonation_headers(message: Message) -> dict[str, str]:
    """Map each header that indicates impersonation to the kind it indicates."""
    category, tip = upper_case(message.delivery.cat), upper_case(message.delivery.sfty)
    by_category = {f"header CAT:{category}": _IMPERSONATION_CATEGORIES.get(category)}
    by_tip = {f"header SFTY:{tip}": _IMPERSONATION_TIPS.get(tip)}
    return {header: kind for header, kind in {**by_category, **by_tip}.items() if kind}


def suspects_impersonation(result: Result, message: Message) -> bool:
    """Return True if the result or the headers show impersonation."""
    return _IMPERSONATED.is_stated(result) or bool(_impersonation_headers(message))


def find_impersonation(evidence: Evidence) -> Finding | None:
    """Find the sender among the trusted ones, and impersonation protection below the recommendation."""
    headers, words = _impersonation_headers(evidence.message), words_of(evidence.result) & IMPERSONATION_WORDS.keys()
    kinds = sorted({IMPERSONATION_WORDS[word] for word in words} | set(headers.values()))
    trusted = [
        listed_entry_hit(
            ANTI_PHISHING.setter, name(policy), setting, entry, "it is exempt from impersonation protection"
        )
        for policy in evidence.in_force(ANTI_PHISHING)
        for setting in ("ExcludedSenders", "ExcludedDomains")
        for entry in entries(policy.get(setting))
        if covers(entry, evidence.message.sender, subdomains=False)
    ]
    settings = [setting for kind in kinds for setting in IMPERSONATION_SETTINGS[kind]]
    fallback = where_to_look(
        evidence,
        ANTI_PHISHING.policies,
        f"Check the protection from impersonation ({', '.join(kinds)}) in the anti-phishing policies: who is "
        "protected, what is done, and which senders and domains are trusted.",
        "Impersonation protection",
    )
    hits = [*trusted, *weak_settings(evidence, ANTI_PHISHING, settings)]
    return finding_of(evidence, hits, fallback, stated=bool(words), headers=tuple(headers))


# R15: Safe Links and Safe Attachments.

BUILT_IN_PROTECTION = Query("Get-ATPBuiltInProtectionRule")
_SKIPPING_HEADERS = {
    "x-ms-exchange-organization-skipsafelinksprocessing": SAFE_LINKS,
    "x-ms-exchange-organization-skipsafeattachmentprocessing": SAFE_ATTACHMENTS,
}


def _detonating_families(result: Result, message: Message) -> list[Family]:
    """Return the protections that should have checked the message's links or files."""
    by_file = Kind.MALWARE in kinds_of(result, message)
    return [*([SAFE_LINKS] if result.detected_urls else []), *([SAFE_ATTACHMENTS] if by_file else [])]


def suspects_detonation(result: Result, message: Message) -> bool:
    """Return True if Safe Links or Safe Attachments should have caught the message."""
    return is_known_threat(result, message) and bool(_detonating_families(result, message))


def read_detonation(result: Result, message: Message, _recipient: str) -> list[Query]:
    """Return the queries for the mail flow rules and the protections that should have caught the message."""
    by_family = [query for family in _detonating_families(result, message) for query in family.reads]
    return [MAIL_FLOW_RULES, BUILT_IN_PROTECTION, *by_family]


def find_detonation(evidence: Evidence) -> Finding | None:
    """Find what made the message skip Safe Links or Safe Attachments, or weakened them."""
    families = _detonating_families(evidence.result, evidence.message)
    skipping = _applying_rules(evidence, lambda rule: _skipped_family(rule) in families)
    decisive = [_detonation_skipped(rule) for rule, sure in skipping if sure]
    decisive += _exempt_urls(evidence) if SAFE_LINKS in families else []
    weak = [
        hit
        for family in families
        for hit in (*_without_policy(evidence, family), *weak_settings(evidence, family, DETONATION_SETTINGS[family]))
    ]
    return finding_of(evidence, [*decisive, *weak], None, stated=False) if decisive else contributing_finding(weak)


def _skipped_family(rule: Row) -> Family | None:
    """Return the protection that a mail flow rule makes messages skip."""
    is_set = flag(rule.get("SetHeaderValue")) is not False
    return _SKIPPING_HEADERS.get(text(rule, "SetHeaderName").lower()) if is_set else None


def _detonation_skipped(rule: Row) -> Hit:
    family = _skipped_family(rule)
    protection = family.noun.removesuffix(" policy") if family else ""
    return make_hit(
        f"mail flow rule '{readable(name(rule))}' makes the message skip {protection}",
        f"Turn off the mail flow rule '{readable(name(rule))}': it makes mail skip {protection}.",
        "SetHeaderName",
        name(rule),
        powershell("Disable-TransportRule", Identity=name(rule)),
    )


def _exempt_urls(evidence: Evidence) -> list[Hit]:
    return [
        listed_entry_hit(
            SAFE_LINKS.setter, name(policy), "DoNotRewriteUrls", entry, "Safe Links does not scan it in mail"
        )
        for policy in evidence.in_force(SAFE_LINKS)
        for entry in entries(policy.get("DoNotRewriteUrls"))
        if any(covers_url(entry, url) for url in evidence.result.detected_urls)
    ]


def _without_policy(evidence: Evidence, family: Family) -> list[Hit]:
    """Return a hit if certainly no policy of a family applies to the recipient."""
    if any(query not in evidence.settings for query in family.reads):
        return []
    excluded = any(reaches(rule, evidence.recipient) is False for rule in evidence.rows(BUILT_IN_PROTECTION))
    if any(not (excluded and is_built_in(policy)) for policy in evidence.in_force(family)):
        return []
    return [
        make_hit(
            f"no {family.noun} applies to the recipient",
            "Include the recipient in the Standard preset security policy, and remove the exclusion from Built-in "
            "protection if there is one.",
            family.noun,
            _STANDARD_PRESET,
        )
    ]


# R16: unused presets, and settings that have drifted from Microsoft's recommendations.

CONFIGURATION_ANALYZER = Query("Get-ConfigAnalyzerPolicyRecommendation", (("RecommendedPolicyType", "Standard"),))
_STANDARD_PRESET = "Standard Preset Security Policy"
_NOBODY = (None, "", 0, "0")  # AppliedTo is blank if a policy applies to nobody.
_KINDS_BY_GROUP: Mapping[str, frozenset[Kind]] = {
    "anti-spam": PHISHING | SPAM | BULK,
    "anti-phishing": PHISHING,
    "anti-malware": MALWARE,
    "atp safe links": PHISHING,
    "atp safe attachments": MALWARE,
}


def find_drift(evidence: Evidence) -> Finding | None:
    """Find the settings that the configuration analyzer reports as below Standard, and unused presets."""
    kinds = kinds_of(evidence.result, evidence.message)
    below = [
        row
        for row in evidence.rows(CONFIGURATION_ANALYZER)
        if row.get("AppliedTo") not in _NOBODY
        and kinds & _KINDS_BY_GROUP.get(text(row, "PolicyGroup").lower(), frozenset())
    ]
    analyzed = [
        weak_setting_hit(family, text(row, "Policy"), setting, row.get("CurrentConfiguration"))
        for row in below
        for family, setting in ANALYZED_SETTINGS
        if setting.kinds & kinds and text(row, "SettingName") == setting.name
    ]
    # Custom policies that are nowhere below the recommendation are as good as a preset.
    presets = _without_preset(evidence) if below or CONFIGURATION_ANALYZER not in evidence.settings else []
    return contributing_finding([*analyzed, *presets])


def _without_preset(evidence: Evidence) -> list[Hit]:
    presets = evidence.rows(EOP_PRESETS)
    enabled = [rule for rule in presets if is_on(rule)]
    is_included = any(reaches(rule, evidence.recipient) is not False for rule in enabled)
    if is_included or EOP_PRESETS not in evidence.settings:
        return []
    # The portal creates the rule when the preset is first turned on; until then there is nothing to enable.
    can_enable = not enabled and any(name(rule) == _STANDARD_PRESET for rule in presets)
    return [
        make_hit(
            f"the Standard and Strict presets {'do not include the recipient' if enabled else 'are not turned on'}",
            f"{'Include the recipient in' if enabled else 'Turn on'} the Standard preset security policy: it keeps "
            "every setting as Microsoft recommends it.",
            "Preset security policies",
            _STANDARD_PRESET,
            powershell("Enable-EOPProtectionPolicyRule", Identity=_STANDARD_PRESET) if can_enable else None,
        )
    ]


# R18: bulk mail.


def find_bulk(evidence: Evidence) -> Finding | None:
    """Find the bulk settings below the recommendation."""
    level = evidence.message.delivery.bcl
    fallback = where_to_look(
        evidence,
        ANTI_SPAM.policies,
        "Block the sender, or lower the bulk email threshold for recipients who want no bulk mail.",
        "BulkThreshold",
    )
    hits = weak_settings(evidence, ANTI_SPAM, BULK_SETTINGS)
    return finding_of(evidence, hits, fallback, stated=True, headers=() if level is None else (f"header BCL:{level}",))


# R20: messages that Microsoft could not analyse.

_NOT_FOUND = frozenset({"itemNotfound", "itemNotFound", "messageNotFound", "itemDeleted"})
_NOT_RECEIVED = frozenset({"itemNotReceivedByService"})
_UNDECIDED = frozenset(
    {
        "badReclassifiedAsCannotMakeDecision",
        "goodReclassifiedAsCannotMakeDecision",
        "noResultAvailable",
        "outboundCannotMakeDecision",
        "outboundNotRescanned",
        "unableToMakeDecision",
        "unknown",
        "urlFileCannotMakeDecision",
    }
)


def suspects_no_analysis(result: Result, _message: Message) -> bool:
    """Return True if Microsoft gave up, did not find the message or could not decide."""
    ended = result.verdict == "" or result.status in {"failed", "skipped"}
    return ended or bool(words_of(result) & (_NOT_FOUND | _NOT_RECEIVED | _UNDECIDED))


def find_no_analysis(evidence: Evidence) -> Finding:
    """Recommend how to submit the message so that Microsoft can analyse it."""
    words = words_of(evidence.result)
    if words & _NOT_FOUND:
        action = (
            "Submit the message itself (.eml) instead of a link to it, at most three times in 24 hours: it "
            "was moved or deleted, or the mailbox is not in Exchange Online."
        )
    elif words & _NOT_RECEIVED:
        action = "Check that no policy or mail flow rule keeps submissions from reaching Microsoft, then submit again."
    else:
        action = "Submit the message once more, at most three times in 24 hours, or open a support case with Microsoft."
    finding, status = advising_finding(evidence, Strength.REMARK, action), evidence.result.status
    return (
        replace(finding, evidence=(*finding.evidence, f"submission status {readable(status)}")) if status else finding
    )


# R21: reports that never reached Microsoft.

REPORTING_POLICY = Query("Get-ReportSubmissionPolicy")
NOT_SUBMITTED = Sign(frozenset({"notSubmittedToMicrosoft", "checkUserReportedSettings"}))


def find_not_submitted(evidence: Evidence) -> Finding | None:
    """Find out that user reports are not sent to Microsoft."""
    policies = [row for row in evidence.rows(REPORTING_POLICY) if flag(row.get("EnableReportToMicrosoft")) is False]
    why = "reports have to reach Microsoft as well as the reporting mailbox; submit this message by hand"
    hits = [
        wrong_switch_hit("Set-ReportSubmissionPolicy", name(row), "EnableReportToMicrosoft", why, to=True)
        for row in policies
    ]
    fallback = where_to_look(
        evidence,
        REPORTING_POLICY,
        "Submit the message to Microsoft, and let user reports go to Microsoft and to the reporting mailbox.",
        "EnableReportToMicrosoft",
    )
    return finding_of_sign(evidence, NOT_SUBMITTED, hits, fallback)


# R22: verdicts lost in on-premises Exchange.

LOST_ON_PREMISES = Sign(frozenset({"onPremisesSkip", "reasonLostInTransit"}))


# R23: messages that were blocked.

_BLOCKED = Sign(
    frozenset(
        {
            "blockedByPolicy",
            "blockedDueToOrganizationOverride",
            "blockedDueToUserOverride",
            "invalidFalseNegative",
            "quarantineReleasedThenBlocked",
            "spoofBlocked",
            "spoofedBlocked",
            "zeroHourAutoPurgeBlocked",
        }
    )
)


def is_blocked(result: Result, message: Message) -> bool:
    """Return True if the message was blocked."""
    return _BLOCKED.appears(result, message) or (result.detail or "").startswith("blocked")


# R17: messages that the filter missed: no known setting let them through.


def find_filter_miss(evidence: Evidence) -> Finding:
    """Recommend to block the sender and purge the delivered copies."""
    missed = Sign(sfv="NSPM").headers(evidence.message)
    finding = advising_finding(
        evidence, Strength.SHOWN, "Find the copies that were delivered in Threat Explorer; purge them."
    )
    return replace(
        finding,
        evidence=(*finding.evidence, *missed, "nothing shows that a setting allowed the message"),
        recommendations=(*_block_sender(evidence), *finding.recommendations),
    )


def _block_sender(evidence: Evidence) -> list[Recommendation]:
    """Recommend to block the sender, unless the message claims the recipient's own domain."""
    sender, own = evidence.message.sender, evidence.recipient.rpartition("@")[2]
    if not sender or not own or covers(own, sender):
        return []
    action = "Block the sender until the filter has learned from the submission. A block also stops mail to the sender."
    command = powershell("New-TenantAllowBlockListItems", ListType="Sender", Entries=sender)
    cmdlet = command and f"{command} -Block"
    return [Recommendation(action=action, setting="Sender block entry", policy=TENANT_LIST, cmdlet=cmdlet)]
