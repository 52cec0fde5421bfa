"""The Tenant Allow/Block List behind its four cmdlets."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simulator import DEFAULT_APP

NEW, GET = "New-TenantAllowBlockListItems", "Get-TenantAllowBlockListItems"
SET, REMOVE = "Set-TenantAllowBlockListItems", "Remove-TenantAllowBlockListItems"
BAD = "bad@evil.example"


async def test_a_block_entry_is_made_and_read(exchange: Any, control: Any) -> None:
    """The row has what was asked for, does not echo the list type, and expires after 30 days."""
    (made,) = await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD], Notes="case 7")
    (read,) = await exchange.rows(GET, ListType="Sender", Entry=BAD.upper())

    assert made == read
    assert (made["Value"], made["Action"], made["Notes"]) == (BAD, "Block", "case 7")
    assert (made["SubmissionID"], made["ListSubType"], made["ModifiedBy"]) == ("Non-Submission", "Tenant", DEFAULT_APP)
    assert "ListType" not in made
    days = datetime.fromisoformat(made["ExpirationDate"]) - datetime.fromisoformat(made["CreatedDateTime"])
    assert days == timedelta(days=30)
    (entry,) = (await control.ledger())["tenant_blocks"]
    assert (entry["list_type"], entry["value"], entry["action"], entry["app"]) == ("Sender", BAD, "Block", DEFAULT_APP)
    assert entry["answer"] == {"status": 200, "outcome": "sent"}


async def test_type_annotations_travel_beside_properties(exchange: Any) -> None:
    """A client has to ignore the sidecars and one mangled name."""
    answer = await exchange.invoke(NEW, ListType="Sender", Block=True, Entries=[BAD])

    (row,) = answer.body["value"]
    assert row["ExpirationDate@data.type"] == "System.DateTime"
    assert row["SysManaged@data.type"] == "System.Boolean"
    assert "LastUsedDate(DateTime])" in row
    assert answer.body["@adminapi.warnings"] == []


async def test_each_list_type_is_a_list_of_its_own(exchange: Any) -> None:
    """The same domain may be blocked as sender and as URL."""
    await exchange.rows(NEW, ListType="Sender", Block=True, Entries=["evil.example"])
    await exchange.rows(NEW, ListType="Url", Block=True, Entries=["evil.example"])
    await exchange.rows(NEW, ListType="FileHash", Block=True, Entries=["a" * 64])
    await exchange.rows(NEW, ListType="IP", Block=True, Entries=["2001:db8::/32"])

    for list_type in ("Sender", "Url", "FileHash", "IP"):
        assert len(await exchange.rows(GET, ListType=list_type)) == 1


@pytest.mark.parametrize("again", [BAD, BAD.upper()])
async def test_a_duplicate_is_refused(exchange: Any, control: Any, again: str) -> None:
    """A value is in the list once, whatever its case, and the refusal changes nothing."""
    await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD])

    refused = await exchange.invoke(NEW, ListType="Sender", Block=True, Entries=["new@evil.example", again])

    assert refused.status == 400
    assert refused.body["error"]["message"] == "Invalid Operation"
    assert refused.reason.startswith("Duplicate value")
    assert refused.body["error"]["details"][0]["message"].endswith(refused.reason)
    assert (await control.ledger())["counts"]["tenant_blocks"] == 1


async def test_output_json_adds_what_can_be_added(exchange: Any) -> None:
    """With OutputJson one bad entry does not stop the others."""
    rows = await exchange.rows(NEW, ListType="Sender", Block=True, OutputJson=True, Entries=["@", BAD, BAD])

    assert [bool(row["Error"]) for row in rows] == [True, False, True]
    assert [row["Value"] for row in await exchange.rows(GET, ListType="Sender")] == [BAD]


@pytest.mark.parametrize(
    ("list_type", "value", "valid"),
    [
        ("Sender", "evil.example", True),
        ("Sender", "*.evil.example", True),
        ("Sender", "evil", False),
        ("Sender", "a b@evil.example", False),
        ("Sender", "@evil.example", False),
        ("Url", "evil.example/login*", True),
        ("Url", "~evil.example", True),
        ("Url", "203.0.113.7/path", True),
        ("Url", "https://evil.example", False),
        ("Url", "evil.example:8080", False),
        ("Url", "user@evil.example", False),
        ("Url", "evil.example/" + "a" * 237, True),
        ("Url", "evil.example/" + "a" * 238, False),
        ("FileHash", "A" * 64, True),
        ("FileHash", "a" * 63, False),
        ("FileHash", "g" * 64, False),
        ("IP", "2001:db8::1", True),
        ("IP", "2001:db8::/32", True),
        ("IP", "203.0.113.7", False),
        ("IP", "::/0", False),
    ],
)
async def test_each_list_type_takes_its_own_kind_of_value(
    exchange: Any, list_type: str, value: str, valid: bool
) -> None:
    """Each list type takes its own kind of value."""
    answer = await exchange.invoke(NEW, ListType=list_type, Block=True, Entries=[value])

    assert answer.status == (200 if valid else 400)
    if not valid:
        assert answer.reason.startswith(f"The value '{value}' is not valid")


@pytest.mark.parametrize(
    "parameters",
    [
        {"Block": True, "Entries": [BAD]},
        {"ListType": "Sender", "Entries": [BAD]},
        {"ListType": "Sender", "Block": True, "Allow": True, "Entries": [BAD]},
        {"ListType": "Sender", "Block": False, "Entries": [BAD]},
        {"ListType": "Sender", "Block": True, "Entries": []},
        {"ListType": "Sender", "Block": True, "Entries": [7]},
        {"ListType": "Mailbox", "Block": True, "Entries": [BAD]},
        {"ListType": "Sender", "Block": True, "Entries": [BAD], "Color": "red"},
        {"ListType": "Sender", "Block": True, "Entries": [BAD], "ExpirationDate": "2020-01-01T00:00:00Z"},
        {"ListType": "Sender", "Block": True, "Entries": [BAD], "ExpirationDate": "soon"},
        {"ListType": "Sender", "Block": True, "Entries": [BAD], "RemoveAfter": 45},
        {"ListType": "Sender", "Allow": True, "Entries": [BAD], "RemoveAfter": 30},
        {"ListType": "Sender", "Allow": True, "Entries": [BAD], "NoExpiration": True},
        {
            "ListType": "Sender",
            "Block": True,
            "Entries": [BAD],
            "NoExpiration": True,
            "ExpirationDate": "2099-01-01T00:00:00Z",
        },
    ],
)
async def test_wrong_parameters_are_refused(exchange: Any, control: Any, parameters: dict[str, Any]) -> None:
    """A bad request says why inside the nested error, and has no effect."""
    answer = await exchange.invoke(NEW, **parameters)

    assert (answer.status, answer.code) == (400, "BadRequest")
    assert answer.body["error"]["message"] == "Invalid Operation"
    assert answer.reason
    assert (await control.ledger())["counts"]["tenant_blocks"] == 0


@pytest.mark.parametrize(("action", "limit"), [("Block", "list_block_limit"), ("Allow", "list_allow_limit")])
async def test_a_list_holds_only_so_many_entries(exchange: Any, control: Any, action: str, limit: str) -> None:
    """The limit is per list type and action, and a call that would pass it adds nothing."""
    await control.settings(**{limit: 2})
    await exchange.rows(NEW, ListType="Sender", Entries=["a.example"], **{action: True})

    refused = await exchange.invoke(NEW, ListType="Sender", Entries=["b.example", "c.example"], **{action: True})

    assert refused.status == 400
    assert "limit of 2" in refused.reason
    await exchange.rows(NEW, ListType="Sender", Entries=["b.example"], **{action: True})
    await exchange.rows(NEW, ListType="Url", Entries=["b.example", "c.example"], **{action: True})
    other = "Allow" if action == "Block" else "Block"
    await exchange.rows(NEW, ListType="Sender", Entries=["d.example"], **{other: True})


async def test_an_entry_is_gone_when_it_expires(exchange: Any, control: Any) -> None:
    """An expired entry is not listed, does not count, and its value may be added again."""
    await control.settings(list_block_limit=1)
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD], ExpirationDate=soon)

    await control.advance(24 * 3600)

    assert await exchange.rows(GET, ListType="Sender") == []
    assert (await exchange.invoke(REMOVE, ListType="Sender", Entries=[BAD])).status == 404
    (again,) = await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD], NoExpiration=True)
    assert again["ExpirationDate"] is None
    await control.advance(400 * 24 * 3600)
    assert len(await exchange.rows(GET, ListType="Sender", NoExpiration=True)) == 1


async def test_an_entry_is_changed_and_removed(exchange: Any, control: Any) -> None:
    """Set changes expiry and notes by id or value, Remove takes the entry out; both are in the ledger."""
    (made,) = await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD])

    (changed,) = await exchange.rows(SET, ListType="Sender", Ids=[made["Identity"]], NoExpiration=True, Notes="kept")
    assert (changed["ExpirationDate"], changed["Notes"]) == (None, "kept")
    assert (await exchange.invoke(SET, ListType="Sender", Entries=[BAD], Allow=True)).status == 400
    (removed,) = await exchange.rows(REMOVE, ListType="Sender", Entries=[BAD])
    assert removed["Identity"] == made["Identity"]
    assert await exchange.rows(GET, ListType="Sender") == []
    ledger = await control.ledger()
    assert [entry["notes"] for entry in ledger["changes"]] == ["kept"]
    assert [(entry["scope"], entry["value"]) for entry in ledger["removals"]] == [("tenant", BAD)]


async def test_a_missing_entry_is_not_found_and_nothing_is_removed(exchange: Any) -> None:
    """Remove takes all named entries or none."""
    await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD])

    answer = await exchange.invoke(REMOVE, ListType="Sender", Entries=[BAD, "missing@evil.example"])

    assert (answer.status, answer.code) == (404, "NotFound")
    assert len(await exchange.rows(GET, ListType="Sender")) == 1


async def test_a_list_type_is_matched_by_its_beginning(exchange: Any) -> None:
    """A wrong value when reading gives no rows instead of an error."""
    await exchange.rows(NEW, ListType="send", Block=True, Entries=[BAD])

    assert len(await exchange.rows(GET, ListType="S")) == 1
    assert await exchange.rows(GET, ListType="Mailbox") == []


async def test_entries_are_listed_by_action_and_expiry(exchange: Any) -> None:
    """Get narrows by Block or Allow, and by the latest expiry."""
    await exchange.rows(NEW, ListType="Sender", Block=True, Entries=[BAD])
    await exchange.rows(NEW, ListType="Sender", Allow=True, Entries=["good@fabrikam.example"], RemoveAfter=45)

    assert [row["Value"] for row in await exchange.rows(GET, ListType="Sender", Block=True)] == [BAD]
    (allow,) = await exchange.rows(GET, ListType="Sender", Allow=True)
    assert (allow["RemoveAfter"], allow["ExpirationDate"]) == (45, None)
    late = (datetime.now(UTC) + timedelta(days=31)).isoformat()
    assert [row["Value"] for row in await exchange.rows(GET, ListType="Sender", ExpirationDate=late)] == [BAD]


async def test_only_some_allow_entries_may_stay_for_ever(exchange: Any) -> None:
    """URLs of phishing simulations, which are a subtype of their own, and IP addresses."""
    for_ever = {"Allow": True, "NoExpiration": True}
    simulation = {"ListType": "Url", "ListSubType": "AdvancedDelivery"}
    await exchange.rows(NEW, **simulation, **for_ever, Entries=["simulation.example"])
    await exchange.rows(NEW, ListType="IP", **for_ever, Entries=["2001:db8::1"])
    refused = await exchange.invoke(NEW, ListType="Url", ListSubType="Tenant", **for_ever, Entries=["other.example"])

    assert refused.status == 400
    (row,) = await exchange.rows(GET, **simulation)
    assert (row["Value"], row["ListSubType"], row["ExpirationDate"]) == ("simulation.example", "AdvancedDelivery", None)
    assert await exchange.rows(GET, ListType="Url", ListSubType="Tenant") == []


@pytest.mark.parametrize("named", [{}, {"Ids": ["1"], "Entries": [BAD]}])
async def test_entries_are_named_by_id_or_by_value(exchange: Any, named: dict[str, Any]) -> None:
    """Neither both nor none."""
    for cmdlet in (SET, REMOVE):
        answer = await exchange.invoke(cmdlet, ListType="Sender", **named)
        assert (answer.status, answer.code) == (400, "BadRequest")
