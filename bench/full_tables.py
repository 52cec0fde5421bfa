"""Tables filled with old rows, and the frequent steps whose cost must not grow with them."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import blocklist.store
import submitter.store
import triage.case_queries
import verdict_poller.store
from backstop_contracts import CaseStatus, Envelope, Folder, Message, MessageReported, ReportedAs
from chassis.postgres import Database, Tx
from chassis.subscribing import Received
from triage.handlers import on_message_reported
from triage.rules import Policy

TENANT = UUID("0a1b2c3d-0000-4000-8000-000000000001")
LEASE = timedelta(seconds=75)
DUE = 20
"""Rows of each kind that are due; all others are not."""
BATCH = 100
"""Reports that are matched at once; every second one joins an existing case."""
PAGE = 50

LARGE = {
    "triage": {"cases", "case_keys", "reports", "timeline"},
    "submitter": {"submissions"},
    "blocklist": {"entries", "blocks"},
    "verdict_poller": {"watches"},
    "reporter": {"outbox"},
}
"""The tables that `fill` fills, by service."""

# ROWS, DUE, TENANT and MESSAGE are replaced.
_FILLS = {
    "triage": """
INSERT INTO cases (case_id, tenant_id, status, reported_as, folders, report_count, recipient, sender, sender_domain,
    message, opened_at, last_reported_at, quiet_since)
SELECT gen_random_uuid(), TENANT, (ARRAY['open', 'submitted', 'resolved', 'dismissed'])[1 + n % 4], '{phishing}',
    '{inbox}', 1, 'user@contoso.example', 'sender' || n % 5000 || '@phish' || n % 100 || '.example',
    'phish' || n % 100 || '.example', MESSAGE, at, at, at
FROM generate_series(1, ROWS) AS n, LATERAL (SELECT now() - n * interval '1 second') AS moment (at);
INSERT INTO case_keys SELECT tenant_id, sha256(('mail ' || case_id)::bytea), case_id FROM cases;
INSERT INTO case_keys SELECT tenant_id, sha256(('text ' || case_id)::bytea), case_id FROM cases;
INSERT INTO reports (report_id, tenant_id, case_id, reporter, reported_as, folder, sha256, reported_at)
SELECT gen_random_uuid(), tenant_id, case_id, 'ann@contoso.example', 'phishing', 'inbox',
    md5(case_id::text) || md5(case_id::text), opened_at FROM cases;
INSERT INTO timeline (case_id, entry, at, kind, detail)
SELECT case_id, 'report:' || report_id, reported_at, 'message.reported', '{"reporter": "ann@contoso.example"}'
FROM reports;
""",
    "submitter": """
INSERT INTO submissions (submission_id, tenant_id, case_id, category, recipient, message, requested_at, item, state,
    due_at, attempts, graph_id, folders)
SELECT gen_random_uuid(), TENANT, gen_random_uuid(), 'phishing', 'user@contoso.example', MESSAGE, now(), 'item ' || n,
    (ARRAY['due', 'created'])[1 + n % 2], now() + interval '1 hour' + n * interval '1 ms', 1,
    CASE n % 2 WHEN 1 THEN 'graph ' || n END, '{inbox}'
FROM generate_series(1, ROWS) AS n;
UPDATE submissions SET due_at = now() WHERE submission_id IN
    (SELECT submission_id FROM submissions WHERE state = 'due' LIMIT DUE);
""",
    "blocklist": """
INSERT INTO entries (tenant_id, mailbox, value, due_at)
SELECT TENANT, '', 'sender' || n || '@phish.example',
    CASE n % 2 WHEN 0 THEN now() + interval '1 day' + n * interval '1 ms' ELSE 'infinity' END
FROM generate_series(1, ROWS) AS n;
INSERT INTO blocks (block_id, tenant_id, mailbox, value, block, requested_at, state)
SELECT id, tenant_id, mailbox, value,
    '{"block_id": "' || id || '", "scope": "tenant", "kind": "sender", "value": "' || value || '"}', now(), 'applied'
FROM entries, LATERAL (SELECT gen_random_uuid() WHERE value IS NOT NULL) AS new (id);
UPDATE entries SET due_at = now() WHERE value IN (SELECT value FROM entries LIMIT DUE);
""",
    "verdict_poller": """
INSERT INTO watches (submission_id, tenant_id, case_id, graph_id, category, recipient, folders, message, created_at,
    state, due_at)
SELECT gen_random_uuid(), TENANT, gen_random_uuid(), 'graph ' || n, 'phishing', 'user@contoso.example', '{inbox}',
    MESSAGE, now(), (ARRAY['watching', 'published'])[1 + n % 2], now() + interval '1 hour' + n * interval '1 ms'
FROM generate_series(1, ROWS) AS n;
UPDATE watches SET due_at = now() WHERE submission_id IN
    (SELECT submission_id FROM watches WHERE state = 'watching' LIMIT DUE);
""",
    "reporter": """
INSERT INTO outbox (topic, key, headers, payload)
SELECT 'case-updated', id::bytea, '{"ce_id": "' || id || '", "ce_partitionkey": "' || id || '"}',
    repeat('x', 600)::bytea
FROM generate_series(1, ROWS) AS n, LATERAL (SELECT gen_random_uuid()::text WHERE n > 0) AS new (id);
""",
}

Place = tuple[datetime, UUID]
"""The position of a case in the list."""
Step = Callable[[Tx, Place], Awaitable[object]]
"""A step that a service performs in a transaction, given the position of the middle case."""


async def fill(database: Database, service: str, rows: int) -> None:
    """Store *rows* cases, submissions, entries, watches or events, DUE of them due, and analyse the tables."""
    about = message(0).model_dump_json()
    script = _FILLS[service].replace("TENANT", f"'{TENANT}'::uuid").replace("MESSAGE", f"'{about}'::jsonb")
    async with database.pool.acquire() as connection:
        await connection.execute(script.replace("ROWS", str(rows)).replace("DUE", str(DUE)), timeout=900)
    if service == "triage":
        async with database.transaction() as tx:
            # The cases that reports of `_match_reports` join.
            await _report(tx, [message(number) for number in range(0, BATCH, 2)])
    await database.pool.execute("VACUUM ANALYZE", timeout=900)


async def middle(database: Database) -> Place:
    """Return the position of the case in the middle of the list."""
    row = await database.pool.fetchrow(
        "SELECT opened_at, case_id FROM cases ORDER BY opened_at DESC OFFSET (SELECT count(*) / 2 FROM cases) LIMIT 1",
        timeout=60,
    )
    assert row  # noqa: S101 - there are cases
    return row["opened_at"], row["case_id"]


async def _match_reports(tx: Tx, _: Place) -> None:
    news = uuid4().int % 10**12
    await _report(tx, [message(number if number % 2 == 0 else news + number) for number in range(BATCH)])


async def _claim_submissions(tx: Tx, _: Place) -> None:
    due = await submitter.store.lock_due(tx, DUE)
    await submitter.store.claim(tx, [one.submission_id for one in due], LEASE)


async def _claim_blocks(tx: Tx, _: Place) -> None:
    await blocklist.store.claim(tx, LEASE, DUE)


async def _claim_watches(tx: Tx, _: Place) -> None:
    await verdict_poller.store.claim(tx, "watching", LEASE, DUE)


def _page(*, status: CaseStatus | None = None, sender_domain: str | None = None, deep: bool = False) -> Step:
    async def read(tx: Tx, place: Place) -> None:
        await triage.case_queries.list_cases(
            tx,
            TENANT,
            status=status,
            sender=None,
            sender_domain=sender_domain,
            reported_as=None,
            folder=None,
            conclusion=None,
            after=place if deep else None,
            limit=PAGE,
        )

    return read


HOT: dict[tuple[str, str], Step] = {
    ("triage", f"match {BATCH} reports"): _match_reports,
    ("triage", "first page of cases"): _page(),
    ("triage", "first page of open cases"): _page(status=CaseStatus.OPEN),
    ("triage", "a page in the middle"): _page(deep=True),
    ("triage", "first page of a sender's domain"): _page(sender_domain="phish7.example"),
    ("submitter", f"claim {DUE} submissions"): _claim_submissions,
    ("blocklist", f"claim {DUE} blocks"): _claim_blocks,
    ("verdict_poller", f"claim {DUE} watches"): _claim_watches,
}
"""The most frequent steps, by service and name."""


async def _report(tx: Tx, messages: list[Message]) -> None:
    now = datetime.now(UTC)
    reports = [
        MessageReported(
            tenant_id=TENANT,
            report_id=uuid4(),
            reporter="user@contoso.example",
            reported_as=ReportedAs.PHISHING,
            folder=Folder.INBOX,
            channel="api",
            reported_at=now,
            message=message,
        )
        for message in messages
    ]
    envelope = Envelope(str(uuid4()), "/bench", "bench", now)
    await on_message_reported([Received(report, envelope) for report in reports], tx, Policy())


def message(number: int) -> Message:
    """Return the facts of message *number*; each opens a case of its own."""
    return Message(
        sha256=f"{number:064x}",
        size=5000,
        sender="accounts@phish.example",
        sender_domain="phish.example",
        internet_message_id=f"<{number}@mail.phish.example>",
        fingerprint=f"v1:{number:064x}",
    )
