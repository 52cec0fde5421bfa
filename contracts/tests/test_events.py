"""Rules that hold for every event, whatever is in it."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

import backstop_contracts
from backstop_contracts import EVENTS, Event, ParsedMessage, Verdict, cloudevents, events, headers_for, read_headers

PUBLIC = [value for name in backstop_contracts.__all__ if isinstance(value := getattr(backstop_contracts, name), type)]
MODELS = [value for value in PUBLIC if issubclass(value, BaseModel)]

every_event = pytest.mark.parametrize("model", EVENTS, ids=lambda model: model.__name__)


def instances(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Make any instance of a model, with and without its optional fields."""
    return st.fixed_dictionaries(
        {name: of_field(field) for name, field in model.model_fields.items() if field.is_required()},
        optional={name: of_field(field) for name, field in model.model_fields.items() if not field.is_required()},
    ).map(lambda values: model(**values))


def of_field(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Make any value that a field takes."""
    patterns = [constraint.pattern for constraint in field.metadata if getattr(constraint, "pattern", None)]
    return st.from_regex(patterns[0], fullmatch=True) if patterns else of_type(field.annotation)


def of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Make any value of a type that an event may have."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        annotation, arguments = arguments[0], get_args(arguments[0])
    match get_origin(annotation) or annotation:
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin in (Union, UnionType):
            return st.one_of(*map(of_type, arguments))
        case origin if origin is tuple:
            return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
        case kind if issubclass(kind, BaseModel):
            return instances(kind)
        case kind if issubclass(kind, Enum):
            return st.sampled_from(list(kind))
        case kind:
            return SIMPLE[kind]


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=50),
    int: st.integers(),
    bool: st.booleans(),
    UUID: st.uuids(),
    type(None): st.none(),
    AwareDatetime: st.datetimes(min_value=datetime(1971, 1, 1), timezones=ZONES),  # noqa: DTZ001 - the zone is drawn apart
}
"""A type that is missing here, such as `datetime`, has no place in an event."""


def leaves(annotation: Any) -> Iterator[Any]:
    """Take a type apart."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from leaves(argument)


@every_event
@settings(max_examples=40)
@given(data=st.data())
def test_an_event_arrives_as_it_was_sent(model: type[Event], data: st.DataObject) -> None:
    """JSON and headers of any event bring the same event, key and envelope to the other side."""
    event: Event = data.draw(instances(model))
    headers = headers_for(event, source="/backstop/somebody")

    received = model.model_validate_json(event.model_dump_json().encode())
    envelope = read_headers([(name, value.encode()) for name, value in headers.items()], model)

    assert received == event
    assert (received.key, received.subject) == (event.key, event.subject)
    assert envelope.id == headers["ce_id"]


def test_all_events_are_listed() -> None:
    """EVENTS holds every event that has a topic, once; whoever walks through it misses none."""
    defined = {value for value in vars(events).values() if isinstance(value, type) and issubclass(value, Event)}

    assert set(EVENTS) == {model for model in defined if "TOPIC" in vars(model)}
    assert len({(model.TOPIC, model.VERSION) for model in EVENTS}) == len(EVENTS)


@every_event
def test_a_topic_is_called_after_its_event(model: type[Event]) -> None:
    """`MessageReported` is published on `message-reported`; its second version would be `MessageReportedV2`."""
    version = "" if model.VERSION == 1 else f"V{model.VERSION}"
    name = model.__name__.removesuffix(version)

    assert model.__name__ == name + version
    assert re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() == model.TOPIC


@every_event
def test_an_event_belongs_to_a_tenant(model: type[Event]) -> None:
    """The tenant stands in every event and opens its key, so that nothing mixes tenants."""
    assert model.model_fields["tenant_id"].is_required()
    assert model.model_fields["tenant_id"].annotation is UUID


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
