"""What does not fit together is refused before anything starts."""

from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from quarantine.app import Settings

SECRET = {"sign_in_client_secret": "a secret"}
API = "0a1b2c3d-0000-4000-8000-00000000b001"


def settings(**more: Any) -> Settings:
    """Make settings that fit, but for *more*."""
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
def test_who_signs_in_gets_no_token_for_the_api(spelling: str) -> None:
    """The web application with which users sign in is another one than the API's, however its id is written."""
    with pytest.raises(ValidationError, match="Register a web application of its own"):
        settings(sign_in_client_id=spelling, **SECRET)
    assert settings(sign_in_client_id=str(uuid4()), **SECRET).sign_in_client_id


def test_client_ids_that_are_no_guids_are_compared_as_texts() -> None:
    """As a test's may be."""
    with pytest.raises(ValidationError, match="Register a web application of its own"):
        settings(sign_in_client_id="Audience", api_audience="audience", **SECRET)


@pytest.mark.parametrize("half", [SECRET, {"sign_in_client_id": str(uuid4())}], ids=lambda half: next(iter(half)))
def test_half_a_sign_in_is_none(half: dict[str, str]) -> None:
    """Tenants that want users to sign in would be told that nobody can."""
    with pytest.raises(ValidationError, match="or neither"):
        settings(**half)
