"""`backstop migrate`: bring the schemas of the installed services up to date before the services start."""

import asyncio
from importlib.util import find_spec
from pathlib import Path

import click

from backstop.output import fail, json_option, print_json
from backstop.settings import SERVICES, postgres_at, postgres_option

LIBRARIES = {"reporter": ("outcomes",), "quarantine": ("outcomes",)}
"""Libraries that keep tables in a service's schema, as its `app.py` names them: a test compares the two."""
KEPT = "Migrations that were applied before stay applied. Fix this, then run the command again."


@click.command()
@postgres_option("The services' database, with the right to create schemas and tables.")
@json_option
def migrate(dsn: str, as_json: bool) -> None:
    """
    Bring the installed services' schemas up to date.

    Each service does this itself when it starts. Run it first when the services' own role may not change tables.
    Migrations that were applied before are not applied again.
    """
    from chassis.migrations import MigrationError  # noqa: PLC0415 - `--help` loads no asyncpg
    from chassis.postgres import Database  # noqa: PLC0415 - as above

    folders = {service: folder for service in SERVICES if (folder := migrations_of(service))}
    if not folders:
        fail(f"No service is installed here, so nothing was migrated. Install those you run: {', '.join(SERVICES)}.")
    applied: dict[str, list[str]] = {service: [] for service in folders}
    with postgres_at(dsn, KEPT):
        for service, folder in folders.items():
            database = Database(dsn, schema=service.replace("-", "_"))
            try:
                asyncio.run(
                    database.migrate(folder, libraries=libraries_of(service), on_applied=applied[service].append)
                )
            except MigrationError as error:
                fail(f"The schema of {service} is of another version: {error}. {KEPT}")
            if not as_json:
                done = ", ".join(applied[service])
                click.echo(f"{service}: applied {done}" if done else f"{service}: up to date")
    missing = [service for service in SERVICES if service not in folders]
    if as_json:
        print_json({"applied": applied, "not_installed": missing})
    elif missing:
        click.echo(f"Not installed here, so not migrated: {', '.join(missing)}.")


def libraries_of(service: str) -> list[Path]:
    """Return the folders with the migrations of the libraries that *service* uses, which pip installs along with it."""
    folders = [(library, migrations_of(library)) for library in LIBRARIES.get(service, ())]
    if missing := [library for library, folder in folders if folder is None]:
        fail(f"{service} is installed without its library {', '.join(missing)}. Install it again. {KEPT}")
    return [folder for _, folder in folders if folder]


def migrations_of(part: str) -> Path | None:
    """Return the folder with the migrations of a service or library, without importing it; None when there is none."""
    spec = find_spec(part.replace("-", "_"))
    folders = [Path(place) / "migrations" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((folder for folder in folders if folder.is_dir()), None)
