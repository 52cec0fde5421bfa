"""Rows of Get-QuarantineMessage are parsed, whatever their shape."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quarantine.exchange_rows import SYNC_OVERLAP, day_windows, is_partly_released, parse_row, row_with_identity
from quarantine.rules import MessageStatus as Status

NOW = datetime(2026, 3, 3, 8, tzinfo=UTC)
ROW = {
    "Identity": "5e6f7081-92a3-4b4c-05d6-08de78f9e7a1\\7c6d5e4f-3a2b-4c1d-9e8f-7a6b5c4d3e2f",
    "ReceivedTime": "2026-03-03T08:02:17.0000000Z",
    "Expires": "2026-03-18T08:02:17",
    "RecipientAddress": ["Anna@Contoso.example", "ben@contoso.example", "anna@contoso.example"],
    "SenderAddress": "Billing@fabrikam.example",
    "ReleaseStatus": "NOTRELEASED",
    "QuarantineTypes": "Spam",
    "EntityType": "Email",
}


def test_a_row_is_one_message_for_each_recipient() -> None:
    """Addresses are compared without case; times without a zone are UTC."""
    messages = parse_row(ROW)
    assert [message.recipient for message in messages] == ["anna@contoso.example", "ben@contoso.example"]
    assert {message.recipient_count for message in messages} == {2}
    assert messages[0].expires_at == datetime(2026, 3, 18, 8, 2, 17, tzinfo=UTC)
    assert (messages[0].sender, messages[0].sender_domain) == ("billing@fabrikam.example", "fabrikam.example")
    assert messages[0].network_message_id == "5e6f7081-92a3-4b4c-05d6-08de78f9e7a1"


@pytest.mark.parametrize(
    ("more", "anna", "ben"),
    [
        ({}, Status.NOT_RELEASED, Status.NOT_RELEASED),
        ({"ReleaseStatus": "Requested"}, Status.REQUESTED, Status.REQUESTED),
        ({"ReleasedUser": ["ANNA@contoso.example"]}, Status.RELEASED, Status.NOT_RELEASED),
        (
            {"ReleaseStatus": "APPROVED", "ReleasedUser": ["anna@contoso.example"]},
            Status.APPROVED,
            Status.APPROVED,
        ),
        ({"DeletedForRecipients": ["ben@contoso.example"]}, Status.NOT_RELEASED, Status.DELETED),
        ({"ReleaseStatus": "SOMETHINGNEW"}, Status.NOT_RELEASED, Status.NOT_RELEASED),
    ],
)
def test_each_recipient_has_their_own_status(more: dict[str, Any], anna: Status, ben: Status) -> None:
    """As far as the row distinguishes them."""
    assert [message.status for message in parse_row({**ROW, **more})] == [anna, ben]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {**ROW, "Identity": ""},
        {**ROW, "Identity": "x"},
        {**ROW, "ReceivedTime": None},
        {**ROW, "EntityType": "Teams"},
    ],
)
def test_a_row_that_is_not_an_identified_message_is_skipped(row: dict[str, Any]) -> None:
    """Teams messages and files are not emails; without an Identity no action is possible."""
    assert parse_row(row) == []


@given(
    st.dictionaries(
        st.sampled_from(
            [*ROW, "ReleasedUser", "DeletedForRecipients", "Size", "RecipientCount", "ReleasedBy", "Subject"]
        ),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text() | st.integers()) | st.just("a\\b"),
    )
)
@example({"Identity": "\x00a\\b"})
def test_no_row_fails_to_parse(more: dict[str, Any]) -> None:
    """Rows are not documented. What was parsed can be stored."""
    row = {**ROW, **more}
    is_partly_released(row)
    for message in parse_row(row):
        texts = (message.identity, message.recipient, message.sender or "", message.subject or "")
        for text in (*texts, *message.released_by):
            assert "\x00" not in text
            text.encode()


def test_windows_cover_the_time_since_the_last_sync_without_a_gap() -> None:
    """Day by day, with an overlap, and no further back than Exchange looks."""
    for read_until in (None, NOW - timedelta(days=90), NOW - timedelta(days=3), NOW - timedelta(minutes=1)):
        found = day_windows(read_until, NOW)
        assert found[0][1] > NOW
        assert all(earlier[1] == later[0] for later, earlier in pairwise(found))
        start = max(NOW - timedelta(days=30), read_until - SYNC_OVERLAP) if read_until else NOW - timedelta(days=30)
        assert found[-1][0] == start
        assert all(end - begin <= timedelta(days=1) for begin, end in found)


def test_a_row_is_found_by_its_identity() -> None:
    """Exchange may return many others instead."""
    assert row_with_identity([ROW, {"Identity": "x\\y"}], "X\\Y") == {"Identity": "x\\y"}
    assert row_with_identity([ROW], "x\\y") is None
