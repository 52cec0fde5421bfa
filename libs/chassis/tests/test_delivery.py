"""Topics do not hold each other up, PostgreSQL is waited for, and a handler that does not fit is found at the start."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import structlog
from faststream import AckPolicy, Context
from faststream.kafka import KafkaRouter

from backstop_contracts import CaseExpired, CaseUpdated, Event, VerdictReady
from chassis.subscribing import BATCH, Received, Tx, WiringError


def expired(world: Any) -> CaseExpired:
    """Make an event of another topic."""
    now = datetime.now(UTC)
    return CaseExpired(tenant_id=world.tenant_id, case_id=uuid4(), report_count=1, last_active_at=now, expired_at=now)


async def test_a_topic_that_is_halted_holds_up_no_other(world: Any) -> None:
    """Its group is its own, and so is what it has in hand."""
    router = KafkaRouter()
    handled: set[UUID] = set()

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(_updates: list[Received[CaseUpdated]], _tx: Tx) -> None:
        raise ZeroDivisionError

    @router.subscriber("case-expired", **BATCH)
    async def on_case_expired(expired: list[Received[CaseExpired]], _tx: Tx) -> None:
        handled.update(received.event.case_id for received in expired)

    for _ in range(7):
        await world.publish(world.event(), partition=0)
    async with world.consuming(router, halt_after=5) as consumer:

        async def is_halted() -> bool:
            return consumer.halted == {f"{world.prefix}.case-updated"}

        await world.until(is_halted)
        event = expired(world)
        await world.publish(event)

        async def is_handled() -> bool:
            return event.case_id in handled

        await world.until(is_handled)
    assert consumer.topics == [f"{world.prefix}.case-expired", f"{world.prefix}.case-updated"]


async def test_a_topic_that_waits_holds_up_no_other(world: Any) -> None:
    """What one handler waits for need not be what another needs."""
    router, handled, open_again = KafkaRouter(), asyncio.Event(), asyncio.Event()

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(_updates: list[Received[CaseUpdated]], _tx: Tx) -> None:
        if not open_again.is_set():
            raise asyncpg.DeadlockDetectedError

    @router.subscriber("case-expired", **BATCH)
    async def on_case_expired(_expired: list[Received[CaseExpired]], _tx: Tx) -> None:
        handled.set()

    async with world.consuming(router) as consumer:
        await world.publish(world.event())

        async def waits() -> bool:
            return consumer.waiting == {f"{world.prefix}.case-updated"}

        await world.until(waits)
        await world.publish(expired(world))
        await asyncio.wait_for(handled.wait(), 30)
        assert await waits()
        open_again.set()

        async def goes_on() -> bool:
            return not consumer.waiting

        await world.until(goes_on)
    assert await world.db.pool.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_a_consumer_that_stops_while_postgresql_is_away_leaves_the_batch_to_the_next(
    world: Any, database: str
) -> None:
    """It stops at once, keeps nothing, parks nothing; the next one handles all of it, once."""
    admin = await asyncpg.connect(database.rpartition("/")[0] + "/postgres")
    name = database.rpartition("/")[2]
    events = [world.event() for _ in range(30)]
    async with world.consuming() as consumer:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        for event in events:
            await world.publish(event)

        async def waits() -> bool:
            return bool(consumer.waiting)

        await world.until(waits)
        async with asyncio.timeout(5):
            await consumer.stop()
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await admin.close()
    async with world.consuming():
        await world.all_seen(events)
    assert await world.db.pool.fetchval("SELECT max(seq) FROM seen") == len(events)
    assert await world.db.pool.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_a_fault_of_the_middleware_is_logged_and_the_batch_comes_again(world: Any) -> None:
    """Not a thousand times a second: there is a pause before."""
    await world.publish(world.event(), value=b"no JSON", partition=0)
    after = world.event()
    await world.publish(after, partition=0)
    await world.db.pool.execute("ALTER TABLE dead_letters RENAME TO elsewhere")
    with structlog.testing.capture_logs() as logs:
        async with world.consuming():

            async def failed_twice() -> bool:
                return sum(entry["event"] == "batch.failed" for entry in logs) == 2

            started = asyncio.get_running_loop().time()
            await world.until(failed_twice)
            assert asyncio.get_running_loop().time() - started > 1
            await world.db.pool.execute("ALTER TABLE elsewhere RENAME TO dead_letters")
            await world.all_seen([after])
    assert await world.db.pool.fetchval("SELECT count(*) FROM dead_letters") == 1


async def fits(_events: list[Received[CaseUpdated]], _tx: Tx) -> None:
    """Fit."""


async def takes_bare_events(_events: list[CaseUpdated], _tx: Tx) -> None:
    """Take what is not handed over."""


async def takes_another_event(_events: list[Received[VerdictReady]], _tx: Tx) -> None:
    """Take the events of another topic."""


async def takes_any_event(_events: list[Received[Event]], _tx: Tx) -> None:
    """Take too much."""


async def asks_for_what_nobody_has(
    _events: list[Received[CaseUpdated]], _tx: Tx, _policy: Annotated[str, Context("policy")]
) -> None:
    """Ask for a policy."""


async def forgets_an_annotation(_events: list[Received[CaseUpdated]], tx) -> None:  # type: ignore[no-untyped-def]
    """Forget what `tx` is: FastStream would unpack the batch into both parameters."""


@pytest.mark.parametrize(
    "handler",
    [takes_bare_events, takes_another_event, takes_any_event, asks_for_what_nobody_has, forgets_an_annotation],
)
async def test_a_handler_that_does_not_fit_is_found_before_any_event(world: Any, handler: Any) -> None:
    """It would fail on each event, and park them all."""
    router = KafkaRouter()
    router.subscriber("case-updated", **BATCH)(handler)
    with pytest.raises(WiringError, match="case-updated"):
        world.consumer(router)


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("case-updated", {**BATCH, "ack_policy": AckPolicy.ACK}),
        ("case-updated", {**BATCH, "no_reply": False}),
        ("case-updated", {**BATCH, "batch": False}),
        ("case-updatde", BATCH),
    ],
)
async def test_a_subscriber_that_would_lose_events_is_found_before_any_event(
    world: Any, topic: str, options: Any
) -> None:
    """FastStream itself takes all of these."""
    router = KafkaRouter()
    router.subscriber(topic, **options)(fits)
    with pytest.raises(WiringError, match=topic):
        world.consumer(router)


async def test_a_topic_has_one_handler(world: Any) -> None:
    """Two would share a group, and each event would reach one of them."""
    router = KafkaRouter()
    for _ in range(2):
        router.subscriber("case-updated", **BATCH)(fits)
    with pytest.raises(WiringError, match="case-updated"):
        world.consumer(router)


async def test_a_handler_gets_what_the_service_provides(world: Any) -> None:
    """By name, beside its events and its transaction."""
    router, told = KafkaRouter(), asyncio.Event()

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(
        _updates: list[Received[CaseUpdated]], _tx: Tx, policy: Annotated[str, Context()]
    ) -> None:
        if policy == "careful":
            told.set()

    async with world.consuming(router, context={"policy": "careful"}):
        await world.publish(world.event())
        await asyncio.wait_for(told.wait(), 30)


async def test_a_reply_to_header_makes_nobody_answer(world: Any) -> None:
    """FastStream would publish what a handler returns wherever the sender likes; there, nothing even exists."""
    router, handled = KafkaRouter(), asyncio.Event()

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(_updates: list[Received[CaseUpdated]], _tx: Tx) -> str:
        handled.set()
        return "answer"

    event = world.event()
    with structlog.testing.capture_logs() as logs:
        async with world.consuming(router):
            headers = [*world._record(event)["headers"], ("reply_to", f"{world.prefix}.case-expired".encode())]
            await world.publish(event, headers=headers)
            await asyncio.wait_for(handled.wait(), 30)
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")]
