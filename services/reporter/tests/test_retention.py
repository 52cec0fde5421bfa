"""Expired reports and the messages that no report refers to are deleted, in bounded batches."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from backstop_contracts import Conclusion, VerdictReady
from chassis.postgres import Database
from conftest import JUDGED
from reporter import retention
from reporter.retention import BATCH, Retention

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "ann@contoso.example"}
BEN = {"oid": "7d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b22", "preferred_username": "ben@contoso.example"}


async def test_an_expired_report_is_unknown_and_its_message_is_deleted(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Nothing of the case is left, here or in the mail store; other reports are untouched."""
    headers = await token("Reporter", **ANN)
    report_id = await running.report_and_expire(headers, make_mail(), tenant)
    _, other = await running.send(headers, make_mail())
    await running.consume(running.case_opened(tenant, uuid4(), other["report_id"]))
    assert len(running.stored()) == 2
    await running.delete_expired_messages()

    async with running.client.get(f"/v1/reports/{report_id}", headers=headers) as answer:
        assert (answer.status, (await answer.json())["type"]) == (404, "urn:backstop:problem:unknown-report")
    async with running.client.get(f"/v1/reports/{other['report_id']}", headers=headers) as answer:
        assert answer.status == 200
    assert len(running.stored()) == 1
    counts = (
        "SELECT (SELECT count(*) FROM reports), (SELECT count(*) FROM cases), (SELECT count(*) FROM expired_messages)"
    )
    assert tuple(await running.db.pool.fetchrow(counts)) == (1, 1, 0)


async def test_a_message_of_several_cases_is_kept_until_the_last_of_them_expires(
    running: Any, token: Any, make_mail: Any, tenant: UUID, other_tenant: UUID
) -> None:
    """It is stored once in each tenant."""
    raw, cases = make_mail(), [uuid4(), uuid4()]
    for who, case_id in zip((ANN, BEN), cases, strict=True):
        _, accepted = await running.send(await token("Reporter", **who), raw)
        await running.consume(running.case_opened(tenant, case_id, accepted["report_id"]))
    await running.send(await token("Reporter", tenant=str(other_tenant), **ANN), raw)
    assert len(running.stored()) == 2

    await running.consume(running.case_expired(tenant, cases[0]))
    await running.delete_expired_messages()
    assert len(running.stored()) == 2
    await running.consume(running.case_expired(tenant, cases[1]))
    await running.delete_expired_messages()
    (left,) = running.stored()
    assert left.relative_to(running.store).parts[0] == str(other_tenant)


async def test_a_case_that_expires_twice_or_before_its_other_events_stays_deleted(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Events come again, and topics are not ordered against each other."""
    headers = await token("Reporter", **ANN)
    _, accepted = await running.send(headers, make_mail())
    case_id, now = uuid4(), datetime.now(UTC)
    update = running.case_opened(tenant, case_id, accepted["report_id"])
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
    await running.consume(update)
    for _ in range(2):
        await running.consume(running.case_expired(tenant, case_id), running.case_expired(tenant, case_id))
        await running.delete_expired_messages()
    await running.consume(update)
    assert await running.kept() == {"reports": 0, "blocks": 0, "outbox": 1, "mails": 0}
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 0

    await running.consume(verdict)
    await Retention(running.db, running.mails).sweep()
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 1
    await running.db.pool.execute("UPDATE cases SET read_at = read_at - interval '61 days'")
    await Retention(running.db, running.mails).sweep()
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 0


async def test_what_is_known_of_a_reported_case_is_never_swept_up(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Only what has no report here is, after a while."""
    headers = await token("Reporter", **ANN)
    _, accepted = await running.send(headers, make_mail())
    case_id = uuid4()
    await running.consume(running.case_opened(tenant, case_id, accepted["report_id"]))
    await running.db.pool.execute("UPDATE cases SET changed_at = changed_at - interval '4000 days'")
    await Retention(running.db, running.mails).sweep()
    assert await running.db.pool.fetchval("SELECT count(*) FROM cases") == 1


async def test_an_expired_message_that_is_reported_again_is_a_new_report(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Even from the same person and in the same category: it is published again, and its message is kept."""
    headers, raw = await token("Reporter", **ANN), make_mail()
    report_id = await running.report_and_expire(headers, raw, tenant)
    await running.delete_expired_messages()
    assert running.stored() == []
    status, again = await running.send(headers, raw)
    await running.delete_expired_messages()

    assert (status, again["report_id"], again["repeated"]) == (202, report_id, False)
    assert await running.db.pool.fetchval("SELECT count(*) FROM outbox WHERE topic = 'message-reported'") == 2
    (stored,) = running.stored()
    assert stored.read_bytes() == raw


async def test_a_repeat_with_other_bytes_leaves_no_message_behind(running: Any, token: Any, make_mail: Any) -> None:
    """The same delivery is the same report, and only the message that came first is kept."""
    headers = await token("Reporter", **ANN)
    delivery = "4c8e3f3a-8d0b-4b6a-1f5d-08dc6b1f2a31"
    same = {"Message_ID": "<same@fabrikam.example>", "X_MS_Exchange_Organization_Network_Message_Id": delivery}
    first, second = (make_mail(**same, X_Copy=copy) for copy in ("1", "2"))
    await running.send(headers, first)
    _, repeat = await running.send(headers, second)
    assert (repeat["repeated"], len(running.stored())) == (True, 2)
    await running.delete_expired_messages()

    assert [file.read_bytes() for file in running.stored()] == [first]


async def test_a_message_whose_request_broke_off_is_swept_up_after_30_days(
    running: Any, token: Any, make_mail: Any, tenant: UUID
) -> None:
    """Reported messages, and files that are not messages, stay at any age."""
    await running.send(await token("Reporter", **ANN), make_mail())
    worker = Retention(running.db, running.mails)
    young, old = [await running.mails.put(tenant, make_mail()) for _ in range(2)]
    (running.store / "notes.txt").write_text("not a mail")
    past = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    for file in running.stored():
        if file.name != young:
            os.utime(file, (past, past))
    await worker.sweep()
    await running.delete_expired_messages()

    names = {file.name for file in running.stored()}
    assert young in names
    assert old not in names
    assert len(names) == 3


async def many_expired(running: Any, make_mail: Any, tenant: UUID) -> None:
    """Store more messages that are due to be deleted than one batch takes."""
    shas = [await running.mails.put(tenant, make_mail()) for _ in range(BATCH + 20)]
    await running.db.pool.execute("INSERT INTO expired_messages SELECT $1, unnest($2::text[])", tenant, shas)


async def test_messages_are_deleted_in_bounded_batches(running: Any, make_mail: Any, tenant: UUID) -> None:
    """However many are due."""
    await many_expired(running, make_mail, tenant)
    worker = Retention(running.db, running.mails)

    assert [await worker.delete_expired_messages() for _ in range(3)] == [BATCH, 20, 0]
    assert running.stored() == []


async def test_replicas_share_the_messages_that_are_due(running: Any, make_mail: Any, tenant: UUID) -> None:
    """
    Each row is claimed by one replica.

    How many each of them claims is chance. A claimed message may not be deleted yet if the other replica looks at it at
    the same moment: it comes due again.
    """
    await many_expired(running, make_mail, tenant)
    counts = await asyncio.gather(*(Retention(running.db, running.mails).delete_expired_messages() for _ in range(2)))

    assert sum(counts) == BATCH + 20
    assert max(counts) <= BATCH
    assert await running.db.pool.fetchval("SELECT array[min(attempts), max(attempts)] FROM expired_messages") == [1, 1]
    await running.delete_expired_messages()
    assert running.stored() == []


async def test_only_the_messages_being_deleted_are_locked(db: Database, tenant: UUID) -> None:
    """Even if reading the whole table is PostgreSQL's cheapest plan: reporters of other messages need not wait."""
    shas = [f"{number:064x}" for number in range(BATCH)]
    await db.pool.execute("INSERT INTO expired_messages SELECT $1, unnest($2::text[])", tenant, shas)
    await db.pool.execute("ANALYZE expired_messages")
    mails = [(tenant, sha) for sha in shas]
    async with db.transaction() as one, db.transaction() as other:
        assert set(await retention._lock_messages(one, mails[::2])) == set(mails[::2])
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert await one.fetchval(held) == BATCH // 2
        assert set(await retention._lock_messages(other, mails[1::2])) == set(mails[1::2])
