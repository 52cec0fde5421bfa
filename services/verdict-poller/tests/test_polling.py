"""Few requests read many verdicts, and every watch ends."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from simulator.faults import Fault
from verdict_poller import store
from verdict_poller.poll_schedule import ABANDON_AFTER, GIVE_UP_AFTER, Schedule
from verdict_poller.worker import CROSS_CHECK_FROM, MAX_SINGLE_READS

LIST = "graph.emailThreats.list"
GET = "graph.emailThreats.get"
SCHEDULE = Schedule((60, 60, 180), 30)


async def test_many_verdicts_are_read_with_few_requests(world: Any) -> None:
    """One list answers many submissions."""
    for _ in range(120):
        await world.watch()
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    assert await world.poller.poll_due() == 120
    while await world.explainer.explain_due():
        pass

    assert len(await world.published()) == 120
    assert world.requests(LIST) <= 4
    assert world.requests(GET) == 0


async def test_a_thousand_pending_submissions_cost_at_most_a_tenth_of_a_request_each(world: Any) -> None:
    """Ten polls pass before Microsoft is done; pending submissions are listed, too."""
    world.microsoft.state.settings.verdict_delay_seconds = 7200
    for _ in range(20):
        await asyncio.gather(*(world.watch() for _ in range(50)))
    for _ in range(10):
        await world.make_due()
        await world.poller.poll_due()
    world.microsoft.state.clock.advance(7201)
    await world.make_due()
    await world.poller.poll_due()

    assert await world.db.pool.fetchval("SELECT count(*) FROM watches WHERE state = 'answered'") == 1000
    assert world.requests(LIST) <= 100
    assert world.requests(GET) == 0


async def test_submissions_on_no_list_are_read_by_id_a_few_per_poll(world: Any) -> None:
    """Lists can be incomplete. Every submission has its turn, however many there are."""
    for _ in range(2 * MAX_SINGLE_READS):
        await world.watch()
    await world.db.pool.execute("UPDATE watches SET created_at = created_at - interval '1 day'")
    world.microsoft.state.clock.advance(120)
    for poll in range(1, CROSS_CHECK_FROM + 1):
        assert world.requests(GET) == 0, poll
        await world.make_due()
        await world.poller.poll_due()
    assert world.requests(GET) == MAX_SINGLE_READS
    await world.db.pool.execute("UPDATE watches SET due_at = now(), attempts = $1", CROSS_CHECK_FROM - 1)
    await world.poller.poll_due()
    assert await world.db.pool.fetchval("SELECT count(*) FROM watches WHERE state = 'answered'") == 2 * MAX_SINGLE_READS


async def test_answers_read_before_microsoft_throttles_are_kept(world: Any) -> None:
    """The others are read when Retry-After has passed."""
    shown = await world.watch()
    world.microsoft.state.clock.advance(60)
    hidden = await world.watch()
    world.microsoft.state.clock.advance(120)
    await world.db.pool.execute(
        "UPDATE watches SET due_at = now(), attempts = $1, created_at = (SELECT min(created_at) FROM watches)",
        CROSS_CHECK_FROM - 1,
    )
    world.microsoft.state.faults.order([Fault(route=GET, kind="throttle", retry_after=900)])
    await world.poller.poll_due()
    await world.explainer.explain_due()

    assert [verdict.submission_id for verdict in await world.published()] == [shown]
    due_at = await world.db.pool.fetchval("SELECT due_at FROM watches WHERE submission_id = $1", hidden)
    assert due_at > datetime.now(UTC) + timedelta(seconds=840)


async def test_submissions_without_a_final_result_are_polled_again(world: Any) -> None:
    """Only final results are published."""
    await world.watch()
    world.microsoft.state.clock.advance(120)
    late = await world.watch()
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    state, due_at = await world.db.pool.fetchrow("SELECT state, due_at FROM watches WHERE submission_id = $1", late)  # type: ignore[misc]

    assert len(await world.published()) == 1
    assert state == "watching"
    assert due_at > datetime.now(UTC) + timedelta(seconds=29)


@pytest.mark.parametrize("fault", [{"kind": "throttle", "retry_after": 9}, {"kind": "error", "status": 503}])
async def test_a_list_that_failed_is_read_again(world: Any, fault: dict[str, Any]) -> None:
    """Nothing is concluded from the failure."""
    await world.watch()
    world.microsoft.state.clock.advance(120)
    world.microsoft.state.faults.order([Fault(route=LIST, times=1, **fault)])
    await world.make_due()
    await world.poller.poll_due()
    assert await world.explainer.explain_due() == 0
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    assert len(await world.published()) == 1


async def test_a_failed_poll_is_repeated_no_later_than_scheduled(world: Any) -> None:
    """However many polls came before; and at the same time for all, so that one list answers them."""
    for attempts in (40, 50):
        watched = await world.watch()
        await world.db.pool.execute("UPDATE watches SET attempts = $2 WHERE submission_id = $1", watched, attempts)
    await world.make_due()
    world.microsoft.state.faults.order([Fault(route=LIST, kind="error")])
    before = datetime.now(UTC)
    await world.poller.poll_due()

    (due_at,) = {row["due_at"] for row in await world.db.pool.fetch("SELECT due_at FROM watches")}
    assert before + timedelta(seconds=100) < due_at <= SCHEDULE.next_due(datetime.now(UTC), 50)


@pytest.mark.parametrize("fault", [{"kind": "throttle"}, {"kind": "error", "status": 503}])
async def test_microsoft_is_not_polled_before_retry_after(world: Any, fault: dict[str, Any]) -> None:
    """However soon the next poll was scheduled."""
    await world.watch()
    await world.make_due()
    world.microsoft.state.faults.order([Fault(route=LIST, retry_after=3000, **fault)])
    before = datetime.now(UTC)
    await world.poller.poll_due()

    due_at = await world.db.pool.fetchval("SELECT due_at FROM watches")
    assert before <= due_at - timedelta(seconds=3000) <= datetime.now(UTC)


async def test_a_worker_that_lost_its_claim_postpones_nothing(world: Any) -> None:
    """A suspended process may resume after another one has claimed the watch."""
    await world.watch()
    await world.make_due()
    async with world.db.transaction() as tx:
        (stale,) = await store.claim(tx, "watching", timedelta(0), 1)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    due = "SELECT due_at FROM watches"
    async with world.db.transaction() as tx:
        (held,) = await store.claim(tx, "watching", timedelta(minutes=5), 1)
        await store.postpone(tx, "watching", [(stale, tomorrow)])
        assert await tx.fetchval(due) < tomorrow
        await store.record_results(tx, {held.submission_id: {"status": "succeeded"}})
    async with world.db.transaction() as tx:
        (explained,) = await store.claim(tx, "answered", timedelta(minutes=5), 1)
        assert explained.attempts == stale.attempts
        await store.postpone(tx, "watching", [(stale, tomorrow)])
        assert await tx.fetchval(due) < tomorrow
        await store.postpone(tx, "answered", [(explained, tomorrow)])
        assert await tx.fetchval(due) == tomorrow


async def test_a_watch_times_out_after_26_hours(world: Any) -> None:
    """The verdict is then `noResultAvailable`."""
    await world.watch()
    await world.db.pool.execute(
        "UPDATE watches SET due_at = now(), watched_since = now() - $1::interval", GIVE_UP_AFTER
    )
    await world.poller.poll_due()
    await world.explainer.explain_due()
    (verdict,) = await world.published()
    assert (verdict.verdict, verdict.conclusion) == ("noResultAvailable", "unknown")
    assert verdict.causes


async def test_a_watch_does_not_time_out_while_microsoft_cannot_be_read(world: Any) -> None:
    """A permission that is missing for a while loses no verdict, however old the submission is."""
    await world.watch()
    await world.db.pool.execute("UPDATE watches SET watched_since = now() - $1::interval", GIVE_UP_AFTER)
    world.microsoft.state.clock.advance(120)
    world.microsoft.state.faults.order([Fault(route=LIST, kind="refuse", status=403)])
    await world.make_due()
    await world.poller.poll_due()
    assert await world.explainer.explain_due() == 0
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    (verdict,) = await world.published()
    assert verdict.verdict != "noResultAvailable"


async def test_a_submission_on_no_list_is_read_by_id_before_its_watch_times_out(world: Any) -> None:
    """It may have a verdict; one that Microsoft does not know has none."""
    hidden, unknown = await world.watch(), await world.watch()
    world.microsoft.state.clock.advance(120)
    await world.db.pool.execute(
        "UPDATE watches SET due_at = now(), watched_since = now() - $1::interval, created_at = now() - $1::interval,"
        " graph_id = CASE submission_id WHEN $2 THEN graph_id ELSE 'gone' END",
        GIVE_UP_AFTER,
        hidden,
    )
    await world.poller.poll_due()
    await world.explainer.explain_due()
    verdicts = {verdict.submission_id: verdict.verdict for verdict in await world.published()}
    assert verdicts[hidden] != "noResultAvailable"
    assert verdicts[unknown] == "noResultAvailable"


async def test_a_watch_times_out_after_a_week_without_answers(world: Any) -> None:
    """Nothing is watched for ever."""
    await world.watch()
    world.microsoft.state.faults.order([Fault(route="graph.*", kind="error", times=None)])
    await world.db.pool.execute(
        "UPDATE watches SET due_at = now(), watched_since = now() - $1::interval", ABANDON_AFTER
    )
    await world.poller.poll_due()
    await world.explainer.explain_due()
    (verdict,) = await world.published()
    assert verdict.verdict == "noResultAvailable"


async def test_two_replicas_publish_each_verdict_once(world: Any, open_world: Any, tenant_id: UUID) -> None:
    """A watch claimed by one is not seen by the other."""
    for _ in range(20):
        await world.watch()
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    async with open_world(tenant_id) as other:
        for one in (world, other):
            await one.poller.poll_due()
        for one in (world, other):
            await one.explainer.explain_due()
    verdicts = await world.published()
    assert len(verdicts) == len({verdict.submission_id for verdict in verdicts}) == 20
