"""Builders of results, messages and settings, shared by the tests of the explanation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from backstop_contracts.events import Cause, Delivery, Message
from verdict_poller.exchange_settings import Query
from verdict_poller.findings import Evidence
from verdict_poller.rules import explain
from verdict_poller.submission_result import Result

RECIPIENT = "ana@contoso.example"
SENDER = "invoice@mail.fabrikam.example"
SHA256 = "ab" * 32
URL = "https://login.phish.test/a/b?c=d"


def result(verdict: str = "threatsFound", detail: str | None = "none", **changes: Any) -> Result:
    """Build a result: by default, threats were found."""
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
    """Build a message that the filter let through; `headers` are those that Exchange Online added."""
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
    """Build a result: a setting of the organization overrode the filter."""
    return result("allowedDueToOrganizationOverride", detail)


def user_override(*flags: str, detail: str = "allowedByUserSetting") -> Result:
    """Build a result: a setting of the mailbox overrode the filter."""
    return result("allowedDueToUserOverride", detail, user_mailbox_settings=flags)


def explained(
    of: Result, mail: Message | None = None, rows: Mapping[Query, Sequence[Any]] | None = None
) -> list[Cause]:
    """Explain a message."""
    return list(explain(Evidence(of, mail or message(), RECIPIENT, rows or {})))


def rules_of(causes: Sequence[Cause]) -> list[str]:
    """Return the ids of the rules, in order."""
    return [cause.rule for cause in causes]


def commands_of(causes: Sequence[Cause]) -> list[str]:
    """Return every recommended cmdlet."""
    return [change.cmdlet for cause in causes for change in cause.recommendations if change.cmdlet]


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
"""The namespace of the classes that Get-TransportRule lists in `Conditions` and `Exceptions`."""
SENDER_IP = f"{TASKS}.SenderIpRangesPredicate"


def bypass(**properties: Any) -> dict[str, Any]:
    """Build the row of a mail flow rule that skips spam filtering."""
    return {"Name": "Partner bypass", "State": "Enabled", "Mode": "Enforce", "SetSCL": -1, **properties}


def allowed(value: str, **properties: Any) -> dict[str, Any]:
    """Build the row of an allow entry that ends 45 days after its last use."""
    return {"Value": value, "Action": "Allow", "ExpirationDate": None, "RemoveAfter": 45, **properties}


@dataclass
class Case:
    """A message: Microsoft's answer, its headers, the tenant's settings, and what they show."""

    rule: str
    answer: Result
    mail: Message = field(default_factory=message)
    rows: Mapping[Query, Sequence[Any]] = field(default_factory=dict)
    shows: str = ""
    change: str | None = None

    def __str__(self) -> str:
        return f"{self.rule}-{self.answer.verdict}-{self.answer.detail}-{self.shows}".replace(" ", "_")[:110]
