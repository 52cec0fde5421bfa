"""Reports open cases and join them."""

from typing import Any
from uuid import UUID, uuid4

from backstop_contracts import BlockRequested, CaseUpdated, Folder, ReportedAs, SubmissionRequested
from chassis.postgres import Database
from triage import handlers


async def test_the_first_report_opens_a_case_and_others_join_it(world: Any, tenant_id: UUID) -> None:
    """One message, one case, however many people report it."""
    (opened,) = await world.take(world.report(tenant_id), world.report(tenant_id, folder=Folder.JUNK))
    (joined,) = await world.take(world.report(tenant_id, reported_as=ReportedAs.JUNK))

    assert (opened.change, opened.report_count, len(opened.report_ids)) == ("opened", 2, 2)
    assert (joined.change, joined.report_count, joined.case_id) == ("joined", 3, opened.case_id)


async def test_a_report_from_the_junk_folder_joins_the_case_opened_from_the_inbox(world: Any, tenant_id: UUID) -> None:
    """Same content, other Message-ID, other folder: the same case."""
    (opened,) = await world.take(world.report(tenant_id, "<1@x.example>", fingerprint="v1:f"))
    (joined,) = await world.take(world.report(tenant_id, "<2@y.example>", fingerprint="v1:f", folder=Folder.JUNK))
    assert joined.case_id == opened.case_id


async def test_a_report_that_is_delivered_again_changes_nothing(world: Any, tenant_id: UUID) -> None:
    """Whether in the same batch or in a later one."""
    once = world.report(tenant_id)
    first = await world.take(once, once, policy=world.auto)
    again = await world.take(once, policy=world.auto)

    assert world.of(first, CaseUpdated)[0].report_count == 1
    assert len(world.of(first, SubmissionRequested)) == 1
    assert again == []


async def test_the_same_message_in_two_tenants_opens_two_cases(world: Any, tenant_id: UUID) -> None:
    """Tenants share nothing."""
    first, second = await world.take(world.report(tenant_id), world.report(uuid4()))
    assert first.case_id != second.case_id


async def test_a_large_batch_needs_no_more_statements_than_a_small_one(
    world: Any, db: Database, tenant_id: UUID
) -> None:
    """New and existing cases, submissions and blocks: the number of statements does not grow with the batch."""
    counts = []
    for size in (2, 40):
        standing = [world.report(tenant_id, f"<{uuid4()}@fabrikam.example>") for _ in range(size)]
        await world.take(*standing)
        again = [one.model_copy(update={"report_id": uuid4()}) for one in standing]
        new = [world.report(tenant_id, f"<{uuid4()}@fabrikam.example>") for _ in range(size)]
        nameless = [world.report(tenant_id, f"<{uuid4()}@x.example>", sender=None) for _ in range(size)]
        statements: list[Any] = []
        async with db.transaction() as tx:
            tx.add_query_logger(statements.append)
            batch = [world.received(one) for one in (*again, *new, *nameless)]
            await handlers.on_message_reported(batch, tx, world.auto)
            tx.remove_query_logger(statements.append)
        events = await world.emitted()
        assert [len(world.of(events, kind)) for kind in (SubmissionRequested, BlockRequested)] == [3 * size, 2 * size]
        counts.append(len(statements))
    assert counts[0] == counts[1] > 0
