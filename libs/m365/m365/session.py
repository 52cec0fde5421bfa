"""The HTTP session that Tokens, Graph and Exchange share."""

import asyncio
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """
    Like `asyncio.timeout_at`, but also start no request after *deadline*, which is on the event loop's clock.

    A process that was suspended past its deadline runs ready callbacks before its timers. Without the second check, a
    stale request could be sent after another replica has taken over.
    """
    token = _deadline.set(deadline)
    try:
        async with asyncio.timeout_at(deadline):
            yield
    finally:
        _deadline.reset(token)


async def _refuse_late(*_: Any) -> None:
    """Run once a connection exists and nothing has been written to it; aiohttp reports a failure to connect."""
    if asyncio.get_running_loop().time() >= _deadline.get():
        raise TimeoutError


def open_session(ca_file: str | Path | None = None, *, connect_timeout: float = 10.0) -> aiohttp.ClientSession:
    """
    Open a session, which the caller closes. Must be called while the event loop is running.

    Trusts the system's certificate authorities and those in *ca_file*. *connect_timeout* is in seconds. Cookies are
    not kept, because one session serves many tenants.
    """
    trust = ssl.create_default_context()
    if ca_file:
        trust.load_verify_locations(ca_file)
    late = aiohttp.TraceConfig()
    late.on_connection_create_end.append(_refuse_late)
    late.on_connection_reuseconn.append(_refuse_late)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "backstop-m365"},
        timeout=aiohttp.ClientTimeout(total=60, sock_connect=connect_timeout),
        trace_configs=[late],
    )


def proxy_for(url: URL) -> str | None:
    """
    Return the proxy that HTTPS_PROXY names for *url*, unless NO_PROXY names its host.

    aiohttp's own `trust_env` would look it up for each request, in two threads (measured: it doubles the cost of a
    request), and would read `~/.netrc`, where a `default` entry conflicts with the token.
    """
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
