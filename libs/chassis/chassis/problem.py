"""Problem details (RFC 9457): the one shape of every error that leaves a service."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class Problem(HTTPException):
    """An answer that says what happened, what was kept and what to do, as application/problem+json."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
        self.headers: dict[str, str] = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def response(self) -> JSONResponse:
        """Make the HTTP answer."""
        return JSONResponse(
            self.body, status_code=self.status, headers=self.headers, media_type="application/problem+json"
        )
