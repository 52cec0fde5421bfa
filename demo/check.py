"""What the services said, against what was really done to Microsoft."""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from demo.event_log import EventLog

NONE: Counter[str] = Counter()


def differences(
    event_log: EventLog, accepted: set[UUID], ledger: Mapping[str, Any], addresses: Mapping[str, str]
) -> list[str]:
    """
    List every claim that does not hold; none when all is well.

    Each accepted report is in exactly one case; each submitted case has exactly one submission in the ledger; each
    block that is said to be made has exactly one entry there, no others are there, and none stands twice; each release,
    denial and request that is said to be made was made once, and none is untold; no mail was sent twice.
    *addresses* names the mailboxes by the object ids of their users.
    """
    return [
        *_reports(event_log, accepted),
        *_compare(
            "submission",
            Counter(str(created.graph_id) for case in event_log.cases.values() for created in case.created.values()),
            Counter(str(entry["id"]) for entry in ledger["submissions"]),
        ),
        *_submissions_per_case(event_log),
        *_compare(
            "tenant block",
            _applied(event_log, "tenant", addresses),
            _entries(ledger["tenant_blocks"]),
            _withdrawn(event_log, addresses),
        ),
        *_twice(ledger),
        *_compare("mailbox block", _applied(event_log, "mailbox", addresses), _entries(ledger["mailbox_blocks"])),
        *_compare("quarantine action", _carried_out(event_log), _quarantine_actions(ledger)),
        *_digests(ledger),
    ]


def _reports(event_log: EventLog, accepted: set[UUID]) -> list[str]:
    cases = event_log.cases.values()
    places = Counter(report_id for case in cases if not case.expired for report_id in case.reports)
    expired = {report_id for case in cases if case.expired for report_id in case.reports}
    wrong = [
        f"report {report_id} is in {places[report_id]} cases"
        for report_id in accepted
        if places[report_id] > 1 or not (places[report_id] or report_id in expired)
    ]
    return wrong + [f"report {report_id} was never accepted" for report_id in places.keys() - accepted]


def _submissions_per_case(event_log: EventLog) -> list[str]:
    wrong = []
    for case in event_log.cases.values():
        expected = len(case.requested) - len(case.failed)
        if len(case.created) != expected:
            wrong.append(f"case {case.case_id} has {len(case.created)} submissions, not {expected}")
    return wrong


def _applied(event_log: EventLog, scope: str, addresses: Mapping[str, str]) -> Counter[str]:
    """Count what should be in the ledger: an entry for each block that did not find one there."""
    applied = [
        story.applied for story in event_log.blocks.values() if story.applied and not story.applied.already_present
    ]
    return Counter(
        _place(addresses.get(event.block.mailbox or "", event.block.mailbox), event.entry or event.block.value)
        for event in applied
        if event.block.scope == scope
    )


def _carried_out(event_log: EventLog) -> Counter[str]:
    return Counter(
        f"{one.decision} {one.identity} for {one.recipient}".lower()
        for one in event_log.releases.values()
        if one.succeeded and not one.already_done
    )


def _quarantine_actions(ledger: Mapping[str, Any]) -> Counter[str]:
    return Counter(
        f"{entry['action']} {entry['identity']} for {entry['recipient']}".lower()
        for entry in ledger.get("quarantine_actions", ())
    )


def _digests(ledger: Mapping[str, Any]) -> list[str]:
    sent = Counter(str(entry["internet_message_id"]) for entry in ledger.get("mails", ()))
    return [f"mail {name} was sent {count} times" for name, count in sent.items() if count > 1]


def _withdrawn(event_log: EventLog, addresses: Mapping[str, str]) -> Counter[str]:
    """Count the blocks that a clean verdict met half-way: an entry may have been made and removed, untold."""
    blocks = [story.removed.block for story in event_log.blocks.values() if story.removed and not story.applied]
    return Counter(_place(addresses.get(block.mailbox or "", block.mailbox), block.value) for block in blocks)


def _entries(entries: list[dict[str, Any]]) -> Counter[str]:
    return Counter(_place(entry.get("mailbox"), entry["value"]) for entry in entries)


def _twice(ledger: Mapping[str, Any]) -> list[str]:
    """Name the values that are blocked more than once at the end, after what was lifted meanwhile."""
    removed = Counter(_place(entry.get("mailbox"), entry["value"]) for entry in ledger["removals"])
    standing = _entries(ledger["tenant_blocks"]) - removed
    return [f"tenant block {name} stands {count} times" for name, count in standing.items() if count > 1]


def _place(mailbox: str | None, value: str) -> str:
    """Name a list and a value in it, which the tenant's list holds with special characters percent-encoded."""
    return f"{mailbox or ''} {unquote(value)}".strip().lower()


def _compare(what: str, claimed: Counter[str], done: Counter[str], maybe: Counter[str] = NONE) -> list[str]:
    return [
        f"{what} {name}: {claimed[name]} claimed, {done[name]} in the ledger"
        for name in sorted(claimed.keys() | done.keys())
        if not 0 <= done[name] - claimed[name] <= maybe[name]
    ]
