"""A submission is given up after a day of failed calls."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from backstop_contracts import SubmissionCreated, SubmissionDelayed
from simulator import Simulator


async def test_without_permission_a_submission_waits_and_is_given_up_after_a_day(
    world: Any, microsoft: Simulator, tenant_id: UUID
) -> None:
    """Until then it goes on as soon as an administrator consents."""
    microsoft.state.tenants[str(tenant_id)].settings.apps[0].graph_roles = []
    await world.request()
    async with world.start() as worker:
        await worker.submit_due()
        await world.pass_time(timedelta(hours=23))
        await worker.submit_due()
        assert [event.reason for event in await world.emitted()] == ["unauthorised"]
        await world.pass_time(timedelta(hours=2))
        await worker.submit_due()
    (failed,) = await world.emitted()
    assert failed.reason == "gave-up"


async def test_a_submission_that_waited_a_day_for_quota_is_not_given_up_at_its_first_failure(world: Any) -> None:
    """The day counts from the first call that failed."""
    await world.request(requested_at=datetime.now(UTC) - timedelta(hours=25))
    world.order_fault(kind="error", status=503)
    async with world.start() as worker:
        await worker.submit_due()
        await world.pass_time()
        while await worker.submit_due():
            pass
    assert [type(event) for event in await world.emitted()] == [SubmissionDelayed, SubmissionCreated]


async def test_throttling_ends_a_series_of_failures(world: Any) -> None:
    """Microsoft answered, so the day begins anew with the next failure."""
    await world.request()
    async with world.start() as worker:
        for fault in ({"status": 403}, {"kind": "throttle"}, {"status": 403}):
            world.order_fault(**{"kind": "error", **fault})
            await worker.submit_due()
            await world.pass_time(timedelta(hours=25))
        await worker.submit_due()
    assert isinstance((await world.emitted())[-1], SubmissionCreated)
