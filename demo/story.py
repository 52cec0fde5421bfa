"""The demo's own mails: what the users do with them, what the admin decides, and how the tenant is set up."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MAILS = Path(__file__).parent / "mails"

INBOX_STEPS = (
    "a user reports the mail",
    "a user blocks the sender for their own mailbox",
    "admins triage the user reported messages",
    "a case is submitted to Microsoft for analysis",
    "the sender is blocked for the tenant while submitting",
    "the verdict is read: why it was allowed, what to change",
)
JUNK_STEPS = (
    "a user reports the mail",
    "admins triage the user reported messages",
    "a case is submitted to Microsoft for analysis",
    "the sender is blocked for the tenant while submitting",
    "the verdict is read: why it was allowed, what to change",
)
"""Microsoft's guide "How to handle malicious emails that are delivered to recipients (false negatives)"."""


@dataclass(frozen=True)
class Reported:
    """A mail, who reports it and how, and what the admin decides. Without a decision the policy must act."""

    file: Path
    reporters: tuple[str, ...]
    reported_as: str = "phishing"
    folder: Literal["inbox", "junk"] = "inbox"
    block_sender: bool = False
    decision: dict[str, Any] | None = field(default=None)


def _mail(number: int, *reporters: str, **act: Any) -> Reported:
    (file,) = MAILS.glob(f"{number:02d}-*.eml")
    return Reported(file, tuple(f"{name}@contoso.example" for name in reporters), **act)


def _submit(category: str = "phishing", note: str | None = None, **block: Any) -> dict[str, Any]:
    return {"action": "submit", "category": category, "note": note, "blocks": [block] if block else []}


STORY = (
    _mail(1, "anna", "ben", "carla", block_sender=True),
    _mail(2, "ben", decision=_submit(kind="sender", note="fake voice message")),
    _mail(3, "carla", decision=_submit(kind="domain", note="fake parcel service")),
    _mail(4, "dev", block_sender=True, decision=_submit()),
    _mail(5, "finance", decision=_submit(kind="domain", note="payment fraud")),
    _mail(6, "frida", decision=_submit(kind="domain", never_expires=True)),
    _mail(7, "gus", reported_as="malware", decision=_submit("malware", kind="sender")),
    _mail(8, "hana", "ines", decision=_submit(kind="sender")),
    _mail(9, "ines", decision=_submit()),
    _mail(10, "jon", reported_as="junk", folder="junk", decision=_submit("spam", kind="sender")),
    _mail(11, "kim", decision=_submit(kind="sender", note="until we know more")),
    _mail(12, "lea", decision=_submit(kind="sender")),
    _mail(13, "mia", folder="junk", decision=_submit()),
    _mail(14, "nils", folder="junk", decision=_submit(kind="domain")),
    _mail(15, "olga", decision={"action": "dismiss", "note": "our own facility service"}),
)

POLICY = """
[[rule]]
name = "phishing that three users saw"
when.reported_as = ["phishing", "malware"]
when.folder = ["inbox"]
when.min_reports = 3
then.submit = "as-reported"
then.block = "sender"
then.block_days = 7
"""

BULK_POLICY = """
[[rule]]
name = "phishing that reached an Inbox"
when.reported_as = ["phishing", "malware"]
when.folder = ["inbox"]
then.submit = "as-reported"
"""

MAILBOXES = {
    "dev@contoso.example": {"trusted": ["dana@wingtip.example"]},
}

ALLOWED_ENTRY = {
    "ListType": "Sender",
    "Allow": True,
    "Entries": ["fair@proseware.example"],
    "RemoveAfter": 45,
    "Notes": "fair 2026",
}


def tenant_settings(defaults: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Describe a tenant with the mistakes that let the story's mails in; *defaults* are Exchange's own rows."""

    def changed(cmdlet: str, **values: Any) -> list[dict[str, Any]]:
        return [{**defaults[cmdlet][0], **values}]

    return {
        "cmdlets": {
            "Get-HostedContentFilterPolicy": changed(
                "Get-HostedContentFilterPolicy", AllowedSenderDomains=["fabrikam.example"]
            ),
            "Get-HostedConnectionFilterPolicy": changed(
                "Get-HostedConnectionFilterPolicy", IPAllowList=["198.51.100.0/28"]
            ),
            "Get-TransportRule": [
                {
                    "Identity": "Voice mail must arrive",
                    "Name": "Voice mail must arrive",
                    "State": "Enabled",
                    "Priority": 0,
                    "SenderDomainIs": ["northwind.example"],
                    "SetSCL": "-1",
                }
            ],
            "Get-ExoPhishSimOverrideRule": [
                {
                    "Identity": "_Exe:PhishSimOverr:demo",
                    "Name": "PhishSimOverrideRule",
                    "State": "Enabled",
                    "Domains": ["training.example"],
                    "SenderIpRanges": ["198.51.100.99"],
                }
            ],
        }
    }
