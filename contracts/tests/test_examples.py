"""The example payloads: they parse for ever, show every field, and tell one story."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from backstop_contracts import EVENTS, Event, SubmissionRequested, headers_for, read_headers
from backstop_contracts.cloudevents import type_of

CONTRACTS = Path(__file__).resolve().parents[1]
MODELS = {f"{model.TOPIC}.v{model.VERSION}": model for model in EVENTS}
FILES = sorted((CONTRACTS / "examples").glob("*.json"))
SCHEMAS = {version: json.loads((CONTRACTS / "schemas" / f"{version}.json").read_text()) for version in MODELS}

every_example = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def version_of(file: Path) -> str:
    """Read the event and its version off the name of an example, whatever the example's variant."""
    topic, version, *_ = file.name.split(".")
    return f"{topic}.{version}"


def parse(file: Path) -> Event:
    """Read an example as a consumer reads an event."""
    return MODELS[version_of(file)].model_validate_json(file.read_bytes())


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Walk through a JSON value: every place in it, with what stands there."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*path, name))


def changed(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """Copy a JSON value with *new* at *path*."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def parts(event: Any) -> Iterator[Any]:
    """Walk through an event: itself and every model in it."""
    yield event
    for _, value in event:
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "model_fields_set"):
                yield from parts(part)


def test_every_event_is_shown_in_full_and_at_its_least() -> None:
    """Each event has a full and a minimal example, and each example belongs to an event."""
    names = {file.name for file in FILES}

    assert {version_of(file) for file in FILES} == set(MODELS)
    assert names >= {f"{version}{kind}.json" for version in MODELS for kind in ("", ".minimal")}


@every_example
def test_an_example_parses_and_comes_out_as_it_went_in(file: Path) -> None:
    """Reading an example and publishing it again loses nothing, and adds nothing but the defaults."""
    event = parse(file)
    published = event.model_dump_json()

    assert json.loads(event.model_dump_json(exclude_unset=True)) == json.loads(file.read_text())
    assert type(event).model_validate_json(published) == event


@every_example
def test_an_example_is_what_its_schema_describes(file: Path) -> None:
    """The example, and what is published of it, are valid against the committed schema, formats included."""
    schema = SCHEMAS[version_of(file)]
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)

    validator.validate(json.loads(file.read_text()))
    validator.validate(json.loads(parse(file).model_dump_json()))


def test_fields_of_a_later_producer_are_ignored() -> None:
    """A producer may add a field, at any depth, before its consumers know it."""
    for file in FILES:
        payload = json.loads(file.read_text())
        for path, value in places(payload):
            if isinstance(value, dict):
                later = changed(payload, path, {**value, "added_later": {"by": ["a", "newer", "producer"]}})

                assert type(parse(file)).model_validate_json(json.dumps(later)) == parse(file)


@pytest.mark.parametrize("version", MODELS)
def test_the_full_example_leaves_no_field_out(version: str) -> None:
    """Whoever reads the full example has seen every field of the event and of its parts."""
    for part in parts(parse(CONTRACTS / "examples" / f"{version}.json")):
        assert part.model_fields_set == set(type(part).model_fields), type(part).__name__


def test_every_field_is_shown_with_a_value() -> None:
    """No field is null or empty in all the examples: somewhere a reader sees what it looks like."""
    shown: set[tuple[str, str]] = set()
    known: set[tuple[str, str]] = set()
    for file in FILES:
        for part in parts(parse(file)):
            owners = {
                name: kind.__name__ for kind in type(part).__mro__ for name in vars(kind).get("__annotations__", ())
            }
            known |= {(owners[field], field) for field in type(part).model_fields}
            shown |= {(owners[field], field) for field, value in part if value not in (None, (), "")}

    assert shown == known


@pytest.mark.parametrize("version", MODELS)
def test_the_minimal_example_holds_nothing_that_could_be_left_out(version: str) -> None:
    """Take any field away from the minimal example, at any depth, and it is no event any more."""
    file = CONTRACTS / "examples" / f"{version}.minimal.json"
    payload = json.loads(file.read_text())
    for path, value in places(payload):
        for name in value if isinstance(value, dict) else ():
            less = changed(payload, path, {key: kept for key, kept in value.items() if key != name})

            with pytest.raises(ValidationError, match="Field required"):
                MODELS[version].model_validate_json(json.dumps(less))


def test_the_examples_tell_one_story() -> None:
    """All examples are about one tenant and one case; what they refer to happens in them."""
    events = [parse(file) for file in FILES]
    ids: dict[str, set[Any]] = {}
    for event in events:
        for part in parts(event):
            for field, value in part:
                if field.endswith("_id") and value is not None:
                    ids.setdefault(f"{type(part).__name__}.{field}", set()).add(value)
                if field == "report_ids":
                    ids.setdefault("report_ids", set()).update(value)
    requested = {event.submission_id for event in events if isinstance(event, SubmissionRequested)}

    assert len({event.tenant_id for event in events}) == 1
    assert {value for name, values in ids.items() if name.endswith(".case_id") for value in values} == ids[
        "CaseUpdated.case_id"
    ]
    assert ids["report_ids"] | ids["Block.report_id"] <= ids["MessageReported.report_id"]
    for name in ("SubmissionCreated", "SubmissionDelayed", "SubmissionFailed", "VerdictReady"):
        assert ids[f"{name}.submission_id"] <= requested


def test_the_story_runs_forward() -> None:
    """No example happens before the mail arrived, and a submission exists before its verdict."""
    received = datetime(2026, 3, 3, 8, 2, 17, tzinfo=UTC)
    for file in FILES:
        for part in parts(parse(file)):
            assert all(value >= received for _, value in part if isinstance(value, datetime)), file.name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
@hypothesis.settings(max_examples=300)
def test_an_event_of_anything_is_refused_or_comes_out_as_it_went_in(data: st.DataObject) -> None:
    """Whatever stands in the place of a value, reading raises nothing but ValidationError; what is read, survives."""
    file = data.draw(st.sampled_from(FILES))
    payload = json.loads(file.read_text())
    path, value = data.draw(st.sampled_from(list(places(payload))))
    spoiled = changed(payload, path, data.draw(st.text() if isinstance(value, str) else JSON))
    model = MODELS[version_of(file)]
    try:
        event = model.model_validate_json(json.dumps(spoiled))
    except ValidationError:
        return
    assert model.model_validate_json(event.model_dump_json()) == event
    headers = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
    assert read_headers(headers, model).type == type_of(model)
