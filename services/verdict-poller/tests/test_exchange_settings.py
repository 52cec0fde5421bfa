"""The tenant's settings: which policies apply, and what entries match."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from verdict_builders import (
    ANTI_SPAM,
    ANTI_SPAM_RULES,
    BUILT_IN,
    EOP_PRESETS,
    MDO_PRESETS,
    RECIPIENT,
    SAFE_LINKS,
    SAFE_LINKS_RULES,
    SENDER,
    URL,
    explained,
    override,
    result,
    rules_of,
)

from verdict_poller.exchange_settings import Query, covers, covers_url, within


def policies_of(rows: Mapping[Query, Sequence[Any]]) -> set[str | None]:
    """Return the anti-spam policies that are blamed for a message that an allow list let through."""
    listed = {"AllowedSenderDomains": ["fabrikam.example"]}
    policies = [
        {"Name": "Default", "IsDefault": "True", **listed},
        {"Name": "Sales", **listed},
        {"Name": "Board", **listed},
        {"Name": "Strict Preset Security Policy1643", "RecommendedPolicyType": "Strict", **listed},
    ]
    causes = explained(override("allowedByTenant"), rows={ANTI_SPAM: policies, **rows})
    return {change.policy for cause in causes if cause.rule == "R04" for change in cause.recommendations}


def rule_for(policy: str, **conditions: Any) -> dict[str, Any]:
    """Build the row of a rule that assigns an anti-spam policy."""
    return {"Name": f"{policy} rule", "State": "Enabled", "HostedContentFilterPolicy": policy, **conditions}


STRICT = {"Name": "Strict Preset Security Policy", "HostedContentFilterPolicy": "Strict Preset Security Policy1643"}


@pytest.mark.parametrize(
    ("rules", "presets", "blamed"),
    [
        ([], [], {"Default"}),
        ([rule_for("Sales", RecipientDomainIs=["contoso.example"])], [], {"Sales"}),
        ([rule_for("Sales", SentTo=[RECIPIENT]), rule_for("Board", SentTo="bo@contoso.example")], [], {"Sales"}),
        ([rule_for("Sales", State="Disabled")], [], {"Default"}),
        ([rule_for("Sales", SentToMemberOf=["Sales team"])], [], {"Sales", "Default"}),
        ([rule_for("Sales", SentTo=["Ana"], ExceptIfSentTo=[RECIPIENT])], [], {"Default"}),
        ([rule_for("Sales", Priority=1), rule_for("Board", Priority="0")], [], {"Board"}),
        ([rule_for("Sales")], [{**STRICT, "State": "Enabled"}], {"Strict Preset Security Policy1643"}),
        ([rule_for("Sales")], [{**STRICT, "State": "Disabled"}], {"Sales"}),
        ([], [{**STRICT, "State": "Enabled", "RecipientDomainIs": ["example.org"]}], {"Default"}),
    ],
)
def test_only_a_policy_that_may_apply_to_the_recipient_is_blamed(
    rules: list[Any], presets: list[Any], blamed: set[str]
) -> None:
    """The first policy in Microsoft's order applies; a group's members are unknown, so later ones may apply, too."""
    assert policies_of({ANTI_SPAM_RULES: rules, EOP_PRESETS: presets}) == blamed


def test_every_custom_policy_may_apply_while_their_rules_are_unread() -> None:
    """Without the rules every custom policy is suspected; a preset's policy without its rule is not in force."""
    assert policies_of({}) == {"Default", "Sales", "Board"}


@pytest.mark.parametrize(
    "own", [{"Name": "Default"}, {"Name": "Tenant default", "IsDefault": "true"}, {"Name": "Only"}]
)
def test_a_default_policy_is_known_by_name_by_flag_or_by_being_the_only_one(own: dict[str, Any]) -> None:
    """Every tenant has a default policy; if none is marked as such, any policy may apply."""
    policies = {
        ANTI_SPAM: [{**own, "AllowedSenderDomains": ["fabrikam.example"]}],
        ANTI_SPAM_RULES: [],
        EOP_PRESETS: [],
    }

    (cause, *_) = explained(override("allowedByTenant"), rows=policies)

    assert cause.recommendations[0].policy == own["Name"]


@pytest.mark.parametrize("mark", [{"Name": "Built-In Protection Policy"}, {"Name": "P1", "IsBuiltInProtection": True}])
def test_built_in_protection_is_a_policy_of_microsoft(mark: dict[str, Any]) -> None:
    """It applies where no other policy does, and its settings cannot be changed."""
    rows = {SAFE_LINKS: [{**mark, "AllowClickThrough": True}], SAFE_LINKS_RULES: [], MDO_PRESETS: [], BUILT_IN: []}

    assert "R15" not in rules_of(explained(result(detected_urls=(URL,)), rows=rows))


def test_a_preset_is_never_reported_as_weak() -> None:
    """Only Microsoft can change a preset's policy."""
    preset = {"Name": "Standard Preset Security Policy7", "RecommendedPolicyType": "Standard", "PhishZapEnabled": False}
    rows = {
        ANTI_SPAM: [preset],
        EOP_PRESETS: [{"Name": "Standard Preset Security Policy", "HostedContentFilterPolicy": preset["Name"]}],
    }

    assert rules_of(explained(result("phishing"), rows=rows)) == ["R17"]


def test_a_recipient_excluded_from_built_in_protection_has_no_safe_links() -> None:
    """Built-in protection is the last policy; an exception to it leaves none."""
    rows: dict[Query, Sequence[Any]] = {
        SAFE_LINKS: [{"Name": "Built-In Protection Policy", "IsBuiltInProtection": True}],
        SAFE_LINKS_RULES: [],
        MDO_PRESETS: [],
        BUILT_IN: [{"State": "Enabled", "ExceptIfSentTo": [RECIPIENT]}],
    }
    answer = result(detected_urls=(URL,))

    assert "R15" in rules_of(explained(answer, rows=rows))
    assert "R15" not in rules_of(explained(answer, rows={**rows, BUILT_IN: [{"State": "Enabled"}]}))


@pytest.mark.parametrize(
    ("entry", "address", "subdomains", "covered"),
    [
        ("fabrikam.example", SENDER, True, True),
        ("fabrikam.example", SENDER, False, False),
        ("mail.fabrikam.example", SENDER, False, True),
        ("*.fabrikam.example", SENDER, False, True),
        ("*.mail.fabrikam.example", SENDER, True, False),
        ("@mail.fabrikam.example", SENDER, True, True),
        ("smtp:Invoice@Mail.Fabrikam.example", SENDER, True, True),
        ("other@mail.fabrikam.example", SENDER, True, False),
        ("brikam.example", SENDER, True, False),
        ("*", SENDER, True, False),
        ("", SENDER, True, False),
        ("fabrikam.example", None, True, False),
    ],
)
def test_a_list_entry_covers_an_address_by_address_or_by_whole_labels_of_its_domain(
    entry: str, address: str | None, subdomains: bool, covered: bool
) -> None:
    """Entries are addresses or domains; a domain is never matched inside a label."""
    assert covers(entry, address, subdomains=subdomains) is covered


@pytest.mark.parametrize(
    ("entry", "url", "covered"),
    [
        ("contoso.example", "https://contoso.example/", True),
        ("contoso.example", "contoso.example/a", False),
        ("contoso.example", "https://www.contoso.example", False),
        ("contoso.example", "https://contoso.example@phish.test", False),
        ("contoso.example", "https://abc-contoso.example", False),
        ("contoso.example/a", "http://CONTOSO.example:8080/a", True),
        ("contoso.example/*", "https://contoso.example/?q=1", True),
        ("contoso.example/*", "https://contoso.example", False),
        ("contoso.example/a/*", "contoso.example/a/b/c", True),
        ("contoso.example/a/*", "contoso.example/a", False),
        ("*.contoso.example", "xyz.abc.contoso.example", True),
        ("*.contoso.example", "contoso.example", False),
        ("*.contoso.example/*", "www.contoso.example/b", True),
        ("~contoso.example", "www.contoso.example", True),
        ("~contoso.example", "contoso.example/abc", False),
        ("~contoso.example~", "www.contoso.example/a/b", True),
        ("1.2.3.4", "1.2.3.4/a", False),
        ("", "contoso.example", False),
    ],
)
def test_an_allowed_url_implies_neither_subdomains_nor_subpaths(entry: str, url: str, covered: bool) -> None:
    """The scenarios of Microsoft's URL syntax for allow entries."""
    assert covers_url(entry, url) is covered


@pytest.mark.parametrize(
    ("entry", "within_it"),
    [
        ("192.0.2.25", True),
        ("192.0.2.99/24", True),
        ("192.0.2.1-192.0.2.30", True),
        ("192.0.2.26-192.0.2.30", False),
        ("2001:db8::/32", False),
        ("2001:db8::1-2001:db8::2", False),
        ("mail.fabrikam.example", False),
        ("", False),
    ],
)
def test_an_ip_entry_is_an_address_a_network_or_a_range(entry: str, within_it: bool) -> None:
    """Anything else contains no address."""
    assert within(entry, "192.0.2.25") is within_it
    assert not within(entry, None)
