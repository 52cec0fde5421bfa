"""Who may read the status of a report."""

from typing import Any
from uuid import UUID

import pytest

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "ann@contoso.example"}


@pytest.mark.parametrize(
    ("roles", "who", "status"),
    [
        (["Reporter"], ANN, 200),
        (["SecurityReader"], {}, 200),
        (["SecurityAdministrator"], {}, 200),
        (["Reporter"], {}, 404),
        (["Reporter"], {"preferred_username": "ann@contoso.example"}, 404),
        (["Reporter"], {"app": True}, 404),
        ([], ANN, 403),
        (["Unheard.Of"], ANN, 403),
    ],
)
async def test_a_report_is_visible_to_its_sender_and_to_security_staff(
    running: Any, token: Any, make_mail: Any, roles: list[str], who: dict[str, Any], status: int
) -> None:
    """For anybody else it does not exist, whatever name is in their token."""
    report_id = await running.report(await token("Reporter", **ANN), make_mail())
    async with running.client.get(f"/v1/reports/{report_id}", headers=await token(*roles, **who)) as answer:
        assert answer.status == status


async def test_a_report_of_another_tenant_does_not_exist(
    running: Any, token: Any, make_mail: Any, other_tenant: UUID
) -> None:
    """Neither for security staff nor for the same object id of another tenant."""
    report_id = await running.report(await token("Reporter", **ANN), make_mail())
    for roles, who in ((["SecurityAdministrator"], {}), (["Reporter"], ANN)):
        headers = await token(*roles, tenant=str(other_tenant), **who)
        async with running.client.get(f"/v1/reports/{report_id}", headers=headers) as answer:
            assert answer.status == 404


async def test_everybody_who_sent_the_same_report_can_read_it(running: Any, token: Any, make_mail: Any) -> None:
    """An add-in sends it first, then the person does."""
    raw, add_in, ann = make_mail(), await token("Reporter", app=True), await token("Reporter", **ANN)
    report_id = await running.report(add_in, raw, reporter="ann@contoso.example")
    for _ in range(2):
        assert await running.report(ann, raw) == report_id

    assert await running.read(add_in, report_id) == await running.read(ann, report_id)
    assert len(await running.db.pool.fetchval("SELECT filed_by FROM reports")) == 2


@pytest.mark.parametrize(("path", "status"), [("99999999-9999-4999-8999-999999999999", 404), ("17", 422)])
async def test_an_unknown_or_malformed_report_id_is_rejected(running: Any, token: Any, path: str, status: int) -> None:
    """An unknown id is 404, a malformed one 422."""
    async with running.client.get(f"/v1/reports/{path}", headers=await token("SecurityReader")) as answer:
        assert (answer.status, answer.content_type) == (status, "application/problem+json")
