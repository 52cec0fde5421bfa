"""When to ask for a verdict. Pure functions over data."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

GIVE_UP_AFTER = timedelta(hours=26)
"""Microsoft Learn, "Admin submissions": a verdict can take up to one day; two hours of grace."""

ABANDON_AFTER = timedelta(days=7)
"""A week in which Microsoft could not be asked, as with an expired secret. Microsoft keeps submissions for 30 days."""


@dataclass(frozen=True)
class Schedule:
    """
    Seconds between the questions about one submission; the last value repeats.

    Policy hits are known within minutes, detonation and graders take up to a day, so the pauses grow. All moments
    fall on a grid of *grid_seconds*: submissions of one tenant are asked about together, with one list.
    """

    pauses: tuple[float, ...] = (60, 60, 180, 300, 300, 3600)
    grid_seconds: float = 30

    def next_due(self, now: datetime, attempts: int) -> datetime:
        """Say when to ask again after *attempts* questions."""
        pause = self.pauses[min(attempts, len(self.pauses) - 1)]
        moment = (now + timedelta(seconds=pause)).timestamp()
        return datetime.fromtimestamp(-(-moment // self.grid_seconds) * self.grid_seconds, UTC)


def is_over(watched_since: datetime, now: datetime) -> bool:
    """Tell whether a verdict is not to be expected any more."""
    return now - watched_since >= GIVE_UP_AFTER
