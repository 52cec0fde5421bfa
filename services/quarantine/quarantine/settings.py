"""What the admins of a tenant decide about digests and links."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from backstop_contracts.api import NO_NUL
from chassis.postgres import Reads
from quarantine import store
from quarantine.language import CATALOGUES, FALLBACK
from quarantine.rules import Every


class QuarantineSettings(BaseModel):
    """
    How users of the tenant hear of their quarantined mail, and what their links ask for.

    Nothing is sent before a sender is named: an existing mailbox from which the application may send. `policies` names
    quarantine policies that do otherwise than `every`; mail under a policy that lets users do nothing is never told.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sender: Annotated[str | None, Field(max_length=320, description="The mailbox that sends digests.")] = None
    every: Every = Every.DAILY
    policies: Annotated[dict[Annotated[str, Field(pattern=NO_NUL)], Every], Field(max_length=200)] = {}
    hour: Annotated[int, Field(ge=0, le=23, description="When daily and weekly digests are sent, UTC.")] = 6
    language: Annotated[str, Field(description="For users of whom no language is known.")] = FALLBACK
    link_days: Annotated[int, Field(ge=1, le=30, description="How long links work.")] = 7
    sign_in: Annotated[bool, Field(description="Links ask for a sign-in with Entra ID as well.")] = False
    organisation: Annotated[
        str, Field(max_length=100, pattern=NO_NUL, description="How the digest names who sends it.")
    ] = "Backstop"

    @field_validator("language")
    @classmethod
    def _check_language(cls, language: str) -> str:
        if language not in CATALOGUES:
            raise ValueError(f"one of {', '.join(CATALOGUES)}")
        return language

    @field_validator("sender")
    @classmethod
    def _check_sender(cls, sender: str | None) -> str | None:
        if sender is not None and (sender.count("@") != 1 or not sender.isprintable() or " " in sender):
            raise ValueError("an address")
        return sender

    def frequency(self, quarantine_policy: str) -> Every:
        """Say how often users hear of mail under a quarantine policy."""
        return self.policies.get(quarantine_policy, self.every)


async def settings_of(db: Reads, tenant_id: UUID) -> QuarantineSettings:
    """Return what a tenant's admins have decided, or what holds until they do."""
    stored = await store.read_settings(db, tenant_id)
    return QuarantineSettings.model_validate(stored) if stored else QuarantineSettings()
