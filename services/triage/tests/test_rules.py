"""Which reports are one case, and when the policy acts, as tables of cases."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import Category, Folder, Message, MessageReported, ReportedAs
from triage.rules import Policy, PolicyError, assign, category_of, gravest, keys_of, load_policy

TENANT = uuid4()
EXAMPLE = Path(__file__).parents[1] / "policy.example.toml"


def report(message_id: str | None = None, fingerprint: str | None = None, **facts: Any) -> MessageReported:
    """Make a report of a message with these facts."""
    return MessageReported(
        tenant_id=TENANT,
        report_id=uuid4(),
        reporter="user@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.INBOX,
        channel="api",
        reported_at=datetime.now(UTC),
        message=Message.model_validate(
            {"sha256": "0" * 64, "size": 1, "internet_message_id": message_id, "fingerprint": fingerprint} | facts
        ),
    )


def cases(*reports: MessageReported, standing: dict[bytes, UUID] | None = None) -> list[UUID]:
    """Return the case of each report."""
    return [case_id for _, case_id in assign(reports, standing or {})[0]]


PASSED = {"dmarc": "pass", "header_from": "x.example"}
PHISH = {"sender": "bank@phish.example", "subject": "Confirm"}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        # A campaign gives each copy an id of its own.
        (report("<a@x.example>", "v1:same"), report("<b@x.example>", "v1:same"), True),
        (report("<a@x.example>", "v1:one"), report("<b@x.example>", "v1:two"), False),
        # The words of one sender, copied by another, or by somebody who forges the name.
        (report(None, "v1:same", sender_domain="x.example"), report(None, "v1:same", sender_domain="y.example"), False),
        (
            report(None, "v1:same", sender_domain="x.example", delivery=PASSED),
            report(None, "v1:same", sender_domain="x.example", delivery=PASSED | {"dmarc": "fail"}),
            False,
        ),
        # The sender chooses the Message-ID: for a known one it sends something else.
        (report("<a@x.example>", "v1:lunch", **PHISH), report("<a@x.example>", "v1:phish", **PHISH), False),
        (report("<a@x.example>", "v1:lunch", **PHISH), report("<a@x.example>", **PHISH), False),
        # Too short for a fingerprint: each mailbox has its own copy, with other bytes.
        (report("<a@x.example>", sha256="1" * 64, **PHISH), report("<a@x.example>", sha256="2" * 64, **PHISH), True),
        (report("<a@x.example>", **PHISH), report("<a@x.example>", **PHISH | {"subject": "Lunch"}), False),
        (report("<a@x.example>", **PHISH), report("<a@x.example>", **PHISH | {"sender": "x@other.example"}), False),
        # Absence is no identity.
        (report(sha256="1" * 64), report(sha256="1" * 64), True),
        (report(sha256="1" * 64), report(sha256="2" * 64), False),
    ],
)
def test_reports_of_messages_with_the_same_content_are_one_case(
    first: MessageReported, second: MessageReported, same: bool
) -> None:
    """Whether in one batch or in a later one."""
    one, other = cases(first, second)
    assert (one == other) is same
    _, keys = assign([first], {})
    assert (cases(second, standing=keys) == [one]) is same


def test_a_report_of_a_closed_cases_message_opens_a_new_case_with_its_keys() -> None:
    """The answer given for one message is not the answer for the next."""
    mail = report("<a@x.example>", "v1:lunch")
    ((_, first),), old = assign([mail], {})
    later = report("<a@x.example>", "v1:lunch")
    ((_, second),), new = assign([later], {})

    assert first != second
    assert new == dict.fromkeys(old, second)


def test_a_message_with_other_content_does_not_take_over_a_message_id() -> None:
    """A release is recorded in the case that was opened with that Message-ID."""
    standing = uuid4()
    lunch, phish = report("<a@x.example>", "v1:lunch"), report("<a@x.example>", "v1:phish")
    assigned, keys = assign([lunch, phish], dict.fromkeys(keys_of(lunch.message), standing))

    (_, joined), (_, opened) = assigned
    assert joined == standing != opened
    assert keys == {keys_of(phish.message)[0]: opened}


def test_the_id_of_a_new_case_is_derived_from_its_report() -> None:
    """A transaction that is repeated opens the same case; another report opens another case."""
    mail = report("<a@x.example>")
    assert cases(mail) == cases(mail)
    assert cases(mail) != cases(mail.model_copy(update={"report_id": uuid4()}))


def test_a_very_long_message_id_makes_a_key_of_the_usual_length() -> None:
    """A hostile header cannot exceed the limits of the index."""
    keys = keys_of(report("<" + "a" * 100_000 + "@x.example>").message)
    assert [len(key) for key in keys] == [32, 32]


def test_the_gravest_report_of_a_case_counts() -> None:
    """One report of malware outweighs many of junk."""
    assert gravest([ReportedAs.JUNK, ReportedAs.MALWARE, ReportedAs.PHISHING]) is ReportedAs.MALWARE


def match(policy: Policy, **facts: object) -> str | None:
    """Return the name of the rule that matches a case with these facts."""
    rule = policy.first_match(
        **{  # type: ignore[arg-type]
            "reported_as": [ReportedAs.PHISHING],
            "folders": [Folder.INBOX],
            "people": 1,
            "sender_domain": "fabrikam.example",
            **facts,
        }
    )
    return rule.name if rule else None


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({}, True),
        ({"reported_as": ["phishing"]}, True),
        ({"reported_as": ["junk"]}, False),
        ({"folder": ["inbox"]}, True),
        ({"folder": ["junk"]}, False),
        ({"min_reports": 1}, True),
        ({"min_reports": 2}, False),
        ({"sender_domain": ["fabrikam.example"]}, True),
        ({"sender_domain": ["contoso.example"]}, False),
        ({"not_sender_domain": ["fabrikam.example"]}, False),
        ({"reported_as": ["phishing"], "folder": ["junk"]}, False),
    ],
)
def test_all_conditions_of_a_rule_must_hold(when: dict[str, object], matches: bool) -> None:
    """A condition that is left out always holds."""
    policy = Policy.model_validate({"rule": [{"name": "r", "when": when, "then": {"submit": "as-reported"}}]})
    assert (match(policy) == "r") is matches


def test_the_first_rule_that_matches_counts() -> None:
    """Later rules are ignored."""
    then = {"submit": "as-reported"}
    policy = Policy.model_validate({"rule": [{"name": "first", "then": then}, {"name": "second", "then": then}]})
    assert match(policy) == "first"


def test_without_a_policy_file_every_case_waits_for_an_admin() -> None:
    """No rule matches."""
    assert match(load_policy(None)) is None


def test_the_example_policy_is_valid() -> None:
    """It can be used as it is."""
    assert match(load_policy(EXAMPLE)) == "phishing that reached an Inbox"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[rule]", "is not TOML"),
        ('[[rule]]\nname = "r"', "rule.0.then"),
        ('[[rule]]\nname = "r"\nthen.submit = "quickly"', "rule.0.then.submit"),
        ('[[rule]]\nname = "r"\nthen.block_days = 91\nthen.block = "sender"', "block_days"),
        ('[[rule]]\nname = "r"\nwhen.subject = "x"\nthen.submit = "spam"', "rule.0.when.subject"),
    ],
)
def test_an_invalid_policy_file_is_rejected_with_the_place_of_the_error(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """A service that would misread its policy must not start."""
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(PolicyError, match=complaint):
        load_policy(file)
    with pytest.raises(PolicyError, match="No such file"):
        load_policy(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("submit", "reported", "category"),
    [
        ("as-reported", [ReportedAs.JUNK], Category.SPAM),
        ("as-reported", [ReportedAs.JUNK, ReportedAs.PHISHING], Category.PHISHING),
        ("as-reported", [ReportedAs.NOT_JUNK], Category.NOT_JUNK),
        ("malware", [ReportedAs.JUNK], Category.MALWARE),
    ],
)
def test_a_case_is_submitted_in_the_category_of_the_rule(
    submit: str, reported: list[ReportedAs], category: Category
) -> None:
    """`as-reported` means the category of the gravest report."""
    policy = Policy.model_validate({"rule": [{"name": "r", "then": {"submit": submit}}]})
    assert category_of(policy.rule[0].then, reported) is category
