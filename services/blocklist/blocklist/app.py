"""Blocklist: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt
from pydantic_settings import NoDecode

from blocklist import handlers
from blocklist.store import DUE
from blocklist.worker import Worker
from chassis.app import Service, serve
from chassis.settings import CommaSeparated, LeaseSeconds, ServiceSettings, report_setup_errors
from chassis.worker import Lease
from m365 import M365Settings, connect


class Settings(ServiceSettings, M365Settings):
    """Blocklist's settings."""

    never_block_domains: Annotated[frozenset[str], NoDecode, CommaSeparated] = frozenset()
    """Domains of which only single addresses and pages are blocked, beside those that strangers are known to share."""
    max_concurrent_blocks: PositiveInt = 16
    """Entries that are worked on at the same time."""
    block_lease_seconds: LeaseSeconds = 240
    """How long an entry is held by who calls about it: after a crash, another replica waits that long."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service, with its connections to the outside for the time of the block."""
    service = Service(
        "blocklist",
        settings,
        title="Backstop blocklist",
        description="Blocks senders in Exchange Online, and lifts the blocks that were wrong.",
        migrations=Path(__file__).parent / "migrations",
    )
    service.subscribe(handlers.router)
    never_block = frozenset(map(str.lower, settings.never_block_domains))
    lease = Lease(timedelta(seconds=settings.block_lease_seconds))
    async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (_, exchange):
        worker = Worker(service.db, exchange, never_block, settings.max_concurrent_blocks, lease)
        service.add_worker("settle_due", worker.settle_due, due=DUE)
        service.add_worker("forget_verdicts", worker.forget_verdicts, idle=24 * 3600, woken=False)
        yield service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("blocklist", settings, build(settings))
