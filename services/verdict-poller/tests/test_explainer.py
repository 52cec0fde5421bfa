"""Each verdict is published once, with its causes by the tenant's settings."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from backstop_contracts import Block, BlockApplied, BlockRemoved, CaseExpired
from simulator.faults import Fault
from simulator.tenant import TenantSettings
from verdict_poller.worker import UNAVAILABLE_ATTEMPTS


async def test_a_verdict_contains_the_message_its_folders_and_the_blocks_in_force(world: Any) -> None:
    """A subscriber needs no other topic."""
    submission_id = await world.watch("Updated bank details")
    case_id = await world.db.pool.fetchval("SELECT case_id FROM watches")
    now = datetime.now(UTC)
    ended, made, over = (
        Block(block_id=uuid4(), scope="tenant", kind="url", value=f"https://{name}.example/", case_id=case_id)
        for name in ("ended", "made", "over")
    )
    # It has expired, but its removal is not published yet.
    over = over.model_copy(update={"expires_at": now - timedelta(minutes=1)})
    own = Block(block_id=uuid4(), scope="mailbox", kind="sender", value="a@b.example", mailbox="m", report_id=uuid4())
    removed = BlockRemoved(tenant_id=world.tenant_id, block=ended, reason="expired", removed_at=now)
    # The two events arrive on separate topics: the removal may come first.
    await world.consume(removed)
    for block in (made, ended, over, own):
        applied = BlockApplied(
            tenant_id=world.tenant_id, block=block, already_present=False, entry="made.example", applied_at=now
        )
        await world.consume(applied, applied)
    await world.answer(submission_id, "phishing", "none")
    await world.explainer.explain_due()
    (published,) = await world.published()

    assert (published.message.subject, published.message.sender) == ("Updated bank details", "bad@fabrikam.example")
    assert (published.category, published.recipient, published.folders) == (
        "phishing",
        "user@contoso.example",
        ("inbox", "junk"),
    )
    assert [(block.value, block.entry) for block in published.blocks] == [("https://made.example/", "made.example")]

    expired = CaseExpired(
        tenant_id=world.tenant_id, case_id=case_id, report_count=1, last_active_at=now, expired_at=now
    )
    await world.consume(expired)
    assert await world.db.pool.fetchval("SELECT count(*) FROM blocks") == 0


async def test_a_verdict_is_published_once_with_its_cause(world: Any) -> None:
    """What Microsoft answered, in its own words; why; and what to change."""
    row = world.microsoft.state.tenants[str(world.tenant_id)].rows("Get-HostedContentFilterPolicy")[0]  # type: ignore[index]
    world.microsoft.state.tenants[str(world.tenant_id)].settings.cmdlets["Get-HostedContentFilterPolicy"] = [
        {**row, "AllowedSenderDomains": ["fabrikam.example"]}
    ]
    submission_id = await world.watch()
    await world.make_due()
    assert await world.poller.poll_due() == 1
    assert await world.explainer.explain_due() == 0
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    for _ in range(2):
        await world.poller.poll_due()
        await world.explainer.explain_due()
    (verdict,) = await world.published()

    assert verdict.submission_id == submission_id
    assert (verdict.verdict, verdict.detail) == ("allowedDueToOrganizationOverride", "allowedByTenant")
    assert (verdict.conclusion, verdict.override) == ("unknown", "allowed")
    assert verdict.settings_read
    assert verdict.causes[0].rule == "R04"
    assert "fabrikam.example" in str(verdict.causes[0].recommendations[0].cmdlet)


async def explained_without_exchange(world: Any, times: int) -> None:
    """Receive an answer, and try so many times to explain it while Exchange is unavailable."""
    await world.watch(body="Please verify your account and confirm your password")
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    await world.poller.poll_due()
    world.microsoft.state.faults.order([Fault(route="exchange.*", kind="error", times=None)])
    for _ in range(times):
        await world.explainer.explain_due()
        await world.make_due()


async def test_unreadable_settings_delay_the_verdict_but_do_not_withhold_it(world: Any) -> None:
    """After some attempts it is published with what is known, and says that the settings are missing."""
    app = world.microsoft.state.tenants[str(world.tenant_id)].settings.apps[0]
    app.exchange_role = False
    await world.watch(body="Please verify your account and confirm your password")
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    assert await world.published() == []
    for _ in range(5):
        await world.make_due()
        await world.explainer.explain_due()
    (verdict,) = await world.published()
    assert not verdict.settings_read
    assert verdict.causes


async def test_an_explanation_waits_while_exchange_is_unavailable(world: Any) -> None:
    """An hour of waiting costs less than an explanation that never comes."""
    await explained_without_exchange(world, UNAVAILABLE_ATTEMPTS - 1)
    assert await world.published() == []

    world.microsoft.state.faults.clear()
    await world.explainer.explain_due()

    (verdict,) = await world.published()
    assert verdict.settings_read


async def test_an_explanation_stops_waiting_for_exchange(world: Any) -> None:
    """The verdict is then published without the settings."""
    await explained_without_exchange(world, UNAVAILABLE_ATTEMPTS)

    (verdict,) = await world.published()
    assert not verdict.settings_read


async def test_a_tenant_with_a_slow_exchange_delays_no_other_verdict(world: Any, open_world: Any) -> None:
    """Neither other tenants' verdicts of the batch, nor its own that need no settings."""
    tenant_id = world.microsoft.state.add_tenant(TenantSettings(id=str(uuid4()))).id
    slow = await world.watch()
    own = await world.watch()
    await world.answer(slow, "allowedDueToUserOverride", "allowedByUserSetting")
    await world.answer(own, "noThreatsFound", "goodReclassifiedAsGood")
    async with open_world(UUID(tenant_id)) as neighbour:
        other = await neighbour.watch()
    await world.answer(other, "allowedDueToOrganizationOverride", "allowedByTenant")
    held = Fault(route="exchange.Get-MailboxJunkEmailConfiguration", kind="timeout", times=None, seconds=600)
    world.microsoft.state.faults.order([held])

    explaining = asyncio.create_task(world.explainer.explain_due())
    published: set[UUID] = set()
    while len(published) < 2 and not explaining.done():
        await asyncio.wait([explaining], timeout=0.01)
        published |= {verdict.submission_id for verdict in await world.published()}

    assert published == {own, other}
    assert not explaining.done()
    explaining.cancel()
    await asyncio.wait([explaining])


async def test_a_truncated_answer_of_exchange_is_used(world: Any) -> None:
    """The rows that arrived show the cause; the link to the others is broken."""
    policies = world.microsoft.state.tenants[str(world.tenant_id)].settings.cmdlets
    row = {"Name": "Default", "IsDefault": True, "AllowedSenderDomains": ["fabrikam.example"]}
    policies["Get-HostedContentFilterPolicy"] = [row, *({"Name": f"Policy {number}"} for number in range(1000))]
    await world.answer(await world.watch(), "allowedDueToOrganizationOverride", "allowedByTenant")

    await world.explainer.explain_due()

    (verdict,) = await world.published()
    assert verdict.causes[0].recommendations[0].policy == "Default"


async def test_the_quarantine_is_searched_for_its_whole_retention_period(world: Any) -> None:
    """By default, Exchange searches 16 days and would miss an earlier release."""
    submission_id = await world.watch()
    message = await world.db.pool.fetchval("SELECT message FROM watches WHERE submission_id = $1", submission_id)
    world.microsoft.state.tenants[str(world.tenant_id)].settings.cmdlets["Get-QuarantineMessage"] = [
        {
            "MessageId": message["internet_message_id"],
            "RecipientAddress": ["user@contoso.example"],
            "ReceivedTime": (datetime.now(UTC) - timedelta(days=20)).isoformat(),
            "ReleaseStatus": "RELEASED",
            "ReleasedBy": ["user@contoso.example"],
            "TagName": "Team policy",
        }
    ]
    await world.answer(submission_id, "allowedDueToOrganizationOverride", "quarantineReleased")

    await world.explainer.explain_due()

    (verdict,) = await world.published()
    assert "released from quarantine by its recipient" in str(verdict.causes[0].evidence)


async def test_settings_are_read_once_for_many_verdicts(world: Any) -> None:
    """Each cmdlet is called at most every five minutes for a tenant."""
    for _ in range(10):
        await world.watch(body="Please verify your account and confirm your password")
    world.microsoft.state.clock.advance(120)
    await world.make_due()
    await world.poller.poll_due()
    await world.explainer.explain_due()
    counts = world.microsoft.state.ledger.contents()["requests"]

    assert len(await world.published()) == 10
    assert all(count == 1 for route, count in counts.items() if route.startswith("exchange."))
