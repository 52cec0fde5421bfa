"""Links are valid for one recipient, message and action until they expire."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarantine.links import (
    CONFIRMED_WITHIN,
    ExpiredLinkError,
    InvalidLinkError,
    LinkAction,
    Signer,
    parse_link,
)

OLD, NEW = "old-key-" + "x" * 32, "new-key-" + "y" * 32
NOW = datetime(2026, 3, 3, 8, tzinfo=UTC)
TENANT, MESSAGE = UUID(int=1), UUID(int=2)
ANNA = "anna@contoso.example"


def token(signer: Signer, action: LinkAction = LinkAction.VIEW, recipient: str = ANNA) -> str:
    """Return the token of a link that is valid for a day."""
    return signer.sign_link(
        action, tenant_id=TENANT, message_id=MESSAGE, recipient=recipient, expires_at=NOW + timedelta(days=1)
    )


def test_a_link_is_valid_for_its_recipient_until_it_expires() -> None:
    """The case of the recipient's address does not matter."""
    signer = Signer([NEW])
    claims = parse_link(token(signer, LinkAction.RELEASE))
    assert (claims.action, claims.tenant_id, claims.message_id) == (LinkAction.RELEASE, TENANT, MESSAGE)
    signer.check_link(claims, ANNA, NOW)
    signer.check_link(claims, "Anna@Contoso.example", NOW)
    with pytest.raises(ExpiredLinkError):
        signer.check_link(claims, ANNA, NOW + timedelta(days=1))
    assert len(token(signer)) < 100


def test_a_link_is_not_valid_for_another_recipient() -> None:
    """It does not open their copy of the message."""
    signer = Signer([NEW])
    with pytest.raises(InvalidLinkError):
        signer.check_link(parse_link(token(signer)), "ben@contoso.example", NOW)


def test_any_change_makes_a_link_invalid() -> None:
    """One character, one bit, one character more or less."""
    signer, good = Signer([NEW]), token(Signer([NEW]))
    changed = [good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :] for place in range(len(good))]
    for bad in [*changed, good[:-1], good + "A", "", "=", good + "=", "ü" * 80]:
        with pytest.raises(InvalidLinkError):
            signer.check_link(parse_link(bad), ANNA, NOW)


@given(st.text(max_size=200))
def test_any_other_text_is_an_invalid_link(text: str) -> None:
    """No text raises another error."""
    try:
        Signer([NEW]).check_link(parse_link(text), ANNA, NOW)
    except InvalidLinkError:
        return
    raise AssertionError


def test_keys_rotate() -> None:
    """A new key goes before the old one, whose links are valid until it is removed."""
    old, both, new = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    both.check_link(parse_link(token(old)), ANNA, NOW)
    new.check_link(parse_link(token(both)), ANNA, NOW)
    with pytest.raises(InvalidLinkError):
        new.check_link(parse_link(token(old)), ANNA, NOW)


@pytest.mark.parametrize("keys", [[], ["short"], [NEW, "short"]])
def test_a_missing_or_short_key_is_refused(keys: list[str]) -> None:
    """Each key needs at least 32 characters."""
    with pytest.raises(ValueError, match="32 characters"):
        Signer(keys)


def test_a_confirmation_is_valid_for_one_link_one_user_and_one_hour() -> None:
    """Neither for another link or user, nor before or after that hour."""
    signer = Signer([NEW])
    link = token(signer, LinkAction.RELEASE)
    confirmation = signer.sign_confirmation(link, "oid", NOW)
    assert signer.is_confirmed(confirmation, link, "oid", NOW + timedelta(minutes=59))
    assert not signer.is_confirmed(confirmation, token(signer, LinkAction.BLOCK), "oid", NOW)
    assert not signer.is_confirmed(confirmation, link, "somebody else", NOW)
    assert not signer.is_confirmed(confirmation, link, "oid", NOW + CONFIRMED_WITHIN + timedelta(seconds=1))
    assert not signer.is_confirmed(confirmation, link, "oid", NOW - timedelta(minutes=2))
    assert not signer.is_confirmed(link, link, "oid", NOW)
    assert not signer.is_confirmed("", link, "oid", NOW)


def test_sealed_content_can_be_read_but_not_changed() -> None:
    """Nor used for another purpose."""
    signer = Signer([NEW])
    sealed = signer.seal("session", b"anna")
    assert signer.unseal("session", sealed) == b"anna"
    for purpose, bad in (("flow", sealed), ("session", sealed[:-2]), ("session", "")):
        with pytest.raises(InvalidLinkError):
            signer.unseal(purpose, bad)
