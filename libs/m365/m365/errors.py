"""
Errors of calls to Microsoft, classified by what the caller has to do.

    M365Error
    ├── Unavailable     no response, or 5xx: retry later; if `may_have_happened`, check before repeating
    ├── Throttled       429: retry later; nothing happened
    ├── Refused         Microsoft rejected this request: retrying does not help
    ├── Unauthorised    Microsoft rejected this application (401, 403, no token): an administrator has to act
    └── Truncated       Exchange returned only part of the result, which is in `records`

The text of an error contains the route, the status, Microsoft's code and the request id. It never contains a body, a
token or an address; `reason` may.
"""

# The names describe the situation; the suffix "Error" would add nothing.
# ruff: noqa: N818

from typing import Any


class M365Error(Exception):
    """
    A call to Microsoft that failed.

    `route` is the method and the path without ids. `status` is None when there was no response. `code` is Microsoft's
    error code, or a name assigned by this library. `reason` is Microsoft's message if there was one, and may name
    people and objects. `request_id` is what Microsoft's support asks for.
    """

    def __init__(
        self, route: str, *, status: int | None = None, code: str = "", reason: str = "", request_id: str = ""
    ) -> None:
        what = f"{status or 'no answer'} {code}".strip()
        super().__init__(f"{route}: {what}" + (f" (request id {request_id})" if request_id else ""))
        self.route = route
        self.status = status
        self.code = code
        self.reason = reason
        self.request_id = request_id


class Unavailable(M365Error):
    """
    No response in time, a broken connection, a 5xx status or an unreadable response.

    `may_have_happened` is True when the request could change something and may have reached Microsoft: check before
    repeating it. It is False for reads and when no connection was made. `retry_after` is in seconds, None when
    Microsoft did not specify it.
    """

    def __init__(self, route: str, *, may_have_happened: bool, retry_after: float | None = None, **answer: Any) -> None:
        super().__init__(route, **answer)
        self.may_have_happened = may_have_happened
        self.retry_after = retry_after


class Throttled(M365Error):
    """
    Too many requests (429). The request was not executed.

    `retry_after` is in seconds, None when Microsoft did not specify it: then back off.
    """

    def __init__(self, route: str, *, retry_after: float | None = None, **answer: Any) -> None:
        super().__init__(route, **answer)
        self.retry_after = retry_after


class Refused(M365Error):
    """Microsoft rejected this request (4xx, a redirect), or its response must not be followed."""


class Unauthorised(M365Error):
    """
    The application is not allowed to make this call: 401, 403, or no token.

    When Entra ID refused the token, `reason` starts with its AADSTS code. The call succeeds once an administrator has
    granted what is missing; waiting alone does not help.
    """


class Truncated(M365Error):
    """Exchange returned part of the result, in `records`, and an unreliable link to the rest."""

    def __init__(self, route: str, *, records: list[dict[str, Any]], **answer: Any) -> None:
        super().__init__(route, **answer)
        self.records = records
