"""When a submission is polled, and for how long."""

from datetime import UTC, datetime, timedelta

from verdict_poller.poll_schedule import Schedule, has_timed_out

SCHEDULE = Schedule((60, 60, 180), 30)


def test_polls_become_rarer_and_fall_on_a_grid() -> None:
    """So that one list answers many submissions of a tenant."""
    now = datetime(2026, 11, 24, 12, 0, 7, tzinfo=UTC)
    dues = [SCHEDULE.next_due(now, attempts) for attempts in range(5)]
    assert [(due - now).total_seconds() for due in dues] == [83, 83, 203, 203, 203]
    assert all(due.timestamp() % 30 == 0 for due in dues)


def test_a_verdict_is_expected_for_26_hours() -> None:
    """A day for Microsoft, and two hours of grace."""
    now = datetime.now(UTC)
    assert not has_timed_out(now - timedelta(hours=25, minutes=59), now)
    assert has_timed_out(now - timedelta(hours=26), now)
