"""Quarantine: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import UUID

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

import outcomes
from chassis.service import Service, serve
from chassis.settings import CommaSeparated, HttpUrl, LeaseSeconds, Seconds, ServiceSettings, report_setup_errors
from chassis.worker import Lease
from m365 import Graph, M365Settings, connect
from mail.settings import MailStoreSettings
from quarantine import handlers
from quarantine.actions import ActionWorker
from quarantine.digest import DigestWorker
from quarantine.http import make_router
from quarantine.links import Signer
from quarantine.message_source import MessageSource
from quarantine.pages import Pages
from quarantine.rendering import make_templates
from quarantine.retention import purge_due
from quarantine.sign_in import SignIn
from quarantine.sync import SyncWorker

CONCURRENT_WORKERS = 4
"""Tenants that are synced, and batches of actions that run, side by side: a slow one delays no other."""


class Settings(ServiceSettings, M365Settings, MailStoreSettings):
    """Quarantine's settings."""

    quarantine_sync_interval_seconds: Seconds = 60
    """How often each tenant's quarantine is synced."""
    quarantine_sweep_interval_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 6
    """How often a sync reads all 30 days of the quarantine."""
    quarantine_page_size: Annotated[int, Field(ge=25, lt=1000)] = 500
    """Rows of a page of Get-QuarantineMessage."""
    quarantine_lease_seconds: LeaseSeconds = 75
    """Lease on a claimed row; outbound calls are cancelled at 75 % of it."""
    public_url: HttpUrl
    """The URL at which users reach this service; links in digests begin with it."""
    link_keys: Annotated[tuple[SecretStr, ...], NoDecode, CommaSeparated]
    """Keys that sign links, the newest first, each of at least 32 characters. All of them are accepted."""
    digest_period_seconds: Annotated[float, Field(gt=0, le=14400)] = 14400
    """The shortest period of digests, four hours; less is for trials."""
    sign_in_client_id: str | None = None
    """The web application in Entra ID with which users sign in, for tenants that require it."""
    sign_in_client_secret: SecretStr | None = None

    @field_validator("link_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        Signer([key.get_secret_value() for key in keys])
        return keys

    @model_validator(mode="after")
    def _check_sign_in(self) -> "Settings":
        # Signing in yields an ID token for this client. If the API had the same id, the API would accept that token.
        if self.sign_in_client_id and _normal_client_id(self.sign_in_client_id) == _normal_client_id(self.api_audience):
            raise ValueError(
                "BACKSTOP_SIGN_IN_CLIENT_ID equals BACKSTOP_API_AUDIENCE, so the API would accept the ID tokens of"
                " users who sign in. Register a separate web application in Entra ID for signing in, and set its"
                " client id"
            )
        if (self.sign_in_client_id is None) != (self.sign_in_client_secret is None):
            raise ValueError("set BACKSTOP_SIGN_IN_CLIENT_ID and BACKSTOP_SIGN_IN_CLIENT_SECRET, or neither")
        return self


def _normal_client_id(client_id: str) -> str:
    """Return the normal form of a client id: a GUID can be written in several ways."""
    try:
        return str(UUID(client_id.strip()))
    except ValueError:
        return client_id.strip().casefold()


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service. Its connections to Microsoft 365 stay open for the duration of the block."""
    service = Service(
        "quarantine",
        settings,
        title="Backstop quarantine",
        description="What users and admins do with quarantined messages.",
        migrations=Path(__file__).parent / "migrations",
        libraries=[outcomes.MIGRATIONS],
    )
    service.subscribe(handlers.router)
    service.add_worker("purge_due", partial(purge_due, service.db), idle=3600, woken=False)
    signer = Signer([key.get_secret_value() for key in settings.link_keys])
    templates = make_templates()
    lease = Lease(timedelta(seconds=settings.quarantine_lease_seconds))
    async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (graph, exchange):
        sync_worker = SyncWorker(
            service.db,
            exchange,
            settings.tenants,
            every=timedelta(seconds=settings.quarantine_sync_interval_seconds),
            sweep_every=timedelta(hours=settings.quarantine_sweep_interval_hours),
            page_size=settings.quarantine_page_size,
            lease=lease,
        )
        digest_worker = DigestWorker(
            service.db,
            graph,
            settings.tenants,
            signer,
            templates,
            public_url=settings.public_url,
            shortest_period=timedelta(seconds=settings.digest_period_seconds),
            lease=lease,
        )
        action_worker = ActionWorker(service.db, exchange, settings.mail_store, lease=lease)
        for _ in range(CONCURRENT_WORKERS):
            service.add_worker("sync_due", sync_worker.sync_due)
            service.add_worker("run_due", action_worker.run_due)
        service.add_worker("plan_due", digest_worker.plan_due, idle=min(10.0, settings.digest_period_seconds / 2))
        service.add_worker("send_due", digest_worker.send_due)
        source, sign_in = MessageSource(exchange), _make_sign_in(settings, signer, graph)
        service.add_router(make_router(service.db, source, sign_in=sign_in is not None))
        service.add_router(Pages(service.db, source, signer, templates, sign_in).router())
        try:
            yield service
        finally:
            if sign_in:
                sign_in.close()


def _make_sign_in(settings: Settings, signer: Signer, graph: Graph) -> SignIn | None:
    if settings.sign_in_client_id is None or settings.sign_in_client_secret is None:
        return None
    return SignIn(
        signer,
        graph,
        public_url=settings.public_url,
        authority=settings.authority,
        client_id=settings.sign_in_client_id,
        client_secret=settings.sign_in_client_secret.get_secret_value(),
        ca_file=settings.ca_file,
    )


def main() -> None:
    """Run the service with settings from the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("quarantine", settings, build(settings))
