"""Submitter's database, mail store and workers, and the simulator that they call; its ledger is the witness."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

import submitter
from backstop_contracts import EVENTS, Actor, Category, Event, Message, SubmissionRequested
from chassis.postgres import Database
from chassis.testing import deliver
from chassis.worker import Lease
from m365 import M365Settings, connect
from mail import MailStore
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.faults import Fault
from submitter import handlers
from submitter.rules import Quota
from submitter.worker import Worker

MODELS = {model.topic(): model for model in EVENTS}
RECIPIENT = "user@contoso.example"


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    """Open submitter's own database."""
    db = Database(database, schema="submitter")
    await db.open(Path(submitter.__file__).parent / "migrations")
    yield db
    await db.close()


class World:
    """The service's database and mail store, and the Microsoft that its workers call about one tenant."""

    def __init__(self, db: Database, microsoft: Simulator, tenant_id: UUID) -> None:
        self._db = db
        self._microsoft = microsoft
        self._tenant_id = tenant_id
        self._mails = MailStore("memory:///")

    @asynccontextmanager
    async def start(
        self,
        quota: Quota | None = None,
        batch: int = 8,
        lease: timedelta = timedelta(minutes=3),
        missing_after: timedelta = timedelta(0),
        mails: MailStore | None = None,
    ) -> AsyncIterator[Worker]:
        """Start a worker; several of them are replicas on the same database."""
        microsoft = self._microsoft
        settings = M365Settings(client_id=DEFAULT_APP, client_secret=DEFAULT_SECRET, graph_url=microsoft.url)
        async with connect(settings, authority=microsoft.url, ca_file=microsoft.ca_file) as (graph, _):
            yield Worker(
                self._db,
                graph,
                mails or self._mails,
                quota or Quota(),
                batch,
                lease=Lease(lease),
                missing_after=missing_after,
            )

    async def request(
        self, *, tenant_id: UUID | None = None, message_id: str | None = None, stored: bool = True, **more: Any
    ) -> SubmissionRequested:
        """Request the submission of a message, twice. Unless *stored*, the mail store does not have it."""
        tenant_id = tenant_id or self._tenant_id
        message_id = message_id or f"<{uuid4()}@fabrikam.example>"
        head = f"From: bad@fabrikam.example\r\nTo: {RECIPIENT}\r\nSubject: Hello\r\nMessage-ID: {message_id}"
        raw = f"{head}\r\n\r\nHi".encode()
        sha256 = await self._mails.put(str(tenant_id), raw) if stored else "0" * 64
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
        await self.consume(event, event)
        return event

    async def consume(self, *events: Event) -> None:
        """Deliver events as one batch of their topic."""
        await deliver(handlers.router, self._db, *events)

    async def emitted(self) -> list[Any]:
        """Take the events out of the outbox."""
        rows = await self._db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]

    async def make_due(self) -> None:
        """Make all submissions due now, and end the pauses of throttled tenants."""
        await self._db.pool.execute("UPDATE submissions SET due_at = now() WHERE state = 'due'")
        await self._db.pool.execute("DELETE FROM throttled")

    async def pass_time(self, how_long: timedelta = timedelta(0)) -> None:
        """Let *how_long* pass, and every pause before the next attempt."""
        await self._db.pool.execute(
            "UPDATE submissions SET due_at = now(), sent_at = sent_at - $1::interval,"
            " failing_since = failing_since - $1::interval, requested_at = requested_at - $1::interval"
            " WHERE state = 'due'",
            how_long,
        )
        await self._db.pool.execute("UPDATE calls SET at = at - $1::interval", how_long)
        await self._db.pool.execute("DELETE FROM throttled")

    def made(self) -> list[dict[str, Any]]:
        """Return the submissions that Microsoft has."""
        return list(self._microsoft.state.ledger.contents()["submissions"])

    def order_fault(self, **fault: Any) -> None:
        """Have the simulator commit a fault: once, and when a submission is created, unless *fault* says otherwise."""
        values = {"route": "graph.emailThreats.create", "times": 1, **fault}
        self._microsoft.state.faults.order([Fault(**values)])


@pytest.fixture
def world(db: Database, microsoft: Simulator, tenant_id: UUID) -> World:
    """Return the service with an empty database and an empty mail store."""
    return World(db, microsoft, tenant_id)
