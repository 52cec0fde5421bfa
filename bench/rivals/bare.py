"""
The upper limit: the same rows and events with aiokafka, asyncpg and orjson alone, in batches, written by hand.

`reporter` accepts messages over HTTP; `triage` groups reports into cases and submits each new one. Everything that a
service needs when something fails is left out: validation, tokens, dead letters, an outbox, waiting for PostgreSQL,
traces, metrics, policy, expiry. Kafka's acknowledgements are awaited, and rows are committed before the offset.
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4, uuid5

import asyncpg
import orjson
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.rivals.settings import DSN, KAFKA, MAILS, PORT, PREFIX, TENANT, keep, keys_of
from mail import MailFacts, parse

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Fields: TypeAlias = dict[str, Any]

BATCH = 500


def producer() -> AIOKafkaProducer:
    """Return a producer that loses nothing."""
    return AIOKafkaProducer(
        bootstrap_servers=KAFKA, acks="all", enable_idempotence=True, linger_ms=5, max_request_size=4 << 20
    )


def message_of(facts: MailFacts) -> Fields:
    """Return the facts of a message in the form used in events."""
    authentication, antispam = facts.authentication, facts.antispam
    return {
        "sha256": facts.sha256,
        "size": facts.size,
        "internet_message_id": facts.internet_message_id,
        "network_message_id": facts.network_message_id,
        "fingerprint": facts.fingerprint,
        "sender": facts.from_address and facts.from_address.lower(),
        "sender_domain": facts.from_domain,
        "envelope_sender": facts.envelope_sender,
        "sender_ip": facts.sender_ip,
        "subject": facts.subject or None,
        "received_at": facts.received_at,
        "delivery": {
            "scl": antispam.scl,
            "bcl": antispam.bcl,
            "sfv": antispam.sfv,
            "cat": antispam.cat,
            "sfty": antispam.sfty,
            "ipv": antispam.ipv,
            "spf": authentication.spf,
            "dkim": authentication.dkim,
            "dmarc": authentication.dmarc,
            "dmarc_action": authentication.dmarc_action,
            "compauth": authentication.compauth,
            "compauth_reason": authentication.compauth_reason,
        },
    }


def headers(name: str, source: str, subject: str, key: str, trace: bytes | None) -> list[tuple[str, bytes]]:
    """Return the CloudEvents headers of an event."""
    return [
        ("ce_id", str(uuid4()).encode()),
        ("ce_source", source.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_type", f"io.backstop.{name}.v1".encode()),
        ("ce_time", datetime.now(UTC).isoformat().encode()),
        ("ce_subject", subject.encode()),
        ("ce_dataschema", f"urn:backstop:schema:{name}:v1".encode()),
        ("ce_partitionkey", key.encode()),
        ("content-type", b"application/json"),
        ("traceparent", trace or f"00-{uuid4().hex}-{uuid4().hex[:16]}-01".encode()),
    ]


class Reporter:
    """Stores the message and the report, publishes it and responds."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", sender: AIOKafkaProducer) -> None:
        self._pool = pool
        self._sender = sender

    async def report(self, request: web.Request) -> web.Response:
        """Accept one report."""
        raw = await request.read()
        said = request.query
        facts = parse(raw)
        await asyncio.to_thread(keep, raw, facts.sha256)
        message, reporter = message_of(facts), said["reporter"]
        identity = f"{facts.internet_message_id}:{facts.fingerprint}"
        report_id = str(uuid5(UUID(TENANT), f"report:{reporter}:{identity}:{said['reported_as']}"))
        now = datetime.now(UTC)
        await self._pool.execute(
            "INSERT INTO reporter.reports (report_id, tenant_id, filed_by, reporter, reported_as, folder, sha256,"
            " reported_at) VALUES ($1, $2, ARRAY[$3::text], $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            *(report_id, TENANT, "app", reporter, said["reported_as"], said["folder"], facts.sha256, now),
        )
        event = {
            "tenant_id": TENANT,
            "report_id": report_id,
            "reporter": reporter,
            "reported_as": said["reported_as"],
            "folder": said["folder"],
            "channel": "api",
            "reported_at": now,
            "message": message,
            "mailbox_message": None,
            "decision": None,
        }
        key = f"{TENANT}:{facts.internet_message_id}"
        await self._sender.send_and_wait(
            f"{PREFIX}.message-reported",
            key=key.encode(),
            value=orjson.dumps(event),
            headers=headers("message-reported", "/bare/reporter", report_id, key, None),
        )
        return web.json_response({"report_id": report_id}, status=202)


async def reporter() -> None:
    """Serve HTTP until the process is ended."""
    MAILS.mkdir(parents=True, exist_ok=True)
    sender = producer()
    await sender.start()
    async with asyncpg.create_pool(DSN, min_size=8, max_size=8) as pool:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/reports", Reporter(pool, sender).report)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", PORT).start()
        await asyncio.Event().wait()


class Batch:
    """A batch of reports and the cases they belong to."""

    def __init__(self) -> None:
        self.joined: defaultdict[str, list[Fields]] = defaultdict(list)
        self.opened: dict[str, tuple[Fields, bytes, str]] = {}
        self.new_keys: dict[bytes, str] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.timeline: list[tuple[Any, ...]] = []

    def assign(self, reports: Sequence[tuple[Fields, bytes]], known: dict[bytes, str]) -> None:
        """Assign each report to a case."""
        for report, trace in reports:
            keys = keys_of(report["message"])
            case_id = next((found for key in keys if (found := self.new_keys.get(key) or known.get(key))), None)
            if case_id is None:
                case_id = str(uuid4())
                self.opened[case_id] = (report, trace, str(uuid4()))
            for key in keys:
                if key not in known:
                    self.new_keys.setdefault(key, case_id)
            self.joined[case_id].append(report)
            at = datetime.fromisoformat(report["reported_at"])
            self.rows.append(
                (
                    report["report_id"],
                    report["tenant_id"],
                    case_id,
                    report["reporter"],
                    report["reported_as"],
                    report["folder"],
                    report["message"]["sha256"],
                    at,
                )
            )
            detail = {name: report[name] for name in ("report_id", "reporter", "reported_as", "folder")}
            self.timeline.append(
                (case_id, f"report:{report['report_id']}", at, "message.reported", None, orjson.dumps(detail).decode())
            )


RULE = {"kind": "policy", "id": "phishing that reached an Inbox", "name": "phishing that reached an Inbox"}
RULE_JSON = orjson.dumps(RULE).decode()


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of *rows*."""
    return list(map(list, zip(*rows, strict=True)))


async def store(connection: Connection, reports: Sequence[tuple[Fields, bytes]]) -> Batch | None:
    """Store a batch with one statement per table."""
    tenant = reports[0][0]["tenant_id"]
    known_ids = {
        str(row["report_id"])
        for row in await connection.fetch(
            "SELECT report_id FROM triage.reports WHERE report_id = ANY($1::uuid[])",
            [report["report_id"] for report, _ in reports],
        )
    }
    reports = [(report, trace) for report, trace in reports if report["report_id"] not in known_ids]
    if not reports:
        return None
    keys = {key for report, _ in reports for key in keys_of(report["message"])}
    found = await connection.fetch(
        "SELECT key, case_id FROM triage.case_keys WHERE tenant_id = $1 AND key = ANY($2::bytea[])", tenant, list(keys)
    )
    batch = Batch()
    batch.assign(reports, {row["key"]: str(row["case_id"]) for row in found})
    now = datetime.now(UTC)
    await connection.execute(
        "INSERT INTO triage.reports (report_id, tenant_id, case_id, reporter, reported_as, folder, sha256, reported_at)"
        " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[],"
        " $8::timestamptz[])",
        *columns(batch.rows),
    )
    await connection.execute(
        "INSERT INTO triage.case_keys SELECT $1, * FROM unnest($2::bytea[], $3::uuid[]) ON CONFLICT DO NOTHING",
        *(tenant, list(batch.new_keys), list(batch.new_keys.values())),
    )
    await store_cases(connection, batch, tenant, now)
    submitted = [
        (
            case_id,
            f"submit:{submission_id}",
            now,
            "case.submitted",
            RULE_JSON,
            orjson.dumps({"submission_id": submission_id, "category": "phishing", "note": None}).decode(),
        )
        for case_id, (_, _, submission_id) in batch.opened.items()
    ]
    await connection.execute(
        "INSERT INTO triage.timeline (case_id, entry, at, kind, actor, detail) SELECT * FROM unnest($1::uuid[],"
        " $2::text[], $3::timestamptz[], $4::text[], $5::jsonb[], $6::jsonb[]) ON CONFLICT DO NOTHING",
        *columns(batch.timeline + submitted),
    )
    return batch


async def store_cases(connection: Connection, batch: Batch, tenant: str, now: datetime) -> None:
    """Store new cases, and update the counts of those that reports joined."""
    if batch.opened:
        rows = [
            (
                case_id,
                tenant,
                report["reported_as"],
                report["folder"],
                len(batch.joined[case_id]),
                report["reporter"],
                report["message"]["sender"],
                report["message"]["sender_domain"],
                orjson.dumps(report["message"]).decode(),
                now,
                max(datetime.fromisoformat(one["reported_at"]) for one in batch.joined[case_id]),
                submission_id,
                trace.decode(),
            )
            for case_id, (report, trace, submission_id) in batch.opened.items()
        ]
        await connection.execute(
            "INSERT INTO triage.cases (case_id, tenant_id, status, reported_as, folders, report_count, recipient,"
            " sender, sender_domain, message, opened_at, last_reported_at, submissions, submission_id, traceparent)"
            " SELECT case_id, tenant_id, 'submitted', ARRAY[said], ARRAY[folder], count, recipient, sender, domain,"
            " message, opened_at, last, 1, submission_id, trace FROM unnest($1::uuid[], $2::uuid[], $3::text[],"
            " $4::text[], $5::int[], $6::text[], $7::text[], $8::text[], $9::jsonb[], $10::timestamptz[],"
            " $11::timestamptz[], $12::uuid[], $13::text[]) AS new (case_id, tenant_id, said, folder, count, recipient,"
            " sender, domain, message, opened_at, last, submission_id, trace)",
            *columns(rows),
        )
    standing = [
        (case_id, len(joined), max(datetime.fromisoformat(one["reported_at"]) for one in joined))
        for case_id, joined in batch.joined.items()
        if case_id not in batch.opened
    ]
    if standing:
        await connection.execute(
            "UPDATE triage.cases SET report_count = report_count + new.count, last_reported_at = greatest("
            "last_reported_at, new.last) FROM unnest($1::uuid[], $2::int[], $3::timestamptz[]) AS new (case_id, count,"
            " last) WHERE cases.case_id = new.case_id",
            *columns(standing),
        )


def events_of(batch: Batch, traces: dict[str, bytes]) -> list[tuple[str, str, str, Fields, bytes]]:
    """Return the events of a batch: topic, key, case, payload, trace."""
    events: list[tuple[str, str, str, Fields, bytes]] = []
    now = datetime.now(UTC)
    for case_id, joined in batch.joined.items():
        tenant = joined[0]["tenant_id"]
        key = f"{tenant}:{case_id}"
        updated = {
            "tenant_id": tenant,
            "case_id": case_id,
            "change": "opened" if case_id in batch.opened else "joined",
            "status": "open",
            "report_ids": [report["report_id"] for report in joined],
            "report_count": len(joined),
            "changed_by": None,
            "note": None,
            "changed_at": now,
        }
        trace = traces[joined[0]["report_id"]]
        events.append(("case-updated", key, case_id, updated, trace))
        if case_id not in batch.opened:
            continue
        report, _, submission_id = batch.opened[case_id]
        submitted = {**updated, "change": "submitted", "status": "submitted", "report_ids": [], "changed_by": RULE}
        requested = {
            "tenant_id": tenant,
            "submission_id": submission_id,
            "case_id": case_id,
            "category": "phishing",
            "recipient": report["reporter"],
            "message": report["message"],
            "mailbox_message": None,
            "requested_by": RULE,
            "requested_at": now,
        }
        events.append(("case-updated", key, case_id, submitted, trace))
        events.append(("submission-requested", key, case_id, requested, trace))
    return events


async def triage() -> None:
    """Consume reports until the process is ended."""
    sender = producer()
    await sender.start()
    consumer = AIOKafkaConsumer(
        f"{PREFIX}.message-reported",
        bootstrap_servers=KAFKA,
        group_id=f"{PREFIX}.bare",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=30_000,
    )
    await consumer.start()
    async with asyncpg.create_pool(DSN, min_size=1, max_size=2) as pool:
        while True:
            fetched = await consumer.getmany(timeout_ms=200, max_records=BATCH)
            records = [record for part in fetched.values() for record in part]
            if not records:
                continue
            reports = [
                (orjson.loads(one.value), next(value for name, value in one.headers if name == "traceparent"))
                for one in records
            ]
            async with pool.acquire() as connection, connection.transaction():
                batch = await store(connection, reports)
            if batch:
                traces = {report["report_id"]: trace for report, trace in reports}
                await asyncio.gather(
                    *[
                        await sender.send(
                            f"{PREFIX}.{name}",
                            key=key.encode(),
                            value=orjson.dumps(event),
                            headers=headers(name, "/bare/triage", case_id, key, trace),
                        )
                        for name, key, case_id, event, trace in events_of(batch, traces)
                    ]
                )
            await consumer.commit()


if __name__ == "__main__":
    asyncio.run(reporter() if sys.argv[1] == "reporter" else triage())
