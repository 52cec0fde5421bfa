"""A message in a known mailbox is submitted by its link; the link may lead to another message."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from backstop_contracts import MailboxMessage, SubmissionCreated
from chassis.postgres import Database
from simulator import Simulator
from submitter.rules import Quota

RECIPIENT = "user@contoso.example"


async def test_a_message_that_is_no_longer_in_the_mailbox_is_submitted_itself(world: Any) -> None:
    """Microsoft refuses the link, and the message is sent from the mail store."""
    gone = MailboxMessage(user_id=RECIPIENT, message_id="AAMkgone")
    await world.request(mailbox_message=gone)
    async with world.start() as worker:
        while await worker.submit_due():
            pass
    assert [type(event) for event in await world.emitted()] == [SubmissionCreated]
    assert [entry["form"] for entry in world.made()] == ["content"]


async def test_a_submission_of_the_message_itself_is_never_taken_for_another_messages(world: Any, db: Database) -> None:
    """Even if Microsoft reads its internet message id differently: submitting it again would change nothing."""
    wanted = await world.request()
    read_otherwise = {**wanted.message.model_dump(mode="json"), "internet_message_id": "<read-otherwise@x.example>"}
    await db.pool.execute("UPDATE submissions SET message = $1", read_otherwise)
    async with world.start() as worker:
        while await worker.submit_due():
            pass
    (created,) = await world.emitted()
    assert isinstance(created, SubmissionCreated)
    assert [entry["id"] for entry in world.made()] == [created.graph_id]


async def test_a_link_to_another_message_yields_no_verdict(
    world: Any, db: Database, microsoft: Simulator, tenant_id: UUID
) -> None:
    """The message itself is submitted instead, within the quota, and no report adopts the other's submission."""
    harmless = "<harmless@fabrikam.example>"
    mailbox = microsoft.state.tenants[str(tenant_id)].add_mailbox(RECIPIENT)
    mailbox.messages["AAMk/b=="] = f"From: bad@fabrikam.example\r\nMessage-ID: {harmless}\r\n\r\nHi".encode()
    place = MailboxMessage(user_id=RECIPIENT, message_id="AAMk/b==")
    wanted = await world.request(mailbox_message=place)
    async with world.start(Quota(submissions=1)) as worker:
        for _ in range(3):
            await worker.submit_due()
        (delayed,) = await world.emitted()
        assert delayed.reason == "quota"
        await world.pass_time(timedelta(minutes=16))
        await worker.submit_due()
    (created,) = await world.emitted()
    other, own = world.made()

    assert (other["form"], other["internet_message_id"]) == ("link", harmless)
    assert (own["form"], own["sha256"]) == ("content", wanted.message.sha256)
    assert (created.submission_id, created.graph_id) == (wanted.submission_id, own["id"])

    late = await world.request(message_id=harmless)
    await db.pool.execute("UPDATE submissions SET sent_at = now() WHERE submission_id = $1", late.submission_id)
    async with world.start(missing_after=timedelta(minutes=5)) as worker:
        await worker.submit_due()
    assert await world.emitted() == []
