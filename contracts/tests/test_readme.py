"""What the README prints works as printed."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiokafka
import pytest
from aiokafka import ConsumerRecord
from faststream.kafka import TestKafkaBroker

from backstop_contracts import CaseUpdated, Event, VerdictReady, headers_for

CONTRACTS = Path(__file__).resolve().parents[1]
README = (CONTRACTS / "README.md").read_text()
FASTSTREAM, AIOKAFKA = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
VERDICT = VerdictReady.model_validate_json((CONTRACTS / "examples" / "verdict-ready.v1.json").read_bytes())


def record_of(model: type[Event], topic: str) -> ConsumerRecord[bytes, bytes]:
    """Make the record that the full example of an event arrives in."""
    event = model.model_validate_json((CONTRACTS / "examples" / f"{model.TOPIC}.v1.json").read_bytes())
    headers = headers_for(event, source="/backstop/somebody")
    value = event.model_dump_json().encode()
    return ConsumerRecord(
        topic=topic,
        partition=0,
        offset=0,
        timestamp=0,
        timestamp_type=0,
        key=event.key.encode(),
        value=value,
        checksum=None,
        serialized_key_size=len(event.key),
        serialized_value_size=len(value),
        headers=tuple((name, text.encode()) for name, text in headers.items()),
    )


class Kafka:
    """Kafka as one consumer sees it: a few records of the topic that it asks for, then the end of the program."""

    def __init__(self, *topics: str, **options: Any) -> None:
        self.topics = topics
        self.options = options

    async def __aenter__(self) -> Self:
        assert self.options == {"bootstrap_servers": "kafka.example:9092", "group_id": "soc"}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
        (topic,) = self.topics
        yield record_of(CaseUpdated, topic)
        yield record_of(VerdictReady, topic)
        raise asyncio.CancelledError


def test_the_printed_consumer_prints_verdict_causes_and_recommendations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The consumer in the README reads verdicts, skips what is none, and prints what to change."""
    monkeypatch.setattr(aiokafka, "AIOKafkaConsumer", Kafka)
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", "kafka.example:9092")

    with pytest.raises(asyncio.CancelledError):
        exec(compile(AIOKAFKA, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"case {VERDICT.case_id}: unknown (allowedDueToOrganizationOverride)"
    assert printed[1:] == [
        text
        for cause in VERDICT.causes
        for text in (cause.title, *(f"  - {advice.action}" for advice in cause.recommendations))
    ]


async def test_the_printed_faststream_subscriber_prints_verdict_links_and_recommendations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verdict on the topic is all that it needs."""
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", "kafka.example:9092")
    names: dict[str, Any] = {"__name__": "soc"}
    exec(compile(FASTSTREAM, "README.md", "exec"), names)  # noqa: S102 - our own text

    async with TestKafkaBroker(names["broker"]) as broker:
        await broker.publish(VERDICT, "backstop.verdict-ready", headers=headers_for(VERDICT, source="/backstop/x"))

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "billing@fabrikam.example to megan@contoso.example: unknown https://pay.fabrikam.example/4471"
    )
    assert printed[1] == VERDICT.causes[0].title


def test_every_file_that_the_readme_names_is_there() -> None:
    """The table of contents has no entry of the past, and leaves no folder or program out."""
    named = set(re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE))

    assert all((CONTRACTS / name).exists() for name in named)
    package = {f"backstop_contracts/{file.name}" for file in (CONTRACTS / "backstop_contracts").glob("[a-z]*.*")}
    folders = {f"{folder}/" for folder in ("examples", "generator", "schemas")}
    assert named == package - {"backstop_contracts/py.typed"} | folders | {"FIELDS.md"}
