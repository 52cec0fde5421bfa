"""A system under load that can be disturbed: services on Kafka and PostgreSQL behind proxies, users and an admin."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from aiokafka.errors import KafkaError

from demo.event_log import EventLog
from demo.gateway import Gateway
from faults.disturber import Disturber
from faults.environment import Environment
from faults.load import USERS, Diary, Load
from faults.progress import Progress
from faults.proxy import Proxy
from faults.settings import LEASES, POLICY, SETTINGS, SIMULATOR
from local_stack.ports import choose_port
from local_stack.stack import SERVICES, Stack

REPLICAS = 2
PROCESSES = tuple(f"{service}-{number}" for service in SERVICES for number in range(1, REPLICAS + 1))
SILENCE_SECONDS = 8.0


@dataclass
class Run:
    """A system under load, with its disturber and its progress."""

    environment: Environment
    name: str
    stack: Stack
    load: Load
    event_log: EventLog
    diary: Diary
    progress: Progress
    disturber: Disturber
    control: Callable[..., Awaitable[Any]]

    def line(self) -> str:
        """Return one line with what is in flight and what is broken."""
        event_log = self.event_log
        waiting = sum(not case.has_outcome for case in event_log.cases.values())
        return (
            f"{len(self.load.accepted)} accepted, {len(self.load.accepted - event_log.case_of.keys())} without case,"
            f" {len(event_log.cases)} cases, {waiting} in flight | {'; '.join(self.disturber.active) or 'undisturbed'}"
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
    environment: Environment,
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
    Start all services on *environment*, with topics and a database called *name*, and sign in users and an admin.

    After a crash, another process takes over partitions after *session_seconds* and claimed rows after *lease_seconds*.
    """
    server = await environment.connect("postgres")
    await server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    await server.close()
    policy = folder / "policy.toml"
    await asyncio.to_thread(_write, policy, POLICY)
    async with AsyncExitStack() as life:
        proxy = await life.enter_async_context(Proxy(choose_port("microsoft")))
        environment.proxies["microsoft"] = proxy
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
                found=environment.backing(name),
                modules=modules,
                on_death=lambda process, code: died.append(f"{process} exited on its own with code {code}"),
            )
        )
        proxy.target = int(stack.simulator_url.rpartition(":")[2])
        trust = ssl.create_default_context(cafile=stack.ca_file)
        microsoft = await life.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, force_close=True))
        )
        gateways = [
            await life.enter_async_context(Gateway(url))
            for name_, url in stack.urls.items()
            if name_.startswith("gateway-") or (name_ == "gateway" and replicas == 1)
        ]
        diary = Diary(folder / "diary.jsonl")
        life.callback(diary.close)
        control = partial(call_control, microsoft, stack.simulator_url)
        load = Load(
            diary,
            gateways,
            seed=seed,
            rate=rate,
            kafka_bootstrap=environment.kafka_bootstrap,
            prefix=name,
            control=control,
            tenant_id=stack.tenant_id,
        )
        event_log = EventLog(environment.kafka_bootstrap, prefix=name, listener=lambda _event, _time: None)
        progress = Progress(environment, name, stack, load, event_log, microsoft)
        disturber = Disturber(environment, name, stack, diary, progress, microsoft, control)
        disturber.died = died
        run = Run(environment, name, stack, load, event_log, diary, progress, disturber, control)
        await run.control("PATCH", "/settings", SIMULATOR)
        await _sign_in(run)
        for job in (_follow(event_log), disturber.keep_alive()):
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
    """Follow the events; restart after a while of silence, because a consumer may stall after Kafka was killed."""
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
            # Not awaited directly: its cancellation would be confused with our own.
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
