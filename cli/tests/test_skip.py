"""`backstop topics skip` moves a service past a record that cannot be read, and past nothing else."""

import asyncio
import json
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner, Result

from backstop.app import app
from chassis.testing import NotUtf8, batch_of_any_header
from chassis.topics import create_topics


@pytest.fixture
async def prefix(kafka_bootstrap: str) -> str:
    """Make topics whose case-updated begins with two unreadable batches and ends with a good record, at offset 3."""
    prefix = f"test-{uuid4().hex[:8]}"
    await create_topics(kafka_bootstrap, prefix=prefix, partitions=1, replication=1)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    for size in (2, 1):
        batch = batch_of_any_header(producer)
        for number in range(size):
            headers = [] if number else [(NotUtf8("x"), b"x")]
            batch.append(timestamp=None, key=b"key", value=b"value", headers=headers)
        await (await producer.send_batch(batch, f"{prefix}.case-updated", partition=0))
    await producer.send_and_wait(f"{prefix}.case-updated", b"value")
    await producer.stop()
    return prefix


async def skip(kafka_bootstrap: str, prefix: str, *arguments: str) -> Result:
    """Run the command."""
    env = {"BACKSTOP_KAFKA_BOOTSTRAP": kafka_bootstrap, "BACKSTOP_TOPIC_PREFIX": prefix}
    return await asyncio.to_thread(CliRunner().invoke, app, ["topics", "skip", *arguments], env=env)


async def test_what_is_skipped_is_said(kafka_bootstrap: str, prefix: str) -> None:
    """Also what was lost with it; and the same again is refused, as the service stands elsewhere now."""
    where = "triage", "case-updated", "0"
    result = await skip(kafka_bootstrap, prefix, *where, "0", "--json")
    # The second batch is unreadable too: it goes with the first, or the service would stop again at once.
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"skipped": [0, 1, 2], "next": 3}
    result = await skip(kafka_bootstrap, prefix, *where, "0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Nothing was skipped. The group {prefix}.triage.case-updated is at offset 3 of {prefix}.case-updated,"
        " partition 0.\n"
    )
    result = await skip(kafka_bootstrap, prefix, "triage", f"{prefix}.case-updated", "0", "3")
    assert "can be read" in result.stderr

    result = await skip(kafka_bootstrap, prefix, "reporter", "case-updated", "0", "0")
    assert result.stdout.startswith("Skipped offsets 0 to 2: those behind 0")
    assert "reporter continues at offset 3" in result.stdout


async def test_a_service_that_is_none_is_refused(kafka_bootstrap: str, prefix: str) -> None:
    """Its group would be made by asking."""
    result = await skip(kafka_bootstrap, prefix, "nobody", "case-updated", "0", "0")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "There is no service nobody" in result.stderr
