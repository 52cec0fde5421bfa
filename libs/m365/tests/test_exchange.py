"""A cmdlet is sent the way Exchange expects it, and what comes back is told plainly."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from time import monotonic
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import pytest
import structlog
from aiohttp import web

from m365 import Exchange, Refused, Throttled, Tokens, Truncated, Unauthorised, Unavailable, hashtable

TENANT = UUID("11111111-1111-4111-8111-111111111111")
OTHER_TENANT = UUID("22222222-2222-4222-8222-222222222222")
OPAQUE = {"code": "BadRequest", "message": "Invalid Operation"}


class Colour(StrEnum):
    """Any enum."""

    RED = "Red"


def parameters(microsoft: Any) -> dict[str, Any]:
    """Tell what the last cmdlet was given."""
    found: dict[str, Any] = orjson.loads(microsoft.bodies[-1])["CmdletInput"]["Parameters"]
    return found


async def test_a_cmdlet_is_posted_to_the_tenants_own_mailbox(microsoft: Any, exchange: Exchange) -> None:
    """The path names the tenant, and the anchor leads to its system mailbox."""
    microsoft.answers(200, {"value": [{"Name": "x"}]})

    assert await exchange.invoke(TENANT, "Get-Thing", Name="x") == [{"Name": "x"}]

    [request] = microsoft.requests
    assert (request.method, request.raw_path) == ("POST", f"/adminapi/beta/{TENANT}/InvokeCommand")
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"
    assert request.headers["Prefer"] == "odata.maxpagesize=1000"
    assert request.headers["X-CmdletName"] == "Get-Thing"
    assert request.headers["X-AnchorMailbox"] == (f"APP:SystemMailbox{{bb558c35-97f1-4cb9-8ff7-d53741dc928c}}@{TENANT}")
    assert orjson.loads(microsoft.bodies[0]) == {
        "CmdletInput": {"CmdletName": "Get-Thing", "Parameters": {"Name": "x"}}
    }
    assert [form["scope"] for form in microsoft.forms] == ["https://outlook.office365.com/.default"]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (True, True),
        (7, 7),
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        (frozenset({"a"}), ["a"]),
        ([], []),
        (datetime(2026, 3, 1, 12, 0, 0, 999, tzinfo=timezone(timedelta(hours=2))), "2026-03-01T10:00:00Z"),
        ([datetime(2026, 3, 1, tzinfo=UTC)], ["2026-03-01T00:00:00Z"]),
        (Colour.RED, "Red"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (
            hashtable(add=["a"], remove=("b", "c")),
            {"@odata.type": "#Exchange.GenericHashTable", "Add": ["a"], "Remove": ["b", "c"]},
        ),
        (hashtable(add={"a"}), {"@odata.type": "#Exchange.GenericHashTable", "Add": ["a"]}),
        (hashtable(), {"@odata.type": "#Exchange.GenericHashTable"}),
    ],
)
async def test_a_parameter_is_sent_as_powershell_means_it(
    microsoft: Any, exchange: Exchange, value: Any, sent: Any
) -> None:
    """Switches, lists, times in UTC, changes to a property."""
    await exchange.invoke(TENANT, "Set-Thing", Value=value)

    assert parameters(microsoft) == {"Value": sent}


async def test_a_parameter_that_is_none_is_not_given(microsoft: Any, exchange: Exchange) -> None:
    """Exchange keeps its own default."""
    await exchange.invoke(TENANT, "New-Thing", Name="x", Notes=None)

    assert parameters(microsoft) == {"Name": "x"}


async def test_a_parameter_may_have_any_name(microsoft: Any, exchange: Exchange) -> None:
    """Even those of our own arguments."""
    await exchange.invoke(TENANT, "New-Thing", cmdlet="x", tenant_id="y", self="z")

    assert parameters(microsoft) == {"cmdlet": "x", "tenant_id": "y", "self": "z"}


async def test_a_time_without_a_zone_is_not_sent(microsoft: Any, exchange: Exchange) -> None:
    """Exchange would guess the zone, and an entry would expire at another hour."""
    with pytest.raises(ValueError, match="time zone"):
        await exchange.invoke(TENANT, "New-Thing", At=datetime(2026, 3, 1))  # noqa: DTZ001 - the point

    assert microsoft.requests == []


@pytest.mark.parametrize(
    "name", ["Get-Thing; Remove-Thing", "GetThing", "get-Thing", "Get-Thing\n", "", "../Get-Thing"]
)
async def test_only_the_name_of_a_cmdlet_is_sent(microsoft: Any, exchange: Exchange, name: str) -> None:
    """Verb and noun, nothing else."""
    with pytest.raises(ValueError, match="not the name"):
        await exchange.invoke(TENANT, name)

    assert microsoft.requests == []


async def test_type_annotations_of_exchange_are_left_out_of_the_row(microsoft: Any, exchange: Exchange) -> None:
    """Exchange puts them beside the values, and one of them under a broken name."""
    microsoft.answers(
        200,
        {
            "@odata.context": "x",
            "value": [
                {
                    "Value": "bad.example",
                    "ExpirationDate": "2026-03-01T00:00:00Z",
                    "ExpirationDate@data.type": "System.DateTime",
                    "Entries@odata.type": "#Collection(String)",
                    "LastUsedDate": None,
                    "LastUsedDate(DateTime])": "x",
                }
            ],
        },
    )

    assert await exchange.invoke(TENANT, "Get-Thing") == [
        {"Value": "bad.example", "ExpirationDate": "2026-03-01T00:00:00Z", "LastUsedDate": None}
    ]


@pytest.mark.parametrize("answer", [None, {}, {"value": None}, {"value": []}])
async def test_a_cmdlet_may_return_nothing(microsoft: Any, exchange: Exchange, answer: Any) -> None:
    """An empty answer is an empty list."""
    microsoft.answers(200, answer)

    records = await exchange.invoke(TENANT, "Remove-Thing")

    assert (records, records.warnings) == ([], ())


async def test_warnings_are_returned_and_counted_in_the_log(microsoft: Any, exchange: Exchange) -> None:
    """Their words may name people, so the log has none of them."""
    microsoft.answers(200, {"value": [{"Name": "x"}], "@adminapi.warnings": ["user@contoso.example is odd."]})

    with structlog.testing.capture_logs() as logs:
        records = await exchange.invoke(TENANT, "Get-Thing")

    assert records.warnings == ("user@contoso.example is odd.",)
    assert logs == [
        {
            "event": "cmdlet.warned",
            "log_level": "warning",
            "tenant_id": str(TENANT),
            "cmdlet": "Get-Thing",
            "warnings": 1,
        }
    ]


async def test_an_incomplete_answer_is_an_error_that_keeps_the_records_that_came(
    microsoft: Any, exchange: Exchange
) -> None:
    """A link to more records is an error, which keeps those that came."""
    microsoft.answers(
        200, {"value": [{"Name": "x", "Name@data.type": "y"}], "@odata.nextLink": f"{microsoft.url}/more"}
    )

    with pytest.raises(Truncated) as caught:
        await exchange.invoke(TENANT, "Get-Thing")

    assert caught.value.records == [{"Name": "x"}]
    assert len(microsoft.requests) == 1


INNER = {"internalexception": {"message": "Inner words.", "type": "Microsoft.Exchange.InnerException"}}
DETAILS = [{"code": "Client", "message": "|Microsoft.Exchange.DetailException|Detail words."}]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        ({**OPAQUE, "details": DETAILS, "innererror": INNER}, "InnerException", "Inner words."),
        (
            {**OPAQUE, "details": DETAILS, "innererror": {"message": "Invalid Operation"}},
            "DetailException",
            "Detail words.",
        ),
        ({**OPAQUE, "details": [{"message": "Plain | words."}]}, "BadRequest", "Plain | words."),
        ({**OPAQUE, "details": []}, "BadRequest", "Invalid Operation"),
        ({**OPAQUE, "details": None, "innererror": None}, "BadRequest", "Invalid Operation"),
        ({**OPAQUE, "details": "odd", "innererror": ["odd"]}, "BadRequest", "Invalid Operation"),
    ],
)
async def test_an_error_is_unwrapped_to_what_went_wrong(
    microsoft: Any, exchange: Exchange, error: dict[str, Any], code: str, reason: str
) -> None:
    """The outermost message is the same for everything."""
    microsoft.answers(400, {"error": error})

    with pytest.raises(Refused) as caught:
        await exchange.invoke(TENANT, "New-Thing", Name="x")

    assert (caught.value.status, caught.value.code, caught.value.reason) == (400, code, reason)
    assert str(caught.value).startswith(f"POST /adminapi/beta/{{tenant}}/InvokeCommand New-Thing: 400 {code} (")


@pytest.mark.parametrize("body", [b"\0" * 4096, b"", b"<html>", b'{"error": {}}'])
async def test_a_403_without_words_says_what_it_means(microsoft: Any, exchange: Exchange, body: bytes) -> None:
    """A missing role is answered with NUL bytes; an administrator needs to know what to grant."""
    microsoft.answers(403, body=body)

    with pytest.raises(Unauthorised) as caught:
        await exchange.invoke(TENANT, "Get-Thing")

    assert "role" in caught.value.reason
    assert "\0" not in caught.value.reason
    assert len(microsoft.requests) == 1


async def test_after_a_401_a_cmdlet_is_repeated_once_with_a_fresh_token(microsoft: Any, exchange: Exchange) -> None:
    """The refused request changed nothing."""
    await exchange.invoke(TENANT, "Get-Thing")
    microsoft.tokens.clear()
    microsoft.tokens.add("token-that-nobody-has")

    await exchange.invoke(TENANT, "New-Thing")

    assert len(microsoft.forms) == 2
    assert len(microsoft.requests) == 3


async def test_throttling_is_told(microsoft: Any, exchange: Exchange) -> None:
    """Exchange mostly names no time."""
    microsoft.answers(429)

    with pytest.raises(Throttled) as caught:
        await exchange.invoke(TENANT, "Get-Thing")

    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    ("cmdlet", "may_have_happened"),
    [("New-Thing", True), ("Remove-Thing", True), ("Get-Thing", False), ("Export-Thing", False)],
)
async def test_a_cmdlet_without_an_answer_may_have_run(
    microsoft: Any, exchange: Exchange, cmdlet: str, may_have_happened: bool
) -> None:
    """The verb tells whether there is anything to look for."""
    microsoft.does(microsoft.cut)

    with pytest.raises(Unavailable) as caught:
        await exchange.invoke(TENANT, cmdlet)

    assert caught.value.may_have_happened is may_have_happened


async def test_changes_take_turns_in_a_tenant(microsoft: Any, exchange: Exchange) -> None:
    """While one runs, reads and other tenants go on, and further changes wait."""
    release = asyncio.Event()

    async def wait(_: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({})

    microsoft.does(wait)
    changes = [asyncio.create_task(exchange.invoke(TENANT, "New-Thing", Name=str(n))) for n in range(4)]
    while not microsoft.active:
        await asyncio.sleep(0)

    await exchange.invoke(TENANT, "Get-Thing")
    await exchange.invoke(OTHER_TENANT, "New-Thing")
    seen_meanwhile = len(microsoft.requests)
    release.set()
    await asyncio.gather(*changes)
    names = [orjson.loads(body)["CmdletInput"]["Parameters"].get("Name") for body in microsoft.bodies]

    assert seen_meanwhile == 3
    assert names == ["0", None, None, "1", "2", "3"]


async def test_a_failed_change_lets_the_next_one_run(microsoft: Any, exchange: Exchange) -> None:
    """The turn is given back, whatever happens."""
    microsoft.answers(500)

    with pytest.raises(Unavailable):
        await exchange.invoke(TENANT, "New-Thing")

    assert await exchange.invoke(TENANT, "New-Thing") == []


async def test_changes_keep_a_distance_if_told_to(
    microsoft: Any, session: aiohttp.ClientSession, tokens: Tokens
) -> None:
    """Each begins at least that long after the one before."""
    exchange = Exchange(tokens, session, base_url=microsoft.url, write_interval=0.1)
    begun = monotonic()

    await asyncio.gather(*(exchange.invoke(TENANT, "New-Thing") for _ in range(3)))

    assert monotonic() - begun >= 0.2
    assert len(microsoft.requests) == 3
