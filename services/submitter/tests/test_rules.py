"""The quota and the recognition of submissions, as tables of cases."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backstop_contracts import MailboxMessage, Message
from submitter.rules import (
    Calls,
    Due,
    Quota,
    Used,
    is_other_message,
    item_of,
    item_of_other,
    link_of,
    matches,
    plan,
    throttles_tenant,
)

TENANT = uuid4()
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WINDOW = timedelta(minutes=15)
NO_CALLS = Calls({}, {})


def due(count: int, item: str | None = None, tenant: UUID = TENANT) -> list[Due]:
    """Make due submissions: all of one item, or each of its own."""
    return [Due(uuid4(), tenant, item or f"item {number}") for number in range(count)]


def minutes_ago(*minutes: float) -> list[datetime]:
    """Make times in the past."""
    return [NOW - timedelta(minutes=number) for number in minutes]


def used(*minutes: float) -> Used:
    """Make calls of a tenant so many minutes ago."""
    return Used(len(minutes), min(minutes_ago(*minutes)))


def test_within_the_quota_every_submission_is_made_now() -> None:
    """In the order in which they came due."""
    wanted = due(5)
    planned = plan(wanted, NO_CALLS, Quota(5, 3, WINDOW), NOW)
    assert planned.now == [one.submission_id for one in wanted]
    assert planned.wait == []


def test_a_submission_over_the_tenants_quota_waits_until_the_window_moves_on() -> None:
    """Calls of the last 15 minutes count, from whichever replica."""
    calls = Calls({TENANT: used(14, 5, 1)}, {})
    planned = plan(due(3), calls, Quota(4, 3, WINDOW), NOW)
    assert len(planned.now) == 1
    assert {(one.until, one.reason) for one in planned.wait} == {(NOW + timedelta(minutes=1), "quota")}


def test_a_backlog_is_spread_over_as_many_windows_as_it_needs() -> None:
    """The submissions do not all come due again at the same moment."""
    planned = plan(due(10), Calls({TENANT: used(0, 0)}, {}), Quota(2, 3, WINDOW), NOW)
    assert [one.until for one in planned.wait] == [NOW + (1 + n // 2) * WINDOW for n in range(10)]


def test_only_the_submissions_of_a_throttled_tenant_wait() -> None:
    """Its lookups wait, too, because they are calls; those of other tenants take nothing of the quota."""
    other = uuid4()
    look, throttled = Due(uuid4(), TENANT, "item", is_lookup=True), due(2)
    free = [Due(uuid4(), other, "item", is_lookup=True), *due(1, tenant=other)]
    paused_until = NOW + timedelta(minutes=3)
    planned = plan([look, *throttled, *free], Calls({}, {}, {TENANT: paused_until}), Quota(1, 3, WINDOW), NOW)
    assert planned.now == [one.submission_id for one in free]
    assert [(one.until, one.reason) for one in planned.wait] == [(paused_until, "throttled")] * 3


def test_a_throttled_item_is_distinguished_from_a_throttled_tenant() -> None:
    """The item is throttled if the pause is longer than any tenant's, or if an earlier call may have been made."""
    quota = Quota(window=WINDOW)
    assert throttles_tenant(WINDOW, quota, known=False)
    assert not throttles_tenant(WINDOW, quota, known=True)
    assert not throttles_tenant(timedelta(hours=20), quota, known=False)


def test_each_tenant_has_its_own_quota() -> None:
    """One tenant's submissions use nothing of another's quota."""
    planned = plan([*due(2), *due(2, tenant=uuid4())], NO_CALLS, Quota(2, 3, WINDOW), NOW)
    assert len(planned.now) == 4


@pytest.mark.parametrize(
    ("before", "free_in_minutes"),
    [
        ([], 0),
        ([20], 0),
        ([10], 5),
        ([1400, 700, 20], 40),
        ([1441, 700, 20], 0),
        ([1400, 700, 2], 40),
        ([500, 400, 2], 940),
    ],
)
def test_the_same_item_waits_as_long_as_microsoft_requires(before: list[float], free_in_minutes: float) -> None:
    """It may be submitted once per 15 minutes and 3 times per 24 hours."""
    planned = plan(due(1, "item"), Calls({}, {(TENANT, "item"): minutes_ago(*before)}), Quota(150, 3, WINDOW), NOW)
    if free_in_minutes:
        assert [(one.until, one.reason) for one in planned.wait] == [
            (NOW + timedelta(minutes=free_in_minutes), "same-item")
        ]
    else:
        assert len(planned.now) == 1


def test_two_submissions_of_one_item_are_not_made_together() -> None:
    """The second waits even if there were no earlier calls."""
    planned = plan(due(2, "item"), NO_CALLS, Quota(150, 3, WINDOW), NOW)
    assert (len(planned.now), [one.reason for one in planned.wait]) == (1, ["same-item"])


@given(
    wanted=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), max_size=40),
    before=st.lists(st.floats(0, 14.9), max_size=8),
    limit=st.integers(1, 8),
)
def test_no_plan_exceeds_the_quota(wanted: list[tuple[int, int]], before: list[float], limit: int) -> None:
    """For any due submissions and earlier calls, each submission is planned once, and within the limits."""
    tenants = [UUID(int=1), UUID(int=2)]
    all_due = [Due(uuid4(), tenants[tenant], f"item {item}") for tenant, item in wanted]
    planned = plan(all_due, Calls({tenants[0]: used(*before)} if before else {}, {}), Quota(limit, 3, WINDOW), NOW)
    by_id = {one.submission_id: one for one in all_due}
    taken = [by_id[submission_id] for submission_id in planned.now]

    assert sorted([*planned.now, *(one.submission_id for one in planned.wait)]) == sorted(by_id)
    assert len({(one.tenant_id, one.item) for one in taken}) == len(taken)
    assert sum(one.tenant_id == tenants[0] for one in taken) <= max(0, limit - len(before))
    assert sum(one.tenant_id == tenants[1] for one in taken) <= limit
    assert all(one.until > NOW for one in planned.wait)


def mail(**facts: Any) -> Message:
    """Make a message."""
    return Message(sha256="0" * 64, size=1, **facts)


@pytest.mark.parametrize(
    ("entity", "same"),
    [
        ({"internetMessageId": "<a@x.example>", "recipientEmailAddress": "User@contoso.example"}, True),
        ({"internetMessageId": "<b@x.example>", "recipientEmailAddress": "user@contoso.example"}, False),
        ({"internetMessageId": "<a@x.example>", "recipientEmailAddress": "other@contoso.example"}, False),
        ({"internetMessageId": None, "recipientEmailAddress": None}, False),
        ({}, False),
    ],
)
def test_a_submission_is_recognised_by_message_id_and_recipient(entity: dict[str, Any], same: bool) -> None:
    """These are Graph's own key of an email submission."""
    assert matches(entity, mail(internet_message_id="<a@x.example>"), "user@contoso.example") is same


@pytest.mark.parametrize(
    ("entity", "same"),
    [
        ({"sender": "A@x.example", "subject": "Hello  you"}, True),
        ({"sender": "a@x.example", "emailSubject": "Hello you"}, True),
        ({"sender": "a@x.example", "subject": "Hello"}, False),
        ({"sender": "b@x.example", "subject": "Hello you"}, False),
    ],
)
def test_a_message_without_an_id_is_recognised_by_sender_and_subject(entity: dict[str, Any], same: bool) -> None:
    """Graph's entity may have the documented fields or those of its samples."""
    entity = {"recipientEmailAddress": "user@contoso.example", **entity}
    assert matches(entity, mail(sender="a@x.example", subject="Hello you"), "user@contoso.example") is same


def test_an_item_is_a_message_and_its_recipient() -> None:
    """The same message to another recipient is another item."""
    message = mail(internet_message_id="<a@x.example>")
    assert item_of(message, "User@contoso.example") == item_of(message, "user@contoso.example")
    assert item_of(message, "user@contoso.example") != item_of(message, "other@contoso.example")


def test_the_ids_of_a_link_are_quoted() -> None:
    """Whatever the reporter sends, the link stays within the named mailbox."""
    mail = Message(sha256="0" * 64, size=1, internet_message_id="<a@fabrikam.example>")
    place = MailboxMessage(user_id="user@contoso.example", message_id="AAMk/../x?y#z==")
    assert link_of(mail, place) == (
        "https://graph.microsoft.com/beta/users/user@contoso.example/messages/AAMk%2F..%2Fx%3Fy%23z=="
    )


@pytest.mark.parametrize(
    ("user_id", "message_id", "internet_message_id"),
    [("..", "AAMk", "<a@x.example>"), ("user", "..", "<a@x.example>"), ("", "AAMk", "<a@x.example>"), ("u", "A", None)],
)
def test_a_link_that_cannot_be_verified_is_not_used(
    user_id: str, message_id: str, internet_message_id: str | None
) -> None:
    """Some ids would change the path, and a message without an internet message id cannot be compared."""
    mail = Message(sha256="0" * 64, size=1, internet_message_id=internet_message_id)
    assert link_of(mail, MailboxMessage(user_id=user_id, message_id=message_id)) is None
    assert link_of(mail, None) is None


@pytest.mark.parametrize(
    ("ours", "microsofts", "another"),
    [
        ("<a@x.example>", "<b@x.example>", True),
        ("<a@x.example>", " <a@x.example> ", False),
        ("<a@x.example>", "a@x.example", False),
        ("<a@x.example>", None, False),
        (None, "<b@x.example>", False),
    ],
)
def test_a_submission_of_another_message_is_recognised_by_its_id(
    ours: str | None, microsofts: str | None, another: bool
) -> None:
    """Both ids must be known; angle brackets do not matter."""
    mail = Message(sha256="0" * 64, size=1, internet_message_id=ours)
    assert is_other_message({"internetMessageId": microsofts}, mail) is another


def test_a_submission_of_another_message_counts_for_that_messages_item() -> None:
    """A report of that message then waits as long as Microsoft requires."""
    other = Message(sha256="0" * 64, size=1, internet_message_id="<b@x.example>")
    entity = {"internetMessageId": "<b@x.example>"}
    assert item_of_other(entity, "User@contoso.example") == item_of(other, "user@contoso.example")
