"""Read one quarantined message from Exchange: its row, the raw message, a safe preview, its headers."""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from chassis.http import Problem
from m365 import Exchange, M365Error, Refused, Throttled, Truncated, Unauthorised, Unavailable
from mail import ENGLISH, Preview, preview
from quarantine.exchange_rows import ExchangeRow, row_with_identity

TIMEOUT_SECONDS = 45
MAX_CONCURRENT_PREVIEWS = 2


class NoMessageError(Exception):
    """Exchange answered, but without a message."""


class MessageSource:
    """Reads messages for people who wait for them. The methods raise a Problem that explains what went wrong."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        # A preview keeps a processor busy for up to some seconds.
        self._previews = asyncio.Semaphore(MAX_CONCURRENT_PREVIEWS)

    async def raw(self, tenant_id: UUID, identity: str) -> bytes:
        """Return the raw message."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await export_message(self._exchange, tenant_id, identity)
        except (M365Error, TimeoutError, NoMessageError) as error:
            raise _problem_of(error) from None

    async def preview(self, tenant_id: UUID, identity: str, texts: Mapping[str, str] = ENGLISH) -> Preview:
        """Return a preview of the message that is safe to show, with explanations from *texts*."""
        raw = await self.raw(tenant_id, identity)
        async with self._previews:
            return await asyncio.to_thread(preview, raw, texts)

    async def headers(self, tenant_id: UUID, identity: str) -> str:
        """Return the headers of the message."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                rows = await self._exchange.invoke(tenant_id, "Get-QuarantineMessageHeader", Identity=identity)
        except (M365Error, TimeoutError) as error:
            raise _problem_of(error) from None
        return next((str(row["Header"]) for row in rows if row.get("Header")), "")


async def find_row(exchange: Exchange, tenant_id: UUID, identity: str) -> ExchangeRow | None:
    """Return the detailed row of a quarantined message; None if there is no such message. Raises M365Error."""
    if not identity:
        raise ValueError("without an Identity, Exchange returns the whole quarantine")
    try:
        rows: Sequence[ExchangeRow] = await exchange.invoke(tenant_id, "Get-QuarantineMessage", Identity=identity)
    except Truncated as error:
        rows = error.records
    return row_with_identity(rows, identity)


async def export_message(exchange: Exchange, tenant_id: UUID, identity: str) -> bytes:
    """Return the raw message. Raises M365Error or NoMessageError."""
    rows = await exchange.invoke(tenant_id, "Export-QuarantineMessage", Identity=identity)
    found = next((row for row in rows if row.get("Eml")), None)
    if found is None:
        raise NoMessageError("Exchange exported no message.")
    return _decode_eml(found)


def _decode_eml(row: dict[str, Any]) -> bytes:
    """Decode `Eml` as `BodyEncoding` says: base64, or the message itself in some answers (7bit)."""
    eml = str(row["Eml"])
    if str(row.get("BodyEncoding") or "Base64").lower() == "base64":
        try:
            return base64.b64decode("".join(eml.split()), validate=True)
        except (binascii.Error, ValueError):
            raise NoMessageError("The message that Exchange exported is not valid base64.") from None
    return eml.encode("utf-8", "surrogatepass") if not eml.isascii() else eml.encode()


def _problem_of(error: Exception) -> Problem:
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
        case NoMessageError():
            return Problem(502, "unexpected-answer-from-microsoft", str(error))
        case _:
            return Problem(503, "microsoft-unavailable", "Nothing was changed. Try again.", retry_after=10)
