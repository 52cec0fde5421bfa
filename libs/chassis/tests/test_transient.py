"""The table of what is waited out and what is not, most of it provoked on a real PostgreSQL."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chassis.postgres import POSSIBLY_TRANSIENT, Database, is_transient

Doing = Callable[[Database], Awaitable[Any]]

BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def failure_of(doing: Awaitable[Any]) -> Exception:
    """Return what *doing* raises."""
    try:
        await doing
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return error
    raise AssertionError("nothing was raised")


async def until(db: Database, query: str) -> None:
    """Wait until *query* returns something that is true."""
    async with asyncio.timeout(30):
        while not await db.pool.fetchval(query):
            await asyncio.sleep(0.01)


async def end_all(db: Database) -> None:
    """End every other connection to this database, as an administrator or a failover does."""
    await db.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def ended_between_statements(db: Database) -> None:
    """Lose the connection while the handler does something else."""
    async with db.transaction() as tx:
        await end_all(db)
        while not tx.is_closed():
            await asyncio.sleep(0.01)
        await tx.execute("SELECT 1")


async def ended_before_the_commit(db: Database) -> None:
    """Lose the connection when all statements were made."""
    async with db.transaction():
        await end_all(db)


async def ended_in_a_statement(db: Database) -> None:
    """Lose the connection while PostgreSQL works."""

    async def work() -> None:
        async with db.transaction() as tx:
            await tx.execute("SELECT pg_sleep(60)")

    working = asyncio.create_task(work())
    await until(db, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")
    await end_all(db)
    await working


async def ended_in_a_read(db: Database) -> None:
    """Lose a connection of the pool while it reads."""
    reading = asyncio.create_task(db.pool.fetch("SELECT pg_sleep(60)"))
    await until(db, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")
    await end_all(db)
    await reading


async def closed_connection(db: Database) -> None:
    """Use a connection that is not there any more, as the relay may."""
    connection = await db.connect()
    connection.terminate()
    await connection.execute("SELECT 1")


async def closed_while_it_closes(db: Database) -> None:
    """Read while the service ends."""
    async with db.transaction():
        closing = asyncio.create_task(db.pool.close())
        while not db.pool.is_closing():
            await asyncio.sleep(0)
        error = await failure_of(db.pool.fetch("SELECT 1"))
    await closing
    raise error


async def closed_pool(db: Database) -> None:
    """Read after the service has ended."""
    await db.close()
    await db.pool.fetch("SELECT 1")


async def statement_timeout(db: Database) -> None:
    """Take longer than PostgreSQL allows."""
    async with db.transaction() as tx:
        await tx.execute("SET LOCAL statement_timeout = 10")
        await tx.execute("SELECT pg_sleep(60)")


async def command_timeout(db: Database) -> None:
    """Take longer than the client waits."""
    async with db.transaction() as tx:
        await tx.execute("SELECT pg_sleep(60)", timeout=0.01)


async def lock_timeout(db: Database) -> None:
    """Wait too long for the lock of another."""
    async with db.transaction() as one, db.transaction() as other:
        await one.execute("LOCK TABLE things")
        await other.execute("SET LOCAL lock_timeout = 10")
        await other.execute("LOCK TABLE things")


async def idle_in_transaction(db: Database) -> None:
    """Do nothing for too long."""
    async with db.transaction() as tx:
        await tx.execute("SET LOCAL idle_in_transaction_session_timeout = 10")
        while not tx.is_closed():
            await asyncio.sleep(0.01)


async def deadlock(db: Database) -> None:
    """Wait for another who waits for this one."""
    first, second = "SELECT pg_advisory_xact_lock(1)", "SELECT pg_advisory_xact_lock(2)"

    async def cross(tx: Any) -> None:
        await tx.execute(second)
        await tx.execute(first)

    async def other() -> None:
        async with db.transaction() as tx:
            await cross(tx)

    async with db.transaction() as tx:
        await tx.execute(first)
        crossing = asyncio.create_task(other())
        await until(db, BLOCKED)
        outcome = await failure_of(asyncio.gather(tx.execute(second), crossing))
        await asyncio.gather(crossing, return_exceptions=True)
        raise outcome


async def read_only(db: Database) -> None:
    """Write to a standby."""
    async with db.transaction() as tx:
        await tx.execute("SET TRANSACTION READ ONLY")
        await tx.execute("INSERT INTO things VALUES (1)")


async def serialization(db: Database) -> None:
    """Change what another has changed meanwhile."""
    await db.pool.execute("INSERT INTO things VALUES (1)")
    async with db.transaction() as tx:
        await tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await tx.execute("SELECT FROM things")
        await db.pool.execute("UPDATE things SET id = 2")
        await tx.execute("UPDATE things SET id = 3")


async def migrated_meanwhile(db: Database) -> None:
    """Repeat a statement after a newer replica has changed its table."""
    async with db.pool.acquire() as connection:
        await connection.fetch("SELECT * FROM things")
        await db.pool.execute("ALTER TABLE things ADD COLUMN name text")
        async with connection.transaction():
            await connection.fetch("SELECT * FROM things")


async def busy_pool(db: Database) -> None:
    """Wait too long for a connection."""
    async with db.transaction(), db.transaction(), db.transaction(), db.pool.acquire(timeout=0.01):
        pass


async def nobody_listens(_db: Database) -> None:
    """Connect to a port where nobody is."""
    await asyncpg.connect("postgresql://user:password@127.0.0.1:1/database")


async def unknown_host(_db: Database) -> None:
    """Connect to a name that does not exist."""
    await asyncpg.connect("postgresql://user:password@nowhere.invalid/database")


async def no_socket(_db: Database) -> None:
    """Connect by a Unix socket that does not exist."""
    await asyncpg.connect("postgresql://user:password@/database?host=/nowhere")


async def hangs_up(_db: Database) -> None:
    """Connect to who closes at once."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await asyncpg.connect(f"postgresql://user:password@127.0.0.1:{port}/database")


async def says_nothing(_db: Database) -> None:
    """Connect to who takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        await asyncpg.connect(f"postgresql://user:password@{address}/database", timeout=0.1)


async def wrong_number_of_arguments(db: Database) -> None:
    """Pass more than the statement takes."""
    async with db.transaction() as tx:
        await tx.execute("SELECT $1::int", 1, 2)


async def two_statements_at_once(db: Database) -> None:
    """Share a connection."""
    async with db.transaction() as tx:
        await asyncio.gather(tx.execute("SELECT pg_sleep(0.1)"), tx.execute("SELECT 1"))


async def used_after_the_transaction(db: Database) -> None:
    """Keep a transaction's connection."""
    async with db.transaction() as tx:
        pass
    await tx.execute("SELECT 1")


async def wrong_type(db: Database) -> None:
    """Pass text for a number."""
    async with db.transaction() as tx:
        await tx.execute("SELECT $1::int", "connection is closed")


async def missing_file(db: Database) -> None:
    """Open a file that is not there."""
    async with db.transaction():
        Path("/nowhere/file").open()  # noqa: ASYNC230, SIM115 - it fails


async def timeout_of_the_handler(db: Database) -> None:
    """Wait in a handler for what does not come."""
    async with db.transaction(), asyncio.timeout(0.01):
        await asyncio.Event().wait()


async def impatient_handler(db: Database) -> None:
    """Give PostgreSQL less time than the service gives it."""
    async with db.transaction() as tx, asyncio.timeout(0.01):
        await tx.execute("SELECT pg_sleep(60)")


async def refused_elsewhere(db: Database) -> None:
    """Meet the network in a handler."""
    async with db.transaction():
        await asyncio.open_connection("127.0.0.1", 1)


async def twice(db: Database) -> None:
    """Insert a key twice."""
    await db.pool.execute("CREATE TABLE keys (key int PRIMARY KEY); INSERT INTO keys VALUES (1)")
    await db.pool.execute("INSERT INTO keys VALUES (1)")


async def no_table(db: Database) -> None:
    """Read a table that does not exist."""
    await db.pool.execute("SELECT FROM nothing")


async def nul(db: Database) -> None:
    """Store what PostgreSQL keeps no text of."""
    await db.pool.execute("SELECT $1::text", "\0")


@pytest.fixture
async def db(database: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Open a database that has one table."""
    (tmp_path / "0001_things.sql").write_text("CREATE TABLE things (id int)")
    db = Database(database, schema="triage")
    await db.open(tmp_path, pool_size=3)
    yield db
    await db.close()


@pytest.mark.parametrize(
    ("doing", "error"),
    [
        (ended_between_statements, asyncpg.InterfaceError),
        (ended_before_the_commit, (asyncpg.InterfaceError, asyncpg.PostgresError, asyncpg.InternalClientError)),
        (ended_in_a_statement, asyncpg.InterfaceError),
        (ended_in_a_read, asyncpg.PostgresError),
        (closed_connection, asyncpg.InterfaceError),
        (closed_while_it_closes, asyncpg.InterfaceError),
        (closed_pool, asyncpg.InterfaceError),
        (statement_timeout, asyncpg.QueryCanceledError),
        (command_timeout, TimeoutError),
        (lock_timeout, asyncpg.LockNotAvailableError),
        (idle_in_transaction, asyncpg.InterfaceError),
        (deadlock, asyncpg.DeadlockDetectedError),
        (read_only, asyncpg.ReadOnlySQLTransactionError),
        (serialization, asyncpg.SerializationError),
        (migrated_meanwhile, asyncpg.InvalidCachedStatementError),
        (busy_pool, TimeoutError),
        (nobody_listens, ConnectionRefusedError),
        (unknown_host, socket.gaierror),
        (no_socket, FileNotFoundError),
        (hangs_up, ConnectionError),
        (says_nothing, TimeoutError),
    ],
)
async def test_what_postgresql_does_to_everybody_is_waited_out(
    db: Database, doing: Doing, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """The same work can succeed later."""
    failure = await failure_of(doing(db))

    assert isinstance(failure, error)
    assert isinstance(failure, POSSIBLY_TRANSIENT)
    assert is_transient(failure)


@pytest.mark.parametrize(
    ("doing", "error"),
    [
        (wrong_number_of_arguments, asyncpg.InterfaceError),
        (two_statements_at_once, asyncpg.InterfaceError),
        (used_after_the_transaction, asyncpg.InterfaceError),
        (wrong_type, asyncpg.DataError),
        (missing_file, FileNotFoundError),
        (timeout_of_the_handler, TimeoutError),
        (impatient_handler, TimeoutError),
        (refused_elsewhere, ConnectionRefusedError),
        (twice, asyncpg.UniqueViolationError),
        (no_table, asyncpg.UndefinedTableError),
        (nul, asyncpg.CharacterNotInRepertoireError),
    ],
)
async def test_what_the_code_or_the_data_is_at_fault_for_is_not_waited_out(
    db: Database, doing: Doing, error: type[Exception]
) -> None:
    """It would fail for ever, and nobody would see it."""
    failure = await failure_of(doing(db))

    assert isinstance(failure, error)
    assert not is_transient(failure)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (asyncpg.CannotConnectNowError("starting up"), True),
        (asyncpg.TooManyConnectionsError("too many clients already"), True),
        (asyncpg.TransactionTimeoutError("terminating"), True),
        (asyncpg.DiskFullError("full"), True),
        (asyncpg.IdleSessionTimeoutError("terminating"), True),
        (asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"), True),
        (asyncpg.InternalClientError("no decoder for OID 1"), False),
        (asyncpg.InterfaceError("the prepared statement is closed"), False),
        (asyncpg.ClientConfigurationError("pool is closed"), False),
        (ConnectionResetError(), False),
        (ZeroDivisionError(), False),
    ],
)
def test_errors_that_no_test_can_provoke_are_classified_by_class_and_text(error: Exception, *, transient: bool) -> None:
    """A file or a connection of somebody else says nothing about PostgreSQL."""
    assert is_transient(error) is transient
