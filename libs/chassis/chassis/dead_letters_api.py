"""
Dead letters over HTTP: admins see those of their own tenant, and have them handled again or drop them.

A letter's tenant is that of its event. A record that could not be read as an event has none that anybody could vouch
for: no token gives access to it here, and only `backstop dead`, with access to the database, shows it.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel

from backstop_contracts.block_schemas import NO_NUL
from chassis import dead_letters
from chassis.dead_letters import DeadLetter, State, Wanted
from chassis.entra import Caller, require
from chassis.http import Problem, problems
from chassis.postgres import Database

log = structlog.get_logger()

ADMIN = "SecurityAdministrator"

Reader = Annotated[Caller, Depends(require("SecurityReader", ADMIN))]
Admin = Annotated[Caller, Depends(require(ADMIN))]
LetterId = Annotated[int, Path(ge=0, lt=1 << 63)]
Text = Annotated[str | None, Query(max_length=200, pattern=NO_NUL)]


class DeadLetterSummary(BaseModel):
    """An event that the service could not handle, without the event itself."""

    id: int
    topic: str
    partition: int
    offset: int
    type: str | None
    event_id: str | None
    error: str
    reason: str
    parked_at: datetime
    state: State
    resolved_by: str | None
    resolved_at: datetime | None


class DeadLetterPage(BaseModel):
    """A page of dead letters, the oldest first. `next_cursor` asks for the following page; null on the last."""

    items: list[DeadLetterSummary]
    next_cursor: str | None


class DeadLetterDetail(DeadLetterSummary):
    """A dead letter with its headers; for a SecurityAdministrator also with the event, which may be private."""

    key: str | None
    headers: list[tuple[str, str | None]]
    payload: str | None


class Resolved(BaseModel):
    """What became of a dead letter."""

    id: int
    state: State


def make_router(database: Database) -> APIRouter:  # noqa: C901 - four routes
    """Return the routes."""
    router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"], responses=problems(401, 403, 422, 503))

    @router.get("")
    async def list_dead_letters(
        caller: Reader,
        state: State = "unresolved",
        topic: Text = None,
        error: Text = None,
        cursor: Annotated[str | None, Query(pattern=r"^\d{1,18}$")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> DeadLetterPage:
        """List the tenant's dead letters of this service."""
        wanted = Wanted(tenant_id=caller.tenant_id, state=state, topic=topic, error=error)
        found = await dead_letters.read(database.pool, wanted, after=int(cursor or 0), limit=limit + 1)
        more = len(found) > limit
        return DeadLetterPage(
            items=[DeadLetterSummary(**_summary(letter)) for letter in found[:limit]],
            next_cursor=str(found[limit - 1].id) if more else None,
        )

    @router.get("/{letter_id}", responses=problems(404))
    async def read_dead_letter(caller: Reader, letter_id: LetterId) -> DeadLetterDetail:
        """Return one dead letter. Its payload is for a SecurityAdministrator alone."""
        found = await dead_letters.find(database.pool, letter_id, tenant_id=caller.tenant_id)
        if found is None:
            raise _unknown()
        letter, value = found
        return DeadLetterDetail(
            **_summary(letter),
            key=_text(letter.key),
            headers=[(name, _text(content)) for name, content in letter.headers],
            payload=_text(value) if ADMIN in caller.roles else None,
        )

    @router.post("/{letter_id}/replay", responses=problems(404, 409))
    async def replay_dead_letter(caller: Admin, letter_id: LetterId) -> Resolved:
        """Publish the event again, as it was. Services that have handled it before do nothing."""
        wanted = Wanted(tenant_id=caller.tenant_id, state=None)
        async with database.transaction() as tx:
            replayed = await dead_letters.replay(tx, wanted, caller.oid, ids=[letter_id])
        if not replayed:
            raise await _refusal(caller, letter_id)
        log.info("dead_letter.replayed", dead_letter=letter_id, tenant_id=str(caller.tenant_id), by=caller.oid)
        return Resolved(id=letter_id, state="replayed")

    @router.post("/{letter_id}/drop", responses=problems(404, 409))
    async def drop_dead_letter(caller: Admin, letter_id: LetterId) -> Resolved:
        """Settle the dead letter without having it handled. It is kept for 30 days more."""
        wanted = Wanted(tenant_id=caller.tenant_id, state=None)
        async with database.transaction() as tx:
            dropped = await dead_letters.drop(tx, wanted, caller.oid, ids=[letter_id])
        if not dropped:
            raise await _refusal(caller, letter_id)
        log.info("dead_letter.dropped", dead_letter=letter_id, tenant_id=str(caller.tenant_id), by=caller.oid)
        return Resolved(id=letter_id, state="dropped")

    async def _refusal(caller: Caller, letter_id: int) -> Problem:
        found = await dead_letters.find(database.pool, letter_id, tenant_id=caller.tenant_id)
        if found is None:
            return _unknown()
        letter, _ = found
        if letter.state != "unresolved":
            return Problem(
                409, "dead-letter-resolved", f"The dead letter was {letter.state} already. Nothing was changed."
            )
        if datetime.now(UTC) - letter.parked_at > dead_letters.REPLAYABLE:
            detail = (
                "The dead letter is older than 7 days: services that handled its event then may have forgotten that,"
                " and would do it again. `backstop dead replay --old` replays it all the same. Nothing was changed."
            )
            return Problem(409, "dead-letter-too-old", detail)
        return Problem(409, "dead-letter-too-large", "The dead letter can only be dropped. Nothing was changed.")

    return router


def _unknown() -> Problem:
    detail = "Your tenant has no such dead letter. `backstop dead` also shows records that are not events."
    return Problem(404, "unknown-dead-letter", detail)


def _summary(letter: DeadLetter) -> dict[str, Any]:
    facts = {name: getattr(letter, name) for name in DeadLetterSummary.model_fields if hasattr(letter, name)}
    return {**facts, "type": letter.header("ce_type"), "event_id": letter.header("ce_id")}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
