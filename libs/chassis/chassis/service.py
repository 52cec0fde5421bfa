"""A service as one process: HTTP, consumer, relay and workers, started and stopped in the right order."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import structlog
import uvicorn
from fastapi import APIRouter, FastAPI
from faststream.kafka import KafkaRouter

from chassis import dead_letters, telemetry
from chassis.backlog_metrics import Sampler
from chassis.consumer import Consumer
from chassis.dead_letters_api import make_router
from chassis.entra import Authenticator
from chassis.http import Check, Info, make_api
from chassis.migrations import MigrationError
from chassis.postgres import Database, UnreadableDsnError, is_transient
from chassis.relay import Relay
from chassis.request_limits import Connection
from chassis.settings import DSN_WANTED, HttpSettings, ServiceSettings, SetupError
from chassis.worker import WorkLoop

log = structlog.get_logger()


def authenticator(settings: HttpSettings) -> Authenticator:
    """Return the token check that *settings* describe."""
    return Authenticator(
        authority=settings.authority,
        tenants=settings.tenants,
        audience=settings.api_audience,
        scope=settings.api_scope,
        ca_file=settings.ca_file,
    )


class Service:
    """
    The parts of one service: compose it in `app.build`, then `serve` it.

    `db` may be handed on at once; it is open from the moment the service has started.
    """

    def __init__(
        self,
        name: str,
        settings: ServiceSettings,
        *,
        title: str,
        description: str,
        migrations: Path,
        libraries: Sequence[Path] = (),
    ) -> None:
        self.name = name
        self.settings = settings
        self.db = Database(settings.postgres_dsn.get_secret_value(), schema=name.replace("-", "_"))
        self._migrations = migrations
        self._libraries = libraries
        self._workers: list[WorkLoop] = []
        self._due: dict[str, str] = {}
        self._woken: list[WorkLoop] = []
        self._relay = Relay(
            self.db,
            service=name,
            kafka_bootstrap=settings.kafka_bootstrap,
            kafka_options=settings.kafka_options(),
            topic_prefix=settings.topic_prefix,
        )
        self._consumer: Consumer | None = None
        self._joining: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self._has_routes = False
        self.api = make_api(
            title=title, description=description, ready=self._ready(), alive=self._alive(), limits=settings.limits
        )
        self.api.state.authenticator = authenticator(settings)
        self.api.router.lifespan_context = self._lifespan
        self.api.include_router(make_router(self.db))
        self.add_worker("purge_dead_letters", partial(dead_letters.purge, self.db), idle=3600, woken=False)

    def subscribe(self, router: KafkaRouter, **context: Any) -> None:
        """Handle the events of *router*'s subscribers. *context*: what handlers ask for by name, beside `tx`."""
        self._consumer = Consumer(
            router,
            service=self.name,
            database=self.db,
            kafka_bootstrap=self.settings.kafka_bootstrap,
            kafka_options=self.settings.kafka_options(),
            topic_prefix=self.settings.topic_prefix,
            max_batch=self.settings.kafka_max_batch,
            session_seconds=self.settings.kafka_session_timeout_seconds,
            halt_after=self.settings.halt_after_dead_letters,
            context=context,
        )

    def add_router(self, router: APIRouter) -> None:
        """
        Serve the routes of *router*.

        Readiness is then about requests alone, for which PostgreSQL is enough: /readyz still reports the consumer's
        state, but does not fail because of it.
        """
        self._has_routes = True
        self.api.include_router(router)

    def add_worker(
        self,
        name: str,
        step: Callable[[], Awaitable[int]],
        *,
        idle: float = 1.0,
        due: str | None = None,
        woken: bool = True,
    ) -> None:
        """
        Call *step* again and again: see `chassis.worker.WorkLoop`. Not *woken*: only time makes its rows due.

        *due* is a query for the `due_at` of the rows that wait for it: how long they have waited is a metric.
        """
        if due:
            self._due[name] = due
        loop = WorkLoop(name, step, idle=idle, on_handled=self._wake_workers)
        self._workers.append(loop)
        if woken:
            self._woken.append(loop)
            self.db.on_commit(loop.wake)

    def _wake_workers(self) -> None:
        for loop in self._woken:
            loop.wake()

    @asynccontextmanager
    async def _lifespan(self, _api: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.db.close)
            # Every topic and worker may hold a connection; none waits for another's unless requests take them all.
            topics = len(self._consumer.topics) if self._consumer else 0
            await self._open_database(topics + len(self._workers) + self.settings.postgres_request_connections)
            self._start(self._relay.run())
            for loop in self._workers:
                self._start(loop.run())
            if self._consumer:
                self._joining = self._start(self._join(self._consumer))
            sampler = Sampler(self.db, self._due, self._consumer)
            self._start(sampler.run())
            log.info("service.started")
            try:
                yield
            finally:
                await sampler.stop()
                await self._drain()

    async def _open_database(self, pool_size: int) -> None:
        try:
            await self.db.open(self._migrations, libraries=self._libraries, pool_size=pool_size)
        except UnreadableDsnError:
            raise SetupError(f"BACKSTOP_POSTGRES_DSN: {DSN_WANTED}") from None
        except MigrationError as error:
            raise SetupError(f"BACKSTOP_POSTGRES_DSN: the schema there is of another version: {error}") from None
        except asyncpg.PostgresError as error:
            # What PostgreSQL says may hold names from the DSN: for the log, as it says the same of later refusals.
            log.error("postgres.refused", error=type(error).__name__, reason=str(error))  # noqa: TRY400
            refusal = f"{type(error).__name__} (SQLSTATE {error.sqlstate})"
            raise SetupError(f"BACKSTOP_POSTGRES_DSN: PostgreSQL refuses this service: {refusal}") from None

    def _start(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(job)
        self._tasks.append(task)
        return task

    async def _join(self, consumer: Consumer) -> None:
        await consumer.start()
        log.info("consumer.joined")

    async def _drain(self) -> None:
        """Stop taking in, finish what was taken, publish what that caused."""
        self._draining = True
        log.info("service.draining")
        if self._joining:
            # Who joined the group now would keep its partitions from the others after it is gone.
            self._joining.cancel()
            await asyncio.wait([self._joining], timeout=10)
        if self._consumer:
            await _bounded(self._consumer.stop(), 30, "consumer")
        for loop in self._workers:
            await loop.stop()
        await self._relay.stop()
        await _bounded(asyncio.gather(*self._tasks, return_exceptions=True), 20, "workers")
        for task in self._tasks:
            task.cancel()
        log.info("service.stopped")

    def _ready(self) -> dict[str, Check]:
        async def postgres() -> str | None:
            try:
                await self.db.ping()
            except Exception as error:  # noqa: BLE001 - any failure means not ready
                return f"away: {type(error).__name__}"
            return None

        async def consumer() -> str | None:
            state = self._consumer_state()
            return Info(state) if state and self._has_routes else state

        async def tasks() -> str | None:
            if not self._tasks:
                return "starting"
            return "draining" if self._draining else self._dead_task()

        return {"postgres": postgres, "consumer": consumer, "tasks": tasks}

    def _consumer_state(self) -> str | None:
        if self._consumer is None:
            return None
        if halted := self._consumer.halted:
            dead = f"`backstop dead list --service {self.name}`"
            return f"halted: every event of {', '.join(sorted(halted))} was parked; see {dead}"
        if unassigned := self._consumer.unassigned:
            return f"waiting for the group's assignment: {', '.join(sorted(unassigned))}"
        if unreadable := sorted(self._consumer.unreadable.items()):
            places = "; ".join(f"{place.topic} {place.partition} {offset}" for place, offset in unreadable)
            return Info(f"unreadable records at {places}; see `backstop topics skip --help`")
        return None

    def _alive(self) -> dict[str, Check]:
        async def progress() -> str | None:
            stuck = self._consumer is not None and self._consumer.stuck
            return "records wait and the consumer does not move" if stuck else None

        async def tasks() -> str | None:
            return None if self._draining else self._dead_task()

        return {"consumer": progress, "tasks": tasks}

    def _dead_task(self) -> str | None:
        """Return which background task has ended unasked, if any."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                return f"a background task ended: {type(error).__name__}"
        return None


def _tune_garbage_collector() -> None:
    """
    Exempt objects that exist after start-up from garbage collection, and collect less often.

    Otherwise a batch of thousands of events spends half of its time on objects that live for ever.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


async def _bounded(job: Awaitable[Any], seconds: float, what: str) -> None:
    try:
        await asyncio.wait_for(job, seconds)
    except TimeoutError:
        log.warning("service.stop_timeout", part=what)
    except Exception as error:
        if not is_transient(error):
            log.exception("service.stop_failed", part=what)


class Server(uvicorn.Server):
    """
    uvicorn's server, which listens first and runs the lifespan of *api* meanwhile.

    So /livez, /readyz and /metrics are answered while PostgreSQL is away, for hours if it must be, and a signal ends
    the server in every state. `run` and `serve` re-raise lifespan errors. `is_up` is True once the lifespan has begun.
    """

    def __init__(self, api: FastAPI, config: uvicorn.Config, on_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_up = on_up
        self._lifespan = api.router.lifespan_context(api)
        self._leaving = asyncio.Event()
        self._living: asyncio.Task[None] | None = None
        self.is_up = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin the lifespan. Raises SetupError if the port is taken."""
        try:
            await super().startup(sockets)
        except SystemExit:
            raise SetupError("BACKSTOP_HTTP_HOST, BACKSTOP_HTTP_PORT: nobody can listen there; see the log") from None
        self._living = asyncio.create_task(self._live())

    async def _live(self) -> None:
        try:
            async with self._lifespan:
                self.is_up = True
                self._on_up()
                await self._leaving.wait()
        finally:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, then end the lifespan: in order if it had begun, at once after a second signal."""
        await super().shutdown(sockets)
        self._leaving.set()
        living = self._living
        while living and not living.done():
            if self.force_exit or not self.is_up:
                # Again and again: what ends may wait in turn, such as for PostgreSQL to take note of it.
                living.cancel()
            await asyncio.wait([living], timeout=1)
        if living and not living.cancelled():
            await living


def server(api: FastAPI, *, host: str = "127.0.0.1", port: int = 0, on_up: Callable[[], None] = lambda: None) -> Server:
    """Return the HTTP server of an application of `make_api`, with its limits; it calls *on_up* once it has started."""
    return Server(
        api,
        uvicorn.Config(
            api,
            host=host,
            port=port,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            timeout_keep_alive=api.state.limits.idle_seconds,
            h11_max_incomplete_event_size=64 << 10,
        ),
        on_up,
    )


def serve(name: str, settings: HttpSettings, building: AbstractAsyncContextManager[Service | FastAPI]) -> None:
    """
    Build what *building* yields, and serve it until SIGTERM or SIGINT; then finish what is in hand.

    Raises SetupError; logs any other failure: exit code 3.
    """
    telemetry.configure(name, settings.log_level)

    async def run() -> None:
        with ExitStack() as signals:
            async with building as built:
                api = built.api if isinstance(built, Service) else built
                serving = server(api, host=settings.http_host, port=settings.http_port, on_up=_tune_garbage_collector)
                # uvicorn raises a signal again at the end of this: after *building* has closed its connections.
                signals.enter_context(serving.capture_signals())
                await serving._serve()  # noqa: SLF001 - `serve` would raise it here

    with suppress(KeyboardInterrupt):
        try:
            asyncio.run(run())
        except SetupError:
            raise
        except Exception:
            log.exception("service.failed")
            raise SystemExit(3) from None
