"""
Write the files that tell others what the events are: one JSON Schema per event, and the AsyncAPI document.

    python contracts/generate.py            write schemas/ and asyncapi.json
    python contracts/generate.py --check    write nothing; fail when a file is not what the models say
    python contracts/generate.py --release  write, and promise: copy schemas/ to released/ unless that breaks a reader
"""

import argparse
import inspect
import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from backstop_contracts import (
    EVENTS,
    BlockApplied,
    BlockAppliedV2,
    BlockFailed,
    BlockFailedV2,
    BlockRemoved,
    BlockRemovedV2,
    BlockRequested,
    BlockRequestedV2,
    CaseExpired,
    CaseUpdated,
    Event,
    MessageReported,
    ReleaseDecided,
    SubmissionCreated,
    SubmissionDelayed,
    SubmissionFailed,
    SubmissionRequested,
    VerdictReady,
    headers_for,
    schema_of,
    type_of,
)
from backstop_contracts.cloudevents import CONTENT_TYPE
from backstop_contracts.compatibility import breaking_changes

HERE = Path(__file__).resolve().parent
SCHEMAS, RELEASED, EXAMPLES = HERE / "schemas", HERE / "released", HERE / "examples"
ASYNCAPI = HERE / "asyncapi.json"

PARTITIONS = 12
"""A number that 2, 3, 4 and 6 replicas share evenly. Raising it later breaks the order of the events of a key."""
DEAD_LETTER_DAYS = 30
MAX_BYTES = 4 << 20
DEAD_LETTER_BYTES = MAX_BYTES + (1 << 20)
"""Any event, and why it is there."""
DAY_MS = 24 * 60 * 60 * 1000
DEAD_MESSAGES = ("dead-letter", "dead-letter-settlement")
BINDING = {"bindingVersion": "0.5.0"}
TRACE = "00-0b6c5d2e8f7a4913a5c4e2d1f0987654-1f2e3d4c5b6a7988-01"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Service:
    """Who takes part: what it does, and which events it sends and receives."""

    name: str
    does: str
    publishes: tuple[type[Event], ...]
    consumes: tuple[type[Event], ...]


SERVICES = (
    Service(
        "reporter",
        "Takes users' reports of mails and their wish to block a sender; tells them the outcome.",
        publishes=(MessageReported, BlockRequested),
        consumes=(MessageReported, CaseUpdated, VerdictReady, BlockApplied, BlockFailed, BlockRemoved, CaseExpired),
    ),
    Service(
        "triage",
        "Owns cases: many reports of one mail are one case. Decides, or lets an admin decide, what happens to it.",
        publishes=(CaseUpdated, SubmissionRequested, BlockRequested, BlockRequestedV2, CaseExpired),
        consumes=(
            MessageReported,
            SubmissionCreated,
            SubmissionDelayed,
            SubmissionFailed,
            VerdictReady,
            BlockApplied,
            BlockFailed,
            BlockRemoved,
            BlockAppliedV2,
            BlockFailedV2,
            BlockRemovedV2,
            ReleaseDecided,
        ),
    ),
    Service(
        "submitter",
        "Submits mails to Microsoft for analysis: once each, within Microsoft's quota.",
        publishes=(SubmissionCreated, SubmissionDelayed, SubmissionFailed),
        consumes=(SubmissionRequested, CaseExpired),
    ),
    Service(
        "verdict-poller",
        "Waits for Microsoft's verdict and explains why the mail was let through and what to change.",
        publishes=(VerdictReady,),
        consumes=(SubmissionCreated, CaseExpired),
    ),
    Service(
        "blocklist",
        "Makes block entries, ends them when they expire, and lifts them when the verdict says clean.",
        publishes=(BlockApplied, BlockFailed, BlockRemoved, BlockAppliedV2, BlockFailedV2, BlockRemovedV2),
        consumes=(BlockRequested, BlockRequestedV2, VerdictReady, CaseExpired),
    ),
    Service(
        "quarantine",
        "Lets users and admins see, release, report and block what Defender has quarantined; sends users the digest.",
        publishes=(ReleaseDecided, MessageReported, BlockRequested),
        consumes=(CaseUpdated, VerdictReady, BlockApplied, BlockFailed, BlockRemoved, CaseExpired),
    ),
)


class _Schema(GenerateJsonSchema):
    """JSON Schema without a title on every field, which would only repeat the field's name."""

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


def files() -> dict[Path, str]:
    """Make the text of every generated file."""
    schemas = {SCHEMAS / f"{_version(model)}.json": _pretty(json_schema(model)) for model in EVENTS}
    return {**schemas, ASYNCAPI: _pretty(asyncapi())}


def json_schema(model: type[Event]) -> Json:
    """Describe the JSON of an event as it is published. Open to fields that a later producer adds."""
    schema = model.model_json_schema(mode="serialization", schema_generator=_Schema)
    if parts := schema.pop("$defs", None):
        schema["$defs"] = parts
    return {"$schema": _Schema.schema_dialect, "$id": schema_of(model), **schema}


def asyncapi() -> Json:
    """Describe the whole system: who sends which event on which topic, and who receives it."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:backstop",
        "info": _info(),
        "defaultContentType": CONTENT_TYPE,
        "servers": {"kafka": _server()},
        "channels": {
            **{_channel(model): _event_channel(model) for model in EVENTS},
            **{f"{service.name}.dead": _dead_channel(service) for service in SERVICES},
        },
        "operations": dict(_operations()),
        "components": {
            "messages": {
                **{_channel(model): _message(model) for model in EVENTS},
                "dead-letter": _dead_letter(),
                "dead-letter-settlement": _settlement(),
            },
            "schemas": {
                **_payloads(),
                "CloudEventsHeaders": _cloudevents_headers(),
                "DeadLetterHeaders": _dead_headers(),
                "DeadLetterSettlementHeaders": _settlement_headers(),
            },
            "correlationIds": {"trace": _trace()},
            "parameters": {"prefix": _prefix()},
            "tags": {service.name: {"name": service.name, "description": service.does} for service in SERVICES},
        },
    }


def _version(model: type[Event]) -> str:
    return f"{model.TOPIC}.v{model.VERSION}"


def _channel(model: type[Event]) -> str:
    return model.TOPIC if model.VERSION == 1 else _version(model)


def _info() -> Json:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    return {
        "title": "Backstop",
        "version": project["version"],
        "description": (
            "Events of the services that handle false negatives of Microsoft Defender for Office 365: users report,"
            " triage makes cases, mails are submitted to Microsoft, senders are blocked, verdicts are explained.\n\n"
            "Every event is published at least once, in order per key; a consumer that acts must act once per `ce_id`"
            " or by the natural key of what it acts on. No event carries the mail itself."
        ),
        "license": {"name": project["license"], "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        "tags": [{"$ref": f"#/components/tags/{service.name}"} for service in SERVICES],
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


def _event_channel(model: type[Event]) -> Json:
    name = _channel(model)
    return {
        "address": f"{{prefix}}.{name}",
        "title": name,
        "summary": _summary(model),
        "parameters": {"prefix": {"$ref": "#/components/parameters/prefix"}},
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": _topic(model.RETENTION_DAYS)},
    }


def _dead_channel(service: Service) -> Json:
    return {
        "address": f"{{prefix}}.{service.name}.dead",
        "title": f"{service.name}.dead",
        "summary": f"Events that {service.name} could not handle, as they were, and what became of them.",
        "parameters": {"prefix": {"$ref": "#/components/parameters/prefix"}},
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in DEAD_MESSAGES},
        "bindings": {"kafka": _topic(DEAD_LETTER_DAYS, DEAD_LETTER_BYTES)},
    }


def _topic(days: int, max_bytes: int = MAX_BYTES) -> Json:
    return {
        "partitions": PARTITIONS,
        "topicConfiguration": {
            "cleanup.policy": ["delete"],
            "retention.ms": days * DAY_MS,
            "max.message.bytes": max_bytes,
        },
        **BINDING,
    }


def _operations() -> Iterator[tuple[str, Json]]:
    for service in SERVICES:
        for model in service.consumes:
            yield _operation(service, "receive", _channel(model), _channel(model))
        for model in service.publishes:
            yield _operation(service, "send", _channel(model), _channel(model))
        for name in DEAD_MESSAGES:
            yield _operation(service, "send", f"{service.name}.dead", name)


def _operation(service: Service, action: str, channel: str, message: str) -> tuple[str, Json]:
    operation: Json = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": f"{service.name} {action}s {channel}.",
        "tags": [{"$ref": f"#/components/tags/{service.name}"}],
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
    }
    if action == "receive":
        # It begins with the prefix of the installation's topics.
        group = {"type": "string", "pattern": rf"\.{service.name}$", "default": f"backstop.{service.name}"}
        operation["bindings"] = {"kafka": {"groupId": group, **BINDING}}
    return f"{service.name}.{action}.{message if message in DEAD_MESSAGES else channel}", operation


def _message(model: type[Event]) -> Json:
    return {
        "name": type_of(model),
        "title": model.__name__,
        "summary": _summary(model),
        "contentType": CONTENT_TYPE,
        "headers": _headers(model),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "correlationId": {"$ref": "#/components/correlationIds/trace"},
        "bindings": {"kafka": {"key": _key(model), **BINDING}},
        "examples": [_example(model, file) for file in _example_files(model)],
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
        schema_generator=_Schema,
    )
    return dict(schemas["$defs"])


def _example_files(model: type[Event]) -> list[Path]:
    return [EXAMPLES / f"{_version(model)}.json", *sorted(EXAMPLES.glob(f"{_version(model)}.*.json"))]


def _example(model: type[Event], file: Path) -> Json:
    event = model.model_validate_json(file.read_bytes())
    publisher = next(service.name for service in SERVICES if model in service.publishes)
    headers = headers_for(
        event,
        source=f"/backstop/{publisher}",
        traceparent=TRACE,
        time=_happened_at(event),
        event_id=str(uuid5(NAMESPACE_URL, f"{schema_of(model)}/{file.name}")),
    )
    variant = file.name.removeprefix(_version(model)).removesuffix(".json").removeprefix(".")
    return {"name": variant or "full", "headers": headers, "payload": json.loads(file.read_text())}


def _happened_at(event: Event) -> datetime:
    """Take the last of the event's own times: by the order of its fields, the one that says when it happened."""
    return [value for _, value in event if isinstance(value, datetime)][-1]


def _dead_letter() -> Json:
    return {
        "name": "dead-letter",
        "title": "Dead letter",
        "summary": "An event as it was received, with its own key and headers, and the reason why it is here.",
        "headers": {"$ref": "#/components/schemas/DeadLetterHeaders"},
        "payload": {"description": "The event's value, byte for byte. It may be unreadable: that may be the reason."},
        "correlationId": {"$ref": "#/components/correlationIds/trace"},
        "bindings": {"kafka": {"key": {"type": "string", "description": "The key of the event."}, **BINDING}},
    }


def _dead_headers() -> Json:
    number = {"type": "string", "pattern": "^[0-9]+$"}
    reasons = {
        "backstop-dead-topic": {"type": "string", "description": "The topic that the event was read from."},
        "backstop-dead-partition": number,
        "backstop-dead-offset": number,
        "backstop-dead-error": {"type": "string", "description": "The class of the error."},
        "backstop-dead-reason": {"type": "string", "description": "What was wrong, without the data itself."},
        "backstop-dead-time": {"type": "string", "format": "date-time"},
    }
    return {
        "type": "object",
        "description": "What is added to the event's own headers, of which nothing is certain.",
        "properties": reasons,
        "required": list(reasons),
    }


def _settlement() -> Json:
    return {
        "name": "dead-letter-settlement",
        "title": "Settlement of a dead letter",
        "summary": "That a dead letter of the same partition, before this record, needs nobody any more.",
        "headers": {"$ref": "#/components/schemas/DeadLetterSettlementHeaders"},
        "payload": {"description": "Empty."},
    }


def _settlement_headers() -> Json:
    how = "An operator had it handled again or dropped it, or its batch went back to its topic, uncommitted."
    headers = {
        "backstop-dead-settles": {
            "type": "string",
            "pattern": "^[0-9]+:[0-9]+$",
            "description": "Partition and offset of the dead letter.",
        },
        "backstop-dead-how": {"type": "string", "enum": ["replayed", "dropped", "returned"], "description": how},
        "backstop-dead-time": {"type": "string", "format": "date-time"},
    }
    return {
        "type": "object",
        "description": "A record is a settlement if it has these headers and no `backstop-dead-topic`.",
        "properties": headers,
        "required": list(headers),
    }


def _pretty(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _stale(texts: dict[Path, str]) -> list[Path]:
    return [file for file in sorted(SCHEMAS.glob("*.json")) if file not in texts]


def write() -> None:
    """Write the generated files and remove those of events that are no more."""
    texts = files()
    SCHEMAS.mkdir(exist_ok=True)
    for file in _stale(texts):
        file.unlink()
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")


def check() -> list[str]:
    """Name the generated files that are not what the models say."""
    texts = files()
    drifted = [file for file, text in texts.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    return [f"{file.relative_to(HERE.parent)} is not what the models say" for file in [*drifted, *_stale(texts)]]


def release() -> list[str]:
    """Promise the present schemas, unless a released one would be broken; name what breaks."""
    broken = []
    for model in EVENTS:
        file = RELEASED / f"{_version(model)}.json"
        if file.exists():
            changes = breaking_changes(json.loads(file.read_text()), json_schema(model))
            broken += [f"{_version(model)}: {change}" for change in changes]
    if not broken:
        RELEASED.mkdir(exist_ok=True)
        for model in EVENTS:
            (RELEASED / f"{_version(model)}.json").write_text(_pretty(json_schema(model)), encoding="utf-8")
    return broken


def main() -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the JSON Schemas and the AsyncAPI document of the events.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    action.add_argument("--release", action="store_true", help="also promise the schemas: copy them to released/")
    asked = parser.parse_args()
    if asked.check:
        return _told(check(), "Run: python contracts/generate.py")
    write()
    if asked.release:
        return _told(release(), "Nothing was released. Make v2 beside this version: see contracts/README.md.")
    return 0


def _told(problems: list[str], remedy: str) -> int:
    if problems:
        sys.stderr.write("\n".join([*problems, remedy]) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
