"""What the README and `make up` print works as printed."""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from local_stack.backing import Backing

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
async def printed(backing_services: Backing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Do what `make up` does, on the run's Kafka and PostgreSQL; return what it prints."""
    env = {
        "BACKSTOP_STATE": str(tmp_path_factory.mktemp("readme")),
        "BACKSTOP_KAFKA_BOOTSTRAP": backing_services.kafka_bootstrap,
        "BACKSTOP_POSTGRES_DSN": backing_services.postgres_dsn,
    }
    said = await run(sys.executable, "-P", "-m", "local_stack", "up", env=env)
    yield said
    await run(sys.executable, "-P", "-m", "local_stack", "down", env=env)


async def run(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, command
    return said.decode()


def commands(printed: str, begin: str) -> str:
    """Return the indented commands below the paragraph that begins with *begin*."""
    paragraph = next(part for part in printed.split("\n\n") if part.startswith(begin))
    lines = paragraph.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  "))
    return "\n".join(lines[first:])


@asynccontextmanager
async def subscriber(printed: str, folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Run the program of the README with the variables that are printed; yields its output."""
    (program,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    file = folder / "verdicts.py"
    file.write_text(program)
    export = commands(printed, "For programs that subscribe")
    reader = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"{export}\nexec {sys.executable} {shlex.quote(str(file))}"), stdout=asyncio.subprocess.PIPE
    )
    assert reader.stdout
    try:
        yield reader.stdout
    finally:
        reader.kill()
        await reader.wait()


async def test_a_report_made_as_printed_ends_in_a_printed_verdict(printed: str, tmp_path: Path) -> None:
    """`make up`, the README's subscriber and one curl: the policy submits, Microsoft judges, the program says so."""
    async with subscriber(printed, tmp_path) as verdicts, asyncio.timeout(90):
        answer = await run("bash", "-c", commands(printed, "Report a mail"))
        assert '"repeated":false' in answer.replace(" ", "")

        line = (await verdicts.readline()).decode()

    assert "threatsFound" in line
    cases = await run("bash", "-c", commands(printed, "See the cases"))
    assert line.split()[0] in cases


async def test_a_decision_is_made_as_printed(printed: str, tmp_path: Path) -> None:
    """A case that the policy leaves open is submitted by the admin's curl."""
    report = commands(printed, "Report a mail").replace(
        "reported_as=phishing&folder=inbox", "reported_as=junk&folder=junk"
    )
    mail = tmp_path / "mail.eml"
    mail.write_text("From: a@reader.example\nMessage-ID: <junk@reader.example>\n\nSee https://x.phish.example now.")
    await run("bash", "-c", re.sub(r"@\S+\.eml", f"@{mail}", report))
    listing = commands(printed, "See the cases")
    async with asyncio.timeout(60):
        while not (found := re.findall(r'"case_id":"([^"]+)"', await run("bash", "-c", f'{listing}"?status=open"'))):
            await asyncio.sleep(0.2)

    decision = commands(printed, "Decide on a case")
    signed_in = listing.partition("\n  curl -H")[0]
    await run("bash", "-c", f"{signed_in}\nCASE={found[0]}\n{decision.replace('curl ', 'curl --fail ', 1)}")
