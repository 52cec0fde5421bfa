"""What the simulator remembers: its clock, its settings, its tenants and the ledger of every effect."""

import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from simulator.faults import Faults
from simulator.settings import Settings
from simulator.tenant import Tenant, TenantSettings
from simulator.tokens import SigningKeys

DEFAULT_TENANT = "0a1b2c3d-0000-4000-8000-000000000001"

Kind = Literal[
    "submissions",
    "tenant_blocks",
    "mailbox_blocks",
    "reviews",
    "removals",
    "changes",
    "quarantine_actions",
    "mails",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Entry = dict[str, Any]


class Clock:
    """The one clock that limits, verdicts and expiries read: real time plus what it was advanced by."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def now(self) -> datetime:
        """Return the simulator's time, in UTC."""
        return datetime.fromtimestamp(time.time(), UTC) + self._ahead

    def advance(self, seconds: float) -> datetime:
        """Move the clock forward by *seconds* and return the new time."""
        self._ahead += timedelta(seconds=seconds)
        return self.now()


class Ledger:
    """
    Every effect that a client had, and every call it made.

    An entry is written at the moment of the effect, before the answer; `answer.outcome` then says whether the answer
    was `sent`, `held` (a timeout was ordered) or `dropped`. What tests arrange through control routes is not in here.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[Kind, list[Entry]] = {kind: [] for kind in KINDS}
        self._number = 0
        self._requests: Counter[str] = Counter()
        self._answers: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def record(self, kind: Kind, entry: Entry) -> Entry:
        """Store *entry* with a number and the time."""
        self._number += 1
        entry = {"number": self._number, "at": self._clock.now().isoformat(), **entry, "answer": None}
        self._entries[kind].append(entry)
        return entry

    def count_request(self, route: str) -> None:
        """Count a call that arrived on *route*."""
        self._requests[route] += 1

    def count_answer(self, route: str, status: int | str) -> None:
        """Count an answer on *route* by its status, or `dropped`."""
        self._answers[route][str(status)] += 1

    def contents(self, tenant: str | None = None, after: int = 0) -> dict[str, Any]:
        """All of it, or only the entries of *tenant* with a number greater than *after*."""
        shown: dict[str, Any] = {
            kind: [e for e in entries if e["number"] > after and tenant in (None, e["tenant"])]
            for kind, entries in self._entries.items()
        }
        items = {(e["tenant"], e["internet_message_id"], e["recipient"]) for e in shown["submissions"]}
        releases = [e for e in shown["quarantine_actions"] if e["action"] == "release"]
        released = {(e["tenant"], e["identity"], e["recipient"]) for e in releases}
        mails = {(e["tenant"], e["sender"], e["internet_message_id"]) for e in shown["mails"]}
        different = {"submitted_items": len(items), "released_items": len(released), "mailed_items": len(mails)}
        return {
            **shown,
            "counts": {**{kind: len(entries) for kind, entries in shown.items()}, **different},
            "requests": dict(self._requests),
            "answers": {route: dict(statuses) for route, statuses in self._answers.items()},
            "throttled": {route: statuses["429"] for route, statuses in self._answers.items() if statuses["429"]},
        }


class State:
    """Everything that one running simulator knows."""

    def __init__(self, settings: Settings, tenants: list[TenantSettings]) -> None:
        self._first = (settings.model_copy(), [tenant.model_copy(deep=True) for tenant in tenants])
        self.keys = SigningKeys()
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything but the signing keys: settings, tenants, clock, faults and ledger start anew."""
        settings, tenants = self._first
        self.settings = settings.model_copy()
        self.clock = Clock()
        self.faults = Faults()
        self.ledger = Ledger(self.clock)
        self.tenants: dict[str, Tenant] = {}
        for tenant in tenants or [TenantSettings(id=DEFAULT_TENANT)]:
            self.add_tenant(tenant.model_copy(deep=True))

    def add_tenant(self, settings: TenantSettings) -> Tenant:
        """Register a tenant, or replace the one with the same id by an empty one."""
        tenant = Tenant(settings)
        self.tenants[settings.id] = tenant
        return tenant

    def issuer(self, tenant: str) -> str:
        """Return the `iss` of the tokens of *tenant*."""
        return f"{self.url}/{tenant}/v2.0"
