"""The settings that every service has. Read once, in the composition root; nothing else reads the environment."""

import logging
import os
import re
import ssl
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

from aiokafka.conn import collect_hosts
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

SCOPE = "access_as_user"
"""The API's scope in users' tokens, unless BACKSTOP_API_SCOPE names another."""

DSN_WANTED = (
    "write it as postgresql://user:password@host/database; characters like @ : / ? # % in a password as %40 and so on"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is taken on. A service sets them by environment variables: see `HttpSettings`."""

    requests: int = 100
    """Requests in hand; the next one is answered 503."""
    connections: int = 1000
    """Open connections; for the next one the longest idle one is closed."""
    body_bytes: int = 1 << 20
    """Bytes of a body, unless the route takes more: see `chassis.request_limits.Body.allow`."""
    body_timeout_seconds: float = 30
    """Time for a body to arrive, unless the route gives more."""
    header_timeout_seconds: float = 10
    """Time for the header of a request to arrive, and for the rest of a body that was answered before its end."""
    stall_timeout_seconds: float = 30
    """Time in which a client must take something of its answer."""
    idle_seconds: int = 120
    """
    Time between two requests on one connection. Not a setting: clients rely on it.

    It must be longer than a client or a load balancer keeps an unused connection (httpx 5 s, aiohttp 15 s, nginx and
    AWS's load balancers 60 s, Go 90 s): a request that comes just when the service closes is lost for its sender.
    """


_LIMITS = Limits()


class SetupError(Exception):
    """A mistake in the set-up. Its text names the environment variable and holds no value."""


@contextmanager
def report_setup_errors() -> Iterator[None]:
    """End the process with exit code 2 when the block meets wrong settings; each is a line on stderr."""
    try:
        yield
    except ValidationError as error:
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        for name, what in map(_described, error.errors(include_url=False)):
            wrong[name].append(what)
        _end(*(f"{name}: {_joined(what)}" if name else _joined(what) for name, what in wrong.items()))
    except SetupError as error:
        _end(str(error))


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _end(*lines: str) -> NoReturn:
    for line in lines:
        sys.stderr.write(" ".join(line.split()) + "\n")
    raise SystemExit(2)


def _described(error: Any) -> tuple[str, str]:
    """Return the variable of a wrong setting and what is wrong with it, but not its value: it may be a secret."""
    # A place below the setting may be a part of its value, and so may be what a parser says.
    name = str(error["loc"][0]) if error["loc"] else ""
    if name and not name.isupper():
        name = f"BACKSTOP_{name.upper()}"
    what = str(error.get("ctx", {}).get("error", ""))
    return name, what if error["type"] == "value_error" else error["msg"].removesuffix(f", {what}")


def _split(value: Any) -> Any:
    """Read a comma-separated list, as environments hold it."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


CommaSeparated = BeforeValidator(_split)

Seconds = Annotated[float, Field(gt=0, le=86_400)]
"""At most a day: a larger value is almost certainly a mistake."""
LeaseSeconds = Annotated[float, Field(ge=4, le=86_400)]


class EnvironmentSettings(BaseSettings):
    """
    Settings that come from the environment.

    Each setting is an environment variable with the prefix `BACKSTOP_`. A secret may instead be a file of that
    name in lower case (`backstop_client_secret`) in the folder that `BACKSTOP_SECRETS_DIR` names.
    """

    model_config = SettingsConfigDict(env_prefix="BACKSTOP_", extra="ignore", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        folder = os.environ.get("BACKSTOP_SECRETS_DIR") or None
        if folder and not Path(folder).is_dir():
            raise SetupError("BACKSTOP_SECRETS_DIR: there is no such folder")
        values.setdefault("_secrets_dir", folder)
        try:
            super().__init__(**values)
        except SettingsError as error:
            # A file that may not be read, or is no text. The text says which field it is for.
            found = re.search(r'field "(\w+)"', str(error))
            name = f"BACKSTOP_{found[1]}".upper() if found else "BACKSTOP_SECRETS_DIR"
            raise SetupError(f"{name}: its file cannot be read ({type(error.__cause__ or error).__name__})") from None

    @field_validator("*")
    @classmethod
    def _check_file(cls, value: Any) -> Any:
        if isinstance(value, Path):
            _check_readable(value)
        return value


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None


def _check_authorities(file: Path | None) -> Path | None:
    try:
        if file:
            ssl.create_default_context().load_verify_locations(file)
    except ssl.SSLError:
        raise ValueError("the file holds no certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    return file


Authorities = Annotated[Path | None, AfterValidator(_check_authorities)]
"""A file of certificate authorities."""


def check_url(url: str) -> str:
    """Return the address of a service or a site. Raises ValueError when it is none, and never repeats it."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:
        fits = False
    # A user name and a password would be sent nowhere, and shown wherever the address is.
    if not fits or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("write it as https://host or https://host:port, with no user name, query or fragment")
    return url


HttpUrl = Annotated[str, AfterValidator(check_url)]
HttpsUrl = Annotated[str, Field(pattern=r"^https://\S+$"), AfterValidator(check_url)]


def check_bootstrap(bootstrap: str) -> str:
    """Return Kafka's addresses. Raises ValueError when they are none."""
    try:
        fits = all(host and 0 < port < 65536 for host, port, _ in collect_hosts(bootstrap))
    except ValueError:
        fits = False
    # aiokafka takes 9092 where there is no port, and anything else for a host.
    if not (fits and all(re.fullmatch(r"[\w.:\[\]-]+:\d+", one.strip()) for one in bootstrap.split(","))):
        raise ValueError("write it as host:port, several by comma")
    return bootstrap


class HttpSettings(EnvironmentSettings):
    """What a service needs to answer HTTP."""

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    log_level: str = "INFO"
    authority: HttpsUrl = "https://login.microsoftonline.com"
    api_audience: Annotated[str, Field(min_length=1)]
    """The client id (a GUID) of the app registration of this API: the only accepted `aud`."""
    api_scope: Annotated[str, Field(pattern=r"^\S+$")] = SCOPE
    """The scope of this API, as its app registration names it, that users' tokens must have."""
    tenants: Annotated[frozenset[UUID], NoDecode, CommaSeparated, Field(min_length=1)]
    """The Entra ID tenants whose tokens are accepted."""
    ca_file: Authorities = None
    """More certificate authorities to trust, in PEM, besides the system's."""
    max_concurrent_requests: PositiveInt = _LIMITS.requests
    max_connections: PositiveInt = _LIMITS.connections
    max_body_bytes: PositiveInt = _LIMITS.body_bytes
    body_timeout_seconds: Seconds = _LIMITS.body_timeout_seconds
    header_timeout_seconds: Seconds = _LIMITS.header_timeout_seconds
    stall_timeout_seconds: Seconds = _LIMITS.stall_timeout_seconds

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, level: str) -> str:
        if level.upper() not in logging.getLevelNamesMapping():
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return level

    @property
    def limits(self) -> Limits:
        """What clients can take of the service."""
        return Limits(
            requests=self.max_concurrent_requests,
            connections=self.max_connections,
            body_bytes=self.max_body_bytes,
            body_timeout_seconds=self.body_timeout_seconds,
            header_timeout_seconds=self.header_timeout_seconds,
            stall_timeout_seconds=self.stall_timeout_seconds,
        )


class KafkaSettings(EnvironmentSettings):
    """How Kafka is spoken to, by everything that does: in the clear unless said otherwise."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_ca_file: Authorities = None
    """More certificate authorities to trust for Kafka's certificate, in PEM, besides the system's."""
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None

    @model_validator(mode="after")
    def _check_sasl(self) -> Self:
        given = self.kafka_username is not None and self.kafka_password is not None
        if self.kafka_security_protocol.startswith("SASL_") and not given:
            raise ValueError(
                f"{self.kafka_security_protocol} needs BACKSTOP_KAFKA_USERNAME and BACKSTOP_KAFKA_PASSWORD"
            )
        return self

    def kafka_options(self) -> dict[str, Any]:
        """Return how to speak to Kafka, as options of aiokafka's clients; none: in the clear."""
        options: dict[str, Any] = {"security_protocol": self.kafka_security_protocol}
        if self.kafka_security_protocol.endswith("SSL"):
            options["ssl_context"] = ssl.create_default_context()
            if self.kafka_ca_file:
                options["ssl_context"].load_verify_locations(self.kafka_ca_file)
        if self.kafka_security_protocol.startswith("SASL_"):
            assert self.kafka_password is not None  # noqa: S101 - the validator has seen to it
            options["sasl_mechanism"] = self.kafka_sasl_mechanism
            options["sasl_plain_username"] = self.kafka_username
            options["sasl_plain_password"] = self.kafka_password.get_secret_value()
        return options if self.kafka_security_protocol != "PLAINTEXT" else {}


class ServiceSettings(HttpSettings, KafkaSettings):
    """What a service needs that also has a database and speaks Kafka."""

    postgres_dsn: SecretStr
    postgres_request_connections: PositiveInt = 4
    """Connections for requests, beside one for each topic and each worker."""
    kafka_bootstrap: Annotated[str, AfterValidator(check_bootstrap)]
    topic_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "backstop"
    kafka_max_batch: PositiveInt = 500
    """Most events that one handler call and its transaction take."""
    kafka_session_timeout_seconds: Annotated[float, Field(ge=6, le=60)] = 30
    """Silence after which Kafka gives the partitions of a replica to the others."""
    halt_after_dead_letters: int = Field(default=100, gt=0)
    """Events parked in a row, with none handled between, after which the consumer stops: the fault is not in them."""

    @field_validator("postgres_dsn")
    @classmethod
    def _check_dsn(cls, dsn: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(dsn.get_secret_value())
            fits = parts.scheme in ("postgresql", "postgres") and parts.netloc.count("@") <= 1 and not parts.fragment
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(DSN_WANTED)
        for name, value in parse_qsl(parts.query):
            if name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
                _check_readable(Path(value))
        return dsn
