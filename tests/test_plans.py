"""What a service does all the time is read by an index, however much is stored."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from asyncpg.connection import LoggedQuery

from bench.environment import open_schema
from bench.full_tables import HOT, LARGE, Place, fill, middle
from chassis.postgres import Database, Tx
from local_stack.backing import own_database

ROWS = 20_000
"""Enough that PostgreSQL would not read all of them for a few."""


@pytest.fixture(scope="module")
async def full(postgres_dsn: str) -> AsyncIterator[Mapping[str, Database]]:
    """Provide the tables of each service, full."""
    async with AsyncExitStack() as life:
        dsn = await life.enter_async_context(own_database(postgres_dsn, "plans"))
        databases = {service: await life.enter_async_context(open_schema(dsn, service)) for service in LARGE}
        for service, database in databases.items():
            await fill(database, service, ROWS)
        yield databases


async def asked(tx: Tx, step: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Take *step*; return the statements that it asked, with their values."""
    statements: list[tuple[str, tuple[Any, ...]]] = []

    async def note(query: LoggedQuery) -> None:
        statements.append((query.query, tuple(query.args)))

    tx.add_query_logger(note)
    try:
        await step
    finally:
        tx.remove_query_logger(note)
    await asyncio.sleep(0)
    return statements


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a plan's nodes."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


async def read_whole(tx: Tx, statements: list[tuple[str, tuple[Any, ...]]], large: set[str]) -> list[str]:
    """Return those of *statements* whose plan reads a *large* table from its beginning to its end."""
    guilty = []
    for query, values in statements:
        try:
            said = await tx.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *values)
        except asyncpg.PostgresSyntaxError:
            continue  # no statement that has a plan
        plan = (json.loads(said) if isinstance(said, str) else said)[0]["Plan"]
        if any(node["Node Type"] == "Seq Scan" and node["Relation Name"] in large for node in nodes(plan)):
            guilty.append(query)
    return guilty


@pytest.mark.parametrize(("service", "name"), HOT, ids=lambda value: value)
async def test_a_hot_step_reads_no_table_from_end_to_end(full: Mapping[str, Database], service: str, name: str) -> None:
    """Matching reports, claiming what is due, and pages of the list, at any depth."""
    place: Place = await middle(full["triage"])
    async with full[service].transaction() as tx:
        statements = await asked(tx, HOT[service, name](tx, place))
        assert await read_whole(tx, statements, LARGE[service]) == []

    assert statements
