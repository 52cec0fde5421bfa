"""The whole of Backstop as processes: which there are, what each is told, and in which order they start."""

import asyncio
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local_stack.backing import Backing, backing
from local_stack.ports import choose_port
from local_stack.probes import is_ready, listens
from local_stack.supervisor import STATE, StackError, Supervisor, explain, say, together

SERVICES = ("reporter", "triage", "submitter", "verdict_poller", "blocklist", "quarantine", "gateway")
API_AUDIENCE = "0a1b2c3d-0000-4000-8000-00000000b001"

_OTHER_VERSION = "the schema there is of another version"
_SERVICE_SECONDS = 90


class Stack:
    """
    Kafka, PostgreSQL, the simulator and every service, ready for use while the context is entered.

    *folder* takes data and logs (`<folder>/logs/<process>.log`); without one, a folder below `.local` is made, and
    removed at the end, but kept after a failure. *replicas* is how many processes each service has, or how
    many those named have: more than one are called `triage-1`, `triage-2`. *settings* adds settings by service, or for
    all under `"*"`, named without their prefix: `{"verdict_poller": {"kafka_max_batch": 1}}`; the last word is theirs.
    *simulator_options* are appended to the simulator's command line. *services* limits what there is; services of
    *without* have an address and settings, but are started by somebody else, such as in a debugger. With *found*,
    Kafka and PostgreSQL that already run are used. *modules* names another program to run in place of a service's own.
    *on_death* hears of processes that ended by themselves.
    Raises `StackError` when a part cannot be started; what was started is stopped then.
    """

    api_audience = API_AUDIENCE

    def __init__(
        self,
        folder: Path | None = None,
        *,
        replicas: int | Mapping[str, int] = 1,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        simulator_options: Sequence[str] = (),
        services: Sequence[str] = SERVICES,
        without: Collection[str] = (),
        found: Backing | None = None,
        modules: Mapping[str, str] | None = None,
        on_death: Callable[[str, int], None] | None = None,
    ) -> None:
        self._is_temporary = folder is None
        self.folder = (folder or STATE / f"run-{secrets.token_hex(4)}").absolute()
        self.supervisor = Supervisor(self.folder, on_death)
        self.urls: dict[str, str] = {}
        self.services = tuple(services)
        self._without = frozenset(without)
        self._replicas = {name: replicas if isinstance(replicas, int) else replicas.get(name, 1) for name in services}
        self._settings = settings or {}
        self._simulator_options = simulator_options
        self._found = found
        self._modules = modules or {}
        self._link_key = secrets.token_hex(32)

    async def __aenter__(self) -> Self:
        try:
            async with AsyncExitStack() as life:
                await life.enter_async_context(self.supervisor)
                await self._start(life)
                self._life = life.pop_all()
        except OSError as error:
            raise StackError(explain(error)) from error
        except asyncio.CancelledError:
            self._forget()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.__aexit__(kind, error, trace)
        if error is None or isinstance(error, asyncio.CancelledError):
            self._forget()
        else:
            say(f"The logs of this run are in {self.folder / 'logs'}")

    def _forget(self) -> None:
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _start(self, life: AsyncExitStack) -> None:
        (self.folder / "mails").mkdir(parents=True, exist_ok=True)
        ports = self._choose_ports()
        await together(self._start_simulator(), self._find_backing(life))
        await self.supervisor.run("topics", _python("backstop", "topics", "create"), env=self.environment("topics"))
        life.push_async_callback(self._stop_services, list(ports))
        started = {name: place for name, place in ports.items() if place[0] not in self._without}
        await together(*(self._start_service(name, service, port) for name, (service, port) in started.items()))

    def _choose_ports(self) -> dict[str, tuple[str, int]]:
        ports = {}
        for service, count in self._replicas.items():
            names = [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]
            for name in names:
                ports[name] = (service, choose_port(name.replace("-", "_")))
                self.urls[name] = f"http://127.0.0.1:{ports[name][1]}"
            self.urls[service] = self.urls[names[0]]
        return ports

    async def _find_backing(self, life: AsyncExitStack) -> None:
        found = self._found
        if found is None:
            found = await life.enter_async_context(backing(self.folder, self.supervisor))
        self.kafka_bootstrap, self.postgres_dsn = found.kafka_bootstrap, found.postgres_dsn
        self.topic_prefix = str(self._settings.get("*", {}).get("topic_prefix", found.topic_prefix))

    async def _start_simulator(self) -> None:
        folder, port = self.folder / "simulator", choose_port("simulator")
        folder.mkdir(exist_ok=True)
        about = folder / "simulator.json"
        about.unlink(missing_ok=True)

        async def ready() -> bool:
            return await asyncio.to_thread(about.exists) and await listens(f"127.0.0.1:{port}")

        options = ["--port", str(port), "--folder", str(folder), *self._simulator_options]
        await self.supervisor.start("simulator", _python("simulator", *options), ready=ready)
        self._simulator: dict[str, Any] = json.loads(about.read_text())
        self.simulator_url: str = self._simulator["url"]
        self.ca_file = Path(self._simulator["ca_file"])
        self.tenant_id: str = self._simulator["tenants"][0]

    async def _start_service(self, name: str, service: str, port: int) -> None:
        async def ready() -> bool:
            return await listens(f"127.0.0.1:{port}") and await is_ready(self.urls[name])

        env = {**self.environment(service), "BACKSTOP_HTTP_PORT": str(port)}
        program = _python(self._modules.get(service, service))
        try:
            await self.supervisor.start(name, program, env=env, ready=ready, deadline=_SERVICE_SECONDS)
        except StackError as error:
            if _OTHER_VERSION not in str(error):
                raise
            raise StackError(
                f"The data in {self.folder} was made by another version of Backstop, and nothing carries it over."
                f" `make clean` removes it; then start again.\n{error}"
            ) from None

    async def _stop_services(self, names: Sequence[str]) -> None:
        running = self.supervisor.states()
        await together(*(self.supervisor.stop(name) for name in names if name in running))

    def environment(self, service: str) -> dict[str, str]:
        """Return the settings of *service* as environment variables, all but its port."""
        settings = {
            "KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "TOPIC_PREFIX": self.topic_prefix,
            "POSTGRES_DSN": self.postgres_dsn,
            "HTTP_HOST": "127.0.0.1",
            "TENANTS": ",".join(self._simulator["tenants"]),
            "API_AUDIENCE": self.api_audience,
            "AUTHORITY": self.simulator_url,
            "GRAPH_URL": self.simulator_url,
            "EXCHANGE_URL": self.simulator_url,
            "EXCHANGE_WRITE_INTERVAL_SECONDS": 0,
            "CA_FILE": self.ca_file,
            "CLIENT_ID": self._simulator["client_id"],
            "CLIENT_SECRET": self._simulator["client_secret"],
            "MAIL_STORE": (self.folder / "mails").as_uri(),
            **{f"{name.upper()}_URL": url for name, url in self.urls.items() if name in SERVICES},
            "PUBLIC_URL": self.urls.get("quarantine", "http://127.0.0.1"),
            "LINK_KEYS": self._link_key,
            **self._settings.get("*", {}),
            **self._settings.get(service, {}),
        }
        return {f"BACKSTOP_{name.upper()}": str(value) for name, value in settings.items()}

    def addresses(self) -> dict[str, Any]:
        """Return where everything is, for programs that did not start it."""
        return {
            "urls": self.urls,
            "kafka_bootstrap": self.kafka_bootstrap,
            "topic_prefix": self.topic_prefix,
            "postgres_dsn": self.postgres_dsn,
            "simulator_url": self.simulator_url,
            "ca_file": str(self.ca_file),
            "tenant_id": self.tenant_id,
            "api_audience": self.api_audience,
            "environments": {
                service: {**self.environment(service), "BACKSTOP_HTTP_PORT": self.urls[service].rpartition(":")[2]}
                for service in self._without
            },
        }


def _python(module: str, *options: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *options]
