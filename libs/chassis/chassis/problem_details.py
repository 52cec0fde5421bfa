"""Problem details (RFC 9457): the one shape of every error that leaves a service."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TYPES = "urn:backstop:problem:"


class Problem(HTTPException):
    """
    An answer that says what happened, what was saved and what to do, as application/problem+json.

    *type* is a name in kebab case that stays the same for good, so that programs can branch on it: `unknown-case` is
    answered as the type `urn:backstop:problem:unknown-case` with the title "Unknown case". One type has one status.
    """

    def __init__(
        self,
        status: int,
        type: str,  # noqa: A002 - the member's name in RFC 9457
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.body = {
            "type": f"{TYPES}{type}",
            "title": type.replace("-", " ").capitalize(),
            "status": status,
            "detail": detail,
            **more,
        }
        self.headers: dict[str, str] = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(
            self.body, status_code=self.status, headers=self.headers, media_type="application/problem+json"
        )
