"""When something is away or wrong, a command says so in one line, and what to do; never with a traceback."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web
from click.testing import Result
from typer.testing import CliRunner

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


async def test_a_token_of_two_lines_is_none(tmp_path: Path) -> None:
    """It would be the begin of another header."""
    mail = tmp_path / "mail.eml"
    mail.write_text("From: a@proseware.example\n\nhello")

    result = await backstop("report", str(mail), "--gateway", f"http://{NOBODY}", env={"BACKSTOP_TOKEN": "s3cret\nx"})

    assert result.exit_code == 2
    assert result.stderr == "Not reported: BACKSTOP_TOKEN holds more than one line, or what is no text.\n"


async def test_topics_have_as_many_copies_as_there_are_brokers_up_to_three(kafka_bootstrap: str) -> None:
    """One broker means one copy: that is done, and said, because a lost disk would take events along."""
    options = ("topics", "create", "--kafka-bootstrap", kafka_bootstrap, "--prefix", f"test-{uuid4().hex[:8]}")

    made = await backstop(*options, "--partitions", "1")

    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("created ")
    assert "one copy" in made.stderr
    again = await backstop(*options)
    assert (again.stdout, again.stderr) == ("all topics are there already\n", "")


async def test_more_copies_than_brokers_are_refused_in_kafkas_words(kafka_bootstrap: str) -> None:
    """Whoever asks for more than there can be hears it."""
    prefix = f"test-{uuid4().hex[:8]}"

    said = line(
        await backstop("topics", "create", "--kafka-bootstrap", kafka_bootstrap, "--prefix", prefix, "--replication=3")
    )

    assert said.startswith(f"Kafka at {kafka_bootstrap} refused: topic {prefix}.")
    assert "eplication" in said


@pytest.fixture
def mail(tmp_path: Path) -> str:
    """Write a mail."""
    file = tmp_path / "mail.eml"
    file.write_text("From: a@fabrikam.example\n\nHello")
    return str(file)


async def test_a_report_to_a_gateway_that_is_away_is_one_line(mail: str) -> None:
    """Sending it again is safe, and the line says so."""
    said = line(await backstop("report", mail, "--gateway", f"http://{NOBODY}", "--token", "token"))

    assert said.startswith(f"Not reported: the gateway at http://{NOBODY} does not answer (")
    assert "counts once" in said


@pytest.mark.parametrize("url", ["s3cret", "https://[s3cret", "https://user:s3cret@gateway", "https://gateway:s3cret"])
async def test_an_address_that_is_none_is_one_line_without_it(mail: str, url: str) -> None:
    """It may hold a password."""
    said = line(await backstop("report", mail, "--gateway", url, "--token", "token"), 2)

    assert said.startswith("Not reported: BACKSTOP_GATEWAY_URL: write it as https://host")
    assert "s3cret" not in said


async def test_a_report_to_something_else_than_a_gateway_is_one_line(mail: str) -> None:
    """Such as a proxy's own page."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")

    proxy = web.Application()
    proxy.router.add_route("*", "/{anything:.*}", answer)
    runner = web.AppRunner(proxy)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]

    said = line(await backstop("report", mail, "--gateway", f"http://127.0.0.1:{port}", "--token", "token"))

    await runner.cleanup()
    assert said.startswith("Not reported: Bad Gateway: ")
    assert "no answer of Backstop's" in said
