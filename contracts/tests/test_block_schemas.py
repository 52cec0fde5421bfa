"""The shape of a block in every request."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from backstop_contracts.block_schemas import BlockInput

NOW = datetime.now(UTC)


def test_a_block_ends_after_thirty_days_unless_told_otherwise() -> None:
    """The end is that of a day: the same request sent again is the same block."""
    first, second = BlockInput().decided(), BlockInput().decided()

    assert first == second
    assert first.expires_at
    assert timedelta(days=30) < first.expires_at - NOW <= timedelta(days=31)
    assert BlockInput(never_expires=True).decided().expires_at is None
    assert BlockInput(expires_at=NOW + timedelta(days=7)).decided().expires_at == NOW + timedelta(days=7)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"kind": "url"}, "give url with kind url"),
        ({"url": "https://x.example/"}, "give url with kind url"),
        ({"kind": "url", "url": "javascript:alert(1)"}, "http or https"),
        ({"kind": "url", "url": "https://[broken"}, "http or https"),
        ({"kind": "url", "url": "https:///path"}, "http or https"),
        ({"kind": "url", "url": "https://x.example/\x00"}, "pattern"),
        ({"kind": "ip"}, "sender"),
        ({"expires_at": NOW - timedelta(hours=1)}, "in the future"),
        ({"expires_at": NOW + timedelta(days=91)}, "at most 90 days"),
        ({"expires_at": NOW + timedelta(days=7), "never_expires": True}, "not both"),
        ({"note": "x"}, "not permitted"),
    ],
)
def test_what_cannot_be_blocked_is_refused(wrong: dict[str, Any], told: str) -> None:
    """The text says what to send instead."""
    with pytest.raises(ValidationError, match=told):
        BlockInput.model_validate(wrong)
