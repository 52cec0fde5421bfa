"""What the pytest plugin promises of a fast run."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

TESTS = """
from local_stack.postgres import start_postgres
from local_stack.supervisor import Supervisor

pytest_plugins = ["local_stack.pytest_plugin"]

def test_that_asks_for_the_fixture_late(request):
    request.getfixturevalue("postgres_dsn")

async def test_that_starts_postgresql_itself(tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        await start_postgres(supervisor)
"""


@pytest.mark.slow
async def test_a_fast_run_fails_where_a_test_would_start_kafka_or_postgresql(tmp_path: Path) -> None:
    """Whichever way it does so, the failure says how the test is marked."""
    (tmp_path / "test_unmarked.py").write_text(TESTS)
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "pytest", "-o", "asyncio_mode=auto", "-m", "not slow", "--rootdir", tmp_path),
        cwd=tmp_path,
        env={**os.environ, "BACKSTOP_STATE": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await run.communicate()

    assert run.returncode == 1
    assert b"2 failed" in said
    assert said.count(b"Failed: A run with -m 'not slow' starts neither") >= 2
