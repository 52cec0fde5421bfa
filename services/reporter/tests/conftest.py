"""Reporter as a real server over a real database and a real mail store; tokens come from Entra ID on localhost."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from fastapi import FastAPI

import outcomes
import reporter
from chassis.entra import Authenticator
from chassis.http import make_api
from chassis.postgres import Database
from local_stack.backing import own_database
from mail import MailStore
from reporter.http import make_router
from reporter.upload import Uploads
from simulator import Simulator, serve

AUDIENCE = str(uuid4())
MIGRATIONS = Path(reporter.__file__).parent / "migrations"

Token = Callable[..., Awaitable[dict[str, str]]]


@pytest.fixture(scope="session")
async def entra(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    """Run Entra ID on localhost, with two tenants."""
    tenants = [{"id": str(uuid4())} for _ in range(2)]
    async with serve(tmp_path_factory.mktemp("simulator"), tenants=tenants) as simulator:
        yield simulator


@pytest.fixture(scope="session")
def tenant(entra: Simulator) -> UUID:
    """Return the tenant of everybody whose tenant is not said."""
    return UUID(next(iter(entra.state.tenants)))


@pytest.fixture(scope="session")
def other_tenant(entra: Simulator) -> UUID:
    """Return another tenant that is served."""
    return UUID(list(entra.state.tenants)[1])


@pytest.fixture(scope="session")
def audience() -> str:
    """Return the client id of the API."""
    return AUDIENCE


@pytest.fixture(scope="session")
def token(entra: Simulator) -> Token:
    """Order the `Authorization` header of a person or an application, good or bad."""

    async def order(*roles: str, **more: Any) -> dict[str, str]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.post(
                f"{entra.url}/simulator/tokens", json={"audience": AUDIENCE, "roles": roles, **more}
            ) as answer,
        ):
            return {"Authorization": f"Bearer {(await answer.json())['access_token']}"}

    return order


@pytest.fixture(scope="session")
async def _database(postgres_dsn: str) -> AsyncIterator[Database]:
    """Open a database that all tests of reporter share: making one for each would take most of their time."""
    async with own_database(postgres_dsn, "reporter") as dsn:
        db = Database(dsn, schema="reporter")
        await db.open(MIGRATIONS, libraries=[outcomes.MIGRATIONS])
        yield db
        await db.close()


@pytest.fixture
async def db(_database: Database) -> Database:
    """Give reporter's own database, empty."""
    await _database.pool.execute("TRUNCATE reports, cases, blocks, expired_mails, early_cases, outbox")
    return _database


@dataclass
class Reporter:
    """A running reporter: a client of it, and what lies behind it."""

    client: aiohttp.ClientSession
    api: FastAPI
    db: Database
    store: Path
    mails: MailStore

    async def kept(self) -> dict[str, int]:
        """Count what was kept."""
        counts = {table: await self.db.pool.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
        return counts | {"mails": len(self.stored())}

    def stored(self) -> list[Path]:
        """List the mails in the store."""
        return [file for file in self.store.rglob("*") if file.is_file()]


TABLES = ("reports", "blocks", "outbox")
RunReporter = Callable[..., AbstractAsyncContextManager[Reporter]]


@pytest.fixture(scope="session")
def run_reporter(
    _database: Database, entra: Simulator, serving: Any, tmp_path_factory: pytest.TempPathFactory
) -> RunReporter:
    """Run reporters with bounds, and a kind of mail store, of the test's choice."""

    @asynccontextmanager
    async def run(kind: type[MailStore] = MailStore, **bounds: Any) -> AsyncIterator[Reporter]:
        store = tmp_path_factory.mktemp("mails")
        mails = kind(store.as_uri())
        api = make_api(title="reporter", description="", ready={}, alive={})
        api.state.authenticator = Authenticator(
            authority=entra.url,
            tenants=frozenset(map(UUID, entra.state.tenants)),
            audience=AUDIENCE,
            ca_file=entra.ca_file,
        )
        uploads = Uploads(**{"max_message_bytes": 35 << 20, "large_at_once": 4, "seconds": 60, **bounds})
        api.include_router(make_router(_database, mails, uploads))
        async with serving(api) as url, aiohttp.ClientSession(url) as client:
            yield Reporter(client, api, _database, store, mails)

    return run


@pytest.fixture(scope="session")
async def _reporter(run_reporter: RunReporter) -> AsyncIterator[Reporter]:
    async with run_reporter() as reporter:
        yield reporter


@pytest.fixture
async def running(_reporter: Reporter, db: Database) -> Reporter:  # noqa: ARG001 - the database is emptied
    """Give a running reporter with the bounds of its settings, that has kept nothing yet."""
    for file in _reporter.stored():
        file.unlink()
    return _reporter


@pytest.fixture(scope="session")
def make_mail() -> Callable[..., bytes]:
    """Write mails; each has an identity of its own unless the test gives it one."""

    def write(*, sender: str | None = "Mallory <Mallory@fabrikam.example>", **headers: str) -> bytes:
        mail = EmailMessage()
        if sender:
            mail["From"] = sender
        mail["To"] = "ann@contoso.example"
        mail["Subject"] = "Your parcel"
        mail["Message-ID"] = f"<{uuid4().hex}@fabrikam.example>"
        for name, value in headers.items():
            del mail[name.replace("_", "-")]
            mail[name.replace("_", "-")] = value
        mail.set_content("Confirm your address at https://parcel.example.net/confirm within 24 hours.\n")
        return mail.as_bytes()

    return write
