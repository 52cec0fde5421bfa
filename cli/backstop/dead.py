"""`backstop dead`: see why a service could not handle events, and have them handled again or drop them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from backstop.settings import fail, kafka_at, kafka_security

if TYPE_CHECKING:
    from chassis.dead import DeadLetters

dead = typer.Typer(help="Dead letters: events that a service could not handle.", no_args_is_help=True)

T = TypeVar("T")
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="<service>:<partition>:<offset>, from `list`.")]
Bootstrap = Annotated[str, typer.Option(envvar="BACKSTOP_KAFKA_BOOTSTRAP")]
Prefix = Annotated[str, typer.Option(envvar="BACKSTOP_TOPIC_PREFIX")]
Service = Annotated[str | None, typer.Option(help="The service that could not handle them.")]
Error = Annotated[str | None, typer.Option(help="The error's class, exactly.")]
Reason = Annotated[str | None, typer.Option(help="A part of the reason.")]
Topic = Annotated[str | None, typer.Option(help="The topic they came from, with or without the prefix.")]
Everything = Annotated[bool, typer.Option("--all", help="All of the service that match, instead of single ones.")]


@dead.command("list")
def list_letters(
    kafka_bootstrap: Bootstrap,
    prefix: Prefix = "backstop",
    service: Service = None,
    error: Error = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are settled.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the dead letters that stand, of one service or of all. Never prints a payload."""
    from backstop.letters import Wanted, print_list  # noqa: PLC0415 - `backstop --help` should not load Kafka

    wanted = Wanted(error, reason, topic, settled=everything)
    _run(kafka_bootstrap, prefix, lambda letters: print_list(letters, service, wanted, as_json=as_json))


@dead.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="<service>:<partition>:<offset>, from `list`.")],
    kafka_bootstrap: Bootstrap,
    prefix: Prefix = "backstop",
) -> None:
    """
    Show everything about one dead letter, its headers and its PAYLOAD included.

    The payload is an event and may be private: subjects, addresses, what a user wrote. Mind where you show it.
    A payload that is not JSON is shown as a Python bytes literal.
    """
    from backstop.letters import find_one, text_of  # noqa: PLC0415 - as above

    letter, settlement = _run(kafka_bootstrap, prefix, lambda letters: find_one(letters, letter_id))
    typer.echo(text_of(letter, settlement, topic_prefix=prefix))


@dead.command()
def replay(
    kafka_bootstrap: Bootstrap,
    ids: Ids = None,
    prefix: Prefix = "backstop",
    service: Service = None,
    error: Error = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Everything = False,
) -> None:
    """
    Publish dead letters again to the topics they came from, as they were, and settle them.

    Every service that reads the topic sees them again; one that has handled an event before does nothing. A letter
    that fails again becomes a new dead letter.
    """
    from backstop.letters import Wanted  # noqa: PLC0415 - as above
    from backstop.letters import replay as work  # noqa: PLC0415 - as above

    _check_choice(ids, service, everything, error, reason, topic)
    wanted = Wanted(error, reason, topic)
    if not _run(kafka_bootstrap, prefix, lambda letters: work(letters, ids or [], service, wanted)):
        raise typer.Exit(1)


@dead.command()
def drop(
    kafka_bootstrap: Bootstrap,
    ids: Ids = None,
    prefix: Prefix = "backstop",
    service: Service = None,
    error: Error = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Everything = False,
    sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Settle dead letters without having them handled. Until Kafka deletes them, `list --all` and `show` find them."""
    from backstop.letters import Wanted  # noqa: PLC0415 - as above
    from backstop.letters import drop as work  # noqa: PLC0415 - as above

    _check_choice(ids, service, everything, error, reason, topic)
    wanted = Wanted(error, reason, topic)
    _run(kafka_bootstrap, prefix, lambda letters: work(letters, ids or [], service, wanted, sure=sure))


def _check_choice(ids: list[str] | None, service: str | None, everything: bool, *filters: str | None) -> None:
    if ids and (service or everything or any(filters)):
        raise typer.BadParameter("Name single dead letters, or a service with --all; not both.")
    if not ids and not (service and everything):
        raise typer.BadParameter("Name the ids of dead letters, or --service and --all.")


def _run(kafka_bootstrap: str, prefix: str, work: "Callable[[DeadLetters], Awaitable[T]]") -> T:
    from chassis.dead import DeadLetterError, DeadLetters  # noqa: PLC0415 - as above

    security = kafka_security()

    async def job() -> T:
        async with DeadLetters(kafka_bootstrap, topic_prefix=prefix, kafka_security=security) as letters:
            return await work(letters)

    with kafka_at(kafka_bootstrap, "What was not said to be settled stands as before."):
        try:
            return asyncio.run(job())
        except DeadLetterError as error:
            fail(str(error))
