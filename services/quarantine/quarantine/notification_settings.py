"""What the admins of a tenant choose for digests and links."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from backstop_contracts.block_schemas import NO_NUL
from chassis.postgres import Reads
from quarantine import store
from quarantine.rules import DigestFrequency
from quarantine.translations import CATALOGUES, FALLBACK


class QuarantineSettings(BaseModel):
    """
    How the tenant's users are notified of quarantined messages, and what their links require.

    Nothing is sent until `sender` is set to an existing mailbox from which the application may send. `policies` sets
    another frequency than `every` for some quarantine policies. Messages under a policy that lets users do nothing
    never appear in a digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sender: Annotated[str | None, Field(max_length=320, description="The mailbox that sends digests.")] = None
    every: DigestFrequency = DigestFrequency.DAILY
    policies: Annotated[dict[Annotated[str, Field(pattern=NO_NUL)], DigestFrequency], Field(max_length=200)] = {}
    hour: Annotated[int, Field(ge=0, le=23, description="When daily and weekly digests are sent, UTC.")] = 6
    language: Annotated[str, Field(description="For users whose language is not known.")] = FALLBACK
    link_days: Annotated[int, Field(ge=1, le=30, description="Days until links expire.")] = 7
    sign_in: Annotated[bool, Field(description="Links also require signing in with Entra ID.")] = False
    organisation: Annotated[
        str, Field(max_length=100, pattern=NO_NUL, description="The sender's name in the text of the digest.")
    ] = "Backstop"

    @field_validator("language")
    @classmethod
    def _check_language(cls, language: str) -> str:
        if language not in CATALOGUES:
            raise ValueError(f"must be one of {', '.join(CATALOGUES)}")
        return language

    @field_validator("sender")
    @classmethod
    def _check_sender(cls, sender: str | None) -> str | None:
        if sender is not None and (sender.count("@") != 1 or not sender.isprintable() or " " in sender):
            raise ValueError("must be an email address")
        return sender

    def frequency(self, quarantine_policy: str) -> DigestFrequency:
        """Return how often users get a digest of messages under a quarantine policy."""
        return self.policies.get(quarantine_policy, self.every)


async def read_settings(db: Reads, tenant_id: UUID) -> QuarantineSettings:
    """Return the settings of a tenant, or the defaults."""
    stored = await store.find_settings(db, tenant_id)
    return QuarantineSettings.model_validate(stored) if stored else QuarantineSettings()
