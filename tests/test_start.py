"""Services before they have started: a signal ends every wait."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from urllib.parse import urlsplit

import asyncpg
import pytest

SERVICES = ("gateway", "reporter", "triage", "submitter", "verdict_poller", "blocklist", "quarantine")
SECRET = "s3cret"  # noqa: S105 - it is to be looked for
GOOD = {
    "HTTP_PORT": "0",
    "TENANTS": "0a1b2c3d-0000-4000-8000-000000000001",
    "API_AUDIENCE": "0a1b2c3d-0000-4000-8000-00000000b001",
    "POSTGRES_DSN": f"postgresql://backstop:{SECRET}@127.0.0.1:1/backstop",
    "KAFKA_BOOTSTRAP": "127.0.0.1:1",
    "CLIENT_ID": "0a1b2c3d-0000-4000-8000-00000000a001",
    "CLIENT_SECRET": SECRET,
    "MAIL_STORE": "memory:///",
    "PUBLIC_URL": "https://quarantine.contoso.example",
    "LINK_KEYS": SECRET * 6,
    "REPORTER_URL": "http://127.0.0.1:1",
    "TRIAGE_URL": "http://127.0.0.1:1",
    "QUARANTINE_URL": "http://127.0.0.1:1",
}
SECONDS = 60
ORDERLY = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 0}
"""Exit codes of a service that has stopped in order: SIGTERM is raised again when all is done."""


@asynccontextmanager
async def started(service: str, settings: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a service as a process, with these settings alone."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("BACKSTOP_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", service),
        env={**outside, **{f"BACKSTOP_{name}": value for name, value in settings.items()}},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Wait for the end; return exit code, the rest of the log, and what went to stderr."""
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def logged(process: asyncio.subprocess.Process, event: str) -> None:
    """Wait for a line of the log."""
    assert process.stdout
    async with asyncio.timeout(SECONDS):
        while event.encode() not in (line := await process.stdout.readline()):
            assert line, f"it ended without {event}"


async def assert_ends(process: asyncio.subprocess.Process, sig: signal.Signals) -> None:
    """Send a signal: the process ends as one that runs, in order and with nothing to complain of."""
    process.send_signal(sig)
    code, out, err = await ended(process)
    assert (code, err) == (ORDERLY[sig], "")
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("service", "sig"), [*((service, signal.SIGTERM) for service in SERVICES[1:]), ("triage", signal.SIGINT)]
)
async def test_a_signal_ends_a_service_that_waits_for_a_postgresql_that_is_not_there(
    service: str, sig: signal.Signals
) -> None:
    """An operator who mends the settings does not wait for it."""
    async with started(service, GOOD) as process:
        await logged(process, "postgres.away")
        await assert_ends(process, sig)


@asynccontextmanager
async def falling_silent(dsn: str, answers: int) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Pass on this many pieces of what PostgreSQL answers, and then nothing; yields the DSN, and when it is silent."""
    real, silent, left, serving = urlsplit(dsn), asyncio.Event(), answers, set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        nonlocal left
        while piece := await reader.read(1 << 16):
            left -= counted
            if left < 0 or not answers:
                silent.set()
                await asyncio.Event().wait()
            writer.write(piece)

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        postgres, to_postgres = await asyncio.open_connection(real.hostname, real.port)
        with closing(to_client), closing(to_postgres):
            await asyncio.gather(
                pass_on(client, to_postgres, counted=False), pass_on(postgres, to_client, counted=True)
            )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield real._replace(netloc=f"{real.username}:{real.password}@127.0.0.1:{port}").geturl(), silent
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.mark.parametrize("answers", [0, 1, 5, 12, 16, 30])
async def test_a_signal_ends_a_service_whose_postgresql_does_not_answer_any_more(database: str, answers: int) -> None:
    """Wherever it falls silent: at the first connection, in a migration, while the pool opens."""
    async with (
        falling_silent(database, answers) as (dsn, silent),
        started("triage", GOOD | {"POSTGRES_DSN": dsn}) as process,
    ):
        await asyncio.wait_for(silent.wait(), SECONDS)
        await assert_ends(process, signal.SIGTERM)


async def test_a_signal_ends_a_service_that_waits_for_another_replicas_migrations(database: str) -> None:
    """They may take ten minutes."""
    other = await asyncpg.connect(database)
    await other.execute("SELECT pg_advisory_lock(hashtext('migrate'), hashtext('triage'))")
    async with started("triage", GOOD | {"POSTGRES_DSN": database}) as process, asyncio.timeout(SECONDS):
        while not await other.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            await asyncio.sleep(0.05)
        await assert_ends(process, signal.SIGTERM)
    await other.close()


async def test_a_signal_ends_a_service_that_waits_for_kafka(database: str) -> None:
    """It has started, and joins its group as soon as it can."""
    async with started("triage", GOOD | {"POSTGRES_DSN": database}) as process:
        await logged(process, "kafka.away")
        await assert_ends(process, signal.SIGTERM)
