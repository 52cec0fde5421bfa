"""Microsoft's limits on submissions, and what the client is told."""

from time import monotonic
from typing import Any


async def submit_many(graph: Any, mail: Any, count: int, start: int = 0) -> list[int]:
    """Submit different mails and return the statuses."""
    numbers = range(start, start + count)
    return [(await graph.submit(mail(message_id=f"<{number}@fabrikam.example>"))).status for number in numbers]


async def test_a_tenant_makes_150_submissions_in_15_minutes(graph: Any, control: Any, mail: Any) -> None:
    """The 151st waits until the first is 15 minutes old."""
    begun = monotonic()
    assert set(await submit_many(graph, mail, 150)) == {201}

    refused = await graph.submit(mail(message_id="<over@fabrikam.example>"))

    assert (refused.status, refused.code) == (429, "TooManyRequests")
    assert refused.body["error"]["innerError"]["status"] == "429"
    wait = int(refused.headers["Retry-After"])
    assert 899 - (monotonic() - begun) <= wait <= 900
    await control.advance(wait)
    assert (await graph.submit(mail(message_id="<over@fabrikam.example>"))).status == 201
    ledger = await control.ledger()
    assert (ledger["counts"]["submissions"], ledger["throttled"]) == (151, {"graph.emailThreats.create": 1})


async def test_the_same_item_is_submitted_once_in_15_minutes(graph: Any, control: Any, mail: Any) -> None:
    """The item is the internet message id and the recipient, whatever the content."""
    assert (await graph.submit(mail())).status == 201

    refused = await graph.submit(mail("Other text."), "ANNA@contoso.example")

    assert refused.status == 429
    assert (await graph.submit(mail(), "ben@contoso.example")).status == 201
    await control.advance(int(refused.headers["Retry-After"]))
    assert (await graph.submit(mail())).status == 201


async def test_the_same_item_is_submitted_three_times_a_day(graph: Any, control: Any, mail: Any) -> None:
    """The fourth waits for the first to be a day old."""
    begun = monotonic()
    for _ in range(3):
        assert (await graph.submit(mail())).status == 201
        await control.advance(901)

    refused = await graph.submit(mail())

    assert refused.status == 429
    wait = int(refused.headers["Retry-After"])
    left = 24 * 3600 - 3 * 901
    assert left - (monotonic() - begun) - 1 <= wait <= left
    await control.advance(wait)
    assert (await graph.submit(mail())).status == 201


async def test_a_refused_submission_does_not_count(graph: Any, control: Any, mail: Any) -> None:
    """Only made submissions use the quota up."""
    await control.settings(submissions_per_window=2)
    await graph.submit(mail())
    for _ in range(3):
        assert (await graph.submit(mail())).status == 429

    assert (await graph.submit(mail(message_id="<two@fabrikam.example>"))).status == 201
    assert (await graph.submit(mail(message_id="<three@fabrikam.example>"))).status == 429


async def test_limits_change_while_running(graph: Any, control: Any, mail: Any) -> None:
    """Every limit is a setting."""
    await control.settings(submissions_per_window=0)
    assert (await graph.submit(mail())).status == 429
    await control.settings(submissions_per_window=10, same_item_per_window=2, same_item_per_day=2)
    assert [(await graph.submit(mail())).status for _ in range(3)] == [201, 201, 429]


async def test_retry_after_can_be_left_out(graph: Any, control: Any, mail: Any) -> None:
    """Some of Microsoft's services omit the header."""
    await control.settings(send_retry_after=False, submissions_per_window=0)

    refused = await graph.submit(mail())

    assert refused.status == 429
    assert "Retry-After" not in refused.headers
