"""`backstop migrate` brings the schemas of the installed services up to date, once, or says in one line why not."""

import ast
import asyncio
import json
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result

from backstop import migrate
from backstop.app import app
from backstop.settings import SERVICES


@pytest.fixture
async def connection(database: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """Connect to the test's own database."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def run(dsn: str, *arguments: str) -> Result:
    """Run the command."""
    env = {"BACKSTOP_POSTGRES_DSN": dsn}
    return await asyncio.to_thread(CliRunner().invoke, app, ["migrate", *arguments], env=env)


async def test_every_installed_service_is_migrated_and_the_second_time_changes_nothing(
    database: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """In its own schema, with the chassis' tables in each."""
    first = await run(database)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(SERVICES)
    assert all("applied chassis/0001" in line for line in lines)
    for service in SERVICES:
        schema = service.replace("-", "_")
        assert await connection.fetchval("SELECT to_regclass($1)", f"{schema}.outbox")
        assert await connection.fetchval(f"SELECT count(*) FROM {schema}.migrations WHERE name LIKE '{schema}/%'")

    again = await run(database)
    assert again.stdout.splitlines() == [f"{service}: up to date" for service in SERVICES]
    applied = {service: [] for service in SERVICES}
    assert json.loads((await run(database, "--json")).stdout) == {"applied": applied, "not_installed": []}


@pytest.mark.parametrize("service", SERVICES)
def test_the_libraries_of_a_service_are_those_that_it_names_itself(service: str) -> None:
    """Its schema would lack tables otherwise, or have them in another order."""
    (folder,) = find_spec(service.replace("-", "_")).submodule_search_locations
    stated = [
        ast.unparse(library).removesuffix(".MIGRATIONS")
        for node in ast.walk(ast.parse((Path(folder) / "app.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg == "libraries"
        for library in node.value.elts
    ]
    assert list(migrate.LIBRARIES.get(service, ())) == stated


async def test_services_that_are_not_installed_are_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there are migrated; with none there is nothing to do, and that is an error."""
    monkeypatch.setattr(migrate, "find_spec", lambda name: find_spec(name) if name == "triage" else None)
    done = await run(database)
    assert done.stdout.splitlines()[1:] == [
        "Not installed here, so not migrated: reporter, submitter, verdict-poller, blocklist, quarantine."
    ]
    monkeypatch.setattr(migrate, "find_spec", lambda _name: None)
    nothing = await run(database)
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert nothing.stderr.startswith("No service is installed here, so nothing was migrated.")


async def test_a_schema_of_another_version_is_refused(
    database: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """What a newer version applied is not taken back."""
    await run(database)
    await connection.execute("INSERT INTO triage.migrations VALUES ('triage/9999_later.sql', 'x')")
    refused = await run(database)
    assert refused.exit_code == 1
    (said,) = refused.stderr.splitlines()
    assert said.startswith("The schema of triage is of another version: triage/9999_later.sql was applied to it")


@pytest.mark.parametrize(
    ("dsn", "code", "begins"),
    [
        ("postgresql://me:s3cret@127.0.0.1:1/x", 1, "PostgreSQL does not answer ("),
        ("postgresql://me:s3/cret@[/x", 2, "BACKSTOP_POSTGRES_DSN: write it as "),
        ("mysql://me:s3cret@localhost/x", 2, "BACKSTOP_POSTGRES_DSN: write it as "),
    ],
)
async def test_a_wrong_dsn_is_one_line_without_it(dsn: str, code: int, begins: str) -> None:
    """It holds a password."""
    result = await run(dsn)
    assert (result.exit_code, result.stdout) == (code, "")
    (said,) = result.stderr.splitlines()
    assert said.startswith(begins)
    assert "s3" not in said


async def test_a_refused_login_is_one_line(database: str) -> None:
    """Such as a database that is not there."""
    result = await run(f"{database}_missing")
    assert result.exit_code == 1
    (said,) = result.stderr.splitlines()
    assert said.startswith("PostgreSQL refused: InvalidCatalogNameError (SQLSTATE 3D000). ")
