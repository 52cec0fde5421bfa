"""The rules of reporting as tables of cases."""

from uuid import UUID, uuid4

import pytest

from backstop_contracts import CaseStatus, Conclusion, Message
from chassis.entra import Caller
from chassis.http import Problem
from reporter import http, rules
from reporter.mailbox_blocks import blockable_sender, explain_block
from reporter.rules import Status
from reporter.upload import MailboxPlace

TENANT = uuid4()
OID = str(UUID(int=0xABC))
OPEN, SUBMITTED, RESOLVED, DISMISSED = CaseStatus
THREAT, CLEAN, SIMULATION, UNKNOWN = Conclusion


def message(
    message_id: str | None = "<1@fabrikam.example>", sha256: str = "a" * 64, sender: str | None = None
) -> Message:
    """Make the facts of a message."""
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
def test_the_status_follows_from_case_and_verdict(
    status: CaseStatus | None, conclusion: Conclusion | None, told: Status
) -> None:
    """A definite verdict is final; without one, the progress of the case is shown."""
    assert rules.progress(status, conclusion)[0] is told


@pytest.mark.parametrize("status", [None, OPEN, SUBMITTED, RESOLVED])
@pytest.mark.parametrize("override", ["allowed", "blocked"])
def test_an_override_is_explained_as_what_it_is(status: CaseStatus | None, override: str) -> None:
    """It is Microsoft's answer, neither a confirmed threat nor a failure to decide."""
    told, explanation = rules.progress(status, UNKNOWN, override)

    assert told is Status.VERDICT
    assert "a setting of your organisation or of your mailbox" in explanation
    assert explanation not in rules.VERDICTS.values()


def test_every_state_is_explained_in_words_of_its_own() -> None:
    """No two states have the same explanation."""
    said = [rules.progress(status, None)[1] for status in (None, OPEN, SUBMITTED, DISMISSED)]
    said += [rules.progress(RESOLVED, conclusion)[1] for conclusion in (THREAT, CLEAN, SIMULATION)]
    said += [rules.progress(OPEN, UNKNOWN, override)[1] for override in (None, "allowed", "blocked")]
    assert len(set(said)) == len(said)
    assert all(sentence.endswith(".") for sentence in said)


@pytest.mark.parametrize("reason", ["own-domain", "protected-domain", "invalid", "limit", "refused", "gave-up"])
def test_every_reason_of_a_failed_block_is_explained(reason: str) -> None:
    """A reason that is not known yet makes a sentence, too."""
    assert explain_block("failed", reason).startswith("The sender was not blocked: ")
    assert explain_block("failed", "brand-new").startswith("The sender was not blocked: ")


def test_an_ended_block_is_explained() -> None:
    """The reporter learns why messages of the sender arrive again."""
    assert explain_block("removed", "verdict-clean").endswith("Microsoft found the mail clean.")
    assert explain_block("removed", "expired") != explain_block("removed", "verdict-clean")


@pytest.mark.parametrize(
    ("sender", "value"),
    [
        (None, None),
        ("", None),
        ("mallory@fabrikam.example", "mallory@fabrikam.example"),
        ("x" * 400 + "@fabrikam.example", None),
    ],
)
def test_a_sender_can_be_blocked_if_the_message_names_one(sender: str | None, value: str | None) -> None:
    """The length of its address is limited."""
    assert blockable_sender(message(sender=sender)) == value


def caller(name: str | None) -> Caller:
    """Return a signed-in person whose token has that name."""
    return Caller(tenant_id=TENANT, oid=OID, name=name, roles=frozenset({"Reporter"}), is_app=False)


@pytest.mark.parametrize("claimed", [None, "ann@contoso.example", "ANN@CONTOSO.EXAMPLE"])
def test_a_signed_in_person_is_the_reporter(claimed: str | None) -> None:
    """Address and mailbox come from the token."""
    assert http._resolve_reporter(caller("Ann@contoso.example"), claimed) == ("Ann@contoso.example", OID)


@pytest.mark.parametrize(
    ("name", "claimed"), [("ann@contoso.example", "bob@contoso.example"), (None, None), ("Ann", None)]
)
def test_a_signed_in_person_cannot_report_for_anybody_else(name: str | None, claimed: str | None) -> None:
    """Another address is refused, and so is a token without an address."""
    with pytest.raises(Problem, match="Nothing was saved"):
        http._resolve_reporter(caller(name), claimed)


def test_a_persons_own_mailbox_is_named_by_its_object_id() -> None:
    """Whether the request names it by object id or by address."""
    ann = caller("ann@contoso.example")
    for user_id in (OID, OID.upper(), "Ann@contoso.example", "ann@contoso.example"):
        assert http._place(ann, MailboxPlace(user_id=user_id, message_id="AAMk")).user_id == OID
    for user_id in ("bob@contoso.example", str(uuid4())):
        with pytest.raises(Problem, match="own mailbox only"):
            http._place(ann, MailboxPlace(user_id=user_id, message_id="AAMk"))
