"""From wishes to entries in Exchange Online and back, on a real PostgreSQL; the simulator's ledger is the witness."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import orjson
import pytest
from pydantic import SecretStr

import blocklist
from backstop_contracts import (
    EVENTS,
    Actor,
    Block,
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    BlockRequested,
    CaseExpired,
    Conclusion,
    Envelope,
    VerdictReady,
)
from blocklist import handlers, store
from blocklist.worker import Worker
from chassis.events import Received
from chassis.postgres import Database
from chassis.testing import deliver
from chassis.worker import Lease, backoff
from conftest import JUDGED
from m365 import Credential, Exchange, Tokens, open_session
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.allow_block_list import ListEntry
from simulator.faults import Fault

MODELS = {model.topic(): model for model in EVENTS}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NEW = "exchange.New-TenantAllowBlockListItems"
GET = "exchange.Get-TenantAllowBlockListItems"
SET = "exchange.Set-TenantAllowBlockListItems"
REMOVE = "exchange.Remove-TenantAllowBlockListItems"
GET_JUNK = "exchange.Get-MailboxJunkEmailConfiguration"
SET_JUNK = "exchange.Set-MailboxJunkEmailConfiguration"
SENDER = "bad@fabrikam.example"
PROTECTED = frozenset({"mail.example"})
LEASE = timedelta(minutes=4)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class World:
    """Blocklist's database and workers, and the Exchange Online that they reach."""

    def __init__(self, db: Database, microsoft: Simulator, tenant_id: UUID, session: aiohttp.ClientSession) -> None:
        self.db = db
        self.tenant_id = tenant_id
        self.state = microsoft.state
        self.tenant = microsoft.state.tenants[str(tenant_id)]
        self.tokens = Tokens(
            Credential(client_id=DEFAULT_APP, secret=SecretStr(DEFAULT_SECRET)), session, authority=microsoft.url
        )
        self._session = session
        self._url = microsoft.url

    def worker(self, *, timeout: float = 10.0, batch: int = 16, lease: timedelta = LEASE) -> Worker:
        """Make a worker that remembers nothing, as after a restart. *timeout*, in seconds, is that of each call."""
        exchange = Exchange(self.tokens, self._session, base_url=self._url, timeout=timeout)
        return Worker(self.db, exchange, PROTECTED, batch, Lease(lease))

    async def work(self, worker: Worker | None = None) -> list[Any]:
        """Do all that is due; return what was emitted."""
        worker = worker or self.worker()
        while await worker.settle_due():
            pass
        return await self.emitted()

    async def ask(self, *wishes: BlockRequested) -> None:
        """Handle wishes as one batch."""
        await deliver(handlers.router, self.db, *wishes, traceparent=TRACE)

    async def judge(self, *verdicts: VerdictReady) -> None:
        """Handle verdicts as one batch."""
        await deliver(handlers.router, self.db, *verdicts, traceparent=TRACE)

    async def expire(self, *wishes: BlockRequested) -> None:
        """Let the cases of wishes expire; triage says so twice."""
        now = datetime.now(UTC)
        events = [
            CaseExpired(
                tenant_id=self.tenant_id,
                case_id=wish.block.case_id or uuid4(),
                report_count=1,
                last_active_at=now,
                expired_at=now,
            )
            for wish in wishes
        ]
        for _ in range(2):
            await deliver(handlers.router, self.db, *events)

    async def left(self) -> dict[str, int]:
        """Count what is kept."""
        tables = ("blocks", "entries", "clean_verdicts")
        return {table: await self.db.pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables}

    async def emitted(self) -> list[Any]:
        """Take what lies in the outbox."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        assert all(orjson.loads(row["headers"])["traceparent"] == TRACE for row in rows)
        return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]

    async def pass_time(self, how_long: timedelta = timedelta(0)) -> None:
        """Let *how_long* pass, here and in Exchange, and every pause before the next attempt."""
        self.state.clock.advance(how_long.total_seconds())
        await self.db.pool.execute(
            "UPDATE blocks SET expires_at = expires_at - $1::interval, recorded_at = recorded_at - $1::interval",
            how_long,
        )
        await self.db.pool.execute(
            "UPDATE entries SET due_at = CASE WHEN due_at < 'infinity' THEN least(due_at - $1::interval, now())"
            " ELSE due_at END, extended_from = extended_from - $1::interval, extended_to = extended_to - $1::interval",
            how_long,
        )

    async def pause(self) -> timedelta:
        """Return how long the one entry still waits."""
        (due_at,) = [row["due_at"] for row in await self.db.pool.fetch("SELECT due_at FROM entries")]
        wait: timedelta = due_at - datetime.now(UTC)
        return wait

    def fault(self, route: str, kind: str, **more: Any) -> None:
        """Order a fault."""
        self.state.faults.order([Fault.model_validate({"route": route, "kind": kind, **more})])

    def ledger(self, kind: str) -> list[Any]:
        """Return what really happened in Exchange."""
        entries: list[Any] = self.state.ledger.contents()[kind]
        return entries

    def calls(self, route: str) -> int:
        """Count the calls that arrived."""
        return int(self.state.ledger.contents()["requests"].get(route, 0))

    def listed(self) -> dict[str, ListEntry]:
        """Return the sender entries that are in force, by value."""
        return {e.value: e for e in self.tenant.allow_block_list.entries(self.state.clock.now(), "Sender")}

    def put(self, value: str, *, action: str = "Block", lasts: timedelta | None = None) -> ListEntry:
        """Have an administrator make an entry."""
        now = self.state.clock.now()
        entry = ListEntry("Sender", value, action, now, now, now + lasts if lasts else None, "by hand", "an admin")
        self.tenant.allow_block_list.add(entry)
        return entry

    def wish(self, value: str = SENDER, *, lasts: timedelta | None = 30 * DAY, **facts: Any) -> BlockRequested:
        """Make a wish of a case of its own for the tenant, or for `mailbox`."""
        scope = "mailbox" if "mailbox" in facts else "tenant"
        requested_at = facts.pop("requested_at", datetime.now(UTC))
        expires_at = datetime.now(UTC) + lasts if lasts and scope == "tenant" else None
        block = {
            "block_id": uuid4(),
            "scope": scope,
            "kind": "sender" if "@" in value else "domain",
            "value": value,
            "expires_at": expires_at,
            **({"report_id": uuid4()} if scope == "mailbox" else {"case_id": uuid4()}),
            **facts,
        }
        return BlockRequested(
            tenant_id=self.tenant_id,
            block=Block.model_validate(block),
            requested_by=Actor(kind="user", id="admin"),
            requested_at=requested_at,
        )

    def url_wish(self, value: str, *, lasts: timedelta | None = 30 * DAY) -> BlockRequested:
        """Make a wish to block a URL."""
        end = datetime.now(UTC) + lasts if lasts else None
        block = Block(block_id=uuid4(), scope="tenant", kind="url", value=value, case_id=uuid4(), expires_at=end)
        by = Actor(kind="user", id="admin")
        return BlockRequested(tenant_id=self.tenant_id, block=block, requested_by=by, requested_at=datetime.now(UTC))

    def verdict(self, wish: BlockRequested, conclusion: Conclusion = Conclusion.CLEAN, **facts: Any) -> VerdictReady:
        """Make the verdict on the case of *wish*."""
        assert wish.block.case_id
        return VerdictReady(
            **JUDGED,
            tenant_id=self.tenant_id,
            submission_id=uuid4(),
            case_id=wish.block.case_id,
            graph_id="1",
            conclusion=conclusion,
            verdict="noThreatsFound" if conclusion is Conclusion.CLEAN else "threatsFound",
            settings_read=True,
            read_at=facts.get("read_at", datetime.now(UTC)),
        )


def received(event: Any) -> Received[Any]:
    """Wrap an event as Kafka delivers it."""
    return Received(event, Envelope(str(uuid4()), "/test", "test", datetime.now(UTC), TRACE))


async def until(condition: Callable[[], object]) -> None:
    """Wait for *condition*."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def world(
    database: str, microsoft: Simulator, tenant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """Blocklist with nothing done yet, and a tenant with an empty list. Pauses end by `pass_time` only."""
    monkeypatch.setattr("blocklist.worker.backoff", lambda _attempts, **_limits: HOUR)
    db = Database(database, schema="blocklist")
    await db.open(Path(blocklist.__file__).parent / "migrations")
    async with open_session(microsoft.ca_file) as session:
        world = World(db, microsoft, tenant_id, session)
        yield world
        await world.tokens.close()
    await db.close()


async def test_a_wish_becomes_one_entry(world: World) -> None:
    """With the end that was asked for, and notes by which it is known again."""
    wish = world.wish()
    await world.ask(wish)
    (applied,) = await world.work()

    assert isinstance(applied, BlockApplied)
    assert (applied.block, applied.already_present) == (wish.block, False)
    (entry,) = world.ledger("tenant_blocks")
    assert (entry["list_type"], entry["value"], entry["action"]) == ("Sender", SENDER, "Block")
    assert str(wish.block.block_id) in entry["notes"]
    assert str(wish.block.case_id) in entry["notes"]
    assert wish.block.expires_at
    assert abs(datetime.fromisoformat(entry["expires"]) - wish.block.expires_at) < timedelta(seconds=1)
    assert world.calls(GET) == 0


async def test_a_url_becomes_an_entry_of_the_list_of_urls(world: World) -> None:
    """Info in the version of the events that knows URLs; lifted like any other block; told apart from its domain."""
    domain = world.wish("pay.phish.example")
    url, page = (
        world.url_wish("https://pay.phish.example/?id=anna"),
        world.url_wish("https://Pay.Phish.example/a/B?x#y"),
    )
    await world.ask(url, page, domain)
    told = {event.block.block_id: event for event in await world.work()}

    assert [type(told[wish.block.block_id]) for wish in (url, page, domain)] == [
        BlockApplied, BlockApplied, BlockApplied,
    ]  # fmt: skip
    assert told[url.block.block_id].block == url.block
    assert sorted((entry["list_type"], entry["value"]) for entry in world.ledger("tenant_blocks")) == [
        ("Sender", "pay.phish.example"),
        ("Url", "pay.phish.example"),
        ("Url", "pay.phish.example/a/b"),
    ]
    await world.judge(world.verdict(url))
    (removed,) = await world.work()
    assert isinstance(removed, BlockRemoved)
    assert [entry["list_type"] for entry in world.ledger("removals")] == ["Url"]


async def test_a_url_whose_answer_was_lost_is_looked_for(world: World) -> None:
    """It is blocked once, and known as ours."""
    world.fault(NEW, "drop_after_effect")
    await world.ask(world.url_wish("https://pay.phish.example/1"))
    assert await world.work() == []
    await world.pass_time()
    (applied,) = await world.work()
    assert isinstance(applied, BlockApplied)
    assert not applied.already_present
    assert len(world.ledger("tenant_blocks")) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://portal.contoso.example/x", "own-domain"),
        ("https://mail.example/", "protected-domain"),
        ("https://docs.google.com/", "protected-domain"),
        ("ftp://phish.example/", "invalid"),
    ],
)
async def test_a_url_that_must_not_be_blocked_is_refused(world: World, url: str, reason: str) -> None:
    """Own sites, sites that millions share, and what the list cannot hold."""
    rows = [{"DomainName": "contoso.example", "MatchSubDomains": True}]
    world.tenant.settings.cmdlets["Get-AcceptedDomain"] = rows
    await world.ask(world.url_wish(url))
    (failed,) = await world.work()
    assert isinstance(failed, BlockFailed)
    assert failed.reason == reason
    assert world.ledger("tenant_blocks") == []


async def test_a_wish_without_an_end_never_expires(world: World) -> None:
    """Exchange's own default would be 30 days."""
    await world.ask(world.wish("fabrikam.example", lasts=None))
    await world.work()
    assert world.ledger("tenant_blocks")[0]["expires"] is None


async def test_an_address_with_special_characters_is_encoded(world: World) -> None:
    """As the Tenant Allow/Block List wants it; it is found again by the same spelling."""
    first, second = world.wish("a+b@fabrikam.example"), world.wish("a+b@fabrikam.example")
    await world.ask(first)
    await world.work()
    await world.ask(second)
    (applied,) = await world.work()

    assert applied.already_present
    assert [entry["value"] for entry in world.ledger("tenant_blocks")] == ["a%2Bb@fabrikam.example"]


async def test_events_that_are_delivered_again_act_once(world: World) -> None:
    """Within a batch, in a later one, and after the outcome."""
    wish = world.wish()
    await world.ask(wish, wish)
    await world.ask(wish)
    first = await world.work()
    await world.ask(wish)
    again = await world.work()
    await world.judge(world.verdict(wish), world.verdict(wish))
    lifted = await world.work()
    await world.judge(world.verdict(wish))
    await world.ask(wish)

    assert ([type(event) for event in first], again) == ([BlockApplied], [])
    assert [type(event) for event in lifted] == [BlockRemoved]
    assert await world.work() == []
    assert len(world.ledger("tenant_blocks")) == len(world.ledger("removals")) == 1


async def test_two_cases_that_block_the_same_sender_make_one_entry(world: World) -> None:
    """Asked for at once, or one after the other: who comes second finds it there."""
    first, second, third = world.wish(), world.wish("BAD@fabrikam.example"), world.wish()
    await world.ask(first, second)
    at_once = await world.work()
    await world.ask(third)
    later = await world.work()

    assert {event.block.block_id: event.already_present for event in at_once + later} == {
        first.block.block_id: False,
        second.block.block_id: True,
        third.block.block_id: True,
    }
    assert len(world.ledger("tenant_blocks")) == 1


async def test_the_entry_lasts_as_long_as_any_block_wants_it(world: World) -> None:
    """It is extended for a later end, and left alone for an earlier one."""
    await world.ask(world.wish(lasts=7 * DAY))
    await world.work()
    await world.ask(world.wish(lasts=DAY))
    await world.work()
    assert world.ledger("changes") == []

    await world.ask(world.wish(lasts=30 * DAY))
    await world.work()
    (change,) = world.ledger("changes")
    left = datetime.fromisoformat(change["expires"]) - datetime.now(UTC)
    assert 29 * DAY < left < 31 * DAY

    await world.ask(world.wish(lasts=None))
    await world.work()
    assert world.ledger("changes")[-1]["expires"] is None


async def test_an_entry_that_has_vanished_is_made_anew_for_all_who_want_it(world: World) -> None:
    """It lasts as long as the longest of them, not as long as the one that found out."""
    await world.ask(world.wish(lasts=30 * DAY))
    await world.work()
    world.tenant.allow_block_list.remove(world.listed()[SENDER])
    await world.ask(world.wish(lasts=DAY))
    (applied,) = await world.work()

    assert not applied.already_present
    left = datetime.fromisoformat(world.ledger("tenant_blocks")[-1]["expires"]) - datetime.now(UTC)
    assert 29 * DAY < left < 31 * DAY


async def test_an_entry_of_somebody_else_counts_as_already_there(world: World) -> None:
    """Nothing is made and nothing is changed when it lasts long enough."""
    entry = world.put(SENDER)
    wish = world.wish()
    await world.ask(wish)
    (applied,) = await world.work()

    assert applied.already_present
    assert world.ledger("tenant_blocks") == world.ledger("changes") == []
    assert world.listed()[SENDER] is entry


async def test_an_entry_of_somebody_else_survives_a_clean_verdict(world: World) -> None:
    """The sender is still blocked, so nobody is told otherwise."""
    world.put(SENDER)
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    await world.judge(world.verdict(wish))

    assert await world.work() == []
    assert world.ledger("removals") == []
    assert SENDER in world.listed()


async def test_an_entry_of_somebody_else_gets_its_own_end_back(world: World) -> None:
    """Extended while we want it, and as it was afterwards."""
    world.put(SENDER, lasts=7 * DAY)
    wish = world.wish(lasts=None)
    await world.ask(wish)
    (applied,) = await world.work()
    assert (applied.already_present, world.listed()[SENDER].expires) == (True, None)

    await world.judge(world.verdict(wish))
    assert await world.work() == []
    expires = world.listed()[SENDER].expires
    assert expires
    assert abs(expires - world.state.clock.now() - 7 * DAY) < HOUR
    assert world.listed()[SENDER].notes == "by hand"


async def test_an_entry_of_somebody_else_that_was_extended_twice_gets_its_own_end_back(world: World) -> None:
    """Not the end that the first extension gave it."""
    world.put(SENDER, lasts=7 * DAY)
    first, second = world.wish(lasts=30 * DAY), world.wish(lasts=60 * DAY)
    for wish in (first, second):
        await world.ask(wish)
        await world.work()
    await world.judge(world.verdict(first), world.verdict(second))
    await world.work()

    expires = world.listed()[SENDER].expires
    assert expires
    assert abs(expires - world.state.clock.now() - 7 * DAY) < HOUR


async def test_an_entry_of_somebody_else_that_lives_by_our_extension_alone_is_removed(world: World) -> None:
    """It would have ended by now, but for us."""
    world.put(SENDER, lasts=DAY)
    wish = world.wish(lasts=None)
    await world.ask(wish)
    await world.work()
    await world.pass_time(2 * DAY)
    await world.judge(world.verdict(wish))
    (removed,) = await world.work()

    assert isinstance(removed, BlockRemoved)
    assert world.listed() == {}


async def test_an_entry_that_an_administrator_has_changed_since_stays_as_it_is(world: World) -> None:
    """Only what is still as we left it is put back."""
    entry = world.put(SENDER, lasts=7 * DAY)
    wish = world.wish(lasts=30 * DAY)
    await world.ask(wish)
    await world.work()
    entry.expires = None
    await world.judge(world.verdict(wish))

    assert await world.work() == []
    assert world.listed()[SENDER].expires is None


async def test_a_sender_that_the_tenant_allows_is_not_blocked(world: World) -> None:
    """Two entries for one value are impossible, and the administrator's word stands."""
    world.put(SENDER, action="Allow", lasts=DAY)
    await world.ask(world.wish())
    (failed,) = await world.work()

    assert isinstance(failed, BlockFailed)
    assert failed.reason == "refused"
    assert "allow" in failed.detail
    assert world.listed()[SENDER].action == "Allow"


@pytest.mark.parametrize("mailbox", [None, "user@contoso.example"])
async def test_what_must_not_be_blocked_fails_visibly(world: World, mailbox: str | None) -> None:
    """Exchange is not asked to make it, and it does not come up again."""
    reasons = {
        "contoso.example": "own-domain",
        "ceo@contoso.example": "own-domain",
        "mail.example": "protected-domain",
        "not an address@fabrikam.example": "invalid",
        "\x07@fabrikam.example": "invalid",
        "x" * 10_000 + "@fabrikam.example": "invalid",
        "localhost": "invalid",
    }
    wishes = [world.wish(value, mailbox=mailbox) if mailbox else world.wish(value) for value in reasons]
    await world.ask(*wishes)
    failed = await world.work()

    assert {event.block.value: event.reason for event in failed} == reasons
    assert sorted(event.block.block_id for event in failed) == sorted(wish.block.block_id for wish in wishes)
    assert world.calls(NEW) == world.calls(SET_JUNK) == 0
    await world.pass_time()
    assert await world.work() == []


async def test_a_refused_wish_does_not_harm_another_for_the_same_value(world: World) -> None:
    """The one calls the address a domain, the other does not."""
    wrong, right = world.wish(kind="domain"), world.wish()
    await world.ask(wrong, right)
    failed, applied = await world.work()

    assert (failed.block.block_id, failed.reason) == (wrong.block.block_id, "invalid")
    assert (applied.block.block_id, applied.already_present) == (right.block.block_id, False)


async def test_accepted_domains_are_asked_for_once_for_many_blocks(world: World) -> None:
    """They hardly ever change."""
    await world.ask(*(world.wish(f"bad{number}@fabrikam.example") for number in range(20)))
    events = await world.work()

    assert len(events) == len(world.ledger("tenant_blocks")) == 20
    assert world.calls("exchange.Get-AcceptedDomain") == 1


async def test_without_knowing_the_own_domains_nothing_is_blocked(world: World) -> None:
    """An empty answer is no answer: each tenant has a domain."""
    world.tenant.settings.cmdlets["Get-AcceptedDomain"] = []
    await world.ask(world.wish())

    assert await world.work() == []
    assert world.calls(NEW) == 0

    del world.tenant.settings.cmdlets["Get-AcceptedDomain"]
    await world.pass_time()
    (applied,) = await world.work()
    assert isinstance(applied, BlockApplied)


async def test_a_full_list_fails_as_limit(world: World) -> None:
    """In Exchange's own words: the administrator has to make room."""
    world.state.settings.list_block_limit = 0
    await world.ask(world.wish())
    (failed,) = await world.work()

    assert (failed.reason, "limit of 0 Block entries" in failed.detail) == ("limit", True)


async def test_what_exchange_refuses_fails_with_its_words(world: World) -> None:
    """Repeating it would not help."""
    world.fault(NEW, "refuse", message="The value can't be blocked.", times=None)
    await world.ask(world.wish())
    (failed,) = await world.work()

    assert (failed.reason, failed.detail) == ("refused", "The value can't be blocked.")
    assert world.calls(NEW) == 1


async def test_a_duplicate_that_is_not_listed_yet_is_looked_for_again(world: World) -> None:
    """Exchange's list may lag behind itself; nobody is told that the sender will not be blocked."""
    world.fault(NEW, "refuse", message=f"Invalid value to add: {SENDER} - Duplicate value.")
    await world.ask(world.wish())
    assert await world.work() == []

    world.put(SENDER)
    await world.pass_time()
    (applied,) = await world.work()
    assert (applied.already_present, world.ledger("tenant_blocks")) == (True, [])


async def test_throttled_with_retry_after_waits_as_long_as_it_says(world: World) -> None:
    """And leaves the whole tenant alone meanwhile."""
    world.fault(NEW, "throttle", retry_after=120)
    worker = world.worker()
    await world.ask(world.wish())
    assert await world.work(worker) == []
    assert timedelta(seconds=110) < await world.pause() <= timedelta(seconds=120)

    await world.ask(world.wish("other@fabrikam.example"))
    assert await world.work(worker) == []
    assert world.calls(NEW) == 1

    await world.pass_time()
    events = await world.work()
    assert [(type(event), event.already_present) for event in events] == [(BlockApplied, False)] * 2


async def test_throttled_without_retry_after_backs_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of Microsoft's services name no time."""
    monkeypatch.setattr("blocklist.worker.backoff", backoff)
    world.fault(NEW, "throttle")
    await world.ask(world.wish())
    before = datetime.now(UTC)
    assert await world.worker().settle_due() == 1
    due_at = await world.db.pool.fetchval("SELECT due_at FROM entries")
    assert await world.emitted() == []
    assert timedelta(0) < due_at - before
    assert due_at - datetime.now(UTC) <= timedelta(seconds=2)

    await world.pass_time()
    (applied,) = await world.work()
    assert isinstance(applied, BlockApplied)


async def test_being_throttled_is_no_reason_to_give_up(world: World) -> None:
    """Even after more than a day."""
    world.fault(NEW, "throttle", retry_after=600)
    await world.ask(world.wish())
    await world.pass_time(2 * DAY)
    assert await world.work() == []

    await world.pass_time()
    (applied,) = await world.work()
    assert isinstance(applied, BlockApplied)


@pytest.mark.parametrize("kind", ["drop_after_effect", "timeout"])
async def test_an_entry_whose_answer_was_lost_is_adopted(world: World, kind: str) -> None:
    """It is looked for before the call is repeated, and known by its notes."""
    world.fault(NEW, kind, seconds=600)
    await world.ask(world.wish())
    async with asyncio.timeout(60):
        while not world.ledger("tenant_blocks"):
            await world.pass_time()
            assert await world.work(world.worker(timeout=0.5)) == []

    await world.pass_time()
    (applied,) = await world.work()
    assert (applied.already_present, world.calls(NEW)) == (False, 1)
    assert len(world.ledger("tenant_blocks")) == 1


async def test_a_call_that_never_arrived_is_made_again(world: World) -> None:
    """After a look that finds nothing."""
    world.fault(NEW, "drop_before_effect")
    await world.ask(world.wish())
    assert await world.work() == []

    await world.pass_time()
    (applied,) = await world.work()
    assert (applied.already_present, world.calls(GET), world.calls(NEW)) == (False, 1, 2)
    assert len(world.ledger("tenant_blocks")) == 1


async def test_a_crash_between_the_effect_and_its_record_is_adopted(world: World) -> None:
    """Nobody has heard the answer; the lease runs out, and the next worker looks first."""
    world.fault(NEW, "timeout", seconds=600)
    await world.ask(world.wish())
    crash = asyncio.create_task(world.worker().settle_due())
    await until(lambda: world.ledger("tenant_blocks"))
    crash.cancel()
    await asyncio.wait([crash])
    assert await world.work() == []

    await world.pass_time(LEASE)
    (applied,) = await world.work()
    assert (applied.already_present, world.calls(NEW)) == (False, 1)


async def test_a_call_ends_before_its_claim_does(world: World) -> None:
    """Whatever it waits for: when the entry comes due again nobody calls about it any more."""
    world.fault(NEW, "timeout", seconds=600)
    await world.ask(world.wish())
    async with asyncio.timeout(60):
        while not world.ledger("tenant_blocks"):
            await world.pass_time()
            await world.worker(timeout=600, lease=timedelta(seconds=2)).settle_due()

    await world.pass_time()
    (applied,) = await world.work()
    assert (applied.already_present, world.calls(NEW)) == (False, 1)


async def test_who_has_lost_its_claim_leaves_the_entry_to_its_new_holder(world: World) -> None:
    """A process that was frozen goes on when somebody else works on its entry: it postpones nothing."""
    world.fault(NEW, "error", status=503)
    await world.ask(world.wish())
    zombie = world.worker()
    async with world.db.transaction() as tx:
        (stale,) = await store.claim(tx, LEASE, 1)
    await world.pass_time(LEASE)
    async with world.db.transaction() as tx:
        (held,) = await store.claim(tx, LEASE, 1)
    await zombie._settle(stale, LEASE.total_seconds() + asyncio.get_running_loop().time())

    async with world.db.transaction() as tx:
        assert await store.holds(tx, held)
        assert not await store.holds(tx, stale)


async def test_a_lost_answer_to_an_extension_does_not_lose_the_entrys_own_end(world: World) -> None:
    """Somebody else's entry is put back as it was all the same."""
    world.put(SENDER, lasts=7 * DAY)
    world.fault(SET, "drop_after_effect")
    wish = world.wish(lasts=None)
    await world.ask(wish)
    assert await world.work() == []
    await world.pass_time()
    (applied,) = await world.work()
    assert applied.already_present

    await world.judge(world.verdict(wish))
    await world.work()
    expires = world.listed()[SENDER].expires
    assert expires
    assert abs(expires - world.state.clock.now() - 7 * DAY) < HOUR


async def test_what_is_out_of_reach_for_a_day_is_given_up(world: World) -> None:
    """Not before: until then it is tried again."""
    world.fault("exchange.*", "error", times=None)
    await world.ask(world.wish())
    await world.pass_time(23 * HOUR)
    assert await world.work() == []

    await world.pass_time(2 * HOUR)
    (failed,) = await world.work()
    assert (failed.reason, "503" in failed.detail) == ("gave-up", True)


async def test_a_block_that_is_given_up_leaves_no_entry_behind(world: World) -> None:
    """A call without an answer may have made it, and everybody was told that it was not."""
    world.fault(NEW, "drop_after_effect")
    await world.ask(world.wish())
    await world.pass_time(25 * HOUR)
    (failed,) = await world.work()
    assert (failed.reason, list(world.listed())) == ("gave-up", [SENDER])

    await world.pass_time()
    assert await world.work() == []
    assert world.listed() == {}


async def test_a_block_whose_end_comes_before_it_could_be_made_is_given_up(world: World) -> None:
    """There is nothing left to block."""
    world.fault(NEW, "error")
    await world.ask(world.wish(lasts=HOUR))
    assert await world.work() == []

    await world.pass_time(2 * HOUR)
    (failed,) = await world.work()
    assert (failed.reason, world.ledger("tenant_blocks")) == ("gave-up", [])


async def test_without_permission_the_block_waits_for_it(world: World) -> None:
    """Once an administrator has granted the role, the block is made."""
    world.tenant.settings.apps[0].exchange_role = False
    await world.ask(world.wish())
    assert await world.work() == []

    world.tenant.settings.apps[0].exchange_role = True
    await world.pass_time()
    (applied,) = await world.work()
    assert isinstance(applied, BlockApplied)


async def test_a_clean_verdict_lifts_the_block(world: World) -> None:
    """Somebody's good mail is at stake."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    await world.judge(world.verdict(wish))
    (removed,) = await world.work()

    assert (removed.block, removed.reason) == (wish.block, "verdict-clean")
    assert [entry["value"] for entry in world.ledger("removals")] == [SENDER]
    assert world.listed() == {}


@pytest.mark.parametrize("conclusion", [Conclusion.THREAT, Conclusion.SIMULATION, Conclusion.UNKNOWN])
async def test_any_other_verdict_leaves_the_block(world: World, conclusion: Conclusion) -> None:
    """Only clean says that the block was wrong."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    await world.judge(world.verdict(wish, conclusion))

    assert await world.work() == []
    assert SENDER in world.listed()


async def test_a_verdict_that_overtakes_the_wish_keeps_it_from_being_made(world: World) -> None:
    """They lie on two topics."""
    wish = world.wish()
    await world.judge(world.verdict(wish))
    await world.ask(wish)
    (removed,) = await world.work()

    assert (removed.block, removed.reason) == (wish.block, "verdict-clean")
    assert world.ledger("tenant_blocks") == []


async def test_a_verdict_before_the_wish_is_worked_on_keeps_it_from_being_made(world: World) -> None:
    """The wish is stored, but Exchange has not been asked yet."""
    wish = world.wish()
    await world.ask(wish)
    await world.judge(world.verdict(wish))
    (removed,) = await world.work()

    assert removed.reason == "verdict-clean"
    assert world.ledger("tenant_blocks") == []


async def test_a_verdict_that_comes_while_the_entry_is_being_made_lifts_it(world: World) -> None:
    """Nobody is told that the sender is blocked."""
    world.fault(NEW, "timeout", seconds=600)
    wish = world.wish()
    await world.ask(wish)
    making = asyncio.create_task(world.worker().settle_due())
    await until(lambda: world.ledger("tenant_blocks"))
    await world.judge(world.verdict(wish))
    world.state.faults.release()
    await making
    (removed,) = await world.work()

    assert (removed.reason, world.listed()) == ("verdict-clean", {})


async def test_a_verdict_lifts_what_an_unanswered_call_has_made(world: World) -> None:
    """The block is looked for although nobody was told that it was applied."""
    world.fault(NEW, "drop_after_effect")
    wish = world.wish()
    await world.ask(wish)
    assert await world.work() == []
    await world.judge(world.verdict(wish))
    await world.pass_time()
    (removed,) = await world.work()

    assert (removed.reason, world.listed()) == ("verdict-clean", {})


async def test_a_block_in_spite_of_a_clean_verdict_stands(world: World) -> None:
    """Whoever asks for it afterwards knows the verdict; a verdict that is delivered again does not undo it."""
    first = world.wish()
    verdict = world.verdict(first, read_at=datetime.now(UTC) + HOUR)
    await world.ask(first)
    await world.judge(verdict)
    await world.work()
    in_spite = world.wish(case_id=first.block.case_id, requested_at=verdict.read_at + HOUR)
    await world.ask(in_spite)
    (applied,) = await world.work()
    await world.judge(verdict)

    assert (applied.block, await world.work()) == (in_spite.block, [])
    assert SENDER in world.listed()


async def test_a_clean_verdict_does_not_lift_what_another_case_wants(world: World) -> None:
    """The entry goes with the last block that wants it; then all hear of it."""
    clean, other = world.wish(), world.wish()
    await world.ask(clean)
    await world.work()
    await world.ask(other)
    await world.judge(world.verdict(clean))
    (applied,) = await world.work()
    assert (applied.block, applied.already_present) == (other.block, True)
    assert SENDER in world.listed()

    await world.judge(world.verdict(other))
    removed = await world.work()
    assert {(event.block.block_id, event.reason) for event in removed} == {
        (clean.block.block_id, "verdict-clean"),
        (other.block.block_id, "verdict-clean"),
    }
    assert world.listed() == {}


async def test_a_clean_verdict_of_another_tenant_changes_nothing(world: World) -> None:
    """Tenants share nothing, not even the ids of cases."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    await world.judge(world.verdict(wish).model_copy(update={"tenant_id": uuid4()}))

    assert await world.work() == []
    assert SENDER in world.listed()


async def test_lifting_what_is_gone_already_succeeds(world: World) -> None:
    """An administrator was faster."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    world.tenant.allow_block_list.remove(world.listed()[SENDER])
    await world.judge(world.verdict(wish))
    (removed,) = await world.work()
    assert removed.reason == "verdict-clean"


async def test_lifting_what_goes_between_the_look_and_the_removal_succeeds(world: World) -> None:
    """Exchange refuses to remove what is not there; another look tells why."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    world.fault(GET, "timeout", seconds=600)
    await world.judge(world.verdict(wish))
    lifting = asyncio.create_task(world.worker().settle_due())
    await until(lambda: world.state.ledger.contents()["answers"].get(GET))
    world.tenant.allow_block_list.remove(world.listed()[SENDER])
    world.state.faults.release()
    await lifting
    (removed,) = await world.emitted()

    assert (removed.reason, world.calls(REMOVE)) == ("verdict-clean", 1)


async def test_a_removal_whose_answer_was_lost_happens_once(world: World) -> None:
    """The next attempt finds nothing to remove."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    world.fault(REMOVE, "drop_after_effect")
    await world.judge(world.verdict(wish))
    assert await world.work() == []

    await world.pass_time()
    (removed,) = await world.work()
    assert removed.reason == "verdict-clean"
    assert len(world.ledger("removals")) == world.calls(REMOVE) == 1


async def test_lifting_is_never_given_up(world: World) -> None:
    """However long Exchange refuses or is away."""
    wish = world.wish()
    await world.ask(wish)
    await world.work()
    world.fault(REMOVE, "refuse", times=2)
    await world.judge(world.verdict(wish))
    assert await world.work() == []
    await world.pass_time(7 * DAY)
    assert await world.work() == []

    await world.pass_time()
    (removed,) = await world.work()
    assert (removed.reason, world.listed()) == ("verdict-clean", {})


async def test_an_expired_block_is_told_and_needs_no_removal(world: World) -> None:
    """Exchange removes an entry by itself when its end comes."""
    wish = world.wish(lasts=7 * DAY)
    await world.ask(wish)
    await world.work()
    assert 6 * DAY < await world.pause() <= 7 * DAY

    await world.pass_time(8 * DAY)
    (removed,) = await world.work()
    assert (removed.block, removed.reason) == (wish.block, "expired")
    assert world.ledger("removals") == []


async def test_a_block_that_expires_waits_for_those_that_last_longer(world: World) -> None:
    """The sender is blocked until the last of them ends."""
    short, long = world.wish(lasts=7 * DAY), world.wish(lasts=30 * DAY)
    await world.ask(short, long)
    await world.work()
    await world.pass_time(8 * DAY)
    assert await world.work() == []
    assert SENDER in world.listed()

    await world.pass_time(30 * DAY)
    removed = await world.work()
    assert [event.reason for event in removed] == ["expired", "expired"]
    assert world.listed() == {}


async def test_an_entry_that_outlives_the_block_it_was_extended_for_is_removed(world: World) -> None:
    """The block for ever was withdrawn; the one for a week is over."""
    short, ever = world.wish(lasts=7 * DAY), world.wish(lasts=None)
    await world.ask(short, ever)
    await world.work()
    await world.judge(world.verdict(ever))
    assert await world.work() == []

    await world.pass_time(8 * DAY)
    removed = await world.work()
    assert [event.reason for event in removed] == ["expired", "verdict-clean"]
    assert world.listed() == {}


async def test_a_sender_can_be_blocked_again_after_the_block_has_ended(world: World) -> None:
    """A new wish, a new entry."""
    first, second = world.wish(), world.wish()
    await world.ask(first)
    await world.work()
    await world.judge(world.verdict(first))
    await world.work()
    await world.ask(second)
    (applied,) = await world.work()

    assert (applied.block, applied.already_present) == (second.block, False)
    assert SENDER in world.listed()


async def test_a_user_blocks_a_sender_for_their_own_mailbox(world: World) -> None:
    """In Outlook's Blocked Senders, beside what is there; other mailboxes and the tenant are untouched."""
    mailbox = world.tenant.add_mailbox("user@contoso.example")
    mailbox.blocked = ["other@fabrikam.example"]
    wish = world.wish(mailbox="user@contoso.example")
    await world.ask(wish)
    (applied,) = await world.work()

    assert (applied.block, applied.already_present) == (wish.block, False)
    assert mailbox.blocked == ["other@fabrikam.example", SENDER]
    assert [entry["value"] for entry in world.ledger("mailbox_blocks")] == [SENDER]
    assert world.listed() == {}


async def test_a_sender_that_the_mailbox_blocks_already_is_left_alone(world: World) -> None:
    """Nothing is written."""
    world.tenant.add_mailbox("user@contoso.example").blocked = [SENDER]
    await world.ask(world.wish(mailbox="user@contoso.example"))
    (applied,) = await world.work()

    assert (applied.already_present, world.calls(SET_JUNK)) == (True, 0)


async def test_a_full_mailbox_list_fails_as_limit(world: World) -> None:
    """Exchange drops the entry without a word."""
    world.state.settings.blocked_senders_limit = 0
    await world.ask(world.wish(mailbox="user@contoso.example"))
    (failed,) = await world.work()
    assert failed.reason == "limit"


async def test_a_mailbox_that_does_not_exist_fails_with_exchanges_words(world: World) -> None:
    """It may have been deleted since the report."""
    await world.ask(world.wish(mailbox="nobody@elsewhere.example"))
    (failed,) = await world.work()
    assert (failed.reason, "nobody@elsewhere.example" in failed.detail) == ("refused", True)


async def test_a_mailbox_block_whose_answer_was_lost_is_adopted(world: World) -> None:
    """Its list keeps no notes, but somebody has just tried."""
    world.fault(SET_JUNK, "drop_after_effect")
    await world.ask(world.wish(mailbox="user@contoso.example"))
    assert await world.work() == []
    await world.pass_time()
    (applied,) = await world.work()

    assert (applied.already_present, world.calls(SET_JUNK)) == (False, 1)
    assert len(world.ledger("mailbox_blocks")) == 1


@pytest.mark.parametrize(
    ("kind", "more"),
    [("error", {"status": 503}), ("throttle", {"retry_after": 7}), ("drop_before_effect", {}), ("refuse", {})],
    ids=["server error", "throttled", "dropped", "refused"],
)
async def test_a_mailbox_block_that_could_not_be_checked_is_our_own(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, more: dict[str, Any]
) -> None:
    """Exchange took it, so what the next look finds is not somebody else's."""
    count_request = world.state.ledger.count_request

    def and_have_the_next_look_fail(route: str) -> None:
        count_request(route)
        if route == SET_JUNK:
            world.fault(GET_JUNK, kind, **more)

    monkeypatch.setattr(world.state.ledger, "count_request", and_have_the_next_look_fail)
    await world.ask(world.wish(mailbox="user@contoso.example"))
    assert await world.work() == []
    await world.pass_time()
    (applied,) = await world.work()

    assert (applied.already_present, world.calls(SET_JUNK)) == (False, 1)
    assert len(world.ledger("mailbox_blocks")) == 1


async def test_two_workers_never_take_the_same_entry(world: World) -> None:
    """What one has claimed is passed over by the other, before and after the claim is committed."""
    await world.ask(*(world.wish(f"bad{number}@fabrikam.example") for number in range(10)))
    async with world.db.transaction() as one, world.db.transaction() as other:
        first, second = await store.claim(one, LEASE, 6), await store.claim(other, LEASE, 6)

    assert {len(first), len(second)} == {6, 4}
    assert not {entry.value for entry in first} & {entry.value for entry in second}
    assert await world.work() == []


async def test_two_workers_at_the_same_time_make_each_entry_once(world: World) -> None:
    """However many there are."""
    await world.ask(*(world.wish(f"bad{number}@fabrikam.example") for number in range(30)))
    workers = [world.worker(batch=4) for _ in range(3)]
    results = await asyncio.gather(*(world.work(worker) for worker in workers))

    assert sum(map(len, results)) == len(world.ledger("tenant_blocks")) == world.calls(NEW) == 30


async def test_a_wish_for_an_entry_in_somebodys_hands_waits_its_turn(world: World) -> None:
    """Two cases, two workers, one entry."""
    world.fault(NEW, "timeout", seconds=600)
    first, second = world.wish(), world.wish()
    await world.ask(first)
    making = asyncio.create_task(world.worker().settle_due())
    await until(lambda: world.ledger("tenant_blocks"))
    await world.ask(second)
    assert await world.worker().settle_due() == 0

    world.state.faults.release()
    await making
    events = await world.work()
    assert {event.block.block_id: event.already_present for event in events} == {
        first.block.block_id: False,
        second.block.block_id: True,
    }
    assert world.calls(NEW) == 1


async def test_a_wish_that_is_stored_while_its_entry_is_being_recorded_is_not_forgotten(world: World) -> None:
    """The two transactions take turns: whichever is second sees the other."""
    world.fault(NEW, "timeout", seconds=600)
    first, second = world.wish(), world.wish()
    await world.ask(first)
    making = asyncio.create_task(world.worker().settle_due())
    await until(lambda: world.ledger("tenant_blocks"))
    async with world.db.transaction() as tx:
        await handlers.on_block_requested([received(second)], tx)
        world.state.faults.release()
        async with asyncio.timeout(20):
            while not await world.db.pool.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.01)
    await making
    events = await world.work()

    assert {event.block.block_id for event in events} == {first.block.block_id, second.block.block_id}


async def test_a_failure_with_one_entry_does_not_stop_the_others(world: World) -> None:
    """The database breaks one off; the rest is recorded, and the one comes due again."""
    await world.ask(world.wish(), world.wish("other@fabrikam.example"))
    await world.db.pool.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF new.value = 'bad@fabrikam.example' THEN RAISE 'broken'; END IF; RETURN new; END $$;"
        " CREATE TRIGGER fail BEFORE UPDATE ON blocks FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    with pytest.raises(asyncpg.RaiseError):
        await world.worker().settle_due()
    (applied,) = await world.emitted()
    assert applied.block.value == "other@fabrikam.example"

    await world.db.pool.execute("DROP TRIGGER fail ON blocks")
    await world.pass_time(LEASE)
    (applied,) = await world.work()
    assert (applied.block.value, applied.already_present, world.calls(NEW)) == (SENDER, False, 2)


async def test_blocks_that_ended_are_forgotten_with_their_case(world: World) -> None:
    """Failed, lifted and kept ones, with their entries and verdicts; those of other cases stay."""
    world.put("kept@fabrikam.example")
    failed, lifted = world.wish("mail.example"), world.wish()
    kept, other = world.wish("kept@fabrikam.example"), world.wish("mail.example")
    await world.ask(failed, lifted, kept)
    await world.work()
    await world.judge(world.verdict(lifted), world.verdict(kept))
    await world.work()
    assert await world.left() == {"blocks": 3, "entries": 3, "clean_verdicts": 2}

    await world.ask(other)
    await world.work()
    await world.expire(failed, lifted, kept)
    assert await world.left() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}
    assert len(world.ledger("removals")) == 1
    assert await world.work() == []


async def test_a_block_that_stands_outlives_its_case_and_is_lifted_when_its_time_comes(world: World) -> None:
    """Then it is forgotten too."""
    wish = world.wish(lasts=60 * DAY)
    await world.ask(wish)
    await world.work()
    await world.pass_time(40 * DAY)
    await world.expire(wish)
    assert await world.left() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}
    assert await world.work() == []

    await world.pass_time(21 * DAY)
    (removed,) = await world.work()
    assert isinstance(removed, BlockRemoved)
    assert (removed.block, removed.reason) == (wish.block, "expired")
    assert await world.left() == {"blocks": 0, "entries": 0, "clean_verdicts": 0}


async def test_a_block_that_never_ends_is_never_forgotten(world: World) -> None:
    """It is in force, and only this row says whose it is."""
    wish = world.wish(lasts=None)
    await world.ask(wish)
    await world.work()
    await world.expire(wish)
    await world.pass_time(4000 * DAY)
    assert await world.work() == []
    assert await world.left() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}


async def test_the_block_that_made_an_entry_is_remembered_while_another_wants_the_entry(world: World) -> None:
    """The entry carries its id: without its row, the entry would look like somebody else's and stay for ever."""
    maker, heir = world.wish(lasts=20 * DAY), world.wish(lasts=60 * DAY)
    await world.ask(maker)
    await world.work()
    await world.ask(heir)
    await world.work()
    await world.pass_time(40 * DAY)
    await world.expire(maker)
    await world.judge(world.verdict(heir))
    events = await world.work()

    assert {event.block.block_id for event in events if isinstance(event, BlockRemoved)} == {
        maker.block.block_id,
        heir.block.block_id,
    }
    assert SENDER not in world.listed()
    assert await world.left() == {"blocks": 1, "entries": 1, "clean_verdicts": 1}
    await world.expire(heir)
    assert await world.left() == {"blocks": 0, "entries": 0, "clean_verdicts": 0}


async def test_nothing_is_forgotten_while_a_call_about_the_entry_is_unanswered(world: World) -> None:
    """The call may have made an entry, and the next attempt must know it as ours."""
    wish = world.wish()
    await world.ask(wish)
    async with world.db.transaction() as tx:
        await store.claim(tx, LEASE, 1)
    await world.db.pool.execute("UPDATE blocks SET state = 'failed'")
    await world.expire(wish)
    assert await world.left() == {"blocks": 1, "entries": 1, "clean_verdicts": 0}

    await world.pass_time()
    await world.work()
    assert await world.left() == {"blocks": 0, "entries": 0, "clean_verdicts": 0}


async def test_a_mailboxs_own_block_belongs_to_no_case(world: World) -> None:
    """It stays, whatever expires."""
    own = world.wish(mailbox="user@contoso.example")
    await world.ask(own)
    await world.work()
    await world.expire(own, world.wish())
    assert (await world.left())["blocks"] == 1


async def test_a_clean_verdict_that_comes_after_its_case_expired_is_forgotten_by_its_age(world: World) -> None:
    """Its topic keeps it for longer than a case must be kept."""
    wish = world.wish()
    await world.expire(wish)
    await world.judge(world.verdict(wish), world.verdict(world.wish(), read_at=datetime.now(UTC) - 61 * DAY))
    await world.worker().forget_verdicts()
    assert await world.left() == {"blocks": 0, "entries": 0, "clean_verdicts": 1}
