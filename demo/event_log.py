"""Everything that the services tell each other, read from Kafka as a SOC tool would, and kept by case."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from backstop_contracts import (
    EVENTS,
    BlockApplied,
    BlockFailed,
    BlockRemoved,
    BlockRequested,
    CaseExpired,
    CaseStatus,
    CaseUpdated,
    Event,
    MessageReported,
    NotAnEventError,
    ReleaseDecided,
    SubmissionCreated,
    SubmissionFailed,
    SubmissionRequested,
    VerdictReady,
    read_headers,
)


@dataclass
class CaseStory:
    """What is known about one case."""

    case_id: UUID
    status: CaseStatus = CaseStatus.OPEN
    reports: list[UUID] = field(default_factory=list)
    requested: dict[UUID, SubmissionRequested] = field(default_factory=dict)
    created: dict[UUID, SubmissionCreated] = field(default_factory=dict)
    failed: dict[UUID, SubmissionFailed] = field(default_factory=dict)
    verdicts: dict[UUID, VerdictReady] = field(default_factory=dict)
    expired: CaseExpired | None = None

    @property
    def verdict(self) -> VerdictReady | None:
        """The latest verdict."""
        return next(reversed(self.verdicts.values()), None)

    @property
    def has_outcome(self) -> bool:
        """Whether nothing is to be waited for: dismissed, or each submission was judged or refused and triage knows."""
        over = self.verdicts.keys() | self.failed.keys()
        told = bool(self.requested) and self.requested.keys() <= over and self.status is not CaseStatus.SUBMITTED
        return told or self.status is CaseStatus.DISMISSED


@dataclass
class BlockStory:
    """What is known about one wish to block."""

    wanted: BlockRequested | None = None
    applied: BlockApplied | None = None
    failed: BlockFailed | None = None
    removed: BlockRemoved | None = None

    @property
    def outcome(self) -> str | None:
        """What became of the wish so far: removed, applied, failed, or None."""
        return "removed" if self.removed else "applied" if self.applied else "failed" if self.failed else None


class EventLog:
    """Follows all topics from their beginning; *listener* hears of each event once, with its time."""

    def __init__(self, kafka_bootstrap: str, *, prefix: str, listener: Callable[[Event, datetime], None]) -> None:
        self._models = {f"{prefix}.{model.topic()}": model for model in EVENTS}
        self._bootstrap = kafka_bootstrap
        self._listener = listener
        self._seen: set[str] = set()
        self.reports: dict[UUID, MessageReported] = {}
        self.cases: dict[UUID, CaseStory] = {}
        self.case_of: dict[UUID, UUID] = {}
        self.blocks: dict[UUID, BlockStory] = {}
        self.releases: dict[UUID, ReleaseDecided] = {}
        self.times: dict[tuple[str, UUID], datetime] = {}
        self.changed = asyncio.Event()

    async def follow(self) -> None:
        """Read until cancelled; when Kafka was away, from the beginning again."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError):
                await asyncio.sleep(1)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            *self._models, bootstrap_servers=self._bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
        )
        try:
            await consumer.start()
            async for record in consumer:
                model = self._models[record.topic]
                try:
                    envelope = read_headers(record.headers, model)
                    event = model.model_validate_json(record.value or b"")
                except (NotAnEventError, ValidationError):
                    continue  # not ours to judge: whoever should act on it has parked it
                if envelope.id not in self._seen:
                    self._seen.add(envelope.id)
                    self.take(event, envelope.time)
                    self._listener(event, envelope.time)
                    self.changed.set()
        finally:
            await consumer.stop()

    def take(self, event: Event, time: datetime) -> None:  # noqa: C901 - one case per event
        """Keep one event, which must not have been taken before."""
        self.times.setdefault((event.TOPIC, event.subject), time)
        match event:
            case MessageReported():
                self.reports[event.report_id] = event
            case CaseUpdated():
                case = self._case(event.case_id)
                case.status = event.status
                case.reports.extend(event.report_ids)
                self.case_of.update(dict.fromkeys(event.report_ids, event.case_id))
            case SubmissionRequested():
                self._case(event.case_id).requested[event.submission_id] = event
            case SubmissionCreated():
                self._case(event.case_id).created[event.submission_id] = event
            case SubmissionFailed():
                self._case(event.case_id).failed[event.submission_id] = event
            case VerdictReady():
                self._case(event.case_id).verdicts[event.submission_id] = event
            case CaseExpired():
                self._case(event.case_id).expired = event
            case ReleaseDecided():
                self.releases[event.decision_id] = event
            case BlockRequested():
                self._block(event.block.block_id).wanted = event
            case BlockApplied():
                self._block(event.block.block_id).applied = event
            case BlockFailed():
                self._block(event.block.block_id).failed = event
            case BlockRemoved():
                self._block(event.block.block_id).removed = event

    def _case(self, case_id: UUID) -> CaseStory:
        return self.cases.setdefault(case_id, CaseStory(case_id))

    def _block(self, block_id: UUID) -> BlockStory:
        return self.blocks.setdefault(block_id, BlockStory())

    def settled(self, reports: set[UUID]) -> bool:
        """Whether all of *reports* are in cases, and each case and each block has its outcome."""
        return (
            reports <= self.case_of.keys()
            and all(case.has_outcome for case in self.cases.values())
            and all(block.outcome for block in self.blocks.values())
        )
