"""Reporter as a real server over a real database and a real mail store; tokens come from Entra ID on localhost."""

import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import orjson
import pytest
from fastapi import FastAPI

import outcomes
import reporter
from backstop_contracts import BlockRequested, CaseExpired, CaseStatus, CaseUpdated, Event, MessageReported
from chassis.entra import Authenticator
from chassis.http import make_api
from chassis.postgres import Database
from chassis.testing import deliver
from local_stack.backing import own_database
from mail import MailStore
from reporter import handlers
from reporter.http import make_router
from reporter.retention import Retention
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
    """Return the tenant of tokens that name no other."""
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
    """Return reporter's own database, empty."""
    await _database.pool.execute("TRUNCATE reports, cases, blocks, expired_messages, early_cases, outbox")
    return _database


@dataclass
class Reporter:
    """A running reporter: a client of it, its database and its mail store."""

    client: aiohttp.ClientSession
    api: FastAPI
    db: Database
    store: Path
    mails: MailStore

    async def kept(self) -> dict[str, int]:
        """Count the rows and the messages that were stored."""
        counts = {table: await self.db.pool.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
        return counts | {"mails": len(self.stored())}

    def stored(self) -> list[Path]:
        """List the messages in the mail store."""
        return [file for file in self.store.rglob("*") if file.is_file()]

    async def send(self, headers: dict[str, str], raw: bytes, **said: Any) -> tuple[int, dict[str, Any]]:
        """Report a message as JSON; return status and body of the answer."""
        body = orjson.dumps({"mail": base64.b64encode(raw).decode(), "reported_as": "phishing", **said})
        headers = headers | {"Content-Type": "application/json"}
        async with self.client.post("/v1/reports", data=io.BytesIO(body), headers=headers) as answer:
            return answer.status, await answer.json()

    async def report(self, headers: dict[str, str], raw: bytes, **said: Any) -> UUID:
        """Report a message; return the report's id."""
        status, accepted = await self.send(headers, raw, **said)
        assert status == 202
        return UUID(accepted["report_id"])

    async def read(self, headers: dict[str, str], report_id: UUID) -> dict[str, Any]:
        """Read the status of a report."""
        async with self.client.get(f"/v1/reports/{report_id}", headers=headers) as answer:
            assert answer.status == 200
            state: dict[str, Any] = await answer.json()
            return state

    async def outbox(self) -> list[tuple[str, str, dict[str, str], Any]]:
        """Return topic, key, headers and event of what waits to be published."""
        models = {model.TOPIC: model for model in (MessageReported, BlockRequested)}
        return [
            (
                row["topic"],
                row["key"],
                orjson.loads(row["headers"]),
                models[row["topic"]].model_validate_json(row["payload"]),
            )
            for row in await self.db.pool.fetch("SELECT * FROM outbox ORDER BY id")
        ]

    async def consume(self, *events: Event) -> None:
        """Deliver events, those of one topic that follow each other as one batch."""
        await deliver(handlers.router, self.db, *events)

    @staticmethod
    def case_opened(tenant: UUID, case_id: UUID, *report_ids: str) -> CaseUpdated:
        """Make the event that triage has put reports into a new case."""
        return CaseUpdated(
            tenant_id=tenant,
            case_id=case_id,
            change="opened",
            status=CaseStatus.OPEN,
            report_ids=tuple(map(UUID, report_ids)),
            report_count=len(report_ids),
            changed_at=datetime.now(UTC),
        )

    @staticmethod
    def case_expired(tenant: UUID, case_id: UUID) -> CaseExpired:
        """Make the event that triage has deleted a case."""
        now = datetime.now(UTC)
        return CaseExpired(tenant_id=tenant, case_id=case_id, report_count=1, last_active_at=now, expired_at=now)

    async def report_and_expire(self, headers: dict[str, str], raw: bytes, tenant: UUID) -> str:
        """Report a message and let its case expire: the message is then due to be deleted. Return the report's id."""
        _, accepted = await self.send(headers, raw)
        case_id = uuid4()
        await self.consume(self.case_opened(tenant, case_id, accepted["report_id"]))
        await self.consume(self.case_expired(tenant, case_id))
        return str(accepted["report_id"])

    async def make_messages_due(self) -> None:
        """Make all expired messages due now."""
        await self.db.pool.execute("UPDATE expired_messages SET due_at = now()")

    async def delete_expired_messages(self) -> None:
        """Delete all messages that may be deleted, however many runs that takes."""
        worker = Retention(self.db, self.mails)
        for _ in range(2):
            await self.make_messages_due()
            while await worker.delete_expired_messages():
                pass


TABLES = ("reports", "blocks", "outbox")
RunReporter = Callable[..., AbstractAsyncContextManager[Reporter]]


@pytest.fixture(scope="session")
def run_reporter(
    _database: Database, entra: Simulator, serving: Any, tmp_path_factory: pytest.TempPathFactory
) -> RunReporter:
    """Run reporters with the limits and the kind of mail store that a test asks for."""

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
    """Return a running reporter with the default limits and nothing stored."""
    for file in _reporter.stored():
        file.unlink()
    return _reporter


@pytest.fixture(scope="session")
def make_mail() -> Callable[..., bytes]:
    """Write messages; each has its own Message-ID unless the test gives it one."""

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


@pytest.fixture(scope="session")
def mail_of() -> Callable[[int], bytes]:
    """Write messages of exactly so many bytes."""
    head = b"From: mallory@fabrikam.example\r\nSubject: Parcel\r\nMessage-ID: <1@fabrikam.example>\r\n\r\nhello\r\n"
    line = b"x" * 74 + b"\r\n"

    def write(size: int) -> bytes:
        return (head + line * ((size - len(head)) // len(line) + 1))[: size - 2] + b"\r\n"

    return write


@pytest.fixture
async def add_in(token: Any) -> dict[str, str]:
    """Return the headers of an application that may report."""
    headers: dict[str, str] = await token("Reporter", app=True)
    return headers
