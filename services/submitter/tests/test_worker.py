"""Each submission is made once, whatever happens on the way. The simulator's ledger is the witness."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

import submitter
from backstop_contracts import (
    EVENTS,
    Actor,
    CaseExpired,
    Category,
    MailboxMessage,
    Message,
    SubmissionCreated,
    SubmissionDelayed,
    SubmissionFailed,
    SubmissionRequested,
)
from chassis.postgres import Database
from chassis.testing import deliver
from chassis.worker import Lease
from m365 import M365Settings, connect
from mail import MailStore
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.faults import Fault
from simulator.tenant import TenantSettings
from submitter import handlers
from submitter.rules import Quota
from submitter.worker import Worker

CREATE = "graph.emailThreats.create"
MODELS = {model.topic(): model for model in EVENTS}
RECIPIENT = "user@contoso.example"


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    """Submitter's own database."""
    db = Database(database, schema="submitter")
    await db.open(Path(submitter.__file__).parent / "migrations")
    yield db
    await db.close()


@pytest.fixture
def mails() -> MailStore:
    """Make a mail store in memory."""
    return MailStore("memory:///")


Start = Callable[..., Any]


@pytest.fixture
def start(db: Database, mails: MailStore, microsoft: Simulator) -> Start:
    """Start workers on the same database: replicas."""

    @asynccontextmanager
    async def start(
        quota: Quota | None = None,
        batch: int = 8,
        lease: timedelta = timedelta(minutes=3),
        missing_after: timedelta = timedelta(0),
        mails: MailStore = mails,
    ) -> AsyncIterator[Worker]:
        settings = M365Settings(client_id=DEFAULT_APP, client_secret=DEFAULT_SECRET, graph_url=microsoft.url)
        async with connect(settings, authority=microsoft.url, ca_file=microsoft.ca_file) as (graph, _):
            yield Worker(db, graph, mails, quota or Quota(), batch, lease=Lease(lease), missing_after=missing_after)

    return start


async def request(
    db: Database, mails: MailStore, tenant_id: UUID, *, message_id: str | None = None, stored: bool = True, **more: Any
) -> SubmissionRequested:
    """Request the submission of a mail."""
    message_id = message_id or f"<{uuid4()}@fabrikam.example>"
    head = f"From: bad@fabrikam.example\r\nTo: {RECIPIENT}\r\nSubject: Hello\r\nMessage-ID: {message_id}"
    raw = f"{head}\r\n\r\nHi".encode()
    sha256 = await mails.put(str(tenant_id), raw) if stored else "0" * 64
    event = SubmissionRequested(
        **{
            "tenant_id": tenant_id,
            "submission_id": uuid4(),
            "case_id": uuid4(),
            "category": Category.PHISHING,
            "recipient": RECIPIENT,
            "message": Message(sha256=sha256, size=len(raw), internet_message_id=message_id, subject="Hello"),
            "requested_by": Actor(kind="policy", id="test"),
            "requested_at": datetime.now(UTC),
            **more,
        }
    )
    await deliver(handlers.router, db, event, event)
    return event


async def emitted(db: Database) -> list[Any]:
    """Take what lies in the outbox."""
    rows = await db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
    return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]


async def due_now(db: Database) -> None:
    """Let time pass until everything is due."""
    await db.pool.execute("UPDATE submissions SET due_at = now() WHERE state = 'due'")
    await db.pool.execute("DELETE FROM throttled")


async def pass_time(db: Database, how_long: timedelta = timedelta(0)) -> None:
    """Let *how_long* pass, and every pause before the next attempt."""
    await db.pool.execute(
        "UPDATE submissions SET due_at = now(), sent_at = sent_at - $1::interval,"
        " failing_since = failing_since - $1::interval, requested_at = requested_at - $1::interval"
        " WHERE state = 'due'",
        how_long,
    )
    await db.pool.execute("UPDATE calls SET at = at - $1::interval", how_long)
    await db.pool.execute("DELETE FROM throttled")


def made(microsoft: Simulator) -> list[dict[str, Any]]:
    """Return the submissions that Microsoft has."""
    return list(microsoft.state.ledger.contents()["submissions"])


def order(microsoft: Simulator, **fault: Any) -> None:
    """Order a fault."""
    microsoft.state.faults.order([Fault(**{"route": CREATE, "times": 1, **fault})])


async def test_a_request_is_submitted_with_the_mail_itself(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """Once, though it was delivered twice."""
    wanted = await request(db, mails, tenant_id)
    async with start() as worker:
        assert await worker.submit_due() == 1
        assert await worker.submit_due() == 0
    (created,) = await emitted(db)
    (submission,) = made(microsoft)

    assert isinstance(created, SubmissionCreated)
    assert (created.submission_id, created.graph_id, created.adopted) == (wanted.submission_id, submission["id"], False)
    assert (submission["form"], submission["sha256"]) == ("content", wanted.message.sha256)
    assert (submission["recipient"], submission["category"]) == (RECIPIENT, "phishing")


async def test_two_replicas_never_take_the_same_submission(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """Rows that one has claimed are invisible to the other."""
    for _ in range(12):
        await request(db, mails, tenant_id)
    async with start(batch=3) as one, start(batch=3) as other:
        while sum(await asyncio.gather(one.submit_due(), other.submit_due())):
            pass
    assert len(made(microsoft)) == len({entry["internet_message_id"] for entry in made(microsoft)}) == 12
    assert len(await emitted(db)) == 12


async def test_the_quota_holds_across_replicas_and_the_wait_is_told_once(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """What exceeds it waits, visibly, and Microsoft never has to say no."""
    for _ in range(6):
        await request(db, mails, tenant_id)
    quota = Quota(4, 3, timedelta(minutes=15))
    async with start(quota, batch=2) as one, start(quota, batch=2) as other:
        while sum(await asyncio.gather(one.submit_due(), other.submit_due())):
            pass
        events = await emitted(db)
        await due_now(db)
        await one.submit_due()
    delayed = [event for event in events if isinstance(event, SubmissionDelayed)]

    assert len(made(microsoft)) == 4
    assert [event.reason for event in delayed] == ["quota", "quota"]
    assert all(event.retry_at > datetime.now(UTC) + timedelta(minutes=14) for event in delayed)
    assert await emitted(db) == []
    assert microsoft.state.ledger.contents()["throttled"] == {}


@pytest.mark.parametrize("retry_after", [7, None], ids=["with Retry-After", "without"])
async def test_when_throttled_the_submission_waits_and_is_made_later(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start, retry_after: int | None
) -> None:
    """As long as Microsoft asks for, or a growing while of our own."""
    await request(db, mails, tenant_id)
    order(microsoft, kind="throttle", **({"retry_after": retry_after} if retry_after else {}))
    async with start() as worker:
        before = datetime.now(UTC)
        await worker.submit_due()
        after = datetime.now(UTC)
        due_at = await db.pool.fetchval("SELECT due_at FROM submissions")
        await due_now(db)
        await worker.submit_due()
    delayed, created = await emitted(db)

    assert (delayed.reason, delayed.retry_at) == ("throttled", due_at)
    if retry_after:
        assert before <= due_at - timedelta(seconds=retry_after) <= after
    assert isinstance(created, SubmissionCreated)
    assert len(made(microsoft)) == 1


@pytest.mark.parametrize("route", [CREATE, "graph.emailThreats.list"])
async def test_a_throttled_tenant_is_left_alone_by_every_replica_and_others_are_not(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start, route: str
) -> None:
    """Throttled calls count, so what is due, and what comes due meanwhile, waits for as long as Microsoft asked."""
    for _ in range(3):
        await request(db, mails, tenant_id)
    if route != CREATE:
        await db.pool.execute("UPDATE submissions SET sent_at = now()")
    order(microsoft, route=route, kind="throttle", retry_after=600)
    async with start(batch=1) as one, start(batch=1) as other:
        while sum([await one.submit_due(), await other.submit_due()]):
            pass
        await request(db, mails, tenant_id)
        neighbour = microsoft.state.add_tenant(TenantSettings(id=str(uuid4())))
        await request(db, mails, UUID(neighbour.id))
        while sum([await one.submit_due(), await other.submit_due()]):
            pass
    answers = microsoft.state.ledger.contents()["answers"]
    delays = [event for event in await emitted(db) if isinstance(event, SubmissionDelayed)]

    assert answers[route]["429"] == 1
    assert [entry["tenant"] for entry in made(microsoft)] == [neighbour.id]
    assert [(event.tenant_id, event.reason) for event in delays] == [(tenant_id, "throttled")] * 4
    assert all(event.retry_at > datetime.now(UTC) + timedelta(minutes=9) for event in delays)


async def test_a_throttled_item_holds_nothing_else_back(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """A day is what Microsoft asks for when an item was submitted three times, by somebody else."""
    await request(db, mails, tenant_id)
    order(microsoft, kind="throttle", retry_after=24 * 3600)
    async with start() as worker:
        await worker.submit_due()
        other = await request(db, mails, tenant_id)
        await worker.submit_due()
    assert [entry["internet_message_id"] for entry in made(microsoft)] == [other.message.internet_message_id]


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
    db: Database,
    mails: MailStore,
    microsoft: Simulator,
    tenant_id: UUID,
    start: Start,
    fault: dict[str, Any],
    effects: int,
) -> None:
    """What happened is adopted, what did not is made: one submission either way."""
    wanted = await request(db, mails, tenant_id)
    order(microsoft, **fault)
    async with start() as worker:
        await worker.submit_due()
        assert len(made(microsoft)) == effects
        await due_now(db)
        await worker.submit_due()
        await worker.submit_due()
    (created,) = [event for event in await emitted(db) if isinstance(event, SubmissionCreated)]
    (submission,) = made(microsoft)

    assert (created.submission_id, created.graph_id) == (wanted.submission_id, submission["id"])
    assert created.adopted is bool(effects)


async def test_a_crash_between_the_answer_and_the_commit_repeats_nothing(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """The claim runs out, the next worker looks, and adopts what was made."""
    await request(db, mails, tenant_id)
    async with start() as worker:
        send, _ = await worker._claim()
        await worker._graph.post(tenant_id, "/beta/security/threatSubmission/emailThreats", await worker._body(send[0]))
    await due_now(db)
    async with start() as successor:
        await successor.submit_due()
        await successor.submit_due()
    (created,) = await emitted(db)

    assert created.adopted
    assert len(made(microsoft)) == 1


async def test_what_microsoft_does_not_list_yet_is_not_repeated_before_its_time(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """A list may lag behind: a call counts as not made when it is still missing after the time of the setting."""
    await request(db, mails, tenant_id)
    order(microsoft, kind="drop_before_effect")
    async with start(missing_after=timedelta(minutes=5)) as worker:
        for _ in range(3):
            await worker.submit_due()
            await due_now(db)
        looked = microsoft.state.ledger.contents()["requests"]
        assert (looked[CREATE], looked["graph.emailThreats.list"]) == (1, 2)
        assert made(microsoft) == []
        await db.pool.execute("UPDATE submissions SET sent_at = sent_at - interval '5 minutes'")
        await worker.submit_due()
        await worker.submit_due()
    created = [event for event in await emitted(db) if isinstance(event, SubmissionCreated)]

    assert [event.adopted for event in created] == [False]
    assert len(made(microsoft)) == 1


@pytest.mark.parametrize("wait", ["throttled", "unauthorised", "quota"])
async def test_after_one_lost_answer_every_later_call_comes_after_a_look(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start, wait: str
) -> None:
    """What turns up later than it was believed to is adopted, whatever the repetition has had to wait for."""
    kept = microsoft.state.tenants[str(tenant_id)].submissions
    wanted = await request(db, mails, tenant_id)
    order(microsoft, kind="drop_after_effect")
    async with start() as worker:
        await worker.submit_due()
        listed, kept.all = kept.all, []
        await pass_time(db)
        await worker.submit_due()
        if wait == "unauthorised":
            order(microsoft, kind="error", status=403)
        async with start(Quota(submissions=1)) as thrifty:
            await (thrifty if wait == "quota" else worker).submit_due()
        kept.all = listed
        await pass_time(db, timedelta(minutes=16))
        microsoft.state.clock.advance(16 * 60)
        await worker.submit_due()
    *delays, created = await emitted(db)

    assert [event.reason for event in delays] == ["unavailable", wait]
    assert (created.submission_id, created.adopted) == (wanted.submission_id, True)
    assert len(made(microsoft)) == 1


async def test_a_call_ends_before_its_claim_does(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """Whatever it waits for: when the submission comes due again nobody calls about it any more."""
    await request(db, mails, tenant_id)
    order(microsoft, kind="timeout", seconds=600)
    async with asyncio.timeout(60), start(lease=timedelta(seconds=2)) as worker:
        while not made(microsoft):
            await due_now(db)
            await worker.submit_due()
    await due_now(db)
    async with start() as successor:
        await successor.submit_due()
    (created,) = [event for event in await emitted(db) if isinstance(event, SubmissionCreated)]

    assert created.adopted
    assert len(made(microsoft)) == 1


async def test_a_mail_store_that_does_not_answer_holds_a_submission_no_longer_than_its_claim(
    db: Database, microsoft: Simulator, tenant_id: UUID, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as nothing was sent meanwhile, there is nothing to look for."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1") as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cloud.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        await request(db, MailStore("memory:///"), tenant_id)
        async with start(lease=timedelta(seconds=1), mails=MailStore("s3://bucket/mails")) as worker:
            for _ in range(2):
                await worker.submit_due()
                await due_now(db)
    (delayed,) = await emitted(db)

    assert delayed.reason == "unavailable"
    assert microsoft.state.ledger.contents()["requests"] == {}


async def test_who_has_lost_its_claim_changes_nothing_but_what_it_made(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """A process that was frozen goes on when somebody else works on its submission: it must not make that due."""
    await request(db, mails, tenant_id)
    order(microsoft, kind="throttle")
    async with start() as zombie, start() as successor:
        (stale,), _ = await zombie._claim()
        await due_now(db)
        _, (held,) = await successor._claim()
        before = await db.pool.fetchrow("SELECT * FROM submissions")
        await zombie._submit(stale, asyncio.get_running_loop().time() + 60)
        assert await db.pool.fetchrow("SELECT * FROM submissions") == before
        # Its answer is the truth, whoever holds the submission now.
        await zombie._submit(stale, asyncio.get_running_loop().time() + 60)
        await successor._look_up(tenant_id, [held], asyncio.get_running_loop().time() + 60)
    (created,) = await emitted(db)

    assert isinstance(created, SubmissionCreated)
    assert len(made(microsoft)) == 1


async def test_while_it_cannot_look_nothing_is_repeated(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """A list that fails leaves the submission waiting."""
    await request(db, mails, tenant_id)
    order(microsoft, kind="drop_after_effect")
    order(microsoft, route="graph.emailThreats.list", kind="error", status=500, times=2)
    async with start() as worker:
        for _ in range(3):
            await due_now(db)
            await worker.submit_due()
        assert len(made(microsoft)) == 1
        await due_now(db)
        await worker.submit_due()
    (created,) = [event for event in await emitted(db) if isinstance(event, SubmissionCreated)]
    assert created.adopted


async def test_a_refusal_is_an_outcome_in_microsofts_words(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """It is told, and not tried again."""
    wanted = await request(db, mails, tenant_id)
    order(microsoft, kind="refuse")
    async with start() as worker:
        await worker.submit_due()
        await due_now(db)
        assert await worker.submit_due() == 0
    (failed,) = await emitted(db)

    assert isinstance(failed, SubmissionFailed)
    assert (failed.submission_id, failed.reason) == (wanted.submission_id, "refused")
    assert failed.detail
    assert made(microsoft) == []


async def test_a_mail_that_the_store_does_not_have_is_an_outcome(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """Nothing is sent."""
    await request(db, mails, tenant_id, stored=False)
    async with start() as worker:
        await worker.submit_due()
    (failed,) = await emitted(db)
    assert failed.reason == "mail-missing"
    assert made(microsoft) == []


async def test_a_mail_in_a_known_mailbox_is_submitted_by_its_link(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """And by its content when it lies there no more."""
    gone = MailboxMessage(user_id=RECIPIENT, message_id="AAMkgone")
    await request(db, mails, tenant_id, mailbox_message=gone)
    async with start() as worker:
        while await worker.submit_due():
            pass
    assert [type(event) for event in await emitted(db)] == [SubmissionCreated]
    assert [entry["form"] for entry in made(microsoft)] == ["content"]


async def test_the_mail_itself_is_never_another_one(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """However differently Microsoft reads its id: a second submission would bring nothing else."""
    wanted = await request(db, mails, tenant_id)
    read_otherwise = {**wanted.message.model_dump(mode="json"), "internet_message_id": "<read-otherwise@x.example>"}
    await db.pool.execute("UPDATE submissions SET message = $1", read_otherwise)
    async with start() as worker:
        while await worker.submit_due():
            pass
    (created,) = await emitted(db)
    assert isinstance(created, SubmissionCreated)
    assert [entry["id"] for entry in made(microsoft)] == [created.graph_id]


async def test_a_link_that_leads_to_another_mail_brings_no_verdict(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """The mail itself is submitted instead, within the quota, and no report adopts the other's submission."""
    harmless = "<harmless@fabrikam.example>"
    mailbox = microsoft.state.tenants[str(tenant_id)].add_mailbox(RECIPIENT)
    mailbox.messages["AAMk/b=="] = f"From: bad@fabrikam.example\r\nMessage-ID: {harmless}\r\n\r\nHi".encode()
    place = MailboxMessage(user_id=RECIPIENT, message_id="AAMk/b==")
    wanted = await request(db, mails, tenant_id, mailbox_message=place)
    async with start(Quota(submissions=1)) as worker:
        for _ in range(3):
            await worker.submit_due()
        (delayed,) = await emitted(db)
        assert delayed.reason == "quota"
        await pass_time(db, timedelta(minutes=16))
        await worker.submit_due()
    (created,) = await emitted(db)
    other, own = made(microsoft)

    assert (other["form"], other["internet_message_id"]) == ("link", harmless)
    assert (own["form"], own["sha256"]) == ("content", wanted.message.sha256)
    assert (created.submission_id, created.graph_id) == (wanted.submission_id, own["id"])

    late = await request(db, mails, tenant_id, message_id=harmless)
    await db.pool.execute("UPDATE submissions SET sent_at = now() WHERE submission_id = $1", late.submission_id)
    async with start(missing_after=timedelta(minutes=5)) as worker:
        await worker.submit_due()
    assert await emitted(db) == []


async def test_without_permission_the_submission_waits_and_gives_up_after_a_day(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """A consent that is given meanwhile lets it go on; a day without one ends it, visibly."""
    microsoft.state.tenants[str(tenant_id)].settings.apps[0].graph_roles = []
    await request(db, mails, tenant_id)
    async with start() as worker:
        await worker.submit_due()
        await pass_time(db, timedelta(hours=23))
        await worker.submit_due()
        assert [event.reason for event in await emitted(db)] == ["unauthorised"]
        await pass_time(db, timedelta(hours=2))
        await worker.submit_due()
    (failed,) = await emitted(db)
    assert failed.reason == "gave-up"


async def test_who_has_waited_a_day_for_quota_does_not_give_up_at_the_first_failure(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """The day counts from the first call that failed."""
    await request(db, mails, tenant_id, requested_at=datetime.now(UTC) - timedelta(hours=25))
    order(microsoft, kind="error", status=503)
    async with start() as worker:
        await worker.submit_due()
        await pass_time(db)
        while await worker.submit_due():
            pass
    assert [type(event) for event in await emitted(db)] == [SubmissionDelayed, SubmissionCreated]


async def test_an_answer_that_asks_to_slow_down_ends_a_time_of_failures(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """Microsoft was there, so the day begins anew with the next failure."""
    await request(db, mails, tenant_id)
    async with start() as worker:
        for fault in ({"status": 403}, {"kind": "throttle"}, {"status": 403}):
            order(microsoft, **{"kind": "error", **fault})
            await worker.submit_due()
            await pass_time(db, timedelta(hours=25))
        await worker.submit_due()
    assert isinstance((await emitted(db))[-1], SubmissionCreated)


async def test_what_is_kept_of_calls_is_forgotten_when_it_counts_no_more(db: Database, start: Start) -> None:
    """The table of calls does not grow for ever."""
    await db.pool.execute(
        "INSERT INTO calls SELECT gen_random_uuid(), gen_random_uuid(), 'x', now() - hours * interval '1 hour'"
        " FROM unnest(ARRAY[1, 47, 49]) AS hours"
    )
    async with start() as worker:
        await worker.purge_calls()
    assert await db.pool.fetchval("SELECT count(*) FROM calls") == 2


async def test_what_has_ended_is_forgotten_with_its_case_and_what_is_due_is_still_made(
    db: Database, mails: MailStore, microsoft: Simulator, tenant_id: UUID, start: Start
) -> None:
    """An expiry that comes twice, or for a case that is not known, changes nothing; other cases stay."""
    made_one, other = await request(db, mails, tenant_id), await request(db, mails, tenant_id)
    failed = await request(db, mails, tenant_id, stored=False)
    async with start() as worker:
        await worker.submit_due()
        due = await request(db, mails, tenant_id)
        gone = [made_one.case_id, failed.case_id, due.case_id, uuid4()]
        now = datetime.now(UTC)
        events = [
            CaseExpired(tenant_id=tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now)
            for case_id in gone
        ]
        for _ in range(2):
            await deliver(handlers.router, db, *events)
        left = {row["case_id"]: row["state"] for row in await db.pool.fetch("SELECT case_id, state FROM submissions")}
        assert left == {other.case_id: "created", due.case_id: "due"}
        await worker.submit_due()
    assert len(made(microsoft)) == 3


def test_times_of_microsoft_are_read_whatever_they_look_like() -> None:
    """An odd time is not a reason to lose a submission."""
    from submitter.worker import _when  # noqa: PLC0415 - the one private function with a table of its own

    assert _when("2026-11-24T10:00:00Z") == datetime(2026, 11, 24, 10, tzinfo=UTC)
    assert _when("2026-11-24T10:00:00") == datetime(2026, 11, 24, 10, tzinfo=UTC)
    for odd in (None, "", "soon", 7, orjson.dumps({})):
        assert abs(_when(odd) - datetime.now(UTC)) < timedelta(minutes=1)
