"""The schema is brought up to date once, and a database that does not fit the code is refused."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import chassis.postgres
from chassis.migrate import MigrationError
from chassis.postgres import AWAY, Database, RefusedConnectionError, is_away


async def opened(dsn: str, folder: Path) -> Database:
    """Open a database whose migrations lie in *folder*."""
    db = Database(dsn, schema="triage")
    await db.open(folder)
    return db


async def test_replicas_that_start_together_apply_each_file_once(database: str, tmp_path: Path) -> None:
    """Whoever comes second finds the work done."""
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE things (id int)")
    (tmp_path / "0002_second.sql").write_text("INSERT INTO things VALUES (1)")
    replicas = await asyncio.gather(*(opened(database, tmp_path) for _ in range(4)))

    assert await replicas[0].pool.fetchval("SELECT count(*) FROM things") == 1
    for replica in replicas:
        await replica.close()


async def test_a_failed_file_leaves_nothing_behind(database: str, tmp_path: Path) -> None:
    """Each file is one transaction."""
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE things (id int); SELECT 1 / 0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await opened(database, tmp_path)
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE things (id int)")
    await (await opened(database, tmp_path)).close()


async def test_a_changed_or_unknown_file_is_refused(database: str, tmp_path: Path) -> None:
    """History is not rewritten, and an old version does not run on a newer schema."""
    file = tmp_path / "0001_first.sql"
    file.write_text("CREATE TABLE things (id int)")
    await (await opened(database, tmp_path)).close()

    file.write_text("CREATE TABLE things (id bigint)")
    with pytest.raises(MigrationError, match="changed after it had been applied"):
        await opened(database, tmp_path)
    file.unlink()
    with pytest.raises(MigrationError, match="unknown here"):
        await opened(database, tmp_path)


async def test_a_postgresql_that_goes_while_a_service_starts_is_waited_for(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a migration, which then is done again from its begin."""
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE things (id int)")
    broken = []

    def break_once(step: str) -> None:
        doing = getattr(chassis.postgres, step)

        async def do(connection: Any, *rest: Any) -> None:
            if step not in broken:
                broken.append(step)
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            await doing(connection, *rest)

        monkeypatch.setattr(chassis.postgres, step, do)

    break_once("migrate")
    break_once("_use_orjson")
    db = await opened(database, tmp_path)

    assert broken == ["migrate", "_use_orjson"]
    assert await db.pool.fetchval("SELECT count(*) FROM things") == 0
    await db.close()


async def test_who_is_refused_a_connection_is_told_that_postgresql_is_away(database: str, tmp_path: Path) -> None:
    """A database that takes nobody in for a while, or a changed password, is not the fault of any event."""
    db, name = await opened(database, tmp_path), database.rpartition("/")[2]
    admin = await asyncpg.connect(database.rpartition("/")[0] + "/postgres")
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

    async def use() -> None:
        while True:
            async with db.transaction() as tx:
                await tx.execute("SELECT 1")

    with pytest.raises(AWAY):
        await use()
    for using in (use, db.connect):
        with pytest.raises(RefusedConnectionError, match="not currently accepting connections"):
            await using()
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await opened(database, tmp_path)
    await db.close()
    await admin.close()


async def test_listeners_hear_of_commits_only(database: str, tmp_path: Path) -> None:
    """Nobody is woken for a transaction that was rolled back."""
    db, heard = await opened(database, tmp_path), []
    db.on_commit(lambda: heard.append(1))
    with pytest.raises(ZeroDivisionError):
        async with db.transaction():
            raise ZeroDivisionError
    assert heard == []
    async with db.transaction():
        pass
    assert heard == [1]
    await db.close()


async def test_who_stops_in_the_middle_of_a_transaction_keeps_no_lock(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends it; the one who was frozen meets an error that says nothing about the data."""
    await (await opened(database, tmp_path)).close()
    monkeypatch.setattr("chassis.postgres.STALL_SECONDS", 1)
    frozen, other = await opened(database, tmp_path), await opened(database, tmp_path)
    lock = "SELECT pg_advisory_xact_lock(1)"
    with pytest.raises(AWAY):
        async with frozen.transaction() as tx:
            await tx.execute(lock)
            async with other.transaction() as tx_of_other:
                await tx_of_other.execute(lock)
            await tx.execute("SELECT 1")
    await frozen.close()
    await other.close()


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionRefusedError(), True),
        (RefusedConnectionError(), True),
        (TimeoutError(), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.InternalClientError("cannot switch to state 15"), True),
        (asyncpg.IdleInTransactionSessionTimeoutError("terminating"), True),
        (asyncpg.IdleSessionTimeoutError("terminating"), True),
        (asyncpg.CannotConnectNowError("starting up"), True),
        (asyncpg.AdminShutdownError("terminating"), True),
        (asyncpg.DeadlockDetectedError("deadlock"), True),
        (asyncpg.DiskFullError("full"), True),
        (asyncpg.DataError("not an integer"), False),
        (asyncpg.UniqueViolationError("twice"), False),
        (asyncpg.CharacterNotInRepertoireError("NUL"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_only_errors_that_say_nothing_about_the_data_are_waited_out(error: Exception, away: bool) -> None:
    """What the data is at fault for would fail for ever."""
    assert is_away(error) is away
