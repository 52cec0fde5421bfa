"""Reporter: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

import outcomes
from chassis.service import Service, serve
from chassis.settings import Seconds, ServiceSettings, report_setup_errors
from mail.settings import MailStoreSettings
from reporter import handlers
from reporter.http import make_router
from reporter.retention import Retention
from reporter.upload import Uploads


class Settings(ServiceSettings, MailStoreSettings):
    """Reporter's settings."""

    max_message_bytes: Annotated[int, Field(gt=0)] = 35 << 20
    """Largest raw message that is accepted."""
    max_concurrent_large_messages: Annotated[int, Field(gt=0)] = 4
    """Number of uploads of more than 64 KB that may be in memory at the same time; others wait."""
    upload_timeout_seconds: Seconds = 120
    """Longest time that one upload may take."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service."""
    service = Service(
        "reporter",
        settings,
        title="Backstop reporter",
        description="Users report messages that the filter let through, and hear what became of them.",
        migrations=Path(__file__).parent / "migrations",
        libraries=[outcomes.MIGRATIONS],
    )
    uploads = Uploads(
        max_message_bytes=settings.max_message_bytes,
        large_at_once=settings.max_concurrent_large_messages,
        seconds=settings.upload_timeout_seconds,
    )
    mails = settings.mail_store
    service.add_router(make_router(service.db, mails, uploads))
    retention = Retention(service.db, mails)
    service.add_worker("delete_expired_messages", retention.delete_expired_messages, idle=10, woken=False)
    service.add_worker("sweep", retention.sweep, idle=24 * 3600, woken=False)
    service.subscribe(handlers.router)
    yield service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("reporter", settings, build(settings))
