"""Lists of submissions: in pages, filtered, and only as Microsoft documents it."""

from typing import Any
from urllib.parse import urlsplit

import pytest

from simulator.state import DEFAULT_TENANT


async def fill(graph: Any, mail: Any, count: int) -> list[str]:
    """Submit *count* mails and return the ids, newest first."""
    made = [await graph.submit(mail(message_id=f"<{number}@fabrikam.example>")) for number in range(count)]
    return [answer.body["id"] for answer in reversed(made)]


async def test_pages_follow_each_other_without_gap_or_repetition(graph: Any, mail: Any) -> None:
    """Following nextLink gives each submission once, even if others are made meanwhile."""
    ids = await fill(graph, mail, 5)
    page = (await graph.threats("GET", params={"$top": "2", "$count": "true"})).body
    assert page["@odata.count"] == 5
    seen = [row["id"] for row in page["value"]]
    await graph.submit(mail(message_id="<late@fabrikam.example>"))

    while "@odata.nextLink" in page:
        link = urlsplit(page["@odata.nextLink"])
        assert page["@odata.nextLink"].startswith(graph.url)
        answer = await graph.call(
            "GET", f"{link.path}?{link.query}", headers={"Authorization": f"Bearer {graph.bearer}"}
        )
        page = answer.body
        seen += [row["id"] for row in page["value"]]

    assert seen == ids


async def test_the_page_size_holds_when_no_top_is_given(graph: Any, control: Any, mail: Any) -> None:
    """A list is cut even if the client did not ask for it."""
    await control.settings(page_size=2)
    await fill(graph, mail, 3)

    page = (await graph.threats("GET")).body

    assert len(page["value"]) == 2
    assert "@odata.nextLink" in page


async def test_filters_pick_by_source_status_time_and_creator(graph: Any, control: Any, mail: Any) -> None:
    """The documented filters, alone and joined by `and`."""
    first, second = [(await graph.submit(mail(message_id=f"<{number}@fabrikam.example>"))).body for number in range(2)]
    await control.advance(30)
    order = {"user": "anna@contoso.example", "eml": mail(message_id="<3@fabrikam.example>").decode()}
    reported = await control.ask("POST", f"/tenants/{DEFAULT_TENANT}/user-reports", order)
    await control.advance(40)

    async def found(text: str) -> set[str]:
        answer = await graph.threats("GET", params={"$filter": text})
        assert answer.status == 200
        count = await graph.threats("GET", "/$count", params={"$filter": text})
        assert count.body == len(answer.body["value"])
        return {row["id"] for row in answer.body["value"]}

    made = {first["id"], second["id"]}
    assert await found("source eq 'user'") == {reported["id"]}
    assert await found("source eq 'administrator'") == made
    assert await found("status eq 'succeeded'") == made
    assert await found("status eq 'running' and source eq 'user'") == {reported["id"]}
    assert await found("createdBy/email eq 'ANNA@contoso.example'") == {reported["id"]}
    assert await found(f"createdDateTime ge {second['createdDateTime']} and source eq 'administrator'") == {
        second["id"]
    }
    assert await found(f"createdDateTime lt {second['createdDateTime']}") == {first["id"]}
    window = f"createdDateTime ge {first['createdDateTime']} and createdDateTime lt {second['createdDateTime']}"
    assert await found(window) == {first["id"]}


@pytest.mark.parametrize(
    "params",
    [
        {"$filter": "internetMessageId eq '<a@b>'"},
        {"$filter": "source ne 'user'"},
        {"$filter": "source eq 'robot'"},
        {"$filter": "source eq user"},
        {"$filter": "createdDateTime ge '2026-01-01T00:00:00Z'"},
        {"$filter": "createdDateTime ge yesterday"},
        {"$filter": "createdDateTime ge 2026-01-01T00:00:00"},
        {"$filter": "source eq 'user' or source eq 'administrator'"},
        {"$filter": "source eq 'user' and"},
        {"$filter": "nonsense"},
        {"$orderby": "createdDateTime desc"},
        {"$top": "0"},
        {"$top": "many"},
        {"$skipToken": "???"},
    ],
)
async def test_an_undocumented_query_is_refused(graph: Any, params: dict[str, str]) -> None:
    """What Microsoft does not document is not guessed."""
    answer = await graph.threats("GET", params=params)

    assert (answer.status, answer.code) == (400, "BadRequest")
