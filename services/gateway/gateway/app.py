"""Gateway: the composition root."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI
from pydantic import PositiveInt

from chassis.app import authenticator, serve
from chassis.http import make_api
from chassis.settings import HttpSettings, HttpUrl, Seconds, report_setup_errors
from gateway.http import make_router
from gateway.upstream import Upstream

TURN_SECONDS = 30
"""An upload may wait 20 s for its turn at reporter, whose own refusals should get through."""


class Settings(HttpSettings):
    """Gateway's settings."""

    reporter_url: HttpUrl
    triage_url: HttpUrl
    quarantine_url: HttpUrl
    upstream_timeout_seconds: Seconds = 60
    """Longest silence of a service after it has got the whole request."""
    max_upload_bytes: PositiveInt = 48 << 20
    """Longest body of a report: reporter's largest mail in base64, and what stands beside it."""
    upload_timeout_seconds: Seconds = 120
    """Longest time that reporter gives to an upload; with the time until it is an upload's turn, the gateway's too."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[FastAPI]:
    """Compose the gateway, with its connections to the services for the time of the block."""
    tls = ssl.create_default_context()
    if settings.ca_file:
        tls.load_verify_locations(settings.ca_file)
    async with aiohttp.ClientSession(
        # Far below the time after which a service closes an idle connection: none is chosen at that moment.
        connector=aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=2),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=settings.upstream_timeout_seconds),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield _api(settings, session)


def _api(settings: Settings, session: aiohttp.ClientSession) -> FastAPI:
    api = make_api(
        title="Backstop",
        description="Report mails that the filter let through; triage them; hear Microsoft's verdict.",
        # Its own readiness: an upstream that is away must not take the others' routes out of the load balancer.
        ready={},
        alive={},
        limits=settings.limits,
    )
    api.state.authenticator = authenticator(settings)
    # A redirect would lead wherever the request's Host header says.
    api.router.redirect_slashes = False
    api.include_router(
        make_router(
            {
                "reporter": Upstream("reporter", settings.reporter_url, session),
                "triage": Upstream("triage", settings.triage_url, session),
                "quarantine": Upstream("quarantine", settings.quarantine_url, session),
            },
            upload_bytes=settings.max_upload_bytes,
            upload_timeout_seconds=settings.upload_timeout_seconds + TURN_SECONDS,
        )
    )
    return api


def main() -> None:
    """Run the gateway with the settings of the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("gateway", settings, build(settings))
