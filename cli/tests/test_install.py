"""The command is small: what it installs, what it loads, and what it says about itself."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from backstop.app import app

HEAVY = (
    "aiohttp",
    "fastapi",
    "faststream",
    "opentelemetry",
    "prometheus_client",
    "rich",
    "starlette",
    "typer",
    "uvicorn",
)
FOREIGN = ("demo", "local_stack", "m365", "mail", "simulator", "testcontainers")
MOST_MB = 45


def paths(command: click.Command, path: tuple[str, ...] = ()) -> list[list[str]]:
    """Return the names of a command and of all below it."""
    below = command.commands if isinstance(command, click.Group) else {}
    return [list(path), *(found for name, one in below.items() for found in paths(one, (*path, name)))]


def loaded_by(program: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after *program*."""
    program += "\nimport sys\nprint('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)  # noqa: S603
    return set(done.stdout.rpartition("loaded:")[2].split())


def requirements_of(name: str, found: dict[str, metadata.Distribution]) -> None:
    """Collect the distributions that pip installs for *name*, without extras beyond those that are asked for."""
    base, _, extras = name.partition("[")
    wanted = {"", *extras.rstrip("]").split(",")}
    if name in found:
        return
    found[name] = metadata.distribution(base)
    for line in found[name].requires or ():
        stated, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        # Other markers are about Windows and older Pythons.
        if (marker and not extra) or (extra and extra[1] not in wanted):
            continue
        requirement = re.match(r"[\w.-]+(\[[\w,-]+\])?", stated.strip())
        assert requirement is not None
        requirements_of(requirement[0], found)


def test_the_command_adds_at_most_45_mb_to_an_environment() -> None:
    """Counted over the files of everything that it requires, in blocks of a disk."""
    found: dict[str, metadata.Distribution] = {}
    requirements_of("backstop-cli", found)
    files = {Path(str(file.locate())) for one in found.values() for file in one.files or ()}
    size = sum(-(-file.stat().st_size // 4096) * 4096 for file in files if file.is_file())
    assert size < MOST_MB << 20, f"{size >> 20} MB: {sorted(found)}"
    assert not {name.partition("[")[0] for name in found} & {"backstop-local", "backstop-mail", *HEAVY}


@pytest.mark.slow  # each starts a Python
@pytest.mark.parametrize("path", paths(app), ids=" ".join)
def test_help_loads_neither_asyncpg_nor_aiokafka(path: list[str]) -> None:
    """Nor anything else that takes time."""
    program = f"from backstop.app import app\napp({[*path, '--help']!r}, standalone_mode=False)"
    assert not loaded_by(program) & {"asyncpg", "aiokafka", "chassis", "pydantic", "urllib3", *HEAVY, *FOREIGN}


@pytest.mark.slow  # it starts a Python
def test_nothing_that_only_services_need_is_loaded_by_any_command() -> None:
    """Each module of the command and of the chassis that it uses."""
    program = (
        "import backstop.app, backstop.dead_letter_rows, chassis.dead_letters, chassis.migrations, chassis.postgres\n"
        "import chassis.settings, chassis.topics\n"
        "chassis.settings.KafkaSettings().kafka_options()"
    )
    # structlog takes rich where it finds it.
    assert not loaded_by(program) & ({*HEAVY, *FOREIGN} - {"rich"})


def test_the_version_is_printed() -> None:
    """Of the command, and of the parts that must fit it."""
    said = CliRunner().invoke(app, ["--version"]).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["backstop-cli", "backstop-contracts", "backstop-chassis", "Python"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_printed(shell: str) -> None:
    """And the variable that it sets is the one that the command answers to."""
    script = CliRunner().invoke(app, ["completion", shell]).stdout
    assert "_BACKSTOP_COMPLETE" in script
    env = {"_BACKSTOP_COMPLETE": "bash_complete", "COMP_WORDS": "backstop dea", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, prog_name="backstop", env=env).stdout == "plain,dead\n"


def test_every_command_that_prints_a_result_can_print_json() -> None:
    """The groups print help, and completion a script."""
    for path in paths(app):
        command: click.Command = app
        for name in path:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        if not isinstance(command, click.Group) and command.name != "completion":
            assert any("--json" in option.opts for option in command.params), path
