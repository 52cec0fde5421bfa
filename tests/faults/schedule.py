"""The schedule of disturbances, drawn from a seed so that a run can be repeated."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LOCKED_TABLES = ("triage.cases", "submitter.submissions", "verdict_poller.watches", "blocklist.entries")
MICROSOFT = (
    ("throttle", "graph.*"),
    ("throttle", "exchange.*"),
    ("error", "graph.*"),
    ("error", "exchange.*"),
    ("timeout", "graph.emailThreats.create"),
    ("timeout", "exchange.*"),
    ("drop_after_effect", "graph.emailThreats.create"),
    ("drop_after_effect", "exchange.*"),
    ("drop_before_effect", "graph.*"),
    ("error", "entra.token"),
)
"""The simulator's faults, and the routes they apply to."""


@dataclass(frozen=True, order=True)
class Disturbance:
    """
    One disturbance, which starts *at* seconds after the load began and lasts for *seconds*.

    kill: SIGKILL, restarted afterwards; stop: the same with SIGTERM; freeze: SIGSTOP; cut, hang, slow: performed by the
    proxy in front of *target*; lock: another transaction locks a table; anything else is a fault of the simulator on
    the routes *target*.
    """

    at: float
    kind: str
    target: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} {self.target} for {self.seconds:.0f} s"


def plan(
    seed: int, seconds: float, processes: Sequence[str], *, pause: float, session_seconds: float
) -> list[Disturbance]:
    """
    Draw the disturbances of a run of *seconds*, about one every *pause* seconds.

    Every kind occurs before any is repeated. A target is not disturbed again until it had a moment to recover, and all
    disturbances are over at the end of the run. Processes are frozen for longer than *session_seconds*, a consumer's
    session timeout, so that their partitions are reassigned while they believe they own them.
    """
    dice = random.Random(seed)
    drawn = _draw(dice, processes)
    free_at: dict[str, float] = {}
    planned: list[Disturbance] = []
    now = 2.0
    while now < seconds:
        kind, target = next(drawn)
        lasts = min(_lasts(dice, kind, target, session_seconds), max(seconds - now, 1.0))
        if free_at.get(target, 0.0) <= now:
            planned.append(Disturbance(round(now, 2), kind, target, round(lasts, 2)))
            free_at[target] = now + lasts + 5
            now += dice.uniform(0.3, 1.7) * pause
    return planned


def _draw(dice: random.Random, processes: Sequence[str]) -> Iterator[tuple[str, str]]:
    while True:
        bag = [
            *(("kill", name) for name in processes),
            *(("freeze", name) for name in dice.sample(processes, k=3)),
            ("stop", dice.choice(processes)),
            *(("kill", name) for name in ("kafka", "postgres")),
            *((kind, name) for name in ("kafka", "postgres", "microsoft") for kind in ("cut", "hang", "slow")),
            *(("lock", table) for table in dice.sample(LOCKED_TABLES, k=2)),
            *MICROSOFT,
        ]
        dice.shuffle(bag)
        yield from bag


def _lasts(dice: random.Random, kind: str, target: str, session_seconds: float) -> float:
    if kind == "freeze":
        return session_seconds * dice.uniform(1.1, 1.5)
    if target in ("kafka", "postgres"):
        return dice.uniform(2, 20)
    return dice.uniform(0.5, 12)
