"""One fault run: start everything behind proxies, let people work, break things, heal, wait for quiet, check."""

import asyncio
import json
import re
import ssl
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from demo.event_log import EventLog
from demo.gateway import Gateway
from faults.load import USERS, Diary, Load
from faults.proxy import Proxy
from faults.schedule import Disturbance
from local_stack.backing import Backing
from local_stack.kafka import start_kafka
from local_stack.ports import choose_port
from local_stack.postgres import start_postgres
from local_stack.stack import SERVICES, Stack
from local_stack.supervisor import StackError, Supervisor

MANY = 1_000_000
"""A limit of Microsoft's that is not to be met: other tests are about those."""
REPLICAS = 2
PROCESSES = tuple(f"{service}-{number}" for service in SERVICES for number in range(1, REPLICAS + 1))
VERDICT_SECONDS = 2
LIVENESS_SECONDS = 10.0
SILENCE_SECONDS = 8.0
FAULT_SHARE = 0.4
"""Part of the calls to Microsoft that meet a fault while it is ordered."""
POLICY = """
[[rule]]
name = "phishing that two users saw"
when.reported_as = ["phishing", "malware"]
when.folder = ["inbox"]
when.min_reports = 2
then.submit = "as-reported"
then.block = "sender"
"""
DIGEST_SECONDS = 10
"""Stands for the four hours after which users hear of what is held for them."""
LONGEST_PAUSE_SECONDS = 120.0
"""Longest pause between two tries that is worth waiting for."""
UNFINISHED: Mapping[str, Sequence[str]] = {
    "submitter": ("submitter.submissions WHERE state = 'due'",),
    "verdict_poller": ("verdict_poller.watches WHERE state <> 'published'",),
    "blocklist": ("blocklist.entries WHERE true",),
    "quarantine": (
        "quarantine.actions WHERE state = 'pending'",
        "quarantine.digests WHERE state = 'pending'",
        "quarantine.syncs WHERE warning IS NOT NULL",
    ),
}
"""Rows that somebody will take up again when they are due."""
LEASES = {
    "submitter": "submission_lease_seconds",
    "blocklist": "block_lease_seconds",
    "verdict_poller": "verdict_lease_seconds",
    "quarantine": "quarantine_lease_seconds",
}
"""The setting that says how long a claimed row is held, by service."""
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "submitter": {
        # Longer than the connection to Microsoft ever hangs: a call may arrive when it is whole again, after the look.
        "submission_missing_after_seconds": 20,
        "submissions_per_15_minutes": MANY,
        "same_item_per_day": MANY,
    },
    "quarantine": {"quarantine_sync_interval_seconds": 2, "digest_period_seconds": DIGEST_SECONDS},
    "verdict_poller": {
        "verdict_poll_intervals": "1,1,1,2,5",
        "verdict_grid_seconds": 0.5,
        "tenant_settings_ttl_seconds": 5,
    },
}
SIMULATOR = {
    "verdict_delay_seconds": VERDICT_SECONDS,
    "submissions_per_window": MANY,
    # A second submission of the same mail must show in the ledger, and not be refused.
    "same_item_per_window": MANY,
    "same_item_per_day": MANY,
}


@dataclass
class Ground:
    """Kafka and PostgreSQL, each behind a proxy, and what can be done to them."""

    supervisor: Supervisor
    proxies: dict[str, Proxy]
    kafka_bootstrap: str
    postgres_dsn: str
    """Past the proxy: for those who watch."""

    def backing(self, database: str) -> Backing:
        """Say where services find Kafka and their *database*: behind the proxies."""
        dsn = self.postgres_dsn.rpartition("@")[0] + f"@127.0.0.1:{self.proxies['postgres'].port}/{database}"
        return Backing(self.kafka_bootstrap, dsn, "behind a proxy", "behind a proxy")

    async def connect(self, database: str) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect to *database* past the proxy."""
        return await asyncpg.connect(self.postgres_dsn.rpartition("/")[0] + f"/{database}", timeout=10)


@asynccontextmanager
async def ground(folder: Path) -> AsyncIterator[Ground]:
    """Start a Kafka and a PostgreSQL of our own, which may be killed."""
    async with AsyncExitStack() as life:
        supervisor = await life.enter_async_context(Supervisor(folder))
        ports = {name: (choose_port(f"{name}_proxy"), choose_port(name)) for name in ("kafka", "postgres")}
        proxies = {name: await life.enter_async_context(Proxy(*both)) for name, both in ports.items()}
        front, behind = ports["kafka"]
        await start_kafka(supervisor, port=behind, advertised_port=front)
        dsn = await start_postgres(supervisor, port=ports["postgres"][1])
        yield Ground(supervisor, proxies, f"127.0.0.1:{front}", dsn)


class Run:
    """A system under load that can be disturbed. `broken` says what is broken at the moment."""

    def __init__(
        self,
        place: Ground,
        name: str,
        stack: Stack,
        load: Load,
        event_log: EventLog,
        diary: Diary,
        microsoft: aiohttp.ClientSession,
        control: Callable[..., Awaitable[Any]],
    ) -> None:
        self.name = name
        self.control = control
        self.ground = place
        self.stack = stack
        self.load = load
        self.event_log = event_log
        self.diary = diary
        self.broken: list[str] = []
        self.killed = 0
        self.died: list[str] = []
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.read: dict[str, int] = {}
        self._handled: dict[tuple[str, int], float] = {}
        self._starts: Counter[str] = Counter()
        self._microsoft = microsoft
        self._faults: list[dict[str, object]] = []

    async def disturb(self, schedule: Sequence[Disturbance]) -> None:
        """Break what *schedule* says, when it says so; return when all of it is whole again."""
        async with asyncio.TaskGroup() as group:
            for disturbance in schedule:
                group.create_task(self._wait_and_break(disturbance))

    async def _wait_and_break(self, disturbance: Disturbance) -> None:
        await asyncio.sleep(disturbance.at)
        async with self._busy[disturbance.target]:
            self.diary.write("broken", disturbance=asdict(disturbance))
            self.broken.append(str(disturbance))
            try:
                await self._break(disturbance)
            finally:
                self.broken.remove(str(disturbance))

    async def _break(self, disturbance: Disturbance) -> None:
        kind, target, seconds = disturbance.kind, disturbance.target, disturbance.seconds
        match kind:
            case "kill" | "stop" | "freeze":
                await self._hurt(kind, target, seconds)
            case "cut" | "hang" | "slow":
                proxy = self.ground.proxies[target]
                getattr(proxy, kind)()
                await asyncio.sleep(seconds)
                proxy.heal()
            case "lock":
                await self._lock(target, seconds)
            case _:
                await self._fail_calls(kind, target, seconds)

    async def _hurt(self, kind: str, process: str, seconds: float) -> None:
        own = process in self.ground.proxies
        supervisor = self.ground.supervisor if own else self.stack.supervisor
        if kind == "freeze":
            supervisor.freeze(process)
            await asyncio.sleep(seconds)
            supervisor.resume(process)
            return
        await self._note_handled(process)
        self.killed += kind == "kill"
        await (supervisor.kill(process) if kind == "kill" else supervisor.stop(process))
        await asyncio.sleep(seconds)
        await self._start(supervisor, process)

    async def _start(self, supervisor: Supervisor, process: str) -> None:
        """Start it again, as an orchestrator does: until it is ready, whatever else is broken at the moment."""
        for _ in range(5):
            try:
                await supervisor.restart(process)
            except StackError as error:
                self._note_failed_start(str(error).partition("\n")[0])
            else:
                self._starts[process] += 1
                return
        raise StackError(f"{process} did not start again, though it was tried five times; see its log")

    def _note_failed_start(self, why: str) -> None:
        # Who starts while Kafka is away waits for it, for longer than the supervisor does; to end is another matter.
        if "was not ready" in why:
            self.diary.counts["slow starts"] += 1
        else:
            self.died.append(why)

    async def _lock(self, table: str, seconds: float) -> None:
        # PostgreSQL may be killed meanwhile, and the lock with it.
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await self.ground.connect(self.name)
            try:
                async with connection.transaction():
                    await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                    await asyncio.sleep(seconds)
            finally:
                await connection.close(timeout=5)

    async def _fail_calls(self, kind: str, routes: str, seconds: float) -> None:
        fault: dict[str, object] = {
            "route": routes,
            "kind": kind,
            "times": None,
            "probability": FAULT_SHARE,
            "seconds": 12,
            "retry_after": 2 if kind == "throttle" and routes.startswith("graph") else None,
        }
        self._faults.append(fault)
        await self._order_faults()
        await asyncio.sleep(seconds)
        self._faults.remove(fault)
        await self._order_faults()

    async def _order_faults(self) -> None:
        await self.control("DELETE", "/faults")
        if self._faults:
            await self.control("POST", "/faults", self._faults)

    async def keep_alive(self) -> None:
        """Restart who says three times in a row that it needs it, as an orchestrator does, until cancelled."""
        failures: Counter[str] = Counter()
        while True:
            await asyncio.sleep(LIVENESS_SECONDS)
            states = self.stack.supervisor.states()
            for name in [name for name in self.stack.urls if states.get(name) == "running"]:
                await self._note_handled(name)
                healthy = await self._is_alive(self.stack.urls[name])
                failures[name] = 0 if healthy else failures[name] + 1
                if failures[name] == 3 and not self._busy[name].locked():
                    self.diary.write("restarted", process=name)
                    await self._wait_and_break(Disturbance(0, "kill", name, 0))

    async def _note_handled(self, process: str) -> None:
        """Remember how many records a process has handled or parked since it was started."""
        if process not in self.stack.urls:
            return
        with suppress(aiohttp.ClientError, TimeoutError):
            limit = aiohttp.ClientTimeout(total=2)
            async with self._microsoft.get(f"{self.stack.urls[process]}/metrics", timeout=limit) as answer:
                counted = re.findall(
                    r"^backstop_events_(?:consumed|parked)_total\{.*\} (.*)$", await answer.text(), re.MULTILINE
                )
                self._handled[process, self._starts[process]] = sum(map(float, counted))

    async def redelivered(self) -> int:
        """Count the records that were handled more than once, as far as it was seen before a process was killed."""
        await asyncio.gather(*map(self._note_handled, self.stack.urls))
        return max(0, round(sum(self._handled.values())) - sum(self.read.values()))

    async def _is_alive(self, url: str) -> bool:
        limit = aiohttp.ClientTimeout(total=5)
        try:
            async with self._microsoft.get(f"{url}/livez", timeout=limit) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def quiet(self, patience: float) -> str | None:
        """
        Wait until each report has a case, each case and block an outcome, and each outbox is empty.

        Returns None then, or what is missing when nothing has happened for *patience* seconds in which nobody paused,
        or for LONGEST_PAUSE_SECONDS.
        """
        begun = heard = time.monotonic()
        state: str | None = ""
        while True:
            missing = await self._missing()
            if missing is None and state is None:
                # Two looks: what one reads after another may just have passed from here to there.
                return None
            if missing != state:
                begun = heard = time.monotonic()
                state = missing
            if time.monotonic() - heard > patience:
                if missing and (time.monotonic() - begun > LONGEST_PAUSE_SECONDS or not await self._pauses()):
                    return missing
                heard = time.monotonic()
            await asyncio.sleep(0.25)

    async def _pauses(self) -> bool:
        """Tell whether a service will go on with something by itself, after a pause."""
        connection = await self.ground.connect(self.name)
        try:
            return any(
                [
                    await connection.fetchval(
                        f"SELECT EXISTS (SELECT FROM {rows} AND due_at BETWEEN now() AND now() + $1::interval)",
                        timedelta(seconds=LONGEST_PAUSE_SECONDS),
                    )
                    for service, tables in UNFINISHED.items()
                    if service in self.stack.services
                    for rows in tables
                ]
            )
        finally:
            await connection.close()

    async def _missing(self) -> str | None:
        event_log = self.event_log
        homeless = len(self.load.accepted - event_log.case_of.keys())
        cases = sum(not case.has_outcome for case in event_log.cases.values())
        blocks = sum(not block.outcome for block in event_log.blocks.values())
        decided = {one.message_id for one in event_log.releases.values()}
        undecided = len(self.load.released - decided)
        unpublished, unread, untold = await self.unpublished(), await self.unread(), await self._untold()
        if homeless or cases or blocks or undecided or unpublished or unread or untold:
            return (
                f"{homeless} reports without case, {cases} cases and {blocks} blocks without outcome, {undecided}"
                f" releases untold, {untold} held mails in no digest, unpublished: {unpublished or 'nothing'},"
                f" unread: {unread or 'nothing'}"
            )
        return None

    async def _untold(self) -> int:
        """Count the held mails that are not mirrored yet, and those whose digest is not sent yet."""
        if "quarantine" not in self.stack.services:
            return 0
        connection = await self.ground.connect(self.name)
        try:
            (row,) = await connection.fetch(
                "SELECT count(*) AS mirrored, count(*) FILTER (WHERE (digest_id IS NULL AND status = 'not-released')"
                " OR digests.state = 'pending') AS untold FROM quarantine.messages"
                " LEFT JOIN quarantine.digests USING (digest_id)"
            )
        finally:
            await connection.close()
        return int(self.load.held - row["mirrored"] + row["untold"])

    async def unread(self) -> str:
        """Name the consumer groups that have records before them."""
        admin, consumer = (
            AIOKafkaAdminClient(bootstrap_servers=self.ground.kafka_bootstrap),
            AIOKafkaConsumer(bootstrap_servers=self.ground.kafka_bootstrap, enable_auto_commit=False),
        )
        try:
            await admin.start()
            await consumer.start()
            described = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()}
            read, behind = Counter[str](), dict[str, int]()
            for group, *_ in await admin.list_consumer_groups():
                if not group.startswith(f"{self.name}."):
                    continue
                service, _, topic = group.removeprefix(f"{self.name}.").partition(".")
                committed = await admin.list_consumer_group_offsets(group)
                name = f"{self.name}.{topic}"
                places = [TopicPartition(name, one["partition"]) for one in described[name]]
                at = {place: max(committed[place].offset, 0) if place in committed else 0 for place in places}
                ends = await consumer.end_offsets(places)
                read[service] += sum(at.values())
                behind[f"{service} of {topic}"] = sum(ends.values()) - sum(at.values())
            self.read |= read
        finally:
            await consumer.stop()
            await admin.close()
        return ", ".join(f"{count} by {group}" for group, count in behind.items() if count)

    async def unpublished(self) -> str:
        """Name the services whose outbox is not empty."""
        connection = await self.ground.connect(self.name)
        try:
            schemas = await connection.fetch("SELECT schemaname FROM pg_tables WHERE tablename = 'outbox'")
            counts = {
                row["schemaname"]: await connection.fetchval(f"SELECT count(*) FROM {row['schemaname']}.outbox")
                for row in schemas
            }
        finally:
            await connection.close()
        return ", ".join(f"{count} by {schema}" for schema, count in counts.items() if count)

    def line(self) -> str:
        """Say in one line what is broken and what is in flight."""
        event_log = self.event_log
        waiting = sum(not case.has_outcome for case in event_log.cases.values())
        return (
            f"{len(self.load.accepted)} accepted, {len(self.load.accepted - event_log.case_of.keys())} without case,"
            f" {len(event_log.cases)} cases, {waiting} in flight | {'; '.join(self.broken) or 'all is whole'}"
        )


async def call_control(
    microsoft: aiohttp.ClientSession, simulator_url: str, method: str, path: str, body: object = None
) -> Any:
    """Call a control route of the simulator."""
    url = f"{simulator_url}/simulator{path}"
    async with microsoft.request(method, url, json=body, raise_for_status=True) as answer:
        return await answer.json() if answer.status != 204 else None


@asynccontextmanager
async def running(
    place: Ground,
    folder: Path,
    name: str,
    *,
    seed: int,
    rate: float,
    replicas: int = REPLICAS,
    services: Sequence[str] = SERVICES,
    modules: Mapping[str, str] | None = None,
    session_seconds: float,
    lease_seconds: float,
) -> AsyncIterator[Run]:
    """
    Start all services on *place*, with topics and a database called *name*, and people who may begin to work.

    *session_seconds* and *lease_seconds* say how soon somebody else goes on after a crash: with partitions, with rows.
    """
    server = await place.connect("postgres")
    await server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    await server.close()
    policy = folder / "policy.toml"
    await asyncio.to_thread(_write, policy, POLICY)
    async with AsyncExitStack() as life:
        proxy = await life.enter_async_context(Proxy(choose_port("microsoft")))
        place.proxies["microsoft"] = proxy
        died: list[str] = []
        settings: dict[str, Mapping[str, object]] = {
            **{name: {lease: lease_seconds, **SETTINGS.get(name, {})} for name, lease in LEASES.items()},
            "*": {
                "topic_prefix": name,
                "kafka_session_timeout_seconds": session_seconds,
                "graph_url": f"https://127.0.0.1:{proxy.port}",
                "exchange_url": f"https://127.0.0.1:{proxy.port}",
            },
            "triage": {"policy_file": policy},
        }
        stack = await life.enter_async_context(
            Stack(
                folder,
                replicas=replicas,
                settings=settings,
                services=services,
                found=place.backing(name),
                modules=modules,
                on_death=lambda process, code: died.append(f"{process} ended by itself with exit code {code}"),
            )
        )
        proxy.target = int(stack.simulator_url.rpartition(":")[2])
        trust = ssl.create_default_context(cafile=stack.ca_file)
        microsoft = await life.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, force_close=True))
        )
        doors = [
            await life.enter_async_context(Gateway(url))
            for name_, url in stack.urls.items()
            if name_.startswith("gateway-") or (name_ == "gateway" and replicas == 1)
        ]
        diary = Diary(folder / "diary.jsonl")
        life.callback(diary.close)
        control = partial(call_control, microsoft, stack.simulator_url)
        load = Load(
            diary,
            doors,
            seed=seed,
            rate=rate,
            kafka_bootstrap=place.kafka_bootstrap,
            prefix=name,
            control=control,
            tenant_id=stack.tenant_id,
        )
        event_log = EventLog(place.kafka_bootstrap, prefix=name, listener=lambda _event, _time: None)
        run = Run(place, name, stack, load, event_log, diary, microsoft, control)
        run.died = died
        await run.control("PATCH", "/settings", SIMULATOR)
        await _sign_in(run)
        for job in (_follow(event_log), run.keep_alive()):
            life.push_async_callback(_end, asyncio.create_task(job))
        yield run


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


async def _follow(event_log: EventLog) -> None:
    """Follow, and begin anew when nothing was heard for a while: after Kafka was killed a consumer may hear no more."""
    while True:
        following = asyncio.create_task(event_log.follow())
        try:
            while True:
                event_log.changed.clear()
                async with asyncio.timeout(SILENCE_SECONDS):
                    await event_log.changed.wait()
        except TimeoutError:
            pass
        finally:
            following.cancel()
            # Not awaited: the end of what is followed would be mistaken for the end of this, or hide it.
            await asyncio.wait([following])
            if not following.cancelled() and not isinstance(
                error := following.exception(), KafkaError | OSError | None
            ):
                raise error


async def _sign_in(run: Run) -> None:
    addresses, tokens = {}, {}
    for number in range(USERS):
        address = f"user{number}@contoso.example"
        mailbox = await run.control("PATCH", f"/tenants/{run.stack.tenant_id}/mailboxes/{address}", {})
        addresses[mailbox["user_id"]] = address
        tokens[address] = await _token(run, ["Reporter"], address, oid=mailbox["user_id"])
    run.diary.write("people", addresses=addresses)
    run.load.sign_in(tokens, await _token(run, ["SecurityAdministrator", "SecurityReader"], "admin@contoso.example"))


async def _token(run: Run, roles: list[str], name: str, **more: str) -> str:
    order = {
        "tenant": run.stack.tenant_id,
        "audience": run.stack.api_audience,
        "roles": roles,
        "preferred_username": name,
        "scp": "access_as_user",
        "expires_in": 24 * 3600,
        **more,
    }
    return str((await run.control("POST", "/tokens", order))["access_token"])


@dataclass
class Report:
    """What a run came to. `wrong` is empty when every promise was kept."""

    wrong: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)


async def judge(run: Run, patience: float) -> Report:
    """Wait for quiet, have everything read once more by the people, and run the checker over what is there."""
    missing = await run.quiet(patience)
    if missing is None:
        await run.load.read_all(list(run.event_log.cases))
    arguments = {
        "--kafka-bootstrap": run.ground.kafka_bootstrap,
        "--prefix": run.name,
        "--simulator-url": run.stack.simulator_url,
        "--ca-file": str(run.stack.ca_file),
        "--postgres-dsn": run.ground.postgres_dsn.rpartition("/")[0] + f"/{run.name}",
    }
    checker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faults.check", str(run.diary.file)),
        *(word for pair in arguments.items() for word in pair),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await checker.communicate()
    *wrong, counts = output.decode().splitlines() or ["the checker said nothing", "{}"]
    if checker.returncode and not wrong:
        wrong = ["the checker failed; see above"]
    if missing:
        wrong.insert(0, f"not quiet after {patience:.0f} s in which nothing happened: {missing}")
    wrong.extend(run.died)
    counted = {
        **run.diary.counts,
        **json.loads(counts),
        "killed": run.killed,
        "redelivered": await run.redelivered(),
        "looked before repeating": _looks(run),
    }
    return Report(wrong, counted)


def _looks(run: Run) -> int:
    logs = (run.stack.folder / "logs").glob("*.log")
    return sum(log.read_bytes().count(b'"submission.looked_up"') for log in logs)
