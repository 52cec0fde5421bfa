"""Cmdlets are pasted by administrators, and contain what attackers chose."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_builders import ANTI_SPAM, Case, commands_of, default, explained, message, override, result
from verdict_cases import PROVEN

PARAMETER = r"-[A-Z]\w+"


VALUE = r"(?:#|\$true|\$false|\d+|@\{Remove=#\})"


COMMAND = re.compile(rf"[A-Z][a-z]+-\w+(?: {PARAMETER}(?: {VALUE})?)+")


QUOTES = "'\u2018\u2019\u201a\u201b"


def literals(cmdlet: str) -> list[str]:
    """Read a cmdlet as PowerShell does; outside of its single-quoted strings it must be nothing but parameters."""
    values: list[str] = []
    outside, position = "", 0
    while position < len(cmdlet):
        if cmdlet[position] not in QUOTES:
            outside += cmdlet[position]
            position += 1
            continue
        value, position = "", position + 1
        while cmdlet[position] not in QUOTES or cmdlet[position + 1 : position + 2] in tuple(QUOTES):
            value += cmdlet[position]
            position += 2 if cmdlet[position] in QUOTES else 1
        values.append(value)
        outside += "#"
        position += 1
    assert COMMAND.fullmatch(outside), outside
    return values


@pytest.mark.parametrize(
    "hostile",
    [
        "x'; Remove-Mailbox -Identity ana; '",
        "''",
        "'",
        "$(Remove-Item *)",
        "`n; calc",
        "\u2019; Remove-Mailbox ana; \u2018",
        "a\u201ab\u201b",
        '"; calc; "',
        "@{Remove='x'}; calc #",
        "-Confirm:$false",
    ],
)
def test_a_hostile_policy_name_stays_inside_its_quotes(hostile: str) -> None:
    """PowerShell reads the same name: no quote, straight or curly, ends the string early."""
    rows = {ANTI_SPAM: [default(Name=hostile, AllowedSenderDomains=["fabrikam.example"])]}

    (command,) = commands_of(explained(override("allowedByTenant"), rows=rows))

    assert literals(command) == [hostile, "fabrikam.example"]


@pytest.mark.parametrize("hostile", ["a\nb", "a\r\nRemove-Mailbox ana", "a\x00b", "a\u2028b", "a\u202eb", "a\x1b[2Jb"])
def test_a_name_with_invisible_characters_gets_no_cmdlet(hostile: str) -> None:
    """What cannot be seen is not offered for pasting; the policy is still named, with visible characters."""
    rows = {ANTI_SPAM: [default(Name=hostile, AllowedSenderDomains=["fabrikam.example"])]}

    (cause, *_) = explained(override("allowedByTenant"), rows=rows)

    assert commands_of([cause]) == []
    assert cause.recommendations[0].policy
    assert all(character.isprintable() for line in cause.evidence for character in line)


def test_a_hostile_sender_is_quoted_in_the_cmdlet_that_blocks_it() -> None:
    """The attacker chooses the From address."""
    sender = "o'neil$(calc)`;@fabrikam.example"

    (command,) = commands_of(explained(result("phishing"), message(sender=sender)))

    assert literals(command) == ["Sender", sender]
    assert commands_of(explained(result("phishing"), message(sender="a\n@fabrikam.example"))) == []


@given(st.sampled_from([case for case in PROVEN if case.rows]), st.text(max_size=40))
@settings(max_examples=300)
def test_no_name_breaks_out_of_any_cmdlet(case: Case, hostile: str) -> None:
    """Whatever the tenant's objects are called, every cmdlet is one command with quoted values."""
    rows = {
        query: [{**row, "Name": hostile, "Identity": hostile, "TagName": hostile} for row in found]
        for query, found in case.rows.items()
    }

    for command in commands_of(explained(case.answer, case.mail, rows)):
        literals(command)


def test_long_names_are_shortened() -> None:
    """Evidence stays readable whatever the length of a name."""
    rows = {ANTI_SPAM: [default(Name="x" * 5000, AllowedSenderDomains=["fabrikam.example"])]}

    assert all(len(line) < 400 for line in explained(override("allowedByTenant"), rows=rows)[0].evidence)
