"""Gateway: the composition root."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI
from pydantic import PositiveInt

from chassis.http import make_api
from chassis.service import authenticator, serve
from chassis.settings import HttpSettings, HttpUrl, Seconds, report_setup_errors
from gateway.http import make_router
from gateway.upstream import Upstream

UPLOAD_QUEUE_SECONDS = 30
"""Added to the upload timeout: an upload may queue at reporter for 20 s, and reporter's own 408 should arrive first."""


class Settings(HttpSettings):
    """Gateway's settings."""

    reporter_url: HttpUrl
    triage_url: HttpUrl
    quarantine_url: HttpUrl
    upstream_timeout_seconds: Seconds = 60
    """How long a service may be silent after it has received the whole request."""
    max_upload_bytes: PositiveInt = 48 << 20
    """Largest body of a report: reporter's largest message in base64, plus its attributes."""
    upload_timeout_seconds: Seconds = 120
    """Reporter's timeout for an upload. The gateway adds the time that an upload may queue at reporter."""


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[FastAPI]:
    """Compose the gateway. Its connections to the services stay open for the duration of the block."""
    tls = ssl.create_default_context()
    if settings.ca_file:
        tls.load_verify_locations(settings.ca_file)
    async with aiohttp.ClientSession(
        # Far shorter than a service keeps idle connections, so none is reused while the service closes it.
        connector=aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=2),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=settings.upstream_timeout_seconds),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield _make_api(settings, session)


def _make_api(settings: Settings, session: aiohttp.ClientSession) -> FastAPI:
    api = make_api(
        title="Backstop",
        description="Report messages that the filter let through, triage them, and read Microsoft's verdict.",
        # Independent of the upstreams: one that is down must not make the routes of the others unavailable.
        ready={},
        alive={},
        limits=settings.limits,
    )
    api.state.authenticator = authenticator(settings)
    # A redirect would lead to whatever the request's Host header names.
    api.router.redirect_slashes = False
    api.include_router(
        make_router(
            {
                "reporter": Upstream("reporter", settings.reporter_url, session),
                "triage": Upstream("triage", settings.triage_url, session),
                "quarantine": Upstream("quarantine", settings.quarantine_url, session),
            },
            max_upload_bytes=settings.max_upload_bytes,
            upload_timeout_seconds=settings.upload_timeout_seconds + UPLOAD_QUEUE_SECONDS,
        )
    )
    return api


def main() -> None:
    """Run the gateway with settings from the environment."""
    with report_setup_errors():
        settings = Settings()
        serve("gateway", settings, build(settings))
