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
from chassis.app import Service, serve
from chassis.settings import CommaSeparated, HttpUrl, LeaseSeconds, Seconds, ServiceSettings, report_setup_errors
from chassis.worker import Lease
from m365 import Graph, M365Settings, connect
from mail.settings import MailStoreSettings
from quarantine import handlers
from quarantine.carrying import Carrier
from quarantine.digest import Digester
from quarantine.http import make_router
from quarantine.links import Signer
from quarantine.mirror import Mirror, forget
from quarantine.offering import Links
from quarantine.pages import Pages
from quarantine.reading import Reading
from quarantine.rendering import make_templates
from quarantine.sign_in import SignIn

AT_ONCE = 4
"""Tenants that are read, and batches of wishes that are carried out, side by side: a slow one holds up no other."""


class Settings(ServiceSettings, M365Settings, MailStoreSettings):
    """Quarantine's settings."""

    quarantine_sync_interval_seconds: Seconds = 60
    """How often each tenant's quarantine is read for what is new and what was decided."""
    quarantine_sweep_interval_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 6
    """How often all 30 days of it are read."""
    quarantine_page_size: Annotated[int, Field(ge=25, lt=1000)] = 500
    """Rows of a page of Get-QuarantineMessage."""
    quarantine_lease_seconds: LeaseSeconds = 75
    """How long what is worked on is held; calls about it end after three quarters of that."""
    public_url: HttpUrl
    """Where users reach this service: what the links of digests begin with."""
    link_keys: Annotated[tuple[SecretStr, ...], NoDecode, CommaSeparated]
    """What links are signed with, the newest first; each of at least 32 characters. Older ones go on working."""
    digest_period_seconds: Annotated[float, Field(gt=0, le=14400)] = 14400
    """The shortest period of digests, four hours; less is for trying it out."""
    sign_in_client_id: str | None = None
    """The web application in Entra ID with which users sign in, for tenants that want it."""
    sign_in_client_secret: SecretStr | None = None

    @field_validator("link_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        Signer([key.get_secret_value() for key in keys])
        return keys

    @model_validator(mode="after")
    def _check_sign_in(self) -> "Settings":
        # Whoever signs in is given an ID token for the client that asks. For the API's own, it is one for the API.
        if self.sign_in_client_id and _client(self.sign_in_client_id) == _client(self.api_audience):
            raise ValueError(
                "BACKSTOP_SIGN_IN_CLIENT_ID is BACKSTOP_API_AUDIENCE: tokens for signing in would be tokens for the"
                " API. Register a web application of its own in Entra ID for signing in, and set its client id"
            )
        if (self.sign_in_client_id is None) != (self.sign_in_client_secret is None):
            raise ValueError("set BACKSTOP_SIGN_IN_CLIENT_ID and BACKSTOP_SIGN_IN_CLIENT_SECRET, or neither")
        return self


def _client(client_id: str) -> str:
    """Return a client id as it is compared: a GUID has several spellings."""
    try:
        return str(UUID(client_id.strip()))
    except ValueError:
        return client_id.strip().casefold()


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service, with its connections to the outside for the time of the block."""
    service = Service(
        "quarantine",
        settings,
        title="Backstop quarantine",
        description="Quarantined mail: what users and admins do with it.",
        migrations=Path(__file__).parent / "migrations",
        libraries=[outcomes.MIGRATIONS],
    )
    service.subscribe(handlers.router)
    service.add_worker("forget", partial(forget, service.db), idle=3600, woken=False)
    signer = Signer([key.get_secret_value() for key in settings.link_keys])
    links, templates = Links(signer, settings.public_url), make_templates()
    lease = Lease(timedelta(seconds=settings.quarantine_lease_seconds))
    async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (graph, exchange):
        mirror = Mirror(
            service.db,
            exchange,
            settings.tenants,
            every=timedelta(seconds=settings.quarantine_sync_interval_seconds),
            sweep_every=timedelta(hours=settings.quarantine_sweep_interval_hours),
            page_size=settings.quarantine_page_size,
            lease=lease,
        )
        digester = Digester(
            service.db,
            graph,
            settings.tenants,
            links,
            templates,
            shortest=timedelta(seconds=settings.digest_period_seconds),
            lease=lease,
        )
        carrier = Carrier(service.db, exchange, settings.mail_store, lease=lease)
        for _ in range(AT_ONCE):
            service.add_worker("sync_due", mirror.sync_due)
            service.add_worker("carry_due", carrier.carry_due)
        service.add_worker("plan_due", digester.plan_due, idle=min(10.0, settings.digest_period_seconds / 2))
        service.add_worker("send_due", digester.send_due)
        reading, sign_in = Reading(exchange), _sign_in(settings, signer, graph)
        service.add_router(make_router(service.db, reading, sign_in=sign_in is not None))
        service.add_router(Pages(service.db, reading, links, templates, sign_in).router())
        yield service
        if sign_in:
            sign_in.close()


def _sign_in(settings: Settings, signer: Signer, graph: Graph) -> SignIn | None:
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
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("quarantine", settings, build(settings))
