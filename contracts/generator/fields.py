"""The table of every field of every event: whether it is personal, and how long its topic keeps it."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backstop_contracts import EVENTS, Event

INTRODUCTION = """\
# Fields of the events

Written by `make contracts`. Personal means that a field names a person or holds something of a message's content: it
needs the same care as the message. A topic keeps an event for the days named with it, and up to one Kafka log segment
longer. Every event names its tenant in `tenant_id`.
"""


def table() -> str:
    """Return the table as Markdown: the events in the order of the story, then the parts that they share."""
    parts: dict[type[BaseModel], list[type[Event]]] = {}
    lines = [INTRODUCTION, "## Events"]
    for event in EVENTS:
        for part in dict.fromkeys(_parts(event)):
            parts.setdefault(part, []).append(event)
        lines += [f"\n### {event.topic()}, kept for {event.RETENTION_DAYS} days\n", *_rows(event)]
    lines.append("\n## Parts")
    for part, events in parts.items():
        kept = ", ".join(f"{event.topic()} ({event.RETENTION_DAYS} days)" for event in events)
        lines += [f"\n### {part.__name__}\n\nIn {kept}.\n", *_rows(part)]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel]) -> Iterator[str]:
    yield "| field | personal | meaning |"
    yield "|---|---|---|"
    for name, field in model.model_fields.items():
        part = next(_models(field.annotation), None)
        personal = f"see {part.__name__}" if part else "yes" if _is_personal(field) else "no"
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {personal} | {meaning} |"


def _is_personal(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("x-personal"))


def _parts(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        for part in _models(field.annotation):
            yield part
            yield from _parts(part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
