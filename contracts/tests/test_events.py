"""Rules that hold for every event, whatever is in it."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, ValidationError
from pydantic.fields import FieldInfo

import backstop_contracts
from backstop_contracts import EVENTS, Event, cloudevents, events, headers_for, read_headers

PUBLIC = [value for name in backstop_contracts.__all__ if isinstance(value := getattr(backstop_contracts, name), type)]
MODELS = [value for value in PUBLIC if issubclass(value, BaseModel)]

every_event = pytest.mark.parametrize("model", EVENTS, ids=lambda model: model.__name__)
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


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


@every_event
@settings(max_examples=20)
@given(data=st.data())
def test_fields_of_a_later_producer_are_ignored(model: type[Event], data: st.DataObject) -> None:
    """A consumer reads what it knows out of an event that has more."""
    event: Event = data.draw(instances(model))
    more = data.draw(st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=3))

    assert model.model_validate({**more, **event.model_dump()}) == event


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


@every_model
def test_what_happened_does_not_change(model: type[BaseModel]) -> None:
    """Events and their parts are frozen, all through: none holds a list or a dict that could be altered."""
    for name, field in model.model_fields.items():
        holders = {
            get_origin(field.annotation),
            *map(get_origin, get_args(field.annotation)),
            *leaves(field.annotation),
        }

        assert not holders & {list, dict, set}, name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model.model_construct(), name, None)


@every_model
def test_every_time_has_a_zone(model: type[BaseModel]) -> None:
    """A field called `..._at` or `until` takes times with a zone only, and no field takes any other time."""
    for name, field in model.model_fields.items():
        kinds = set(leaves(field.annotation))

        assert datetime not in kinds
        assert (AwareDatetime in kinds) == (name.endswith("_at") or name == "until"), name


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_public_class_says_what_it_is(kind: type) -> None:
    """Each public class has a docstring of its own that opens with a sentence."""
    opening = (vars(kind).get("__doc__") or "").strip().partition("\n\n")[0]

    assert opening.endswith((".", "?"))
    assert not opening.startswith(f"{kind.__name__}(")


def test_every_public_class_is_exported() -> None:
    """Whoever imports the package finds all of it at its front door."""
    written = {
        value
        for module in (events, cloudevents)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    }

    assert written - {events.Part} == set(PUBLIC)
