"""Without a valid token with the right role, nothing is accepted and nothing is shown."""

import base64
from typing import Any
from uuid import uuid4

import pytest

from conftest import BAD_TOKENS


async def ask(running: Any, raw: bytes, headers: dict[str, str]) -> list[tuple[int, str]]:
    """Report a message and read a report; return status and content type of both answers."""
    body = {"mail": base64.b64encode(raw).decode(), "reported_as": "phishing"}
    async with (
        running.client.post("/v1/reports", json=body, headers=headers) as reported,
        running.client.get(f"/v1/reports/{uuid4()}", headers=headers) as read,
    ):
        return [(reported.status, reported.content_type), (read.status, read.content_type)]


@pytest.mark.parametrize("order", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_an_invalid_token_is_rejected(running: Any, token: Any, make_mail: Any, order: dict[str, Any]) -> None:
    """Whatever is wrong with it, the answer is 401, and nothing is kept."""
    headers = await token("Reporter", "SecurityAdministrator", **order)
    assert await ask(running, make_mail(), headers) == [(401, "application/problem+json")] * 2
    assert set((await running.kept()).values()) == {0}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer a.b.c"}])
async def test_a_request_without_a_token_is_rejected(running: Any, make_mail: Any, headers: dict[str, str]) -> None:
    """Every route requires a bearer token."""
    assert await ask(running, make_mail(), headers) == [(401, "application/problem+json")] * 2


@pytest.mark.parametrize("roles", [(), ("SecurityReader",), ("SecurityAdministrator",), ("reporter",)])
async def test_only_the_role_reporter_may_report(
    running: Any, token: Any, make_mail: Any, roles: tuple[str, ...]
) -> None:
    """Other roles do not suffice, however much they allow."""
    (status, kind), _ = await ask(running, make_mail(), await token(*roles))
    assert (status, kind) == (403, "application/problem+json")
    assert set((await running.kept()).values()) == {0}
