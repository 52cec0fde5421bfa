"""What was released stays readable, by new readers and by old ones."""

import json
from copy import deepcopy
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import AwareDatetime, BaseModel, Field, create_model

from backstop_contracts.compatibility import breaking_changes

CONTRACTS = Path(__file__).resolve().parents[1]
RELEASED = sorted((CONTRACTS / "released").glob("*.json"))
SCHEMAS = sorted((CONTRACTS / "schemas").glob("*.json"))
REMEDY = (
    "\nSomebody reads this event as it was released. Leave it as it is and make v2 beside it:"
    " see 'Change an event' in contracts/README.md."
)


class Colour(StrEnum):
    """A closed vocabulary."""

    RED = "red"
    GREEN = "green"


class Shade(StrEnum):
    """The same vocabulary with a word more."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Part(BaseModel):
    """A part of an event."""

    name: str
    size: int | None = None


class RenamedPart(BaseModel):
    """The same part under another class name."""

    name: str
    size: int | None = None


class GrownPart(BaseModel):
    """The part with an optional field more."""

    name: str
    size: int | None = None
    colour: str | None = None


class ShrunkPart(BaseModel):
    """The part with a field less."""

    name: str


class Tree(BaseModel):
    """A part that contains itself."""

    name: str
    children: "tuple[Tree, ...]" = ()
    twin: "Tree | None" = None


class OtherTree(BaseModel):
    """A part that contains itself, with a field of another type."""

    name: int
    children: "tuple[OtherTree, ...]" = ()
    twin: "OtherTree | None" = None


class Whole(BaseModel):
    """A part whose fields can all be left out."""

    scl: int | None = None


class GrownWhole(BaseModel):
    """The same with a field more, which also shows in the default of whatever holds it."""

    scl: int | None = None
    bcl: int | None = None


SHA = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ANY_HEX = Annotated[str, Field(pattern="^[0-9a-f]+$")]

COMPATIBLE = {
    "nothing changes": ({"a": str}, {"a": str}),
    "an optional field is added": ({"a": str}, {"a": str, "b": (str | None, None)}),
    "an optional field with a value is added": ({"a": str}, {"a": str, "b": (int, 7)}),
    "an optional part is added": ({"a": str}, {"a": str, "b": (Part | None, None)}),
    "a part gets an optional field": ({"a": Part}, {"a": GrownPart}),
    "an optional part gets an optional field": ({"a": (Part | None, None)}, {"a": (GrownPart | None, None)}),
    "the items of a list get an optional field": ({"a": tuple[Part, ...]}, {"a": tuple[GrownPart, ...]}),
    "a part with a default gets an optional field": ({"a": (Whole, Whole())}, {"a": (GrownWhole, GrownWhole())}),
    "a class gets another name": ({"a": Part}, {"a": RenamedPart}),
    "fields change places": ({"a": str, "b": int}, {"b": int, "a": str}),
    "alternatives change places": ({"a": str | int}, {"a": int | str}),
    "words change places": ({"a": Literal["x", "y"]}, {"a": Literal["y", "x"]}),
    "a literal becomes an enum of the same words": ({"a": Literal["red", "green"]}, {"a": Colour}),
    "a field is described": ({"a": str}, {"a": Annotated[str, Field(description="What it is.", examples=["x"])]}),
    "a part contains itself": ({"a": Tree}, {"a": Tree}),
}

BREAKING = {
    "a required field is removed": ({"a": str, "b": str}, {"a": str}, "b: is removed"),
    "an optional field is removed": ({"a": str, "b": (str | None, None)}, {"a": str}, "b: is removed"),
    "a field is renamed": ({"old": (str, "")}, {"new": (str, "")}, "old: is removed or renamed"),
    "a field of a part is removed": ({"a": Part}, {"a": ShrunkPart}, "a.size: is removed"),
    "a field of an optional part is removed": (
        {"a": (Part | None, None)},
        {"a": (ShrunkPart | None, None)},
        "a.size: is removed",
    ),
    "a field of the items of a list is removed": (
        {"a": tuple[Part, ...]},
        {"a": tuple[ShrunkPart, ...]},
        "a[].size: is removed",
    ),
    "a field of the values of a map is removed": (
        {"a": dict[str, Part]},
        {"a": dict[str, ShrunkPart]},
        "a[].size: is removed",
    ),
    "a field of a pair is removed": ({"a": tuple[Part, int]}, {"a": tuple[ShrunkPart, int]}, "a[0].size: is removed"),
    "a required field is added": ({"a": str}, {"a": str, "b": str}, "b: is added as required"),
    "a part gets a required field": (
        {"a": ShrunkPart},
        {"a": create_model("P", name=str, size=int)},
        "a.size: is added",
    ),
    "an optional field becomes required": ({"a": (str, "")}, {"a": str}, "a: becomes required"),
    "a required field becomes optional": ({"a": str}, {"a": (str, "")}, "a: becomes optional"),
    "a field may be null": ({"a": str}, {"a": str | None}, "a: takes null as well"),
    "a field may not be null any more": ({"a": str | None}, {"a": str}, "a: takes null no more"),
    "a type changes": ({"a": str}, {"a": int}, "a: changes its type from string to integer"),
    "a type widens": ({"a": int}, {"a": float}, "a: changes its type from integer to number"),
    "a type of an optional field changes": (
        {"a": (str | None, None)},
        {"a": (int | None, None)},
        "takes string no more",
    ),
    "a type of the items changes": ({"a": tuple[str, ...]}, {"a": tuple[int, ...]}, "a[]: changes its type"),
    "one becomes many": ({"a": str}, {"a": tuple[str, ...]}, "a: changes its type from string to array"),
    "a text becomes a part": ({"a": str}, {"a": Part}, "a: changes its type from string to object (Part)"),
    "an alternative goes": ({"a": str | int}, {"a": str}, "a: takes integer no more"),
    "an alternative comes": ({"a": str}, {"a": str | int}, "a: takes integer as well"),
    "a word goes": ({"a": Shade}, {"a": Colour}, "a: takes 'blue' no more"),
    "a word comes": ({"a": Colour}, {"a": Shade}, "a: takes 'blue' as well"),
    "the only word changes": ({"a": Literal["x"]}, {"a": Literal["y"]}, "a: takes 'x' no more"),
    "a text becomes a closed vocabulary": ({"a": str}, {"a": Colour}, "a: becomes a closed vocabulary"),
    "a closed vocabulary opens": ({"a": Colour}, {"a": str}, "a: is no more a closed vocabulary"),
    "a pattern is added": ({"a": str}, {"a": SHA}, "a: changes its pattern from nothing to"),
    "a pattern is removed": ({"a": SHA}, {"a": str}, "a: changes its pattern from"),
    "a pattern changes": ({"a": ANY_HEX}, {"a": SHA}, "a: changes its pattern from"),
    "a number is limited": ({"a": int}, {"a": Annotated[int, Field(ge=0)]}, "a: changes its minimum from nothing to 0"),
    "a text is limited": ({"a": str}, {"a": Annotated[str, Field(max_length=9)]}, "a: changes its maxLength"),
    "a list is limited": (
        {"a": tuple[str, ...]},
        {"a": Annotated[tuple[str, ...], Field(max_length=9)]},
        "a: changes its maxItems from nothing to 9",
    ),
    "a text becomes a time": ({"a": str}, {"a": AwareDatetime}, "a: changes its format from nothing to 'date-time'"),
    "an id becomes a text": ({"a": UUID}, {"a": str}, "a: changes its format from 'uuid' to nothing"),
    "what is meant when a field is left out changes": (
        {"a": (int, 1)},
        {"a": (int, 2)},
        "a: means 2 when it is left out",
    ),
    "a part that contains itself changes": ({"a": Tree}, {"a": OtherTree}, "a.name: changes its type"),
}


def schema_of_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Make an event of *fields* (a type, or a type and a default) and describe it as the generator does."""
    definitions: dict[str, Any] = {
        name: field if isinstance(field, tuple) else (field, ...) for name, field in fields.items()
    }
    model: type[BaseModel] = create_model("Event", **definitions)
    return model.model_json_schema(mode="serialization")


def test_what_was_released_stays_readable() -> None:
    """A released event changes by optional fields and wording only; before the first release there is none."""
    for file in RELEASED:
        current = CONTRACTS / "schemas" / file.name
        assert current.exists(), f"{file.stem} is gone. Delete released/{file.name} when nobody reads it."
        changes = breaking_changes(json.loads(file.read_text()), json.loads(current.read_text()))

        assert not changes, "\n".join(f"{file.stem}: {change}" for change in changes) + REMEDY


@pytest.mark.parametrize(("before", "after"), COMPATIBLE.values(), ids=COMPATIBLE)
def test_a_change_that_no_reader_notices_is_allowed(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Neither new readers of old events nor old readers of new events notice these changes."""
    assert breaking_changes(schema_of_fields(before), schema_of_fields(after)) == []


@pytest.mark.parametrize(("before", "after", "told"), BREAKING.values(), ids=BREAKING)
def test_a_change_that_breaks_readers_is_named(before: dict[str, Any], after: dict[str, Any], told: str) -> None:
    """Each of these changes breaks somebody, and the text names the field and the change."""
    changes = breaking_changes(schema_of_fields(before), schema_of_fields(after))

    assert any(told in change for change in changes), changes


def test_an_event_that_refuses_unknown_fields_is_a_breaking_change() -> None:
    """Readers let later producers add fields; a schema that forbids them takes that back."""
    released = schema_of_fields({"a": str})

    assert breaking_changes(released, {**released, "additionalProperties": False}) == [
        "changes its additionalProperties from nothing to False"
    ]


@pytest.mark.parametrize("file", SCHEMAS, ids=lambda file: file.stem)
def test_no_field_of_a_released_event_is_overlooked(file: Path) -> None:
    """Take any field out of a released schema, or give it another type, at any depth: it is noticed."""
    released = json.loads(file.read_text())
    parts = [(), *(("$defs", name) for name in released.get("$defs", {}))]
    fields = [(*part, "properties", name) for part in parts for name in _at(released, part).get("properties", {})]

    assert fields
    for *part, name in fields:
        removed, retyped = deepcopy(released), deepcopy(released)
        del _at(removed, part)[name]
        _at(retyped, part)[name] = {"type": "number"}

        assert any("is removed" in change for change in breaking_changes(released, removed)), name
        assert breaking_changes(released, retyped), name


def _at(schema: dict[str, Any], path: Any) -> dict[str, Any]:
    for step in path:
        schema = schema[step]
    return schema
