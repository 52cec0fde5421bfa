"""Logs and spans say what failed, and repeat no value that it was about."""

import asyncpg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from pydantic import BaseModel, ValidationError

from chassis import telemetry

QUOTED = "Your invoice of Ann's is overdue"


class Subject(BaseModel):
    """What a message is about."""

    subject: int


class ShortName(BaseModel):
    """A field whose name is one letter."""

    e: int


def traceback_of(error: BaseException) -> str:
    """Return what is logged of an error that is raised and caught."""
    with pytest.raises(type(error)) as caught:
        raise error
    return telemetry.format_exception((caught.type, caught.value, caught.tb))


def test_a_traceback_does_not_repeat_what_postgresql_quotes() -> None:
    """The line of code and the class are there; the parameter is not."""
    text = traceback_of(asyncpg.DataError(f"invalid input for query argument $1: '{QUOTED}'"))
    assert "asyncpg.exceptions.DataError" in text
    assert "raise error" in text
    assert QUOTED not in text


def test_a_traceback_does_not_repeat_what_a_model_has_refused() -> None:
    """Not even below another error, or in a group of them."""
    with pytest.raises(ValidationError) as refused:
        Subject.model_validate({"subject": QUOTED})
    outer = ExceptionGroup("several", [ValueError("kept"), refused.value])
    text = traceback_of(outer)
    assert "kept" in text
    assert QUOTED not in text
    chained = RuntimeError("while reading")
    chained.__cause__ = refused.value
    assert "while reading" in traceback_of(chained)
    assert QUOTED not in traceback_of(chained)


def test_what_a_field_is_called_does_not_uncover_what_it_holds() -> None:
    """A name that is also a part of what stands around the value."""
    with pytest.raises(ValidationError) as refused:
        ShortName.model_validate({"e": {"value": QUOTED}})
    assert QUOTED not in traceback_of(refused.value)


def test_what_led_to_an_error_of_postgresql_is_not_repeated_either() -> None:
    """Asyncpg raises its errors from those of its codecs, which quote the value."""
    error = asyncpg.DataError("invalid input")
    error.__cause__ = ValueError(f"invalid UUID '{QUOTED}'")
    assert QUOTED not in traceback_of(error)


def test_an_error_that_causes_itself_is_formatted() -> None:
    """It must not fail inside the log."""
    error = RuntimeError("round")
    error.__cause__ = error
    assert "round" in traceback_of(error)


class _Ended(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def test_a_span_that_fails_says_the_class_alone() -> None:
    """What is exported goes to another system."""
    ended = _Ended()
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(ended)
    with pytest.raises(ValueError, match="overdue"), telemetry.span("submit"):
        raise ValueError(QUOTED)
    (span,) = [one for one in ended.spans if one.name == "submit"]
    assert (span.status.is_ok, span.status.description, list(span.events)) == (False, "ValueError", [])
