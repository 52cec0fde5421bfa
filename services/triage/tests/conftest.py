"""Triage on a real PostgreSQL: events in, what it emits, and its API."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

import triage
from backstop_contracts import (
    EVENTS,
    CaseUpdated,
    Cause,
    Conclusion,
    Delivery,
    Envelope,
    Folder,
    Message,
    MessageReported,
    ReportedAs,
    SubmissionRequested,
    VerdictReady,
)
from chassis.postgres import Database
from chassis.subscribing import Received
from chassis.testing import deliver
from conftest import JUDGED
from triage import handlers
from triage.http import make_router
from triage.rules import Policy

MODELS = {model.topic(): model for model in EVENTS}
AUTHENTICATED = Delivery(dmarc="pass", header_from="fabrikam.example")


@pytest.fixture
async def connect(database: str) -> AsyncIterator[Callable[..., Any]]:
    """Open triage's own database, once for each replica."""
    opened = []

    async def connect() -> Database:
        db = Database(database, schema="triage")
        await db.open(Path(triage.__file__).parent / "migrations")
        opened.append(db)
        return db

    yield connect
    for db in opened:
        await db.close()


@pytest.fixture
async def db(connect: Any) -> Database:
    """Open triage's own database."""
    opened: Database = await connect()
    return opened


@pytest.fixture
async def client(db: Database, call: Any) -> Any:
    """Return a client of triage's API."""
    return await call(make_router(db))


class World:
    """Triage's handlers and database: consumes events, and returns what was emitted."""

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    """The W3C traceparent of all events that are consumed."""
    auto = Policy.model_validate(
        {
            "rule": [
                {"name": "auto", "when": {"folder": ["inbox"]}, "then": {"submit": "as-reported", "block": "sender"}}
            ]
        }
    )
    """A policy that submits every message from an Inbox and blocks its sender."""

    def __init__(self, db: Database) -> None:
        self.db = db

    @staticmethod
    def report(tenant_id: UUID, message_id: str = "<a@fabrikam.example>", **facts: Any) -> MessageReported:
        """Make a report of a message that DMARC has passed."""
        about = ("report_id", "reporter", "reporter_id", "reported_as", "folder", "decision")
        said = {name: facts.pop(name) for name in about if name in facts}
        sender = {"sender": "bad@fabrikam.example", "sender_domain": "fabrikam.example", "delivery": AUTHENTICATED}
        message = {"sha256": "0" * 64, "size": 1, "internet_message_id": message_id, **sender, **facts}
        return MessageReported.model_validate(
            {
                "tenant_id": tenant_id,
                "report_id": uuid4(),
                "reporter": "user@contoso.example",
                "reported_as": ReportedAs.PHISHING,
                "folder": Folder.INBOX,
                "channel": "api",
                "reported_at": datetime.now(UTC),
                "message": Message(**message),
                **said,
            }
        )

    @classmethod
    def received(cls, event: Any) -> Received[Any]:
        """Wrap an event as its handler receives it."""
        return Received(event, Envelope(str(uuid4()), "/test", "test", datetime.now(UTC), cls.trace))

    @staticmethod
    def verdict(request: SubmissionRequested, conclusion: Conclusion, override: str | None = None) -> VerdictReady:
        """Make the verdict of a submission."""
        return VerdictReady(
            **JUDGED,
            tenant_id=request.tenant_id,
            submission_id=request.submission_id,
            case_id=request.case_id,
            graph_id="g",
            conclusion=conclusion,
            override=override,
            verdict="threatsFound",
            causes=(Cause(rule="R17", title="The filter missed it", evidence=("result threatsFound",)),),
            settings_read=True,
            read_at=datetime.now(UTC),
        )

    @staticmethod
    def of(events: Sequence[Any], model: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in events if isinstance(event, model)]

    async def consume(self, *events: Any, policy: Policy | None = None, time: datetime | None = None) -> None:
        """Deliver events, those of one topic that follow each other as one batch."""
        await deliver(handlers.router, self.db, *events, policy=policy or Policy(), traceparent=self.trace, time=time)

    async def emitted(self) -> list[Any]:
        """Take the events out of the outbox."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        assert all(orjson.loads(row["headers"])["traceparent"] for row in rows)
        return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]

    async def take(self, *reports: MessageReported, policy: Policy | None = None) -> list[Any]:
        """Consume reports as one batch; return what was emitted."""
        await self.consume(*reports, policy=policy)
        return await self.emitted()

    async def open_case(self, tenant_id: UUID, message_id: str | None = None, **facts: Any) -> UUID:
        """Open a case; return its id."""
        events = await self.take(self.report(tenant_id, message_id or f"<{uuid4()}@fabrikam.example>", **facts))
        return UUID(str(self.of(events, CaseUpdated)[-1].case_id))

    async def submitted(self, tenant_id: UUID) -> SubmissionRequested:
        """Open a case that the policy submits, and whose sender it blocks."""
        events = await self.take(self.report(tenant_id, f"<{uuid4()}@fabrikam.example>"), policy=self.auto)
        request: SubmissionRequested
        (request,) = self.of(events, SubmissionRequested)
        return request


@pytest.fixture
def world(db: Database) -> World:
    """Return triage with an empty database."""
    return World(db)
