"""A call whose answer was lost is looked up before it is repeated."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from backstop_contracts import SubmissionCreated
from chassis.postgres import Database
from simulator import Simulator
from submitter.rules import Quota

CREATE = "graph.emailThreats.create"


@pytest.mark.parametrize(
    ("fault", "effects"),
    [
        ({"kind": "drop_after_effect"}, 1),
        ({"kind": "drop_before_effect"}, 0),
        ({"kind": "error", "status": 503}, 0),
    ],
    ids=["lost after the effect", "lost before the effect", "server error"],
)
async def test_a_lost_answer_is_looked_up_before_the_call_is_repeated(
    world: Any, fault: dict[str, Any], effects: int
) -> None:
    """A submission that was made is adopted, and one that was not is made: one submission either way."""
    wanted = await world.request()
    world.order_fault(**fault)
    async with world.start() as worker:
        await worker.submit_due()
        assert len(world.made()) == effects
        await world.make_due()
        await worker.submit_due()
        await worker.submit_due()
    (created,) = [event for event in await world.emitted() if isinstance(event, SubmissionCreated)]
    (submission,) = world.made()

    assert (created.submission_id, created.graph_id) == (wanted.submission_id, submission["id"])
    assert created.adopted is bool(effects)


async def test_a_submission_made_before_a_crash_is_adopted(world: Any, tenant_id: UUID) -> None:
    """The claim expires, and the next worker finds what was made."""
    await world.request()
    async with world.start() as worker:
        send, _ = await worker._claim_within_quota()
        await worker._graph.post(tenant_id, "/beta/security/threatSubmission/emailThreats", await worker._body(send[0]))
    await world.make_due()
    async with world.start() as successor:
        await successor.submit_due()
        await successor.submit_due()
    (created,) = await world.emitted()

    assert created.adopted
    assert len(world.made()) == 1


async def test_a_call_is_repeated_only_after_the_submission_has_been_missing_long_enough(
    world: Any, db: Database, microsoft: Simulator
) -> None:
    """Microsoft's list may lag behind, so the call counts as not made only after `missing_after`."""
    await world.request()
    world.order_fault(kind="drop_before_effect")
    async with world.start(missing_after=timedelta(minutes=5)) as worker:
        for _ in range(3):
            await worker.submit_due()
            await world.make_due()
        looked = microsoft.state.ledger.contents()["requests"]
        assert (looked[CREATE], looked["graph.emailThreats.list"]) == (1, 2)
        assert world.made() == []
        await db.pool.execute("UPDATE submissions SET sent_at = sent_at - interval '5 minutes'")
        await worker.submit_due()
        await worker.submit_due()
    created = [event for event in await world.emitted() if isinstance(event, SubmissionCreated)]

    assert [event.adopted for event in created] == [False]
    assert len(world.made()) == 1


@pytest.mark.parametrize("wait", ["throttled", "unauthorised", "quota"])
async def test_after_a_lost_answer_every_later_call_is_preceded_by_a_lookup(
    world: Any, microsoft: Simulator, tenant_id: UUID, wait: str
) -> None:
    """A submission that is listed late is adopted, whatever has delayed the next call."""
    kept = microsoft.state.tenants[str(tenant_id)].submissions
    wanted = await world.request()
    world.order_fault(kind="drop_after_effect")
    async with world.start() as worker:
        await worker.submit_due()
        listed, kept.all = kept.all, []
        await world.pass_time()
        await worker.submit_due()
        if wait == "unauthorised":
            world.order_fault(kind="error", status=403)
        async with world.start(Quota(submissions=1)) as thrifty:
            await (thrifty if wait == "quota" else worker).submit_due()
        kept.all = listed
        await world.pass_time(timedelta(minutes=16))
        microsoft.state.clock.advance(16 * 60)
        await worker.submit_due()
    *delays, created = await world.emitted()

    assert [event.reason for event in delays] == ["unavailable", wait]
    assert (created.submission_id, created.adopted) == (wanted.submission_id, True)
    assert len(world.made()) == 1


async def test_no_call_is_repeated_while_the_lookup_fails(world: Any) -> None:
    """The submission waits until Microsoft's list can be read."""
    await world.request()
    world.order_fault(kind="drop_after_effect")
    world.order_fault(route="graph.emailThreats.list", kind="error", status=500, times=2)
    async with world.start() as worker:
        for _ in range(3):
            await world.make_due()
            await worker.submit_due()
        assert len(world.made()) == 1
        await world.make_due()
        await worker.submit_due()
    (created,) = [event for event in await world.emitted() if isinstance(event, SubmissionCreated)]
    assert created.adopted
