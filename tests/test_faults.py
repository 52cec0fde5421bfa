"""Nothing is lost and nothing done twice, whatever breaks; and each guard that keeps this is missed when it is gone."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from faults.environment import Environment, start_environment
from faults.load import GOOD_HEADERS
from faults.mutants import GUARDS
from faults.report import Report, judge
from faults.run import PROCESSES, Run, running
from faults.schedule import plan

from .test_story import until

pytestmark = pytest.mark.slow

SEED = 4
SECONDS = 30.0
SESSION_SECONDS = 6.0
"""The shortest that Kafka allows, so that who was killed is replaced soon."""
LEASE_SECONDS = 8.0
PATIENCE = 20.0
"""Time in which nothing happens, and nobody pauses, and that means that nothing will: all is whole by then."""


@pytest.fixture(scope="module")
async def environment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Environment]:
    """Provide a Kafka and a PostgreSQL that may be killed."""
    async with start_environment(tmp_path_factory.mktemp("environment")) as environment:
        yield environment


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checker and the mutants, which are programs of their own, find this folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


async def meet(run: Run, mails: int) -> None:
    """Have users meet *mails* mails, and return when all their reports are accepted."""
    for _ in range(mails):
        run.load.report_message()
    await run.load.wait_until_accepted()


async def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
    """Give a mutant the time to go wrong: return when *condition* holds, or after *seconds* in which it need not."""
    with suppress(TimeoutError):
        await until(condition, seconds)


async def publisher_crashes_while_kafka_is_away(run: Run) -> None:
    """Kill reporter when its events have left for a Kafka that never answers."""
    await meet(run, 2)
    # The relay leads, knows its topics, and has nothing in flight.
    assert await run.progress.wait_until_idle(PATIENCE) is None
    run.environment.proxies["kafka"].hang()
    await meet(run, 10)

    async def outbox_is_empty() -> bool:
        connection = await run.environment.connect(run.name)
        try:
            return not await connection.fetchval("SELECT count(*) FROM reporter.outbox")
        finally:
            await connection.close()

    await within(5, outbox_is_empty)
    await run.stack.supervisor.kill("reporter")
    run.environment.proxies["kafka"].cut()
    run.environment.proxies["kafka"].heal()
    await run.stack.supervisor.restart("reporter")


async def events_come_twice(run: Run) -> None:
    """Publish every report's event a second time, as at-least-once delivery may."""
    await meet(run, 10)
    assert await run.progress.wait_until_idle(PATIENCE) is None
    topic = f"{run.name}.message-reported"
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=run.environment.kafka_bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    ) as records:
        for _ in run.load.accepted:
            record = await anext(records)
            await run.load.publish(topic, record.key, record.value, record.headers)


async def answers_are_lost(run: Run) -> None:
    """Let Microsoft take submissions, and its answers be lost."""
    fault = {"route": "graph.emailThreats.create", "kind": "drop_after_effect", "times": 4}
    await run.control("POST", "/faults", [fault])
    await meet(run, 10)


async def a_header_is_not_utf8(run: Run) -> None:
    """Have poisoned records lie between good ones when triage comes back to a full topic."""
    await run.stack.supervisor.stop("triage")
    await meet(run, 6)
    for _ in range(3):
        await run.load.plant_poison(b"{", [*GOOD_HEADERS, ("x", b"\xff\xfe")], topic="message-reported")
    await meet(run, 6)

    async def published() -> bool:
        return "reporter" not in await run.progress.unpublished()

    await until(published)
    await run.stack.supervisor.restart("triage")


async def consumer_crashes_in_a_batch(run: Run) -> None:
    """Kill triage while its batch waits for a table that somebody else holds."""
    await meet(run, 2)
    assert await run.progress.wait_until_idle(PATIENCE) is None
    somebody = await run.environment.connect(run.name)
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'triage.cases'::regclass AND NOT granted)"

    before = run.progress.read["triage"]

    async def committed() -> bool:
        await run.progress.unread()
        return run.progress.read["triage"] > before

    async with somebody.transaction():
        # The admin may still read it.
        await somebody.execute("LOCK TABLE triage.cases IN EXCLUSIVE MODE")
        await meet(run, 10)
        await until(lambda: somebody.fetchval(waits))
        # A mutant commits in intervals of five seconds.
        await within(10, committed)
        await run.stack.supervisor.kill("triage")
    await somebody.close()
    await run.stack.supervisor.restart("triage")


MOMENTS = {
    "delete-after-ack": (publisher_crashes_while_kafka_is_away, "report .* is in 0 cases"),
    "natural-key": (events_come_twice, "report .* is in 2 cases"),
    "look-before-repeat": (answers_are_lost, "submission .*: 0 claimed, 1 in the ledger"),
    "safe-header-parser": (a_header_is_not_utf8, "report .* is in 0 cases"),
    "ack-policy": (consumer_crashes_in_a_batch, "report .* is in 0 cases"),
}
"""For each guard, the moment in which it is needed, and what the checker says where it is missing."""


async def lived_through(run: Run, *moments: Callable[[Run], Awaitable[None]]) -> Report:
    """Have a run live through *moments*, with an admin who decides; return what the checker says."""
    deciding = asyncio.create_task(run.load.decide())
    try:
        for moment in moments:
            await moment(run)
        return await judge(run, PATIENCE)
    finally:
        deciding.cancel()


async def test_a_short_fault_run_keeps_every_promise(environment: Environment, tmp_path: Path) -> None:
    """Two replicas of everything are killed, frozen, cut off and lied to, and nothing is lost or done twice."""
    schedule = plan(SEED, SECONDS, PROCESSES, pause=1.5, session_seconds=SESSION_SECONDS)

    async def disturbed(run: Run) -> None:
        judging = asyncio.create_task(run.load.decide_quarantined())
        await asyncio.gather(
            run.load.work(SECONDS), run.load.plant(3), run.load.quarantine_messages(1), run.disturber.disturb(schedule)
        )
        assert await run.progress.wait_until_idle(PATIENCE) is None
        run.load.stop_deciding = True
        await judging

    async with running(
        environment, tmp_path, "short", seed=SEED, rate=3, session_seconds=SESSION_SECONDS, lease_seconds=LEASE_SECONDS
    ) as run:
        report = await lived_through(run, disturbed)

    assert report.wrong == []
    assert report.counts["reports"] > SECONDS
    assert report.counts["parked"] >= report.counts["planted"] > 0
    assert report.counts["killed"] > 0


async def test_the_moments_in_which_the_guards_are_needed_pass(environment: Environment, tmp_path: Path) -> None:
    """With all guards in place, none of the moments that the mutants fail in does any harm."""
    async with running(
        environment,
        tmp_path,
        "guarded",
        seed=SEED,
        rate=1,
        replicas=1,
        session_seconds=SESSION_SECONDS,
        lease_seconds=LEASE_SECONDS,
    ) as run:
        report = await lived_through(run, *(moment for moment, _ in MOMENTS.values()))

    assert report.wrong == []


@pytest.mark.parametrize("guard", GUARDS)
async def test_a_run_without_one_guard_fails(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """Without a guard, a promise is broken in the moment that the guard is for, and the checker says so."""
    monkeypatch.setenv("MUTANT", guard)
    moment, expected = MOMENTS[guard]
    mutant = {GUARDS[guard][0]: "faults.mutants"}
    name = f"without_{guard.replace('-', '_')}"

    async with running(
        environment,
        tmp_path,
        name,
        seed=SEED,
        rate=1,
        replicas=1,
        modules=mutant,
        session_seconds=SESSION_SECONDS,
        lease_seconds=LEASE_SECONDS,
    ) as run:
        report = await lived_through(run, moment)

    assert any(re.fullmatch(expected, line) for line in report.wrong), report.wrong
