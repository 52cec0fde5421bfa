"""The email threat submissions of one tenant, and the limits on making them."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from simulator.mail import Attachment, Mail
from simulator.settings import Settings

_DAY_SECONDS = 24 * 60 * 60


@dataclass(frozen=True)
class Verdict:
    """
    What the analysis of a submission ends with, in the words of Graph's `submissionResult`.

    `rule` names the rule that decided, for the ledger and for tests; Graph does not show it.
    """

    category: str
    detail: str = "none"
    status: str = "succeeded"
    user_mailbox_setting: str = "none"
    detected_urls: tuple[str, ...] = ()
    detected_files: tuple[Attachment, ...] = ()
    simulation: bool = False
    rule: str = ""


@dataclass
class Submission:
    """One submission. Its verdict is settled when it is made and shown once the delay is over."""

    number: int
    mail: Mail
    recipient: str
    category: str
    source: Literal["administrator", "user"]
    odata_type: str
    created: datetime
    due: datetime
    verdict: Verdict
    creator: dict[str, str | None]
    message_url: str | None = None
    list_action: dict[str, Any] | None = None
    review: dict[str, str] | None = None
    id: str = field(default_factory=lambda: str(uuid4()))

    def status(self, now: datetime) -> str:
        """`notStarted` for the first tenth of the delay, then `running`, then what the verdict says."""
        if now >= self.due:
            return self.verdict.status
        return "notStarted" if now < self.created + (self.due - self.created) / 10 else "running"


class Submissions:
    """A tenant's submissions in the order of their making."""

    def __init__(self) -> None:
        self.all: list[Submission] = []
        self.by_id: dict[str, Submission] = {}
        self._made: list[datetime] = []
        self._made_of: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)

    def add(self, submission: Submission) -> None:
        """Store *submission*."""
        self.all.append(submission)
        self.by_id[submission.id] = submission

    def count(self, item: tuple[str, str], now: datetime) -> None:
        """Count a submission of *item* against the limits."""
        self._made.append(now)
        self._made_of[item].append(now)

    def seconds_to_wait(self, item: tuple[str, str], now: datetime, settings: Settings) -> int | None:
        """How long a submission of *item* has to wait; None when it may be made now."""
        same = self._made_of.get(item, [])
        longest = max(
            _wait(self._made, now, settings.submissions_window_seconds, settings.submissions_per_window),
            _wait(same, now, settings.same_item_window_seconds, settings.same_item_per_window),
            _wait(same, now, _DAY_SECONDS, settings.same_item_per_day),
        )
        return math.ceil(longest) if longest > 0 else None


def _wait(made: list[datetime], now: datetime, window: float, limit: int) -> float:
    """Seconds until fewer than *limit* of *made*, oldest first, lie within the last *window* seconds."""
    if limit == 0:
        return window
    if len(made) < limit:
        return 0
    return window - (now - made[-limit]).total_seconds()
