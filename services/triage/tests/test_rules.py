"""Which reports are one case, and when the policy acts."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from backstop_contracts import Category, Folder, Message, MessageReported, ReportedAs
from triage.rules import Policy, PolicyError, assign, category_of, gravest, keys_of, load_policy

TENANT = uuid4()
EXAMPLE = Path(__file__).parents[1] / "policy.example.toml"


def report(message_id: str | None = None, fingerprint: str | None = None, sha256: str = "0" * 64) -> MessageReported:
    """Make a report of a mail with these identities."""
    return MessageReported(
        tenant_id=TENANT,
        report_id=uuid4(),
        reporter="user@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.INBOX,
        origin="api",
        reported_at=datetime.now(UTC),
        message=Message(sha256=sha256, size=1, internet_message_id=message_id, fingerprint=fingerprint),
    )


def cases(*reports: MessageReported, known: dict[bytes, UUID] | None = None) -> list[UUID]:
    """Return the case of each report."""
    return [case_id for _, case_id in assign(TENANT, reports, known or {})[0]]


def test_reports_with_the_same_message_id_are_one_case() -> None:
    """Each mailbox has its own copy, with other bytes."""
    first, second = cases(report("<a@x.example>", sha256="1" * 64), report("<a@x.example>", sha256="2" * 64))
    assert first == second


def test_reports_with_the_same_content_are_one_case_whatever_their_message_ids() -> None:
    """A campaign gives each copy an id of its own."""
    first, second = cases(report("<a@x.example>", "v1:same"), report("<b@x.example>", "v1:same"))
    assert first == second


def test_reports_of_different_mails_are_different_cases() -> None:
    """Nothing in common, nothing joined."""
    first, second = cases(report("<a@x.example>", "v1:one"), report("<b@x.example>", "v1:two"))
    assert first != second


def test_a_mail_without_message_id_is_known_by_its_bytes() -> None:
    """Same bytes, same case; other bytes, another case."""
    first, second, third = cases(report(sha256="1" * 64), report(sha256="1" * 64), report(sha256="2" * 64))
    assert first == second != third


def test_mails_with_neither_message_id_nor_content_never_join_by_lacking_them() -> None:
    """Absence is no identity."""
    first, second = cases(report(None, None, "1" * 64), report(None, None, "2" * 64))
    assert first != second


def test_a_report_joins_the_case_that_stands_and_teaches_it_its_other_identities() -> None:
    """A copy known by its content makes the case known by the copy's Message-ID too."""
    standing, old = uuid4(), report("<a@x.example>", "v1:same")
    known = dict.fromkeys(keys_of(old.message), standing)
    new, third = report("<b@x.example>", "v1:same"), report("<b@x.example>")
    assigned, keys = assign(TENANT, [new, third], known)

    assert [case_id for _, case_id in assigned] == [standing, standing]
    assert list(keys.values()) == [standing]


def test_the_message_id_decides_when_message_id_and_content_point_to_different_cases() -> None:
    """The stronger identity wins, and the keys of the other case stay with it."""
    by_id, by_content, mail = uuid4(), uuid4(), report("<a@x.example>", "v1:same")
    strong, weak = keys_of(mail.message)
    assigned, new = assign(TENANT, [mail], {strong: by_id, weak: by_content})

    assert [case_id for _, case_id in assigned] == [by_id]
    assert new == {}


def test_a_dismissed_case_takes_in_no_other_mail_of_its_message_id() -> None:
    """Who sends a harmless mail first would else have all reports of the next one land where nobody looks."""
    harmless = report("<a@x.example>", "v1:lunch")
    dismissed = uuid4()
    known = dict.fromkeys(keys_of(harmless.message), dismissed)
    phish, copy, short = (
        report("<a@x.example>", "v1:phish"),
        report("<a@x.example>", "v1:phish"),
        report("<a@x.example>"),
    )
    assigned, keys = assign(TENANT, [harmless, phish, copy, short], known, {dismissed})

    (_, first), *others = assigned
    assert first == dismissed
    (opened,) = {case_id for _, case_id in others}
    assert opened != dismissed
    assert keys == dict.fromkeys(keys_of(phish.message), opened)


def test_the_id_of_a_new_case_follows_from_its_mail() -> None:
    """A transaction that is tried again opens the same case."""
    mail = report("<a@x.example>")
    assert cases(mail) == cases(mail)


def test_an_endless_message_id_makes_a_key_like_any_other() -> None:
    """A hostile header cannot outgrow the index."""
    (key,) = keys_of(report("<" + "a" * 100_000 + "@x.example>").message)
    assert len(key) == 32


def test_the_gravest_word_of_the_reporters_counts() -> None:
    """One who says malware outweighs many who say junk."""
    assert gravest([ReportedAs.JUNK, ReportedAs.MALWARE, ReportedAs.PHISHING]) is ReportedAs.MALWARE


def match(policy: Policy, **facts: object) -> str | None:
    """Return the name of the rule that matches a case with these facts."""
    rule = policy.first_match(
        **{  # type: ignore[arg-type]
            "reported_as": [ReportedAs.PHISHING],
            "folders": [Folder.INBOX],
            "report_count": 1,
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
    """A condition that is left out holds always."""
    policy = Policy.model_validate({"rule": [{"name": "r", "when": when, "then": {"submit": "as-reported"}}]})
    assert (match(policy) == "r") is matches


def test_the_first_rule_that_matches_counts() -> None:
    """Later rules are not looked at."""
    then = {"submit": "as-reported"}
    policy = Policy.model_validate({"rule": [{"name": "first", "then": then}, {"name": "second", "then": then}]})
    assert match(policy) == "first"


def test_without_a_policy_file_nothing_is_done_without_asking() -> None:
    """Every case waits for an admin."""
    assert match(load_policy(None)) is None


def test_the_example_policy_is_valid() -> None:
    """What is printed can be used."""
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
def test_a_wrong_policy_file_is_refused_with_the_place_of_the_mistake(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """A service with a policy that it misreads must not start."""
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
def test_a_case_is_submitted_as_the_rule_says(submit: str, reported: list[ReportedAs], category: Category) -> None:
    """As reported means Microsoft's category for the gravest of what was said."""
    policy = Policy.model_validate({"rule": [{"name": "r", "then": {"submit": submit}}]})
    assert category_of(policy.rule[0].then, reported) is category
