"""The rules of reporting as tables of cases."""

from uuid import UUID, uuid4

import pytest

from backstop_contracts import CaseStatus, Conclusion, Message
from reporter import rules
from reporter.rules import NotYoursError, Reporter, Status

TENANT = uuid4()
OPEN, SUBMITTED, RESOLVED, DISMISSED = CaseStatus
THREAT, CLEAN, SIMULATION, UNKNOWN = Conclusion


def message(
    message_id: str | None = "<1@fabrikam.example>", sha256: str = "a" * 64, sender: str | None = None
) -> Message:
    """Make the facts of a mail."""
    return Message(sha256=sha256, size=1, internet_message_id=message_id, sender=sender)


@pytest.mark.parametrize(
    ("status", "conclusion", "told"),
    [
        (None, None, Status.RECEIVED),
        (OPEN, None, Status.IN_TRIAGE),
        (SUBMITTED, None, Status.SUBMITTED),
        (RESOLVED, None, Status.SUBMITTED),
        (DISMISSED, None, Status.DISMISSED),
        (None, THREAT, Status.VERDICT),
        (OPEN, THREAT, Status.VERDICT),
        (SUBMITTED, THREAT, Status.VERDICT),
        (SUBMITTED, CLEAN, Status.VERDICT),
        (SUBMITTED, SIMULATION, Status.VERDICT),
        (RESOLVED, THREAT, Status.VERDICT),
        (OPEN, UNKNOWN, Status.VERDICT),
        (None, UNKNOWN, Status.VERDICT),
        (SUBMITTED, UNKNOWN, Status.SUBMITTED),
        (DISMISSED, UNKNOWN, Status.DISMISSED),
    ],
)
def test_what_a_reporter_is_told(status: CaseStatus | None, conclusion: Conclusion | None, told: Status) -> None:
    """A definite verdict is the last word; without one the case's own progress is told."""
    assert rules.progress(status, conclusion)[0] is told


@pytest.mark.parametrize("status", [None, OPEN, SUBMITTED, RESOLVED])
@pytest.mark.parametrize("override", ["allowed", "blocked"])
def test_an_override_is_told_as_what_it_is(status: CaseStatus | None, override: str) -> None:
    """It is Microsoft's answer, neither a confirmed threat nor a failure to decide."""
    told, explanation = rules.progress(status, UNKNOWN, override)

    assert told is Status.VERDICT
    assert "a setting of your organisation or of your mailbox" in explanation
    assert explanation not in rules.VERDICTS.values()


def test_every_state_is_explained_in_words_of_its_own() -> None:
    """No two states read the same."""
    said = [rules.progress(status, None)[1] for status in (None, OPEN, SUBMITTED, DISMISSED)]
    said += [rules.progress(RESOLVED, conclusion)[1] for conclusion in (THREAT, CLEAN, SIMULATION)]
    said += [rules.progress(OPEN, UNKNOWN, override)[1] for override in (None, "allowed", "blocked")]
    assert len(set(said)) == len(said)
    assert all(sentence.endswith(".") for sentence in said)


@pytest.mark.parametrize("reason", ["own-domain", "protected-domain", "invalid", "limit", "refused", "gave-up"])
def test_every_reason_of_a_failed_block_is_explained(reason: str) -> None:
    """The reporter hears why; a reason that is not known yet is still a sentence."""
    assert rules.block_explained("failed", reason).startswith("The sender was not blocked: ")
    assert rules.block_explained("failed", "brand-new").startswith("The sender was not blocked: ")


def test_an_ended_block_is_explained() -> None:
    """The reporter hears why mail of the sender arrives again."""
    assert rules.block_explained("removed", "verdict-clean").endswith("Microsoft found the mail clean.")
    assert rules.block_explained("removed", "expired") != rules.block_explained("removed", "verdict-clean")


@pytest.mark.parametrize(
    ("sender", "value"),
    [
        (None, None),
        ("", None),
        ("mallory@fabrikam.example", "mallory@fabrikam.example"),
        ("x" * 400 + "@fabrikam.example", None),
    ],
)
def test_a_sender_can_be_blocked_when_the_mail_names_one(sender: str | None, value: str | None) -> None:
    """Its length is bounded."""
    assert rules.blockable(message(sender=sender)) == value


@pytest.mark.parametrize("claimed", [None, "ann@contoso.example", "ANN@CONTOSO.EXAMPLE"])
def test_a_person_is_the_reporter(claimed: str | None) -> None:
    """Address and mailbox of a signed-in person come from the token."""
    oid = str(uuid4())
    assert rules.person(oid, "Ann@contoso.example", claimed) == Reporter("Ann@contoso.example", oid)


@pytest.mark.parametrize(
    ("name", "claimed"), [("ann@contoso.example", "bob@contoso.example"), (None, None), ("Ann", None)]
)
def test_a_person_is_nobody_else(name: str | None, claimed: str | None) -> None:
    """Neither another address nor an unknown one is taken."""
    with pytest.raises(NotYoursError):
        rules.person(str(uuid4()), name, claimed)


def test_a_persons_own_mailbox_is_known_by_object_id() -> None:
    """However a person writes their own mailbox, its object id is used."""
    oid = str(UUID(int=0xABC))
    for user_id in (oid, oid.upper(), "Ann@contoso.example", "ann@contoso.example"):
        assert rules.own_mailbox(oid, "ann@contoso.example", user_id) == oid
    for user_id in ("bob@contoso.example", str(uuid4()), ""):
        with pytest.raises(NotYoursError):
            rules.own_mailbox(oid, "ann@contoso.example", user_id)
