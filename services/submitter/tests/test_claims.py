"""Calls end before their claim does, and a worker that lost its claim changes nothing."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from backstop_contracts import SubmissionCreated
from chassis.postgres import Database
from mail import MailStore
from simulator import Simulator


async def test_a_call_ends_before_its_claim_does(world: Any) -> None:
    """When the submission comes due again, no earlier call about it is still running."""
    await world.request()
    world.order_fault(kind="timeout", seconds=600)
    async with asyncio.timeout(60), world.start(lease=timedelta(seconds=2)) as worker:
        while not world.made():
            await world.make_due()
            await worker.submit_due()
    await world.make_due()
    async with world.start() as successor:
        await successor.submit_due()
    (created,) = [event for event in await world.emitted() if isinstance(event, SubmissionCreated)]

    assert created.adopted
    assert len(world.made()) == 1


async def test_an_unresponsive_mail_store_holds_a_submission_no_longer_than_its_claim(
    world: Any, microsoft: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, so nothing is looked up."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1") as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cloud.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        await world.request()
        async with world.start(lease=timedelta(seconds=1), mails=MailStore("s3://bucket/mails")) as worker:
            for _ in range(2):
                await worker.submit_due()
                await world.make_due()
    (delayed,) = await world.emitted()

    assert delayed.reason == "unavailable"
    assert microsoft.state.ledger.contents()["requests"] == {}


async def test_a_worker_that_lost_its_claim_only_records_what_it_has_made(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """A process that was suspended resumes while another one holds the submission: it must not make it due."""
    await world.request()
    world.order_fault(kind="throttle")
    async with world.start() as zombie, world.start() as successor:
        (stale,), _ = await zombie._claim_within_quota()
        await world.make_due()
        _, (held,) = await successor._claim_within_quota()
        before = await db.pool.fetchrow("SELECT * FROM submissions")
        await zombie._submit(stale, asyncio.get_running_loop().time() + 60)
        assert await db.pool.fetchrow("SELECT * FROM submissions") == before
        # Its answer is the truth, whoever holds the submission now.
        await zombie._submit(stale, asyncio.get_running_loop().time() + 60)
        await successor._look_up(tenant_id, [held], asyncio.get_running_loop().time() + 60)
    (created,) = await world.emitted()

    assert isinstance(created, SubmissionCreated)
    assert len(world.made()) == 1
