"""Rules that hold for every event, whatever is in it."""

import re
from collections.abc import Iterator
from typing import Any, get_args
from uuid import UUID

import pytest
from pydantic import BaseModel

import backstop_contracts
from backstop_contracts import EVENTS, Event, ParsedMessage, Verdict, cloudevents, events

PUBLIC = [value for name in backstop_contracts.__all__ if isinstance(value := getattr(backstop_contracts, name), type)]
MODELS = [value for value in PUBLIC if issubclass(value, BaseModel)]


def leaves(annotation: Any) -> Iterator[Any]:
    """Take a type apart."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from leaves(argument)


def test_all_events_are_listed() -> None:
    """EVENTS holds every event that has a topic, once; whoever walks through it misses none."""
    defined = {value for value in vars(events).values() if isinstance(value, type) and issubclass(value, Event)}

    assert set(EVENTS) == {model for model in defined if "TOPIC" in vars(model)}
    assert len({(model.TOPIC, model.VERSION) for model in EVENTS}) == len(EVENTS)


def test_a_topic_is_called_after_its_event() -> None:
    """`MessageReported` is published on `message-reported`; its second version would be `MessageReportedV2`."""
    for model in EVENTS:
        version = "" if model.VERSION == 1 else f"V{model.VERSION}"
        name = model.__name__.removesuffix(version)

        assert model.__name__ == name + version
        assert re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() == model.TOPIC


def test_an_event_belongs_to_a_tenant() -> None:
    """The tenant stands in every event, so that nothing mixes tenants."""
    fields = [model.model_fields["tenant_id"] for model in EVENTS]

    assert {(field.annotation, field.is_required()) for field in fields} == {(UUID, True)}


NAMES_OF_PERSONAL_FIELDS = re.compile(
    "reporter|reporter_id|recipient|sender|envelope_sender|sender_ip|subject|name|note|mailbox|value|entry|urls?|"
    "detected_urls|user_id|id|cmdlet|policy|evidence|action|detail|sender_domain|content_type"
)


@pytest.mark.parametrize("part", MODELS, ids=lambda model: model.__name__)
def test_what_names_a_person_or_content_is_marked_as_personal(part: type[BaseModel]) -> None:
    """FIELDS.md tells operators which fields need care; a new field of such a name cannot be forgotten."""
    marked = {name for name, field in part.model_fields.items() if "x-personal" in (field.json_schema_extra or {})}
    texts = {name for name, field in part.model_fields.items() if str in leaves(field.annotation)}

    assert marked <= texts
    # Of a verdict it is one of Microsoft's own values.
    values = {"detail"} if issubclass(part, Verdict) else set()
    assert {name for name in texts if NAMES_OF_PERSONAL_FIELDS.fullmatch(name)} - values <= marked


def test_every_public_class_is_exported() -> None:
    """Whoever imports the package finds all of it at its front door."""
    written = {
        value
        for module in (events, cloudevents)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    }

    assert written - {events.Part} == set(PUBLIC) - {ParsedMessage}
