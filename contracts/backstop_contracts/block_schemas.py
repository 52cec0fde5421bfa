"""Shapes that the HTTP APIs of several services share, so that one thing looks the same everywhere."""

from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from backstop_contracts.events import BlockKind, BlockScope, DecidedBlock

DEFAULT_BLOCK_DAYS = 30
MAX_BLOCK_DAYS = 90
NO_NUL = r"^[^\x00]*$"
"""Pattern for text that is stored: PostgreSQL keeps no NUL."""


class BlockInput(BaseModel):
    """
    Block the message's sender, its whole domain, or one URL, for the tenant.

    The entry ends at `expires_at`, at most 90 days from now; after 30 days if it is not given; never with
    `never_expires`. A blocked sender or domain cannot be written to either (Microsoft Learn, "Tenant Allow/Block
    List").
    """

    model_config = ConfigDict(extra="forbid")

    kind: BlockKind = BlockKind.SENDER
    url: Annotated[
        str | None,
        Field(max_length=2000, pattern=NO_NUL, description="With kind url only: an absolute http or https URL."),
    ] = None
    expires_at: AwareDatetime | None = None
    never_expires: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind is BlockKind.URL) != (self.url is not None):
            raise ValueError("give url with kind url, and only then")
        if self.url is not None and not _is_web_address(self.url):
            raise ValueError("url must be absolute, http or https")
        if self.expires_at and self.never_expires:
            raise ValueError("give expires_at or never_expires, not both")
        now = datetime.now(UTC)
        if self.expires_at and not now < self.expires_at <= now + timedelta(days=MAX_BLOCK_DAYS):
            raise ValueError(f"expires_at must be in the future, at most {MAX_BLOCK_DAYS} days from now")
        return self

    def decided(self) -> DecidedBlock:
        """Return the block as events carry it."""
        # The end of a day, so that the same request sent again is the same block.
        days = timedelta(days=DEFAULT_BLOCK_DAYS + 1)
        end = datetime.combine(datetime.now(UTC).date() + days, time(), UTC)
        return DecidedBlock(
            kind=self.kind, url=self.url, expires_at=None if self.never_expires else self.expires_at or end
        )


class BlockState(BaseModel):
    """A block and what became of it."""

    block_id: Annotated[UUID | None, Field(description="null with status `not-possible`.")] = None
    scope: BlockScope
    kind: Annotated[str, Field(description="`sender`, `domain` or `url`.")]
    value: Annotated[str | None, Field(description="What is blocked; null with status `not-possible`.")] = None
    entry: Annotated[str | None, Field(description="The entry in Microsoft's list; null until it is there.")] = None
    status: Annotated[str, Field(description="`requested`, `applied`, `failed`, `removed` or `not-possible`.")]
    reason: Annotated[str | None, Field(description="Why it failed or ended: see block-failed, block-removed.")] = None
    expires_at: datetime | None = None
    explanation: Annotated[str | None, Field(description="For the person who asked for it: one sentence.")] = None


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
