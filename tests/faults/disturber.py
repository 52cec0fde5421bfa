"""Carries out the disturbances of a fault run, and restarts unhealthy processes as an orchestrator would."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import aiohttp
import asyncpg

from faults.environment import Environment
from faults.load import Diary
from faults.progress import Progress
from faults.schedule import Disturbance
from local_stack.stack import Stack
from local_stack.supervisor import StackError, Supervisor

LIVENESS_SECONDS = 10.0
FAULT_SHARE = 0.4
"""Share of the calls to Microsoft that fail while a fault is active."""


class Disturber:
    """
    Breaks and repairs the parts of a running system.

    `active` lists the current disturbances, `killed` counts the killed processes, and `died` describes processes that
    exited on their own.
    """

    def __init__(
        self,
        environment: Environment,
        name: str,
        stack: Stack,
        diary: Diary,
        progress: Progress,
        http: aiohttp.ClientSession,
        control: Callable[..., Awaitable[Any]],
    ) -> None:
        self.active: list[str] = []
        self.killed = 0
        self.died: list[str] = []
        self._name = name
        self._environment = environment
        self._stack = stack
        self._diary = diary
        self._progress = progress
        self._http = http
        self._control = control
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._faults: list[dict[str, object]] = []

    async def disturb(self, schedule: Sequence[Disturbance]) -> None:
        """Carry out *schedule*; return when every disturbance is over."""
        async with asyncio.TaskGroup() as group:
            for disturbance in schedule:
                group.create_task(self._wait_and_break(disturbance))

    async def _wait_and_break(self, disturbance: Disturbance) -> None:
        await asyncio.sleep(disturbance.at)
        async with self._busy[disturbance.target]:
            self._diary.write("broken", disturbance=asdict(disturbance))
            self.active.append(str(disturbance))
            try:
                await self._break(disturbance)
            finally:
                self.active.remove(str(disturbance))

    async def _break(self, disturbance: Disturbance) -> None:
        kind, target, seconds = disturbance.kind, disturbance.target, disturbance.seconds
        match kind:
            case "kill" | "stop" | "freeze":
                await self._interrupt(kind, target, seconds)
            case "cut" | "hang" | "slow":
                proxy = self._environment.proxies[target]
                getattr(proxy, kind)()
                await asyncio.sleep(seconds)
                proxy.heal()
            case "lock":
                await self._lock(target, seconds)
            case _:
                await self._fail_calls(kind, target, seconds)

    async def _interrupt(self, kind: str, process: str, seconds: float) -> None:
        own = process in self._environment.proxies
        supervisor = self._environment.supervisor if own else self._stack.supervisor
        if kind == "freeze":
            supervisor.freeze(process)
            await asyncio.sleep(seconds)
            supervisor.resume(process)
            return
        await self._progress.note_handled(process)
        self.killed += kind == "kill"
        await (supervisor.kill(process) if kind == "kill" else supervisor.stop(process))
        await asyncio.sleep(seconds)
        await self._start(supervisor, process)

    async def _start(self, supervisor: Supervisor, process: str) -> None:
        """Restart a process until it is ready, as an orchestrator does, whatever else is broken."""
        for _ in range(5):
            try:
                await supervisor.restart(process)
            except StackError as error:
                self._note_failed_start(str(error).partition("\n")[0])
            else:
                self._progress.note_start(process)
                return
        raise StackError(f"{process} did not restart in five attempts; see its log")

    def _note_failed_start(self, why: str) -> None:
        # A process that starts while Kafka is unavailable waits longer than the supervisor does, but must not exit.
        if "was not ready" in why:
            self._diary.counts["slow starts"] += 1
        else:
            self.died.append(why)

    async def _lock(self, table: str, seconds: float) -> None:
        # PostgreSQL may be killed meanwhile, which releases the lock.
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await self._environment.connect(self._name)
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
        await self._control("DELETE", "/faults")
        if self._faults:
            await self._control("POST", "/faults", self._faults)

    async def keep_alive(self) -> None:
        """Restart processes that fail three liveness checks in a row, as an orchestrator does, until cancelled."""
        failures: Counter[str] = Counter()
        while True:
            await asyncio.sleep(LIVENESS_SECONDS)
            states = self._stack.supervisor.states()
            for name in [name for name in self._stack.urls if states.get(name) == "running"]:
                await self._progress.note_handled(name)
                healthy = await self._is_alive(self._stack.urls[name])
                failures[name] = 0 if healthy else failures[name] + 1
                if failures[name] == 3 and not self._busy[name].locked():
                    self._diary.write("restarted", process=name)
                    await self._wait_and_break(Disturbance(0, "kill", name, 0))

    async def _is_alive(self, url: str) -> bool:
        limit = aiohttp.ClientTimeout(total=5)
        try:
            async with self._http.get(f"{url}/livez", timeout=limit) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False
