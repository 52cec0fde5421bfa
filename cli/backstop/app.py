"""The `backstop` command: its groups, its version, its completion. What they need is loaded when they run."""

import click

from backstop.cases import cases
from backstop.dead import dead
from backstop.explain import explain
from backstop.migrate import migrate
from backstop.reports import report, status
from backstop.topics import topics

PARTS = ("backstop-cli", "backstop-contracts", "backstop-chassis")


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import platform  # noqa: PLC0415 - only here
    from importlib.metadata import version  # noqa: PLC0415 - as above

    for part in PARTS:
        click.echo(f"{part} {version(part)}")
    click.echo(f"Python {platform.python_version()}")
    context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of the command and of the parts that it uses.",
)
def app() -> None:
    """
    Operate Backstop from the command line.

    Settings come from the same environment variables as those of the services; each is an option too. The exit code is
    1 when something could not be done, and 2 when options or settings do not fit; stderr says why.
    """


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """
    Print a completion script for a shell.

    In ~/.bashrc: source <(backstop completion bash)
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - only here

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has these three
    click.echo(kind(app, {}, "backstop", "_BACKSTOP_COMPLETE").source())


for command in (topics, migrate, dead, report, status, cases, explain):
    app.add_command(command)
