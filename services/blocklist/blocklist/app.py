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
from chassis.app import Service
from chassis.settings import CommaSeparated, LeaseSeconds, ServiceSettings, report_setup_errors
from chassis.work import Lease
from m365 import M365Settings, connect


class Settings(ServiceSettings, M365Settings):
    """Blocklist's settings."""

    never_block_domains: Annotated[frozenset[str], NoDecode, CommaSeparated] = frozenset()
    """Domains of which only single addresses and pages are blocked, beside those that strangers are known to share."""
    max_concurrent_blocks: PositiveInt = 16
    """Entries that are worked on at the same time."""
    block_lease_seconds: LeaseSeconds = 240
    """How long an entry is held by who calls about it: after a crash, another replica waits that long."""


def build(settings: Settings) -> Service:
    """Compose the service."""
    service = Service(
        "blocklist",
        settings,
        title="Backstop blocklist",
        description="Blocks senders in Exchange Online, and lifts the blocks that were wrong.",
        migrations=Path(__file__).parent / "migrations",
    )

    @asynccontextmanager
    async def microsoft_365() -> AsyncIterator[None]:
        async with connect(settings, authority=settings.authority, ca_file=settings.ca_file) as (_, exchange):
            never_block = frozenset(map(str.lower, settings.never_block_domains))
            lease = Lease(timedelta(seconds=settings.block_lease_seconds))
            worker = Worker(service.db, exchange, never_block, settings.max_concurrent_blocks, lease)
            service.works("settle_due", worker.settle_due, due=DUE)
            service.works("forget_verdicts", worker.forget_verdicts, idle=24 * 3600, woken=False)
            yield

    service.resources.append(microsoft_365())
    service.subscribes(handlers.router)
    return service


def main() -> None:
    """Run the service with the settings of the environment."""
    with report_setup_errors():
        build(Settings()).run()
