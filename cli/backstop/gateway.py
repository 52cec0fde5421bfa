"""
Backstop's API as a client sees it: one call after the other, with nothing but the standard library.

aiohttp would be a quarter of the whole command.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import click

from backstop.output import Command, fail, printable

TIMEOUT_SECONDS = 120

gateway_option = click.option(
    "--gateway", envvar="BACKSTOP_GATEWAY_URL", show_envvar=True, required=True, help="The gateway's address."
)


def token_option(*roles: str) -> Callable[[Command], Command]:
    """Make the option that holds the caller's access token, which needs one of *roles*."""
    return click.option(
        "--token",
        envvar="BACKSTOP_TOKEN",
        show_envvar=True,
        required=True,
        help=f"An access token with the app role {' or '.join(roles)}.",
    )


class RefusedError(Exception):
    """The gateway refused a request. The text says why: the problem's title, its detail, and each of its errors."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        lines = [f"{problem.get('title') or status}: {problem.get('detail') or 'no reason was given'}"]
        lines += [f"  {error.get('where')}: {error.get('what')}" for error in problem.get("errors") or ()]
        super().__init__("\n".join(map(printable, lines)))
        self.status = status


class _NoRedirects(HTTPRedirectHandler):
    """Follow no redirect: the token is for the gateway alone."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Have the answer raised as it is."""


class Gateway:
    """Calls the gateway at *url* with an access token. Raises RefusedError, or OSError when there is no answer."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._opener = build_opener(_NoRedirects, *([ProxyHandler({})] if url.startswith("http:") else []))

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """Read what is at *path*."""
        return self._call("GET", path, query)

    def post(self, path: str, body: bytes, content_type: str, **query: object) -> dict[str, Any]:
        """Send *body* to *path*."""
        return self._call("POST", path, query, body, {"Content-Type": content_type})

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        given = urlencode({name: value for name, value in query.items() if value is not None})
        request = Request(  # noqa: S310 - `gateway_at` has checked the scheme
            f"{self._url}{path}?{given}".removesuffix("?"),
            data=body,
            headers={"Authorization": f"Bearer {self._token}", **(headers or {})},
            method=method,
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                return _parsed(response.status, response.reason, response.read())
        except HTTPError as error:
            with error:
                raise RefusedError(error.code, _parsed(error.code, error.reason, error.read())) from None


def _parsed(status: int, reason: str, body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        detail = "this is not an answer of Backstop's. Is it the gateway's address?"
        raise RefusedError(status, {"title": f"{status} {reason}", "detail": detail})
    return parsed


@contextmanager
def gateway_at(url: str, token: str, failed: str, again: str = "Try again.") -> Iterator[Gateway]:
    """
    Yield the gateway, and end the command when it refuses, does not answer, or the settings do not fit.

    Errors start with *failed*. If no answer arrives, the message ends with *again*.
    """
    from chassis.settings import check_url  # noqa: PLC0415 - `--help` loads no Kafka

    try:
        check_url(url)
    except ValueError as error:
        fail(f"{failed}: BACKSTOP_GATEWAY_URL: {error}.", 2)
    if not (token.isprintable() and token.isascii()):
        fail(f"{failed}: BACKSTOP_TOKEN must be one line of ASCII text.", 2)
    try:
        yield Gateway(url, token)
    except RefusedError as error:
        fail(f"{failed}: {error}")
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        name = cause if isinstance(cause, str) else type(cause).__name__
        fail(f"{failed}: the gateway at {url} does not answer ({name}). {again}")
