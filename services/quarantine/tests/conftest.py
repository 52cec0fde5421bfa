"""Quarantine's database and workers against the simulated Microsoft 365, and its HTTP routes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from fastapi import APIRouter
from pydantic import SecretStr

import outcomes
import quarantine
from backstop_contracts import EVENTS, Actor
from chassis.http import make_api
from chassis.postgres import Database
from m365 import Credential, Exchange, Graph, Tokens, open_session
from mail import MailStore
from quarantine import action_requests, store
from quarantine.actions import ActionWorker
from quarantine.digest import DigestWorker
from quarantine.http import make_router
from quarantine.links import LinkAction, Signer
from quarantine.message_source import MessageSource
from quarantine.notification_settings import QuarantineSettings, read_settings
from quarantine.pages import Pages
from quarantine.rendering import link_path, make_templates
from quarantine.rules import ActionKind
from quarantine.sync import SyncWorker
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.faults import Fault

KEY = "a-key-of-the-tests-that-is-long-enough-0001"
MODELS = {model.topic(): model for model in EVENTS}
ANNA, BEN = "anna@contoso.example", "ben@contoso.example"
ADMIN = Actor(kind="user", id="admin", name="admin@contoso.example")
Client = Callable[..., Awaitable[tuple[int, Any]]]


def write_eml(
    subject: str = "Parcel", *, sender: str = "parcels@fabrikam.example", to: str = ANNA, body: str = "Track it.\r\n"
) -> str:
    """Return a raw message."""
    return (
        f"From: Parcels <{sender}>\r\nTo: {to}\r\nSubject: {subject}\r\n"
        f"Message-ID: <{subject.replace(' ', '.')}@mail.example>\r\n"
        f"Date: Tue, 03 Mar 2026 08:02:14 +0000\r\n\r\n{body}"
    )


class World:
    """The parts of the service, new at each use, as after a restart: all state is in the database."""

    eml = staticmethod(write_eml)
    # How long to wait for an outcome that comes, and for one that does not.
    long, short = timedelta(minutes=1), timedelta(seconds=0.1)

    def __init__(
        self, db: Database, microsoft: Simulator, tenant_id: UUID, session: aiohttp.ClientSession, control: Any
    ) -> None:
        self.db = db
        self.tenant_id = tenant_id
        self.microsoft = microsoft
        self.state = microsoft.state
        self.tenant = microsoft.state.tenants[str(tenant_id)]
        self.tokens = Tokens(
            Credential(client_id=DEFAULT_APP, secret=SecretStr(DEFAULT_SECRET)), session, authority=microsoft.url
        )
        self._session = session
        self._control = control
        self.mail_store = MailStore("memory:///")

    def exchange(self, *, timeout: float = 10.0) -> Exchange:
        """Connect to Exchange Online; *timeout* in seconds is that of each call."""
        return Exchange(self.tokens, self._session, base_url=self.microsoft.url, timeout=timeout)

    def graph(self, *, timeout: float = 10.0) -> Graph:
        """Connect to Graph; *timeout* in seconds is that of each call."""
        return Graph(self.tokens, self._session, base_url=self.microsoft.url, timeout=timeout)

    def source(self) -> MessageSource:
        """Return a source of messages."""
        return MessageSource(self.exchange())

    def sync_worker(self, **options: Any) -> SyncWorker:
        """Return a worker whose next sync is due at once."""
        values: dict[str, Any] = {"every": timedelta(0), "sweep_every": timedelta(hours=6), "page_size": 100, **options}
        return SyncWorker(self.db, self.exchange(), [self.tenant_id], **values)

    async def sync(self, **options: Any) -> None:
        """Sync now, even if the sync was postponed."""
        await self.db.pool.execute("UPDATE syncs SET due_at = now()")
        assert await self.sync_worker(**options).sync_due() == 1

    def action_worker(self, *, timeout: float = 10.0) -> ActionWorker:
        """Return a worker that runs actions."""
        return ActionWorker(self.db, self.exchange(timeout=timeout), self.mail_store)

    async def run_actions(self) -> list[Any]:
        """Run all actions that are due; return the emitted events."""
        while await self.action_worker().run_due():
            pass
        return await self.emitted()

    @asynccontextmanager
    async def running_actions(self) -> AsyncIterator[None]:
        """Run actions as they come due."""

        async def run() -> None:
            worker = self.action_worker()
            while True:
                await worker.run_due()
                await asyncio.sleep(0.02)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def make_actions_due(self) -> None:
        """End every wait before a retry."""
        await self.db.pool.execute("UPDATE actions SET due_at = now() WHERE state = 'pending'")

    async def request(self, kind: ActionKind, *, subject: str = "Parcel", recipient: str = ANNA) -> UUID:
        """Request an action on a message as an admin; return its id."""
        row = (await self.messages())[subject, recipient]
        messages = await store.find_messages(self.db.pool, self.tenant_id, [row["message_id"]])
        async with self.db.transaction() as tx:
            (action_id,) = await action_requests.request_actions(tx, messages, kind, by=ADMIN, reason="known")
        return action_id

    async def action(self, action_id: UUID) -> store.Action:
        """Return an action."""
        (action,) = await store.find_actions(self.db.pool, self.tenant_id, [action_id])
        return action

    def digest_worker(self, *, timeout: float = 10.0) -> DigestWorker:
        """Return a worker that plans and sends digests."""
        return DigestWorker(
            self.db,
            self.graph(timeout=timeout),
            [self.tenant_id],
            Signer([KEY]),
            make_templates(),
            public_url="http://quarantine.contoso.example",
        )

    def pages(self, *, sign_in: Any = None, patient: bool = True) -> Pages:
        """Return the users' pages; those that are not patient hardly wait for outcomes."""
        max_wait = self.long if patient else self.short
        return Pages(self.db, self.source(), Signer([KEY]), make_templates(), sign_in, max_wait=max_wait)

    async def link(
        self, action: LinkAction = LinkAction.VIEW, *, key: str = KEY, expires_in: timedelta = timedelta(days=1)
    ) -> str:
        """Return the path of a link to the only message, as in a digest."""
        return link_path(Signer([key]), action, await self.message(), datetime.now(UTC) + expires_in)

    async def save_settings(self, **settings: Any) -> None:
        """Store settings of the tenant."""
        values = QuarantineSettings.model_validate({"sender": "notices@contoso.example", **settings})
        async with self.db.transaction() as tx:
            await store.record_settings(tx, self.tenant_id, values.model_dump(mode="json"), "admin")

    async def settings(self) -> QuarantineSettings:
        """Return the settings of the tenant."""
        return await read_settings(self.db.pool, self.tenant_id)

    async def set_policy(self, permissions: int, name: str = "Custom") -> None:
        """Make this the only quarantine policy of the tenant."""
        rows = [{"Name": name, "EndUserQuarantinePermissionsValue": permissions, "ESNEnabled": True}]
        await self.control("PATCH", "", {"cmdlets": {"Get-QuarantinePolicy": rows}})

    async def hold(self, permissions: int, eml: str | None = None, **order: Any) -> None:
        """Quarantine a message under a policy with these permissions, and sync."""
        await self.set_policy(permissions)
        await self.quarantine(eml, quarantine_policy="Custom", **order)
        await self.sync()

    async def control(self, method: str, path: str, body: object = None) -> Any:
        """Call a control route of the simulator for the tenant."""
        url = f"{self.microsoft.url}/simulator/tenants/{self.tenant_id}{path}"
        async with self._control.request(method, url, json=body) as response:
            answer = await response.json()
            assert response.status < 300, answer
            return answer

    async def quarantine(self, eml: str | None = None, **order: Any) -> Any:
        """Let Defender quarantine a message."""
        return await self.control("POST", "/quarantine", {"eml": eml or write_eml(), **order})

    async def messages(self) -> dict[tuple[str, str], Any]:
        """Return the synced messages by subject and recipient."""
        rows = await self.db.pool.fetch("SELECT * FROM messages")
        return {(row["subject"], row["recipient"]): row for row in rows}

    async def message_ids(self) -> dict[tuple[str, str], str]:
        """Return the ids of the synced messages by subject and recipient."""
        return {key: str(row["message_id"]) for key, row in (await self.messages()).items()}

    async def message(self) -> Any:
        """Return the only message."""
        (row,) = (await self.messages()).values()
        return await store.find_message(self.db.pool, self.tenant_id, row["message_id"])

    async def statuses(self) -> dict[tuple[str, str], str]:
        """Return the status of each synced message."""
        return {key: row["status"] for key, row in (await self.messages()).items()}

    async def emitted(self) -> list[Any]:
        """Remove the events from the outbox and return them."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]

    def fault(self, route: str, kind: str, **more: Any) -> None:
        """Order a fault of the simulator."""
        self.state.faults.order([Fault.model_validate({"route": route, "kind": kind, **more})])

    def ledger(self, kind: str) -> list[Any]:
        """Return what really happened at Microsoft."""
        entries: list[Any] = self.state.ledger.contents()[kind]
        return entries

    def done(self) -> list[tuple[str, str]]:
        """Return the actions that took effect in Exchange, each with its recipient."""
        return [(entry["action"], entry["recipient"]) for entry in self.ledger("quarantine_actions")]

    def calls(self, route: str) -> int:
        """Return how many calls arrived at Microsoft."""
        return int(self.state.ledger.contents()["requests"].get(route, 0))


@pytest.fixture
async def world(database: str, microsoft: Simulator, tenant_id: UUID) -> AsyncIterator[World]:
    """Return the service's parts, over an empty database and a fresh Microsoft 365."""
    db = Database(database, schema="quarantine")
    await db.open(Path(quarantine.__file__).parent / "migrations", libraries=[outcomes.MIGRATIONS])
    async with open_session(microsoft.ca_file) as session, open_session(microsoft.ca_file) as control:
        world = World(db, microsoft, tenant_id, session, control)
        yield world
        await world.tokens.close()
    await db.close()


@pytest.fixture
async def quarantined(world: World) -> Any:
    """Quarantine one message for two recipients."""
    made = await world.quarantine(world.eml(to=f"{ANNA}, {BEN}"))
    await world.sync()
    return made


@pytest.fixture
async def client(world: World, call: Any) -> Client:
    """Return a client of the admin API."""
    client: Client = await call(make_router(world.db, world.source(), max_wait=world.long))
    return client


@pytest.fixture
async def impatient_client(world: World, call: Any) -> Client:
    """Return a client of an admin API that hardly waits for outcomes."""
    client: Client = await call(make_router(world.db, world.source(), max_wait=world.short))
    return client


@pytest.fixture
def serve_router(serving: Any) -> Any:
    """Serve a router as the service does; returns its URL."""

    def serve(router: APIRouter) -> Any:
        api = make_api(title="test", description="test", ready={}, alive={})
        api.include_router(router)
        return serving(api)

    return serve
