"""What waits is a metric, and it stays true while nobody can look."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import REGISTRY

from chassis import backlog_metrics
from chassis.backlog_metrics import Sampler
from chassis.postgres import Database


@pytest.fixture
async def db(database: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Open a database with rows that are due, and one that is not."""
    (tmp_path / "0001_rows.sql").write_text(
        "CREATE TABLE rows AS SELECT now() + age AS due_at FROM unnest('{-90 s,-10 s,1 h}'::interval[]) AS age"
    )
    db = Database(database, schema="triage")
    await db.open(tmp_path)
    yield db
    await db.close()


def gauge(name: str, **labels: str) -> float:
    """Read a metric."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_what_waits_is_measured_and_grows_older_while_postgresql_is_away(
    db: Database, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower measures as well; without PostgreSQL nothing can be taken away, so the ages go on."""
    monkeypatch.setattr(backlog_metrics, "SAMPLE_SECONDS", 0.05)
    await db.pool.execute(
        "INSERT INTO outbox (topic, key, headers, payload, created_at)"
        " VALUES ('t', 'k', '{}', '', now() - interval '30 s'), ('t', 'k', '{}', '', now())"
    )
    await db.pool.execute(
        'INSERT INTO dead_letters (topic, topic_id, partition, "offset", header_names, header_values, error, reason)'
        " VALUES ('t', gen_random_uuid(), 0, 0, '{}', '{}', 'KeyError', 'KeyError')"
    )
    admin = await asyncpg.connect(database.rpartition("/")[0] + "/postgres")
    name = database.rpartition("/")[2]
    sampler = Sampler(db, {"sampled": "SELECT due_at FROM rows"}, None)
    task = asyncio.create_task(sampler.run())
    async with asyncio.timeout(30):
        while gauge("backstop_due_rows", work="sampled") != 2:
            await asyncio.sleep(0.02)
        assert gauge("backstop_outbox_events") == 2
        assert gauge("backstop_dead_letters_unresolved") == 1
        assert 30 <= gauge("backstop_outbox_oldest_seconds") < 60
        assert 90 <= gauge("backstop_due_oldest_seconds", work="sampled") < 120

        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        while await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name):
            await asyncio.sleep(0.02)
        last = None
        while last != (last := gauge("backstop_sampled_timestamp_seconds")):
            await asyncio.sleep(0.5)
        age = gauge("backstop_outbox_oldest_seconds")
        while gauge("backstop_outbox_oldest_seconds") <= age:
            await asyncio.sleep(0.02)
        assert gauge("backstop_outbox_events") == 2
        assert gauge("backstop_sampled_timestamp_seconds") == last
        assert not task.done()

        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        while gauge("backstop_sampled_timestamp_seconds") == last:
            await asyncio.sleep(0.02)
    await sampler.stop()
    await asyncio.wait_for(task, 10)
    await admin.close()
