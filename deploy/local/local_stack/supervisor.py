"""Start, watch, disturb and stop processes, so that nothing outlives the program that started them."""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import psutil  # type: ignore[import-untyped]
import typer

from local_stack.watchdog import family, signal_each, signal_groups

# Where data and logs go when nobody names a folder: `.local` in the checkout, or what BACKSTOP_STATE says.
STATE = Path(os.environ.get("BACKSTOP_STATE") or Path(__file__).parents[3] / ".local").absolute()

# Tells the watchdog its own id before it becomes the program: at no moment can a process live that the watchdog misses.
_ENROL = 'echo $$ >&0 && exec "$@" </dev/null'
_TAIL_LINES = 15
_POLL_SECONDS = 0.1
_GONE_SECONDS = 15
_LOOK_SECONDS = 0.5

T = TypeVar("T")
State = Literal["starting", "running", "frozen", "stopped", "died"]
Ready = Callable[[], Awaitable[bool]]


class StackError(Exception):
    """The stack cannot be set up or run; the message says what happened and what to do."""


def say(line: str) -> None:
    """Tell the person at the terminal *line*; standard output is left to what a program answers."""
    typer.echo(line, err=True)


@dataclass
class _Child:
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    ready: Ready | None
    deadline: float
    stop_signal: signal.Signals
    state: State = "stopped"
    pid: int = 0
    log_begin: int = 0
    ended: asyncio.Task[int] | None = None


class Supervisor:
    """
    Run named processes, each in a process group of its own, with its output in `<folder>/logs/<name>.log`.

    A log begins anew with each supervisor and goes on when a process is restarted.
    Leaving the context stops them in the reverse order of their start. If the program itself is killed, a watchdog
    process ends them. A folder has one supervisor at a time, and the next only when no process of the last one lives.
    *on_death* is called with the name and the exit code of a process that ended although nobody stopped it.
    """

    def __init__(self, folder: Path, on_death: Callable[[str, int], None] | None = None) -> None:
        self.folder = folder.absolute()
        self._on_death = on_death or self._report_death
        self._children: dict[str, _Child] = {}

    async def __aenter__(self) -> Self:
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            self._lock = await _take_lock(self.folder)
        except OSError as error:
            raise StackError(explain(error)) from error
        self._open_watchdog()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.stop_all()
        finally:
            os.close(self._pipe)
            self._watchdog.wait()
            os.close(self._lock)

    def _open_watchdog(self) -> None:
        read_end, self._pipe = os.pipe()
        # The watchdog inherits the lock: the folder stays taken until it has ended the last process.
        self._watchdog = subprocess.Popen(  # noqa: S603 - this interpreter, a file of ours
            [sys.executable, str(Path(__file__).with_name("watchdog.py"))],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._lock],
            start_new_session=True,
        )
        os.close(read_end)

    def log(self, name: str) -> Path:
        """Return the file that takes the output of the process *name*."""
        return self.folder / "logs" / f"{name}.log"

    def states(self) -> dict[str, State]:
        """Return how each process is, in the order of their first start."""
        return {name: child.state for name, child in self._children.items()}

    def pid(self, name: str) -> int:
        """Return the id of the process *name*, also when it has ended."""
        return self._children[name].pid

    async def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        ready: Ready | None = None,
        deadline: float = 60.0,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """
        Start *argv* under *name* and return when *ready* answers True.

        *env* is added to the environment of this program, less the settings of an installation of Backstop that may be
        in it (`BACKSTOP_...`, `AZURE_...`): what is started here is told everything here.
        *stop_signal* is what asks the process to stop.
        Raises `StackError` with the end of its log when it ends, or is not ready within *deadline* seconds.
        """
        if name in self._children:
            raise ValueError(f"{name} was started before: restart it, or choose another name")
        self._children[name] = _Child(argv, env or {}, self.log(name), ready, deadline, stop_signal)
        await self._launch(name)

    async def run(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, deadline: float = 60.0
    ) -> None:
        """
        Run *argv* to its end under *name*.

        Raises `StackError` with the end of its log when its exit code is not 0, or after *deadline* seconds.
        """
        child = _Child(argv, env or {}, self.log(name), None, deadline, signal.SIGTERM)
        self._children[name] = child
        ended = await self._spawn(child)
        try:
            await asyncio.wait([ended], timeout=deadline)
            if not ended.done():
                raise StackError(self._failure(name, f"did not end within {deadline:.0f} s"))
            if ended.result():
                raise StackError(self._failure(name, f"failed with exit code {ended.result()}"))
        finally:
            await self.kill(name)
            child.state = "stopped"

    async def restart(self, name: str) -> None:
        """Stop the process if it lives and start it as it was started first; raises what `start` raises."""
        await self.stop(name)
        await self._launch(name)

    async def stop(self, name: str, grace: float = 10.0) -> None:
        """Ask the process to stop and return when it is gone; what is left after *grace* seconds is killed."""
        child = self._children[name]
        if child.ended is None or child.ended.done():
            return
        child.state = "stopped"
        members = family([child.pid])
        signal_groups([child.pid], child.stop_signal)
        signal_each(members, signal.SIGCONT)
        await asyncio.wait([child.ended], timeout=grace)
        await _end(child.ended, members)

    async def kill(self, name: str) -> None:
        """End the process and its descendants with SIGKILL and return when they are gone."""
        child = self._children[name]
        if child.ended is None or child.ended.done():
            return
        child.state = "stopped"
        await _end(child.ended, family([child.pid]))

    def freeze(self, name: str) -> None:
        """Halt the process and its descendants with SIGSTOP: connections stay open and nothing is answered."""
        self._signal_family(name, signal.SIGSTOP)
        self._children[name].state = "frozen"

    def resume(self, name: str) -> None:
        """Let a frozen process go on."""
        self._signal_family(name, signal.SIGCONT)
        self._children[name].state = "running"

    async def stop_all(self) -> None:
        """Stop every process, the last started first."""
        for name in reversed(self._children):
            await self.stop(name)

    def _signal_family(self, name: str, sig: signal.Signals) -> None:
        child = self._children[name]
        if child.ended is None or child.ended.done():
            raise StackError(f"{name} is not running ({child.state}); its output is in {child.log}")
        signal_each(family([child.pid]), sig)

    async def _launch(self, name: str) -> None:
        child = self._children[name]
        await self._spawn(child)
        try:
            async with asyncio.timeout(child.deadline):
                while child.state == "starting" and child.ready is not None and not await child.ready():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            await self.kill(name)
            raise StackError(self._failure(name, f"was not ready within {child.deadline:.0f} s")) from None
        except BaseException:
            await self.kill(name)
            raise
        if child.state == "died":
            raise StackError(self._failure(name, "ended while it was starting"))
        child.state = "running"

    async def _spawn(self, child: _Child) -> "asyncio.Task[int]":
        with child.log.open("ab" if child.ended else "wb") as log:
            child.log_begin = log.tell()
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _ENROL, "sh", *child.argv),
                stdin=self._pipe,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited(), **child.env},
                start_new_session=True,
            )
        child.pid, child.state = process.pid, "starting"
        child.ended = asyncio.create_task(self._watch(child, process))
        return child.ended

    async def _watch(self, child: _Child, process: asyncio.subprocess.Process) -> int:
        code = await process.wait()
        signal_groups([process.pid], signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, b"-%d\n" % process.pid)
        was, child.state = child.state, "stopped" if child.state == "stopped" else "died"
        if was in ("running", "frozen"):
            self._on_death(child.log.stem, code)
        return code

    def _report_death(self, name: str, code: int) -> None:
        say(self._failure(name, f"ended by itself with exit code {code}"))

    def _failure(self, name: str, what: str) -> str:
        child = self._children[name]
        with child.log.open("rb") as log:
            log.seek(child.log_begin)
            lines = log.read().decode(errors="replace").splitlines()
        told = [f"{name} {what}; the end of its output in {child.log}:", *lines[-_TAIL_LINES:]]
        return "\n    ".join(told) if lines else f"{name} {what}; it wrote nothing to {child.log}"


def run(program: Coroutine[Any, Any, None]) -> None:
    """
    Run *program* as the whole of this process: SIGTERM and SIGHUP end it in good order, as Ctrl-C does.

    Exits with 128 + the signal then, and with 1 and nothing but the message after `StackError` or `OSError`.
    """
    try:
        asyncio.run(_until_signalled(program))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except StackError as error:
        say(str(error))
        raise SystemExit(1) from None
    except OSError as error:
        say(explain(error))
        raise SystemExit(1) from None


async def together(*parts: Coroutine[Any, Any, T]) -> list[T]:
    """Run *parts* at the same time and return their results; the first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def explain(error: OSError) -> str:
    """Say in one line what *error* of the system means for the person at the terminal, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk is full{where}: free some space and try again."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"Writing is not allowed{where}: make the folder yours, or run this from a folder of your own."
        case _:
            return f"{error}: mend that and try again."


def holder(folder: Path) -> int | None:
    """Return the id of the process whose supervisor has *folder*, or None when nothing of it runs."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written_pid(descriptor) or None
    finally:
        os.close(descriptor)
    return None


async def _until_signalled(program: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(program)
    caught: list[signal.Signals] = []

    def end(sig: signal.Signals) -> None:
        caught.append(sig)
        task.cancel()

    for sig in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sig, end, sig)
    try:
        await task
    except asyncio.CancelledError:
        if caught:
            raise SystemExit(128 + caught[0]) from None
        raise


async def _take_lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody may only be looking (`holder`), or a watchdog may still be ending what its supervisor started.
            owner, waited = _written_pid(descriptor), time.monotonic() - begin
            if waited > _GONE_SECONDS or (waited > _LOOK_SECONDS and psutil.pid_exists(owner)):
                os.close(descriptor)
                raise StackError(f"{folder} is in use by process {owner}: stop that one first.") from None
            await asyncio.sleep(_POLL_SECONDS)
        else:
            os.pwrite(descriptor, b"%-20d" % os.getpid(), 0)
            return descriptor


def _written_pid(descriptor: int) -> int:
    return int(os.pread(descriptor, 20, 0) or 0)


async def _end(ended: "asyncio.Task[int]", members: Sequence[psutil.Process]) -> None:
    signal_each(members, signal.SIGKILL)
    await asyncio.wait([ended])
    patience = time.monotonic() + _GONE_SECONDS
    while any(lives(member) for member in members) and time.monotonic() < patience:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)


def inherited() -> dict[str, str]:
    """Return the environment without the settings of Backstop and Azure, which may be those of a real tenant."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("BACKSTOP_", "AZURE_"))}


def lives(process: psutil.Process) -> bool:
    """Tell whether *process* still does something; who has ended may wait for its parent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
