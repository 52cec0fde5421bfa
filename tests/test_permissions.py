"""Administrators are told every cmdlet that services call, and none besides."""

import re
from pathlib import Path

from verdict_poller import recommended_settings

CHECKOUT = Path(__file__).parents[1]


def called() -> set[str]:
    """Read the sources: what is invoked, what is queried, and the families of policies."""
    names: set[str] = set()
    for file in CHECKOUT.glob("services/*/*/*.py"):
        if "tests" not in file.relative_to(CHECKOUT).parts:
            text = file.read_text()
            names.update(
                re.findall(r"invoke\(\s*[\w.]+,\s*\"(\w+-\w+)\"", text), re.findall(r"Query\(\s*\"(\w+-\w+)\"", text)
            )
    families = [
        value for value in vars(recommended_settings).values() if isinstance(value, recommended_settings.Family)
    ]
    return names | {query.cmdlet for family in families for query in family.reads}


def told() -> set[str]:
    """Read the tables: `Get-` and `Set-Thing` are two."""
    section = (CHECKOUT / "docs" / "operations.md").read_text().partition("## Permissions at Microsoft")[2]
    rows = [line.split("|")[2] for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    names: set[str] = set()
    for row in rows:
        verbs: list[str] = []
        for verb, noun in re.findall(r"`(\w+-)(\w*)`", row):
            verbs.append(verb)
            if noun:
                names.update(f"{one}{noun}" for one in verbs)
                verbs = []
    return names


def test_every_cmdlet_is_told() -> None:
    """A role group made of the list lets every service do its work."""
    assert {"Set-MailboxJunkEmailConfiguration", "Get-SafeLinksRule", "Get-TransportRule"} <= called()
    assert told() == called()
