"""The order of causes, and what is left out."""

from verdict_builders import (
    ANALYZER,
    ANTI_MALWARE,
    ANTI_PHISHING,
    ANTI_SPAM,
    INBOX_RULES,
    RECIPIENT,
    commands_of,
    default,
    explained,
    message,
    result,
    rules_of,
    user_override,
)
from verdict_cases import PROVEN

from verdict_poller.rules import needed_queries

WEAK = default(
    PhishZapEnabled=False,
    SpamZapEnabled=False,
    PhishSpamAction="MoveToJmf",
    AllowedSenderDomains=["fabrikam.example"],
    BulkThreshold=9,
)


DRIFT = {"PolicyGroup": "Anti-Phishing", "SettingName": "PhishThresholdLevel", "CurrentConfiguration": "1"}


def test_stated_causes_come_before_headers_and_headers_before_weak_settings() -> None:
    """Strongest first: the result, then a header or named setting, then settings below the recommendation."""
    causes = explained(
        result("allowedDueToOrganizationOverride", "allowedByConnection"),
        message(sfv="SKA", cat="PHSH"),
        {ANTI_SPAM: [default(PhishZapEnabled=False, AllowedSenderDomains=["fabrikam.example"])]},
    )

    assert rules_of(causes) == ["R03", "R04", "R11"]


def test_of_two_stated_causes_the_proven_one_comes_first() -> None:
    """Among equally strong causes, one that names the entry or rule comes first."""
    causes = explained(
        user_override("customRule", "isFromAddressInAddressSafeList"),
        rows={INBOX_RULES: [{"Name": "Keep", "Enabled": True, "FromAddressContainsWords": ["fabrikam"]}]},
    )

    assert rules_of(causes) == ["R06", "R05"]


def test_a_filter_miss_comes_before_the_settings_that_contributed() -> None:
    """Without an override the filter missed the message; weak settings only contributed."""
    causes = explained(result("malware"), rows={ANTI_MALWARE: [default(ZapEnabled=False)]})

    assert rules_of(causes) == ["R17", "R11"]


def test_a_change_is_recommended_once() -> None:
    """A weaker cause does not repeat the change of a stronger one, and is dropped if it has no other."""
    rows = {
        ANTI_PHISHING: [default(PhishThresholdLevel=1)],
        ANALYZER: [
            {**DRIFT, "Policy": "Default", "AppliedTo": 3},
        ],
    }

    assert rules_of(explained(result("brandImpersonation"), rows=rows)) == ["R14"]


def test_a_clean_message_is_explained_without_settings() -> None:
    """Whatever the headers and settings, only R19 applies, and nothing is read for it."""
    answer, mail = result("noThreatsFound", "allowedByTenant"), message(sfv="SKA", cat="PHSH", dmarc="fail")

    assert rules_of(explained(answer, mail, {ANTI_SPAM: [WEAK]})) == ["R19"]
    assert needed_queries(answer, mail, RECIPIENT) == frozenset()


def test_a_simulation_has_no_other_cause() -> None:
    """It was delivered on purpose: only R08 applies, and nothing is read for one of Microsoft's own."""
    answer, mail = result("threatsFound", simulation=True), message(sfv="SKA")

    assert rules_of(explained(answer, mail, {ANTI_SPAM: [WEAK]})) == ["R08"]
    assert needed_queries(answer, mail, RECIPIENT) == frozenset()


def test_a_message_that_could_not_be_analysed_is_explained_by_its_headers() -> None:
    """The result has no reason, but the filter's own header does; the advice to submit again stays."""
    causes = explained(result("itemNotfound", "messageNotFound"), message(sfv="SKA"), {ANTI_SPAM: [WEAK]})

    assert rules_of(causes) == ["R04", "R20"]


def test_only_settings_that_matter_for_the_kind_of_threat_contribute() -> None:
    """A spam message says nothing about phishing actions."""
    causes = explained(result("spam"), rows={ANTI_SPAM: [WEAK]})

    assert {
        cause.rule: [change.setting for change in cause.recommendations] for cause in causes if cause.rule == "R11"
    } == {"R11": ["SpamZapEnabled"]}
    assert "R12" not in rules_of(causes)


def test_the_recipients_own_domain_is_never_recommended_for_blocking() -> None:
    """A block of the own domain would stop the tenant's own mail."""
    causes = explained(result("phishing"), message(sender="ceo@mail.contoso.example"))

    assert commands_of(causes) == []


def test_a_spoofed_own_domain_leads_to_advice_on_its_dns_records() -> None:
    """Composite authentication's reasons 010 and 6xx mean the tenant's own domain."""
    causes = explained(result("spoof"), message(sender="ceo@contoso.example", compauth="fail", compauth_reason="601"))

    assert "DMARC policy for your own domain contoso.example" in causes[0].recommendations[-1].action


def test_a_cause_never_quotes_the_message() -> None:
    """Neither its subject nor its Message-ID is part of a cause."""
    for case in PROVEN:
        answer = "".join(cause.model_dump_json() for cause in explained(case.answer, case.mail, case.rows))

        assert "Quarterly" not in answer
        assert "m1@mail" not in answer
