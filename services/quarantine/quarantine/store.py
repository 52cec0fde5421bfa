"""The SQL of quarantine: one function per statement. Callers hold the transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from backstop_contracts import Actor, AdminDecision, CaseStatus, CaseUpdated, Verdict
from chassis.postgres import Reads, Tx
from quarantine.rules import Every, Kind, Permissions, Policy, Quarantined, Status, message_id, permitted

SETTLING = timedelta(minutes=15)
"""How long Exchange may list a mail as it was before we did something about it."""

_HELD = "('not-released', 'requested', 'preparing', 'denied', 'error')"


@dataclass(frozen=True, slots=True)
class Sync:
    """A row of `syncs` as it was claimed."""

    tenant_id: UUID
    attempts: int
    turn: int
    read_until: datetime | None
    sweep: int
    swept_at: datetime | None


async def add_tenants(tx: Tx, tenant_ids: Collection[UUID]) -> None:
    """Have the quarantine of these tenants mirrored."""
    await tx.execute(
        "INSERT INTO syncs (tenant_id) SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING", list(tenant_ids)
    )


async def claim_syncs(tx: Tx, tenant_ids: Collection[UUID], lease: timedelta, limit: int) -> list[Sync]:
    """Take tenants that are due, for *lease*: then they come due again unless that is prolonged or settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT tenant_id FROM syncs WHERE due_at <= now() AND tenant_id = ANY($1::uuid[])"
        " ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " UPDATE syncs SET due_at = now() + $2::interval, attempts = attempts + 1, turn = turn + 1 FROM due"
        " WHERE syncs.tenant_id = due.tenant_id RETURNING syncs.*",
        list(tenant_ids),
        lease,
        limit,
    )
    return [
        Sync(row["tenant_id"], row["attempts"], row["turn"], row["read_until"], row["sweep"], row["swept_at"])
        for row in rows
    ]


async def prolong(tx: Tx, sync: Sync, lease: timedelta) -> bool:
    """Keep a tenant for another *lease*, and its row locked; False when somebody else has it by now."""
    return bool(
        await tx.fetchval(
            "UPDATE syncs SET due_at = now() + $3::interval WHERE tenant_id = $1 AND turn = $2 RETURNING true",
            sync.tenant_id,
            sync.turn,
            lease,
        )
    )


async def settle_sync(
    tx: Tx, sync: Sync, *, read_until: datetime, swept: bool, due_in: timedelta, warning: str | None
) -> None:
    """Note what has been read, whether it was all of it, what of it nobody understands, and when to read again."""
    await tx.execute(
        "UPDATE syncs SET due_at = now() + $5::interval, attempts = 0, read_until = $3, succeeded_at = now(),"
        " warning = $7, sweep = $6, swept_at = CASE WHEN $4::bool THEN now() ELSE swept_at END"
        " WHERE tenant_id = $1 AND turn = $2",
        sync.tenant_id,
        sync.turn,
        read_until,
        swept,
        due_in,
        sync.sweep,
        warning,
    )


async def postpone_sync(tx: Tx, sync: Sync, wait: timedelta, warning: str) -> None:
    """Try a tenant again after *wait*."""
    await tx.execute(
        "UPDATE syncs SET due_at = now() + $3::interval, warning = $4 WHERE tenant_id = $1 AND turn = $2",
        sync.tenant_id,
        sync.turn,
        wait,
        warning,
    )


async def record(tx: Tx, tenant_id: UUID, mails: Sequence[Quarantined], sweep: int) -> None:
    """
    Store what Exchange lists. A state that we brought about stands until Exchange has had time to show it.

    What was listed before and is listed again is not gone.
    """
    await tx.execute(
        "INSERT INTO messages AS known (message_id, tenant_id, identity, recipient, sharing, network_message_id,"
        " internet_message_id, sender, sender_domain, subject, size, quarantine_type, policy_type, policy_name,"
        " quarantine_policy, direction, received_at, expires_at, status, released_by, sweep)"
        " SELECT message_id, $1, identity, recipient, sharing, network_message_id, internet_message_id, sender,"
        " sender_domain, subject, size, quarantine_type, policy_type, policy_name, quarantine_policy, direction,"
        " received_at, expires_at, status, string_to_array(released_by, E'\\n'), $2"
        " FROM unnest($3::uuid[], $4::text[], $5::text[], $6::int[], $7::text[], $8::text[], $9::text[], $10::text[],"
        " $11::text[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],"
        " $18::timestamptz[], $19::timestamptz[], $20::text[], $21::text[]) AS new (message_id, identity, recipient,"
        " sharing, network_message_id, internet_message_id, sender, sender_domain, subject, size, quarantine_type,"
        " policy_type, policy_name, quarantine_policy, direction, received_at, expires_at, status, released_by)"
        " ON CONFLICT (message_id) DO UPDATE SET sweep = excluded.sweep, expires_at = excluded.expires_at,"
        " quarantine_type = excluded.quarantine_type,"
        " quarantine_policy = excluded.quarantine_policy, released_by = excluded.released_by,"
        " status = CASE WHEN known.acted_at > now() - $22::interval THEN known.status ELSE excluded.status END,"
        " status_changed_at = CASE WHEN known.status = excluded.status OR known.acted_at > now() - $22::interval"
        " THEN known.status_changed_at ELSE now() END",
        tenant_id,
        sweep,
        [message_id(tenant_id, mail.identity, mail.recipient) for mail in mails],
        [mail.identity for mail in mails],
        [mail.recipient for mail in mails],
        [mail.sharing for mail in mails],
        [mail.network_message_id for mail in mails],
        [mail.internet_message_id for mail in mails],
        [mail.sender for mail in mails],
        [mail.sender_domain for mail in mails],
        [mail.subject for mail in mails],
        [mail.size for mail in mails],
        [mail.quarantine_type for mail in mails],
        [mail.policy_type for mail in mails],
        [mail.policy_name for mail in mails],
        [mail.quarantine_policy for mail in mails],
        [mail.direction for mail in mails],
        [mail.received_at for mail in mails],
        [mail.expires_at for mail in mails],
        [mail.status for mail in mails],
        ["\n".join(mail.released_by) for mail in mails],
        SETTLING,
    )


async def expire(tx: Tx, tenant_id: UUID) -> None:
    """Note which mails the quarantine has dropped because their time was over."""
    await tx.execute(
        "UPDATE messages SET status = 'expired', status_changed_at = now()"
        f" WHERE tenant_id = $1 AND expires_at <= now() AND status IN {_HELD}",
        tenant_id,
    )


async def miss(tx: Tx, tenant_id: UUID, sweep: int) -> None:
    """
    Note which mails are gone: neither *sweep* nor the one before it found them.

    One alone may miss a mail, because whatever is deleted meanwhile moves the others to earlier pages.
    """
    await tx.execute(
        "UPDATE messages SET status = 'deleted', status_changed_at = now()"
        f" WHERE tenant_id = $1 AND sweep < $2 - 1 AND status IN {_HELD}",
        tenant_id,
        sweep,
    )


async def record_policies(tx: Tx, tenant_id: UUID, policies: Sequence[Policy]) -> None:
    """Keep the tenant's quarantine policies, and no others."""
    await tx.execute("DELETE FROM policies WHERE tenant_id = $1", tenant_id)
    await tx.execute(
        "INSERT INTO policies SELECT $1, * FROM unnest($2::text[], $3::int[], $4::bool[]) ON CONFLICT DO NOTHING",
        tenant_id,
        [policy.name for policy in policies],
        [int(policy.permissions) for policy in policies],
        [policy.notifies for policy in policies],
    )


async def sync_state(db: Reads, tenant_id: UUID) -> dict[str, Any] | None:
    """Return when the mirror last agreed with Exchange, and why it does not now."""
    row = await db.fetchrow("SELECT succeeded_at, swept_at, warning FROM syncs WHERE tenant_id = $1", tenant_id)
    return dict(row) if row else None


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """A row of `messages`, with what its quarantine policy grants users."""

    message_id: UUID
    tenant_id: UUID
    identity: str
    recipient: str
    sharing: int
    network_message_id: str
    internet_message_id: str | None
    sender: str | None
    sender_domain: str | None
    subject: str | None
    size: int
    quarantine_type: str
    policy_type: str
    policy_name: str
    quarantine_policy: str
    direction: str
    received_at: datetime
    expires_at: datetime
    status: Status
    status_changed_at: datetime
    granted: Permissions

    @property
    def permitted(self) -> Permissions:
        """What the recipient may do with it."""
        return permitted(self.granted, self.quarantine_type)


_MESSAGE = (
    "SELECT messages.*, coalesce(policies.permissions, 0) AS granted FROM messages"
    " LEFT JOIN policies ON policies.tenant_id = messages.tenant_id AND policies.name = messages.quarantine_policy"
)


def _message(row: Any) -> QuarantinedMessage:
    names = QuarantinedMessage.__slots__
    return QuarantinedMessage(
        **{name: row[name] for name in names if name not in ("status", "granted")},
        status=Status(row["status"]),
        granted=Permissions(row["granted"]),
    )


async def find_messages(db: Reads, tenant_id: UUID, message_ids: Collection[UUID]) -> list[QuarantinedMessage]:
    """Return those of a tenant's mails that are known, in the order asked for."""
    rows = await db.fetch(
        f"{_MESSAGE} WHERE messages.tenant_id = $1 AND message_id = ANY($2::uuid[])"
        " ORDER BY array_position($2::uuid[], message_id)",
        tenant_id,
        list(message_ids),
    )
    return [_message(row) for row in rows]


async def find_message(db: Reads, tenant_id: UUID, message_id: UUID) -> QuarantinedMessage | None:
    """Return one of a tenant's mails."""
    return next(iter(await find_messages(db, tenant_id, [message_id])), None)


async def find_copies(db: Reads, tenant_id: UUID, message_ids: Collection[UUID]) -> list[QuarantinedMessage]:
    """Return the mails *message_ids*, and the same mails of all their other recipients."""
    rows = await db.fetch(
        f"{_MESSAGE} WHERE messages.tenant_id = $1 AND network_message_id IN"
        " (SELECT network_message_id FROM messages WHERE tenant_id = $1 AND message_id = ANY($2::uuid[]))"
        " ORDER BY network_message_id, recipient, message_id",
        tenant_id,
        list(message_ids),
    )
    return [_message(row) for row in rows]


async def list_messages(
    db: Reads,
    tenant_id: UUID,
    *,
    filters: Mapping[str, Any],
    after: tuple[bool, datetime, UUID] | None,
    limit: int,
) -> list[QuarantinedMessage]:
    """
    Return a page of mails that comes after the place *after*: pending release requests first, then the latest.

    *filters* are columns and their values; `received_after`, `received_before` and `subject` (a part of it) besides.
    """
    conditions, values = ["messages.tenant_id = $1"], [tenant_id, limit]
    for name, value in filters.items():
        if value is None:
            continue
        values.append(value)
        conditions.append(_FILTERS.get(name, f"messages.{name} = ${{}}").format(len(values)))
    if after:
        values.extend(after)
        place = ", ".join(f"${len(values) - behind}" for behind in (2, 1, 0))
        conditions.append(f"((status = 'requested'), received_at, message_id) < ({place})")
    rows = await db.fetch(
        f"{_MESSAGE} WHERE {' AND '.join(conditions)}"
        " ORDER BY (status = 'requested') DESC, received_at DESC, message_id DESC LIMIT $2",
        *values,
    )
    return [_message(row) for row in rows]


_FILTERS = {
    "received_after": "received_at >= ${}",
    "received_before": "received_at < ${}",
    "subject": "position(lower(${}) in lower(subject)) > 0",
    "status": "status = ANY(${}::text[])",
    "quarantine_type": "lower(${}) = ANY(string_to_array(lower(quarantine_type), ', '))",
}


@dataclass(frozen=True, slots=True)
class Action:
    """A row of `actions`."""

    action_id: UUID
    message_id: UUID
    kind: Kind
    variant: str
    round: int
    reported_as: str | None
    decision: AdminDecision | None
    reason: str | None
    by: Actor
    state: str
    already_done: bool
    failure: str | None
    detail: str | None
    report_id: UUID | None
    requested_at: datetime
    settled_at: datetime | None
    attempts: int
    unanswered: bool
    traceparent: str | None


def _action(row: Any) -> Action:
    parsed = ("kind", "decision", "by")
    return Action(
        **{name: row[name] for name in Action.__slots__ if name not in parsed},
        kind=Kind(row["kind"]),
        decision=AdminDecision.model_validate_json(row["decision"]) if row["decision"] else None,
        by=Actor.model_validate_json(row["by"]),
    )


async def last_actions(tx: Tx, message_ids: Collection[UUID], kind: Kind, variant: str) -> dict[UUID, Action]:
    """Return the latest wish of this kind and variant for each of the mails."""
    rows = await tx.fetch(
        "SELECT DISTINCT ON (message_id) * FROM actions WHERE message_id = ANY($1::uuid[]) AND kind = $2"
        " AND variant = $3 ORDER BY message_id, round DESC",
        list(message_ids),
        kind,
        variant,
    )
    return {row["message_id"]: _action(row) for row in rows}


async def record_actions(
    tx: Tx,
    messages: Sequence[QuarantinedMessage],
    action_ids: Sequence[UUID],
    rounds: Sequence[int],
    *,
    kind: Kind,
    variant: str,
    reported_as: str | None,
    decision: AdminDecision | None,
    reason: str | None,
    by: Actor,
    traceparent: str | None,
) -> None:
    """Store a wish for each of the mails; one that somebody else stored at the same time stands."""
    await tx.execute(
        "INSERT INTO actions (action_id, tenant_id, message_id, round, kind, variant, reported_as, decision, reason,"
        " by, traceparent) SELECT action_id, tenant_id, message_id, round, $5, $6, $7, $8, $9, $10, $11"
        " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int[]) AS new (action_id, tenant_id, message_id, round)"
        " ON CONFLICT DO NOTHING",
        list(action_ids),
        [message.tenant_id for message in messages],
        [message.message_id for message in messages],
        list(rounds),
        kind,
        variant,
        reported_as,
        decision.model_dump_json() if decision else None,
        reason,
        by.model_dump_json(),
        traceparent,
    )


async def find_actions(db: Reads, tenant_id: UUID, action_ids: Collection[UUID]) -> list[Action]:
    """Return wishes of a tenant, in the order asked for."""
    rows = await db.fetch(
        "SELECT * FROM actions WHERE tenant_id = $1 AND action_id = ANY($2::uuid[])"
        " ORDER BY array_position($2::uuid[], action_id)",
        tenant_id,
        list(action_ids),
    )
    return [_action(row) for row in rows]


async def claim_actions(tx: Tx, lease: timedelta, limit: int) -> list[tuple[Action, QuarantinedMessage]]:
    """Take wishes that are due, with their mails, for *lease*: then they come due again unless they are settled."""
    rows = await tx.fetch(
        "WITH due AS (SELECT * FROM actions WHERE state = 'pending' AND due_at <= now() ORDER BY due_at LIMIT $2"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE actions SET due_at = now() + $1::interval, attempts = due.attempts + 1, unanswered = true FROM due"
        " WHERE actions.action_id = due.action_id RETURNING actions.*, due.unanswered AS was_unanswered",
        lease,
        limit,
    )
    actions = [replace(_action(row), unanswered=row["was_unanswered"]) for row in rows]
    found = await tx.fetch(f"{_MESSAGE} WHERE message_id = ANY($1::uuid[])", [action.message_id for action in actions])
    messages = {row["message_id"]: _message(row) for row in found}
    return [(action, messages[action.message_id]) for action in actions]


async def postpone_action(tx: Tx, action_id: UUID, until: datetime, *, unanswered: bool, detail: str | None) -> None:
    """Try a wish again at *until*; *unanswered* when the last call may have happened."""
    await tx.execute(
        "UPDATE actions SET due_at = $2, unanswered = $3, detail = $4 WHERE action_id = $1 AND state = 'pending'",
        action_id,
        until,
        unanswered,
        detail,
    )


async def settle_action(
    tx: Tx,
    action_id: UUID,
    *,
    succeeded: bool,
    already_done: bool = False,
    failure: str | None = None,
    detail: str | None = None,
    report_id: UUID | None = None,
) -> bool:
    """Record what became of a wish; False when somebody else has."""
    return bool(
        await tx.fetchval(
            "UPDATE actions SET state = $2, already_done = $3, failure = $4, detail = $5, report_id = $6,"
            " settled_at = now(), unanswered = false WHERE action_id = $1 AND state = 'pending' RETURNING true",
            action_id,
            "succeeded" if succeeded else "failed",
            already_done,
            failure,
            detail,
            report_id,
        )
    )


async def mark(tx: Tx, message_id: UUID, status: Status) -> None:
    """Note what we did to a mail, before Exchange lists it so."""
    await tx.execute(
        "UPDATE messages SET status = $2, status_changed_at = now(), acted_at = now() WHERE message_id = $1",
        message_id,
        status,
    )


async def record_report(tx: Tx, report_id: UUID, message_id: UUID) -> bool:
    """Note that a mail was reported; tell whether that is new."""
    return bool(
        await tx.fetchval(
            "INSERT INTO reports (report_id, message_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
            report_id,
            message_id,
        )
    )


async def assign_cases(tx: Tx, updates: Sequence[CaseUpdated]) -> None:
    """Record which cases reports belong to."""
    in_order = sorted(updates, key=lambda update: update.changed_at)
    cases = {report_id: update.case_id for update in in_order for report_id in update.report_ids}
    await tx.execute(
        "UPDATE reports SET case_id = new.case_id FROM unnest($1::uuid[], $2::uuid[]) AS new (report_id, case_id)"
        " WHERE reports.report_id = new.report_id",
        list(cases),
        list(cases.values()),
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """A report of a mail from the quarantine, and what is known of its case."""

    report_id: UUID
    message_id: UUID
    case_id: UUID | None
    status: CaseStatus | None
    verdict: Verdict | None


async def submissions(db: Reads, message_ids: Collection[UUID]) -> list[Submission]:
    """Return what was reported of the mails, and what became of it."""
    rows = await db.fetch(
        "SELECT reports.*, status, verdict FROM reports LEFT JOIN cases USING (case_id)"
        " WHERE message_id = ANY($1::uuid[]) ORDER BY report_id",
        list(message_ids),
    )
    return [
        Submission(
            report_id=row["report_id"],
            message_id=row["message_id"],
            case_id=row["case_id"],
            status=CaseStatus(row["status"]) if row["status"] else None,
            verdict=Verdict.model_validate(row["verdict"]) if row["verdict"] else None,
        )
        for row in rows
    ]


async def read_settings(db: Reads, tenant_id: UUID) -> dict[str, Any] | None:
    """Return a tenant's settings as they were stored."""
    found: dict[str, Any] | None = await db.fetchval("SELECT settings FROM settings WHERE tenant_id = $1", tenant_id)
    return found


async def record_settings(tx: Tx, tenant_id: UUID, settings: Mapping[str, Any], by: str) -> None:
    """Store a tenant's settings."""
    await tx.execute(
        "INSERT INTO settings (tenant_id, settings, changed_by) VALUES ($1, $2, $3) ON CONFLICT (tenant_id)"
        " DO UPDATE SET settings = excluded.settings, changed_by = excluded.changed_by, changed_at = now()",
        tenant_id,
        dict(settings),
        by,
    )


async def begin_period(tx: Tx, tenant_id: UUID, every: Every, ended_at: datetime) -> bool:
    """Tell whether nobody has planned this period yet; of two at the same time, one waits and has not."""
    return bool(
        await tx.fetchval(
            "INSERT INTO periods VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true", tenant_id, every, ended_at
        )
    )


async def untold(tx: Tx, tenant_id: UUID, before: datetime) -> list[tuple[UUID, str, str]]:
    """
    Return the held mails that no digest has told of: id, recipient, quarantine policy.

    One whose policy is not known yet waits: what its recipient may do, and so whether it is told, is not known either.
    """
    rows = await tx.fetch(
        "SELECT message_id, recipient, quarantine_policy FROM messages JOIN policies"
        " ON policies.tenant_id = messages.tenant_id AND policies.name = quarantine_policy"
        " WHERE messages.tenant_id = $1 AND digest_id IS NULL"
        " AND status = 'not-released' AND first_seen_at < $2 AND expires_at > now() AND direction <> 'Outbound'"
        " FOR UPDATE OF messages",
        tenant_id,
        before,
    )
    return [(row["message_id"], row["recipient"], row["quarantine_policy"]) for row in rows]


async def tell(tx: Tx, digests: Mapping[UUID, UUID]) -> None:
    """Note which digest (value) tells of which mail (key)."""
    await tx.execute(
        "UPDATE messages SET digest_id = new.digest_id FROM unnest($1::uuid[], $2::uuid[])"
        " AS new (message_id, digest_id) WHERE messages.message_id = new.message_id",
        list(digests),
        list(digests.values()),
    )


async def tell_later(tx: Tx, digest_ids: Collection[UUID]) -> None:
    """Leave those mails of digests to later ones whose policy has become one that is not known yet."""
    await tx.execute(
        "UPDATE messages SET digest_id = NULL WHERE digest_id = ANY($1::uuid[]) AND NOT EXISTS (SELECT FROM policies"
        " WHERE policies.tenant_id = messages.tenant_id AND policies.name = quarantine_policy)",
        list(digest_ids),
    )


async def record_digests(
    tx: Tx, tenant_id: UUID, every: Every, ended_at: datetime, recipients: Mapping[UUID, str]
) -> None:
    """Store the digests of a period, by their ids."""
    await tx.execute(
        "INSERT INTO digests (digest_id, tenant_id, recipient, every, ended_at)"
        " SELECT digest_id, $1, recipient, $2, $3 FROM unnest($4::uuid[], $5::text[]) AS new (digest_id, recipient)"
        " ON CONFLICT DO NOTHING",
        tenant_id,
        every,
        ended_at,
        list(recipients),
        list(recipients.values()),
    )


@dataclass(frozen=True, slots=True)
class Digest:
    """A row of `digests` as it was claimed."""

    digest_id: UUID
    tenant_id: UUID
    recipient: str
    ended_at: datetime
    draft_id: str | None
    planned_at: datetime
    attempts: int


async def claim_digests(tx: Tx, tenant_ids: Collection[UUID], lease: timedelta, limit: int) -> list[Digest]:
    """Take digests that are due, for *lease*."""
    rows = await tx.fetch(
        "WITH due AS (SELECT digest_id FROM digests WHERE state = 'pending' AND due_at <= now()"
        " AND tenant_id = ANY($1::uuid[]) ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " UPDATE digests SET due_at = now() + $2::interval, attempts = attempts + 1 FROM due"
        " WHERE digests.digest_id = due.digest_id RETURNING digests.*",
        list(tenant_ids),
        lease,
        limit,
    )
    return [Digest(**{name: row[name] for name in Digest.__slots__}) for row in rows]


async def messages_of_digest(db: Reads, digest_id: UUID) -> list[QuarantinedMessage]:
    """Return the mails that a digest tells of and that are still held, the latest first."""
    rows = await db.fetch(
        f"{_MESSAGE} WHERE digest_id = $1 AND status = 'not-released' AND expires_at > now() ORDER BY received_at DESC",
        digest_id,
    )
    return [_message(row) for row in rows]


async def note_draft(tx: Tx, digest: Digest, draft_id: str) -> bool:
    """Note the one draft that may be sent for a digest; False when another is noted already."""
    return bool(
        await tx.fetchval(
            "UPDATE digests SET draft_id = $2 WHERE digest_id = $1 AND state = 'pending'"
            " AND coalesce(draft_id, $2) = $2 RETURNING true",
            digest.digest_id,
            draft_id,
        )
    )


async def settle_digest(tx: Tx, digest_id: UUID, state: str, detail: str | None = None) -> None:
    """Record what became of a digest."""
    await tx.execute(
        "UPDATE digests SET state = $2, detail = $3, settled_at = now() WHERE digest_id = $1 AND state = 'pending'",
        digest_id,
        state,
        detail,
    )


async def postpone_digest(tx: Tx, digest_id: UUID, wait: timedelta, detail: str | None) -> None:
    """Try a digest again after *wait*."""
    await tx.execute(
        "UPDATE digests SET due_at = now() + $2::interval, detail = $3 WHERE digest_id = $1 AND state = 'pending'",
        digest_id,
        wait,
        detail,
    )


async def forget_cases(tx: Tx, case_ids: Sequence[UUID]) -> None:
    """Delete what is known of cases, and which reports they had."""
    await tx.execute(
        "WITH reports AS (DELETE FROM reports WHERE case_id = ANY($1::uuid[]))"
        " DELETE FROM cases WHERE case_id = ANY($1::uuid[])",
        case_ids,
    )


async def forget_unreported_cases(tx: Tx, age: timedelta) -> None:
    """Delete what was heard, more than *age* ago, of cases of which no report is here."""
    await tx.execute(
        "DELETE FROM cases WHERE greatest(changed_at, read_at) < now() - $1::interval"
        " AND NOT EXISTS (SELECT FROM reports WHERE reports.case_id = cases.case_id)",
        age,
    )


async def forget_messages(tx: Tx, age: timedelta, limit: int) -> int:
    """Delete mails that left the quarantine, or ran out of time there, more than *age* ago, with all that was done."""
    return int(
        await tx.fetchval(
            "WITH old AS (SELECT message_id FROM messages WHERE greatest(expires_at, status_changed_at)"
            " < now() - $1::interval AND NOT EXISTS (SELECT FROM actions WHERE actions.message_id = messages.message_id"
            " AND state = 'pending') ORDER BY message_id LIMIT $2 FOR UPDATE SKIP LOCKED),"
            " acts AS (DELETE FROM actions USING old WHERE actions.message_id = old.message_id),"
            " told AS (DELETE FROM reports USING old WHERE reports.message_id = old.message_id),"
            " gone AS (DELETE FROM messages USING old WHERE messages.message_id = old.message_id RETURNING 1)"
            " SELECT count(*) FROM gone",
            age,
            limit,
        )
    )


async def forget_digests(tx: Tx, age: timedelta) -> None:
    """Delete digests, and the periods that they told of, that were settled more than *age* ago."""
    await tx.execute("DELETE FROM digests WHERE state <> 'pending' AND settled_at < now() - $1::interval", age)
    await tx.execute("DELETE FROM periods WHERE ended_at < now() - $1::interval", age)
