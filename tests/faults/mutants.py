"""
Runs a service with one of its safeguards removed: `python -m faults.mutants`, with MUTANT=<guard> in the environment.

Each mutant proves that the fault run detects the absence of that safeguard.
"""

import os
import runpy
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from faststream import AckPolicy

import chassis.consumer
import chassis.relay
import chassis.subscribing
from chassis.postgres import Tx


def outbox_deletes_before_acknowledgement() -> None:
    """Delete events from the outbox before sending them: a crash in between loses them."""
    publish = chassis.relay.Relay._publish

    async def delete_and_publish(self: Any, connection: Any, producer: Any, rows: Any, partitions: Any) -> None:
        await connection.execute("DELETE FROM outbox WHERE id = ANY($1)", [row["id"] for row in rows])
        await publish(self, connection, producer, rows, partitions)

    chassis.relay.Relay._publish = delete_and_publish  # type: ignore[method-assign]


def reports_without_natural_key() -> None:
    """Treat every report as new, in a table without a primary key to prevent it."""
    from triage import store

    async def all_of_them(tx: Tx, report_ids: Sequence[UUID]) -> set[UUID]:
        await tx.execute("ALTER TABLE reports DROP CONSTRAINT IF EXISTS reports_pkey")
        return set(report_ids)

    store.find_unknown_reports = all_of_them


def repeat_without_looking() -> None:
    """Repeat an unanswered submission without checking whether Microsoft already has it."""
    from submitter import store
    from submitter.worker import Worker

    async def repeat(self: Any, _tenant_id: UUID, submissions: Any, _deadline: float) -> None:
        for submission in submissions:
            async with self._db.transaction() as tx:
                await store.make_due(tx, submission.submission_id)

    Worker._look_up = repeat  # type: ignore[assignment, method-assign]


def headers_to_faststream() -> None:
    """Use FastStream's own header parser, which loses the whole batch of a header that is not UTF-8."""

    async def as_they_are(records: Any, original: Callable[[Any], Any]) -> Any:
        message = await original(records)
        return await chassis.subscribing.parse(records, lambda _: _returned(message))

    async def _returned(message: Any) -> Any:
        return message

    chassis.consumer.parse = as_they_are  # type: ignore[attr-defined]


def acknowledge_first() -> None:
    """Commit before the handler has run, which is FastStream's default."""
    chassis.subscribing.BATCH["ack_policy"] = AckPolicy.ACK_FIRST
    # Copying the handlers would reject it.
    chassis.consumer._copy = lambda router: router


GUARDS: dict[str, tuple[str, Callable[[], None]]] = {
    "delete-after-ack": ("reporter", outbox_deletes_before_acknowledgement),
    "natural-key": ("triage", reports_without_natural_key),
    "look-before-repeat": ("submitter", repeat_without_looking),
    "safe-header-parser": ("triage", headers_to_faststream),
    "ack-policy": ("triage", acknowledge_first),
}
"""By safeguard: the service that it is removed from, and the function that removes it."""


if __name__ == "__main__":
    service, take_out = GUARDS[os.environ["MUTANT"]]
    take_out()
    runpy.run_module(service, run_name="__main__")
