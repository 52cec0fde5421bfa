"""Every setting that services share is told to operators, with its default."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from chassis.settings import ServiceSettings
from m365 import M365Settings

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"
FIELDS = {**ServiceSettings.model_fields, **M365Settings.model_fields}


def told() -> dict[str, str]:
    """Read the tables: each setting with its default as it is written."""
    section = OPERATIONS.read_text().partition("## Settings of every service")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", section, re.MULTILINE))


@pytest.mark.parametrize("name", FIELDS)
def test_a_shared_setting_is_told_with_its_default(name: str) -> None:
    """What is required says so; what is off unless set has none."""
    default: Any = FIELDS[name].default
    written = f"{default:g}" if isinstance(default, float) else str(default)
    expected = {PydanticUndefined: "required", None: ""}.get(default, f"`{written}`")

    assert told().get(f"BACKSTOP_{name.upper()}") == expected


def test_no_setting_is_told_that_is_gone() -> None:
    """But for those of the command that makes topics, and OpenTelemetry's."""
    others = {"BACKSTOP_TOPIC_PARTITIONS", "BACKSTOP_TOPIC_REPLICATION", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    known = {f"BACKSTOP_{name.upper()}" for name in FIELDS}

    assert told().keys() - others <= known
