"""The same report acts once, however often it is sent; another one is another report."""

import asyncio
from typing import Any

import pytest

ANN = {"oid": "5d7a2c39-6a54-4e8a-9a0e-0d3c3d1f2b11", "preferred_username": "Ann@contoso.example"}
ADD_IN = {"app": True, "oid": "c0ffee00-1111-4222-8333-444455556666"}


async def test_ten_simultaneous_requests_make_one_report(running: Any, token: Any, make_mail: Any) -> None:
    """Exactly one of them is new."""
    raw, headers = make_mail(), await token("Reporter", **ANN)
    answers = await asyncio.gather(*(running.send(headers, raw, block_sender=True) for _ in range(10)))

    assert {status for status, _ in answers} == {202}
    assert sorted(answer["repeated"] for _, answer in answers) == [False] + [True] * 9
    assert await running.kept() == {"reports": 1, "blocks": 1, "outbox": 2, "mails": 1}


async def test_twenty_simultaneous_requests_publish_one_event(running: Any, token: Any, make_mail: Any) -> None:
    """Whether they are recorded in one transaction or one after another, one of them is new."""
    headers, raw = await token("Reporter", **ANN), make_mail()
    answers = await asyncio.gather(*(running.send(headers, raw) for _ in range(20)))
    assert sorted(accepted["repeated"] for _, accepted in answers) == [False] + [True] * 19
    assert len({accepted["report_id"] for _, accepted in answers}) == 1
    assert await running.db.pool.fetchval("SELECT count(*) FROM outbox WHERE topic = 'message-reported'") == 1


@pytest.mark.parametrize("other", ["reporter", "word", "mail"])
async def test_another_reporter_category_or_message_makes_another_report(
    running: Any, token: Any, make_mail: Any, other: str
) -> None:
    """A report is who reports which message as what."""
    raw, headers = make_mail(), await token("Reporter", **ADD_IN)
    _, first = await running.send(headers, raw, reporter="ann@contoso.example")
    _, second = await running.send(
        headers,
        make_mail() if other == "mail" else raw,
        reporter="bob@contoso.example" if other == "reporter" else "ann@contoso.example",
        reported_as="junk" if other == "word" else "phishing",
    )

    assert (first["repeated"], second["repeated"]) == (False, False)
    assert first["report_id"] != second["report_id"]


async def test_upper_and_lower_case_in_an_address_make_no_difference(running: Any, token: Any, make_mail: Any) -> None:
    """ANN@contoso.example is ann@contoso.example."""
    raw, headers = make_mail(), await token("Reporter", **ADD_IN)
    _, first = await running.send(headers, raw, reporter="ann@contoso.example")
    _, second = await running.send(headers, raw, reporter="ANN@Contoso.Example")
    assert second == first | {"repeated": True}


DELIVERY = "X-MS-Exchange-Organization-Network-Message-Id: 4c8e3f3a-8d0b-4b6a-1f5d-08dc6b1f2a3"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Subject: Parcel\n\nhello", "Subject: Parcel\n\nhallo"),
        ("Message-ID: <a@x.example>\nSubject: Parcel\n\nhello", "Message-ID: <a@x.example>\nSubject: Card\n\nhello"),
        ("Message-ID: <a@x.example>\n\nhello", "Message-ID: <a@x.example>\n\nhello, see https://l.phish.example"),
        ("Message-ID: <a@x.example>\n\nhello", f"Message-ID: <a@x.example>\n\n{'Confirm your account. ' * 9}"),
        (f"Message-ID: <a@x.example>\n{DELIVERY}1\n\nhello", f"Message-ID: <a@x.example>\n{DELIVERY}2\n\nhello"),
        ("Message-ID: <a@x.example>\n\nhello", "Message-ID: <a@x.example>\nFrom: bank@fabrikam.example\n\nhello"),
    ],
    ids=["bytes without a Message-ID", "subject", "short text", "text", "delivery", "sender"],
)
async def test_another_message_makes_another_report_whatever_its_message_id(
    running: Any, token: Any, first: str, second: str
) -> None:
    """Otherwise a phish with the Message-ID of a harmless message would get the answer that was given for that one."""
    headers = await token("Reporter", **ANN)
    mails = [f"{mail}\n".encode() for mail in (first, second, first)]
    mails = [mail if b"\nFrom:" in mail else b"From: mallory@fabrikam.example\n" + mail for mail in mails]
    one, other, again = [(await running.send(headers, mail))[1] for mail in mails]

    assert (one["repeated"], other["repeated"]) == (False, False)
    assert again == one | {"repeated": True}
