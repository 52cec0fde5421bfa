"""
Faults to order: what goes wrong, on which route, how often.

A fault is taken when a call arrives, before anything else is looked at. The first ordered fault whose pattern matches
the route and whose chance comes up is the one that happens; a call meets at most one fault.
"""

import asyncio
from contextlib import suppress
from fnmatch import fnmatchcase
from random import Random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

Kind = Literal["throttle", "error", "refuse", "timeout", "drop_after_effect", "drop_before_effect"]

_STATUS_OF_KIND = {"throttle": 429, "error": 503, "refuse": 400}
_CODE_OF_KIND = {"throttle": "TooManyRequests", "error": "ServiceUnavailable", "refuse": "BadRequest"}


class Fault(BaseModel):
    """
    One order.

    - `throttle` answers 429; without `retry_after` the header is absent, as some of Microsoft's services leave it out.
    - `error` answers `status` (503), `refuse` answers `status` (400) with `code` and `message`.
    - `timeout` lets the effect happen and holds the answer for `seconds`.
    - `drop_after_effect` lets the effect happen and closes the connection without an answer.
    - `drop_before_effect` closes the connection and nothing happens.

    `times` counts down with every call that meets the fault; None means until it is deleted. `probability` is drawn
    per matching call from a generator seeded with `seed`, so a run can be repeated.
    """

    model_config = ConfigDict(extra="forbid")

    route: str = Field(min_length=1, description="A route's name or a shell-style pattern, e.g. `exchange.*`.")
    kind: Kind
    times: int | None = Field(1, ge=1)
    probability: float = Field(1.0, gt=0, le=1)
    seed: int = 0
    status: int | None = Field(None, ge=400, le=599)
    code: str | None = None
    message: str | None = None
    retry_after: int | None = Field(None, ge=0)
    seconds: float = Field(30.0, ge=0)
    taken: int = Field(0, description="How many calls met this fault so far; kept by the simulator.")

    _random: Random = PrivateAttr(default_factory=Random)

    def model_post_init(self, _context: object) -> None:
        """Start the generator from the seed."""
        self._random = Random(self.seed)

    @property
    def spent(self) -> bool:
        """True once the fault has occurred as often as ordered."""
        return self.times is not None and self.taken >= self.times

    @property
    def answer_status(self) -> int:
        """The HTTP status of a fault that answers instead of the service."""
        return self.status or _STATUS_OF_KIND[self.kind]

    @property
    def answer_code(self) -> str:
        """The error code of a fault that answers instead of the service."""
        return self.code or _CODE_OF_KIND[self.kind]

    def happens_to(self, route: str) -> bool:
        """Draw whether a call on *route* meets this fault."""
        if self.spent or not fnmatchcase(route, self.route):
            return False
        return self.probability >= 1 or self._random.random() < self.probability


class Faults:
    """The faults that are ordered at the moment, in the order of their ordering."""

    def __init__(self) -> None:
        self._ordered: list[Fault] = []
        self._released = asyncio.Event()

    def order(self, faults: list[Fault]) -> None:
        """Add *faults* behind those already ordered."""
        self._ordered.extend(faults)

    def clear(self) -> None:
        """Forget all orders, spent or not."""
        self._ordered.clear()

    def take(self, route: str) -> Fault | None:
        """Return the fault that a call on *route* meets, and count it."""
        for fault in self._ordered:
            if fault.happens_to(route):
                fault.taken += 1
                return fault
        return None

    async def hold(self, seconds: float) -> None:
        """Delay a response by *seconds*, or until it is released."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), seconds)

    def release(self) -> None:
        """Let all answers go that are held; those of later calls are not held any more either."""
        self._released.set()

    def listed(self) -> list[dict[str, object]]:
        """All orders, spent ones included, with how often each was taken."""
        return [fault.model_dump() for fault in self._ordered]
