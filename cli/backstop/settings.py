"""What commands read from the environment beside their options, and how they say that something is wrong."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from faststream.security import BaseSecurity

SERVICES = ("reporter", "triage", "submitter", "verdict-poller", "blocklist", "quarantine")


def kafka_security() -> "BaseSecurity | None":
    """Return how to speak to Kafka, as services do; ends the command when `BACKSTOP_KAFKA_...` do not fit together."""
    from chassis.settings import KafkaSettings, report_setup_errors  # noqa: PLC0415 - `backstop --help` should not load Kafka

    with report_setup_errors():
        return KafkaSettings().kafka_security()


@contextmanager
def kafka_at(kafka_bootstrap: str, kept: str) -> Iterator[None]:
    """End the command when Kafka is away or refuses something in the block; *kept* says what that leaves as it was."""
    from aiokafka.errors import BrokerResponseError, KafkaError  # noqa: PLC0415 - as above

    from chassis.settings import check_bootstrap  # noqa: PLC0415 - as above

    try:
        check_bootstrap(kafka_bootstrap)
    except ValueError as error:
        fail(f"BACKSTOP_KAFKA_BOOTSTRAP: {error}. {kept}", 2)
    # What aiokafka has to say about a Kafka that is away is said below, in one line.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        yield
    except BrokerResponseError as error:
        fail(f"Kafka at {kafka_bootstrap} refused: {' '.join(map(str, error.args)) or type(error).__name__}. {kept}")
    except (KafkaError, TimeoutError) as error:
        fail(f"Kafka at {kafka_bootstrap} does not answer ({type(error).__name__}). {kept}")


@contextmanager
def postgres_at(dsn: str, kept: str) -> Iterator[None]:
    """End the command when PostgreSQL is away or refuses something in the block. Never repeats the DSN, a secret."""
    import asyncpg  # noqa: PLC0415 - `backstop --help` should be quick

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


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with one line that says why; exit code 2 when options or settings do not fit."""
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(code)
