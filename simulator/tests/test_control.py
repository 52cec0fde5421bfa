"""The control routes: settings, tenants, clock, ledger, reset."""

from datetime import datetime
from typing import Any

import pytest

from simulator import DEFAULT_APP, Settings
from simulator.state import DEFAULT_TENANT

OTHER = "0a1b2c3d-0000-4000-8000-000000000002"


async def test_every_setting_can_be_read_and_changed(control: Any) -> None:
    """A change keeps the other settings."""
    await control.settings(verdict_delay_seconds=5)
    await control.settings(page_size=7)

    settings = await control.ask("GET", "/settings")

    assert (settings["verdict_delay_seconds"], settings["page_size"]) == (5, 7)
    assert set(settings) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/settings", {"pages": 1}),
        ("PATCH", "/settings", 7),
        ("POST", "/clock", {"advance_seconds": -1}),
        ("POST", f"/tenants/{DEFAULT_TENANT}/messages", {"user": "anna@contoso.example"}),
        ("POST", f"/tenants/{DEFAULT_TENANT}/messages", {"user": "anna@contoso.example", "eml_base64": "*"}),
        ("POST", f"/tenants/{DEFAULT_TENANT}/messages", {"user": "anna@contoso.example", "eml": "no mail"}),
        ("POST", f"/tenants/{DEFAULT_TENANT}/allow-block-list", {"ListType": "Sender", "Entries": ["a.example"]}),
    ],
)
async def test_a_wrong_order_is_refused(control: Any, method: str, path: str, body: Any) -> None:
    """A misspelled order is a bad request that says why, and nothing changes."""
    before = await control.ask("GET", "/settings"), await control.ask("GET", "/tenants")

    answer = await control.call(method, f"/simulator{path}", body)

    assert answer.status == 400
    assert answer.body["error"]
    assert (await control.ask("GET", "/settings"), await control.ask("GET", "/tenants")) == before


async def test_an_unknown_tenant_is_not_found(control: Any) -> None:
    """There is nothing to read or change."""
    assert (await control.call("GET", f"/simulator/tenants/{OTHER}")).status == 404


async def test_tenants_are_added_and_changed_one_by_one(control: Any, exchange: Any) -> None:
    """A change of one tenant leaves the others alone."""
    await control.ask("POST", "/tenants", {"id": OTHER.upper(), "accepted_domains": ["Fabrikam.example"]})
    await control.ask("PATCH", f"/tenants/{OTHER}", {"name": "Fabrikam"})

    listed = (await control.ask("GET", "/tenants"))["tenants"]

    assert [(tenant["id"], tenant["name"]) for tenant in listed] == [(DEFAULT_TENANT, "Contoso"), (OTHER, "Fabrikam")]
    assert [row["DomainName"] for row in await exchange.rows("Get-AcceptedDomain")] == ["contoso.example"]


async def test_cmdlet_rows_and_verdicts_are_merged_by_name(control: Any) -> None:
    """Naming one cmdlet keeps the rows of the others; null takes one back."""
    await control.tenant(cmdlets={"Get-TransportRule": [{"Name": "a"}]})
    await control.tenant(cmdlets={"Get-InboundConnector": [{"Name": "b"}]}, known_bad_hosts=["Evil.example"])
    await control.tenant(cmdlets={"Get-TransportRule": None})

    tenant = await control.ask("GET", f"/tenants/{DEFAULT_TENANT}")

    assert tenant["cmdlets"] == {"Get-InboundConnector": [{"Name": "b"}]}
    assert tenant["known_bad_hosts"] == ["evil.example"]


async def test_the_clock_only_goes_forward(control: Any) -> None:
    """Advancing moves everything that is timed."""
    before = datetime.fromisoformat((await control.ask("GET", "/clock"))["now"])
    await control.advance(3600)
    after = datetime.fromisoformat((await control.ask("GET", "/clock"))["now"])

    assert 3600 <= (after - before).total_seconds() < 3660


async def test_the_ledger_has_every_submission_with_its_identity(graph: Any, control: Any, mail: Any) -> None:
    """An entry is numbered, timed, and says who submitted what for whom, and what was answered."""
    made = (await graph.submit(mail())).body
    await control.advance(901)
    await graph.submit(mail())
    await graph.submit(mail(), "ben@contoso.example")

    ledger = await control.ledger()

    first = ledger["submissions"][0]
    assert [entry["number"] for entry in ledger["submissions"]] == [1, 2, 3]
    assert first["id"] == made["id"]
    assert (first["tenant"], first["app"]) == (DEFAULT_TENANT, DEFAULT_APP)
    assert (first["internet_message_id"], first["recipient"]) == ("<one@fabrikam.example>", "anna@contoso.example")
    assert (len(first["sha256"]), first["category"], first["form"], first["rule"]) == (
        64,
        "phishing",
        "content",
        "clean",
    )
    assert first["answer"] == {"status": 201, "outcome": "sent"}
    assert datetime.fromisoformat(first["at"]) < datetime.fromisoformat(ledger["submissions"][1]["at"])
    assert (ledger["counts"]["submissions"], ledger["counts"]["submitted_items"]) == (3, 2)
    assert ledger["requests"] == {"entra.token": 1, "graph.emailThreats.create": 3}


async def test_the_ledger_is_read_in_parts(graph: Any, control: Any, mail: Any) -> None:
    """By tenant, and from a number on."""
    await graph.submit(mail())
    await graph.submit(mail(), "ben@contoso.example")

    assert len((await control.ledger("?after=1"))["submissions"]) == 1
    assert len((await control.ledger(f"?tenant={DEFAULT_TENANT}"))["submissions"]) == 2
    assert (await control.ledger(f"?tenant={OTHER}"))["submissions"] == []


async def test_what_a_test_arranges_is_not_in_the_ledger(control: Any, exchange: Any, graph: Any, mail: Any) -> None:
    """What tests put into place by control routes works, and is not in the ledger."""
    tenant = f"/tenants/{DEFAULT_TENANT}"
    entry = {"ListType": "Sender", "Allow": True, "Entries": ["fabrikam.example"]}
    await control.ask("POST", f"{tenant}/allow-block-list", entry)
    await control.ask("PATCH", f"{tenant}/mailboxes/anna@contoso.example", {"blocked": ["evil.example"]})
    await control.ask("POST", f"{tenant}/user-reports", {"user": "anna@contoso.example", "eml": mail().decode()})

    assert [row["Value"] for row in await exchange.rows("Get-TenantAllowBlockListItems", ListType="Sender")] == [
        "fabrikam.example"
    ]
    box = await control.ask("GET", f"{tenant}/mailboxes/anna@contoso.example")
    assert (box["blocked"], box["enabled"], box["messages"]) == (["evil.example"], True, [])
    assert len((await graph.threats("GET")).body["value"]) == 1
    counts = (await control.ledger())["counts"]
    assert set(counts.values()) == {0}


async def test_a_reset_forgets_everything_but_the_keys(control: Any, graph: Any, exchange: Any, mail: Any) -> None:
    """Tokens stay valid, so that services need not be restarted."""
    await graph.submit(mail())
    await exchange.rows("New-TenantAllowBlockListItems", ListType="Sender", Block=True, Entries=["bad@evil.example"])
    await control.settings(page_size=3)
    await control.tenant(name="Changed")
    await control.fault("*", "error", times=None)
    await control.advance(10_000)

    await control.ask("POST", "/reset")

    assert (await control.ask("GET", "/settings"))["page_size"] == 100
    assert (await control.ask("GET", f"/tenants/{DEFAULT_TENANT}"))["name"] == "Contoso"
    assert (await graph.threats("GET")).body["value"] == []
    assert await exchange.rows("Get-TenantAllowBlockListItems", ListType="Sender") == []
    ledger = await control.ledger()
    assert ledger["submissions"] == ledger["tenant_blocks"] == []
    assert (await graph.submit(mail())).status == 201
