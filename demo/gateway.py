"""The gateway as a client sees it."""

from types import TracebackType
from typing import Any, Self

import aiohttp


class RefusedError(Exception):
    """The gateway said no; the text is its problem's title and detail."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('title', status)}: {problem.get('detail', 'no reason was given')}")
        self.status = status
        self.problem = problem


class Gateway:
    """Calls the gateway at *url*. Each method takes the caller's access token and raises RefusedError on a no."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120))
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def report(
        self,
        token: str,
        raw: bytes,
        *,
        reported_as: str,
        folder: str | None = None,
        reporter: str | None = None,
        block_sender: bool = False,
    ) -> dict[str, Any]:
        """Report a raw mail; returns the answer with its `report_id`."""
        values = {"reported_as": reported_as, "folder": folder, "reporter": reporter}
        query = {name: value for name, value in values.items() if value} | (
            {"block_sender": "true"} if block_sender else {}
        )
        return await self._call("POST", "/v1/reports", token, params=query, data=raw, content_type="message/rfc822")

    async def read_report(self, token: str, report_id: str) -> dict[str, Any]:
        """Ask what became of a report."""
        return await self._call("GET", f"/v1/reports/{report_id}", token)

    async def list_cases(self, token: str, **filters: str) -> dict[str, Any]:
        """Return a page of cases: `items` and the cursor `next`."""
        return await self._call("GET", "/v1/cases", token, params=filters)

    async def read_case(self, token: str, case_id: str) -> dict[str, Any]:
        """Return a case with its timeline."""
        return await self._call("GET", f"/v1/cases/{case_id}", token)

    async def decide(self, token: str, case_id: str, decision: dict[str, Any]) -> dict[str, Any]:
        """Decide on a case."""
        return await self._call("POST", f"/v1/cases/{case_id}/decisions", token, json=decision)

    async def list_quarantine(self, token: str, **filters: str) -> dict[str, Any]:
        """Return a page of quarantined mails, pending release requests first: `items` and the cursor `next`."""
        return await self._call("GET", "/v1/quarantine", token, params=filters)

    async def read_quarantined(self, token: str, message_id: str) -> dict[str, Any]:
        """Return a quarantined mail, with what was reported of it."""
        return await self._call("GET", f"/v1/quarantine/{message_id}", token)

    async def preview_quarantined(self, token: str, message_id: str) -> dict[str, Any]:
        """Return what can be shown of a quarantined mail without danger."""
        return await self._call("GET", f"/v1/quarantine/{message_id}/preview", token)

    async def act_on_quarantine(self, token: str, wish: dict[str, Any]) -> dict[str, Any]:
        """Release, deny or submit quarantined mails; returns what became of each."""
        return await self._call("POST", "/v1/quarantine/actions", token, json=wish)

    async def write_quarantine_settings(self, token: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Decide how users hear of their quarantined mail."""
        return await self._call("PUT", "/v1/quarantine/settings", token, json=settings)

    async def _call(
        self, method: str, path: str, token: str, *, content_type: str | None = None, **request: Any
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": content_type} if content_type else {})
        async with self._session.request(method, self._url + path, headers=headers, **request) as response:
            try:
                body: dict[str, Any] = await response.json(content_type=None)
            except ValueError:
                detail = "this is no answer of Backstop's: is it the gateway's address?"
                raise RefusedError(response.status, {"title": response.reason, "detail": detail}) from None
            if response.status >= 400:
                raise RefusedError(response.status, body)
            return body
