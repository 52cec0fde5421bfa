"""Blocklist: the composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt
from pydantic_settings import NoDecode

from blocklist import handlers
from blocklist.exchange_lists import ExchangeLists
from blocklist.store import DUE
from blocklist.worker import Worker
from chassis.service import Service, serve
from chassis.settings import CommaSeparated, LeaseSeconds, ServiceSettings, report_setup_errors
from chassis.worker import Lease
from m365 import M365Settings, connect


class Settings(ServiceSettings, M365Settings):
    """Blocklist's settings."""

    never_block_domains: Annotated[frozenset[str], NoDecode, CommaSeparated] = frozenset()
    """Domains of which only single addresses and pages are blocked, in addition to the shared domains known here."""
    max_concurrent_blocks: PositiveInt = 16
    """List entries that are worked on at the same time."""
    block_lease_seconds: LeaseSeconds = 240
    """Lease on a claimed entry: after a crash, another replica takes the entry over when it has expired."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Service]:
    """Compose the service and keep its connections to Microsoft 365 open for the duration of the block."""
    service = Service(
        "blocklist",
        settings,
        title="Backstop blocklist",
        description="Blocks senders and URLs in Exchange Online, and removes blocks that were wrong.",
        migrations=Path(__file__).parent / "migrations",
    )
    service.subscribe(handlers.router)
    never_block = frozenset(map(str.lower, settings.never_block_domains))
    lease = Lease(timedelta(seconds=settings.block_lease_seconds))
    async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (_, exchange):
        lists = ExchangeLists(exchange)
        worker = Worker(service.db, lists, never_block, settings.max_concurrent_blocks, lease)
        service.add_worker("settle_due", worker.settle_due, due=DUE)
        service.add_worker("purge_verdicts", worker.purge_verdicts, idle=24 * 3600, woken=False)
        yield service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("blocklist", settings, build(settings))
