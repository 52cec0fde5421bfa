"""Where Kafka and PostgreSQL are, and what a command says when one of them is away, refuses, or is misconfigured."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from backstop.output import Command, fail

SERVICES = ("reporter", "triage", "submitter", "verdict-poller", "blocklist", "quarantine")
"""The services that have a schema and read topics."""

kafka_option = click.option(
    "--kafka-bootstrap",
    envvar="BACKSTOP_KAFKA_BOOTSTRAP",
    show_envvar=True,
    required=True,
    help="Kafka's addresses, as host:port, several by comma.",
)
prefix_option = click.option(
    "--prefix",
    envvar="BACKSTOP_TOPIC_PREFIX",
    show_envvar=True,
    default="backstop",
    help="What the names of the topics begin with.",
)


def postgres_option(help_text: str) -> Callable[[Command], Command]:
    """Make the option that names the services' database."""
    return click.option(
        "--postgres-dsn",
        "dsn",
        envvar="BACKSTOP_POSTGRES_DSN",
        show_envvar=True,
        required=True,
        help=help_text,
    )


def kafka_options() -> dict[str, Any]:
    """Return how to speak to Kafka, as services do; ends the command when `BACKSTOP_KAFKA_...` do not fit together."""
    from chassis.settings import KafkaSettings, report_setup_errors  # noqa: PLC0415 - `--help` loads no Kafka

    with report_setup_errors():
        return KafkaSettings().kafka_options()


@contextmanager
def kafka_at(kafka_bootstrap: str, kept: str) -> Iterator[None]:
    """
    Exit with an error if Kafka is unreachable or refuses a request in the block.

    *kept* states what was left unchanged.
    """
    from aiokafka.errors import BrokerResponseError, KafkaError  # noqa: PLC0415 - as above

    from chassis.settings import check_bootstrap  # noqa: PLC0415 - as above

    try:
        check_bootstrap(kafka_bootstrap)
    except ValueError as error:
        fail(f"BACKSTOP_KAFKA_BOOTSTRAP: {error}. {kept}", 2)
    # What aiokafka logs about a Kafka that is away is said below, in one line.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        yield
    except BrokerResponseError as error:
        fail(f"Kafka at {kafka_bootstrap} refused: {' '.join(map(str, error.args)) or type(error).__name__}. {kept}")
    except (KafkaError, TimeoutError) as error:
        fail(f"Kafka at {kafka_bootstrap} does not answer ({type(error).__name__}). {kept}")


@contextmanager
def postgres_at(dsn: str, kept: str) -> Iterator[None]:
    """
    Exit with an error if PostgreSQL is unreachable or refuses a request in the block.

    *kept* states what was left unchanged. The error never contains the DSN, which is a secret.
    """
    import asyncpg  # noqa: PLC0415 - `--help` loads no asyncpg

    from chassis.settings import DSN_WANTED  # noqa: PLC0415 - as above

    if not dsn.startswith(("postgresql://", "postgres://")):
        fail(f"BACKSTOP_POSTGRES_DSN: {DSN_WANTED}. {kept}", 2)
    try:
        yield
    except (asyncpg.ClientConfigurationError, ValueError, OverflowError):
        fail(f"BACKSTOP_POSTGRES_DSN: {DSN_WANTED}. {kept}", 2)
    except asyncpg.PostgresError as error:
        fail(f"PostgreSQL refused: {type(error).__name__} (SQLSTATE {error.sqlstate}). {kept}")
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        fail(f"PostgreSQL does not answer ({type(error).__name__}). {kept}")
