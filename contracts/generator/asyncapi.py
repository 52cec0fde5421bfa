"""The AsyncAPI document: who sends which event on which topic, who receives it, and what it looks like."""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from pydantic.json_schema import models_json_schema

from backstop_contracts import EVENTS, Event, headers_for, schema_of, type_of
from backstop_contracts.cloudevents import CONTENT_TYPE
from generator.introspection import Service
from generator.schemas import Json, JsonSchema, versioned

PARTITIONS = 12
"""A number that 2, 3, 4 and 6 replicas share evenly. Raising it later breaks the order of the events of a key."""
MAX_BYTES = 4 << 20
DAY_MS = 24 * 60 * 60 * 1000
BINDING = {"bindingVersion": "0.5.0"}
TRACE = "00-0b6c5d2e8f7a4913a5c4e2d1f0987654-1f2e3d4c5b6a7988-01"


def asyncapi(services: Sequence[Service], examples: Path, version: str) -> Json:
    """Return the document of the whole system; *examples* is the folder of example payloads."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:backstop",
        "info": _info(services, version),
        "defaultContentType": CONTENT_TYPE,
        "servers": {"kafka": _server()},
        "channels": {model.topic(): _channel(model) for model in EVENTS},
        "operations": dict(_operations(services)),
        "components": {
            "messages": {model.topic(): _message(model, services, examples) for model in EVENTS},
            "schemas": {**_payloads(), "CloudEventsHeaders": _cloudevents_headers()},
            "correlationIds": {"trace": _trace()},
            "parameters": {"prefix": _prefix()},
            "tags": {service.name: {"name": service.name, "description": service.does} for service in services},
        },
    }


def _info(services: Sequence[Service], version: str) -> Json:
    return {
        "title": "Backstop",
        "version": version,
        "description": (
            "Events of the services that handle false negatives of Microsoft Defender for Office 365: users report,"
            " triage makes cases, messages are submitted to Microsoft, senders are blocked, verdicts are explained.\n\n"
            "Every event is published at least once, in order per key; a consumer that acts must act once per `ce_id`"
            " or by the natural key of what it acts on. No event carries the message itself. Fields marked `x-personal`"
            " name a person or hold something of a message's content."
        ),
        "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        "tags": [{"$ref": f"#/components/tags/{service.name}"} for service in services],
    }


def _server() -> Json:
    return {
        "host": "{bootstrap}",
        "protocol": "kafka",
        "description": "The installation's Kafka.",
        "variables": {
            "bootstrap": {
                "default": "localhost:9092",
                "description": "Host and port of a broker: what the services read from `BACKSTOP_KAFKA_BOOTSTRAP`.",
            }
        },
    }


def _prefix() -> Json:
    return {
        "default": "backstop",
        "description": "What the topics of the installation start with: `BACKSTOP_TOPIC_PREFIX`.",
    }


def _channel(model: type[Event]) -> Json:
    name = model.topic()
    return {
        "address": f"{{prefix}}.{name}",
        "title": name,
        "summary": _summary(model),
        "parameters": {"prefix": {"$ref": "#/components/parameters/prefix"}},
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": _topic(model.RETENTION_DAYS)},
    }


def _topic(days: int) -> Json:
    return {
        "partitions": PARTITIONS,
        "topicConfiguration": {
            "cleanup.policy": ["delete"],
            "retention.ms": days * DAY_MS,
            "max.message.bytes": MAX_BYTES,
        },
        **BINDING,
    }


def _operations(services: Sequence[Service]) -> Iterator[tuple[str, Json]]:
    for service in services:
        for model in service.subscribes:
            name, operation = _operation(service, "receive", model)
            group = service.group(model)
            # It begins with the prefix of the installation's topics.
            schema = {"type": "string", "pattern": rf"\.{re.escape(group)}$", "default": f"backstop.{group}"}
            yield name, operation | {"bindings": {"kafka": {"groupId": schema, **BINDING}}}
        for model in service.publishes:
            yield _operation(service, "send", model)


def _operation(service: Service, action: str, model: type[Event]) -> tuple[str, Json]:
    topic = model.topic()
    return f"{service.name}.{action}.{topic}", {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic}"},
        "summary": f"{service.name} {action}s {topic}.",
        "tags": [{"$ref": f"#/components/tags/{service.name}"}],
        "messages": [{"$ref": f"#/channels/{topic}/messages/{topic}"}],
    }


def _message(model: type[Event], services: Sequence[Service], examples: Path) -> Json:
    return {
        "name": type_of(model),
        "title": model.__name__,
        "summary": _summary(model),
        "contentType": CONTENT_TYPE,
        "headers": _headers(model),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "correlationId": {"$ref": "#/components/correlationIds/trace"},
        "bindings": {"kafka": {"key": _key(model), **BINDING}},
        "examples": [_example(model, file, services) for file in _example_files(model, examples)],
    }


def _summary(model: type[Event]) -> str:
    return (inspect.getdoc(model) or "").partition("\n\n")[0].replace("\n", " ")


def _key(model: type[Event]) -> Json:
    meaning = inspect.getdoc(model.key if "key" in vars(model) else model.subject)
    return {
        "type": "string",
        "description": f"The tenant's id, a colon, and an id. {meaning} Events with the same key arrive in order.",
    }


def _headers(model: type[Event]) -> Json:
    return {
        "type": "object",
        "allOf": [{"$ref": "#/components/schemas/CloudEventsHeaders"}],
        "properties": {"ce_type": {"const": type_of(model)}, "ce_dataschema": {"const": schema_of(model)}},
    }


def _cloudevents_headers() -> Json:
    text = {"type": "string", "minLength": 1}
    attributes: dict[str, Json] = {
        "ce_id": {**text, "description": "New for each event; the same when it is delivered again."},
        "ce_source": {**text, "format": "uri-reference", "description": "`/backstop/` and the publishing service."},
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_type": {**text, "description": "The event and its major version."},
        "ce_time": {"type": "string", "format": "date-time", "description": "When the event was made, with its zone."},
        "ce_subject": {"type": "string", "format": "uuid", "description": "The id of what the event is about."},
        "ce_dataschema": {"type": "string", "format": "uri", "description": "The `$id` of the payload's JSON Schema."},
        "ce_partitionkey": {**text, "description": "The record's key."},
        "content-type": {"type": "string", "const": CONTENT_TYPE},
    }
    traceparent = {
        "type": "string",
        "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "description": "W3C Trace Context of what caused the event; not there when nothing was traced.",
    }
    return {
        "type": "object",
        "description": "CloudEvents 1.0, Kafka protocol binding, binary mode: an attribute is a header in UTF-8.",
        "properties": {**attributes, "traceparent": traceparent},
        "required": list(attributes),
    }


def _trace() -> Json:
    return {
        "description": "W3C Trace Context: one trace id runs from the report of a mail to everything that follows.",
        "location": "$message.header#/traceparent",
    }


def _payloads() -> Json:
    _, schemas = models_json_schema(
        [(model, "serialization") for model in EVENTS],
        ref_template="#/components/schemas/{model}",
        schema_generator=JsonSchema,
    )
    return dict(schemas["$defs"])


def _example_files(model: type[Event], examples: Path) -> list[Path]:
    return [examples / f"{versioned(model)}.json", *sorted(examples.glob(f"{versioned(model)}.*.json"))]


def _example(model: type[Event], file: Path, services: Sequence[Service]) -> Json:
    event = model.model_validate_json(file.read_bytes())
    publisher = next(service.name for service in services if model in service.publishes)
    headers = headers_for(
        event,
        source=f"/backstop/{publisher}",
        traceparent=TRACE,
        time=_happened_at(event),
        event_id=str(uuid5(NAMESPACE_URL, f"{schema_of(model)}/{file.name}")),
    )
    variant = file.name.removeprefix(versioned(model)).removesuffix(".json").removeprefix(".")
    return {"name": variant or "full", "headers": headers, "payload": json.loads(file.read_text())}


def _happened_at(event: Event) -> datetime:
    """Return the event's own last timestamp field, which is when it happened."""
    own = set(type(event).__annotations__)
    times = [(name, value) for name, value in event if isinstance(value, datetime)]
    return [value for name, value in times if name in own or name == "read_at"][-1]
