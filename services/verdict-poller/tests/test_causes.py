"""Causes that results, headers or settings show."""

import pytest
from verdict_builders import RECIPIENT, Case, commands_of, explained, message, override, result, user_override
from verdict_cases import PROVEN

from verdict_poller.rules import needed_queries

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


@pytest.mark.parametrize("case", PROVEN, ids=str)
def test_a_cause_names_its_evidence_and_the_cmdlet_that_fixes_it(case: Case) -> None:
    """Every rule names the entry, rule or setting, and gives a cmdlet that can be pasted."""
    causes = explained(case.answer, case.mail, case.rows)

    (cause,) = [cause for cause in causes if cause.rule == case.rule]

    assert case.shows in "\n".join(cause.evidence)
    assert commands_of([cause]) == ([case.change] if case.change else [])
    assert cause.recommendations
    assert (cause.source or "").startswith("https://learn.microsoft.com/")


@pytest.mark.parametrize("case", PROVEN, ids=str)
def test_the_settings_that_show_a_cause_are_read(case: Case) -> None:
    """They are read before the rule has to explain the message."""
    assert set(case.rows) <= needed_queries(case.answer, case.mail, RECIPIENT)


@pytest.mark.parametrize("case", UNPROVEN, ids=str)
def test_a_cause_that_settings_cannot_prove_says_where_to_look(case: Case) -> None:
    """What Microsoft or a header states holds without settings; unread and unsuspicious settings are distinguished."""
    unread = explained(case.answer, case.mail)
    needed = needed_queries(case.answer, case.mail, RECIPIENT)
    innocent = explained(case.answer, case.mail, dict.fromkeys(needed, ()))

    for causes in (unread, innocent):
        cause = next(cause for cause in causes if cause.rule == case.rule)
        assert cause.recommendations
        assert not commands_of([cause])
    assert f"{case.shows} could not be read" in [
        line for cause in unread if cause.rule == case.rule for line in cause.evidence
    ]
