"""Expired reports go with their mails, and no report that stands loses its mail, whatever comes in between."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from backstop_contracts import (
    CaseExpired,
    CaseStatus,
    CaseUpdated,
    Conclusion,
    Event,
    Folder,
    Message,
    MessageReported,
    ReportedAs,
    VerdictReady,
)
from chassis.postgres import Database
from chassis.testing import deliver
from conftest import JUDGED
from mail import MailStore
from reporter import handlers, intake, retention
from reporter.retention import BATCH, Retention

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
        """Keep a mail, then stop at the gate."""
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
    """Give a running reporter whose mail store has gates."""
    del db
    async with run_reporter(GatedStore) as reporter:
        yield reporter


async def send(running: Any, headers: dict[str, str], raw: bytes) -> tuple[int, dict[str, Any]]:
    """Report a mail."""
    body = {"mail": base64.b64encode(raw).decode(), "reported_as": "phishing"}
    async with running.client.post("/v1/reports", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def hear(db: Database, *events: Event) -> None:
    """Hand events to reporter as Kafka would: each call is one batch of one topic."""
    await deliver(handlers.router, db, *events)


def opened(tenant: UUID, case_id: UUID, *report_ids: str, status: CaseStatus = CaseStatus.OPEN) -> CaseUpdated:
    """Triage has put reports into a case."""
    return CaseUpdated(
        tenant_id=tenant,
        case_id=case_id,
        change="opened",
        status=status,
        report_ids=tuple(map(UUID, report_ids)),
        report_count=len(report_ids),
        changed_at=datetime.now(UTC),
    )


def expired(tenant: UUID, case_id: UUID) -> CaseExpired:
    """Triage has forgotten a case."""
    now = datetime.now(UTC)
    return CaseExpired(tenant_id=tenant, case_id=case_id, report_count=1, last_active_at=now, expired_at=now)


async def report_and_expire(running: Any, headers: dict[str, str], raw: bytes, tenant: UUID) -> str:
    """Report a mail and let its case expire; the mail is then due to be deleted. Returns the report's id."""
    _, accepted = await send(running, headers, raw)
    case_id = uuid4()
    await hear(running.db, opened(tenant, case_id, accepted["report_id"]))
    await hear(running.db, expired(tenant, case_id))
    return str(accepted["report_id"])


async def due_again(db: Database) -> None:
    """Let time pass until everything that waits is due."""
    await db.pool.execute("UPDATE expired_mails SET due_at = now()")


async def clean(running: Any) -> None:
    """Delete all mails that may be deleted, however often it takes."""
    worker = Retention(running.db, running.mails)
    for _ in range(2):
        await due_again(running.db)
        while await worker.delete_expired_mails():
            pass


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
    """Make whoever publishes an event wait: a report then stands in the middle of its transaction."""
    connection: asyncpg.Connection[asyncpg.Record] = await db.connect()
    async with connection.transaction():
        await connection.execute("LOCK TABLE outbox IN EXCLUSIVE MODE")
        yield
    await connection.close()


async def test_an_expired_report_is_unknown_and_its_mail_is_deleted(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Nothing of the case is left, here or in the mail store; what stands is untouched."""
    headers = await token("Reporter", **ANN)
    report_id = await report_and_expire(running, headers, make_mail(), tenant)
    _, other = await send(running, headers, make_mail())
    await hear(running.db, opened(tenant, uuid4(), other["report_id"]))
    assert len(running.stored()) == 2
    await clean(running)

    async with running.client.get(f"/v1/reports/{report_id}", headers=headers) as answer:
        assert (answer.status, (await answer.json())["type"]) == (404, "urn:backstop:problem:unknown-report")
    async with running.client.get(f"/v1/reports/{other['report_id']}", headers=headers) as answer:
        assert answer.status == 200
    assert len(running.stored()) == 1
    counts = "SELECT (SELECT count(*) FROM reports), (SELECT count(*) FROM cases), (SELECT count(*) FROM expired_mails)"
    assert tuple(await running.db.pool.fetchrow(counts)) == (1, 1, 0)


async def test_a_mail_of_several_cases_is_kept_until_the_last_of_them_expires(
    running: Any, token: Any, make_mail: Any, tenant: UUID, other_tenant: UUID
) -> None:
    """It is stored once; each tenant has its own."""
    raw, cases = make_mail(), [uuid4(), uuid4()]
    for who, case_id in zip((ANN, BEN), cases, strict=True):
        _, accepted = await send(running, await token("Reporter", **who), raw)
        await hear(running.db, opened(tenant, case_id, accepted["report_id"]))
    await send(running, await token("Reporter", tenant=str(other_tenant), **ANN), raw)
    assert len(running.stored()) == 2

    await hear(running.db, expired(tenant, cases[0]))
    await clean(running)
    assert len(running.stored()) == 2
    await hear(running.db, expired(tenant, cases[1]))
    await clean(running)
    (left,) = running.stored()
    assert left.relative_to(running.store).parts[0] == str(other_tenant)


async def test_a_case_that_expires_twice_or_before_its_other_events_stays_forgotten(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Events come again, and topics are not ordered against each other."""
    headers = await token("Reporter", **ANN)
    _, accepted = await send(running, headers, make_mail())
    case_id, now = uuid4(), datetime.now(UTC)
    update = opened(tenant, case_id, accepted["report_id"])
    verdict = VerdictReady(
        **JUDGED,
        tenant_id=tenant,
        submission_id=uuid4(),
        case_id=case_id,
        graph_id="1",
        conclusion=Conclusion.THREAT,
        verdict="phishing",
        settings_read=True,
        read_at=now,
    )
    await hear(running.db, update)
    for _ in range(2):
        await hear(running.db, expired(tenant, case_id), expired(tenant, case_id))
        await clean(running)
    await hear(running.db, update)
    assert await running.kept() == {"reports": 0, "blocks": 0, "outbox": 1, "mails": 0}
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 0

    await hear(running.db, verdict)
    await Retention(running.db, running.mails).sweep()
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 1
    await running.db.pool.execute("UPDATE cases SET read_at = read_at - interval '61 days'")
    await Retention(running.db, running.mails).sweep()
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 0


async def test_a_verdict_that_runs_ahead_of_its_case_is_kept_for_it(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Only what never meets a report is swept up."""
    headers = await token("Reporter", **ANN)
    _, accepted = await send(running, headers, make_mail())
    case_id = uuid4()
    await hear(running.db, opened(tenant, case_id, accepted["report_id"]))
    await running.db.pool.execute("UPDATE cases SET changed_at = changed_at - interval '4000 days'")
    await Retention(running.db, running.mails).sweep()
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 1


async def test_an_expired_mail_that_is_reported_again_is_a_new_report_with_its_mail(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """By the same person, saying the same: it is published again, and kept for as long as it takes."""
    headers, raw = await token("Reporter", **ANN), make_mail()
    report_id = await report_and_expire(running, headers, raw, tenant)
    await clean(running)
    assert running.stored() == []
    status, again = await send(running, headers, raw)
    await clean(running)

    assert (status, again["report_id"], again["repeated"]) == (202, report_id, False)
    assert await running.db.pool.fetchval("SELECT count(*) FROM outbox WHERE topic = 'message-reported'") == 2
    (stored,) = running.stored()
    assert stored.read_bytes() == raw


async def begin_to_delete(gated: Any) -> "asyncio.Task[int]":
    """Have the worker stand right before the deletion of an expired mail, until the gate opens."""
    gated.mails.delete_begins.shut()
    deleting = asyncio.create_task(Retention(gated.db, gated.mails).delete_expired_mails())
    await asyncio.wait_for(gated.mails.delete_begins.reached.wait(), 30)
    return deleting


async def test_a_report_that_meets_the_deletion_of_its_mail_waits_and_puts_it_back(
    gated: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """The worker has looked and is about to delete; the report has found the mail "already there"."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await report_and_expire(gated, await token("Reporter", **ANN), raw, tenant)
    deleting = await begin_to_delete(gated)
    reporting = asyncio.create_task(send(gated, headers, raw))
    await waiting(gated.db)
    assert not reporting.done()
    gated.mails.delete_begins.open()
    status, _ = await reporting
    await deleting

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]
    await clean(gated)
    assert [file.read_bytes() for file in gated.stored()] == [raw]


async def test_a_report_that_waits_for_the_deletion_of_its_mail_holds_up_no_other(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports are filed together, but each waits for its own mail alone."""
    monkeypatch.setattr(intake, "ANSWER_SECONDS", 60)
    headers, raw = await token("Reporter", **BEN), make_mail()
    await report_and_expire(gated, await token("Reporter", **ANN), raw, tenant)
    deleting = await begin_to_delete(gated)
    reporting = asyncio.create_task(send(gated, headers, raw))
    others = await asyncio.wait_for(asyncio.gather(*(send(gated, headers, make_mail()) for _ in range(20))), 30)
    assert [status for status, _ in others] == [202] * 20
    assert not reporting.done()
    gated.mails.delete_begins.open()
    status, _ = await reporting
    await deleting
    assert status == 202


async def test_a_report_that_is_sent_many_times_at_once_is_one_report(running: Any, token: Any, make_mail: Any) -> None:
    """Whether they are filed together or after each other: one is new, and one event says so."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    answers = await asyncio.gather(*(send(running, headers, raw) for _ in range(20)))
    assert sorted(accepted["repeated"] for _, accepted in answers) == [False] + [True] * 19
    assert len({accepted["report_id"] for _, accepted in answers}) == 1
    assert await running.db.pool.fetchval("SELECT count(*) FROM outbox WHERE topic = 'message-reported'") == 1


async def test_a_mail_whose_report_is_being_recorded_is_not_deleted(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report holds its mail until it has committed; the worker does not wait for it, and comes back."""
    monkeypatch.setattr(intake, "LOCK_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(intake, "ANSWER_SECONDS", 60)
    headers, raw = await token("Reporter", **BEN), make_mail()
    await report_and_expire(gated, await token("Reporter", **ANN), raw, tenant)
    async with nothing_published(gated.db):
        reporting = asyncio.create_task(send(gated, headers, raw))
        await waiting(gated.db)
        assert await Retention(gated.db, gated.mails).delete_expired_mails() == 1
        assert len(gated.stored()) == 1
    status, _ = await reporting
    await clean(gated)

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]
    assert await gated.db.pool.fetchval("SELECT count(*) FROM expired_mails") == 0


async def test_a_mail_that_is_deleted_between_being_put_and_being_reported_is_put_back(
    gated: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """From the first look to the last line, all of the deletion fits in between."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await report_and_expire(gated, await token("Reporter", **ANN), raw, tenant)
    gated.mails.put_done.shut()
    reporting = asyncio.create_task(send(gated, headers, raw))
    await asyncio.wait_for(gated.mails.put_done.reached.wait(), 30)
    assert await Retention(gated.db, gated.mails).delete_expired_mails() == 1
    assert gated.stored() == []
    gated.mails.put_done.open()
    status, _ = await reporting
    await clean(gated)

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]


@pytest.mark.parametrize("gate", ["delete_begins", "delete_done"])
@pytest.mark.parametrize("put", ["before", "after"])
async def test_a_worker_that_is_killed_around_its_deletion_costs_no_report_its_mail(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, gate: str, put: str
) -> None:
    """The claim is committed before, so a report knows that the mail may be gone; the next worker finds the report."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await report_and_expire(gated, await token("Reporter", **ANN), raw, tenant)
    reporting = None
    if put == "before":
        gated.mails.put_done.shut()
        reporting = asyncio.create_task(send(gated, headers, raw))
        await asyncio.wait_for(gated.mails.put_done.reached.wait(), 30)
    getattr(gated.mails, gate).shut()
    deleting = asyncio.create_task(Retention(gated.db, gated.mails).delete_expired_mails())
    await asyncio.wait_for(getattr(gated.mails, gate).reached.wait(), 30)
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    getattr(gated.mails, gate).open()
    assert len(gated.stored()) == (gate == "delete_begins")
    gated.mails.put_done.open()
    status, _ = await (reporting or send(gated, headers, raw))
    await clean(gated)

    assert status == 202
    assert [file.read_bytes() for file in gated.stored()] == [raw]
    assert await gated.db.pool.fetchval("SELECT count(*) FROM expired_mails") == 0


@pytest.mark.parametrize("gate", ["delete_begins", "delete_done"])
async def test_a_worker_that_is_killed_leaves_a_mail_that_comes_due_again(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, gate: str
) -> None:
    """Before or after the mail is gone: the next run ends it."""
    await report_and_expire(gated, await token("Reporter", **ANN), make_mail(), tenant)
    getattr(gated.mails, gate).shut()
    worker = Retention(gated.db, gated.mails)
    deleting = asyncio.create_task(worker.delete_expired_mails())
    await asyncio.wait_for(getattr(gated.mails, gate).reached.wait(), 30)
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    getattr(gated.mails, gate).open()

    assert await worker.delete_expired_mails() == 0
    await due_again(gated.db)
    assert await worker.delete_expired_mails() == 1
    assert (gated.stored(), await gated.db.pool.fetchval("SELECT deleted FROM expired_mails")) == ([], True)


async def test_a_report_whose_mail_cannot_be_put_back_is_refused_for_the_moment(
    gated: Any, token: Any, make_mail: Any, tenant: UUID, tmp_path: Path
) -> None:
    """And nothing of it is kept."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    await report_and_expire(gated, await token("Reporter", **ANN), raw, tenant)
    gated.mails.put_done.shut()
    reporting = asyncio.create_task(send(gated, headers, raw))
    await asyncio.wait_for(gated.mails.put_done.reached.wait(), 30)
    assert await Retention(gated.db, gated.mails).delete_expired_mails() == 1
    await asyncio.to_thread(gated.store.rename, tmp_path / "elsewhere")
    await asyncio.to_thread(gated.store.write_text, "a file where the folder was")
    gated.mails.put_done.open()
    status, refused = await reporting
    assert (status, refused["type"]) == (503, "urn:backstop:problem:mail-store-unavailable")
    assert await gated.db.pool.fetchval("SELECT count(*) FROM reports") == 0

    await asyncio.to_thread(gated.store.unlink)
    await asyncio.to_thread((tmp_path / "elsewhere").rename, gated.store)
    status, accepted = await send(gated, headers, raw)
    assert (status, accepted["repeated"], len(gated.stored())) == (202, False, 1)


async def test_reports_of_one_mail_do_not_wait_for_each_other(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """They hold the mail together; only its deletion would have to wait."""
    headers, raw = await token("Reporter", **BEN), make_mail()
    _, first = await send(running, await token("Reporter", **ANN), raw)
    sha256 = await running.db.pool.fetchval("SELECT sha256 FROM reports WHERE report_id = $1", UUID(first["report_id"]))
    async with running.db.transaction() as tx:
        assert await tx.fetchval("SELECT hold_mail($1, $2)", tenant, sha256) is False
        async with asyncio.timeout(30):
            status, _ = await send(running, headers, raw)
    assert status == 202


async def test_reporting_expiring_and_deleting_at_once_leaves_each_report_its_mail(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """However the three fall together: many rounds over few mails, two workers, and no gate to order them."""
    people = [await token("Reporter", **who) for who in (ANN, BEN)]
    mails = [make_mail() for _ in range(3)]
    done = asyncio.Event()

    async def report(raw: bytes, headers: dict[str, str]) -> None:
        for _ in range(60):
            # 503 is the folder's own race: the file that was there goes while it is being synced. Nothing was kept.
            while (status := (await send(running, headers, raw))[0]) == 503:
                pass
            assert status == 202

    async def expire() -> None:
        while not done.is_set():
            rows = await running.db.pool.fetch("SELECT report_id FROM reports ORDER BY random() LIMIT 3")
            if rows:
                case_id = uuid4()
                await hear(running.db, opened(tenant, case_id, *(str(row["report_id"]) for row in rows)))
                await hear(running.db, expired(tenant, case_id))
            await asyncio.sleep(0)

    async def delete() -> None:
        worker = Retention(running.db, running.mails)
        while not done.is_set():
            await running.db.pool.execute(
                "UPDATE expired_mails SET due_at = now() WHERE (tenant_id, sha256) IN"
                " (SELECT tenant_id, sha256 FROM expired_mails WHERE NOT deleted FOR UPDATE SKIP LOCKED)"
            )
            await worker.delete_expired_mails()

    others = [asyncio.create_task(job) for job in (expire(), delete(), delete())]
    async with asyncio.timeout(120):
        await asyncio.gather(*(report(raw, headers) for raw in mails for headers in people))
        done.set()
        await asyncio.gather(*others)
    await clean(running)

    referred = {row["sha256"] for row in await running.db.pool.fetch("SELECT DISTINCT sha256 FROM reports")}
    assert {file.name for file in running.stored()} == referred


async def test_a_repeat_with_other_bytes_leaves_no_mail_behind(running: Any, token: Any, make_mail: Any) -> None:
    """The same delivery is the same report; the mail that counts is the one that came with it first."""
    headers = await token("Reporter", **ANN)
    delivery = "4c8e3f3a-8d0b-4b6a-1f5d-08dc6b1f2a31"
    same = {"Message_ID": "<same@fabrikam.example>", "X_MS_Exchange_Organization_Network_Message_Id": delivery}
    first, second = (make_mail(**same, X_Copy=copy) for copy in ("1", "2"))
    await send(running, headers, first)
    _, repeat = await send(running, headers, second)
    assert (repeat["repeated"], len(running.stored())) == (True, 2)
    await clean(running)

    assert [file.read_bytes() for file in running.stored()] == [first]


async def test_a_mail_whose_request_broke_off_before_it_was_a_report_is_swept_up_after_30_days(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Mails that reports refer to, and files that are no mails, stay, whatever their age."""
    await send(running, await token("Reporter", **ANN), make_mail())
    worker = Retention(running.db, running.mails)
    young, old = [await running.mails.put(tenant, make_mail()) for _ in range(2)]
    (running.store / "notes.txt").write_text("not a mail")
    past = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    for file in running.stored():
        if file.name != young:
            os.utime(file, (past, past))
    await worker.sweep()
    await clean(running)

    names = {file.name for file in running.stored()}
    assert young in names
    assert old not in names
    assert len(names) == 3


async def many_expired(running: Any, make_mail: Any, tenant: UUID) -> None:
    """Leave more mails to be deleted than one batch takes."""
    shas = [await running.mails.put(tenant, make_mail()) for _ in range(BATCH + 20)]
    await running.db.pool.execute("INSERT INTO expired_mails SELECT $1, unnest($2::text[])", tenant, shas)


async def test_mails_are_deleted_in_bounded_batches(running: Any, make_mail: Any, tenant: UUID) -> None:
    """However many there are."""
    await many_expired(running, make_mail, tenant)
    worker = Retention(running.db, running.mails)

    assert [await worker.delete_expired_mails() for _ in range(3)] == [BATCH, 20, 0]
    assert running.stored() == []


async def test_replicas_share_the_mails_that_are_to_be_deleted(running: Any, make_mail: Any, tenant: UUID) -> None:
    """
    Each row is claimed by one.

    How many each takes is chance. One that is claimed may not be deleted yet, where the other looks at it in the same
    moment: it comes due again.
    """
    await many_expired(running, make_mail, tenant)
    counts = await asyncio.gather(*(Retention(running.db, running.mails).delete_expired_mails() for _ in range(2)))

    assert sum(counts) == BATCH + 20
    assert max(counts) <= BATCH
    assert await running.db.pool.fetchval("SELECT array[min(attempts), max(attempts)] FROM expired_mails") == [1, 1]
    await clean(running)
    assert running.stored() == []


def quarantined(tenant: UUID, sha256: str, channel: str = "quarantine") -> MessageReported:
    """Somebody has reported a mail through another channel, which has put it into the store."""
    return MessageReported(
        tenant_id=tenant,
        report_id=uuid4(),
        reporter="ann@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.JUNK,
        channel=channel,
        reported_at=datetime.now(UTC),
        message=Message(sha256=sha256, size=1),
    )


@pytest.mark.parametrize("case_first", [False, True])
async def test_a_mail_of_another_channel_stays_as_long_as_its_case(
    running: Any, make_mail: Any, tenant: UUID, *, case_first: bool
) -> None:
    """However old it is, and in whatever order the report and its case are heard of, or heard of twice."""
    report = quarantined(tenant, await running.mails.put(tenant, make_mail()))
    case = opened(tenant, uuid4(), str(report.report_id))
    for event in (case, report) if case_first else (report, case):
        await hear(running.db, event)
        await hear(running.db, event)
    past = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    os.utime(running.stored()[0], (past, past))
    await Retention(running.db, running.mails).sweep()
    await clean(running)
    assert len(running.stored()) == 1

    await hear(running.db, expired(tenant, case.case_id))
    await clean(running)
    assert running.stored() == []
    assert await running.db.pool.fetchval("SELECT count(*) FROM reports") == 0


async def test_a_report_of_another_channel_and_its_case_that_come_at_once_find_each_other(
    running: Any, make_mail: Any, tenant: UUID
) -> None:
    """Two replicas handle them at the same moment."""
    sha256 = await running.mails.put(tenant, make_mail())
    for _ in range(20):
        report = quarantined(tenant, sha256)
        case = opened(tenant, uuid4(), str(report.report_id))
        await asyncio.gather(hear(running.db, report), hear(running.db, case))

    assert await running.db.pool.fetchval("SELECT count(*) FROM reports WHERE case_id IS NOT NULL") == 20
    left = await running.db.pool.fetch(
        "SELECT early_cases.*, reports.case_id AS known FROM early_cases LEFT JOIN reports USING (report_id)"
    )
    assert left == []


async def test_an_own_report_that_is_heard_of_again_changes_nothing(running: Any, make_mail: Any, tenant: UUID) -> None:
    """Reporter reads what it publishes itself, among the reports of others."""
    sha256 = await running.mails.put(tenant, make_mail())
    await hear(running.db, quarantined(tenant, sha256, channel="api"))

    assert await running.db.pool.fetchval("SELECT count(*) FROM reports") == 0


async def test_no_other_mails_are_locked_than_those_that_are_deleted(db: Database, tenant: UUID) -> None:
    """Also where PostgreSQL knows that reading the whole table is cheapest: the others' reporters need not wait."""
    shas = [f"{number:064x}" for number in range(BATCH)]
    await db.pool.execute("INSERT INTO expired_mails SELECT $1, unnest($2::text[])", tenant, shas)
    await db.pool.execute("ANALYZE expired_mails")
    mails = [(tenant, sha) for sha in shas]
    async with db.transaction() as one, db.transaction() as other:
        assert set(await retention._lock_mails(one, mails[::2])) == set(mails[::2])
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert await one.fetchval(held) == BATCH // 2
        assert set(await retention._lock_mails(other, mails[1::2])) == set(mails[1::2])
