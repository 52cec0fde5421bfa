"""Due work goes on whatever one round of it meets."""

import asyncio
from datetime import timedelta

from chassis.worker import WorkLoop, backoff


def test_backoff_doubles_up_to_its_limit_with_half_of_it_jitter() -> None:
    """A pause is at least half of what the attempts call for, and never more than the limit."""
    for attempts, full in ((1, 2), (2, 4), (5, 32), (9, 300), (500, 300)):
        for _ in range(20):
            assert timedelta(seconds=full / 2) <= backoff(attempts) <= timedelta(seconds=full)


async def test_a_failed_round_is_followed_by_another() -> None:
    """The claimed rows come due again; the worker does not end."""
    rounds, done = 0, asyncio.Event()

    async def step() -> int:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise ZeroDivisionError
        done.set()
        return 0

    work = WorkLoop("test", step, idle=60)
    task = asyncio.create_task(work.run())
    await asyncio.wait_for(done.wait(), 10)
    await work.stop()
    await asyncio.wait_for(task, 10)


async def test_an_idle_worker_is_woken_by_a_commit() -> None:
    """What becomes due in this process is seen at once, not after the idle pause."""
    rounds: asyncio.Queue[None] = asyncio.Queue()

    async def step() -> int:
        rounds.put_nowait(None)
        return 0

    work = WorkLoop("test", step, idle=3600)
    task = asyncio.create_task(work.run())
    await asyncio.wait_for(rounds.get(), 10)
    work.wake()
    await asyncio.wait_for(rounds.get(), 10)
    await work.stop()
    await asyncio.wait_for(task, 10)


async def test_a_round_that_commits_does_not_wake_itself() -> None:
    """An idle worker rests: the commit of its empty claim is no news, also not from a task that the round began."""
    rounds = 0
    rested = asyncio.Event()

    async def step() -> int:
        nonlocal rounds
        rounds += 1
        work.wake()
        await asyncio.gather(asyncio.to_thread(work.wake), asyncio.create_task(commit()))
        return 0

    async def commit() -> None:
        work.wake()
        rested.set()

    work = WorkLoop("test", step, idle=3600)
    task = asyncio.create_task(work.run())
    await asyncio.wait_for(rested.wait(), 10)
    for _ in range(50):
        await asyncio.sleep(0)
    assert rounds == 1
    await work.stop()
    await asyncio.wait_for(task, 10)


async def test_a_round_that_handled_rows_says_so() -> None:
    """What one worker has done may be another's to go on with."""
    told: asyncio.Queue[None] = asyncio.Queue()
    handled = iter([3])

    async def step() -> int:
        return next(handled, 0)

    work = WorkLoop("test", step, idle=3600, on_handled=lambda: told.put_nowait(None))
    task = asyncio.create_task(work.run())
    await asyncio.wait_for(told.get(), 10)
    await work.stop()
    await asyncio.wait_for(task, 10)
    assert told.empty()
