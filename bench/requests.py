"""Requests to Microsoft: per verdict and per block, and tokens."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

import verdict_poller.store
from backstop_contracts import Actor, Block, BlockRequested, Category, Envelope, SubmissionCreated
from bench.environment import open_schema, start_environment
from bench.full_tables import TENANT, message
from bench.report import Cell, Chart, Goal, Result
from blocklist.exchange_lists import ExchangeLists
from blocklist.handlers import on_block_requested
from blocklist.worker import Worker
from chassis.postgres import Database
from chassis.subscribing import Received
from chassis.worker import Lease
from m365 import Exchange, Graph, M365Settings, connect
from simulator import Simulator, serve
from simulator.graph_submissions import make_submission
from simulator.mail import read_mail
from verdict_poller.poll_schedule import Schedule
from verdict_poller.worker import Explainer, Poller

PENDING, QUICK_PENDING = (10, 1_000, 10_000), (10, 1_000)
GOAL_PENDING, WANTED = 1_000, 0.1
HASTE, QUICK_HASTE = 60, 240
"""Factor by which pauses, grid and delays are shortened: an hour at Microsoft takes a minute here."""
MADE_WITHIN = timedelta(minutes=15)
VERDICT_AFTER = (1, 60)
"""Range of minutes from a submission to its verdict, uniformly distributed."""
BLOCKS = 100
MAILBOXES = 10
"""Number of mailboxes over which mailbox blocks are distributed."""
LEASE = Lease(timedelta(minutes=5))


@dataclass(frozen=True, slots=True)
class Microsoft:
    """The simulator, and Backstop's clients connected to it."""

    simulator: Simulator
    graph: Graph
    exchange: Exchange

    def asked(self) -> Counter[str]:
        """Return how often each route has been called so far."""
        return Counter(self.simulator.state.ledger.contents()["requests"])


async def run(quick: bool, log: Callable[[str], None]) -> Result:
    """Wait for many verdicts at a time and add blocks, and count the requests to the simulator."""
    rows: list[dict[str, Cell]] = []
    per_verdict: dict[int, float] = {}
    details: dict[str, dict[str, int]] = {}
    haste = QUICK_HASTE if quick else HASTE
    async with start_environment("requests") as place, place.isolated("requests") as found:
        for pending in QUICK_PENDING if quick else PENDING:
            log(f"{pending:,} verdicts pending (about {VERDICT_AFTER[1] * 60 // haste} s) ...")
            async with microsoft(place.folder) as ms, open_schema(found.postgres_dsn, "verdict_poller") as database:
                asked = await _verdicts(ms, database, pending, haste)
            details[f"{pending} pending"] = dict(asked)
            per_verdict[pending] = asked.total() / pending
            rows.append(_row("verdict", f"{pending:,} pending", pending, asked))
        scopes: tuple[Literal["tenant", "mailbox"], ...] = ("tenant", "mailbox")
        for scope in scopes:
            log(f"{BLOCKS} blocks of the {scope} ...")
            async with microsoft(place.folder) as ms, open_schema(found.postgres_dsn, "blocklist") as database:
                asked = await _blocks(ms, database, scope)
            details[f"blocks of the {scope}"] = dict(asked)
            where = "the tenant's list" if scope == "tenant" else f"lists of {MAILBOXES} mailboxes"
            rows.append(_row("block", f"{BLOCKS} in {where}", BLOCKS, asked))
    return Result(
        name="requests",
        title="Requests to Microsoft",
        rows=rows,
        goals=[
            Goal(
                f"requests for each verdict with {GOAL_PENDING:,} pending",
                f"{per_verdict[GOAL_PENDING]:.3f}",
                f"at most {WANTED}",
                per_verdict[GOAL_PENDING] <= WANTED,
            )
        ],
        details=details,
        notes=[
            (
                f"Submissions made within {MADE_WITHIN.seconds // 60} minutes; verdicts {VERDICT_AFTER[0]} to"
                f" {VERDICT_AFTER[1]} minutes later; all times and pauses are divided by {haste}."
            ),
            "Tokens: one per API, process and hour, which is the lifetime of Microsoft's tokens.",
        ],
        picture=[
            Chart(
                "Requests for each verdict",
                "requests",
                [(f"{count:,} pending", each) for count, each in per_verdict.items()],
                "log",
            )
        ],
    )


@asynccontextmanager
async def microsoft(folder: Path) -> AsyncIterator[Microsoft]:
    """Run a new simulator and connect to it."""
    async with serve(folder, tenants=[{"id": str(TENANT)}], verdict_delay_seconds=0) as simulator:
        address = simulator.address()
        settings = M365Settings(
            client_id=address["client_id"],
            client_secret=address["client_secret"],
            graph_url=simulator.url,
            exchange_url=simulator.url,
            # What is counted does not depend on how slowly it is asked.
            exchange_write_interval_seconds=0,
        )
        async with connect(settings, authority=simulator.url, ca_file=simulator.ca_file) as (graph, exchange):
            yield Microsoft(simulator, graph, exchange)


async def _verdicts(ms: Microsoft, database: Database, pending: int, haste: int) -> Counter[str]:
    schedule = Schedule(tuple(pause / haste for pause in Schedule.pauses), Schedule.grid_seconds / haste)
    poller = Poller(database, ms.graph, schedule, LEASE)
    explainer = Explainer(database, ms.exchange, batch=100, settings_ttl=timedelta(seconds=300 / haste), lease=LEASE)
    async with database.transaction() as tx:
        events = [(event, None) for event in _submit(ms.simulator, pending, haste)]
        await verdict_poller.store.record(tx, events, schedule.next_due(datetime.now(UTC), 0))
    published = 0
    while published < pending:
        polled = await poller.poll_due()
        explained = await explainer.explain_due()
        published = await database.pool.fetchval("SELECT count(*) FROM watches WHERE state = 'published'")
        if not polled + explained:
            await asyncio.sleep(0.05)
    await database.pool.execute("TRUNCATE watches, outbox")
    return ms.asked()


def _submit(simulator: Simulator, count: int, haste: int) -> list[SubmissionCreated]:
    """Create *count* submissions in the simulator, whose verdicts arrive over time."""
    draw = random.Random(count)
    now = datetime.now(UTC)
    tenant = simulator.state.tenants[str(TENANT)]
    events = []
    for number in range(count):
        mail = f"From: a@phish.example\nMessage-ID: <{number}@phish.example>\n\nhttps://x.phish.example"
        made = make_submission(
            tenant,
            simulator.state,
            read_mail(mail.encode()),
            "user@contoso.example",
            "phishing",
            "administrator",
            "#microsoft.graph.security.emailContentThreatSubmission",
            {},
        )
        made.created = now - draw.random() * MADE_WITHIN / haste
        made.due = now + timedelta(minutes=draw.uniform(*VERDICT_AFTER)) / haste
        events.append(
            SubmissionCreated(
                tenant_id=TENANT,
                submission_id=uuid4(),
                case_id=uuid4(),
                graph_id=made.id,
                category=Category.PHISHING,
                recipient=made.recipient,
                adopted=False,
                message=message(number),
                created_at=made.created,
            )
        )
    return events


async def _blocks(ms: Microsoft, database: Database, scope: Literal["tenant", "mailbox"]) -> Counter[str]:
    now = datetime.now(UTC)
    requested = [
        BlockRequested(
            tenant_id=TENANT,
            block=Block(
                block_id=uuid4(),
                scope=scope,
                kind="sender",
                value=f"sender{number}@phish.example",
                mailbox=f"user{number % MAILBOXES}@contoso.example" if scope == "mailbox" else None,
                case_id=uuid4() if scope == "tenant" else None,
                report_id=uuid4() if scope == "mailbox" else None,
            ),
            requested_by=Actor(kind="user", id="0a1b2c3d-0000-4000-8000-00000000ad01"),
            requested_at=now,
        )
        for number in range(BLOCKS)
    ]
    async with database.transaction() as tx:
        await on_block_requested(
            [Received(event, Envelope(str(uuid4()), "/bench", "bench", now)) for event in requested], tx
        )
    worker = Worker(database, ExchangeLists(ms.exchange), frozenset(), 16, LEASE)
    while await database.pool.fetchval("SELECT count(*) FROM blocks WHERE state = 'applied'") < BLOCKS:
        await worker.settle_due()
    await database.pool.execute("TRUNCATE blocks, entries, outbox")
    return ms.asked()


def _row(thing: str, what: str, count: int, asked: Counter[str]) -> dict[str, Cell]:
    asked_of = Counter[str]()
    for route, number in asked.items():
        asked_of[route.partition(".")[0]] += number
    return {
        "for each": thing,
        "with": what,
        "requests": asked.total() / count,
        "of them Graph": asked_of["graph"] / count,
        "Exchange": asked_of["exchange"] / count,
        "tokens in all": asked["entra.token"],
    }
