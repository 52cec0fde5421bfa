"""Suspicions that the settings, the result or the headers disprove."""

import pytest
from verdict_builders import (
    ANALYZER,
    ANTI_PHISHING,
    ANTI_SPAM,
    CONNECTION_FILTER,
    EOP_PRESETS,
    JUNK,
    MAIL_FLOW_RULES,
    MDO_PRESETS,
    QUARANTINE,
    RECIPIENT,
    REPORTING,
    SAFE_LINKS,
    SAFE_LINKS_RULES,
    SECOPS,
    SENDER,
    SENDER_ALLOWS,
    SIMULATIONS,
    SPOOF_ALLOWS,
    URL,
    Case,
    allowed,
    bypass,
    default,
    explained,
    message,
    override,
    result,
    rules_of,
    user_override,
)
from verdict_cases import PROVEN

from verdict_poller.rules import RULES

DRIFT = {"PolicyGroup": "Anti-Phishing", "SettingName": "PhishThresholdLevel", "CurrentConfiguration": "1"}


DISPROVEN = [
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


@pytest.mark.parametrize("case", DISPROVEN, ids=str)
def test_a_cause_that_nothing_shows_is_not_reported(case: Case) -> None:
    """A setting that does not concern the message, or a result that does not call for it, is not blamed."""
    assert case.rule not in rules_of(explained(case.answer, case.mail, case.rows))


def test_every_rule_has_a_case_that_shows_it_and_one_that_disproves_it() -> None:
    """A new rule needs its cases."""
    rules = {rule.id for rule in RULES}

    assert {case.rule for case in PROVEN} == rules
    assert {case.rule for case in DISPROVEN} == rules
