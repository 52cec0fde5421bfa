"""`backstop topics`: create those that are missing, and move a service past a record that cannot be read."""

import asyncio

import click

from backstop.output import fail, json_option, print_json
from backstop.settings import SERVICES, kafka_at, kafka_option, kafka_options, prefix_option


@click.group()
def topics() -> None:
    """Create Kafka topics, and go past records that cannot be read."""


@topics.command()
@kafka_option
@prefix_option
@click.option(
    "--partitions",
    envvar="BACKSTOP_TOPIC_PARTITIONS",
    show_envvar=True,
    type=click.IntRange(min=1),
    default=12,
    help="Partitions of each topic.",
)
@click.option(
    "--replication",
    envvar="BACKSTOP_TOPIC_REPLICATION",
    show_envvar=True,
    type=click.IntRange(min=1),
    help="Copies of each event; by default 3, or as many as there are brokers.",
)
@json_option
def create(kafka_bootstrap: str, prefix: str, partitions: int, replication: int | None, as_json: bool) -> None:
    """Create the topics that are missing. Topics that exist stay as they are."""
    from chassis.topics import copies_for, create_topics  # noqa: PLC0415 - `--help` loads no Kafka

    security = kafka_options()

    async def make() -> tuple[list[str], int]:
        copies = replication or await copies_for(kafka_bootstrap, security)
        created = await create_topics(
            kafka_bootstrap, prefix=prefix, partitions=partitions, replication=copies, kafka_options=security
        )
        return created, copies

    with kafka_at(kafka_bootstrap, "Topics that exist stay as they are. Fix this, then run the command again."):
        created, copies = asyncio.run(make())
    if created and copies == 1:
        warning = "The new topics keep one copy: a broker that loses its disk loses its events. Use three brokers in"
        click.secho(f"{warning} production.", err=True, fg="yellow")
    if as_json:
        print_json({"created": created})
    else:
        click.echo(f"Created {len(created)} topics: {', '.join(created)}." if created else "All topics exist already.")


@topics.command()
@click.argument("service")
@click.argument("topic")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@kafka_option
@prefix_option
@json_option
def skip(
    service: str, topic: str, partition: int, offset: int, kafka_bootstrap: str, prefix: str, as_json: bool
) -> None:
    """
    Move SERVICE past a record that cannot be read, such as one with a header whose name is not UTF-8.

    TOPIC may be named with or without the prefix. PARTITION and OFFSET of the record are in the service's log, and in
    its answer to GET /readyz.

    Stop every replica of the service first; other services can go on. The service then never handles the record, nor
    those behind it that were produced in the same batch. They stay in the topic.
    """
    from chassis.topics import SkipError  # noqa: PLC0415 - as above
    from chassis.topics import skip as skip_record  # noqa: PLC0415 - as above

    if service not in SERVICES:
        fail(f"There is no service {service}. Services that read topics: {', '.join(SERVICES)}.", 2)
    name = topic.removeprefix(f"{prefix}.")
    security = kafka_options()
    with kafka_at(kafka_bootstrap, "Nothing was skipped."):
        try:
            following = asyncio.run(
                skip_record(
                    kafka_bootstrap,
                    group=f"{prefix}.{service}.{name}",
                    topic=f"{prefix}.{name}",
                    partition=partition,
                    offset=offset,
                    kafka_options=security,
                )
            )
        except SkipError as error:
            fail(f"Nothing was skipped. {error}")
    if as_json:
        print_json({"skipped": list(range(offset, following)), "next": following})
        return
    if following == offset + 1:
        click.echo(f"Skipped the record at offset {offset}.")
    else:
        click.echo(
            f"Skipped offsets {offset} to {following - 1}: those behind {offset} were produced in the same batch and"
            " cannot be read either."
        )
    click.echo(f"{service} continues at offset {following}. Start it again.")
