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
    assert QUOTED not in traceback_of(chained)


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
