"""The AsyncAPI document describes the system that the models describe, and nothing in it hangs in the air."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from backstop_contracts import EVENTS, CaseUpdated, Event, VerdictReady, schema_of, type_of

CONTRACTS = Path(__file__).resolve().parents[1]
DOCUMENT: dict[str, Any] = json.loads((CONTRACTS / "backstop_contracts" / "asyncapi.json").read_text())
CHANNELS: dict[str, Any] = DOCUMENT["channels"]
OPERATIONS: dict[str, Any] = DOCUMENT["operations"]
DAY_MS = 24 * 60 * 60 * 1000

every_event = pytest.mark.parametrize("model", EVENTS, ids=lambda model: model.__name__)


def references(value: Any) -> Iterator[str]:
    """Find every `$ref` of the document, but not in example payloads, which are somebody's data."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for name, child in value.items():
            if name != "examples":
                yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def resolve(reference: str) -> Any:
    """Follow a reference into the document."""
    place: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        place = place[step]
    return place


def services(action: str, channel: str) -> set[str]:
    """Name the services that send to, or receive from, a channel."""
    return {
        name.partition(".")[0]
        for name, operation in OPERATIONS.items()
        if operation["action"] == action and operation["channel"]["$ref"] == f"#/channels/{channel}"
    }


def schema_at(place: str) -> Draft7Validator:
    """Make a validator of a schema in the document. AsyncAPI 3.0 means JSON Schema draft 7."""
    return Draft7Validator({**DOCUMENT, "$ref": place}, format_checker=Draft7Validator.FORMAT_CHECKER)


def test_every_reference_resolves() -> None:
    """The document is whole in itself."""
    found = list(references(DOCUMENT))

    assert len(found) > 100
    for reference in found:
        assert reference.startswith("#/")
        assert resolve(reference) is not None


def test_every_topic_is_a_channel_and_every_channel_a_topic() -> None:
    """Each event has its topic, and nothing else exists."""
    assert {channel["address"] for channel in CHANNELS.values()} == {f"{{prefix}}.{model.topic()}" for model in EVENTS}
    assert all(set(channel["parameters"]) == {"prefix"} for channel in CHANNELS.values())


def test_every_operation_names_a_channel_and_a_message_of_it() -> None:
    """An operation is called `<service>.<send or receive>.<event>` and does what its name says."""
    for name, operation in OPERATIONS.items():
        service, action, event = name.split(".", 2)
        channel = operation["channel"]["$ref"].removeprefix("#/channels/")
        (message,) = operation["messages"]

        assert operation["action"] == action
        assert message["$ref"] == f"#/channels/{channel}/messages/{event}"
        assert event in CHANNELS[channel]["messages"]
        assert operation["tags"] == [{"$ref": f"#/components/tags/{service}"}]


@every_event
def test_an_event_is_published_by_whom_its_model_names_and_is_read_by_somebody(model: type[Event]) -> None:
    """The document and the docstrings agree about the publisher; an event that nobody reads would not be one."""
    publishers = services("send", model.topic())
    everybody = {name.partition(".")[0] for name in OPERATIONS}
    (told,) = re.findall(r"Published by ([^.;]+)", model.__doc__ or "")

    assert publishers == {service for service in everybody if service in told}
    assert services("receive", model.topic()) - publishers


def test_a_service_reads_each_topic_in_a_group_of_its_own() -> None:
    """A topic that halts or cannot be read stops no other."""
    groups = {
        name: operation["bindings"]["kafka"]["groupId"]["default"]
        for name, operation in OPERATIONS.items()
        if operation["action"] == "receive"
    }

    assert {name: f"backstop.{name.replace('.receive.', '.')}" for name in groups} == groups


def test_a_topic_keeps_all_events_as_long_as_the_model_says() -> None:
    """Nothing is compacted, because each event of a key counts."""
    for model in EVENTS:
        topic = CHANNELS[model.topic()]["bindings"]["kafka"]

        assert topic["topicConfiguration"]["cleanup.policy"] == ["delete"]
        assert topic["topicConfiguration"]["retention.ms"] == model.RETENTION_DAYS * DAY_MS
        assert topic["partitions"] > 1


def test_a_message_says_how_it_is_keyed_traced_and_described() -> None:
    """Key, trace, headers and payload of an event stand in the document."""
    message = DOCUMENT["components"]["messages"]["verdict-ready"]

    assert message["name"] == type_of(VerdictReady)
    assert message["contentType"] == "application/json"
    assert message["headers"]["properties"]["ce_dataschema"] == {"const": schema_of(VerdictReady)}
    assert message["payload"] == {"$ref": "#/components/schemas/VerdictReady"}
    assert message["bindings"]["kafka"]["key"]["type"] == "string"
    assert resolve(message["correlationId"]["$ref"])["location"] == "$message.header#/traceparent"


@every_event
def test_the_examples_of_a_message_are_what_the_document_describes(model: type[Event]) -> None:
    """Every committed example is shown with its headers, and both are valid against the document's own schemas."""
    place = f"#/components/messages/{model.topic()}"
    examples = resolve(place)["examples"]

    assert len(examples) == len(list((CONTRACTS / "examples").glob(f"{model.TOPIC}.v{model.VERSION}.*json")))
    for example in examples:
        schema_at(f"{place}/headers").validate(example["headers"])
        schema_at(f"{place}/payload").validate(example["payload"])


def test_the_headers_of_another_event_are_not_valid() -> None:
    """The headers schema of an event tells it from the others, and insists on every CloudEvents attribute."""
    place = "#/components/messages/verdict-ready"
    headers = resolve(place)["examples"][0]["headers"]

    assert not schema_at(f"{place}/headers").is_valid({**headers, "ce_type": type_of(CaseUpdated)})
    for name in headers:
        less = {kept: value for kept, value in headers.items() if kept != name}

        assert schema_at(f"{place}/headers").is_valid(less) == (name == "traceparent"), name
