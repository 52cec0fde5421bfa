"""`backstop dead`: see why a service could not handle events, and have them handled again or drop them."""

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from backstop.output import Command, fail, json_lines_option, json_option, print_json
from backstop.settings import SERVICES, postgres_at, postgres_option

if TYPE_CHECKING:
    from backstop.dead_letter_rows import Letters
    from chassis.dead_letters import Wanted

T = TypeVar("T")

dsn_option = postgres_option("The services' database, with the right to change the tables in their schemas.")
ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1)
all_option = click.option("--all", "everything", is_flag=True, help="All of --service that match, not single ones.")


def filters(command: Command) -> Command:
    """Add the options that choose letters."""
    for option in (
        click.option("--topic", help="Only those from this topic, named with or without the prefix."),
        click.option("--reason", help="Only those with this text in their reason."),
        click.option("--error", help="Only those with this error class, exactly."),
        click.option("--service", help="Only those of this service."),
    ):
        command = option(command)
    return command


@click.group()
def dead() -> None:
    """See, replay and drop what services could not handle."""


@dead.command("list")
@dsn_option
@filters
@click.option("--all", "everything", is_flag=True, help="Also those that were replayed or dropped.")
@json_lines_option
def list_letters(
    dsn: str,
    service: str | None,
    error: str | None,
    reason: str | None,
    topic: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """List the unresolved dead letters, of one service or of all. Never prints a payload."""
    from backstop.dead_letter_rows import print_list  # noqa: PLC0415 - `--help` loads no asyncpg

    wanted = _wanted(topic, error, reason, unresolved=not everything)
    _run(dsn, lambda letters: print_list(letters, service, wanted, as_json=as_json))


@dead.command()
@click.argument("letter_id", metavar="ID")
@dsn_option
@json_option
def show(letter_id: str, dsn: str, as_json: bool) -> None:
    """
    Show one dead letter with its headers and its PAYLOAD.

    ID is <service>:<number>, from `list`. The payload is an event and may be private: subjects, addresses, what a user
    wrote. Mind where you show it. A payload that is not JSON is shown as a Python bytes literal.
    """
    from backstop.dead_letter_rows import json_of, text_of  # noqa: PLC0415 - as above

    found = _run(dsn, lambda letters: letters.find(letter_id))
    click.echo(json_of(*found) if as_json else text_of(*found))


@dead.command()
@ids_argument
@dsn_option
@filters
@all_option
@click.option(
    "--old", is_flag=True, help="Also those parked more than 7 days ago. Services may handle their events twice."
)
@json_option
def replay(
    ids: tuple[str, ...],
    dsn: str,
    service: str | None,
    error: str | None,
    reason: str | None,
    topic: str | None,
    everything: bool,
    old: bool,
    as_json: bool,
) -> None:
    """
    Publish dead letters again, unchanged.

    They go to the topics they came from. Name single ones by their IDs from `list`, or all that match with --service
    and --all. The service's relay publishes them, so the service must run. Every service that reads the topic sees them
    again; one that has handled an event before does nothing, unless its case has expired since: hence --old. A letter
    that fails again becomes a new one.
    """
    from backstop.dead_letter_rows import count_of  # noqa: PLC0415 - as above

    _check_choice(ids, service, everything, error, reason, topic)
    wanted = _wanted(topic, error, reason)

    async def work(letters: "Letters") -> tuple[list[str], list[str]]:
        replayed, refused = [], []
        for name, chosen in (await letters.choose(ids, service, wanted)).items():
            done = await letters.replay(name, chosen, _operator(), old=old)
            replayed += [f"{name}:{number}" for number in done]
            refused += [f"{name}:{number}" for number in chosen if number not in set(done)]
        return replayed, refused

    replayed, refused = _run(dsn, work)
    for letter_id in refused:
        why = "it is larger than an event may be, or older than 7 days (see --old), or was resolved by somebody else"
        click.secho(f"Not replayed: {letter_id}: {why}. It was left as it is.", err=True, fg="red")
    if as_json:
        print_json({"replayed": replayed, "refused": refused})
    else:
        click.echo(f"{count_of(len(replayed))} replayed.")
    if refused:
        raise click.exceptions.Exit(1)


@dead.command()
@ids_argument
@dsn_option
@filters
@all_option
@click.option("--yes", "sure", is_flag=True, help="Do not ask.")
@json_option
def drop(
    ids: tuple[str, ...],
    dsn: str,
    service: str | None,
    error: str | None,
    reason: str | None,
    topic: str | None,
    everything: bool,
    sure: bool,
    as_json: bool,
) -> None:
    """
    Resolve dead letters without having them handled.

    Name single ones by their IDs from `list`, or all that match with --service and --all. `list --all` and `show` find
    them for 30 more days.
    """
    from backstop.dead_letter_rows import count_of  # noqa: PLC0415 - as above

    _check_choice(ids, service, everything, error, reason, topic)
    wanted = _wanted(topic, error, reason)

    async def work(letters: "Letters") -> list[str]:
        chosen = await letters.choose(ids, service, wanted)
        count = count_of(sum(map(len, chosen.values())))
        if chosen and not sure:
            click.confirm(f"Drop {count} of {', '.join(chosen)}? No service will see them again.", abort=True, err=True)
        return [
            f"{name}:{number}"
            for name, numbers in chosen.items()
            for number in await letters.drop(name, numbers, _operator())
        ]

    dropped = _run(dsn, work)
    if as_json:
        print_json({"dropped": dropped})
    else:
        click.echo(f"{count_of(len(dropped))} dropped.")


def _wanted(topic: str | None, error: str | None, reason: str | None, *, unresolved: bool = True) -> "Wanted":
    from backstop.dead_letter_rows import topic_of  # noqa: PLC0415 - as above
    from chassis.dead_letters import Wanted  # noqa: PLC0415 - as above

    return Wanted(None, "unresolved" if unresolved else None, topic_of(topic), error, reason)


def _operator() -> str:
    """Return who acts, as far as this machine can tell."""
    try:
        return f"backstop dead, by {getpass.getuser()}"
    except (KeyError, OSError):
        return "backstop dead"


def _check_choice(ids: tuple[str, ...], service: str | None, everything: bool, *chosen: str | None) -> None:
    if ids and (service or everything or any(chosen)):
        raise click.UsageError("Name single dead letters, or a service with --all; not both.")
    if not ids and not (service and everything):
        raise click.UsageError("Name the ids of dead letters, or --service and --all.")


def _run(dsn: str, work: "Callable[[Letters], Awaitable[T]]") -> T:
    from backstop.dead_letter_rows import Letters, LettersError  # noqa: PLC0415 - as above

    async def job() -> T:
        async with Letters(dsn, SERVICES) as letters:
            return await work(letters)

    with postgres_at(dsn, "Nothing was changed."):
        try:
            return asyncio.run(job())
        except LettersError as error:
            fail(str(error))
