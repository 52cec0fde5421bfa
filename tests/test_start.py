"""Services before they have started: what is wrong is said in a line without a secret, and a signal ends every wait."""

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import asyncpg
import pytest

from chassis.settings import report_setup_errors

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "sig"), [*((service, signal.SIGTERM) for service in SERVICES[1:]), ("triage", signal.SIGINT)]
)
async def test_a_signal_ends_a_service_that_waits_for_a_postgresql_that_is_not_there(
    service: str, sig: signal.Signals
) -> None:
    """An operator who mends the settings does not wait for it."""
    async with started(service, GOOD) as process:
        await logged(process, "postgres.unavailable")
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
        await logged(process, "kafka.unavailable")
        await assert_ends(process, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_without_settings_names_each_that_it_misses(service: str) -> None:
    """A line each, on stderr alone."""
    async with started(service, {}) as process:
        code, out, err = await ended(process)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert "BACKSTOP_TENANTS: Field required" in lines
    assert all(line.endswith(": Field required") for line in lines), err


WRONG = {
    "gateway": [
        ("TENANTS", f"{GOOD['TENANTS']},{SECRET}"),
        ("TENANTS", ""),
        ("API_AUDIENCE", ""),
        ("API_SCOPE", ""),
        ("API_SCOPE", f"{SECRET} {SECRET}"),
        ("HTTP_PORT", SECRET),
        ("HTTP_PORT", "70000"),
        ("LOG_LEVEL", SECRET),
        ("AUTHORITY", SECRET),
        ("AUTHORITY", f"https://[{SECRET}"),
        ("AUTHORITY", f"https://{SECRET}:99999"),
        ("AUTHORITY", f"https://{SECRET}:{SECRET}"),
        ("CA_FILE", f"/{SECRET}"),
        ("CA_FILE", __file__),
        ("MAX_CONCURRENT_REQUESTS", SECRET),
        ("BODY_TIMEOUT_SECONDS", "inf"),
        ("BODY_TIMEOUT_SECONDS", "9" * 30),
        ("REPORTER_URL", SECRET),
        ("REPORTER_URL", f"http://user:{SECRET}@reporter"),
        ("REPORTER_URL", f"http://reporter?key={SECRET}"),
        ("SECRETS_DIR", f"/{SECRET}"),
    ],
    "reporter": [
        ("POSTGRES_DSN", ""),
        ("POSTGRES_DSN", SECRET),
        ("POSTGRES_DSN", f"mysql://backstop:{SECRET}@localhost/backstop"),
        ("POSTGRES_DSN", f"postgresql://backstop:{SECRET}@{SECRET}@localhost/backstop"),
        ("POSTGRES_DSN", f"postgresql://backstop:{SECRET}#{SECRET}@localhost/backstop"),
        ("POSTGRES_DSN", f"postgresql://backstop:{SECRET}@[localhost/backstop"),
        ("POSTGRES_DSN", f"postgresql://localhost/backstop?sslmode=verify-full&sslrootcert=/{SECRET}"),
        ("POSTGRES_REQUEST_CONNECTIONS", "-7"),
        ("KAFKA_BOOTSTRAP", ""),
        ("KAFKA_BOOTSTRAP", f"localhost:{SECRET}"),
        ("KAFKA_BOOTSTRAP", f"kafka://{SECRET}:9092"),
        ("KAFKA_BOOTSTRAP", SECRET),
        ("KAFKA_BOOTSTRAP", f"localhost:9092,{SECRET}"),
        ("KAFKA_BOOTSTRAP", f"user:{SECRET}@localhost:9092"),
        ("KAFKA_BOOTSTRAP", f"localhost:9092\n{SECRET}:9092"),
        ("KAFKA_BOOTSTRAP", "localhost:99999"),
        ("KAFKA_SECURITY_PROTOCOL", SECRET),
        ("KAFKA_CA_FILE", f"/{SECRET}"),
        ("KAFKA_CA_FILE", __file__),
        ("TOPIC_PREFIX", f"{SECRET}/"),
        ("MAIL_STORE", SECRET),
        ("MAIL_STORE", f"{SECRET}://{SECRET}"),
        ("MAIL_STORE", f"file:///proc/{SECRET}"),
    ],
    "triage": [
        ("POLICY_FILE", f"/{SECRET}"),
        ("POLICY_FILE", __file__),
        ("POLICY_FILE", sys.executable),
        ("RETENTION_DAYS", "13"),
        ("RETENTION_DAYS_BY_TENANT", SECRET),
        ("RETENTION_DAYS_BY_TENANT", f"{SECRET}=30"),
        ("RETENTION_DAYS_BY_TENANT", f"{SECRET}={SECRET}"),
        ("RETENTION_DAYS_BY_TENANT", f"{GOOD['TENANTS']}=13"),
    ],
    "submitter": [
        ("CLIENT_ID", ""),
        ("CLIENT_SECRET", ""),
        ("CLIENT_CERTIFICATE", __file__),
        ("CLIENT_CERTIFICATE", f"/{SECRET}"),
        ("CLIENT_CERTIFICATE_KEY", __file__),
        ("CLIENT_CERTIFICATE_PASSPHRASE", SECRET),
        ("FEDERATED_TOKEN_FILE", f"/{SECRET}"),
        ("GRAPH_URL", f"http://{SECRET}"),
        ("SUBMISSION_BATCH_SIZE", "-7"),
    ],
    "verdict_poller": [
        ("VERDICT_POLL_INTERVALS", ""),
        ("VERDICT_POLL_INTERVALS", SECRET),
        ("VERDICT_GRID_SECONDS", "-7"),
        ("TENANT_SETTINGS_TTL_SECONDS", "-7"),
    ],
    "blocklist": [("MAX_CONCURRENT_BLOCKS", "-7"), ("BLOCK_LEASE_SECONDS", SECRET), ("BLOCK_LEASE_SECONDS", "9" * 30)],
    "quarantine": [
        ("LINK_KEYS", ""),
        ("LINK_KEYS", f"{SECRET * 6},{SECRET}"),
        ("PUBLIC_URL", SECRET),
        ("PUBLIC_URL", f"https://user:{SECRET}@quarantine.contoso.example"),
        ("SIGN_IN_CLIENT_ID", GOOD["API_AUDIENCE"]),
        ("SIGN_IN_CLIENT_SECRET", SECRET),
    ],
}


async def build(app: ModuleType) -> None:
    """Compose a service with the settings of the environment, and close it again."""
    async with app.build(app.Settings()):
        pass


@pytest.mark.parametrize(
    ("service", "name", "value"), [(service, *wrong) for service, settings in WRONG.items() for wrong in settings]
)
@pytest.mark.parametrize("as_file", [False, True], ids=["variable", "file"])
def test_a_wrong_setting_is_one_line_with_its_name_and_without_its_value(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    service: str,
    name: str,
    value: str,
    *,
    as_file: bool,
) -> None:
    """It may be a secret, and logs are read by many; whether it is a variable or a file makes no difference."""
    for good, its in GOOD.items():
        monkeypatch.setenv(f"BACKSTOP_{good}", its)
    if as_file and name != "SECRETS_DIR":
        monkeypatch.delenv(f"BACKSTOP_{name}", raising=False)
        (tmp_path / f"backstop_{name.lower()}").write_text(value)
        monkeypatch.setenv("BACKSTOP_SECRETS_DIR", str(tmp_path))
    else:
        monkeypatch.setenv(f"BACKSTOP_{name}", value)
    app = importlib.import_module(f"{service}.app")

    with pytest.raises(SystemExit) as ending, report_setup_errors():
        asyncio.run(build(app))

    out, err = capfd.readouterr()
    assert (ending.value.code, out, err.count("\n")) == (2, "", 1), err
    assert f"BACKSTOP_{name}" in err
    assert SECRET not in err
    assert not value or value not in err


def test_a_secret_that_is_no_text_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And not shown."""
    (tmp_path / "backstop_postgres_dsn").write_bytes(b"\xff" + SECRET.encode())
    monkeypatch.setenv("BACKSTOP_SECRETS_DIR", str(tmp_path))
    app = importlib.import_module("triage.app")

    with pytest.raises(SystemExit), report_setup_errors():
        app.Settings()

    assert capfd.readouterr().err == "BACKSTOP_POSTGRES_DSN: its file cannot be read (UnicodeDecodeError)\n"


@pytest.mark.slow
@pytest.mark.parametrize("port", ["99999", SECRET])
async def test_a_dsn_that_only_the_driver_refuses_is_said_without_it(port: str) -> None:
    """No service waits for a PostgreSQL that cannot be."""
    async with started("triage", GOOD | {"POSTGRES_DSN": f"postgresql://b:{SECRET}@127.0.0.1:{port}/b"}) as process:
        code, out, err = await ended(process)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("BACKSTOP_POSTGRES_DSN: write it as")
    assert SECRET not in err


async def test_a_postgresql_that_refuses_for_good_is_said_in_a_line(database: str) -> None:
    """A database that is not there, and a schema that a newer version has made."""
    parts = urlsplit(database)
    secret = parts.password or SECRET
    nowhere = parts._replace(path="/nowhere").geturl()
    async with started("triage", GOOD | {"POSTGRES_DSN": nowhere}) as process:
        code, out, err = await ended(process)
    assert (code, err.count("\n"), secret in out + err) == (2, 1, False)
    assert err.startswith("BACKSTOP_POSTGRES_DSN: PostgreSQL refuses this service: InvalidCatalogNameError")

    newer = await asyncpg.connect(database)
    await newer.execute("CREATE SCHEMA triage")
    await newer.execute("CREATE TABLE triage.migrations (name text PRIMARY KEY, sha256 text, applied_at timestamptz)")
    await newer.execute("INSERT INTO triage.migrations VALUES ('triage/9999_later.sql', '')")
    await newer.close()
    async with started("triage", GOOD | {"POSTGRES_DSN": database}) as process:
        code, out, err = await ended(process)
    assert (code, err.count("\n"), secret in out + err) == (2, 1, False)
    # The local stack looks for this sentence, to say how its data is cleared.
    assert "the schema there is of another version: triage/9999_later.sql was applied to it" in err


@pytest.mark.slow
async def test_a_port_that_is_taken_is_said_in_a_line() -> None:
    """By the names of the settings that choose it."""
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = str(taken.sockets[0].getsockname()[1])
    async with started("gateway", GOOD | {"HTTP_PORT": port}) as process:
        code, out, err = await ended(process)
    taken.close()
    assert (code, "Traceback" in out) == (2, False)
    assert err == "BACKSTOP_HTTP_HOST, BACKSTOP_HTTP_PORT: nobody can listen there; see the log\n"
