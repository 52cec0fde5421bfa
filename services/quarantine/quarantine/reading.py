"""Read a quarantined mail itself from Exchange, for a person who waits for it."""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from chassis.http import Problem
from m365 import Exchange, M365Error, Refused, Throttled, Unauthorised, Unavailable
from mail import ENGLISH, Preview, preview

SECONDS = 45
PREVIEWS_AT_ONCE = 2


class NoMailError(Exception):
    """Exchange answered, but not with a mail."""


class Reading:
    """Reads mails through *exchange*. Its methods raise Problem, in words for whoever asked."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        # Each keeps a processor busy for up to some seconds.
        self._turns = asyncio.Semaphore(PREVIEWS_AT_ONCE)

    async def raw(self, tenant_id: UUID, identity: str) -> bytes:
        """Return the mail as it came."""
        try:
            async with asyncio.timeout(SECONDS):
                return await export(self._exchange, tenant_id, identity)
        except (M365Error, TimeoutError, NoMailError) as error:
            raise _problem(error) from None

    async def preview(self, tenant_id: UUID, identity: str, words: Mapping[str, str] = ENGLISH) -> Preview:
        """Return what can be shown of the mail without danger, explained with *words*."""
        raw = await self.raw(tenant_id, identity)
        async with self._turns:
            return await asyncio.to_thread(preview, raw, words)

    async def headers(self, tenant_id: UUID, identity: str) -> str:
        """Return the header of the mail."""
        try:
            async with asyncio.timeout(SECONDS):
                rows = await self._exchange.invoke(tenant_id, "Get-QuarantineMessageHeader", Identity=identity)
        except (M365Error, TimeoutError) as error:
            raise _problem(error) from None
        return next((str(row["Header"]) for row in rows if row.get("Header")), "")


async def export(exchange: Exchange, tenant_id: UUID, identity: str) -> bytes:
    """Return a quarantined mail as it came. Raises one of M365Error, or NoMailError."""
    rows = await exchange.invoke(tenant_id, "Export-QuarantineMessage", Identity=identity)
    found = next((row for row in rows if row.get("Eml")), None)
    if found is None:
        raise NoMailError("Exchange exported no mail")
    return _decoded(found)


def _decoded(row: dict[str, Any]) -> bytes:
    """Read `Eml` as `BodyEncoding` says; the mail itself when it is no base64, which some answers are (7bit)."""
    eml = str(row["Eml"])
    if str(row.get("BodyEncoding") or "Base64").lower() == "base64":
        try:
            return base64.b64decode("".join(eml.split()), validate=True)
        except (binascii.Error, ValueError):
            raise NoMailError("what Exchange exported is no base64") from None
    return eml.encode("utf-8", "surrogatepass") if not eml.isascii() else eml.encode()


def _problem(error: Exception) -> Problem:
    """Say to whoever asked what Microsoft said."""
    match error:
        case Refused(status=404):
            return Problem(404, "no-longer-quarantined", error.reason)
        case Refused():
            return Problem(409, "refused-by-microsoft", error.reason)
        case Unauthorised():
            return Problem(502, "not-permitted-by-microsoft", error.reason or str(error))
        case Throttled() | Unavailable():
            wait = int(error.retry_after or 10)
            return Problem(503, "microsoft-unavailable", "Nothing was changed. Try again.", retry_after=wait)
        case NoMailError():
            return Problem(502, "unexpected-answer-from-microsoft", str(error))
        case _:
            return Problem(503, "microsoft-unavailable", "Nothing was changed. Try again.", retry_after=10)
