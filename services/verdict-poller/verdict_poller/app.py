"""Verdict-poller: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt
from pydantic_settings import NoDecode

from chassis.service import Service, serve
from chassis.settings import CommaSeparated, LeaseSeconds, Seconds, ServiceSettings, report_setup_errors
from chassis.worker import Lease
from m365 import M365Settings, connect
from verdict_poller import handlers
from verdict_poller.poll_schedule import Schedule
from verdict_poller.store import ANSWERED_DUE, WATCHING_DUE
from verdict_poller.worker import Explainer, Poller


class Settings(ServiceSettings, M365Settings):
    """Verdict-poller's settings."""

    verdict_poll_intervals: Annotated[tuple[Seconds, ...], NoDecode, CommaSeparated, Field(min_length=1)] = (
        Schedule.pauses
    )
    """Seconds between the polls of one submission; the last value repeats."""
    verdict_grid_seconds: Seconds = Schedule.grid_seconds
    """Polls are due at multiples of this, so that one list answers many submissions."""
    explanation_batch_size: PositiveInt = 100
    """Verdicts that are explained at once."""
    tenant_settings_ttl_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300
    """How long the tenant's settings are cached for other verdicts."""
    verdict_lease_seconds: LeaseSeconds = 300
    """Lease on a claimed submission: after a crash, another replica takes it over when it has expired."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service and keep its connections to Microsoft 365 open for the duration of the block."""
    service = Service(
        "verdict-poller",
        settings,
        title="Backstop verdict-poller",
        description="Reads Microsoft's verdicts and explains them.",
        migrations=Path(__file__).parent / "migrations",
    )
    schedule = Schedule(settings.verdict_poll_intervals, settings.verdict_grid_seconds)

    service.subscribe(handlers.router, schedule=schedule)
    lease = Lease(timedelta(seconds=settings.verdict_lease_seconds))
    async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (graph, exchange):
        service.add_worker("poll_due", Poller(service.db, graph, schedule, lease).poll_due, due=WATCHING_DUE)
        explainer = Explainer(
            service.db,
            exchange,
            batch=settings.explanation_batch_size,
            settings_ttl=timedelta(seconds=settings.tenant_settings_ttl_seconds),
            lease=lease,
        )
        service.add_worker("explain_due", explainer.explain_due, due=ANSWERED_DUE)
        service.add_worker("purge_blocks", explainer.purge_blocks, idle=24 * 3600, woken=False)
        yield service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("verdict-poller", settings, build(settings))
