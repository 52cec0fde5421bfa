"""The commands."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from backstop.dead import dead
from backstop.settings import SERVICES, fail, kafka_at, kafka_security

app = typer.Typer(
    help="Backstop from the command line.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
topics = typer.Typer(help="Kafka topics.", no_args_is_help=True)
app.add_typer(topics, name="topics")
app.add_typer(dead, name="dead")


@topics.command("create")
def create(
    kafka_bootstrap: Annotated[str, typer.Option(envvar="BACKSTOP_KAFKA_BOOTSTRAP")],
    prefix: Annotated[str, typer.Option(envvar="BACKSTOP_TOPIC_PREFIX")] = "backstop",
    partitions: Annotated[int, typer.Option(envvar="BACKSTOP_TOPIC_PARTITIONS", min=1)] = 12,
    replication: Annotated[
        int | None,
        typer.Option(
            envvar="BACKSTOP_TOPIC_REPLICATION", min=1, help="Copies of each event; default: 3, or the brokers."
        ),
    ] = None,
) -> None:
    """Create the topics that are missing; leave the others as they are."""
    from chassis.topics import copies_for, create_topics  # noqa: PLC0415 - `backstop --help` should not load Kafka

    security = kafka_security()

    async def make() -> tuple[list[str], int]:
        copies = replication or await copies_for(kafka_bootstrap, security)
        created = await create_topics(
            kafka_bootstrap,
            prefix=prefix,
            partitions=partitions,
            replication=copies,
            kafka_security=security,
        )
        return created, copies

    with kafka_at(kafka_bootstrap, "Run this again when that is mended: topics that are there stay as they are."):
        created, copies = asyncio.run(make())
    if created and copies == 1:
        typer.secho(
            "Each of them has one copy: the broker whose disk is lost takes its events along. To try things that is"
            " good enough; in production have three brokers.",
            err=True,
            fg="yellow",
        )
    typer.echo(f"created {len(created)} topics: {', '.join(created)}" if created else "all topics are there already")


@topics.command("skip")
def skip_record(
    service: Annotated[str, typer.Argument(help="The service that stands there.")],
    topic: Annotated[str, typer.Argument(help="The topic, with or without the prefix.")],
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0, help="Where the record is, from the log or GET /readyz.")],
    kafka_bootstrap: Annotated[str, typer.Option(envvar="BACKSTOP_KAFKA_BOOTSTRAP")],
    prefix: Annotated[str, typer.Option(envvar="BACKSTOP_TOPIC_PREFIX")] = "backstop",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Move a service past a record that cannot be read, such as one with a header whose name is not UTF-8.

    Stop every replica of the service first; the others need not be stopped. The record, and those behind it that were
    produced in the same batch, are then never handled by this service. They stay in the topic.
    """
    from chassis.topics import SkipError, skip  # noqa: PLC0415 - as above

    if service not in SERVICES:
        fail(f"There is no service {service}. Services that read topics: {', '.join(SERVICES)}.", 2)
    name = topic.removeprefix(f"{prefix}.")
    security = kafka_security()
    with kafka_at(kafka_bootstrap, "Nothing was skipped."):
        try:
            following = asyncio.run(
                skip(
                    kafka_bootstrap,
                    group=f"{prefix}.{service}.{name}",
                    topic=f"{prefix}.{name}",
                    partition=partition,
                    offset=offset,
                    kafka_security=security,
                )
            )
        except SkipError as error:
            fail(f"Nothing was skipped. {error}")
    if as_json:
        typer.echo(json.dumps({"skipped": list(range(offset, following)), "next": following}))
    elif following == offset + 1:
        typer.echo(f"Skipped the record at offset {offset}. {service} goes on at {following}; start it again.")
    else:
        typer.echo(
            f"Skipped offsets {offset} to {following - 1}: those behind {offset} were produced together with it, and"
            f" cannot be read either. {service} goes on at {following}; start it again."
        )


@app.command()
def report(
    mail: Annotated[Path, typer.Argument(help="The mail as .eml, with all its headers.", exists=True, dir_okay=False)],
    gateway: Annotated[str, typer.Option(envvar="BACKSTOP_GATEWAY_URL")],
    token: Annotated[str, typer.Option(envvar="BACKSTOP_TOKEN", help="An access token with the app role Reporter.")],
    reported_as: Annotated[str, typer.Option("--as", help="phishing, junk, malware or not-junk.")] = "phishing",
    folder: Annotated[str | None, typer.Option(help="inbox or junk; default: as the mail's headers say.")] = None,
    reporter: Annotated[str | None, typer.Option(help="The mailbox, when the token is an application's.")] = None,
    block_sender: Annotated[bool, typer.Option(help="Also block the sender for this mailbox.")] = False,
) -> None:
    """Report a mail."""
    import aiohttp  # noqa: PLC0415 - as above

    from backstop.gateway import Gateway, RefusedError  # noqa: PLC0415 - as above
    from chassis.settings import check_url  # noqa: PLC0415 - as above

    try:
        check_url(gateway)
    except ValueError as error:
        fail(f"Not reported: BACKSTOP_GATEWAY_URL: {error}.", 2)
    if not token.isprintable():
        fail("Not reported: BACKSTOP_TOKEN holds more than one line, or what is no text.", 2)

    async def send() -> dict[str, object]:
        async with Gateway(gateway) as client:
            return await client.report(
                token,
                await asyncio.to_thread(mail.read_bytes),
                reported_as=reported_as,
                folder=folder,
                reporter=reporter,
                block_sender=block_sender,
            )

    try:
        answer = asyncio.run(send())
    except RefusedError as error:
        fail(f"Not reported: {error}")
    except (aiohttp.ClientError, TimeoutError) as error:
        fail(
            f"Not reported: the gateway at {gateway} does not answer ({type(error).__name__})."
            " Send it again: the same report counts once."
        )
    typer.echo(f"reported as {answer['report_id']}")


@app.command()
def demo(
    mails: Annotated[
        Path | None, typer.Option(help="A folder with .eml files, at any depth. Without one: the demo's own mails.")
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write what became of each mail here, as JSON.")
    ] = None,
) -> None:
    """Start everything, send mails through both flows, tell the story, check it against Microsoft's ledger."""
    from backstop.demo.run import run_demo  # noqa: PLC0415 - as above
    from local_stack.supervisor import StackError, run  # noqa: PLC0415 - as above

    if mails and not mails.is_dir():
        fail(f"There is no folder {mails}.")
    good = False

    async def program() -> None:
        nonlocal good
        good = await run_demo(mails, report_file)

    try:
        run(program())
    except StackError as error:
        fail(str(error))
    if not good:
        raise typer.Exit(1)
