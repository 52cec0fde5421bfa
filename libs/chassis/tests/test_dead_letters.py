"""A dead letter is replayed as it was or dropped, once, by whoever may; and in the end it is forgotten."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiokafka import AIOKafkaConsumer

from backstop_contracts import headers_for
from chassis import dead_letters
from chassis.dead_letters import Wanted
from chassis.dead_letters_api import make_router
from chassis.relay import Relay
from chassis.topics import EVENT_BYTES

ODD = [("ce_id", b"\xff\xfe"), ("x", None), ("x", b""), ("a\0b", b"\0")]


async def park(world: Any, **more: Any) -> int:
    """Keep a dead letter; return its id."""
    letter = {
        "topic": "case-updated",
        "topic_id": uuid4(),
        "key": b"key",
        "value": b"no JSON",
        "headers": [("ce_id", b"1")],
        "tenant_id": None,
        "error": "ValidationError",
        "reason": "value: json_invalid",
        **more,
    }
    headers = letter.pop("headers")
    names, values = [name.encode() for name, _ in headers], [value for _, value in headers]
    columns = ", ".join(letter)
    numbers = ", ".join(f"${number}" for number in range(3, len(letter) + 3))
    parked: int = await world.db.pool.fetchval(
        f'INSERT INTO dead_letters (partition, "offset", header_names, header_values, {columns})'
        f" VALUES (0, 7, $1, $2, {numbers}) RETURNING id",
        names,
        values,
        *letter.values(),
    )
    return parked


async def state(world: Any, letter_id: int) -> str:
    """Return the state of a letter."""
    found: str = await world.db.pool.fetchval("SELECT state FROM dead_letters WHERE id = $1", letter_id)
    return found


@asynccontextmanager
async def relaying(world: Any) -> AsyncIterator[None]:
    """Run the relay for the time of a block."""
    relay = Relay(world.db, service="triage", kafka_bootstrap=world.kafka_bootstrap, topic_prefix=world.prefix)
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        await relay.stop()
        await asyncio.wait_for(task, 20)


async def published(world: Any, count: int) -> list[Any]:
    """Return the first *count* records of case-updated."""
    consumer = AIOKafkaConsumer(
        f"{world.prefix}.case-updated", bootstrap_servers=world.kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return [await anext(consumer) for _ in range(count)]
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"key", b"value"), (b"\xff\x00", b"\xff\x00"), (None, b""), (b"", None), (None, None), (b"key", b"x" * 900_000)],
    ids=["plain", "no text", "no key", "a tombstone", "nothing", "large"],
)
async def test_a_replayed_record_is_the_same_byte_for_byte(world: Any, key: bytes | None, value: bytes | None) -> None:
    """Key, value and headers, in their order, with nothing added."""
    letter_id = await park(world, key=key, value=value, headers=ODD)
    async with world.db.transaction() as tx:
        assert await dead_letters.replay(tx, Wanted(), "me", ids=[letter_id]) == [letter_id]
    async with relaying(world):
        (record,) = await published(world, 1)
    assert (record.key, record.value, list(record.headers)) == (key, value, ODD)
    assert await state(world, letter_id) == "replayed"


async def test_letters_of_one_key_are_replayed_in_the_order_in_which_they_were_parked(world: Any) -> None:
    """All of them by one statement, and nothing else."""
    ids = [await park(world, value=str(number).encode()) for number in range(300)]
    other = await park(world, error="KeyError")
    async with world.db.transaction() as tx:
        assert await dead_letters.replay(tx, Wanted(error="ValidationError"), "me") == ids
    async with relaying(world):
        records = await published(world, 300)
    assert [record.value for record in records] == [str(number).encode() for number in range(300)]
    assert await state(world, other) == "unresolved"


async def test_what_is_rolled_back_is_not_replayed(world: Any) -> None:
    """The event and the letter's new state are one transaction."""
    letter_id = await park(world)
    with pytest.raises(ZeroDivisionError):
        async with world.db.transaction() as tx:
            await dead_letters.replay(tx, Wanted(), "me")
            raise ZeroDivisionError
    assert await state(world, letter_id) == "unresolved"
    assert await world.db.pool.fetchval("SELECT count(*) FROM outbox") == 0


async def test_a_letter_is_resolved_once(world: Any) -> None:
    """Whoever comes second changes nothing."""
    replayed, dropped = await park(world), await park(world)
    for _ in range(2):
        async with world.db.transaction() as tx:
            await dead_letters.replay(tx, Wanted(), "me", ids=[replayed])
            await dead_letters.drop(tx, Wanted(), "me", ids=[dropped])
    async with world.db.transaction() as tx:
        assert await dead_letters.drop(tx, Wanted(state=None), "me", ids=[replayed]) == []
        assert await dead_letters.replay(tx, Wanted(state=None), "me", ids=[dropped]) == []
    assert await world.db.pool.fetchval("SELECT count(*) FROM outbox") == 1


async def test_an_event_that_no_topic_would_take_is_not_replayed(world: Any) -> None:
    """It had been published compressed; in the outbox it would hold up its topic for ever."""
    letter_id = await park(world, value=b"x" * EVENT_BYTES)
    async with world.db.transaction() as tx:
        assert await dead_letters.replay(tx, Wanted(), "me") == []
    assert await state(world, letter_id) == "unresolved"


async def test_what_was_parked_and_replayed_after_the_fix_is_handled(world: Any) -> None:
    """The whole way: through the consumer, the table, the outbox, the relay and the consumer again."""
    event = world.event()
    await world.publish(event, headers=[("ce_id", b"1")])
    async with world.consuming(), relaying(world):

        async def parked() -> int | None:
            found: int | None = await world.db.pool.fetchval("SELECT max(id) FROM dead_letters")
            return found

        await world.until(parked)
        # The fix, for want of another version of this program: the header that was missing.
        good = [(name, value.encode()) for name, value in headers_for(event, source="/test").items()]
        await world.db.pool.execute(
            "UPDATE dead_letters SET header_names = $1, header_values = $2",
            [name.encode() for name, _ in good],
            [value for _, value in good],
        )
        async with world.db.transaction() as tx:
            await dead_letters.replay(tx, Wanted(), "me")
        await world.all_seen([event])


async def test_resolved_letters_are_forgotten_after_a_month_and_unresolved_ones_never(world: Any) -> None:
    """However old they are."""
    ids = [await park(world) for _ in range(4)]
    async with world.db.transaction() as tx:
        await dead_letters.replay(tx, Wanted(), "me", ids=ids[:1])
        await dead_letters.drop(tx, Wanted(), "me", ids=ids[1:3])
    await world.db.pool.execute(
        "UPDATE dead_letters SET parked_at = now() - interval '90 days', resolved_at = resolved_at - CASE id"
        " WHEN $1 THEN interval '29 days' ELSE interval '31 days' END",
        ids[2],
    )
    assert await dead_letters.purge(world.db) == 2
    left = await world.db.pool.fetch("SELECT id FROM dead_letters ORDER BY id")
    assert [row["id"] for row in left] == ids[2:]


async def test_admins_see_the_letters_of_their_own_tenant_alone(
    world: Any, call: Any, token: Any, tenant_id: UUID
) -> None:
    """One of another tenant, and one that is no event and so anybody's, are not there for them."""
    mine, other, unreadable = [
        await park(world, tenant_id=tenant, value=b'{"a": 1}') for tenant in (tenant_id, uuid4(), None)
    ]
    client = await call(make_router(world.db))
    for role in ("SecurityReader", "SecurityAdministrator"):
        status, page = await client("GET", "/v1/dead-letters", token(role))
        assert (status, [item["id"] for item in page["items"]]) == (200, [mine])
    admin = token("SecurityAdministrator")
    for hidden in (other, unreadable, 999):
        for method, path in (("GET", ""), ("POST", "/replay"), ("POST", "/drop")):
            status, problem = await client(method, f"/v1/dead-letters/{hidden}{path}", admin)
            assert (status, problem["type"]) == (404, "urn:backstop:problem:unknown-dead-letter")
    assert {await state(world, letter_id) for letter_id in (other, unreadable)} == {"unresolved"}


async def test_a_letters_payload_is_for_a_security_administrator(
    world: Any, call: Any, token: Any, tenant_id: UUID
) -> None:
    """A list never has it; whoever only reads sees why the event was not handled."""
    letter_id = await park(world, tenant_id=tenant_id, value=b'{"note": "eyes only"}')
    client = await call(make_router(world.db))
    _, page = await client("GET", "/v1/dead-letters", token("SecurityAdministrator"))
    assert "eyes only" not in str(page)
    _, letter = await client("GET", f"/v1/dead-letters/{letter_id}", token("SecurityReader"))
    assert (letter["error"], letter["payload"]) == ("ValidationError", None)
    _, letter = await client("GET", f"/v1/dead-letters/{letter_id}", token("SecurityAdministrator"))
    assert letter["payload"] == '{"note": "eyes only"}'


async def test_only_a_security_administrator_acts_and_only_once(
    world: Any, call: Any, token: Any, tenant_id: UUID
) -> None:
    """The second time is a conflict, which says what it was."""
    letter_id = await park(world, tenant_id=tenant_id)
    client = await call(make_router(world.db))
    path = f"/v1/dead-letters/{letter_id}"
    for action in ("replay", "drop"):
        assert (await client("POST", f"{path}/{action}", token("SecurityReader")))[0] == 403
        assert (await client("POST", f"{path}/{action}"))[0] == 401
    admin = token("SecurityAdministrator", oid="0a1b2c3d-0000-4000-8000-0000000000aa")
    assert await client("POST", f"{path}/replay", admin) == (200, {"id": letter_id, "state": "replayed"})
    status, problem = await client("POST", f"{path}/drop", admin)
    assert (status, problem["detail"]) == (409, "The dead letter was replayed already. Nothing was changed.")
    _, letter = await client("GET", path, admin)
    assert letter["resolved_by"] == "0a1b2c3d-0000-4000-8000-0000000000aa"
    _, page = await client("GET", "/v1/dead-letters", admin)
    assert page == {"items": [], "next_cursor": None}


async def test_a_letter_that_others_may_know_no_more_is_replayed_by_an_operator_alone(
    world: Any, call: Any, token: Any, tenant_id: UUID
) -> None:
    """What services remember of an event goes with its case; a letter does not."""
    letter_id = await park(world, tenant_id=tenant_id, parked_at=datetime.now(UTC) - timedelta(days=7, minutes=1))
    client = await call(make_router(world.db))
    status, problem = await client("POST", f"/v1/dead-letters/{letter_id}/replay", token("SecurityAdministrator"))
    assert (status, problem["type"]) == (409, "urn:backstop:problem:dead-letter-too-old")
    async with world.db.transaction() as tx:
        assert await dead_letters.replay(tx, Wanted(), "me", ids=[letter_id], old=True) == [letter_id]


async def test_any_number_of_refusals_at_a_time_holds_up_nobody(world: Any, call: Any, token: Any) -> None:
    """A refusal takes no second connection while it holds one."""
    client = await call(make_router(world.db))
    admin = token("SecurityAdministrator")
    async with asyncio.timeout(5):
        calls = (client("POST", f"/v1/dead-letters/{number}/replay", admin) for number in range(30))
        assert {status for status, _ in await asyncio.gather(*calls)} == {404}


async def test_a_list_is_read_page_by_page_and_filtered(world: Any, call: Any, token: Any, tenant_id: UUID) -> None:
    """`next_cursor` leads through all of them, each once."""
    ids = [await park(world, tenant_id=tenant_id) for _ in range(5)]
    other = await park(world, tenant_id=tenant_id, topic="verdict-ready", error="KeyError")
    client, reader = await call(make_router(world.db)), token("SecurityReader")
    seen, cursor = [], ""
    while cursor is not None:
        _, page = await client("GET", f"/v1/dead-letters?limit=2{cursor and f'&cursor={cursor}'}", reader)
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [*ids, other]
    for query in ("topic=verdict-ready", "error=KeyError"):
        _, page = await client("GET", f"/v1/dead-letters?{query}", reader)
        assert [item["id"] for item in page["items"]] == [other]
    for query in ("cursor=x", "cursor=" + "9" * 19, "limit=0", "state=lost"):
        assert (await client("GET", f"/v1/dead-letters?{query}", reader))[0] == 422
