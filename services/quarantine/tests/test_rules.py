"""The periods of digests, and texts that are safe to show in an email."""

from datetime import UTC, datetime

import pytest

from quarantine.rules import DigestFrequency, period_end, prevent_autolinking


@pytest.mark.parametrize(
    ("every", "now", "end"),
    [
        (DigestFrequency.FOUR_HOURS, "2026-03-03T07:59:59", "2026-03-03T04:00:00"),
        (DigestFrequency.FOUR_HOURS, "2026-03-03T08:00:00", "2026-03-03T08:00:00"),
        (DigestFrequency.DAILY, "2026-03-03T05:59:59", "2026-03-02T06:00:00"),
        (DigestFrequency.DAILY, "2026-03-03T06:00:00", "2026-03-03T06:00:00"),
        (DigestFrequency.WEEKLY, "2026-03-02T05:59:59", "2026-02-23T06:00:00"),
        (DigestFrequency.WEEKLY, "2026-03-08T23:00:00", "2026-03-02T06:00:00"),
        (DigestFrequency.NEVER, "2026-03-08T23:00:00", None),
    ],
)
def test_periods_end_at_fixed_times(every: DigestFrequency, now: str, end: str | None) -> None:
    """All replicas, also after a restart, plan the same periods."""
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert period_end(every, moment, 6) == (end and datetime.fromisoformat(end).replace(tzinfo=UTC))


def test_mail_programs_make_no_links_of_a_subject() -> None:
    """Zero-width spaces break up what looks like a URL or a domain."""
    shown = prevent_autolinking("See https://phish.example/a\r\nor www.phish.example")
    assert "://" not in shown
    assert "phish.example" not in shown
    assert shown.replace("\u200b", "") == "See https://phish.example/a or www.phish.example"
    assert prevent_autolinking("A plain subject. Two sentences.") == "A plain subject. Two sentences."
