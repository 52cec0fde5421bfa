"""No report loses its message to a deletion, whatever comes in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.postgres import Database
from mail import MailStore
from reporter import intake
from reporter.retention import Retention

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "ann@contoso.example"}
BEN = {"oid": "7d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b22", "preferred_username": "ben@contoso.example"}


class Gate:
    """A place where whoever comes by stops while it is shut."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        """Stop whoever comes next."""
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()

    async def pass_through(self) -> None:
        """Wait while the gate is shut."""
        self.reached.set()
        await self._open.wait()


class GatedStore(MailStore):
    """A mail store on a real disk, with gates behind `put`, before `delete` and behind it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.put_done, self.delete_begins, self.delete_done = Gate(), Gate(), Gate()

    async def put(self, tenant_id: UUID | str, raw: bytes) -> str:
        """Store a message, then stop at the gate."""
        sha256 = await super().put(tenant_id, raw)
        await self.put_done.pass_through()
        return sha256

    async def delete(self, tenant_id: UUID | str, sha256: str) -> None:
        """Stop at the gates before and after."""
        await self.delete_begins.pass_through()
        await super().delete(tenant_id, sha256)
        await self.delete_done.pass_through()


@pytest.fixture
async def gated(run_reporter: Any, db: Database) -> AsyncIterator[Any]:
    """Return a running reporter whose mail store has gates."""
    del db
    async with run_reporter(GatedStore) as reporter:
        yield reporter


async def waiting(db: Database) -> None:
    """Wait until one of this database's sessions waits for a lock."""
    async with asyncio.timeout(30):
        while not await db.pool.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock')"
        ):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def nothing_published(db: Database) -> AsyncIterator[None]:
    """Make whoever publishes an event wait: a report then stops in the middle of its transaction."""
    connection: asyncpg.Connection[asyncpg.Record] = await db.connect()
    async with connection.transaction():
        await connection.execute("LOCK TABLE outbox IN EXCLUSIVE MODE")
        yield
    await connection.close()


async def begin_to_delete(gated: Any) -> "asyncio.Task[int]":
    """Stop the worker right before it deletes an expired message, until the gate opens."""
    gated.mails.delete_begins.shut()
    deleting = asyncio.create_task(Retention(gated.db, gated.mails).delete_expired_messages())
    await asyncio.wait_for(gated.mails.delete_begins.reached.wait(), 30)
    return deleting


async def test_a_report_that_meets_the_deletion_of_its_message_waits_and_stores_it_again(
    gated: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """The worker is about to delete it when the report finds it already stored."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await gated.report_and_expire(await token("Reporter", **ANN), raw, tenant)
    deleting = await begin_to_delete(gated)
    reporting = asyncio.create_task(gated.send(headers, raw))
    await waiting(gated.db)
    assert not reporting.done()
    gated.mails.delete_begins.open()
    status, _ = await reporting
    await deleting

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]
    await gated.delete_expired_messages()
    assert [file.read_bytes() for file in gated.stored()] == [raw]


async def test_a_report_that_waits_for_a_deletion_delays_no_other_report(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports are recorded together, but each waits only for its own message."""
    monkeypatch.setattr(intake, "ANSWER_SECONDS", 60)
    headers, raw = await token("Reporter", **BEN), make_mail()
    await gated.report_and_expire(await token("Reporter", **ANN), raw, tenant)
    deleting = await begin_to_delete(gated)
    reporting = asyncio.create_task(gated.send(headers, raw))
    others = await asyncio.wait_for(asyncio.gather(*(gated.send(headers, make_mail()) for _ in range(20))), 30)
    assert [status for status, _ in others] == [202] * 20
    assert not reporting.done()
    gated.mails.delete_begins.open()
    status, _ = await reporting
    await deleting
    assert status == 202


async def test_a_message_whose_report_is_being_recorded_is_not_deleted(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report locks it until it has committed; the worker does not wait for it, and comes back."""
    monkeypatch.setattr(intake, "LOCK_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(intake, "ANSWER_SECONDS", 60)
    headers, raw = await token("Reporter", **BEN), make_mail()
    await gated.report_and_expire(await token("Reporter", **ANN), raw, tenant)
    async with nothing_published(gated.db):
        reporting = asyncio.create_task(gated.send(headers, raw))
        await waiting(gated.db)
        assert await Retention(gated.db, gated.mails).delete_expired_messages() == 1
        assert len(gated.stored()) == 1
    status, _ = await reporting
    await gated.delete_expired_messages()

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]
    assert await gated.db.pool.fetchval("SELECT count(*) FROM expired_messages") == 0


async def test_a_message_deleted_before_its_report_is_recorded_is_stored_again(
    gated: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """The whole deletion happens between the upload and the report's transaction."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await gated.report_and_expire(await token("Reporter", **ANN), raw, tenant)
    gated.mails.put_done.shut()
    reporting = asyncio.create_task(gated.send(headers, raw))
    await asyncio.wait_for(gated.mails.put_done.reached.wait(), 30)
    assert await Retention(gated.db, gated.mails).delete_expired_messages() == 1
    assert gated.stored() == []
    gated.mails.put_done.open()
    status, _ = await reporting
    await gated.delete_expired_messages()

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]


@pytest.mark.parametrize("gate", ["delete_begins", "delete_done"])
@pytest.mark.parametrize("put", ["before", "after"])
async def test_a_worker_killed_around_a_deletion_costs_no_report_its_message(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, gate: str, put: str
) -> None:
    """Its claim was committed before, so a report knows that the message may be gone."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await gated.report_and_expire(await token("Reporter", **ANN), raw, tenant)
    reporting = None
    if put == "before":
        gated.mails.put_done.shut()
        reporting = asyncio.create_task(gated.send(headers, raw))
        await asyncio.wait_for(gated.mails.put_done.reached.wait(), 30)
    getattr(gated.mails, gate).shut()
    deleting = asyncio.create_task(Retention(gated.db, gated.mails).delete_expired_messages())
    await asyncio.wait_for(getattr(gated.mails, gate).reached.wait(), 30)
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    getattr(gated.mails, gate).open()
    assert len(gated.stored()) == (gate == "delete_begins")
    gated.mails.put_done.open()
    status, _ = await (reporting or gated.send(headers, raw))
    await gated.delete_expired_messages()

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]
    assert await gated.db.pool.fetchval("SELECT count(*) FROM expired_messages") == 0


@pytest.mark.parametrize("gate", ["delete_begins", "delete_done"])
async def test_a_message_comes_due_again_after_its_worker_was_killed(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, gate: str
) -> None:
    """Whether it was killed before or after the deletion, the next run completes it."""
    await gated.report_and_expire(await token("Reporter", **ANN), make_mail(), tenant)
    getattr(gated.mails, gate).shut()
    worker = Retention(gated.db, gated.mails)
    deleting = asyncio.create_task(worker.delete_expired_messages())
    await asyncio.wait_for(getattr(gated.mails, gate).reached.wait(), 30)
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    getattr(gated.mails, gate).open()

    assert await worker.delete_expired_messages() == 0
    await gated.make_messages_due()
    assert await worker.delete_expired_messages() == 1
    assert (gated.stored(), await gated.db.pool.fetchval("SELECT deleted FROM expired_messages")) == ([], True)


async def test_a_report_whose_message_cannot_be_stored_again_is_refused_for_now(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, tmp_path: Path
) -> None:
    """Nothing of it is kept."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await gated.report_and_expire(await token("Reporter", **ANN), raw, tenant)
    gated.mails.put_done.shut()
    reporting = asyncio.create_task(gated.send(headers, raw))
    await asyncio.wait_for(gated.mails.put_done.reached.wait(), 30)
    assert await Retention(gated.db, gated.mails).delete_expired_messages() == 1
    await asyncio.to_thread(gated.store.rename, tmp_path / "elsewhere")
    await asyncio.to_thread(gated.store.write_text, "a file where the folder was")
    gated.mails.put_done.open()
    status, refused = await reporting
    assert (status, refused["type"]) == (503, "urn:backstop:problem:mail-store-unavailable")
    assert await gated.db.pool.fetchval("SELECT count(*) FROM reports") == 0

    await asyncio.to_thread(gated.store.unlink)
    await asyncio.to_thread((tmp_path / "elsewhere").rename, gated.store)
    status, accepted = await gated.send(headers, raw)
    assert (status, accepted["repeated"], len(gated.stored())) == (202, False, 1)


async def test_concurrent_reports_expiries_and_deletions_leave_each_report_its_message(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """In any interleaving: many rounds over few messages, with two workers and no gates."""
    people = [await token("Reporter", **who) for who in (ANN, BEN)]
    mails = [make_mail() for _ in range(3)]
    done = asyncio.Event()

    async def report(raw: bytes, headers: dict[str, str]) -> None:
        for _ in range(60):
            # 503 is the folder's own race: the file that was there goes while it is being synced. Nothing was kept.
            while (status := (await running.send(headers, raw))[0]) == 503:
                pass
            assert status == 202

    async def expire() -> None:
        while not done.is_set():
            rows = await running.db.pool.fetch("SELECT report_id FROM reports ORDER BY random() LIMIT 3")
            if rows:
                case_id = uuid4()
                await running.consume(running.case_opened(tenant, case_id, *(str(row["report_id"]) for row in rows)))
                await running.consume(running.case_expired(tenant, case_id))
            await asyncio.sleep(0)

    async def delete() -> None:
        worker = Retention(running.db, running.mails)
        while not done.is_set():
            await running.db.pool.execute(
                "UPDATE expired_messages SET due_at = now() WHERE (tenant_id, sha256) IN"
                " (SELECT tenant_id, sha256 FROM expired_messages WHERE NOT deleted FOR UPDATE SKIP LOCKED)"
            )
            await worker.delete_expired_messages()

    others = [asyncio.create_task(job) for job in (expire(), delete(), delete())]
    async with asyncio.timeout(120):
        await asyncio.gather(*(report(raw, headers) for raw in mails for headers in people))
        done.set()
        await asyncio.gather(*others)
    await running.delete_expired_messages()

    referred = {row["sha256"] for row in await running.db.pool.fetch("SELECT DISTINCT sha256 FROM reports")}
    assert {file.name for file in running.stored()} == referred
