"""Logs, traces and metrics: JSON lines by structlog, W3C trace context by OpenTelemetry, Prometheus counters."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge

consumed = Counter("backstop_events_consumed_total", "Events that a handler took in a committed transaction", ["topic"])
parked = Counter("backstop_events_parked_total", "Events that became dead letters", ["topic", "error"])
dead_letters = Gauge(
    "backstop_dead_letters_unresolved", "Dead letters that nobody has replayed or dropped (counted up to 100000)"
)
redelivered = Counter("backstop_batches_retried_total", "Batches tried again while something was away", ["error"])
published = Counter("backstop_events_published_total", "Events that Kafka acknowledged", ["topic"])
outbox_age = Gauge("backstop_outbox_oldest_seconds", "Age of the oldest event not yet acknowledged by Kafka")
outbox_events = Gauge("backstop_outbox_events", "Events not yet acknowledged by Kafka (counted up to 100000)")
outbox_leader = Gauge("backstop_outbox_leader", "1 while this replica relays the outbox")
work_settled = Counter("backstop_work_total", "Due rows handled", ["work"])
work_failed = Counter("backstop_work_failed_total", "Rounds of due work that failed", ["work", "error"])
due_age = Gauge("backstop_due_oldest_seconds", "Time since the oldest row came due that nobody has taken", ["work"])
due_rows = Gauge("backstop_due_rows", "Rows that are due and that nobody has taken (counted up to 100000)", ["work"])
sampled_at = Gauge("backstop_sampled_timestamp_seconds", "When the outbox and due rows were last read from PostgreSQL")
consumer_lag = Gauge(
    "backstop_consumer_lag", "Events of this replica's partitions not yet handled", ["topic", "partition"]
)
consumer_waiting = Gauge("backstop_consumer_waiting", "1 while a batch waits for PostgreSQL")
consumer_halted = Gauge("backstop_consumer_halted", "1 when the topic stopped as every event was parked", ["topic"])
consumer_unreadable = Gauge(
    "backstop_consumer_unreadable",
    "1 while a record that cannot be read stops the partition",
    ["topic", "partition"],
)
refused = Counter("backstop_requests_refused_total", "Requests that were not taken on", ["status"])

REPEAT_SECONDS = 10

_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("backstop")

_QUOTE_VALUES = ("asyncpg.", "pydantic_core.")


def configure(service: str, level: str) -> None:
    """Send logs to standard output as JSON lines; export spans when OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace_id,
            structlog.processors.ExceptionRenderer(format_exception),
            structlog.processors.JSONRenderer(
                serializer=lambda record, **_: orjson.dumps(record, default=str).decode()
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # Libraries log through the standard library: only what needs attention, in the same shape.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.ExceptionRenderer(format_exception),
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    handler.addFilter(_Seldom())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def format_exception(exc_info: Any) -> str:
    """
    Return a traceback without the messages of exceptions that quote values: those of asyncpg and pydantic.

    A parameter or an input may be a message's subject or somebody's address. What led to the error may quote it, too.
    """
    _, error, _ = exc_info
    formatted = traceback.TracebackException(*exc_info)
    _redact(formatted, error, quotes=False)
    return "".join(formatted.format()).rstrip()


def _redact(formatted: traceback.TracebackException | None, error: BaseException | None, *, quotes: bool) -> None:
    if formatted is None or error is None:
        return
    quotes = quotes or type(error).__module__.startswith(_QUOTE_VALUES)
    if quotes:
        formatted._str = "(not logged: it may quote values)"  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public name
    _redact(formatted.__cause__, error.__cause__, quotes=quotes)
    _redact(formatted.__context__, error.__context__, quotes=quotes)
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for part, one in zip(formatted.exceptions or (), inner, strict=False):
        _redact(part, one, quotes=quotes)


class _Seldom(logging.Filter):
    """
    Limits each log call site to one record per REPEAT_SECONDS.

    aiokafka logs about 100 a second while Kafka is unreachable.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        if record.created - self._said.get(place, 0.0) < REPEAT_SECONDS:
            return False
        self._said[place] = record.created
        return True


def _add_trace_id(_logger: Any, _method: str, record: Any) -> Any:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record["trace_id"] = format(context.trace_id, "032x")
    return record


@contextmanager
def span(name: str, traceparent: str | None = None, **attributes: str | int) -> Iterator[str]:
    """Run a block as a span below *traceparent* (or the current span); yields the span's own traceparent."""
    parent = _propagator.extract({"traceparent": traceparent}) if traceparent else None
    # The SDK would send the message of an exception along, which may quote values.
    with _tracer.start_as_current_span(
        name, context=parent, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current_traceparent() or ""
        except Exception as error:
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def current_traceparent() -> str | None:
    """Return the current span as a W3C traceparent; None outside of any span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")
