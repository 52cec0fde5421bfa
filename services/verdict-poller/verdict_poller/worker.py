"""Read due verdicts, many with one list, and explain them by the tenant's settings."""

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
from m365 import Exchange, Graph, M365Error, Refused, Throttled, Truncated, Unavailable
from verdict_poller import store
from verdict_poller.exchange_settings import Query
from verdict_poller.findings import Evidence
from verdict_poller.poll_schedule import ABANDON_AFTER, Schedule, has_timed_out
from verdict_poller.rules import explain, needed_queries
from verdict_poller.store import Watch
from verdict_poller.submission_result import Result, conclude, is_final, override_of, read_result

log = structlog.get_logger()

PATH = "/beta/security/threatSubmission/emailThreats"
PAGE_SIZE = 200
CLAIM_LIMIT = 2000
FINAL_STATUSES = ("succeeded", "failed", "skipped")
PENDING_STATUSES = ("running", "notStarted")
CROSS_CHECK_FROM, CROSS_CHECK_EVERY = 6, 3
"""Graph's lists can be incomplete: from the sixth poll on, every third one searches for submissions on no list."""
MAX_SINGLE_READS = 50
"""Submissions that one poll reads by their id."""
UNAVAILABLE_ATTEMPTS = 24
"""Attempts to read settings while Exchange is unavailable or throttles: about an hour, with the pauses between."""
REFUSED_ATTEMPTS = 3
"""Attempts to read settings that Exchange refuses, which rarely changes."""
BLOCKS_KEPT = timedelta(days=30)
"""Longer than the topic retains the event that says that the block was applied."""

Rows = Sequence[Mapping[str, Any]]


class Poller:
    """Polls for verdicts: one list per tenant and status, whatever the number of submissions."""

    def __init__(self, db: Database, graph: Graph, schedule: Schedule, lease: Lease) -> None:
        self._db = db
        self._graph = graph
        self._schedule = schedule
        self._lease = lease

    async def poll_due(self) -> int:
        """Poll the watches that are due. Returns how many were claimed."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            watches = await store.claim(tx, "watching", self._lease.length, CLAIM_LIMIT)
        by_tenant: defaultdict[UUID, list[Watch]] = defaultdict(list)
        for watch in watches:
            by_tenant[watch.tenant_id].append(watch)
        await run_all(*(self._poll(tenant_id, batch, deadline) for tenant_id, batch in by_tenant.items()))
        return len(watches)

    async def _poll(self, tenant_id: UUID, watches: list[Watch], deadline: float) -> None:
        now = datetime.now(UTC)
        failure: M365Error | TimeoutError | None = None
        answers: dict[str, Mapping[str, Any]] = {}
        try:
            async with self._graph.before(deadline):
                await self._read_answers(tenant_id, watches, answers)
        except (M365Error, TimeoutError) as error:
            log.warning("verdicts.read_failed", tenant_id=tenant_id, error=str(error) or type(error).__name__)
            failure = error
        results = {
            watch.submission_id: answer
            for watch in watches
            if (answer := answers.get(watch.graph_id)) and is_final(read_result(answer))
        }
        undecided = [watch for watch in watches if watch.submission_id not in results]
        results |= {watch.submission_id: _no_result(watch) for watch in undecided if _is_given_up(watch, answers, now)}
        async with self._db.transaction() as tx:
            await store.record_results(tx, results)
            waiting = [watch for watch in undecided if watch.submission_id not in results]
            await store.postpone(tx, "watching", self._next_polls(waiting, failure))

    def _next_polls(
        self, waiting: Sequence[Watch], failure: M365Error | TimeoutError | None
    ) -> list[tuple[Watch, datetime]]:
        """Return when to poll again: as scheduled, or sooner after a failure, but not before Retry-After."""
        now = datetime.now(UTC)
        if isinstance(failure, Throttled | Unavailable) and failure.retry_after:
            return [(watch, now + timedelta(seconds=failure.retry_after)) for watch in waiting]
        scheduled = [(watch, self._schedule.next_due(now, watch.attempts)) for watch in waiting]
        if failure is None or not waiting:
            return scheduled
        # The same time for all, so that one list answers them.
        soon = now + backoff(min(watch.attempts for watch in waiting), first=10)
        return [(watch, min(due_at, soon)) for watch, due_at in scheduled]

    async def _read_answers(self, tenant_id: UUID, watches: list[Watch], answers: dict[str, Mapping[str, Any]]) -> None:
        """
        Add Microsoft's answers about *watches* to *answers*, by id. An empty answer means that Microsoft refuses it.

        First the lists of final submissions are read. From time to time, submissions on none of them are searched for
        on the lists of pending submissions, and then read by their id. If a call fails, the answers that were read
        before it are kept.
        """
        await self._list_submissions(tenant_id, watches, FINAL_STATUSES, answers)
        unlisted = [watch for watch in watches if watch.graph_id not in answers and _needs_cross_check(watch)]
        await self._list_submissions(tenant_id, unlisted, PENDING_STATUSES, answers)
        missing = [watch for watch in unlisted if watch.graph_id not in answers]
        # A random choice, so that the others are read by a later poll.
        for watch in random.sample(missing, min(len(missing), MAX_SINGLE_READS)):
            try:
                answer = await self._graph.get(tenant_id, f"{PATH}/{{id}}", ids={"id": watch.graph_id})
            except Refused as error:
                log.warning("submission.read_refused", submission_id=watch.submission_id, error=str(error))
                answer = {}
            answers[watch.graph_id] = answer

    async def _list_submissions(
        self,
        tenant_id: UUID,
        watches: list[Watch],
        statuses: Sequence[str],
        answers: dict[str, Mapping[str, Any]],
    ) -> None:
        """Add the submissions of *statuses* made in the period of *watches*, until each of these is answered."""
        if not watches:
            return
        first, last = min(watch.created_at for watch in watches), max(watch.created_at for watch in watches)
        period = (
            f"source eq 'administrator' and createdDateTime ge {first - timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"
            f" and createdDateTime lt {last + timedelta(seconds=2):%Y-%m-%dT%H:%M:%SZ}"
        )
        for status in statuses:
            parameters = {"$filter": f"{period} and status eq '{status}'", "$top": str(PAGE_SIZE)}
            async for page in self._graph.pages(tenant_id, PATH, parameters):
                answers.update({str(entity["id"]): entity for entity in page["value"]})
                if all(watch.graph_id in answers for watch in watches):
                    return


def _needs_cross_check(watch: Watch) -> bool:
    """Return True if a submission on no list of final ones should be searched for."""
    is_turn = watch.attempts >= CROSS_CHECK_FROM and watch.attempts % CROSS_CHECK_EVERY == 0
    return is_turn or has_timed_out(watch.watched_since, datetime.now(UTC))


def _is_given_up(watch: Watch, answers: Mapping[str, Mapping[str, Any]], now: datetime) -> bool:
    """Return True if the watch has timed out: after 26 hours once Graph has answered, after a week if it never did."""
    if watch.graph_id in answers:
        return has_timed_out(watch.watched_since, now)
    if now - watch.watched_since < ABANDON_AFTER:
        return False
    log.error("submission.abandoned", submission_id=watch.submission_id, tenant_id=watch.tenant_id)
    return True


def _no_result(watch: Watch) -> dict[str, Any]:
    """Return what Microsoft answers if it has no result, in place of the answer that did not come."""
    return {"id": watch.graph_id, "status": "skipped", "result": {"category": "noResultAvailable", "detail": "none"}}


class Explainer:
    """Publishes verdict-ready for Microsoft's answers: why the message was allowed, and what to change."""

    def __init__(self, db: Database, exchange: Exchange, *, batch: int, settings_ttl: timedelta, lease: Lease) -> None:
        self._db = db
        self._exchange = exchange
        self._batch = batch
        self._settings_ttl = settings_ttl
        self._lease = lease
        self._cache: dict[tuple[UUID, Query], tuple[Rows, datetime]] = {}

    async def explain_due(self) -> int:
        """Explain the answers that are due. Returns how many were claimed."""
        deadline = self._lease.deadline()
        async with self._db.transaction() as tx:
            watches = await store.claim(tx, "answered", self._lease.length, self._batch)
        now = datetime.now(UTC)
        self._cache = {key: cached for key, cached in self._cache.items() if now - cached[1] < self._settings_ttl}
        groups: defaultdict[tuple[UUID, bool], list[_Answered]] = defaultdict(list)
        for watch in watches:
            answered = _answered(watch)
            must_read = any((watch.tenant_id, query) not in self._cache for query in answered.needed)
            groups[watch.tenant_id, must_read].append(answered)
        # A tenant whose Exchange is slow delays no other tenant, and no verdict whose settings are cached.
        await run_all(*(self._explain(tenant_id, group, deadline) for (tenant_id, _), group in groups.items()))
        return len(watches)

    async def purge_blocks(self) -> int:
        """Delete removed blocks that are too old for any further event."""
        async with self._db.transaction() as tx:
            await store.purge_blocks(tx, BLOCKS_KEPT)
        return 0

    async def _explain(self, tenant_id: UUID, group: list["_Answered"], deadline: float) -> None:
        needed = {query for answered in group for query in answered.needed}
        settings, unavailable = await self._read_settings(tenant_id, needed, deadline)
        ready: list[tuple[_Answered, Mapping[Query, Rows]]] = []
        postponed: list[tuple[Watch, datetime]] = []
        for answered in group:
            watch = answered.watch
            read = {query: settings[query] for query in answered.needed if query in settings}
            attempts = UNAVAILABLE_ATTEMPTS if answered.needed & unavailable else REFUSED_ATTEMPTS
            if len(read) < len(answered.needed) and watch.attempts < attempts:
                postponed.append((watch, datetime.now(UTC) + backoff(watch.attempts)))
            else:
                ready.append((answered, read))
        async with self._db.transaction() as tx:
            settled = await store.settle(tx, [answered.watch.submission_id for answered, _ in ready])
            blocks = await store.list_blocks_in_force(tx, [answered.watch.case_id for answered, _ in ready])
            await outbox.emit(
                tx,
                [
                    (_verdict(answered, read, blocks.get(answered.watch.case_id, ())), answered.watch.traceparent)
                    for answered, read in ready
                    if answered.watch.submission_id in settled
                ],
            )
            await store.postpone(tx, "answered", postponed)

    async def _read_settings(
        self, tenant_id: UUID, needed: set[Query], deadline: float
    ) -> tuple[dict[Query, Rows], set[Query]]:
        """
        Read the settings that are not cached; those that cannot be read are left out.

        Returns also the queries that failed because Exchange is unavailable now.
        """
        now = datetime.now(UTC)
        cached = {query: self._cache[key][0] for query in needed if (key := (tenant_id, query)) in self._cache}
        missing = sorted(needed - cached.keys(), key=str)
        answers = await asyncio.gather(*(self._read(tenant_id, query, deadline) for query in missing))
        found = dict(zip(missing, answers, strict=True))
        read = {query: rows for query, rows in found.items() if not isinstance(rows, Exception)}
        self._cache |= {(tenant_id, query): (rows, now) for query, rows in read.items()}
        unavailable = {
            query for query, answer in found.items() if isinstance(answer, Throttled | Unavailable | TimeoutError)
        }
        return cached | read, unavailable

    async def _read(self, tenant_id: UUID, query: Query, deadline: float) -> Rows | M365Error | TimeoutError:
        try:
            async with self._exchange.before(deadline):
                return await self._exchange.invoke(tenant_id, query.cmdlet, **_parameters(query))
        except Truncated as error:
            log.warning("settings.truncated", tenant_id=tenant_id, cmdlet=query.cmdlet, rows=len(error.records))
            return error.records
        except (M365Error, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            log.warning("settings.read_failed", tenant_id=tenant_id, cmdlet=query.cmdlet, error=reason)
            return error


def _parameters(query: Query) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {name: now - value if isinstance(value, timedelta) else value for name, value in query.parameters}


@dataclass(frozen=True, slots=True)
class _Answered:
    """A watch with Microsoft's parsed answer, and the settings that are needed to explain it."""

    watch: Watch
    result: Result
    needed: frozenset[Query]


def _answered(watch: Watch) -> _Answered:
    result = read_result(watch.result or {})
    return _Answered(watch, result, needed_queries(result, watch.message, watch.recipient))


def _verdict(answered: _Answered, settings: Mapping[Query, Rows], blocks: Sequence[AppliedBlock]) -> VerdictReady:
    watch, result = answered.watch, answered.result
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
        settings_read=settings.keys() == answered.needed,
        read_at=datetime.now(UTC),
    )
