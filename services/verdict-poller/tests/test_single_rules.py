"""What single rules take into account."""

from dataclasses import replace
from typing import Any

import pytest
from verdict_builders import (
    ANTI_MALWARE,
    ANTI_SPAM,
    CONNECTORS,
    MAIL_FLOW_RULES,
    RECIPIENT,
    SAFE_LINKS,
    SENDER,
    SENDER_ALLOWS,
    SENDER_IP,
    SHA256,
    SPOOF_ALLOWS,
    TASKS,
    URL,
    allowed,
    bypass,
    commands_of,
    default,
    explained,
    message,
    override,
    result,
    rules_of,
)

from backstop_contracts.events import DetectedFile, Message
from verdict_poller.exchange_settings import Query
from verdict_poller.rules import needed_queries
from verdict_poller.submission_result import Result


@pytest.mark.parametrize(
    ("conditions", "sure"),
    [
        ({"HasSenderOverride": True}, False),
        ({"SCLOver": 4}, False),
        ({"FromScope": "NotInOrganization"}, False),
        ({"ExceptIfMessageSizeOver": "1 MB (1,048,576 bytes)"}, False),
        ({"ActivationDate": "2026-03-01T00:00:00Z"}, False),
        ({"Conditions": [SENDER_IP, f"{TASKS}.AnAfterthoughtOfMicrosoftsPredicate"]}, False),
        ({"Conditions": [SENDER_IP], "Exceptions": [f"{TASKS}.AnAfterthoughtOfMicrosoftsPredicate"]}, False),
        ({"Conditions": [SENDER_IP], "Exceptions": None}, True),
        ({"HasSenderOverride": False, "SCLOver": None, "MessageSizeOver": "", "SentToMemberOf": []}, True),
    ],
    ids=str,
)
def test_a_mail_flow_rule_with_an_unknown_condition_is_only_suspected(conditions: dict[str, Any], sure: bool) -> None:
    """Whatever else of it matches, no cmdlet that turns it off is recommended."""
    rule = bypass(SenderIpRanges=["192.0.2.0/24"], **conditions)

    causes = explained(result("phishing"), message(sfv="SKN", scl=-1), {MAIL_FLOW_RULES: [rule]})

    (cause,) = [cause for cause in causes if cause.rule == "R02"]
    expected = "its conditions match the message" if sure else "whether it applied to the message is unknown"
    assert expected in "\n".join(cause.evidence)
    assert cause.recommendations[0].action.startswith("Turn off" if sure else "Find out whether")
    assert bool(commands_of([cause])) is sure


def test_a_suspected_mail_flow_rule_comes_after_a_proven_entry() -> None:
    """What may have let the message through comes after what certainly did."""
    rows = {
        MAIL_FLOW_RULES: [bypass(FromScope="NotInOrganization")],
        ANTI_SPAM: [default(AllowedSenders=[SENDER])],
    }

    assert rules_of(explained(override(None), message(sfv="SKN"), rows)) == ["R04", "R02"]


@pytest.mark.parametrize("what", ["Url", "File", "Recipient"])
def test_an_allow_entry_for_an_unnamed_value_is_not_reported_as_unreadable(what: str) -> None:
    """The result mentions a URL, a file or a recipient, but not which: there is nothing to look up."""
    answer = override(f"allowed{what}ByTenantAllowBlockList")

    (cause,) = explained(answer)

    assert needed_queries(answer, message(), RECIPIENT) == frozenset()
    assert "no list was read" in cause.evidence[-1]
    assert not any("could not be read" in line for line in cause.evidence)
    assert cause.recommendations


def test_a_list_that_could_not_be_read_is_reported_as_unread() -> None:
    """One of the lists was read and has no entry; the other may have it."""
    answer = replace(override("allowedByTenantAllowBlockList"), detected_urls=(URL,))

    (cause,) = explained(answer, rows={SENDER_ALLOWS: []})

    assert "Get-TenantAllowBlockListItems could not be read" in cause.evidence


@pytest.mark.parametrize(
    ("entry", "endless"),
    [
        (allowed(SENDER), False),
        (allowed(SENDER, RemoveAfter=None), True),
        (allowed(SENDER, RemoveAfter=None, ExpirationDate="2026-12-24T00:00:00Z"), False),
    ],
)
def test_an_allow_entry_without_an_end_is_marked(entry: dict[str, Any], endless: bool) -> None:
    """An entry ends at a date, or some days after its last use, or never."""
    (cause,) = explained(override("allowedSenderByTenantAllowBlockList"), rows={SENDER_ALLOWS: [entry]})

    assert any("without an end date" in line for line in cause.evidence) is endless


@pytest.mark.parametrize(
    ("headers", "failed"),
    [
        ({"compauth": "fail", "compauth_reason": "000"}, True),
        ({"compauth": "fail", "compauth_reason": "601"}, True),
        ({"compauth": "pass", "compauth_reason": "000"}, False),
        ({"compauth": "fail", "compauth_reason": "130"}, False),
        ({"dmarc": "fail", "dmarc_action": "none"}, True),
        ({"dmarc": "fail", "dmarc_action": "quarantine"}, False),
        ({"dmarc": "pass", "dmarc_action": "none"}, False),
    ],
)
def test_spoof_settings_are_read_if_a_sender_failed_authentication(headers: dict[str, str], failed: bool) -> None:
    """Microsoft's reasons of composite authentication, and DMARC failures that were let through."""
    assert (SPOOF_ALLOWS in needed_queries(result("phishing"), message(**headers), RECIPIENT)) is failed


@pytest.mark.parametrize(
    ("row", "hit"),
    [
        ({"SpoofedUser": "*", "SendingInfrastructure": "fabrikam.example"}, True),
        ({"SpoofedUser": "mail.fabrikam.example", "SendingInfrastructure": "*"}, True),
        ({"SpoofedUser": "fabrikam.example", "SendingInfrastructure": "*"}, False),
        ({"SpoofedUser": SENDER, "SendingInfrastructure": "198.51.100.0/24"}, False),
        ({"SpoofedUser": SENDER, "SendingInfrastructure": ""}, False),
        ({"SpoofedUser": SENDER, "SendingInfrastructure": "*", "Action": "Block"}, False),
    ],
)
def test_a_spoof_pair_is_blamed_only_if_it_may_match_the_message(row: dict[str, Any], hit: bool) -> None:
    """Both halves of the pair have to match; an infrastructure given by name cannot be ruled out."""
    (cause, *_) = explained(result("spoof"), rows={SPOOF_ALLOWS: [{"Identity": "pair", **row}]})

    assert bool(commands_of([cause])) is hit


@pytest.mark.parametrize(
    ("connector", "plain"),
    [
        ({"EFSkipLastIP": True}, False),
        ({"EFSkipIPs": ["198.51.100.7"]}, False),
        ({"EFSkipLastIP": True, "EFUsers": ["bo@contoso.example"]}, True),
        ({"EFSkipLastIP": True, "EFUsers": [RECIPIENT]}, False),
        ({"EFSkipLastIP": True, "EFTestMode": True}, True),
        ({"EFSkipLastIP": False, "Enabled": False}, False),
        ({"EFSkipLastIP": False, "SenderIPAddresses": ["198.51.100.0/24"]}, False),
        ({"EFSkipLastIP": False, "SenderIPAddresses": ["192.0.2.0/24"]}, True),
    ],
)
def test_a_connector_that_carried_the_message_without_enhanced_filtering_is_blamed(
    connector: dict[str, Any], plain: bool
) -> None:
    """Enhanced Filtering counts only if it is on, for the recipient, and not in test mode."""
    rows = {CONNECTORS: [{"Name": "Gateway", **connector}]}

    (cause,) = explained(override("allowedByThirdPartyFilters"), rows=rows)

    assert bool(commands_of([cause])) is plain


@pytest.mark.parametrize(("level", "shown"), [(7, True), (None, False)])
def test_the_bulk_complaint_level_is_evidence_if_the_message_has_one(level: int | None, shown: bool) -> None:
    """Evidence names only headers that are present."""
    (cause, *_) = explained(result("bulk"), message(bcl=level))

    assert any(line.startswith("header BCL") for line in cause.evidence) is shown


@pytest.mark.parametrize(
    ("answer", "mail", "wanted", "unwanted"),
    [
        (result("threatsFound"), message(), ANTI_SPAM, ANTI_MALWARE),
        (result(detected_files=(DetectedFile(sha256=SHA256),)), message(), ANTI_MALWARE, SPOOF_ALLOWS),
        (result("threatsFound"), message(cat="MALW"), ANTI_MALWARE, SAFE_LINKS),
        (result("phishing"), message(), ANTI_SPAM, SAFE_LINKS),
    ],
)
def test_only_settings_of_the_threats_kind_are_read(
    answer: Result, mail: Message, wanted: Query, unwanted: Query
) -> None:
    """The result, detected files and the filter's category determine the kind; nothing else is read."""
    read = needed_queries(answer, mail, RECIPIENT)

    assert wanted in read
    assert unwanted not in read
