"""Quarantine's database and workers, and the Microsoft 365 that they reach."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from fastapi import APIRouter
from pydantic import SecretStr

import outcomes
import quarantine
from backstop_contracts import EVENTS
from chassis.http import make_api
from chassis.postgres import Database
from m365 import Credential, Exchange, Graph, Tokens, open_session
from mail import MailStore
from quarantine import store
from quarantine.carrying import Carrier
from quarantine.digest import Digester
from quarantine.links import Signer
from quarantine.mirror import Mirror
from quarantine.offering import Links
from quarantine.pages import Pages
from quarantine.reading import Reading
from quarantine.rendering import make_templates
from quarantine.settings import QuarantineSettings, settings_of
from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator
from simulator.faults import Fault

KEY = "a-key-of-the-tests-that-is-long-enough-0001"
MODELS = {model.topic(): model for model in EVENTS}


def write(
    subject: str = "Parcel",
    *,
    sender: str = "parcels@fabrikam.example",
    to: str = "anna@contoso.example",
    body: str = "Track it.\r\n",
) -> str:
    """Write a mail."""
    return (
        f"From: Parcels <{sender}>\r\nTo: {to}\r\nSubject: {subject}\r\n"
        f"Message-ID: <{subject.replace(' ', '.')}@mail.example>\r\n"
        f"Date: Tue, 03 Mar 2026 08:02:14 +0000\r\n\r\n{body}"
    )


class World:
    """The service's parts as after a restart: nothing is remembered but what the database holds."""

    mail = staticmethod(write)
    # Patience for an outcome that comes, and for one that does not.
    long, short = timedelta(minutes=1), timedelta(seconds=0.1)

    def __init__(
        self, db: Database, microsoft: Simulator, tenant_id: UUID, session: aiohttp.ClientSession, control: Any
    ) -> None:
        self.db = db
        self.tenant_id = tenant_id
        self.microsoft = microsoft
        self.state = microsoft.state
        self.tokens = Tokens(
            Credential(client_id=DEFAULT_APP, secret=SecretStr(DEFAULT_SECRET)), session, authority=microsoft.url
        )
        self._session = session
        self._control = control
        self.mails = MailStore("memory:///")

    def exchange(self, *, timeout: float = 10.0) -> Exchange:
        """Reach Exchange Online; *timeout* in seconds is that of each call."""
        return Exchange(self.tokens, self._session, base_url=self.microsoft.url, timeout=timeout)

    def graph(self, *, timeout: float = 10.0) -> Graph:
        """Reach Graph."""
        return Graph(self.tokens, self._session, base_url=self.microsoft.url, timeout=timeout)

    def mirror(self, **options: Any) -> Mirror:
        """Make a mirror that is due at once, always."""
        values: dict[str, Any] = {"every": timedelta(0), "sweep_every": timedelta(hours=6), "page_size": 100, **options}
        return Mirror(self.db, self.exchange(), [self.tenant_id], **values)

    async def sync(self, **options: Any) -> None:
        """Read the quarantine now, whatever was postponed."""
        await self.db.pool.execute("UPDATE syncs SET due_at = now()")
        assert await self.mirror(**options).sync_due() == 1

    def carrier(self, *, timeout: float = 10.0) -> Carrier:
        """Make a worker that carries out actions."""
        return Carrier(self.db, self.exchange(timeout=timeout), self.mails)

    async def carry(self, *, timeout: float = 10.0) -> list[Any]:  # noqa: ASYNC109 - each call's own
        """Carry out all that is due now; return what was emitted."""
        while await self.carrier(timeout=timeout).carry_due():
            pass
        return await self.emitted()

    def links(self) -> Links:
        """Make links as the service does."""
        return Links(Signer([KEY]), "http://quarantine.contoso.example")

    def digester(self, *, timeout: float = 10.0) -> Digester:
        """Make a worker that plans and sends digests."""
        return Digester(self.db, self.graph(timeout=timeout), [self.tenant_id], self.links(), make_templates())

    def pages(self, *, sign_in: Any = None, patient: bool = True) -> Pages:
        """Make the users' pages; those that are not patient say soon that something runs."""
        reading = Reading(self.exchange())
        patience = self.long if patient else self.short
        return Pages(self.db, reading, self.links(), make_templates(), sign_in, patience=patience)

    async def settle(self, **settings: Any) -> None:
        """Store settings of the tenant."""
        values = QuarantineSettings.model_validate({"sender": "notices@contoso.example", **settings})
        async with self.db.transaction() as tx:
            await store.record_settings(tx, self.tenant_id, values.model_dump(mode="json"), "admin")

    async def settings(self) -> QuarantineSettings:
        """Return the settings of the tenant."""
        return await settings_of(self.db.pool, self.tenant_id)

    async def grant(self, permissions: int, name: str = "Custom") -> None:
        """Make a quarantine policy that lets users do this, and name it."""
        rows = [{"Name": name, "EndUserQuarantinePermissionsValue": permissions, "ESNEnabled": True}]
        await self.control("PATCH", "", {"cmdlets": {"Get-QuarantinePolicy": rows}})

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Carry out what comes due meanwhile."""

        async def work() -> None:
            carrier = self.carrier()
            while True:
                await carrier.carry_due()
                await asyncio.sleep(0.02)

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def pause_over(self) -> None:
        """Let every pause before a next attempt be over."""
        await self.db.pool.execute("UPDATE actions SET due_at = now() WHERE state = 'pending'")

    async def control(self, method: str, path: str, body: object = None) -> Any:
        """Call a control route of the simulator about the tenant."""
        url = f"{self.microsoft.url}/simulator/tenants/{self.tenant_id}{path}"
        async with self._control.request(method, url, json=body) as response:
            answer = await response.json()
            assert response.status < 300, answer
            return answer

    async def quarantine(self, eml: str | None = None, **order: Any) -> Any:
        """Let Defender quarantine a mail."""
        return await self.control("POST", "/quarantine", {"eml": eml or write(), **order})

    async def messages(self) -> dict[tuple[str, str], Any]:
        """Return the mirror, by subject and recipient."""
        rows = await self.db.pool.fetch("SELECT * FROM messages")
        return {(row["subject"], row["recipient"]): row for row in rows}

    async def status(self) -> dict[tuple[str, str], str]:
        """Return what the mirror says became of the mails."""
        return {key: row["status"] for key, row in (await self.messages()).items()}

    async def emitted(self) -> list[Any]:
        """Take what lies in the outbox."""
        rows = await self.db.pool.fetch("WITH gone AS (DELETE FROM outbox RETURNING *) SELECT * FROM gone ORDER BY id")
        return [MODELS[row["topic"]].model_validate_json(row["payload"]) for row in rows]

    def fault(self, route: str, kind: str, **more: Any) -> None:
        """Order a fault."""
        self.state.faults.order([Fault.model_validate({"route": route, "kind": kind, **more})])

    def ledger(self, kind: str) -> list[Any]:
        """Return what really happened."""
        entries: list[Any] = self.state.ledger.contents()[kind]
        return entries

    def calls(self, route: str) -> int:
        """Count the calls that arrived."""
        return int(self.state.ledger.contents()["requests"].get(route, 0))


@pytest.fixture
async def world(database: str, microsoft: Simulator, tenant_id: UUID) -> AsyncIterator[World]:
    """Give an empty database, and Microsoft as if nobody had used it."""
    db = Database(database, schema="quarantine")
    await db.open(Path(quarantine.__file__).parent / "migrations", libraries=[outcomes.MIGRATIONS])
    async with open_session(microsoft.ca_file) as session, open_session(microsoft.ca_file) as control:
        world = World(db, microsoft, tenant_id, session, control)
        yield world
        await world.tokens.close()
    await db.close()


@pytest.fixture
def serve_router(serving: Any) -> Any:
    """Serve a router as its service does: gives its address."""

    def serve(router: APIRouter) -> Any:
        api = make_api(title="test", description="test", ready={}, alive={})
        api.include_router(router)
        return serving(api)

    return serve
