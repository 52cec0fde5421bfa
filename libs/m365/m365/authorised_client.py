"""Authorised requests: what the clients for Graph and Exchange share."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from uuid import UUID, uuid4

import aiohttp
from yarl import URL

from m365.errors import Unauthorised
from m365.http import Answer, Explain, send
from m365.session import proxy_for
from m365.tokens import Tokens


class Client:
    """
    Sends authorised requests to one origin, at most *concurrency* at a time for each tenant.

    A request answered with 401 is repeated once with a fresh token. Nothing else is repeated.
    """

    def __init__(
        self,
        tokens: Tokens,
        session: aiohttp.ClientSession,
        *,
        base_url: str,
        scope: str,
        explain: Explain,
        concurrency: int,
        timeout: float,
        max_body: int,
    ) -> None:
        self.base_url = URL(base_url.rstrip("/"))
        if self.base_url.scheme != "https":
            raise ValueError(f"a token is only sent over https, not to {base_url}")
        self._tokens = tokens
        self._session = session
        self._scope = scope
        self._explain = explain
        self._timeout = timeout
        self._max_body = max_body
        self._proxy = proxy_for(self.base_url)
        self._slots: defaultdict[UUID, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(concurrency))

    def same_origin(self, link: str) -> URL:
        """Parse *link*. Raises ValueError unless it has the base URL's origin and no credentials."""
        url = URL(link, encoded=True)
        if url.origin() != self.base_url.origin() or url.user or url.password:
            raise ValueError("the link has another origin")
        return url

    async def call(
        self,
        tenant_id: UUID,
        method: str,
        url: URL,
        *,
        route: str,
        effect: bool,
        headers: Mapping[str, str],
        data: bytes | None = None,
    ) -> Answer:
        """Send the request with the tenant's token. Raises M365Error."""

        async def attempt(token: str) -> Answer:
            return await send(
                self._session,
                method,
                url,
                route=route,
                explain=self._explain,
                effect=effect,
                timeout=self._timeout,
                max_body=self._max_body,
                proxy=self._proxy,
                headers={**headers, "Authorization": f"Bearer {token}", "client-request-id": str(uuid4())},
                data=data,
            )

        async with self._slots[tenant_id]:
            token = await self._tokens.get(tenant_id, self._scope)
            try:
                return await attempt(token)
            except Unauthorised as error:
                if error.status != 401:
                    raise
            self._tokens.drop(tenant_id, self._scope, token)
            return await attempt(await self._tokens.get(tenant_id, self._scope))
