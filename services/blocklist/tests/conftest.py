"""Blocklist's database and workers, and the Exchange Online that they reach; the simulator's ledger is the witness."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import orjson
import pytest
from pydantic import SecretStr

import blocklist
from backstop_contracts import EVENTS, Actor, Block, BlockRequested, CaseExpired, Conclusion, VerdictReady
from blocklist import handlers
from blocklist.exchange_lists import ExchangeLists
from blocklist.worker import Worker
from chassis.postgres import Database
from chassis.testing import deliver
from chassis.worker import Lease
from conftest import JUDGED
from m365 import Credential, Exchange, Tokens, open_session
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.allow_block_list import ListEntry
from simulator.faults import Fault

MODELS = {model.topic(): model for model in EVENTS}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SENDER = "bad@fabrikam.example"
PROTECTED = frozenset({"mail.example"})
LEASE = timedelta(minutes=4)
MONTH = timedelta(days=30)


class World:
    """The service as after a restart, its database, and one tenant with an empty list."""

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
        """Make a worker with empty caches, as after a restart. *timeout*, in seconds, applies to each call."""
        exchange = Exchange(self.tokens, self._session, base_url=self._url, timeout=timeout)
        return Worker(self.db, ExchangeLists(exchange), PROTECTED, batch, Lease(lease))

    async def settle(self, worker: Worker | None = None) -> list[Any]:
        """Settle all due entries; return the events that were emitted."""
        worker = worker or self.worker()
        while await worker.settle_due():
            pass
        return await self.emitted()

    async def emitted(self) -> list[Any]:
        """Take the events out of the outbox."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        assert all(orjson.loads(row["headers"])["traceparent"] == TRACE for row in rows)
        return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]

    async def consume(self, *events: BlockRequested | VerdictReady) -> None:
        """Deliver events as one batch of their topic."""
        await deliver(handlers.router, self.db, *events, traceparent=TRACE)

    async def expire_cases(self, *requests: BlockRequested) -> None:
        """Deliver the expiry of the requests' cases, twice."""
        now = datetime.now(UTC)
        events = [
            CaseExpired(
                tenant_id=self.tenant_id,
                case_id=request.block.case_id or uuid4(),
                report_count=1,
                last_active_at=now,
                expired_at=now,
            )
            for request in requests
        ]
        for _ in range(2):
            await deliver(handlers.router, self.db, *events)

    async def row_counts(self) -> dict[str, int]:
        """Count the rows of each table."""
        tables = ("blocks", "entries", "clean_verdicts")
        return {table: await self.db.pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables}

    async def pass_time(self, duration: timedelta = timedelta(0)) -> None:
        """Let *duration* pass, here and in Exchange, and end every pause before the next attempt."""
        self.state.clock.advance(duration.total_seconds())
        await self.db.pool.execute(
            "UPDATE blocks SET expires_at = expires_at - $1::interval, recorded_at = recorded_at - $1::interval",
            duration,
        )
        await self.db.pool.execute(
            "UPDATE entries SET due_at = CASE WHEN due_at < 'infinity' THEN least(due_at - $1::interval, now())"
            " ELSE due_at END, original_end = original_end - $1::interval, extended_end = extended_end - $1::interval",
            duration,
        )

    async def time_until_due(self) -> timedelta:
        """Return how long the only entry waits for its next attempt."""
        (due_at,) = [row["due_at"] for row in await self.db.pool.fetch("SELECT due_at FROM entries")]
        wait: timedelta = due_at - datetime.now(UTC)
        return wait

    async def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* is true."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

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

    def sender_entries(self) -> dict[str, ListEntry]:
        """Return the sender entries in force, by value."""
        return {e.value: e for e in self.tenant.allow_block_list.entries(self.state.clock.now(), "Sender")}

    def add_by_hand(self, value: str, *, action: str = "Block", lasts: timedelta | None = None) -> ListEntry:
        """Add an entry as an administrator."""
        now = self.state.clock.now()
        entry = ListEntry("Sender", value, action, now, now, now + lasts if lasts else None, "by hand", "an admin")
        self.tenant.allow_block_list.add(entry)
        return entry

    def request(self, value: str = SENDER, *, lasts: timedelta | None = MONTH, **facts: Any) -> BlockRequested:
        """Make a request for the tenant, in a case of its own, or for `mailbox`."""
        scope = "mailbox" if "mailbox" in facts else "tenant"
        requested_at = facts.pop("requested_at", datetime.now(UTC))
        block = {
            "block_id": uuid4(),
            "scope": scope,
            "kind": "url" if "://" in value else "sender" if "@" in value else "domain",
            "value": value,
            "expires_at": datetime.now(UTC) + lasts if lasts and scope == "tenant" else None,
            **({"report_id": uuid4()} if scope == "mailbox" else {"case_id": uuid4()}),
            **facts,
        }
        return BlockRequested(
            tenant_id=self.tenant_id,
            block=Block.model_validate(block),
            requested_by=Actor(kind="user", id="admin"),
            requested_at=requested_at,
        )

    def verdict(self, request: BlockRequested, conclusion: Conclusion = Conclusion.CLEAN, **facts: Any) -> VerdictReady:
        """Make the verdict on the case of *request*."""
        assert request.block.case_id
        return VerdictReady(
            **JUDGED,
            tenant_id=self.tenant_id,
            submission_id=uuid4(),
            case_id=request.block.case_id,
            graph_id="1",
            conclusion=conclusion,
            verdict="noThreatsFound" if conclusion is Conclusion.CLEAN else "threatsFound",
            settings_read=True,
            read_at=facts.get("read_at", datetime.now(UTC)),
        )


@pytest.fixture
def make_block() -> Callable[..., Block]:
    """Return a builder of blocks for a tenant; the kind follows from the value."""

    def build(value: str, **facts: Any) -> Block:
        kind = "sender" if "@" in value else "domain"
        return Block.model_validate({"block_id": uuid4(), "scope": "tenant", "kind": kind, "value": value, **facts})

    return build


@pytest.fixture
async def world(
    database: str, microsoft: Simulator, tenant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """Yield a service that has done nothing yet. Only `pass_time` ends its pauses."""
    monkeypatch.setattr("blocklist.worker.backoff", lambda _attempts, **_limits: timedelta(hours=1))
    db = Database(database, schema="blocklist")
    await db.open(Path(blocklist.__file__).parent / "migrations")
    async with open_session(microsoft.ca_file) as session:
        world = World(db, microsoft, tenant_id, session)
        yield world
        await world.tokens.close()
    await db.close()
