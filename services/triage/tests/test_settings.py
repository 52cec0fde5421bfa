"""How long cases are kept is read from the settings and checked."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from triage.app import Settings

REQUIRED = {
    "api_audience": "a",
    "tenants": "3f2b6f0e-8c1d-4a57-9e64-2d0b7a95c318",
    "postgres_dsn": "postgresql:///x",
    "kafka_bootstrap": "localhost:9092",
}


TENANT = UUID("3f2b6f0e-8c1d-4a57-9e64-2d0b7a95c318")


def test_the_retention_is_30_days_unless_the_settings_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can change it for all tenants and for single ones."""
    for name, value in REQUIRED.items():
        monkeypatch.setenv(f"BACKSTOP_{name.upper()}", value)
    assert Settings().retention().of(TENANT) == timedelta(days=30)

    monkeypatch.setenv("BACKSTOP_RETENTION_DAYS", "60")
    monkeypatch.setenv("BACKSTOP_RETENTION_DAYS_BY_TENANT", f"{TENANT}=365, {uuid4()}=15")
    assert Settings().retention().of(TENANT) == timedelta(days=365)
    assert Settings().retention().of(uuid4()) == timedelta(days=60)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RETENTION_DAYS", "0", "15 days are the least: Kafka may hold the events of a case for 14 days"),
        ("RETENTION_DAYS", "14", "would be reported, submitted and blocked once more"),
        ("RETENTION_DAYS", "a month", "valid integer"),
        ("RETENTION_DAYS_BY_TENANT", f"{TENANT}=7", "the retention is too short; 15 days are the least"),
        ("RETENTION_DAYS_BY_TENANT", f"{TENANT}:60", "write it as tenant=days,tenant=days"),
        ("RETENTION_DAYS_BY_TENANT", f"{TENANT}=60,{TENANT}=90", "a tenant is named twice"),
        ("RETENTION_DAYS_BY_TENANT", "contoso=60", "valid UUID"),
    ],
)
def test_an_invalid_retention_is_rejected_at_startup(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    """The error gives the reason."""
    for required, given in REQUIRED.items():
        monkeypatch.setenv(f"BACKSTOP_{required.upper()}", given)
    monkeypatch.setenv(f"BACKSTOP_{name}", value)
    with pytest.raises(ValidationError, match=complaint):
        Settings()
