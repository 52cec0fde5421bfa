"""When to ask for a verdict. Pure functions over data."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

GIVE_UP_AFTER = timedelta(hours=26)
"""Microsoft Learn, "Admin submissions": a verdict can take up to one day; two hours of grace."""

ABANDON_AFTER = timedelta(days=7)
"""Limit while Microsoft cannot be asked, for example with an expired secret. It keeps submissions for 30 days."""


@dataclass(frozen=True)
class Schedule:
    """
    Seconds between the polls of one submission; the last value repeats.

    Policy hits are known within minutes, detonation and graders take up to a day, so the pauses grow. Polls are due at
    multiples of *grid_seconds*, so that one list answers many submissions of a tenant.
    """

    pauses: tuple[float, ...] = (60, 60, 180, 300, 300, 3600)
    grid_seconds: float = 30

    def next_due(self, now: datetime, attempts: int) -> datetime:
        """Return when to poll again after *attempts* polls."""
        pause = self.pauses[min(attempts, len(self.pauses) - 1)]
        moment = (now + timedelta(seconds=pause)).timestamp()
        return datetime.fromtimestamp(-(-moment // self.grid_seconds) * self.grid_seconds, UTC)


def has_timed_out(watched_since: datetime, now: datetime) -> bool:
    """Return True if Microsoft is not expected to give a verdict any more."""
    return now - watched_since >= GIVE_UP_AFTER
