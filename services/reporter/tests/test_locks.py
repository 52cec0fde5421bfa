"""Reports that meet locks in PostgreSQL are recorded all the same, or refused in time."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from reporter import intake

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "Ann@contoso.example"}
BEN = {"oid": "7d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b22", "preferred_username": "ben@contoso.example"}
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""Transactions that wait for a lock of others."""


async def test_a_report_that_loses_a_deadlock_is_still_accepted(
    running: Any, token: Any, make_mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends its transaction in favour of another one, and the report is recorded again."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    _, accepted = await running.send(headers, raw)
    attach_block = intake.store.attach_block
    attempts, has_the_block = 0, asyncio.Event()

    async def met(*block: Any) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise asyncpg.LockNotAvailableError("what reports that are filed together meet when their patience ends")
        if attempts == 2:
            has_the_block.set()
            while not await running.db.pool.fetchval(WAITING):
                await asyncio.sleep(0.02)
        await attach_block(*block)

    monkeypatch.setattr(intake.store, "attach_block", met)
    async with running.db.transaction() as other:
        try:
            await other.execute("SET LOCAL deadlock_timeout = '1min'")
        except asyncpg.InsufficientPrivilegeError:
            pytest.skip("NO DEADLOCK WAS MADE: the user of this PostgreSQL may not say who loses it")
        asking = asyncio.create_task(running.send(headers, raw, block_sender=True))
        await asyncio.wait_for(has_the_block.wait(), 10)
        await other.execute("UPDATE reports SET block_id = NULL")
        await other.execute(
            "INSERT INTO blocks (block_id, tenant_id, mailbox, sender, generation)"
            " SELECT $1, tenant_id, $2, 'mallory@fabrikam.example', 1 FROM reports",
            *(uuid4(), ANN["oid"]),
        )
    status, repeated = await asking

    assert (status, repeated["report_id"], repeated["block"]["status"]) == (202, accepted["report_id"], "requested")


async def test_a_report_is_refused_in_time_while_postgresql_is_stuck(
    running: Any, token: Any, make_mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is 503 after some seconds, and nothing goes on waiting; afterwards the report is accepted, once."""
    monkeypatch.setattr(intake, "LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(intake, "ANSWER_SECONDS", 0.5)
    raw, headers = make_mail(), await token("Reporter", **ANN)
    async with running.db.transaction() as other:
        await other.execute("LOCK TABLE reports")
        refused = await asyncio.gather(*(running.send(headers, raw) for _ in range(5)))
        async with asyncio.timeout(10):
            while await running.db.pool.fetchval(WAITING):
                await asyncio.sleep(0.02)
        monkeypatch.setattr(intake, "ANSWER_SECONDS", 60)
    status, _ = await running.send(headers, raw)
    async with asyncio.timeout(60):
        # Who has given up may be filed all the same: nothing of it shall be left for the next test.
        while any(f" {intake.Intake.__name__}." in str(task.get_coro()) for task in asyncio.all_tasks()):
            await asyncio.sleep(0.02)

    assert {status for status, _ in refused} == {503}
    assert status == 202
    assert [topic for topic, *_ in await running.outbox()] == ["message-reported"]


async def test_reports_of_the_same_message_do_not_wait_for_each_other(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """They share the lock on the message; only its deletion would have to wait."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    _, first = await running.send(await token("Reporter", **ANN), raw)
    sha256 = await running.db.pool.fetchval("SELECT sha256 FROM reports WHERE report_id = $1", UUID(first["report_id"]))
    async with running.db.transaction() as tx:
        assert await tx.fetchval("SELECT hold_message($1, $2)", tenant, sha256) is False
        async with asyncio.timeout(30):
            status, _ = await running.send(headers, raw)
    assert status == 202
