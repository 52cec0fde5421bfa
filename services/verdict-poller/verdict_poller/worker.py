"""Read the verdicts that are due, many with one list, and explain them by the tenant's settings."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from backstop_contracts import AppliedBlock, VerdictReady
from chassis import outbox
from chassis.postgres import Database
from chassis.worker import Lease, backoff, run_all
from m365 import Exchange, Graph, M365Error, Refused, Throttled, Truncated, Unavailable, until
from verdict_poller import store
from verdict_poller.rules import Evidence, Query, Result, conclude, explain, is_final, override_of, queries, read_result
from verdict_poller.schedule import ABANDON_AFTER, Schedule, is_over
from verdict_poller.store import Watch

log = structlog.get_logger()

PATH = "/beta/security/threatSubmission/emailThreats"
PAGE = 200
CLAIM = 2000
FINAL_STATUSES = ("succeeded", "failed", "skipped")
PENDING_STATUSES = ("running", "notStarted")
DOUBTED_FROM, DOUBTED_EVERY = 6, 3
"""Lists have been seen incomplete: from the sixth question on, at every third, what none shows is looked for."""
SINGLY_AT_MOST = 50
"""Questions about single submissions in one round."""
AWAY_TRIES = 24
"""Times that settings are asked for while Exchange is away or throttles: about an hour, with the pauses between."""
BLOCKS_KEPT = timedelta(days=30)
"""Longer than a topic keeps the event that says that the block was made."""
REFUSED_TRIES = 3
"""The same when Exchange refuses to tell them, which seldom changes."""

Rows = Sequence[Mapping[str, Any]]


class Poller:
    """Asks Microsoft for verdicts: one list per tenant and status, whatever the number of submissions."""

    def __init__(self, db: Database, graph: Graph, schedule: Schedule, lease: Lease) -> None:
        self._db = db
        self._graph = graph
        self._schedule = schedule
        self._lease = lease

    async def poll_due(self) -> int:
        """Ask about the watches that are due. Returns how many there were."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            watches = await store.claim(tx, "watching", self._lease.length, CLAIM)
        by_tenant: defaultdict[UUID, list[Watch]] = defaultdict(list)
        for watch in watches:
            by_tenant[watch.tenant_id].append(watch)
        await run_all(*(self._poll(tenant_id, mine, deadline) for tenant_id, mine in by_tenant.items()))
        return len(watches)

    async def _poll(self, tenant_id: UUID, watches: list[Watch], deadline: float) -> None:
        now = datetime.now(UTC)
        failure: M365Error | TimeoutError | None = None
        answers: dict[str, Mapping[str, Any]] = {}
        try:
            async with until(deadline):
                await self._ask(tenant_id, watches, answers)
        except (M365Error, TimeoutError) as error:
            log.warning("verdicts.unreadable", tenant_id=tenant_id, error=str(error) or type(error).__name__)
            failure = error
        judged = {
            watch.submission_id: answer
            for watch in watches
            if (answer := answers.get(watch.graph_id)) and is_final(read_result(answer))
        }
        waiting = [watch for watch in watches if watch.submission_id not in judged]
        judged |= {w.submission_id: _no_result(w) for w in waiting if _is_given_up(w, answers, now)}
        async with self._db.transaction() as tx:
            await store.judge(tx, judged)
            still = [watch for watch in waiting if watch.submission_id not in judged]
            await store.postpone(tx, "watching", self._dues(still, failure))

    def _dues(self, waiting: Sequence[Watch], failure: M365Error | TimeoutError | None) -> list[tuple[Watch, datetime]]:
        """Say when to ask again: as planned, or sooner after a question that failed, but not before Microsoft says."""
        now = datetime.now(UTC)
        if isinstance(failure, Throttled | Unavailable) and failure.retry_after:
            return [(watch, now + timedelta(seconds=failure.retry_after)) for watch in waiting]
        dues = [(watch, self._schedule.next_due(now, watch.attempts)) for watch in waiting]
        if failure is None or not waiting:
            return dues
        # One moment for all, which one list answers.
        soon = now + backoff(min(watch.attempts for watch in waiting), first=10)
        return [(watch, min(due, soon)) for watch, due in dues]

    async def _ask(self, tenant_id: UUID, watches: list[Watch], answers: dict[str, Mapping[str, Any]]) -> None:
        """
        Add what Microsoft says about *watches* to *answers*, by id; an empty answer says that Microsoft refuses one.

        First the lists of final submissions. About those on none of them, from time to time, the lists of submissions
        under way, and singly those on no list at all. What was read before something fails is there all the same, and
        what is not there was not answered.
        """
        await self._list(tenant_id, watches, FINAL_STATUSES, answers)
        doubted = [watch for watch in watches if watch.graph_id not in answers and _is_doubtful(watch)]
        await self._list(tenant_id, doubted, PENDING_STATUSES, answers)
        hidden = [watch for watch in doubted if watch.graph_id not in answers]
        # A choice by chance: those that were left out have their turn another time.
        for watch in random.sample(hidden, min(len(hidden), SINGLY_AT_MOST)):
            try:
                answer = await self._graph.get(tenant_id, f"{PATH}/{{id}}", ids={"id": watch.graph_id})
            except Refused as error:
                log.warning("submission.unreadable", submission_id=watch.submission_id, error=str(error))
                answer = {}
            answers[watch.graph_id] = answer

    async def _list(
        self,
        tenant_id: UUID,
        watches: list[Watch],
        statuses: Sequence[str],
        answers: dict[str, Mapping[str, Any]],
    ) -> None:
        """Add the submissions of *statuses* in the time of *watches*, until each of them is answered."""
        if not watches:
            return
        first, last = min(w.created_at for w in watches), max(w.created_at for w in watches)
        window = (
            f"source eq 'administrator' and createdDateTime ge {first - timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"
            f" and createdDateTime lt {last + timedelta(seconds=2):%Y-%m-%dT%H:%M:%SZ}"
        )
        for status in statuses:
            parameters = {"$filter": f"{window} and status eq '{status}'", "$top": str(PAGE)}
            async for page in self._graph.pages(tenant_id, PATH, parameters):
                answers.update({str(entity["id"]): entity for entity in page["value"]})
                if all(watch.graph_id in answers for watch in watches):
                    return


def _is_doubtful(watch: Watch) -> bool:
    """Tell whether it is time to doubt that a submission which is on no list of final ones is still under way."""
    by_turn = watch.attempts >= DOUBTED_FROM and watch.attempts % DOUBTED_EVERY == 0
    return by_turn or is_over(watch.watched_since, datetime.now(UTC))


def _is_given_up(watch: Watch, answers: Mapping[str, Mapping[str, Any]], now: datetime) -> bool:
    """Tell whether no verdict is to be expected: an unanswered question says nothing, until a week of them has."""
    if watch.graph_id in answers:
        return is_over(watch.watched_since, now)
    if now - watch.watched_since < ABANDON_AFTER:
        return False
    log.error("submission.abandoned", submission_id=watch.submission_id, tenant_id=watch.tenant_id)
    return True


def _no_result(watch: Watch) -> dict[str, Any]:
    """Stand in for the answer that did not come, in Microsoft's own words for that."""
    return {"id": watch.graph_id, "status": "skipped", "result": {"category": "noResultAvailable", "detail": "none"}}


class Explainer:
    """Turns Microsoft's answers into verdict-ready: why the mail was allowed, and what to change."""

    def __init__(self, db: Database, exchange: Exchange, *, batch: int, settings_live: timedelta, lease: Lease) -> None:
        self._db = db
        self._exchange = exchange
        self._batch = batch
        self._settings_live = settings_live
        self._lease = lease
        self._settings: dict[tuple[UUID, Query], tuple[Rows, datetime]] = {}

    async def explain_due(self) -> int:
        """Explain the answers that are due. Returns how many there were."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            watches = await store.claim(tx, "judged", self._lease.length, self._batch)
        now = datetime.now(UTC)
        self._settings = {key: kept for key, kept in self._settings.items() if now - kept[1] < self._settings_live}
        groups: defaultdict[tuple[UUID, bool], list[_Judged]] = defaultdict(list)
        for watch in watches:
            judged = _judged(watch)
            must_read = any((watch.tenant_id, query) not in self._settings for query in judged.needed)
            groups[watch.tenant_id, must_read].append(judged)
        # A tenant whose Exchange is slow holds up no other, and nothing that is known already.
        await run_all(*(self._explain(tenant_id, mine, deadline) for (tenant_id, _), mine in groups.items()))
        return len(watches)

    async def purge_blocks(self) -> int:
        """Delete blocks that ended so long ago that nothing more is heard of them."""
        async with self._db.transaction() as tx:
            await store.purge_blocks(tx, BLOCKS_KEPT)
        return 0

    async def _explain(self, tenant_id: UUID, judged: list["_Judged"], deadline: float) -> None:
        wanted = {query for one in judged for query in one.needed}
        settings, away = await self._read_settings(tenant_id, wanted, deadline)
        told: list[tuple[_Judged, Mapping[Query, Rows]]] = []
        again: list[tuple[Watch, datetime]] = []
        for one in judged:
            watch = one.watch
            read = {query: settings[query] for query in one.needed if query in settings}
            tries = AWAY_TRIES if one.needed & away else REFUSED_TRIES
            if len(read) < len(one.needed) and watch.attempts < tries:
                again.append((watch, datetime.now(UTC) + backoff(watch.attempts)))
            else:
                told.append((one, read))
        async with self._db.transaction() as tx:
            new = await store.settle(tx, [one.watch.submission_id for one, _ in told])
            blocks = await store.applied_blocks(tx, [one.watch.case_id for one, _ in told])
            await outbox.emit(
                tx,
                [
                    (_verdict(one, read, blocks.get(one.watch.case_id, ())), one.watch.traceparent)
                    for one, read in told
                    if one.watch.submission_id in new
                ],
            )
            await store.postpone(tx, "judged", again)

    async def _read_settings(
        self, tenant_id: UUID, wanted: set[Query], deadline: float
    ) -> tuple[dict[Query, Rows], set[Query]]:
        """
        Read the settings that are not known; what cannot be read is left out.

        Says also for which of them that is because Exchange does not answer now.
        """
        now = datetime.now(UTC)
        known = {query: self._settings[key][0] for query in wanted if (key := (tenant_id, query)) in self._settings}
        missing = sorted(wanted - known.keys(), key=str)
        answers = await asyncio.gather(*(self._read(tenant_id, query, deadline) for query in missing))
        found = dict(zip(missing, answers, strict=True))
        read = {query: rows for query, rows in found.items() if not isinstance(rows, Exception)}
        self._settings |= {(tenant_id, query): (rows, now) for query, rows in read.items()}
        away = {query for query, rows in found.items() if isinstance(rows, Throttled | Unavailable | TimeoutError)}
        return known | read, away

    async def _read(self, tenant_id: UUID, query: Query, deadline: float) -> Rows | M365Error | TimeoutError:
        try:
            async with until(deadline):
                return await self._exchange.invoke(tenant_id, query.cmdlet, **_parameters(query))
        except Truncated as error:
            log.warning("settings.truncated", tenant_id=tenant_id, cmdlet=query.cmdlet, rows=len(error.records))
            return error.records
        except (M365Error, TimeoutError) as error:
            why = str(error) or type(error).__name__
            log.warning("settings.unreadable", tenant_id=tenant_id, cmdlet=query.cmdlet, error=why)
            return error


def _parameters(query: Query) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {name: now - value if isinstance(value, timedelta) else value for name, value in query.parameters}


@dataclass(frozen=True, slots=True)
class _Judged:
    """A watch with Microsoft's answer as it is read, and the settings that explain it."""

    watch: Watch
    result: Result
    needed: frozenset[Query]


def _judged(watch: Watch) -> _Judged:
    result = read_result(watch.result or {})
    return _Judged(watch, result, queries(result, watch.message, watch.recipient))


def _verdict(judged: _Judged, settings: Mapping[Query, Rows], blocks: Sequence[AppliedBlock]) -> VerdictReady:
    watch, result = judged.watch, judged.result
    evidence = Evidence(result=result, message=watch.message, recipient=watch.recipient, settings=settings)
    return VerdictReady(
        tenant_id=watch.tenant_id,
        submission_id=watch.submission_id,
        case_id=watch.case_id,
        category=watch.category,
        recipient=watch.recipient,
        folders=watch.folders,
        message=watch.message,
        blocks=tuple(blocks),
        graph_id=watch.graph_id,
        conclusion=conclude(result),
        verdict=result.verdict or "noResultAvailable",
        detail=result.detail,
        override=override_of(result),
        user_mailbox_settings=result.user_mailbox_settings,
        detected_urls=result.detected_urls,
        detected_files=result.detected_files,
        causes=explain(evidence),
        settings_read=settings.keys() == judged.needed,
        read_at=datetime.now(UTC),
    )
