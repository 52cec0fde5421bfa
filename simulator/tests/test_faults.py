"""Faults to order: what the client meets, and what really happened."""

import asyncio
from typing import Any

import aiohttp
import pytest

from simulator.faults import Fault, Faults
from simulator.tokens import GRAPH

CREATE = "graph.emailThreats.create"
NEW = "New-TenantAllowBlockListItems"


async def test_a_throttle_has_a_retry_after_only_if_ordered(graph: Any, control: Any, mail: Any) -> None:
    """The call has no effect and is counted as throttled."""
    await control.fault(CREATE, "throttle", retry_after=7)
    await control.fault(CREATE, "throttle")

    first, second, third = [await graph.submit(mail()) for _ in range(3)]

    assert [answer.status for answer in (first, second, third)] == [429, 429, 201]
    assert first.headers["Retry-After"] == "7"
    assert "Retry-After" not in second.headers
    ledger = await control.ledger()
    assert (ledger["counts"]["submissions"], ledger["throttled"]) == (1, {CREATE: 2})
    assert (ledger["requests"][CREATE], ledger["answers"][CREATE]) == (3, {"429": 2, "201": 1})


async def test_an_error_has_the_ordered_status(graph: Any, control: Any) -> None:
    """A fault lasts as many calls as were ordered."""
    await control.fault("graph.*", "error", status=502, times=2, code="BadGateway")

    answers = [await graph.threats("GET") for _ in range(3)]

    assert [answer.status for answer in answers] == [502, 502, 200]
    assert answers[0].code == "BadGateway"


async def test_a_refusal_has_the_ordered_code(exchange: Any, control: Any) -> None:
    """Exchange words an ordered refusal in its own shape."""
    await control.fault(f"exchange.{NEW}", "refuse", code="BadRequest", message="Not today.")

    answer = await exchange.invoke(NEW, ListType="Sender", Block=True, Entries=["bad@evil.example"])

    assert (answer.status, answer.reason) == (400, "Not today.")
    assert await exchange.rows("Get-TenantAllowBlockListItems", ListType="Sender") == []


async def test_entra_can_fail_too(client: Any, control: Any) -> None:
    """The token endpoint answers in OAuth's shape."""
    await control.fault("entra.token", "error", status=503, code="temporarily_unavailable")

    answer = await client.token(GRAPH)

    assert (answer.status, answer.body["error"]) == (503, "temporarily_unavailable")
    assert (await client.token(GRAPH)).status == 200


async def test_a_drop_before_the_effect_leaves_nothing(graph: Any, control: Any, mail: Any) -> None:
    """The connection closes without an answer, and nothing was submitted."""
    await control.fault(CREATE, "drop_before_effect")

    with pytest.raises(aiohttp.ClientConnectionError):
        await graph.submit(mail())

    ledger = await control.ledger()
    assert ledger["submissions"] == []
    assert ledger["answers"][CREATE] == {"dropped": 1}
    assert (await graph.submit(mail())).status == 201


async def test_a_drop_after_the_effect_leaves_the_effect(graph: Any, control: Any, mail: Any) -> None:
    """The client hears nothing, but the submission exists and the ledger says what would have been answered."""
    await control.fault(CREATE, "drop_after_effect")

    with pytest.raises(aiohttp.ClientConnectionError):
        await graph.submit(mail())

    (entry,) = (await control.ledger())["submissions"]
    assert entry["answer"] == {"status": 201, "outcome": "dropped"}
    (listed,) = (await graph.threats("GET")).body["value"]
    assert listed["id"] == entry["id"]


async def test_a_block_entry_survives_its_dropped_answer(exchange: Any, control: Any) -> None:
    """A repeated call meets the duplicate."""
    await control.fault("exchange.New-*", "drop_after_effect")
    block = {"ListType": "Sender", "Block": True, "Entries": ["bad@evil.example"]}

    with pytest.raises(aiohttp.ClientConnectionError):
        await exchange.invoke(NEW, **block)

    assert (await exchange.invoke(NEW, **block)).reason.startswith("Duplicate value")
    assert (await control.ledger())["counts"]["tenant_blocks"] == 1


async def test_a_held_answer_comes_late_but_its_effect_at_once(graph: Any, control: Any, mail: Any) -> None:
    """A client that gives up has submitted all the same."""
    await control.fault(CREATE, "timeout", seconds=60)
    call = asyncio.create_task(graph.submit(mail()))

    async with asyncio.timeout(10):
        while not (submissions := (await control.ledger())["submissions"]):
            await asyncio.sleep(0)
    assert submissions[0]["answer"] == {"status": 201, "outcome": "held"}
    assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_held_answer_arrives_in_the_end(graph: Any, control: Any, mail: Any) -> None:
    """A client that waits gets what it asked for."""
    await control.fault(CREATE, "timeout", seconds=0.05)
    loop = asyncio.get_running_loop()
    started = loop.time()

    answer = await graph.submit(mail())

    assert answer.status == 201
    assert loop.time() - started >= 0.05


async def test_orders_are_listed_and_deleted(graph: Any, control: Any) -> None:
    """The list says how often each order was met; deleting ends them all."""
    await control.fault("graph.emailThreats.list", "error", times=None)
    await graph.threats("GET")
    await graph.threats("GET")

    (fault,) = (await control.ask("GET", "/faults"))["faults"]
    assert (fault["taken"], fault["times"]) == (2, None)
    await control.ask("DELETE", "/faults")
    assert (await control.ask("GET", "/faults"))["faults"] == []
    assert (await graph.threats("GET")).status == 200


def drawn(fault: Fault, calls: int) -> list[bool]:
    """Whether each of *calls* met the fault."""
    faults = Faults()
    faults.order([fault])
    return [faults.take("graph.x") is not None for _ in range(calls)]


def test_chance_is_repeatable_and_about_as_ordered() -> None:
    """The same seed draws the same calls; another seed others."""
    first, again, other = [
        drawn(Fault(route="*", kind="error", probability=0.2, times=None, seed=seed), 1000) for seed in (7, 7, 8)
    ]

    assert first == again != other
    assert 150 < sum(first) < 250


def test_times_counts_only_the_calls_that_met_the_fault() -> None:
    """A call that was spared does not use the order up."""
    fault = Fault(route="*", kind="error", probability=0.5, times=3)

    assert sum(drawn(fault, 100)) == 3
    assert fault.spent


def test_the_first_order_that_matches_happens() -> None:
    """Orders are met in their order, each on its own routes."""
    faults = Faults()
    faults.order([Fault(route="exchange.*", kind="error"), Fault(route="*", kind="throttle", times=2)])

    met = [faults.take(route) for route in ("graph.x", "exchange.Get-X", "exchange.Get-X", "exchange.Get-X")]

    assert [fault and fault.kind for fault in met] == ["throttle", "error", "throttle", None]


@pytest.mark.parametrize(
    "order",
    [
        {"route": "*", "kind": "explode"},
        {"route": "*", "kind": "error", "status": 200},
        {"route": "*", "kind": "error", "sometimes": True},
    ],
)
async def test_a_nonsensical_order_is_refused(control: Any, order: dict[str, Any]) -> None:
    """A misspelled fault does not pass silently."""
    assert (await control.call("POST", "/simulator/faults", [order])).status == 400
