"""Triage: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from chassis.service import Service, serve
from chassis.settings import ServiceSettings, report_setup_errors
from triage import handlers
from triage.http import make_router
from triage.retention import Retention, expire_due
from triage.rules import load_policy


def _days_by_tenant(value: Any) -> Any:
    """Read `tenant=days,tenant=days`, as environments hold it."""
    if not isinstance(value, str):
        return value
    pairs = [item.partition("=") for item in value.split(",") if item.strip()]
    if any(not sign for _, sign, _ in pairs):
        raise ValueError("write it as tenant=days,tenant=days")
    if len({tenant.strip() for tenant, _, _ in pairs}) < len(pairs):
        raise ValueError("a tenant is named twice")
    return {tenant.strip(): days.strip() for tenant, _, days in pairs}


class Settings(ServiceSettings):
    """Triage's settings."""

    policy_file: Path | None = None
    """Rules for submitting and blocking without an admin (TOML). None: every case waits for an admin."""
    retention_days: int = 30
    """Days that a closed case is kept after the last thing that happened to it, with its reports and raw messages."""
    retention_days_by_tenant: Annotated[dict[UUID, int], NoDecode, BeforeValidator(_days_by_tenant)] = Field({})
    """The same for single tenants, where it differs."""

    @field_validator("policy_file")
    @classmethod
    def _check_policy(cls, file: Path | None) -> Path | None:
        load_policy(file)
        return file

    @field_validator("retention_days")
    @classmethod
    def _check_retention(cls, days: int) -> int:
        return Retention(days).days

    @field_validator("retention_days_by_tenant")
    @classmethod
    def _check_retention_by_tenant(cls, days: dict[UUID, int]) -> dict[UUID, int]:
        Retention(by_tenant=days)
        return days

    def retention(self) -> Retention:
        """Return the retention, in general and by tenant."""
        return Retention(self.retention_days, self.retention_days_by_tenant)


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service."""
    service = Service(
        "triage",
        settings,
        title="Backstop triage",
        description="User reported messages as cases; admins' decisions on them.",
        migrations=Path(__file__).parent / "migrations",
    )
    service.subscribe(handlers.router, policy=load_policy(settings.policy_file))
    service.add_worker("expire_due", partial(expire_due, service.db, settings.retention()), idle=60, woken=False)
    service.add_router(make_router(service.db))
    yield service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("triage", settings, build(settings))
