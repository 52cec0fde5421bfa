"""HTTP routes: list cases, read one with its timeline, and decide on it."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from backstop_contracts import (
    Actor,
    ActorKind,
    BlockScope,
    CaseStatus,
    Category,
    Conclusion,
    Folder,
    ReportedAs,
    Verdict,
)
from backstop_contracts.block_schemas import NO_NUL, BlockInput, BlockState
from chassis import telemetry
from chassis.entra import Caller, require
from chassis.http import Problem, in_utc, problems, read_cursor, write_cursor
from chassis.postgres import Database, Tx
from triage import case_queries, cases, store, tenant_blocks
from triage.rules import NotPossibleError
from triage.store import Case

Reader = Annotated[Caller, Depends(require("SecurityReader", "SecurityAdministrator"))]
Admin = Annotated[Caller, Depends(require("SecurityAdministrator"))]
Note = Annotated[str, Field(max_length=500, pattern=NO_NUL)]

MAX_BLOCKS = 20


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Submit(_Input):
    """Have Microsoft analyse the message, and make `blocks` meanwhile."""

    action: Literal["submit"]
    category: Literal[Category.PHISHING, Category.MALWARE, Category.SPAM]
    blocks: Annotated[list[BlockInput], Field(max_length=MAX_BLOCKS)] = []
    note: Note | None = None


class BlockOnly(_Input):
    """Block without submitting."""

    action: Literal["block"]
    blocks: Annotated[list[BlockInput], Field(min_length=1, max_length=MAX_BLOCKS)]
    note: Note | None = None


class Dismiss(_Input):
    """Close the case: the message is not malicious."""

    action: Literal["dismiss"]
    note: Note | None = None


Decision = Annotated[Submit | BlockOnly | Dismiss, Body(discriminator="action")]


class CaseSummary(BaseModel):
    """A case as a row of a list."""

    case_id: UUID
    status: CaseStatus
    reported_as: tuple[ReportedAs, ...]
    folders: tuple[str, ...]
    report_count: int
    sender: str | None
    subject: str | None
    opened_at: datetime
    last_reported_at: datetime
    conclusion: str | None


class CasePage(BaseModel):
    """A page of cases, newest first. `next_cursor` is the `cursor` of the following page; null on the last."""

    items: list[CaseSummary]
    next_cursor: str | None


class TimelineEntry(BaseModel):
    """One thing that happened to a case."""

    at: datetime
    kind: str
    actor: Actor | None
    detail: dict[str, Any]


class CaseDetail(CaseSummary):
    """A case with everything that happened to it."""

    sha256: str
    internet_message_id: str | None
    submission_id: UUID | None
    verdict: Verdict | None
    blocks: list[BlockState]
    timeline: list[TimelineEntry]


def make_router(db: Database) -> APIRouter:
    """Make triage's routes over *db*."""
    router = APIRouter(prefix="/v1/cases", tags=["cases"])

    @router.get("", operation_id="list_cases", responses=problems(401, 403, 422, 503))
    async def list_cases(
        caller: Reader,
        status: CaseStatus | None = None,
        sender: Annotated[str | None, Query(max_length=320, pattern=NO_NUL)] = None,
        sender_domain: Annotated[str | None, Query(max_length=255, pattern=NO_NUL)] = None,
        reported_as: ReportedAs | None = None,
        folder: Folder | None = None,
        conclusion: Conclusion | None = None,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> CasePage:
        """List cases, newest first."""
        rows = await case_queries.list_cases(
            db.pool,
            caller.tenant_id,
            status=status,
            sender=sender and sender.lower(),
            sender_domain=sender_domain and sender_domain.lower(),
            reported_as=reported_as,
            folder=folder,
            conclusion=conclusion,
            after=read_cursor(cursor, _place) if cursor else None,
            limit=limit + 1,
        )
        items = [CaseSummary.model_validate(row) for row in rows[:limit]]
        more = len(rows) > limit
        return CasePage(
            items=items, next_cursor=write_cursor(items[-1].opened_at.isoformat(), items[-1].case_id) if more else None
        )

    @router.get("/{case_id}", operation_id="read_case", responses=problems(401, 403, 404, 422, 503))
    async def read_case(caller: Reader, case_id: UUID) -> CaseDetail:
        """Read a case, its verdict, its blocks and its whole timeline."""
        return await _detail(db, caller, case_id)

    @router.post(
        "/{case_id}/decisions",
        operation_id="decide",
        status_code=202,
        responses=problems(400, 401, 403, 404, 408, 409, 413, 422, 503),
    )
    async def decide(caller: Admin, case_id: UUID, decision: Decision) -> CaseDetail:
        """
        Decide on a case: submit it (and block meanwhile), block only, or dismiss it.

        202: the decision is durable and will be carried out. 409: the case does not allow it; nothing was changed.
        """
        by = Actor(kind=ActorKind.APP if caller.is_app else ActorKind.USER, id=caller.oid, name=caller.name)
        try:
            async with db.transaction() as tx:
                case = await store.find_case(tx, caller.tenant_id, case_id, lock=True)
                if case is None:
                    raise _unknown(case_id)
                await _apply(tx, case, decision, by)
        except NotPossibleError as error:
            raise Problem(409, "not-possible-for-case", f"{error}. Nothing was changed.") from None
        return await _detail(db, caller, case_id)

    return router


async def _apply(tx: Tx, case: Case, decision: Submit | BlockOnly | Dismiss, by: Actor) -> None:
    cause = telemetry.current_traceparent()
    if isinstance(decision, Dismiss):
        await cases.dismiss(tx, case, by=by, note=decision.note, cause=cause)
        return
    for asked in decision.blocks:
        wanted = asked.decided()
        one = tenant_blocks.BlockDecision(case, asked.kind, wanted.expires_at, by, decision.note, cause, url=wanted.url)
        await tenant_blocks.block(tx, one)
    if isinstance(decision, Submit):
        await cases.submit(tx, case, decision.category, by=by, note=decision.note, cause=cause)


async def _detail(db: Database, caller: Caller, case_id: UUID) -> CaseDetail:
    case = await store.find_case(db.pool, caller.tenant_id, case_id)
    if case is None:
        raise _unknown(case_id)
    return CaseDetail(
        **_summary(case),
        sha256=case.message.sha256,
        internet_message_id=case.message.internet_message_id,
        submission_id=case.submission_id,
        verdict=case.verdict,
        blocks=[BlockState(scope=BlockScope.TENANT, **row) for row in await case_queries.list_blocks(db.pool, case_id)],
        timeline=[TimelineEntry(**row) for row in await case_queries.read_timeline(db.pool, case_id)],
    )


def _summary(case: Case) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "status": case.status,
        "reported_as": case.reported_as,
        "folders": case.folders,
        "report_count": case.report_count,
        "sender": case.message.sender,
        "subject": case.message.subject,
        "opened_at": case.opened_at,
        "last_reported_at": case.last_reported_at,
        "conclusion": case.verdict.conclusion if case.verdict else None,
    }


def _unknown(case_id: UUID) -> Problem:
    return Problem(404, "unknown-case", f"There is no case {case_id} in your tenant.")


def _place(parts: list[str]) -> tuple[datetime, UUID]:
    opened_at, case_id = parts
    return in_utc(datetime.fromisoformat(opened_at)), UUID(case_id)
