"""Microsoft Graph: JSON over HTTP with OData's paging and errors."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode
from uuid import UUID

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from m365.authorised_client import Client
from m365.errors import Refused
from m365.http import Answer, json_object
from m365.session import before
from m365.tokens import Tokens

Query: TypeAlias = Mapping[str, str]

_WORD = re.compile(r"|v\d\.\d|\$?[A-Za-z]+|microsoft\.graph\.[A-Za-z.]+|\{\w+\}")


class Graph:
    """
    Calls Microsoft Graph in any tenant for which *tokens* can get a token.

    A path starts with its version (`/v1.0/users/{user}/messages`). Pass ids and addresses in *ids*, not in the path:
    they are quoted there and kept out of errors.

    Every request asks for enum members that are newer than the API's version, which would otherwise read
    `unknownFutureValue` (Microsoft Learn: "Handling future members in evolvable enumerations"). *timeout* is in
    seconds, *max_body* in bytes; its default holds the largest message that Exchange Online accepts.

    Every method raises Unavailable, Throttled, Refused or Unauthorised. Requests are not retried, except once with a
    fresh token after a 401: retrying is up to the caller.
    """

    before = staticmethod(before)
    """`async with graph.before(deadline):` calls of the block end by *deadline*, on the event loop's clock."""

    def __init__(
        self,
        tokens: Tokens,
        session: aiohttp.ClientSession,
        *,
        base_url: str = "https://graph.microsoft.com",
        scope: str = "https://graph.microsoft.com/.default",
        concurrency: int = 8,
        timeout: float = 60.0,
        max_body: int = 160 * 1024 * 1024,
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

    async def get(
        self,
        tenant_id: UUID,
        path: str,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Read one object, or the first page of a collection."""
        answer = await self._call(tenant_id, "GET", path, params=params, headers=headers, ids=ids)
        return answer.json()

    async def content(
        self,
        tenant_id: UUID,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> bytes:
        """Read content that is not JSON, such as the raw message at `/messages/{message}/$value`."""
        answer = await self._call(tenant_id, "GET", path, headers=headers, ids=ids)
        return answer.body

    async def pages(
        self,
        tenant_id: UUID,
        path: str,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """
        Read a collection page by page; each page is the whole response, with its items under `value`.

        Also raises Refused when the link to the next page has another origin, which must not receive the token.
        """
        route, url = self._target("GET", path, params, ids)
        while True:
            answer = await self._send(tenant_id, "GET", url, route=route, headers=headers)
            page = answer.json()
            yield page
            link = page.get("@odata.nextLink")
            if link is None:
                return
            try:
                url = self._client.same_origin(str(link))
            except ValueError:
                raise Refused(
                    route, status=answer.status, code="ForeignNextLink", request_id=answer.request_id
                ) from None

    async def post(
        self,
        tenant_id: UUID,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Create an object or run an action; return an empty dict if the response has no body."""
        answer = await self._call(tenant_id, "POST", path, body=body, headers=headers, ids=ids)
        return answer.json()

    async def post_content(
        self,
        tenant_id: UUID,
        path: str,
        content: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Create an object from content that is not JSON, such as a MIME message (as text/plain, in Base64)."""
        route, url = self._target("POST", path, None, ids)
        answer = await self._send(
            tenant_id, "POST", url, route=route, content=content, content_type=content_type, headers=headers
        )
        return answer.json()

    async def patch(
        self,
        tenant_id: UUID,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Change an object; return an empty dict if the response has no body."""
        answer = await self._call(tenant_id, "PATCH", path, body=body, headers=headers, ids=ids)
        return answer.json()

    async def delete(
        self,
        tenant_id: UUID,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        ids: Mapping[str, str] | None = None,
    ) -> None:
        """Delete an object."""
        await self._call(tenant_id, "DELETE", path, headers=headers, ids=ids)

    async def _call(
        self,
        tenant_id: UUID,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None,
        ids: Mapping[str, str] | None,
    ) -> Answer:
        route, url = self._target(method, path, params, ids)
        return await self._send(tenant_id, method, url, route=route, body=body, headers=headers)

    async def _send(
        self,
        tenant_id: UUID,
        method: str,
        url: URL,
        *,
        route: str,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None,
    ) -> Answer:
        sent = CIMultiDict(headers or {})
        sent["Prefer"] = ", ".join(["include-unknown-enum-members", *sent.popall("Prefer", [])])
        data = content if body is None else orjson.dumps(body)
        if data is not None:
            sent["Content-Type"] = content_type
        return await self._client.call(
            tenant_id,
            method,
            url,
            route=route,
            effect=method != "GET",
            headers=sent,
            data=data,
        )

    def _target(self, method: str, path: str, params: Query | None, ids: Mapping[str, str] | None) -> tuple[str, URL]:
        if not path.startswith("/"):
            raise ValueError("a path starts with a slash and its version")
        query = urlencode(params or {}, quote_via=quote, safe="$")
        address = path.format_map({name: _segment(value) for name, value in (ids or {}).items()})
        url = URL(f"{self._client.base_url}{address}" + (f"?{query}" if query else ""), encoded=True)
        return f"{method} {_public(path)}", url


def _segment(value: str) -> str:
    if value in {"", ".", ".."}:
        raise ValueError("this id would change the path")
    return quote(value, safe="")


def _public(path: str) -> str:
    """Replace every segment of *path* that is not one of Graph's own names with `{}`."""
    words = path.partition("?")[0].split("/")
    return "/".join(word if _WORD.fullmatch(word) else "{}" for word in words)


def _explain(body: bytes) -> tuple[str, str]:
    """Return code and message of an OData error (Microsoft Learn: "Microsoft Graph error responses")."""
    error = (json_object(body) or {}).get("error")
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code", "")), str(error.get("message", ""))
