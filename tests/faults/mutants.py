"""
A service with one of its guards taken out: `python -m faults.mutants`, with MUTANT=<guard> and its service.

Each shows that the fault run would notice if that guard were not there.
"""

import os
import runpy
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from faststream import AckPolicy

import chassis.consumer
import chassis.events
import chassis.relay
from chassis.postgres import Tx


def outbox_deletes_before_acknowledgement() -> None:
    """Delete events from the outbox and then send them: a crash between loses them."""
    publish = chassis.relay.Relay._publish

    async def delete_and_publish(self: Any, connection: Any, producer: Any, rows: Any, partitions: Any) -> None:
        await connection.execute("DELETE FROM outbox WHERE id = ANY($1)", [row["id"] for row in rows])
        await publish(self, connection, producer, rows, partitions)

    chassis.relay.Relay._publish = delete_and_publish  # type: ignore[method-assign]


def reports_without_natural_key() -> None:
    """Take every report for a new one, in a table that has no primary key to object."""
    from triage import store

    async def all_of_them(tx: Tx, report_ids: Sequence[UUID]) -> set[UUID]:
        await tx.execute("ALTER TABLE reports DROP CONSTRAINT IF EXISTS reports_pkey")
        return set(report_ids)

    store.find_unknown_reports = all_of_them


def repeat_without_looking() -> None:
    """Make an unanswered submission again, without asking Microsoft whether it was made."""
    from submitter import store
    from submitter.worker import Worker

    async def repeat(self: Any, _tenant_id: UUID, submissions: Any, _deadline: float) -> None:
        for submission in submissions:
            async with self._db.transaction() as tx:
                await store.make_due(tx, submission.submission_id)

    Worker._look_up = repeat  # type: ignore[assignment, method-assign]


def headers_to_faststream() -> None:
    """Leave the headers to FastStream's own parser, which loses the batch of one that is not UTF-8."""

    async def as_they_are(records: Any, original: Callable[[Any], Any]) -> Any:
        message = await original(records)
        return await chassis.events.parse(records, lambda _: _returned(message))

    async def _returned(message: Any) -> Any:
        return message

    chassis.consumer.parse = as_they_are  # type: ignore[attr-defined]


def acknowledge_first() -> None:
    """Commit before the handler has run, as FastStream does unless told otherwise."""
    chassis.events.BATCH["ack_policy"] = AckPolicy.ACK_FIRST
    # The check at the start would notice.
    chassis.consumer._check = lambda subscriber, known: str(subscriber.topic_names[0])  # noqa: ARG005


GUARDS: dict[str, tuple[str, Callable[[], None]]] = {
    "delete-after-ack": ("reporter", outbox_deletes_before_acknowledgement),
    "natural-key": ("triage", reports_without_natural_key),
    "look-before-repeat": ("submitter", repeat_without_looking),
    "safe-header-parser": ("triage", headers_to_faststream),
    "ack-policy": ("triage", acknowledge_first),
}
"""Each guard, the service that loses it, and how."""


if __name__ == "__main__":
    service, take_out = GUARDS[os.environ["MUTANT"]]
    take_out()
    runpy.run_module(service, run_name="__main__")
