"""Settings that do not fit together are refused at start."""

from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from quarantine.app import Settings

SECRET = {"sign_in_client_secret": "a secret"}
API = "0a1b2c3d-0000-4000-8000-00000000b001"


def settings(**more: Any) -> Settings:
    """Return valid settings, changed by *more*."""
    values: dict[str, Any] = {
        "postgres_dsn": "postgresql://localhost/backstop",
        "kafka_bootstrap": "localhost:9092",
        "api_audience": API,
        "tenants": str(uuid4()),
        "client_id": str(uuid4()),
        "client_secret": "a secret",
        "mail_store": "memory:///",
        "public_url": "https://quarantine.contoso.example",
        "link_keys": "k" * 32,
    }
    return Settings(**values | more)


@pytest.mark.parametrize("spelling", [API, API.upper(), f"{{{API}}}", f" {API}", API.replace("-", "")])
def test_signing_in_needs_a_client_id_other_than_the_apis(spelling: str) -> None:
    """However the id is written: otherwise signing in would yield tokens for the API."""
    with pytest.raises(ValidationError, match="Register a separate web application"):
        settings(sign_in_client_id=spelling, **SECRET)
    assert settings(sign_in_client_id=str(uuid4()), **SECRET).sign_in_client_id


def test_client_ids_that_are_not_guids_are_compared_without_case() -> None:
    """Client ids in tests may be plain words."""
    with pytest.raises(ValidationError, match="Register a separate web application"):
        settings(sign_in_client_id="Audience", api_audience="audience", **SECRET)


@pytest.mark.parametrize("half", [SECRET, {"sign_in_client_id": str(uuid4())}], ids=lambda half: next(iter(half)))
def test_sign_in_needs_both_client_id_and_secret(half: dict[str, str]) -> None:
    """Otherwise tenants that require a sign-in would find out only later that nobody can sign in."""
    with pytest.raises(ValidationError, match="or neither"):
        settings(**half)
