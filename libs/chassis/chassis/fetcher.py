"""How records are fetched: with long waits while nothing comes, and past partitions that cannot be read."""

import asyncio
from time import monotonic
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from chassis import topics

log = structlog.get_logger()

FETCH_MS = 5_000
"""Longest time that one fetch waits for records. It ends as soon as there is one."""
CAREFUL_MS = 500
"""Time for the answer to a fetch whose records are there."""
AGAIN_SECONDS = 60
"""Time after which an unreadable partition is tried again: retention may have removed the record."""

Records: TypeAlias = dict[TopicPartition, list[ConsumerRecord]]


class Fetcher(AIOKafkaConsumer):  # type: ignore[misc]
    """
    An aiokafka consumer that polls slowly and pauses a partition at a record that it cannot read.

    FastStream polls every few milliseconds and sleeps in between; with a consumer for each topic, that costs more than
    all the rest of an idle service. aiokafka raises for an unreadable record (a header whose name is not UTF-8) only
    after it has moved past records of other partitions, and the next commit would lose these.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unreadable: dict[TopicPartition, int] = {}
        self._try_again_at = 0.0
        self._moved_past_records = False

    @property
    def unreadable(self) -> dict[TopicPartition, int]:
        """Return this member's partitions that cannot be read on, each with its offset."""
        # A rebalance makes every assignment anew: what came back from another member is not paused.
        aside = self.paused()
        return {place: offset for place, offset in self._unreadable.items() if place in aside}

    async def topic_id(self, topic: str) -> UUID:
        """Return Kafka's id of *topic*. Raises KafkaError."""
        return await topics.topic_id(self._client, topic)

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Records:
        """Return what there is as soon as there is something, or nothing after FETCH_MS."""
        if self._unreadable and monotonic() > self._try_again_at:
            await self._try_again()
        if not self._moved_past_records:
            try:
                found: Records = await super().getmany(
                    *partitions, timeout_ms=max(timeout_ms, FETCH_MS), max_records=max_records
                )
            except topics.UNREADABLE:
                self._moved_past_records = True
            except Exception:
                self._moved_past_records = True
                raise
            else:
                return found
        return await self._read_around(max_records or self._max_poll_records)

    async def _read_around(self, max_records: int) -> Records:
        """Go back to what is committed, and read each partition by itself; set aside those that cannot be read."""
        places = [place for place in self.assignment() if place not in self.paused()]
        for place in places:
            committed = await self.committed(place)
            if committed is None:
                await self.seek_to_beginning(place)
            else:
                self.seek(place, committed)
        share = max(1, max_records // max(1, len(places)))
        outcomes = await asyncio.gather(*(self._read_one(place, share) for place in places), return_exceptions=True)
        found: Records = {}
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome:
                found[place] = outcome
        self._moved_past_records = False
        return found

    async def _read_one(self, place: TopicPartition, max_records: int) -> list[ConsumerRecord]:
        try:
            return await self._read_carefully(place, max_records)
        except topics.UNREADABLE:
            log.debug("partition.unreadable", topic=place.topic, partition=place.partition)
        # The records before the unreadable one were fetched with it.
        records: list[ConsumerRecord] = []
        while len(records) < max_records:
            try:
                following = await self._read_carefully(place, 1)
            except topics.UNREADABLE as error:
                await self._set_aside(place, error)
                break
            if not following:
                break
            records += following
        return records

    async def _read_carefully(self, place: TopicPartition, max_records: int) -> list[ConsumerRecord]:
        found: Records = await super().getmany(place, timeout_ms=CAREFUL_MS, max_records=max_records)
        return found.get(place, [])

    async def _set_aside(self, place: TopicPartition, error: Exception) -> None:
        offset = await self.position(place)
        self.pause(place)
        if self._unreadable.get(place) != offset:
            kind = type(error).__name__
            log.error("record.unreadable", topic=place.topic, partition=place.partition, offset=offset, error=kind)
        self._unreadable[place] = offset
        self._try_again_at = monotonic() + AGAIN_SECONDS

    async def _try_again(self) -> None:
        self._try_again_at = monotonic() + AGAIN_SECONDS
        self._unreadable = self.unreadable
        for place, offset in list(self._unreadable.items()):
            self.resume(place)
            self.seek(place, offset)
            try:
                await self._read_carefully(place, 1)
            except topics.UNREADABLE as error:
                await self._set_aside(place, error)
                continue
            self.seek(place, offset)
            del self._unreadable[place]
