"""Reading cases over HTTP: roles, tenants, filters and pages."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import Folder


async def test_an_unknown_filter_is_rejected(world: Any, tenant_id: UUID, client: Any, token: Any) -> None:
    """A filter with a typo would otherwise list every case."""
    await world.open_case(tenant_id)
    status, problem = await client("GET", "/v1/cases?stauts=open&limit=5", token("SecurityReader"))

    assert (status, problem["errors"]) == (422, [{"where": "query.stauts", "what": "Unknown parameter"}])


async def test_a_case_of_another_tenant_is_as_unknown_as_any_other_id(world: Any, client: Any, token: Any) -> None:
    """The answers reveal nothing about other tenants."""
    foreign = await world.open_case(uuid4())
    for case_id in (foreign, uuid4()):
        assert (await client("GET", f"/v1/cases/{case_id}", token("SecurityReader")))[0] == 404
        decision = {"action": "dismiss"}
        assert (await client("POST", f"/v1/cases/{case_id}/decisions", token("SecurityAdministrator"), json=decision))[
            0
        ] == 404
    assert (await client("GET", "/v1/cases/not-a-uuid", token("SecurityReader")))[0] == 422


async def test_roles_decide_who_reads_and_who_decides(world: Any, tenant_id: UUID, client: Any, token: Any) -> None:
    """Readers read, administrators decide, reporters do neither."""
    case_id = await world.open_case(tenant_id)
    assert (await client("GET", "/v1/cases"))[0] == 401
    assert (await client("GET", "/v1/cases", token("Reporter")))[0] == 403
    assert (await client("GET", "/v1/cases", token("SecurityReader")))[0] == 200
    path = f"/v1/cases/{case_id}/decisions"
    assert (await client("POST", path, token("SecurityReader"), json={"action": "dismiss"}))[0] == 403


async def test_pages_list_every_case_once_newest_first(world: Any, tenant_id: UUID, client: Any, token: Any) -> None:
    """`next_cursor` leads to the next page."""
    opened = [str(await world.open_case(tenant_id)) for _ in range(7)]
    listed: list[str] = []
    cursor = ""
    while cursor is not None:
        status, page = await client("GET", f"/v1/cases?limit=3&cursor={cursor}", token("SecurityReader"))
        assert status == 200
        listed += [item["case_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert listed == opened[::-1]


async def test_filters_narrow_the_list(world: Any, tenant_id: UUID, client: Any, token: Any) -> None:
    """By status, sender, domain, folder, conclusion and what users reported."""
    odd = str(
        await world.open_case(
            tenant_id, sender="odd@adatum.example", sender_domain="adatum.example", folder=Folder.JUNK
        )
    )
    await world.open_case(tenant_id)
    for query in ("sender=ODD@adatum.example", "sender_domain=adatum.example", "folder=junk"):
        _, page = await client("GET", f"/v1/cases?{query}", token("SecurityReader"))
        assert [item["case_id"] for item in page["items"]] == [odd], query
    for query, count in (
        ("status=open", 2),
        ("status=resolved", 0),
        ("reported_as=phishing", 2),
        ("conclusion=threat", 0),
    ):
        _, page = await client("GET", f"/v1/cases?{query}", token("SecurityReader"))
        assert len(page["items"]) == count, query


@pytest.mark.parametrize(
    "query", ["cursor=nonsense", "cursor=MjAyNg==", "cursor=eCB5", "limit=0", "limit=201", "status=odd", "limit=x"]
)
async def test_a_malformed_query_is_rejected(client: Any, token: Any, query: str) -> None:
    """It is an error, not an empty list."""
    assert (await client("GET", f"/v1/cases?{query}", token("SecurityReader")))[0] == 422
