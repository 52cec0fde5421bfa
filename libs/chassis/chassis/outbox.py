"""
The outbox: events join the transaction that causes them. `chassis.relay` brings them to Kafka.

Each event is published at least once, and the first publication of the events of one key is in the order in which
they were emitted, provided that each transaction locks the row of the thing that its events are about.
"""

from collections.abc import Iterable

import orjson

from backstop_contracts import Event, headers_for
from chassis import telemetry
from chassis.postgres import Tx


async def emit(tx: Tx, events: Iterable[tuple[Event, str | None]]) -> None:
    """
    Publish *events* if and only if the transaction of *tx* commits.

    Each event comes with the W3C traceparent of what caused it, or None for the current span.
    """
    rows = []
    for event, cause in events:
        headers = headers_for(event, source="", traceparent=cause or telemetry.current_traceparent())
        rows.append(
            (
                event.topic(),
                headers["ce_partitionkey"].encode(),
                orjson.dumps(headers).decode(),
                event.model_dump_json().encode(),
            )
        )
    if rows:
        await tx.execute(
            "INSERT INTO outbox (topic, key, headers, payload)"
            " SELECT * FROM unnest($1::text[], $2::bytea[], $3::text[], $4::bytea[])",
            *map(list, zip(*rows, strict=True)),
        )
