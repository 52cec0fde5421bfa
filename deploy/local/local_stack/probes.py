"""Ask whether something answers."""

import asyncio

import aiohttp

_SECONDS = 2


async def listens(address: str) -> bool:
    """Tell whether `host:port` accepts connections."""
    host, _, port = address.strip().rpartition(":")
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def is_ready(url: str) -> bool:
    """Tell whether the service at *url* says that it can do its work."""
    limit = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=limit) as session, session.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
