"""PostgreSQL: one pool, one schema per service, and which errors are worth another try."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import orjson
import structlog
from asyncpg.pool import PoolConnectionProxy

from chassis.migrations import MIGRATION_SECONDS, migrate, read_sql

log = structlog.get_logger()

STALL_SECONDS = 15
"""Longest time that a process which does not move keeps a transaction, with its locks."""

Tx: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""A connection on which a transaction is open."""

Reads: TypeAlias = "Tx | asyncpg.Pool[asyncpg.Record]"
"""Where a single statement that only reads may run: in a transaction or straight on the pool."""


class PostgresUnavailableError(Exception):
    """PostgreSQL does not let this service in, or does not answer in the time that there is."""


TRANSIENT: tuple[type[Exception], ...] = (
    PostgresUnavailableError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # it shuts down or starts up, or the statement took too long
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,  # deadlocks and serialization failures
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, before or after it takes over
    asyncpg.InvalidCachedStatementError,  # a newer replica has migrated the schema just now
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.ProtocolError,
    asyncpg.TargetServerAttributeNotMatched,
)
POSSIBLY_TRANSIENT = (*TRANSIENT, OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Every class of which `is_transient` may be true."""

_CLOSED = ("connection is closed", "pool is closed", "pool is closing")
"""How the messages of InterfaceErrors end that are no misuse of asyncpg: wrong arguments raise the same class."""


def is_transient(error: BaseException) -> bool:
    """
    Return whether *error* is PostgreSQL's state and nobody's fault, so that the same work can succeed later.

    PostgreSQL cannot be reached, is full, lets nobody in, or ended what took too long or stood in the way of others.
    After such an error, wait and try again. Anything else would fail for ever.
    """
    if isinstance(error, TRANSIENT):
        return True
    if isinstance(error, OSError):
        # A TimeoutError is one, too. asyncpg raises no classes of its own for what the network does, so where it was
        # raised distinguishes it from a handler's missing file or timeout.
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__", "").startswith("asyncpg.") for frame, _ in frames)
    if type(error) is asyncpg.InterfaceError:
        return str(error.args[0]).endswith(_CLOSED)
    # A connection that broke in the middle of an operation.
    return type(error) is asyncpg.InternalClientError and str(error).startswith("cannot switch to ")


def reason_of(error: BaseException) -> str:
    """Return what a transient *error* says, without PostgreSQL's details, which may hold values."""
    if isinstance(error, asyncpg.PostgresError):
        # Its own __str__ adds the details, and fails where there is no text.
        return str(error.args[0] if error.args else "")[:200]
    return str(error)[:200]


class UnreadableDsnError(ValueError):
    """The DSN cannot be parsed. What is wrong is not repeated: more often than not it is a piece of the password."""


def _log_migration(name: str) -> None:
    log.info("migration.applied", name=name)


class Database:
    """
    The service's database: a pool whose search path is the service's own schema.

    `transaction()` commits at the end of the block and then wakes those who registered with `on_commit`, because
    an outbox row or a due row can be seen only after the commit.
    """

    def __init__(self, dsn: str, *, schema: str) -> None:
        self._dsn = dsn
        self._schema = schema
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._listeners: list[Callable[[], None]] = []

    async def open(self, migrations: Path, *, libraries: Sequence[Path] = (), pool_size: int = 8) -> None:
        """
        Bring the schema up to date and open a pool of *pool_size* connections; wait until PostgreSQL is there.

        *libraries* are the folders `<package>/migrations` of libraries with tables in the schema; they come first.

        Raises errors that retrying cannot fix: UnreadableDsnError, rejected logins (unknown database, bad password),
        MigrationError, and errors raised by a migration.
        """
        delay = 0.1
        while self._pool is None:
            try:
                await self.migrate(migrations, libraries=libraries)
                self._pool = await self._make_pool(pool_size)
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("postgres.unavailable", error=type(error).__name__, reason=reason_of(error), retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def migrate(
        self,
        migrations: Path,
        *,
        libraries: Sequence[Path] = (),
        on_applied: Callable[[str], None] = _log_migration,
    ) -> None:
        """
        Bring the schema up to date, as `open` does; *on_applied* is called with the name of each file that was applied.

        Raises what `open` raises, and transient errors: it does not wait for PostgreSQL.
        """
        files: dict[str, bytes] = {}
        for folder in (Path(__file__).parent / "migrations", *libraries):
            files |= read_sql(folder.parent.name, folder)
        files |= read_sql(self._schema, migrations)
        try:
            connection = await asyncpg.connect(
                self._dsn, timeout=10, command_timeout=MIGRATION_SECONDS, server_settings=self._session()
            )
        except (asyncpg.ClientConfigurationError, ValueError, OverflowError):
            raise UnreadableDsnError from None
        try:
            await migrate(connection, self._schema, files, on_applied)
        finally:
            await connection.close(timeout=2)

    async def _make_pool(self, size: int) -> "asyncpg.Pool[asyncpg.Record]":
        return await asyncpg.create_pool(
            self._dsn,
            min_size=1,
            max_size=size,
            command_timeout=60,
            timeout=10,
            connect=_connect,
            init=_use_orjson,
            reset=_keep,
            server_settings=self._session(),
        )

    async def close(self) -> None:
        """Close the pool, waiting at most five seconds for those who still hold a connection."""
        if self._pool:
            try:
                await asyncio.wait_for(self._pool.close(), 5)
            except TimeoutError:
                self._pool.terminate()

    async def connect(self, *, idle_seconds: int = 0) -> "asyncpg.Connection[asyncpg.Record]":
        """
        Open a connection of its own, outside the pool: for advisory locks that last.

        PostgreSQL ends it, and gives its locks to others, when nothing was asked on it for *idle_seconds*; 0: never.
        """
        return await _connect(
            self._dsn,
            timeout=10,
            command_timeout=60,
            server_settings={**self._session(), "idle_session_timeout": f"{idle_seconds}s"},
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """Run the block in one transaction: all of it or nothing."""
        async with self.pool.acquire(timeout=10) as connection, connection.transaction():
            yield connection
        for listener in self._listeners:
            listener()

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Have *listener* called after each transaction of this process that committed."""
        self._listeners.append(listener)

    @property
    def pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        """The pool, for reading outside a transaction."""
        if self._pool is None:
            raise PostgresUnavailableError("the database is not open yet")
        return self._pool

    async def ping(self) -> None:
        """Raise unless PostgreSQL answers within two seconds."""
        async with asyncio.timeout(2):
            await self.pool.execute("SELECT 1")

    def _session(self) -> dict[str, str]:
        # The kernel of a frozen process still answers keepalives: only the server can tell that nobody is there.
        return {
            "search_path": self._schema,
            "application_name": f"backstop-{self._schema}",
            "timezone": "UTC",
            "idle_in_transaction_session_timeout": f"{STALL_SECONDS}s",
            "tcp_user_timeout": f"{STALL_SECONDS}s",
        }


async def _connect(*address: Any, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """
    Treat a refused connection as transient.

    A running service has connected before, so an operator is probably changing the database, password or limits.
    """
    try:
        return await asyncpg.connect(*address, **options)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if is_transient(error):
            raise
        log.warning("postgres.refused", error=type(error).__name__, reason=reason_of(error))
        raise PostgresUnavailableError(reason_of(error)) from error


async def _keep(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """
    Return a connection to the pool without resetting it, which saves one round trip per transaction.

    Nothing here outlives its transaction: no session setting, no LISTEN, no session lock. asyncpg itself ends a
    transaction that is still open.
    """


async def _use_orjson(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value, default=str),
        decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )
