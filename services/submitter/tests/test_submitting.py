"""A due submission is made at Microsoft once, or fails with a reason."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from backstop_contracts import SubmissionCreated, SubmissionFailed

RECIPIENT = "user@contoso.example"


async def test_a_requested_submission_is_made_once_with_the_message_itself(world: Any) -> None:
    """The request is delivered twice."""
    wanted = await world.request()
    async with world.start() as worker:
        assert await worker.submit_due() == 1
        assert await worker.submit_due() == 0
    (created,) = await world.emitted()
    (submission,) = world.made()

    assert isinstance(created, SubmissionCreated)
    assert (created.submission_id, created.graph_id, created.adopted) == (wanted.submission_id, submission["id"], False)
    assert (submission["form"], submission["sha256"]) == ("content", wanted.message.sha256)
    assert (submission["recipient"], submission["category"]) == (RECIPIENT, "phishing")


async def test_two_replicas_never_claim_the_same_submission(world: Any) -> None:
    """Rows that one replica has claimed are invisible to the other."""
    for _ in range(12):
        await world.request()
    async with world.start(batch=3) as one, world.start(batch=3) as other:
        while sum(await asyncio.gather(one.submit_due(), other.submit_due())):
            pass
    assert len(world.made()) == len({entry["internet_message_id"] for entry in world.made()}) == 12
    assert len(await world.emitted()) == 12


async def test_a_refusal_fails_the_submission_with_microsofts_reason(world: Any) -> None:
    """It is published, and the call is not repeated."""
    wanted = await world.request()
    world.order_fault(kind="refuse")
    async with world.start() as worker:
        await worker.submit_due()
        await world.make_due()
        assert await worker.submit_due() == 0
    (failed,) = await world.emitted()

    assert isinstance(failed, SubmissionFailed)
    assert (failed.submission_id, failed.reason) == (wanted.submission_id, "refused")
    assert failed.detail
    assert world.made() == []


async def test_a_message_missing_from_the_mail_store_fails_the_submission(world: Any) -> None:
    """Nothing is sent."""
    await world.request(stored=False)
    async with world.start() as worker:
        await worker.submit_due()
    (failed,) = await world.emitted()
    assert failed.reason == "mail-missing"
    assert world.made() == []


def test_a_malformed_time_from_microsoft_loses_no_submission() -> None:
    """The current time is used instead."""
    from submitter.worker import _when  # noqa: PLC0415 - the one private function with a table of its own

    assert _when("2026-11-24T10:00:00Z") == datetime(2026, 11, 24, 10, tzinfo=UTC)
    assert _when("2026-11-24T10:00:00") == datetime(2026, 11, 24, 10, tzinfo=UTC)
    for odd in (None, "", "soon", 7, orjson.dumps({})):
        assert abs(_when(odd) - datetime.now(UTC)) < timedelta(minutes=1)
