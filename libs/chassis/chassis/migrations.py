"""Numbered SQL files, each applied once to the schema of a service."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import asyncpg

MIGRATION_SECONDS = 600
"""Longest time that one statement of a migration may take, and that replicas wait for each other's."""


class MigrationError(RuntimeError):
    """The schema in the database is not the one that this code was written for."""


async def migrate(
    connection: "asyncpg.Connection[asyncpg.Record]",
    schema: str,
    files: Mapping[str, bytes],
    on_applied: Callable[[str], None],
) -> None:
    """
    Apply those of *files*, which are SQL by name, that *schema* does not have yet, in their order.

    *on_applied* is called with the name of each file that was applied. Each file runs in one transaction. Replicas
    that start together take turns. Raises MigrationError when a file that was applied before has changed since, or is
    not there any more.
    """
    await connection.execute("SELECT pg_advisory_lock(hashtext('migrate'), hashtext($1))", schema)
    try:
        # IF NOT EXISTS would ask for the right to create what is there.
        if not await connection.fetchval("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL", schema):
            await connection.execute(f'CREATE SCHEMA "{schema}"')
        if not await connection.fetchval("SELECT to_regclass(quote_ident($1) || '.migrations') IS NOT NULL", schema):
            await connection.execute(
                "CREATE TABLE migrations (name text PRIMARY KEY, sha256 text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
        applied = {row["name"]: row["sha256"] for row in await connection.fetch("SELECT name, sha256 FROM migrations")}
        _check_history(applied, files)
        for name, sql in files.items():
            if name not in applied:
                async with connection.transaction():
                    await connection.execute(sql.decode())
                    await connection.execute("INSERT INTO migrations VALUES ($1, $2)", name, _sha256(sql))
                on_applied(name)
    finally:
        await connection.execute("SELECT pg_advisory_unlock(hashtext('migrate'), hashtext($1))", schema)


def _check_history(applied: Mapping[str, str], files: Mapping[str, bytes]) -> None:
    for name, sha256 in applied.items():
        if name not in files:
            raise MigrationError(
                f"{name} was applied to it, and this version has no such file: run the version that made it"
            )
        if sha256 != _sha256(files[name]):
            raise MigrationError(f"{name} was changed after it had been applied: put the change into a new file")


def read_sql(source: str, folder: Path) -> dict[str, bytes]:
    """Return the SQL files of *folder* in their order, by *source* and name."""
    return {f"{source}/{file.name}": file.read_bytes() for file in sorted(folder.glob("*.sql"))}


def _sha256(sql: bytes) -> str:
    return hashlib.sha256(sql).hexdigest()
