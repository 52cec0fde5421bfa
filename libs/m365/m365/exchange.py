"""
Exchange Online cmdlets over HTTP: `InvokeCommand`, the interface of the ExchangeOnlineManagement module.

Microsoft does not document it. The wire format described here was measured against Exchange Online.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import structlog

from m365.authorised_client import Client
from m365.errors import Truncated
from m365.http import Answer, json_object
from m365.session import before
from m365.tokens import Tokens

log = structlog.get_logger()

READING_VERBS = frozenset({"Get", "Search", "Test", "Preview", "Export"})

_CMDLET = re.compile(r"([A-Z][a-z]+)-[A-Z][A-Za-z]+")
_DOTTED_TYPE = re.compile(r"\|([\w.+]+)\|")
_NO_MESSAGE = (
    "Exchange gave no reason. It does so when the application holds Exchange.ManageAsApp but no Exchange role that"
    " allows this cmdlet, and when there is no such cmdlet"
)


class Records(list[dict[str, Any]]):
    """The records that a cmdlet returned, and Microsoft's `warnings`."""

    def __init__(self, records: Iterable[dict[str, Any]], warnings: Iterable[str] = ()) -> None:
        super().__init__(records)
        self.warnings = tuple(warnings)


class Exchange:
    """
    Runs Exchange Online cmdlets in any tenant for which *tokens* can get a token.

    Within one Exchange object, cmdlets that change something run one at a time in each tenant and start at least
    *write_interval* seconds apart. Those that read (Get, Search, Test, Preview, Export) run concurrently with them. At
    most *concurrency* cmdlets run at a time for each tenant. *timeout* is in seconds, *max_body* in bytes; its default
    holds the largest message that Exchange Online accepts, in Base64.
    """

    before = staticmethod(before)
    """`async with exchange.before(deadline):` calls of the block end by *deadline*, on the event loop's clock."""

    def __init__(
        self,
        tokens: Tokens,
        session: aiohttp.ClientSession,
        *,
        base_url: str = "https://outlook.office365.com",
        scope: str = "https://outlook.office365.com/.default",
        concurrency: int = 4,
        timeout: float = 60.0,
        max_body: int = 220 * 1024 * 1024,
        write_interval: float = 0.0,
    ) -> None:
        self._client = Client(
            tokens,
            session,
            base_url=base_url,
            scope=scope,
            explain=_explain,
            concurrency=concurrency,
            timeout=timeout,
            max_body=max_body,
        )
        self._write_interval = write_interval
        self._writing: defaultdict[UUID, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wrote_at: dict[UUID, float] = {}

    async def invoke(self, tenant_id: UUID, cmdlet: str, /, **parameters: Any) -> Records:
        """
        Run *cmdlet* and return its records.

        Pass True for a switch, a list for several values, an aware datetime for a time, and a `hashtable` to add
        values to a property or remove them. Parameters that are None are omitted. Exchange matches enum members by
        prefix, so a wrong value may silently match nothing: validate it first.

        Page with the cmdlet's own Page and PageSize, below 1,000. When Exchange offers a link to more records,
        Truncated is raised, because that link works only for some applications. Also raises Unavailable, Throttled,
        Refused (404: no such object) or Unauthorised (401: Exchange.ManageAsApp is missing; 403: an Exchange role is
        missing).
        """
        verb = _CMDLET.fullmatch(cmdlet)
        if verb is None:
            raise ValueError(f"{cmdlet!r} is not the name of a cmdlet")
        reading = verb[1] in READING_VERBS
        body = orjson.dumps(
            {
                "CmdletInput": {
                    "CmdletName": cmdlet,
                    "Parameters": {name: _encode(value) for name, value in parameters.items() if value is not None},
                }
            }
        )
        async with nullcontext() if reading else self._turn(tenant_id):
            answer = await self._client.call(
                tenant_id,
                "POST",
                self._client.base_url / "adminapi" / "beta" / str(tenant_id) / "InvokeCommand",
                route=f"POST /adminapi/beta/{{tenant}}/InvokeCommand {cmdlet}",
                effect=not reading,
                headers={
                    "Content-Type": "application/json; charset=utf-8",
                    "Prefer": "odata.maxpagesize=1000",
                    "X-AnchorMailbox": f"APP:SystemMailbox{{bb558c35-97f1-4cb9-8ff7-d53741dc928c}}@{tenant_id}",
                    "X-CmdletName": cmdlet,
                    "X-ResponseFormat": "json",
                },
                data=body,
            )
        records = _records(answer)
        if records.warnings:
            log.warning("cmdlet.warned", tenant_id=str(tenant_id), cmdlet=cmdlet, warnings=len(records.warnings))
        return records

    @asynccontextmanager
    async def _turn(self, tenant_id: UUID) -> AsyncIterator[None]:
        async with self._writing[tenant_id]:
            if tenant_id in self._wrote_at:
                await asyncio.sleep(self._wrote_at[tenant_id] + self._write_interval - monotonic())
            self._wrote_at[tenant_id] = monotonic()
            yield


def hashtable(add: Iterable[str] = (), remove: Iterable[str] = ()) -> dict[str, Any]:
    """
    Return PowerShell's `@{Add=...; Remove=...}`, which changes single values of a property and keeps the others.

    Without arguments, return an empty hash table.
    """
    table: dict[str, Any] = {"@odata.type": "#Exchange.GenericHashTable"}
    if added := list(add):
        table["Add"] = added
    if removed := list(remove):
        table["Remove"] = removed
    return table


def _encode(value: Any) -> Any:
    match value:
        case datetime() if value.tzinfo is None:
            raise ValueError("a time without a time zone: Exchange would read it in a zone of its own")
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case Mapping():
            return {name: _encode(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_encode(item) for item in value]
        case _:
            return value


def _records(answer: Answer) -> Records:
    page = answer.json()
    records = Records(
        map(_record, page.get("value") or ()),
        map(str, page.get("@adminapi.warnings") or ()),
    )
    if page.get("@odata.nextLink"):
        raise Truncated(
            answer.route,
            records=records,
            status=answer.status,
            code="MoreRecords",
            reason=f"Exchange returned {len(records)} records and has more: ask for smaller pages",
            request_id=answer.request_id,
        )
    return records


def _record(found: Any) -> dict[str, Any]:
    """Drop type annotations: `X@data.type`, `X@odata.type`, and the misspelt `X(DateTime])`."""
    if not isinstance(found, dict):
        return {"value": found}
    return {name: value for name, value in found.items() if "@" not in name and not name.endswith("])")}


def _explain(body: bytes) -> tuple[str, str]:
    """
    Extract the code and the most specific message: the inner exception's, the first detail's, or the outer one.

    The outer message is always "Invalid Operation". The code is the exception's name if given, else OData's code. The
    body may be empty or consist of NUL bytes.
    """
    error = (json_object(body) or {}).get("error")
    inner = ("innererror", "internalexception")
    message = _dig(error, *inner, "message") or _dig(error, "details", 0, "message") or _dig(error, "message")
    exception = _dig(error, *inner, "type")
    if dotted := _DOTTED_TYPE.match(message):
        message = message[dotted.end() :]
        exception = exception or dotted[1]
    return exception.rpartition(".")[2] or _dig(error, "code"), message or _NO_MESSAGE


def _dig(found: Any, *path: str | int) -> str:
    for step in path:
        try:
            found = found[step]
        except (LookupError, TypeError):
            return ""
    return found if isinstance(found, str) else ""
