"""Settings become a credential and a connection that leaves nothing behind."""

# ruff: noqa: S106 - the secrets are made up

import asyncio
import threading
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import pytest

from m365 import M365Settings, connect

TENANT = UUID("11111111-1111-4111-8111-111111111111")


async def test_a_connection_speaks_to_graph_and_exchange_and_ends(microsoft: Any) -> None:
    """Both are asked at the addresses in the settings, each with a token of its own; no thread stays."""
    settings = M365Settings(
        client_id="app", client_secret="right-secret", graph_url=microsoft.url, exchange_url=microsoft.url
    )

    async with connect(settings, authority=microsoft.url, ca_file=microsoft.ca_file) as (graph, exchange):
        await graph.get(TENANT, "/v1.0/things")
        await exchange.invoke(TENANT, "Get-Thing")
        ours = [thread for thread in threading.enumerate() if thread.name.startswith("msal")]
    for thread in ours:
        thread.join(5)

    assert [request.headers["Authorization"] for request in microsoft.requests] == ["Bearer token-1", "Bearer token-2"]
    assert ours
    assert not any(thread.is_alive() for thread in ours)


@pytest.mark.parametrize(("chosen", "least"), [({}, 1.0), ({"exchange_write_interval_seconds": 0.1}, 0.1)])
async def test_changes_in_exchange_keep_a_distance(microsoft: Any, chosen: dict[str, float], least: float) -> None:
    """One second unless another one is set."""
    settings = M365Settings.model_validate(
        {"client_id": "app", "client_secret": "right-secret", "exchange_url": microsoft.url, **chosen}
    )

    async with connect(settings, authority=microsoft.url, ca_file=microsoft.ca_file) as (_, exchange):
        begun = monotonic()
        await asyncio.gather(*(exchange.invoke(TENANT, "Set-Thing") for _ in range(2)))

    assert monotonic() - begun >= least


def test_a_certificate_is_taken_from_the_settings(tmp_path: Path) -> None:
    """Every part of the credential has its setting."""
    settings = M365Settings(
        client_id="app",
        client_certificate=tmp_path / "app.crt",
        client_certificate_key=tmp_path / "app.key",
        client_certificate_passphrase="passphrase",
    )

    credential = settings.credential()

    assert (credential.client_id, credential.certificate, credential.key, str(credential.passphrase)) == (
        "app",
        tmp_path / "app.crt",
        tmp_path / "app.key",
        "**********",
    )


@pytest.mark.parametrize("name", ["BACKSTOP_FEDERATED_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE"])
def test_workload_identity_is_found_under_azures_own_name(name: str) -> None:
    """Azure's webhook sets the variable in the pod."""
    settings = M365Settings.model_validate({"client_id": "app", name: "/var/run/token"})

    assert settings.credential().federated_token_file == Path("/var/run/token")


def test_settings_without_a_proof_are_refused() -> None:
    """At the start, not at the first call."""
    with pytest.raises(ValueError, match="exactly one"):
        M365Settings(client_id="app").credential()
