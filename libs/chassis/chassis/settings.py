"""The settings that every service has. Read once, in the composition root; nothing else reads the environment."""

import os
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from chassis.limits import Limits

SCOPE = "access_as_user"
"""The scope of the API that users' tokens have, unless it is told to be another."""

_LIMITS = Limits()


def _split(value: Any) -> Any:
    """Read a comma-separated list, as environments hold it."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


CommaSeparated = BeforeValidator(_split)


class EnvironmentSettings(BaseSettings):
    """
    Settings that come from the environment.

    Each setting is an environment variable with the prefix `BACKSTOP_`. A secret may instead be a file of that
    name in lower case (`backstop_client_secret`) in the folder that `BACKSTOP_SECRETS_DIR` names.
    """

    model_config = SettingsConfigDict(env_prefix="BACKSTOP_", extra="ignore", frozen=True)

    def __init__(self, **values: Any) -> None:
        values.setdefault("_secrets_dir", os.environ.get("BACKSTOP_SECRETS_DIR"))
        super().__init__(**values)


class HttpSettings(EnvironmentSettings):
    """What a service needs to answer HTTP."""

    http_host: str = "127.0.0.1"
    http_port: int = 8080
    log_level: str = "INFO"
    authority: str = "https://login.microsoftonline.com"
    api_audience: str
    """The client id (a GUID) of the app registration of this API: the only accepted `aud`."""
    api_scope: Annotated[str, Field(pattern=r"^\S+$")] = SCOPE
    """The scope of this API, as its app registration names it, that users' tokens must have."""
    tenants: Annotated[frozenset[UUID], NoDecode, CommaSeparated]
    """The Entra ID tenants whose tokens are accepted."""
    ca_file: Path | None = None
    """More certificate authorities to trust, in PEM, besides the system's."""
    max_requests: PositiveInt = _LIMITS.requests
    max_connections: PositiveInt = _LIMITS.connections
    max_body_bytes: PositiveInt = _LIMITS.body_bytes
    body_seconds: PositiveFloat = _LIMITS.body_seconds
    header_seconds: PositiveFloat = _LIMITS.header_seconds
    stall_seconds: PositiveFloat = _LIMITS.stall_seconds

    @property
    def limits(self) -> Limits:
        """What clients can take of the service."""
        return Limits(
            requests=self.max_requests,
            connections=self.max_connections,
            body_bytes=self.max_body_bytes,
            body_seconds=self.body_seconds,
            header_seconds=self.header_seconds,
            stall_seconds=self.stall_seconds,
        )


class KafkaSettings(EnvironmentSettings):
    """How Kafka is spoken to, by everything that does: in the clear unless said otherwise."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_ca_file: Path | None = None
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

    def kafka_security(self) -> BaseSecurity | None:
        """Return how to speak to Kafka, for FastStream and (by its `parse_security`) aiokafka; None: in the clear."""
        tls = None
        if self.kafka_security_protocol.endswith("SSL"):
            tls = ssl.create_default_context()
            if self.kafka_ca_file:
                tls.load_verify_locations(self.kafka_ca_file)
        if not self.kafka_security_protocol.startswith("SASL_"):
            return BaseSecurity(ssl_context=tls) if tls else None
        assert self.kafka_username is not None  # noqa: S101 - the validator has seen to it
        assert self.kafka_password is not None  # noqa: S101 - as above
        kind = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
        return kind[self.kafka_sasl_mechanism](
            self.kafka_username, self.kafka_password.get_secret_value(), ssl_context=tls
        )


class ServiceSettings(HttpSettings, KafkaSettings):
    """What a service needs that also has a database and speaks Kafka."""

    postgres_dsn: SecretStr
    postgres_pool: int = 8
    kafka_bootstrap: str
    topic_prefix: str = "backstop"
    max_batch: int = 500
    """Most events that one handler call and its transaction take."""
    session_seconds: Annotated[float, Field(ge=6, le=60)] = 30
    """Silence after which Kafka gives the partitions of a replica to the others."""
    halt_after: int = Field(default=100, gt=0)
    """Events parked in a row, with none handled between, after which the consumer stops: the fault is not in them."""
