"""The schema is brought up to date once, and a database that does not fit the code is refused."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import structlog

import chassis.postgres
from chassis.migrations import MigrationError
from chassis.postgres import Database, PostgresUnavailableError, is_transient, reason_of


async def opened(dsn: str, folder: Path) -> Database:
    """Open a database whose migrations lie in *folder*."""
    db = Database(dsn, schema="triage")
    await db.open(folder)
    return db


async def failure_of(doing: Awaitable[Any]) -> Exception:
    """Return what *doing* raises."""
    try:
        await doing
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return error
    raise AssertionError("nothing was raised")


async def end_all(db: Database) -> None:
    """End every other connection to this database, as an administrator or a failover does."""
    await db.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


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
    with pytest.raises(MigrationError, match="this version has no such file"):
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


async def test_a_service_that_runs_waits_while_it_is_refused_a_connection(database: str, tmp_path: Path) -> None:
    """A database that takes nobody in for a while, or a changed password, is not the fault of any event."""
    db, name = await opened(database, tmp_path), database.rpartition("/")[2]
    admin = await asyncpg.connect(database.rpartition("/")[0] + "/postgres")
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

    async def use() -> None:
        while True:
            async with db.transaction() as tx:
                await tx.execute("SELECT 1")

    assert is_transient(await failure_of(use()))
    for using in (use, db.connect):
        with pytest.raises(PostgresUnavailableError, match="not currently accepting connections"):
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


async def test_a_process_that_freezes_in_the_middle_of_a_transaction_keeps_no_lock(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends it; the one who was frozen meets an error that says nothing about the data."""
    await (await opened(database, tmp_path)).close()
    monkeypatch.setattr("chassis.postgres.STALL_SECONDS", 1)
    frozen, other = await opened(database, tmp_path), await opened(database, tmp_path)
    lock = "SELECT pg_advisory_xact_lock(1)"

    async def freeze() -> None:
        async with frozen.transaction() as tx:
            await tx.execute(lock)
            async with other.transaction() as tx_of_other:
                await tx_of_other.execute(lock)
            await tx.execute("SELECT 1")

    assert is_transient(await failure_of(freeze()))
    await frozen.close()
    await other.close()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("ALTER ROLE {} PASSWORD 'another'", asyncpg.InvalidPasswordError),
        ("ALTER ROLE {} CONNECTION LIMIT 0", asyncpg.TooManyConnectionsError),
        ("ALTER ROLE {} NOLOGIN", asyncpg.InvalidAuthorizationSpecificationError),
    ],
)
async def test_a_service_that_runs_waits_when_its_role_is_changed(
    database: str, tmp_path: Path, change: str, error: type[Exception]
) -> None:
    """A wrong password ends a service that starts; one that runs waits until the password is right again."""
    db = await opened(database, tmp_path)
    role, address = f"role_{database.rpartition('/')[2]}", urlsplit(database)
    try:
        await db.pool.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
    except asyncpg.InsufficientPrivilegeError:
        pytest.skip("NO ROLE WAS CHANGED: the user of this PostgreSQL may make none")
    await db.pool.execute(f"GRANT ALL ON SCHEMA triage TO {role}; GRANT ALL ON triage.migrations TO {role}")
    await db.pool.execute(f"GRANT CREATE ON DATABASE {address.path[1:]} TO {role}")
    running = await opened(
        address._replace(netloc=f"{role}:first@{address.hostname}:{address.port}").geturl(), tmp_path
    )
    try:
        await db.pool.execute(change.format(role))
        await end_all(db)
        with structlog.testing.capture_logs() as logs:
            failure = await failure_of(running.connect())
        assert is_transient(failure)
        assert isinstance(failure.__cause__ or failure, error)
        assert error is asyncpg.TooManyConnectionsError or logs[0]["reason"] == reason_of(failure)
    finally:
        await running.close()
        await db.pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await db.close()


async def test_the_log_of_a_wait_says_why(database: str, tmp_path: Path) -> None:
    """Whoever reads it need not guess what PostgreSQL refuses."""
    db = Database(urlsplit(database)._replace(netloc="user:s3cret@127.0.0.1:1").geturl(), schema="triage")
    with structlog.testing.capture_logs() as logs:
        opening = asyncio.create_task(db.open(tmp_path))
        while not logs:
            await asyncio.sleep(0.01)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)

    assert logs[0]["event"] == "postgres.unavailable"
    assert logs[0]["error"] == "ConnectionRefusedError"
    assert "Connect call failed ('127.0.0.1', 1)" in logs[0]["reason"]
    assert "s3cret" not in str(logs)


def test_a_reason_leaves_out_what_may_hold_values() -> None:
    """PostgreSQL's details repeat what was asked of it."""
    error = asyncpg.PostgresError.new(
        {"C": "40P01", "M": "deadlock detected", "D": "Process 1 waits for alice@contoso.example."}, query=None
    )
    assert "alice" in str(error)
    assert reason_of(error) == "deadlock detected"
