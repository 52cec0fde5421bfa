"""When something is away or wrong, a command says so in one line, and what to do; never with a traceback."""

import asyncio
import json
from collections.abc import Mapping
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from backstop.app import app

NOBODY = "127.0.0.1:1"


async def backstop(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    """Run a command."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)


def line(result: Result, code: int = 1) -> str:
    """Return the one line that a command which failed has said."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (said,) = result.stderr.splitlines()
    return said


async def test_topics_on_a_kafka_that_is_away_are_one_line() -> None:
    """It names the address."""
    said = line(await backstop("topics", "create", "--kafka-bootstrap", NOBODY))

    assert said.startswith(f"Kafka at {NOBODY} does not answer (")


@pytest.mark.parametrize("command", [("topics", "create"), ("topics", "skip", "triage", "case-updated", "0", "0")])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_BOOTSTRAP", "localhost:s3cret"),
        ("KAFKA_BOOTSTRAP", "s3cret://localhost:9092"),
        ("KAFKA_SECURITY_PROTOCOL", "s3cret"),
        ("KAFKA_CA_FILE", "/s3cret"),
        ("KAFKA_CA_FILE", __file__),
        ("SECRETS_DIR", "/s3cret"),
    ],
)
async def test_a_wrong_setting_is_one_line_with_its_name_and_without_its_value(
    command: tuple[str, ...], name: str, value: str
) -> None:
    """As a service says it."""
    settings = {"BACKSTOP_KAFKA_BOOTSTRAP": NOBODY, f"BACKSTOP_{name}": value}

    result = await backstop(*command, env=settings)

    assert (result.exit_code, result.stdout) == (2, "")
    (said,) = result.stderr.splitlines()
    assert said.startswith(f"BACKSTOP_{name}: ")
    assert value not in said
    assert "s3cret" not in said


async def test_topics_have_as_many_copies_as_there_are_brokers_up_to_three(kafka_bootstrap: str) -> None:
    """One broker means one copy: that is done, and said, because a lost disk would lose events."""
    options = ("topics", "create", "--kafka-bootstrap", kafka_bootstrap, "--prefix", f"test-{uuid4().hex[:8]}")

    made = await backstop(*options, "--partitions", "1")

    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("Created ")
    assert "one copy" in made.stderr
    again = await backstop(*options)
    assert (again.stdout, again.stderr) == ("All topics exist already.\n", "")
    assert json.loads((await backstop(*options, "--json")).stdout) == {"created": []}


async def test_more_copies_than_brokers_are_refused_in_kafkas_words(kafka_bootstrap: str) -> None:
    """Whoever asks for more than there can be hears it."""
    prefix = f"test-{uuid4().hex[:8]}"

    said = line(
        await backstop("topics", "create", "--kafka-bootstrap", kafka_bootstrap, "--prefix", prefix, "--replication=3")
    )

    assert said.startswith(f"Kafka at {kafka_bootstrap} refused: topic {prefix}.")
    assert "eplication" in said
