"""
What can go wrong with a call to Microsoft, by what the caller has to do about it.

    M365Error
    ├── Unavailable     no answer, or a 5xx: come back; if it may have happened, look before repeating
    ├── Throttled       429: come back later; nothing happened
    ├── Refused         Microsoft says no to this request: repeating it does not help
    ├── Unauthorised    Microsoft says no to this application (401, 403, no token): an administrator has to act
    └── Truncated       Exchange answered a part only; the part is in `records`

The text of an error names the route, the status, Microsoft's code and the request id. It never holds a body, a token
or an address; those may stand in `reason`.
"""

# The names say what the situation is; a suffix would say again that it is an error.
# ruff: noqa: N818

from typing import Any


class M365Error(Exception):
    """
    A call to Microsoft that did not succeed.

    `route` is the method and the path with every id left out. `status` is None when there was no answer. `code` is
    Microsoft's error code, or the name of our own finding. `reason` is in Microsoft's own words where there are
    any, and may name people and objects. `request_id` is what Microsoft's support asks for.
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
    Nobody answered in time, the connection broke, or Microsoft answered 5xx or with something unreadable.

    `may_have_happened` is True when the request could change something and may have reached Microsoft: look before
    you repeat it. It is False for reads, and when no connection came about. `retry_after` is in seconds, None when
    Microsoft named no time.
    """

    def __init__(self, route: str, *, may_have_happened: bool, retry_after: float | None = None, **answer: Any) -> None:
        super().__init__(route, **answer)
        self.may_have_happened = may_have_happened
        self.retry_after = retry_after


class Throttled(M365Error):
    """
    Too many requests (429); the request was not carried out.

    `retry_after` is in seconds, None when Microsoft named no time: then back off.
    """

    def __init__(self, route: str, *, retry_after: float | None = None, **answer: Any) -> None:
        super().__init__(route, **answer)
        self.retry_after = retry_after


class Refused(M365Error):
    """Microsoft says no to this request (4xx, a redirect), or its answer is one that we must not follow."""


class Unauthorised(M365Error):
    """
    Microsoft does not let this application do it: 401, 403, or no token.

    When Entra ID refused the token, `reason` starts with its AADSTS code. Waiting does not help, but once an
    administrator has granted what is missing, the same call succeeds.
    """


class Truncated(M365Error):
    """Exchange answered a part, and a link to more that cannot be relied on. `records` is the part."""

    def __init__(self, route: str, *, records: list[dict[str, Any]], **answer: Any) -> None:
        super().__init__(route, **answer)
        self.records = records
