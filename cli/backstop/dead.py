"""`backstop dead`: see why a service could not handle events, and have them handled again or drop them."""

import asyncio
import getpass
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from backstop.settings import SERVICES, fail, postgres_at

if TYPE_CHECKING:
    from backstop.letters import Letters

dead = typer.Typer(help="Dead letters: events that a service could not handle.", no_args_is_help=True)

T = TypeVar("T")
Id = Annotated[str, typer.Argument(metavar="ID", help="<service>:<number>, from `list`.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="<service>:<number>, from `list`.")]
Dsn = Annotated[
    str,
    typer.Option(
        "--postgres-dsn",
        envvar="BACKSTOP_POSTGRES_DSN",
        show_envvar=True,
        help="The services' database, with the right to change the tables in their schemas.",
    ),
]
Service = Annotated[str | None, typer.Option(help="The service that could not handle them.")]
Error = Annotated[str | None, typer.Option(help="The error's class, exactly.")]
Reason = Annotated[str | None, typer.Option(help="A part of the reason.")]
Topic = Annotated[str | None, typer.Option(help="The topic they came from.")]
Everything = Annotated[bool, typer.Option("--all", help="All of the service that match, instead of single ones.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: one object a line.")]


@dead.command("list")
def list_letters(
    dsn: Dsn,
    service: Service = None,
    error: Error = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were replayed or dropped.")] = False,
    as_json: Json = False,
) -> None:
    """List the unresolved dead letters, of one service or of all. Never prints a payload."""
    from backstop.letters import print_list, topic_of  # noqa: PLC0415 - `backstop --help` should be quick
    from chassis.dead_letters import Wanted  # noqa: PLC0415 - as above

    wanted = Wanted(None, None if everything else "unresolved", topic_of(topic), error, reason)
    _run(dsn, lambda letters: print_list(letters, service, wanted, as_json=as_json))


@dead.command()
def show(letter_id: Id, dsn: Dsn, as_json: Json = False) -> None:
    """
    Show everything about one dead letter, its headers and its PAYLOAD included.

    The payload is an event and may be private: subjects, addresses, what a user wrote. Mind where you show it.
    A payload that is not JSON is shown as a Python bytes literal.
    """
    from backstop.letters import json_of, text_of  # noqa: PLC0415 - as above

    found = _run(dsn, lambda letters: letters.find(letter_id))
    typer.echo(json_of(*found) if as_json else text_of(*found))


@dead.command()
def replay(
    dsn: Dsn,
    ids: Ids = None,
    service: Service = None,
    error: Error = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Everything = False,
    old: Annotated[
        bool, typer.Option("--old", help="Also those of more than 7 days. Services may handle their events twice.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Publish dead letters again to the topics they came from, as they were.

    The service's relay does it, so the service has to run. Every service that reads the topic sees them again; one
    that has handled an event before does nothing, unless its case has expired since: hence --old. A letter that fails
    again becomes a new dead letter.
    """
    from backstop.letters import count_of, topic_of  # noqa: PLC0415 - as above
    from chassis.dead_letters import Wanted  # noqa: PLC0415 - as above

    _check_choice(ids, service, everything, error, reason, topic)
    wanted = Wanted(None, "unresolved", topic_of(topic), error, reason)

    async def work(letters: "Letters") -> tuple[list[str], list[str]]:
        replayed, refused = [], []
        for name, chosen in (await letters.choose(ids or [], service, wanted)).items():
            done = await letters.replay(name, chosen, _operator(), old=old)
            replayed += [f"{name}:{number}" for number in done]
            refused += [f"{name}:{number}" for number in chosen if number not in set(done)]
        return replayed, refused

    replayed, refused = _run(dsn, work)
    for letter_id in refused:
        why = (
            "it is larger than an event may be, or older than 7 days (see --old), or somebody else has just resolved it"
        )
        typer.secho(f"Not replayed: {letter_id}: {why}. Nothing was changed about it.", err=True, fg="red")
    if as_json:
        typer.echo(json.dumps({"replayed": replayed, "refused": refused}))
    else:
        typer.echo(f"{count_of(len(replayed))} replayed.")
    if refused:
        raise typer.Exit(1)


@dead.command()
def drop(
    dsn: Dsn,
    ids: Ids = None,
    service: Service = None,
    error: Error = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Everything = False,
    sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Resolve dead letters without having them handled. For 30 days more `list --all` and `show` find them."""
    from backstop.letters import count_of, topic_of  # noqa: PLC0415 - as above
    from chassis.dead_letters import Wanted  # noqa: PLC0415 - as above

    _check_choice(ids, service, everything, error, reason, topic)
    wanted = Wanted(None, "unresolved", topic_of(topic), error, reason)

    async def work(letters: "Letters") -> list[str]:
        chosen = await letters.choose(ids or [], service, wanted)
        count = count_of(sum(map(len, chosen.values())))
        if chosen and not sure:
            typer.confirm(f"Drop {count} of {', '.join(chosen)}? No service will see them again.", abort=True, err=True)
        return [
            f"{name}:{number}"
            for name, numbers in chosen.items()
            for number in await letters.drop(name, numbers, _operator())
        ]

    dropped = _run(dsn, work)
    typer.echo(json.dumps({"dropped": dropped}) if as_json else f"{count_of(len(dropped))} dropped.")


def _operator() -> str:
    """Return who acts, as far as this machine can tell."""
    try:
        return f"backstop dead, by {getpass.getuser()}"
    except (KeyError, OSError):
        return "backstop dead"


def _check_choice(ids: list[str] | None, service: str | None, everything: bool, *filters: str | None) -> None:
    if ids and (service or everything or any(filters)):
        raise typer.BadParameter("Name single dead letters, or a service with --all; not both.")
    if not ids and not (service and everything):
        raise typer.BadParameter("Name the ids of dead letters, or --service and --all.")


def _run(dsn: str, work: "Callable[[Letters], Awaitable[T]]") -> T:
    from backstop.letters import Letters, LettersError  # noqa: PLC0415 - as above

    async def job() -> T:
        async with Letters(dsn, SERVICES) as letters:
            return await work(letters)

    with postgres_at(dsn, "Nothing was changed."):
        try:
            return asyncio.run(job())
        except LettersError as error:
            fail(str(error))
