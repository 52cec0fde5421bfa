"""Reports of other channels keep their messages in the mail store, too."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import Folder, Message, MessageReported, ReportedAs
from reporter.retention import Retention


def quarantined(tenant: UUID, sha256: str, channel: str = "quarantine") -> MessageReported:
    """Make a report of another channel, which has put the message into the mail store."""
    return MessageReported(
        tenant_id=tenant,
        report_id=uuid4(),
        reporter="ann@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.JUNK,
        channel=channel,
        reported_at=datetime.now(UTC),
        message=Message(sha256=sha256, size=1),
    )


@pytest.mark.parametrize("case_first", [False, True])
async def test_a_message_of_another_channel_is_kept_as_long_as_its_case(
    running: Any, make_mail: Any, tenant: UUID, *, case_first: bool
) -> None:
    """However old it is, and in whatever order, and however often, the report and its case arrive."""
    report = quarantined(tenant, await running.mails.put(tenant, make_mail()))
    case = running.case_opened(tenant, uuid4(), str(report.report_id))
    for event in (case, report) if case_first else (report, case):
        await running.consume(event)
        await running.consume(event)
    past = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    os.utime(running.stored()[0], (past, past))
    await Retention(running.db, running.mails).sweep()
    await running.delete_expired_messages()
    assert len(running.stored()) == 1

    await running.consume(running.case_expired(tenant, case.case_id))
    await running.delete_expired_messages()
    assert running.stored() == []
    assert await running.db.pool.fetchval("SELECT count(*) FROM reports") == 0


async def test_a_report_of_another_channel_finds_a_case_that_arrives_at_the_same_time(
    running: Any, make_mail: Any, tenant: UUID
) -> None:
    """Two replicas handle the two events at the same moment."""
    sha256 = await running.mails.put(tenant, make_mail())
    for _ in range(20):
        report = quarantined(tenant, sha256)
        case = running.case_opened(tenant, uuid4(), str(report.report_id))
        await asyncio.gather(running.consume(report), running.consume(case))

    assert await running.db.pool.fetchval("SELECT count(*) FROM reports WHERE case_id IS NOT NULL") == 20
    left = await running.db.pool.fetch(
        "SELECT early_cases.*, reports.case_id AS known FROM early_cases LEFT JOIN reports USING (report_id)"
    )
    assert left == []


async def test_reporter_ignores_its_own_reports_on_the_topic(running: Any, make_mail: Any, tenant: UUID) -> None:
    """It consumes what it publishes itself, among the reports of others."""
    sha256 = await running.mails.put(tenant, make_mail())
    await running.consume(quarantined(tenant, sha256, channel="api"))

    assert await running.db.pool.fetchval("SELECT count(*) FROM reports") == 0
