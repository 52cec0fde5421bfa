"""Settings of a program that connects to Microsoft 365, and the connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Self, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    NonNegativeFloat,
    SecretStr,
    ValidationError,
    model_validator,
)

from m365.exchange import Exchange
from m365.graph import Graph
from m365.session import open_session
from m365.tokens import Credential, Tokens, check_certificate

Address: TypeAlias = Annotated[str, Field(pattern=r"^https://\S+$")]
"""An origin that tokens may be sent to."""


class M365Settings(BaseModel):
    """A mixin for a program's settings. Exactly one of secret, certificate and federated token must be set."""

    client_id: Annotated[str, Field(min_length=1)]
    client_secret: SecretStr | None = None
    client_certificate: Path | None = None
    client_certificate_key: Path | None = None
    client_certificate_passphrase: SecretStr | None = None
    federated_token_file: Path | None = Field(
        None, validation_alias=AliasChoices("BACKSTOP_FEDERATED_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE")
    )
    """Workload identity: Azure's webhook sets AZURE_FEDERATED_TOKEN_FILE in the pod."""
    graph_url: Address = "https://graph.microsoft.com"
    exchange_url: Address = "https://outlook.office365.com"
    exchange_write_interval_seconds: NonNegativeFloat = 1.0
    """
    Minimum time between the starts of two changes in Exchange Online, per tenant and process.

    Microsoft publishes no rate limits for cmdlets, and responses carry no Retry-After (measured by others).
    """

    @model_validator(mode="after")
    def _has_one_proof(self) -> Self:
        try:
            credential = self.credential()
        except ValidationError:
            raise ValueError(
                "set exactly one of BACKSTOP_CLIENT_SECRET, BACKSTOP_CLIENT_CERTIFICATE and"
                " BACKSTOP_FEDERATED_TOKEN_FILE; BACKSTOP_CLIENT_CERTIFICATE_KEY and"
                " BACKSTOP_CLIENT_CERTIFICATE_PASSPHRASE belong to a certificate"
            ) from None
        # A file that does not exist yet may be mounted later.
        with suppress(OSError):
            try:
                check_certificate(credential)
            except ValueError:
                raise ValueError(
                    "BACKSTOP_CLIENT_CERTIFICATE, with BACKSTOP_CLIENT_CERTIFICATE_KEY, holds no certificate and its"
                    " key, or BACKSTOP_CLIENT_CERTIFICATE_PASSPHRASE does not open it"
                ) from None
        return self

    def credential(self) -> Credential:
        """Return the credential that these settings describe."""
        return Credential(
            client_id=self.client_id,
            secret=self.client_secret,
            certificate=self.client_certificate,
            key=self.client_certificate_key,
            passphrase=self.client_certificate_passphrase,
            federated_token_file=self.federated_token_file,
        )


@asynccontextmanager
async def connect(
    settings: M365Settings, *, authority: str, ca_file: Path | None = None
) -> AsyncIterator[tuple[Graph, Exchange]]:
    """Open an HTTP session for the duration of a block; yield clients for Graph and Exchange."""
    async with open_session(ca_file) as session:
        tokens = Tokens(settings.credential(), session, authority=authority)
        try:
            yield (
                Graph(tokens, session, base_url=settings.graph_url),
                Exchange(
                    tokens,
                    session,
                    base_url=settings.exchange_url,
                    write_interval=settings.exchange_write_interval_seconds,
                ),
            )
        finally:
            await tokens.close()
