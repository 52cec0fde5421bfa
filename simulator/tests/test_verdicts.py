"""Each verdict rule as a row: what the mail and the tenant look like, and what Microsoft would say."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from simulator import verdicts
from simulator.allow_block_list import ListEntry
from simulator.delivery import Delivery
from simulator.mail import read_mail
from simulator.override_rules import ORGANIZATION, USER
from simulator.submissions import Verdict
from simulator.tenant import Tenant, TenantSettings
from simulator.verdicts import RULES, decide

NOW = datetime(2026, 11, 2, 10, 5, tzinfo=UTC)
TENANT = "0a1b2c3d-0000-4000-8000-000000000001"
BAD_URL = "https://login.phish.example/x"
BAD_FILE = b"dropper"
BAD_HASH = hashlib.sha256(BAD_FILE).hexdigest()
HOST = "https://shop.Fabrikam.example/Offer"


@dataclass(frozen=True)
class Case:
    """A rule, the mail, the tenant, and the expected category and detail."""

    rule: str
    category: str
    detail: str = "none"
    mail: dict[str, Any] = field(default_factory=dict)
    cmdlets: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    allows: tuple[tuple[str, str], ...] = ()
    mailbox: dict[str, Any] = field(default_factory=dict)
    recipient: str = "anna@contoso.example"
    source: Any = "administrator"


BYPASS = {"Name": "skip", "State": "Enabled", "SetSCL": -1}
NO_REPORTING = {"Get-ReportSubmissionPolicy": [{"EnableReportToMicrosoft": False}]}
GATEWAY = {"Enabled": True, "SenderIPAddresses": ["203.0.113.0/24"]}
LINKED = {"text": f"See {BAD_URL} now"}
ATTACHED = {"attachment": ("invoice.pdf", BAD_FILE)}
BY_LIST, BY_RULE = "allowed{}ByTenantAllowBlockList", "allowedByExchangeTransportRule"

CASES = [
    Case(
        "ordered",
        "blockedDueToUserOverride",
        "blockedByUserSetting",
        settings={
            "verdicts": {
                "<one@fabrikam.example>": {"category": "blockedDueToUserOverride", "detail": "blockedByUserSetting"}
            }
        },
    ),
    Case(
        "not_submitted",
        "notSubmittedToMicrosoft",
        "checkUserReportedSettings",
        cmdlets=NO_REPORTING,
        source="user",
    ),
    Case("clean", "noThreatsFound", "goodReclassifiedAsGood", cmdlets=NO_REPORTING),
    Case("not_found", "itemNotfound", "messageNotFound", recipient="anna@elsewhere.example"),
    Case("not_found", "itemNotfound", "messageNotFound", settings={"any_mailbox": False}),
    Case(
        "simulation",
        "phishingSimulation",
        "simulatedThreat",
        cmdlets={
            "Get-ExoPhishSimOverrideRule": [{"Domains": ["fabrikam.example"], "SenderIpRanges": ["203.0.113.0/24"]}]
        },
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        cmdlets={
            "Get-ExoPhishSimOverrideRule": [{"Domains": ["fabrikam.example"], "SenderIpRanges": ["198.51.100.1"]}]
        },
    ),
    Case(
        "secops",
        ORGANIZATION,
        "allowedBySecOps",
        cmdlets={"Get-ExoSecOpsOverrideRule": [{"SentTo": ["Anna@contoso.example"]}]},
    ),
    Case("list_sender", ORGANIZATION, BY_LIST.format("Sender"), allows=(("Sender", "bob@fabrikam.example"),)),
    Case("list_sender", ORGANIZATION, BY_LIST.format("Sender"), allows=(("Sender", "fabrikam.example"),)),
    Case(
        "list_sender",
        ORGANIZATION,
        BY_LIST.format("Sender"),
        mail={"sender": "bob@mail.fabrikam.example"},
        allows=(("Sender", "*.fabrikam.example"),),
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        mail={"sender": "bob@mail.fabrikam.example"},
        allows=(("Sender", "fabrikam.example"),),
    ),
    Case(
        "list_sender",
        ORGANIZATION,
        BY_LIST.format("Sender"),
        mail={"headers": {"Return-Path": "<bounce@bulk.example>"}},
        allows=(("Sender", "bulk.example"),),
    ),
    Case("list_url", ORGANIZATION, BY_LIST.format("Url"), mail={"text": HOST}, allows=(("Url", "~fabrikam.example"),)),
    Case("list_url", ORGANIZATION, BY_LIST.format("Url"), mail={"text": HOST}, allows=(("Url", "*.Fabrikam.example"),)),
    Case(
        "list_url",
        ORGANIZATION,
        BY_LIST.format("Url"),
        mail={"text": HOST},
        allows=(("Url", "shop.fabrikam.example/offer"),),
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        mail={"text": HOST},
        allows=(("Url", "fabrikam.example"), ("Url", "shop.fabrikam.example/other")),
    ),
    Case("list_file", ORGANIZATION, BY_LIST.format("File"), mail=ATTACHED, allows=(("FileHash", BAD_HASH),)),
    Case("transport_rule", ORGANIZATION, BY_RULE, mail={"report": "SFV:SKN;SCL:-1"}),
    Case(
        "transport_rule",
        ORGANIZATION,
        BY_RULE,
        cmdlets={"Get-TransportRule": [{**BYPASS, "SenderDomainIs": ["fabrikam.example"]}]},
    ),
    Case(
        "transport_rule",
        ORGANIZATION,
        BY_RULE,
        cmdlets={"Get-TransportRule": [{**BYPASS, "From": ["bob@fabrikam.example"], "SetSCL": "-1"}]},
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        cmdlets={
            "Get-TransportRule": [
                {**BYPASS, "SenderDomainIs": ["other.example"]},
                {**BYPASS, "State": "Disabled"},
                {**BYPASS, "SetSCL": 5},
                {**BYPASS, "SenderDomainIs": ["fabrikam.example"], "SenderIpRanges": ["198.51.100.0/24"]},
            ]
        },
    ),
    Case("connection", ORGANIZATION, "allowedByConnection", mail={"report": "IPV:CAL;CIP:203.0.113.7"}),
    Case(
        "connection",
        ORGANIZATION,
        "allowedByConnection",
        cmdlets={"Get-HostedConnectionFilterPolicy": [{"IPAllowList": ["203.0.113.1-203.0.113.9"]}]},
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        cmdlets={"Get-HostedConnectionFilterPolicy": [{"IPAllowList": ["203.0.113.8", "nonsense", "2001:db8::/32"]}]},
    ),
    Case("tenant_senders", ORGANIZATION, "allowedByTenant", mail={"report": "SFV:SKA"}),
    Case(
        "tenant_senders",
        ORGANIZATION,
        "allowedByTenant",
        cmdlets={"Get-HostedContentFilterPolicy": [{"AllowedSenderDomains": ["Fabrikam.example"]}]},
    ),
    Case(
        "tenant_senders",
        ORGANIZATION,
        "allowedByTenant",
        cmdlets={"Get-HostedContentFilterPolicy": [{"AllowedSenders": ["bob@fabrikam.example"]}]},
    ),
    Case("quarantine_release", ORGANIZATION, "quarantineReleased", mail={"report": "SFV:SKQ"}),
    Case("user_setting", USER, "allowedByUserSetting", mail={"report": "SFV:SFE"}),
    Case("user_setting", USER, "allowedByUserSetting", mailbox={"trusted": ["Fabrikam.example"]}),
    Case("user_setting", USER, "allowedByUserSetting", mailbox={"trusted_recipients": ["anna@contoso.example"]}),
    Case(
        "user_setting",
        USER,
        "allowedByUserSetting",
        mailbox={"contacts": ["Bob@Fabrikam.example"], "contacts_trusted": True},
    ),
    Case("clean", "noThreatsFound", "goodReclassifiedAsGood", mailbox={"contacts": ["bob@fabrikam.example"]}),
    Case("junk_rule_off", USER, "junkMailRuleDisabled", mail={"report": "SCL:6"}, mailbox={"enabled": False}),
    Case(
        "connector",
        ORGANIZATION,
        "allowedByEnhancedFiltering",
        cmdlets={"Get-InboundConnector": [{**GATEWAY, "EFSkipLastIP": True}]},
    ),
    Case("connector", ORGANIZATION, "allowedByThirdPartyFilters", cmdlets={"Get-InboundConnector": [GATEWAY]}),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        cmdlets={"Get-InboundConnector": [{**GATEWAY, "Enabled": False}]},
    ),
    Case(
        "spoof", "spoofedAllowed", mail={"headers": {"Authentication-Results": "dmarc=fail; compauth=fail reason=001"}}
    ),
    Case(
        "spoof",
        "spoofedAllowed",
        cmdlets={
            "Get-TenantAllowBlockListSpoofItems": [
                {"SpoofedUser": "fabrikam.example", "SendingInfrastructure": "203.0.113.0/24", "Action": "Allow"}
            ]
        },
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        cmdlets={
            "Get-TenantAllowBlockListSpoofItems": [
                {"SpoofedUser": "fabrikam.example", "SendingInfrastructure": "203.0.113.0/24", "Action": "Block"},
                {"SpoofedUser": "fabrikam.example", "SendingInfrastructure": "198.51.100.0/24", "Action": "Allow"},
            ]
        },
    ),
    Case(
        "authentication", "authenticationFailure", mail={"headers": {"Authentication-Results": "spf=pass; dmarc=fail"}}
    ),
    Case("impersonation", "userImpersonation", "userImpersonation", mail={"report": "CAT:UIMP"}),
    Case("impersonation", "domainImpersonation", "domainImpersonation", mail={"report": "CAT:NONE;SFTY:9.19"}),
    Case("impersonation", "brandImpersonation", "brandImpersonation", mail={"report": "CAT:BIMP"}),
    Case("known_bad", "threatsFound", "goodReclassifiedAsBad", mail=LINKED),
    Case("known_bad", "threatsFound", "goodReclassifiedAsBad", mail={"text": "http://a.b.test/"}),
    Case("clean", "noThreatsFound", "goodReclassifiedAsGood", mail={"text": "http://notphish.example/"}),
    Case(
        "known_bad",
        "threatsFound",
        "goodReclassifiedAsBad",
        mail=ATTACHED,
        settings={"known_bad_hashes": [BAD_HASH]},
    ),
    Case("phish_delivered", "threatsFound", "badReclassifiedAsBad", mail={"report": "CAT:PHSH;SCL:5"}),
    Case("bulk", "bulk", "goodReclassifiedAsBulk", mail={"headers": {"X-Microsoft-Antispam": "BCL:7;"}}),
    Case("clean", "noThreatsFound", "goodReclassifiedAsGood", mail={"headers": {"X-Microsoft-Antispam": "BCL:6;"}}),
    Case("bulk", "bulk", "goodReclassifiedAsBulk", mail={"report": "SRV:BULK"}),
    Case("spam", "spam", mail={"report": "CAT:SPM"}),
    Case("spam", "spam", mail={"report": "SCL:5"}),
    Case("suspicious_link", "threatsFound", "goodReclassifiedAsBad", mail={"text": "http://203.0.113.9/pay"}),
    Case("suspicious_link", "threatsFound", "goodReclassifiedAsBad", mail={"text": "https://xn--pypal-4ve.example/"}),
    Case(
        "suspicious_link",
        "threatsFound",
        "goodReclassifiedAsBad",
        mail={"text": "https://contoso.example@evil.example/"},
    ),
    Case(
        "suspicious_link",
        "threatsFound",
        "goodReclassifiedAsBad",
        mail={"html": '<a href="https://evil.example/">https://www.contoso.example/login</a>'},
    ),
    Case(
        "clean",
        "noThreatsFound",
        "goodReclassifiedAsGood",
        mail={
            "html": '<a href="https://www.contoso.example/a">contoso.example</a>'
            '<a href="https://contoso.example/">Your 2.5 order is here</a>'
        },
    ),
    Case(
        "suspicious_file",
        "threatsFound",
        "goodReclassifiedAsBad",
        mail={"attachment": ("Invoice.pdf.HTML", b"<script>")},
    ),
    Case(
        "suspicious_wording",
        "threatsFound",
        "goodReclassifiedAsBad",
        mail={"text": "Please verify your\naccount. ACT IMMEDIATELY!"},
    ),
    Case("clean", "noThreatsFound", "goodReclassifiedAsGood", mail={"text": "Please verify your account."}),
    Case("unreadable", "unknown", "goodReclassifiedAsCannotMakeDecision", mail={"text": "encrypted"}),
    Case("clean", "noThreatsFound", "goodReclassifiedAsGood"),
]


def verdict_of(case: Case, mail: Callable[..., bytes]) -> Verdict:
    """Build the tenant and the mail of *case*, and decide."""
    settings = {"id": TENANT, "cmdlets": case.cmdlets, **case.settings}
    tenant = Tenant(TenantSettings.model_validate(settings))
    for list_type, value in case.allows:
        tenant.allow_block_list.add(ListEntry(list_type, value, "Allow", NOW, NOW, None, "", "app"))
    if case.mailbox:
        box = tenant.add_mailbox(case.recipient)
        for name, value in case.mailbox.items():
            setattr(box, name, value)
    raw = mail(**case.mail)
    if case.rule == "unreadable":
        raw = raw.replace(b"text/plain", b"application/pkcs7-mime")
    return decide(Delivery(read_mail(raw), case.recipient, tenant, NOW, case.source))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{number}-{case.rule}") for number, case in enumerate(CASES, start=1)]
)
def test_the_first_rule_that_applies_decides(case: Case, mail: Callable[..., bytes]) -> None:
    """Each row of the table holds."""
    verdict = verdict_of(case, mail)

    assert (verdict.rule, verdict.category, verdict.detail) == (case.rule, case.category, case.detail)


def test_every_rule_has_a_case() -> None:
    """No rule is without a row that it decides."""
    assert {case.rule for case in CASES} == {rule.__name__ for rule in RULES}


def test_the_table_in_the_docstring_is_the_order_of_the_rules() -> None:
    """What a reader predicts from the docstring is what happens."""
    documented = re.findall(r"^    ([a-z_]+) {2,}\S", verdicts.__doc__ or "", re.MULTILINE)

    assert documented == [rule.__name__ for rule in RULES]


def test_verdicts_use_microsofts_words(document: Any) -> None:
    """Every category and detail of the table is a member of Microsoft's enum."""
    categories = {case.category for case in CASES}
    details = {case.detail for case in CASES}

    assert categories <= set(document.known_values["submissionResultCategory"])
    assert details <= set(document.known_values["submissionResultDetail"])


def test_what_was_found_is_named(mail: Callable[..., bytes]) -> None:
    """A known bad URL and file are named in the verdict."""
    case = Case("known_bad", "", mail={**LINKED, **ATTACHED}, settings={"known_bad_hashes": [BAD_HASH]})

    verdict = verdict_of(case, mail)

    assert verdict.detected_urls == (BAD_URL,)
    assert [(file.name, file.sha256) for file in verdict.detected_files] == [("invoice.pdf", BAD_HASH)]


def test_the_mailbox_flags_say_which_setting_allowed(mail: Callable[..., bytes]) -> None:
    """Each list of the mailbox has a flag of its own, and the junk rule's state is told."""
    everything = {
        "trusted": ["bob@fabrikam.example", "fabrikam.example"],
        "trusted_recipients": ["anna@contoso.example"],
        "contacts": ["bob@fabrikam.example"],
        "contacts_trusted": True,
    }
    flags = verdict_of(Case("user_setting", "", mailbox=everything), mail).user_mailbox_setting.split(",")
    assert flags == [
        "isFromAddressInAddressBook",
        "isFromAddressInAddressSafeList",
        "isFromDomainInDomainSafeList",
        "isRecipientInRecipientSafeList",
        "isJunkMailRuleEnabled",
    ]
    off = verdict_of(Case("user_setting", "", mailbox={**everything, "enabled": False}), mail)
    assert "isJunkMailRuleEnabled" not in off.user_mailbox_setting


def test_an_override_explains_a_bad_mail_before_its_content_does(mail: Callable[..., bytes]) -> None:
    """A mail with a bad link that a rule let through was let through by the rule."""
    case = Case("transport_rule", "", mail={**LINKED, "report": "SFV:SKN"})

    assert verdict_of(case, mail).rule == "transport_rule"
