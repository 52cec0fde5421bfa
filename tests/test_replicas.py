"""Two replicas of everything: they share the work, take over from each other, and repeat nothing."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer
from faults.settings import LEASES
from prometheus_client.parser import text_string_to_metric_families

from backstop_contracts import MessageReported, read_headers
from demo.event_log import BlockStory, CaseStory
from demo.people import Demo
from demo.story import Reported
from local_stack.backing import Backing
from local_stack.stack import Stack

from .conftest import running, with_own_database
from .test_story import until

PREFIX = "replicas"
QUOTA = 10
PARTITIONS = 12
PAIRS = ("reporter", "triage", "submitter", "verdict_poller", "blocklist")
USERS = tuple(f"user{number}@contoso.example" for number in range(8))
CREATE = "graph.emailThreats.create"
NEW_BLOCK = "exchange.New-TenantAllowBlockListItems"
SET_JUNK = "exchange.Set-MailboxJunkEmailConfiguration"


@pytest.fixture(scope="module")
async def pairs(
    backing_services: Backing, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stack, Demo, asyncpg.Connection]]:
    """Start two of each service once for all, and a look into their database."""
    async with (
        with_own_database(backing_services, PREFIX) as found,
        running(
            found,
            tmp_path_factory.mktemp(PREFIX),
            PREFIX,
            replicas=dict.fromkeys(PAIRS, 2),
            settings={
                "*": {"kafka_session_timeout_seconds": 8, **dict.fromkeys(LEASES.values(), 10)},
                "submitter": {"submissions_per_15_minutes": QUOTA, "submission_missing_after_seconds": 5},
            },
            simulator_options=["--set", f"submissions_per_window={QUOTA}"],
        ) as (stack, demo),
    ):
        await demo.sign_in(USERS)
        database = await asyncpg.connect(found.postgres_dsn)
        yield stack, demo, database
        await database.close()


def write(folder: Path, sender: str) -> Path:
    """Write a mail that resembles no other."""
    name = uuid4().hex
    file = folder / f"{name}.eml"
    file.write_text(
        f"From: {sender}\nTo: user@contoso.example\nSubject: {name}\nMessage-ID: <{name}@mail.example>\n"
        f"Authentication-Results: dmarc=pass action=none header.from={sender.rpartition('@')[2]}\n\n"
        f"Open https://{name}.phish.example and tell {uuid4().hex} what {uuid4().hex} shows you.\n"
    )
    return file


async def metrics(stack: Stack, name: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Read the metrics of a process: by name and the values of the labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{stack.urls[name]}/metrics") as response:
        text = await response.text()
    read: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            read[sample.name][tuple(sample.labels.values())] = sample.value
    return read


async def leaders(stack: Stack, *names: str) -> list[str]:
    """Return those of the processes that relay their outbox."""
    return [name for name in names if (await metrics(stack, name))["backstop_outbox_leader"].get((), 0)]


async def ledger_of(demo: Demo, file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what was really done about a mail and its sender."""
    text = await asyncio.to_thread(file.read_text)
    sender, message_id = text.split("\n")[0].removeprefix("From: "), f"<{file.stem}@mail.example>"
    ledger = await demo.control("GET", "/ledger")
    return {
        "submissions": [one for one in ledger["submissions"] if one["internet_message_id"] == message_id],
        "tenant_blocks": [one for one in ledger["tenant_blocks"] if one["value"] == sender],
        "mailbox_blocks": [one for one in ledger["mailbox_blocks"] if one["value"] == sender],
    }


async def quarter_passes(demo: Demo, database: asyncpg.Connection) -> None:
    """Let a quarter of an hour pass for Microsoft first, then for submitter."""
    await demo.control("POST", "/clock", {"advance_seconds": 16 * 60})
    async with database.transaction():
        await database.execute("SELECT pg_advisory_xact_lock(hashtext('submitter'), hashtext('quota'))")
        await database.execute("UPDATE submitter.calls SET at = at - interval '16 minutes'")
        await database.execute(
            "UPDATE submitter.submissions SET due_at = due_at - interval '16 minutes'"
            " WHERE state = 'due' AND sent_at IS NULL"
        )


async def test_the_replicas_of_a_consumer_share_the_partitions(
    pairs: tuple[Stack, Demo, asyncpg.Connection], tmp_path: Path
) -> None:
    """Each partition has one of them, both have some, and between them each event is handled once."""
    stack, demo, _ = pairs
    topic = f"{stack.topic_prefix}.message-reported"

    async def shared() -> bool:
        lags = [(await metrics(stack, f"triage-{n}"))["backstop_consumer_lag"] for n in (1, 2)]
        mine = [{labels for labels in lag if topic in labels} for lag in lags]
        # Each tells what it had at its last look: while they join, one may still name partitions of the other.
        return sum(map(len, mine)) == len(mine[0] | mine[1]) == PARTITIONS and all(mine)

    await until(shared)

    mails = [write(tmp_path, f"a{number}@pairs.example") for number in range(40)]
    outcomes = await asyncio.gather(*(demo.report(Reported(mail, USERS[:1], reported_as="junk")) for mail in mails))
    wanted = {outcome.report_ids[0] for outcome in outcomes}

    async def in_cases() -> bool:
        return wanted <= demo.event_log.case_of.keys()

    await until(in_cases)

    async def counted() -> list[float] | None:
        read = [await metrics(stack, f"triage-{n}") for n in (1, 2)]
        handled = [one["backstop_events_consumed_total"].get(("message-reported",), 0) for one in read]
        return handled if sum(handled) >= len(mails) else None

    handled = await until(counted)
    assert all(handled)
    assert sum(handled) == len(mails)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_when_the_leading_relay_is_gone_the_other_leads_within_seconds(
    pairs: tuple[Stack, Demo, asyncpg.Connection], tmp_path: Path, how: str
) -> None:
    """Nothing is lost, each key keeps its order, and a leader that wakes up again finds that it leads no more."""
    stack, demo, _ = pairs
    names = ("reporter-1", "reporter-2")

    async def one_leads() -> list[str] | None:
        found = await leaders(stack, *names)
        return found if len(found) == 1 else None

    (leader,) = await until(one_leads)
    (follower,) = set(names) - {leader}
    mails = [write(tmp_path, f"{how}{number}@pairs.example") for number in range(12)]
    sent: dict[Path, list[UUID]] = {mail: [] for mail in mails}
    async with aiohttp.ClientSession() as session:

        async def report_by_everyone(mail: Path) -> None:
            raw = await asyncio.to_thread(mail.read_bytes)
            for user in USERS:
                async with session.post(
                    f"{stack.urls[follower]}/v1/reports",
                    params={"reported_as": "junk"},
                    data=raw,
                    headers={"Authorization": f"Bearer {demo._tokens[user]}", "Content-Type": "message/rfc822"},
                ) as response:
                    assert response.status == 202
                    sent[mail].append(UUID((await response.json())["report_id"]))

        load = asyncio.gather(*map(report_by_everyone, mails))
        await until(lambda: _any(sent))
        if how == "killed":
            await stack.supervisor.kill(leader)
        else:
            stack.supervisor.freeze(leader)
        begin = asyncio.get_running_loop().time()

        async def follower_leads() -> bool:
            return bool(await leaders(stack, follower))

        await until(follower_leads)
        took = asyncio.get_running_loop().time() - begin
        await load
    print(f"\n{how}: the other leads after {took:.1f} s")  # noqa: T201 - a measurement, shown by pytest -s
    order = await order_on_topic(stack, {report_id for ids in sent.values() for report_id in ids})
    for ids in sent.values():
        assert [report_id for report_id in order if report_id in ids] == ids

    if how == "killed":
        await stack.supervisor.restart(leader)
    else:
        stack.supervisor.resume(leader)
    again = write(tmp_path, f"{how}-again@pairs.example")
    outcome = await demo.report(Reported(again, USERS[:1], reported_as="junk"))

    async def in_a_case() -> bool:
        return outcome.report_ids[0] in demo.event_log.case_of

    await until(in_a_case)
    assert await until(one_leads) == [follower]


async def _any(sent: Mapping[Path, list[UUID]]) -> bool:
    return sum(map(len, sent.values())) > len(sent)


async def order_on_topic(stack: Stack, wanted: set[UUID]) -> list[UUID]:
    """Return *wanted* in the order in which they were first published."""
    consumer = AIOKafkaConsumer(
        f"{stack.topic_prefix}.message-reported", bootstrap_servers=stack.kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    first: dict[UUID, None] = {}
    try:
        async with asyncio.timeout(60):
            while len(first) < len(wanted):
                record = await anext(consumer)
                read_headers(record.headers, MessageReported)
                event = MessageReported.model_validate_json(record.value)
                if event.report_id in wanted:
                    first.setdefault(event.report_id)
    finally:
        await consumer.stop()
    return list(first)


async def test_the_quota_holds_across_replicas_and_no_submission_is_made_twice(
    pairs: tuple[Stack, Demo, asyncpg.Connection], tmp_path: Path
) -> None:
    """Thirty cases, ten per window: Microsoft never has to say no, and no row is taken by both."""
    _, demo, database = pairs
    await quarter_passes(demo, database)

    before = (await demo.control("GET", "/ledger"))["requests"].get(CREATE, 0)
    mails = [write(tmp_path, f"quota{number}@pairs.example") for number in range(3 * QUOTA)]
    await asyncio.gather(*(demo.report(Reported(mail, USERS[:2])) for mail in mails))
    ids = {f"<{mail.stem}@mail.example>" for mail in mails}

    async def submitted() -> list[str]:
        ledger = await demo.control("GET", "/ledger")
        return [name for one in ledger["submissions"] if (name := one["internet_message_id"]) in ids]

    async def waiting(window: int) -> bool:
        if len(await submitted()) < window * QUOTA:
            return False
        told = await database.fetchval(
            "SELECT count(*) FROM submitter.submissions WHERE state = 'due' AND due_at > now()"
            " AND sent_at IS NULL AND 'quota' = ANY(delays_published)"
        )
        return bool(told == (3 - window) * QUOTA)

    for window in (1, 2, 3):
        await until(lambda window=window: waiting(window))
        assert len(await submitted()) == window * QUOTA
        await quarter_passes(demo, database)

    assert sorted(await submitted()) == sorted(ids)
    ledger = await demo.control("GET", "/ledger")
    assert ledger["requests"][CREATE] - before == len(mails)
    assert ledger["throttled"] == {}


@pytest.mark.parametrize(
    ("services", "report", "effects"),
    [
        (("submitter", "blocklist"), {"reporters": USERS[:2]}, {"submissions": CREATE, "tenant_blocks": NEW_BLOCK}),
        (
            ("blocklist",),
            {"reporters": USERS[:1], "reported_as": "junk", "block_sender": True},
            {"mailbox_blocks": SET_JUNK},
        ),
    ],
    ids=["submission and tenant block", "mailbox block"],
)
async def test_what_was_done_in_the_moment_before_a_crash_is_adopted(
    pairs: tuple[Stack, Demo, asyncpg.Connection],
    tmp_path: Path,
    services: tuple[str, ...],
    report: dict[str, Any],
    effects: dict[str, str],
) -> None:
    """Microsoft has answered, our commit has not come, and all replicas are killed: nothing is done a second time."""
    stack, demo, database = pairs
    await quarter_passes(demo, database)
    sender = f"moment-{len(services)}@pairs.example"
    mail = write(tmp_path, sender)
    before = (await demo.control("GET", "/ledger"))["requests"]
    held = database.transaction()
    await held.start()
    # Whoever settles writes an event: now the answer is read, and the transaction after it waits.
    await database.execute("LOCK TABLE submitter.outbox, blocklist.outbox IN EXCLUSIVE MODE")
    outcome = await demo.report(Reported(mail, **report))

    async def answered_and_not_committed() -> bool:
        done = await ledger_of(demo, mail)
        # Within a transaction, PostgreSQL would show its first look again.
        await database.execute("SELECT pg_stat_clear_snapshot()")
        blocked = await database.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND query LIKE 'INSERT INTO outbox%'"
        )
        return all(done[kind] and done[kind][0]["answer"]["outcome"] == "sent" for kind in effects) and {
            f"backstop-{service}" for service in services
        } == {row["application_name"] for row in blocked}

    await until(answered_and_not_committed)
    processes = [f"{service}-{n}" for service in services for n in (1, 2)]
    await asyncio.gather(*map(stack.supervisor.kill, processes))
    await held.rollback()
    assert not any(case.created for case in _cases(demo, outcome.report_ids))
    assert not any(block.outcome for block in _blocks(demo, sender))
    await asyncio.gather(*map(stack.supervisor.restart, processes))

    (block,) = await settled(demo, sender, outcome.report_ids, submitted="submissions" in effects)
    done = await ledger_of(demo, mail)
    assert not block.applied.already_present
    if "submissions" in effects:
        (created,) = _cases(demo, outcome.report_ids)[0].created.values()
        assert created.adopted
        assert created.graph_id == done["submissions"][0]["id"]
    after = (await demo.control("GET", "/ledger"))["requests"]
    for kind, route in effects.items():
        assert len(done[kind]) == 1
        assert after[route] - before.get(route, 0) == 1


@pytest.mark.parametrize("kind", ["drop_after_effect", "timeout"])
async def test_what_was_done_and_never_answered_is_adopted(
    pairs: tuple[Stack, Demo, asyncpg.Connection], tmp_path: Path, kind: str
) -> None:
    """The connection breaks, or the answer never comes: whoever comes next looks first."""
    _, demo, database = pairs
    await quarter_passes(demo, database)
    sender = f"{kind.replace('_', '-')}@pairs.example"
    mail = write(tmp_path, sender)
    faults = [{"route": route, "kind": kind, "seconds": 60} for route in (CREATE, NEW_BLOCK, SET_JUNK)]
    await demo.control("POST", "/faults", faults)
    outcome = await demo.report(Reported(mail, USERS[:2], block_sender=True))

    blocks = await settled(demo, sender, outcome.report_ids, submitted=True, wanted=2)
    (created,) = _cases(demo, outcome.report_ids)[0].created.values()
    done = await ledger_of(demo, mail)
    assert created.adopted
    assert {kind: len(entries) for kind, entries in done.items()} == dict.fromkeys(done, 1)
    assert not any(block.applied.already_present for block in blocks)


async def settled(
    demo: Demo, sender: str, report_ids: list[UUID], *, submitted: bool, wanted: int = 1
) -> list[BlockStory]:
    """Wait until the case is submitted and as many blocks of the sender as are wanted were made; return those."""

    async def done() -> bool:
        blocks, cases = _blocks(demo, sender), _cases(demo, report_ids)
        made = len(blocks) == wanted and all(block.applied for block in blocks)
        return made and (not submitted or any(case.created for case in cases))

    await until(done)
    return _blocks(demo, sender)


def _cases(demo: Demo, report_ids: list[UUID]) -> list[CaseStory]:
    ids = {demo.event_log.case_of[report_id] for report_id in report_ids if report_id in demo.event_log.case_of}
    return [demo.event_log.cases[case_id] for case_id in ids]


def _blocks(demo: Demo, sender: str) -> list[BlockStory]:
    return [story for story in demo.event_log.blocks.values() if story.wanted and story.wanted.block.value == sender]
