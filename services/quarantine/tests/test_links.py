"""Links are bound to recipient, mail and action, and good for a time."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarantine.links import (
    CONFIRMED_WITHIN,
    ExpiredError,
    InvalidLinkError,
    LinkAction,
    Signer,
    read,
)

OLD, NEW = "old-key-" + "x" * 32, "new-key-" + "y" * 32
NOW = datetime(2026, 3, 3, 8, tzinfo=UTC)
TENANT, MESSAGE = UUID(int=1), UUID(int=2)
ANNA = "anna@contoso.example"


def token(signer: Signer, action: LinkAction = LinkAction.VIEW, recipient: str = ANNA) -> str:
    """Sign a link that works for a day."""
    return signer.link(
        action, tenant_id=TENANT, message_id=MESSAGE, recipient=recipient, expires_at=NOW + timedelta(days=1)
    )


def test_a_link_says_what_it_is_for() -> None:
    """And is believed until its time is over, however the address is spelled."""
    signer = Signer([NEW])
    claim = read(token(signer, LinkAction.RELEASE))
    assert (claim.action, claim.tenant_id, claim.message_id) == (LinkAction.RELEASE, TENANT, MESSAGE)
    signer.check(claim, ANNA, NOW)
    signer.check(claim, "Anna@Contoso.example", NOW)
    with pytest.raises(ExpiredError):
        signer.check(claim, ANNA, NOW + timedelta(days=1))
    assert len(token(signer)) < 100


def test_a_link_is_the_recipients_alone() -> None:
    """Another recipient's mail is not opened by it."""
    signer = Signer([NEW])
    with pytest.raises(InvalidLinkError):
        signer.check(read(token(signer)), "ben@contoso.example", NOW)


def test_any_change_makes_a_link_invalid() -> None:
    """One character, one bit, one character more or less."""
    signer, good = Signer([NEW]), token(Signer([NEW]))
    changed = [good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :] for place in range(len(good))]
    for bad in [*changed, good[:-1], good + "A", "", "=", good + "=", "ü" * 80]:
        with pytest.raises(InvalidLinkError):
            signer.check(read(bad), ANNA, NOW)


@given(st.text(max_size=200))
def test_what_is_no_link_is_invalid(text: str) -> None:
    """No input raises anything else."""
    try:
        Signer([NEW]).check(read(text), ANNA, NOW)
    except InvalidLinkError:
        return
    raise AssertionError


def test_keys_rotate() -> None:
    """A new key is put before the old one; links of the old one work until it is taken away."""
    old, both, new = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    both.check(read(token(old)), ANNA, NOW)
    new.check(read(token(both)), ANNA, NOW)
    with pytest.raises(InvalidLinkError):
        new.check(read(token(old)), ANNA, NOW)


@pytest.mark.parametrize("keys", [[], ["short"], [NEW, "short"]])
def test_a_key_that_could_be_guessed_is_refused(keys: list[str]) -> None:
    """At least 32 characters each."""
    with pytest.raises(ValueError, match="32 characters"):
        Signer(keys)


def test_a_confirmation_is_for_one_link_one_person_and_one_hour() -> None:
    """No other page's, nobody else's, nor an old one's."""
    signer = Signer([NEW])
    link = token(signer, LinkAction.RELEASE)
    confirmation = signer.confirmation(link, "oid", NOW)
    assert signer.is_confirmed(confirmation, link, "oid", NOW + timedelta(minutes=59))
    assert not signer.is_confirmed(confirmation, token(signer, LinkAction.BLOCK), "oid", NOW)
    assert not signer.is_confirmed(confirmation, link, "somebody else", NOW)
    assert not signer.is_confirmed(confirmation, link, "oid", NOW + CONFIRMED_WITHIN + timedelta(seconds=1))
    assert not signer.is_confirmed(confirmation, link, "oid", NOW - timedelta(minutes=2))
    assert not signer.is_confirmed(link, link, "oid", NOW)
    assert not signer.is_confirmed("", link, "oid", NOW)


def test_what_is_sealed_can_be_read_and_not_changed() -> None:
    """Nor taken for something else."""
    signer = Signer([NEW])
    sealed = signer.seal("session", b"anna")
    assert signer.unseal("session", sealed) == b"anna"
    for purpose, bad in (("flow", sealed), ("session", sealed[:-2]), ("session", "")):
        with pytest.raises(InvalidLinkError):
            signer.unseal(purpose, bad)
