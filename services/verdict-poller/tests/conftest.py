"""Verdict-poller's database and workers, and the Microsoft 365 to which messages are submitted."""

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

import verdict_poller
from backstop_contracts import Category, Event, Message, SubmissionCreated, VerdictReady
from chassis.postgres import Database
from chassis.testing import deliver
from chassis.worker import Lease
from m365 import Graph, M365Settings, connect
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from verdict_poller import handlers, store
from verdict_poller.poll_schedule import Schedule
from verdict_poller.worker import PATH, Explainer, Poller

LEASE = Lease(timedelta(minutes=5))
SCHEDULE = Schedule((60, 60, 180), 30)
RECIPIENT = "user@contoso.example"


class World:
    """The workers of a replica, and one tenant of Microsoft's."""

    def __init__(
        self, db: Database, microsoft: Simulator, graph: Graph, poller: Poller, explainer: Explainer, tenant_id: UUID
    ) -> None:
        self.db = db
        self.microsoft = microsoft
        self.graph = graph
        self.poller = poller
        self.explainer = explainer
        self.tenant_id = tenant_id

    async def watch(self, subject: str = "Hello", sender: str = "bad@fabrikam.example", body: str = "Hi") -> UUID:
        """Submit a message to Microsoft and watch the submission."""
        message_id = f"<{uuid4()}@fabrikam.example>"
        raw = f"From: {sender}\nTo: {RECIPIENT}\nSubject: {subject}\nMessage-ID: {message_id}\n\n{body}"
        content = {
            "@odata.type": "#microsoft.graph.security.emailContentThreatSubmission",
            "category": "phishing",
            "recipientEmailAddress": RECIPIENT,
            "fileContent": base64.b64encode(raw.encode()).decode(),
        }
        entity = await self.graph.post(self.tenant_id, PATH, content)
        event = SubmissionCreated(
            tenant_id=self.tenant_id,
            submission_id=uuid4(),
            case_id=uuid4(),
            graph_id=entity["id"],
            category=Category.PHISHING,
            recipient=RECIPIENT,
            folders=("inbox", "junk"),
            adopted=False,
            message=Message(sha256="0" * 64, size=1, internet_message_id=message_id, sender=sender, subject=subject),
            created_at=datetime.fromisoformat(entity["createdDateTime"]),
        )
        await self.consume(event, event)
        return event.submission_id

    async def consume(self, *events: Event) -> None:
        """Deliver events, one batch per topic."""
        await deliver(handlers.router, self.db, *events, schedule=SCHEDULE)

    async def answer(self, submission_id: UUID, verdict: str, detail: str) -> None:
        """Record a final answer of Microsoft's."""
        answer = {"status": "succeeded", "result": {"category": verdict, "detail": detail}}
        async with self.db.transaction() as tx:
            await store.record_results(tx, {submission_id: answer})

    async def make_due(self) -> None:
        """Let time pass until every watch is due."""
        await self.db.pool.execute("UPDATE watches SET due_at = now() WHERE state <> 'published'")

    async def published(self) -> list[VerdictReady]:
        """Take the verdicts out of the outbox."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        return [VerdictReady.model_validate_json(row["payload"]) for row in rows]

    def requests(self, route: str) -> int:
        """Count the requests on a route."""
        return int(self.microsoft.state.ledger.contents()["requests"].get(route, 0))


Worlds = Callable[[UUID], AbstractAsyncContextManager[World]]


@pytest.fixture
async def open_world(database: str, microsoft: Simulator) -> AsyncIterator[Worlds]:
    """Return a function that connects one more replica, for a tenant."""
    db = Database(database, schema="verdict_poller")
    await db.open(Path(verdict_poller.__file__).parent / "migrations")
    settings = M365Settings(
        client_id=DEFAULT_APP, client_secret=DEFAULT_SECRET, graph_url=microsoft.url, exchange_url=microsoft.url
    )

    @asynccontextmanager
    async def open_world(tenant_id: UUID) -> AsyncIterator[World]:
        async with connect(settings, authority=microsoft.url, ca_file=microsoft.ca_file) as (graph, exchange):
            poller = Poller(db, graph, SCHEDULE, LEASE)
            explainer = Explainer(db, exchange, batch=100, settings_ttl=timedelta(minutes=5), lease=LEASE)
            yield World(db, microsoft, graph, poller, explainer, tenant_id)

    yield open_world
    await db.close()


@pytest.fixture
async def world(open_world: Worlds, microsoft: Simulator, tenant_id: UUID) -> AsyncIterator[Any]:
    """Return a replica that has done nothing yet."""
    microsoft.state.settings.submissions_per_window = 10_000
    async with open_world(tenant_id) as world:
        yield world
