"""Whom a report is from, and whose mailbox it may point at."""

from typing import Any

import pytest

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "Ann@contoso.example"}
ADD_IN = {"app": True, "oid": "c0ffee00-1111-4222-8333-444455556666"}


async def test_a_person_can_only_report_for_themselves(running: Any, token: Any, make_mail: Any) -> None:
    """Naming oneself is allowed, in upper or lower case; naming somebody else is refused, and nothing is kept."""
    headers = await token("Reporter", **ANN)
    status, refused = await running.send(headers, make_mail(), reporter="bob@contoso.example", block_sender=True)
    assert (status, refused["type"]) == (403, "urn:backstop:problem:not-allowed")
    assert set((await running.kept()).values()) == {0}

    status, _ = await running.send(headers, make_mail(), reporter="ANN@contoso.example")
    assert status == 202


@pytest.mark.parametrize("name", [None, "Ann of Accounts"])
async def test_a_person_whose_token_has_no_address_cannot_report(
    running: Any, token: Any, make_mail: Any, name: str | None
) -> None:
    """An address in the request does not replace it."""
    headers = await token("Reporter", oid=ANN["oid"], claims={"preferred_username": name})
    status, refused = await running.send(headers, make_mail(), reporter="ann@contoso.example")
    assert status == 403
    assert "preferred_username" in refused["detail"]
    assert set((await running.kept()).values()) == {0}


async def test_a_person_can_only_point_at_their_own_mailbox(running: Any, token: Any, make_mail: Any) -> None:
    """Microsoft is never led to a message in somebody else's mailbox; one's own is named by its object id."""
    headers = await token("Reporter", **ANN)
    place = {"user_id": "bob@contoso.example", "message_id": "AAMk="}
    status, _ = await running.send(headers, make_mail(), mailbox_message=place)
    assert status == 403
    assert set((await running.kept()).values()) == {0}

    status, _ = await running.send(headers, make_mail(), mailbox_message=place | {"user_id": "ANN@contoso.example"})
    ((_, _, _, reported),) = await running.outbox()
    assert (status, reported.mailbox_message.user_id) == (202, ANN["oid"])


async def test_an_application_must_name_the_reporter(running: Any, token: Any, make_mail: Any) -> None:
    """Without a reporter its report is refused; with one, the block is for that address."""
    headers = await token("Reporter", **ADD_IN)
    status, refused = await running.send(headers, make_mail(), block_sender=True)
    assert (status, refused["type"]) == (422, "urn:backstop:problem:missing-reporter")
    assert set((await running.kept()).values()) == {0}

    status, _ = await running.send(headers, make_mail(), block_sender=True, reporter="Ann@contoso.example")
    _, (_, _, _, requested) = await running.outbox()
    assert (status, requested.block.mailbox) == (202, "ann@contoso.example")
    assert requested.requested_by.model_dump() == {"kind": "app", "id": ADD_IN["oid"], "name": None}
