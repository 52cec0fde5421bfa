"""Submitter: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from chassis.service import Service, serve
from chassis.settings import LeaseSeconds, ServiceSettings, report_setup_errors
from chassis.worker import Lease
from m365 import M365Settings, connect
from mail.settings import MailStoreSettings
from submitter import handlers
from submitter.rules import Quota
from submitter.store import DUE
from submitter.worker import Worker

CLAIMED_TOGETHER = 2
"""Few, because a claim waits for the slowest of its answers; not one, because each claim is a transaction."""


class Settings(ServiceSettings, M365Settings, MailStoreSettings):
    """Submitter's settings."""

    submissions_per_15_minutes: PositiveInt = 150
    same_item_per_day: PositiveInt = 3
    submission_batch_size: PositiveInt = 8
    """Messages that are submitted at the same time; each is in memory meanwhile."""
    submission_lease_seconds: LeaseSeconds = 180
    """Lease on a claimed submission: after a crash, another replica waits that long."""
    submission_missing_after_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300
    """Age at which an unanswered call that is not in Microsoft's list counts as not made."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service, with its connections to the outside for the time of the block."""
    service = Service(
        "submitter",
        settings,
        title="Backstop submitter",
        description="Submits messages to Microsoft for analysis.",
        migrations=Path(__file__).parent / "migrations",
    )
    service.subscribe(handlers.router)
    together = min(CLAIMED_TOGETHER, settings.submission_batch_size)
    async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (graph, _):
        worker = Worker(
            service.db,
            graph,
            settings.mail_store,
            Quota(settings.submissions_per_15_minutes, settings.same_item_per_day),
            together,
            lease=Lease(timedelta(seconds=settings.submission_lease_seconds)),
            missing_after=timedelta(seconds=settings.submission_missing_after_seconds),
        )
        for _ in range(settings.submission_batch_size // together):
            service.add_worker("submit_due", worker.submit_due, due=DUE)
        service.add_worker("purge_calls", worker.purge_calls, idle=3600, woken=False)
        yield service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("submitter", settings, build(settings))
