"""Many verdicts are read with few requests, each is told once, and waiting ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

import verdict_poller
from backstop_contracts import (
    Block,
    BlockApplied,
    BlockRemoved,
    CaseExpired,
    Category,
    Message,
    SubmissionCreated,
    VerdictReady,
)
from chassis.postgres import Database
from chassis.testing import deliver
from chassis.worker import Lease
from m365 import Graph, M365Settings, connect
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.faults import Fault
from simulator.tenant import TenantSettings
from verdict_poller import handlers, store
from verdict_poller.schedule import ABANDON_AFTER, GIVE_UP_AFTER, Schedule, is_over
from verdict_poller.worker import AWAY_TRIES, BLOCKS_KEPT, DOUBTED_FROM, PATH, SINGLY_AT_MOST, Explainer, Poller

LIST, GET = "graph.emailThreats.list", "graph.emailThreats.get"
LEASE = Lease(timedelta(minutes=5))
SCHEDULE = Schedule((60, 60, 180), 30)


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    """Verdict-poller's own database."""
    db = Database(database, schema="verdict_poller")
    await db.open(Path(verdict_poller.__file__).parent / "migrations")
    yield db
    await db.close()


class Bench:
    """The workers of a service, and Microsoft to submit mails to."""

    def __init__(self, db: Database, graph: Graph, poller: Poller, explainer: Explainer, tenant_id: UUID) -> None:
        self.db = db
        self.graph = graph
        self.poller = poller
        self.explainer = explainer
        self.tenant_id = tenant_id

    async def watch(self, subject: str = "Hello", sender: str = "bad@fabrikam.example", body: str = "Hi") -> UUID:
        """Submit a mail to Microsoft and watch it."""
        message_id = f"<{uuid4()}@fabrikam.example>"
        raw = f"From: {sender}\nTo: user@contoso.example\nSubject: {subject}\nMessage-ID: {message_id}\n\n{body}"
        entity = await self.graph.post(self.tenant_id, PATH, _content(raw))
        event = SubmissionCreated(
            tenant_id=self.tenant_id,
            submission_id=uuid4(),
            case_id=uuid4(),
            graph_id=entity["id"],
            category=Category.PHISHING,
            recipient="user@contoso.example",
            folders=("inbox", "junk"),
            adopted=False,
            message=Message(sha256="0" * 64, size=1, internet_message_id=message_id, sender=sender, subject=subject),
            created_at=datetime.fromisoformat(entity["createdDateTime"]),
        )
        await deliver(handlers.router, self.db, event, event, schedule=SCHEDULE)
        return event.submission_id

    async def judge(self, submission_id: UUID, verdict: str, detail: str) -> None:
        """Let Microsoft have said this of a mail that is watched."""
        answer = {"status": "succeeded", "result": {"category": verdict, "detail": detail}}
        async with self.db.transaction() as tx:
            await store.judge(tx, {submission_id: answer})

    async def due_now(self) -> None:
        """Let time pass until everything is due."""
        await self.db.pool.execute("UPDATE watches SET due_at = now() WHERE state <> 'told'")

    async def told(self) -> list[VerdictReady]:
        """Take the verdicts in the outbox."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        return [VerdictReady.model_validate_json(row["payload"]) for row in rows]


def _content(raw: str) -> dict[str, Any]:
    import base64  # noqa: PLC0415 - here alone

    return {
        "@odata.type": "#microsoft.graph.security.emailContentThreatSubmission",
        "category": "phishing",
        "recipientEmailAddress": "user@contoso.example",
        "fileContent": base64.b64encode(raw.encode()).decode(),
    }


@asynccontextmanager
async def _bench(db: Database, microsoft: Simulator, tenant_id: UUID) -> AsyncIterator[Bench]:
    settings = M365Settings(
        client_id=DEFAULT_APP, client_secret=DEFAULT_SECRET, graph_url=microsoft.url, exchange_url=microsoft.url
    )
    async with connect(settings, authority=microsoft.url, ca_file=microsoft.ca_file) as (graph, exchange):
        yield Bench(
            db,
            graph,
            Poller(db, graph, SCHEDULE, LEASE),
            Explainer(db, exchange, batch=100, settings_live=timedelta(minutes=5), lease=LEASE),
            tenant_id,
        )


@pytest.fixture
async def bench(db: Database, microsoft: Simulator, tenant_id: UUID) -> AsyncIterator[Bench]:
    """Workers on the test's database and tenant."""
    microsoft.state.settings.submissions_per_window = 10_000
    async with _bench(db, microsoft, tenant_id) as bench:
        yield bench


def requests(microsoft: Simulator, route: str = LIST) -> int:
    """Count the requests on a route."""
    return int(microsoft.state.ledger.contents()["requests"].get(route, 0))


async def test_a_verdict_stands_alone(bench: Bench) -> None:
    """A subscriber reads the message, where it was met and the blocks in force, without joining other topics."""
    submission_id = await bench.watch("Updated bank details")
    case_id = await bench.db.pool.fetchval("SELECT case_id FROM watches")
    now = datetime.now(UTC)
    ended, made, over = (
        Block(block_id=uuid4(), scope="tenant", kind="url", value=f"https://{name}.example/", case_id=case_id)
        for name in ("ended", "made", "over")
    )
    # Its end has come, and nobody has heard of it yet.
    over = over.model_copy(update={"expires_at": now - timedelta(minutes=1)})
    own = Block(block_id=uuid4(), scope="mailbox", kind="sender", value="a@b.example", mailbox="m", report_id=uuid4())
    removed = BlockRemoved(tenant_id=bench.tenant_id, block=ended, reason="expired", removed_at=now)
    # The two come on topics of their own: the removal may be read first.
    await deliver(handlers.router, bench.db, removed, schedule=SCHEDULE)
    for block in (made, ended, over, own):
        applied = BlockApplied(
            tenant_id=bench.tenant_id, block=block, already_present=False, entry="made.example", applied_at=now
        )
        await deliver(handlers.router, bench.db, applied, applied, schedule=SCHEDULE)
    await bench.judge(submission_id, "phishing", "none")
    await bench.explainer.explain_due()
    (told,) = await bench.told()

    assert (told.message.subject, told.message.sender) == ("Updated bank details", "bad@fabrikam.example")
    assert (told.category, told.recipient, told.folders) == ("phishing", "user@contoso.example", ("inbox", "junk"))
    assert [(block.value, block.entry) for block in told.blocks] == [("https://made.example/", "made.example")]

    expired = CaseExpired(
        tenant_id=bench.tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now
    )
    await deliver(handlers.router, bench.db, expired, schedule=SCHEDULE)
    assert await bench.db.pool.fetchval("SELECT count(*) FROM blocks") == 0


async def test_a_block_that_ends_after_its_case_expired_leaves_nothing_behind(bench: Bench) -> None:
    """By default that is the usual order: a block lasts 30 days, and a case is kept for 30 days."""
    block = Block(block_id=uuid4(), scope="tenant", kind="sender", value="a@b.example", case_id=uuid4())
    removed = BlockRemoved(tenant_id=bench.tenant_id, block=block, reason="expired", removed_at=datetime.now(UTC))
    await deliver(handlers.router, bench.db, removed, schedule=SCHEDULE)
    await bench.explainer.purge_blocks()
    assert await bench.db.pool.fetchval("SELECT count(*) FROM blocks") == 1

    await bench.db.pool.execute("UPDATE blocks SET noted_at = now() - $1::interval", BLOCKS_KEPT)
    await bench.explainer.purge_blocks()
    assert await bench.db.pool.fetchval("SELECT count(*) FROM blocks") == 0


async def test_a_verdict_that_comes_after_its_case_expired_still_names_the_blocks(bench: Bench) -> None:
    """A watch goes on waiting, and so does what it will say."""
    submission_id = await bench.watch()
    case_id = await bench.db.pool.fetchval("SELECT case_id FROM watches")
    now = datetime.now(UTC)
    block = Block(block_id=uuid4(), scope="tenant", kind="sender", value="a@b.example", case_id=case_id)
    applied = BlockApplied(tenant_id=bench.tenant_id, block=block, already_present=False, applied_at=now)
    expired = CaseExpired(
        tenant_id=bench.tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now
    )
    await deliver(handlers.router, bench.db, applied, expired, schedule=SCHEDULE)
    await bench.judge(submission_id, "phishing", "none")
    await bench.explainer.explain_due()

    assert [one.block_id for one in (await bench.told())[0].blocks] == [block.block_id]


async def test_a_verdict_is_told_once_with_its_cause(bench: Bench, microsoft: Simulator) -> None:
    """What Microsoft says, in its words; why; and what to change."""
    row = microsoft.state.tenants[str(bench.tenant_id)].rows("Get-HostedContentFilterPolicy")[0]  # type: ignore[index]
    microsoft.state.tenants[str(bench.tenant_id)].settings.cmdlets["Get-HostedContentFilterPolicy"] = [
        {**row, "AllowedSenderDomains": ["fabrikam.example"]}
    ]
    submission_id = await bench.watch()
    await bench.due_now()
    assert await bench.poller.poll_due() == 1
    assert await bench.explainer.explain_due() == 0
    microsoft.state.clock.advance(120)
    await bench.due_now()
    for _ in range(2):
        await bench.poller.poll_due()
        await bench.explainer.explain_due()
    (verdict,) = await bench.told()

    assert verdict.submission_id == submission_id
    assert (verdict.verdict, verdict.detail) == ("allowedDueToOrganizationOverride", "allowedByTenant")
    assert (verdict.conclusion, verdict.override) == ("unknown", "allowed")
    assert verdict.settings_read
    assert verdict.causes[0].rule == "R04"
    assert "fabrikam.example" in str(verdict.causes[0].recommendations[0].cmdlet)


async def test_many_verdicts_are_read_with_few_requests(bench: Bench, microsoft: Simulator) -> None:
    """Lists, not one request each."""
    for _ in range(120):
        await bench.watch()
    microsoft.state.clock.advance(120)
    await bench.due_now()
    assert await bench.poller.poll_due() == 120
    while await bench.explainer.explain_due():
        pass

    assert len(await bench.told()) == 120
    assert requests(microsoft) <= 4
    assert requests(microsoft, GET) == 0


async def test_a_thousand_pending_submissions_cost_at_most_a_tenth_of_a_request_each(
    bench: Bench, microsoft: Simulator
) -> None:
    """Ten rounds pass before Microsoft is done; what is under way is on a list too."""
    microsoft.state.settings.verdict_delay_seconds = 7200
    for _ in range(20):
        await asyncio.gather(*(bench.watch() for _ in range(50)))
    for _ in range(10):
        await bench.due_now()
        await bench.poller.poll_due()
    microsoft.state.clock.advance(7201)
    await bench.due_now()
    await bench.poller.poll_due()

    assert await bench.db.pool.fetchval("SELECT count(*) FROM watches WHERE state = 'judged'") == 1000
    assert requests(microsoft) <= 100
    assert requests(microsoft, GET) == 0


async def test_submissions_that_no_list_shows_are_asked_for_singly_a_few_in_a_round(
    bench: Bench, microsoft: Simulator
) -> None:
    """Lists have been seen incomplete. Each has its turn, however many there are."""
    for _ in range(2 * SINGLY_AT_MOST):
        await bench.watch()
    await bench.db.pool.execute("UPDATE watches SET created_at = created_at - interval '1 day'")
    microsoft.state.clock.advance(120)
    for question in range(1, DOUBTED_FROM + 1):
        assert requests(microsoft, GET) == 0, question
        await bench.due_now()
        await bench.poller.poll_due()
    assert requests(microsoft, GET) == SINGLY_AT_MOST
    await bench.db.pool.execute("UPDATE watches SET due_at = now(), attempts = $1", DOUBTED_FROM - 1)
    await bench.poller.poll_due()
    assert await bench.db.pool.fetchval("SELECT count(*) FROM watches WHERE state = 'judged'") == 2 * SINGLY_AT_MOST


async def test_what_was_read_before_microsoft_throttles_is_kept(bench: Bench, microsoft: Simulator) -> None:
    """And what was not is asked about when Microsoft allows it."""
    shown = await bench.watch()
    microsoft.state.clock.advance(60)
    hidden = await bench.watch()
    microsoft.state.clock.advance(120)
    await bench.db.pool.execute(
        "UPDATE watches SET due_at = now(), attempts = $1, created_at = (SELECT min(created_at) FROM watches)",
        DOUBTED_FROM - 1,
    )
    microsoft.state.faults.order([Fault(route=GET, kind="throttle", retry_after=900)])
    await bench.poller.poll_due()
    await bench.explainer.explain_due()

    assert [verdict.submission_id for verdict in await bench.told()] == [shown]
    due_at = await bench.db.pool.fetchval("SELECT due_at FROM watches WHERE submission_id = $1", hidden)
    assert due_at > datetime.now(UTC) + timedelta(seconds=840)


async def test_submissions_that_are_not_judged_yet_are_asked_about_later(bench: Bench, microsoft: Simulator) -> None:
    """Only what is final is told."""
    await bench.watch()
    microsoft.state.clock.advance(120)
    late = await bench.watch()
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    state, due_at = await bench.db.pool.fetchrow("SELECT state, due_at FROM watches WHERE submission_id = $1", late)  # type: ignore[misc]

    assert len(await bench.told()) == 1
    assert state == "watching"
    assert due_at > datetime.now(UTC) + timedelta(seconds=29)


@pytest.mark.parametrize("fault", [{"kind": "throttle", "retry_after": 9}, {"kind": "error", "status": 503}])
async def test_a_list_that_fails_is_asked_for_again(bench: Bench, microsoft: Simulator, fault: dict[str, Any]) -> None:
    """Nothing is concluded from it."""
    await bench.watch()
    microsoft.state.clock.advance(120)
    microsoft.state.faults.order([Fault(route=LIST, times=1, **fault)])
    await bench.due_now()
    await bench.poller.poll_due()
    assert await bench.explainer.explain_due() == 0
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    assert len(await bench.told()) == 1


async def test_a_question_that_failed_waits_no_longer_than_one_that_was_answered(
    bench: Bench, microsoft: Simulator
) -> None:
    """However often it was asked before; and one moment serves all, so that one list answers them."""
    for attempts in (40, 50):
        watched = await bench.watch()
        await bench.db.pool.execute("UPDATE watches SET attempts = $2 WHERE submission_id = $1", watched, attempts)
    await bench.due_now()
    microsoft.state.faults.order([Fault(route=LIST, kind="error")])
    before = datetime.now(UTC)
    await bench.poller.poll_due()

    (due_at,) = {row["due_at"] for row in await bench.db.pool.fetch("SELECT due_at FROM watches")}
    assert before + timedelta(seconds=100) < due_at <= SCHEDULE.next_due(datetime.now(UTC), 50)


@pytest.mark.parametrize("fault", [{"kind": "throttle"}, {"kind": "error", "status": 503}])
async def test_microsoft_is_not_asked_again_before_it_says(
    bench: Bench, microsoft: Simulator, fault: dict[str, Any]
) -> None:
    """However soon the next question was planned."""
    await bench.watch()
    await bench.due_now()
    microsoft.state.faults.order([Fault(route=LIST, retry_after=3000, **fault)])
    before = datetime.now(UTC)
    await bench.poller.poll_due()

    due_at = await bench.db.pool.fetchval("SELECT due_at FROM watches")
    assert before <= due_at - timedelta(seconds=3000) <= datetime.now(UTC)


async def test_who_has_lost_its_claim_postpones_nothing(bench: Bench) -> None:
    """A process that was frozen goes on when somebody else has asked about the submission, and it waits."""
    await bench.watch()
    await bench.due_now()
    async with bench.db.transaction() as tx:
        (stale,) = await store.claim(tx, "watching", timedelta(0), 1)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    due = "SELECT due_at FROM watches"
    async with bench.db.transaction() as tx:
        (held,) = await store.claim(tx, "watching", timedelta(minutes=5), 1)
        await store.postpone(tx, "watching", [(stale, tomorrow)])
        assert await tx.fetchval(due) < tomorrow
        await store.judge(tx, {held.submission_id: {"status": "succeeded"}})
    async with bench.db.transaction() as tx:
        (explained,) = await store.claim(tx, "judged", timedelta(minutes=5), 1)
        assert explained.attempts == stale.attempts
        await store.postpone(tx, "watching", [(stale, tomorrow)])
        assert await tx.fetchval(due) < tomorrow
        await store.postpone(tx, "judged", [(explained, tomorrow)])
        assert await tx.fetchval(due) == tomorrow


async def test_after_26_hours_the_wait_ends_with_no_result(bench: Bench) -> None:
    """Giving up is a verdict too."""
    await bench.watch()
    await bench.db.pool.execute(
        "UPDATE watches SET due_at = now(), watched_since = now() - $1::interval", GIVE_UP_AFTER
    )
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    (verdict,) = await bench.told()
    assert (verdict.verdict, verdict.conclusion) == ("noResultAvailable", "unknown")
    assert verdict.causes


async def test_an_unanswered_question_ends_no_wait(bench: Bench, microsoft: Simulator) -> None:
    """A permission that is missing for a while hides the verdict of a submission, however old, and loses none."""
    await bench.watch()
    await bench.db.pool.execute("UPDATE watches SET watched_since = now() - $1::interval", GIVE_UP_AFTER)
    microsoft.state.clock.advance(120)
    microsoft.state.faults.order([Fault(route=LIST, kind="refuse", status=403)])
    await bench.due_now()
    await bench.poller.poll_due()
    assert await bench.explainer.explain_due() == 0
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    (verdict,) = await bench.told()
    assert verdict.verdict != "noResultAvailable"


async def test_before_the_wait_ends_a_submission_on_no_list_is_asked_for_singly(
    bench: Bench, microsoft: Simulator
) -> None:
    """Its verdict may be there all the same, and one that Microsoft does not know has none."""
    hidden, forgotten = await bench.watch(), await bench.watch()
    microsoft.state.clock.advance(120)
    await bench.db.pool.execute(
        "UPDATE watches SET due_at = now(), watched_since = now() - $1::interval, created_at = now() - $1::interval,"
        " graph_id = CASE submission_id WHEN $2 THEN graph_id ELSE 'gone' END",
        GIVE_UP_AFTER,
        hidden,
    )
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    verdicts = {verdict.submission_id: verdict.verdict for verdict in await bench.told()}
    assert verdicts[hidden] != "noResultAvailable"
    assert verdicts[forgotten] == "noResultAvailable"


async def test_after_a_week_without_answers_the_wait_ends_all_the_same(bench: Bench, microsoft: Simulator) -> None:
    """Nothing is watched for ever."""
    await bench.watch()
    microsoft.state.faults.order([Fault(route="graph.*", kind="error", times=None)])
    await bench.db.pool.execute(
        "UPDATE watches SET due_at = now(), watched_since = now() - $1::interval", ABANDON_AFTER
    )
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    (verdict,) = await bench.told()
    assert verdict.verdict == "noResultAvailable"


async def test_settings_that_cannot_be_read_delay_the_verdict_but_do_not_withhold_it(
    bench: Bench, microsoft: Simulator
) -> None:
    """After some tries it is told with what is known, and says that the settings are missing."""
    app = microsoft.state.tenants[str(bench.tenant_id)].settings.apps[0]
    app.exchange_role = False
    await bench.watch(body="Please verify your account and confirm your password")
    microsoft.state.clock.advance(120)
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    assert await bench.told() == []
    for _ in range(5):
        await bench.due_now()
        await bench.explainer.explain_due()
    (verdict,) = await bench.told()
    assert not verdict.settings_read
    assert verdict.causes


async def explained_without_exchange(bench: Bench, microsoft: Simulator, times: int) -> None:
    """Have a verdict come in, and be explained so many times while Exchange is away."""
    await bench.watch(body="Please verify your account and confirm your password")
    microsoft.state.clock.advance(120)
    await bench.due_now()
    await bench.poller.poll_due()
    microsoft.state.faults.order([Fault(route="exchange.*", kind="error", times=None)])
    for _ in range(times):
        await bench.explainer.explain_due()
        await bench.due_now()


async def test_while_exchange_is_away_the_explanation_waits(bench: Bench, microsoft: Simulator) -> None:
    """An hour of that costs less than an explanation that never comes."""
    await explained_without_exchange(bench, microsoft, AWAY_TRIES - 1)
    assert await bench.told() == []

    microsoft.state.faults.clear()
    await bench.explainer.explain_due()

    (verdict,) = await bench.told()
    assert verdict.settings_read


async def test_the_wait_for_exchange_ends(bench: Bench, microsoft: Simulator) -> None:
    """Then the verdict is told without the settings."""
    await explained_without_exchange(bench, microsoft, AWAY_TRIES)

    (verdict,) = await bench.told()
    assert not verdict.settings_read


async def test_a_tenant_whose_exchange_is_slow_holds_up_nothing_else(
    bench: Bench, db: Database, microsoft: Simulator
) -> None:
    """Neither the other tenants' verdicts of the batch, nor those of its own that need no settings."""
    tenant_id = microsoft.state.add_tenant(TenantSettings(id=str(uuid4()))).id
    slow = await bench.watch()
    own = await bench.watch()
    await bench.judge(slow, "allowedDueToUserOverride", "allowedByUserSetting")
    await bench.judge(own, "noThreatsFound", "goodReclassifiedAsGood")
    async with _bench(db, microsoft, UUID(tenant_id)) as neighbour:
        other = await neighbour.watch()
    await bench.judge(other, "allowedDueToOrganizationOverride", "allowedByTenant")
    held = Fault(route="exchange.Get-MailboxJunkEmailConfiguration", kind="timeout", times=None, seconds=600)
    microsoft.state.faults.order([held])

    round_ = asyncio.create_task(bench.explainer.explain_due())
    told: set[UUID] = set()
    while len(told) < 2 and not round_.done():
        await asyncio.wait([round_], timeout=0.01)
        told |= {verdict.submission_id for verdict in await bench.told()}

    assert told == {own, other}
    assert not round_.done()
    round_.cancel()
    await asyncio.wait([round_])


async def test_what_exchange_answers_in_part_is_used(bench: Bench, microsoft: Simulator) -> None:
    """The rows that came show the culprit; the link to the others leads nowhere."""
    policies = microsoft.state.tenants[str(bench.tenant_id)].settings.cmdlets
    row = {"Name": "Default", "IsDefault": True, "AllowedSenderDomains": ["fabrikam.example"]}
    policies["Get-HostedContentFilterPolicy"] = [row, *({"Name": f"Policy {number}"} for number in range(1000))]
    await bench.judge(await bench.watch(), "allowedDueToOrganizationOverride", "allowedByTenant")

    await bench.explainer.explain_due()

    (verdict,) = await bench.told()
    assert verdict.causes[0].recommendations[0].policy == "Default"


async def test_the_quarantine_is_asked_about_all_the_time_that_it_keeps_mails(
    bench: Bench, microsoft: Simulator
) -> None:
    """Unasked, Exchange looks back 16 days, and a release before that would not be seen."""
    submission_id = await bench.watch()
    message = await bench.db.pool.fetchval("SELECT message FROM watches WHERE submission_id = $1", submission_id)
    microsoft.state.tenants[str(bench.tenant_id)].settings.cmdlets["Get-QuarantineMessage"] = [
        {
            "MessageId": message["internet_message_id"],
            "RecipientAddress": ["user@contoso.example"],
            "ReceivedTime": (datetime.now(UTC) - timedelta(days=20)).isoformat(),
            "ReleaseStatus": "RELEASED",
            "ReleasedBy": ["user@contoso.example"],
            "TagName": "Team policy",
        }
    ]
    await bench.judge(submission_id, "allowedDueToOrganizationOverride", "quarantineReleased")

    await bench.explainer.explain_due()

    (verdict,) = await bench.told()
    assert "released from quarantine by its recipient" in str(verdict.causes[0].evidence)


async def test_settings_are_read_once_for_many_verdicts(bench: Bench, microsoft: Simulator) -> None:
    """Each cmdlet at most every five minutes for a tenant."""
    for _ in range(10):
        await bench.watch(body="Please verify your account and confirm your password")
    microsoft.state.clock.advance(120)
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    counts = microsoft.state.ledger.contents()["requests"]

    assert len(await bench.told()) == 10
    assert all(count == 1 for route, count in counts.items() if route.startswith("exchange."))


async def test_two_replicas_tell_each_verdict_once(
    bench: Bench, db: Database, microsoft: Simulator, tenant_id: UUID
) -> None:
    """What one has claimed the other does not see."""
    for _ in range(20):
        await bench.watch()
    microsoft.state.clock.advance(120)
    await bench.due_now()
    async with _bench(db, microsoft, tenant_id) as other:
        for one in (bench, other):
            await one.poller.poll_due()
        for one in (bench, other):
            await one.explainer.explain_due()
    verdicts = await bench.told()
    assert len(verdicts) == len({verdict.submission_id for verdict in verdicts}) == 20


async def test_a_told_watch_is_forgotten_with_its_case_and_a_waiting_one_goes_on(
    bench: Bench, microsoft: Simulator
) -> None:
    """An expiry that comes twice, or for a case that is not known, changes nothing; other cases stay."""
    gone, other = await bench.watch(), await bench.watch()
    microsoft.state.clock.advance(120)
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    cases = {verdict.submission_id: verdict.case_id for verdict in await bench.told()}
    waiting = await bench.watch()
    case_of_waiting = await bench.db.pool.fetchval("SELECT case_id FROM watches WHERE submission_id = $1", waiting)
    now = datetime.now(UTC)
    events = [
        CaseExpired(tenant_id=bench.tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now)
        for case_id in (cases[gone], case_of_waiting, uuid4())
    ]
    for _ in range(2):
        await deliver(handlers.router, bench.db, *events, schedule=SCHEDULE)

    left = {row["submission_id"] for row in await bench.db.pool.fetch("SELECT submission_id FROM watches")}
    assert left == {other, waiting}
    microsoft.state.clock.advance(120)
    await bench.due_now()
    await bench.poller.poll_due()
    await bench.explainer.explain_due()
    assert [verdict.submission_id for verdict in await bench.told()] == [waiting]


def test_questions_become_rarer_and_fall_on_a_grid() -> None:
    """So that submissions of one tenant are asked about together."""
    now = datetime(2026, 11, 24, 12, 0, 7, tzinfo=UTC)
    dues = [SCHEDULE.next_due(now, attempts) for attempts in range(5)]
    assert [(due - now).total_seconds() for due in dues] == [83, 83, 203, 203, 203]
    assert all(due.timestamp() % 30 == 0 for due in dues)


def test_the_wait_is_over_after_26_hours() -> None:
    """A day for Microsoft, two hours of grace."""
    now = datetime.now(UTC)
    assert not is_over(now - timedelta(hours=25, minutes=59), now)
    assert is_over(now - timedelta(hours=26), now)
