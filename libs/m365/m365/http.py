"""Send one request to Microsoft and return its response, or raise the matching M365Error."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

import aiohttp
import orjson
from yarl import URL

from m365.errors import Refused, Throttled, Unauthorised, Unavailable

Explain: TypeAlias = Callable[[bytes], tuple[str, str]]
"""Extracts Microsoft's error code and message from the body of an error response."""

LONGEST_WAIT = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with a 2xx status."""

    route: str
    status: int
    body: bytes
    effect: bool
    request_id: str

    def json(self) -> dict[str, Any]:
        """
        Parse the body as a JSON object; an empty body is an empty object.

        Raises Unavailable for anything else, which means that a proxy or gateway responded in place of Microsoft.
        """
        found = json_object(self.body) if self.body else {}
        if found is None:
            raise Unavailable(
                self.route,
                status=self.status,
                code="NotJson",
                request_id=self.request_id,
                may_have_happened=self.effect,
            )
        return found


def json_object(body: bytes) -> dict[str, Any] | None:
    """Parse *body* as a JSON object; return None if it is anything else."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


async def send(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    route: str,
    explain: Explain,
    effect: bool,
    timeout: float,  # noqa: ASYNC109 - aiohttp's own timeout distinguishes connecting from waiting
    max_body: int,
    proxy: str | None,
    headers: Mapping[str, str],
    data: bytes | None = None,
) -> Answer:
    """
    Send one request and read the whole response. Redirects are not followed.

    *effect* is True if the request can change something. *timeout* is in seconds, *max_body* in bytes. Raises
    M365Error, whose text omits aiohttp's messages because they contain the URL.
    """
    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=session.timeout.sock_connect)
    try:
        async with session.request(
            method, url, headers=headers, data=data, timeout=limits, proxy=proxy, allow_redirects=False
        ) as response:
            body = await _read(response, max_body)
    except aiohttp.ClientConnectorError as error:
        raise Unavailable(
            route, code=type(error).__name__, reason=str(error.os_error), may_have_happened=False
        ) from None
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
        raise Unavailable(route, code=type(error).__name__, may_have_happened=False) from None
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(route, code=type(error).__name__, may_have_happened=effect) from None
    request_id = _request_id(response) or headers.get("client-request-id", "")
    if body is None:
        raise Refused(
            route,
            status=response.status,
            code="AnswerTooLarge",
            reason=f"the answer is larger than the {max_body} bytes that this client accepts",
            request_id=request_id,
        )
    if 200 <= response.status < 300:
        return Answer(route, response.status, body, effect, request_id)
    code, reason = explain(body)
    details: dict[str, Any] = {"status": response.status, "code": code, "reason": reason, "request_id": request_id}
    match response.status:
        case 429:
            raise Throttled(route, retry_after=_retry_after(response), **details)
        case 401 | 403:
            raise Unauthorised(route, **details)
        case status if status == 408 or status >= 500:
            raise Unavailable(route, may_have_happened=effect, retry_after=_retry_after(response), **details)
        case _:
            raise Refused(route, **details)


async def _read(response: aiohttp.ClientResponse, max_body: int) -> bytes | None:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_body:
            return None
    return bytes(body)


def _request_id(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("request-id") or response.headers.get("x-ms-request-id") or ""


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Return Retry-After, which holds seconds or a date (RFC 9110), as seconds from now."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT) if math.isfinite(seconds) else None
