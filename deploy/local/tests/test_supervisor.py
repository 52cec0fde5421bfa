"""What is started can be disturbed and stopped, and outlives nobody."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from local_stack.supervisor import StackError, Supervisor, holder, lives

FOREVER = ["sleep", "1000"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"]
# Starts a supervisor with a child whose own child has left the process group, as PostgreSQL's processes do.
# A shell that starts the tests in the background has SIGINT ignored by all below it, so it is taken up again.
PROGRAM = """
    import asyncio, signal, sys
    from pathlib import Path
    from local_stack.supervisor import Supervisor, run

    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def main():
        async with Supervisor(Path(sys.argv[1])) as supervisor:
            await supervisor.start("a", ["sh", "-c", "setsid sleep 1000 & exec sleep 1000"])
            await supervisor.start("b", ["sh", "-c", sys.argv[2] + "sleep 1000 & wait; wait"])
            print("up", flush=True)
            await asyncio.Event().wait()

    run(main())
"""


@pytest_asyncio.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    """Return a supervisor in a folder of its own."""
    async with Supervisor(tmp_path / "stack") as entered:
        yield entered


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for *condition*."""
    patience = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < patience, "waited in vain"
        await asyncio.sleep(0.02)


def started_in(folder: Path) -> list[psutil.Process]:
    """Return the living processes that have *folder* as their working folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def run_program(folder: Path, script: str = "") -> asyncio.subprocess.Process:
    """Start PROGRAM, with *script* at the begin of its process `b`, and return when its processes run."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder / "stack"), script),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    assert await program.stdout.readline() == b"up\n"
    # The program and its watchdog, `a` with its child, `b` with its child.
    await until(lambda: len(started_in(folder)) == 6)
    return program


async def test_a_process_is_started_when_it_says_that_it_is_ready(supervisor: Supervisor) -> None:
    """`start` returns when the readiness check answers True, and the output is in the log."""
    log = supervisor.log("a")

    async def ready() -> bool:
        return "listening" in log.read_text()

    await supervisor.start("a", ["sh", "-c", "sleep 0.2; echo listening; exec sleep 1000"], ready=ready)

    assert supervisor.states() == {"a": "running"}
    assert log.read_text() == "listening\n"


async def test_a_process_that_ends_while_it_starts_shows_the_end_of_its_log(supervisor: Supervisor) -> None:
    """What a process wrote before it failed to start is in the error."""

    async def never() -> bool:
        return False

    with pytest.raises(StackError, match=r"a ended while it was starting(?s:.*)no such disk"):
        await supervisor.start("a", ["sh", "-c", "echo no such disk; exit 3"], ready=never)


async def test_a_process_that_is_never_ready_is_ended(supervisor: Supervisor) -> None:
    """At the deadline the process is killed and the error shows its log."""

    async def never() -> bool:
        for _ in range(1000):
            if "still thinking" in supervisor.log("a").read_text():
                break
            time.sleep(0.02)  # noqa: ASYNC251 - the deadline shall come after it, however slow the process is
        return False

    with pytest.raises(StackError, match=r"a was not ready within 0 s(?s:.*)still thinking"):
        await supervisor.start("a", ["sh", "-c", "echo still thinking; sleep 1000"], ready=never, deadline=0.3)

    assert supervisor.states() == {"a": "stopped"}


async def test_a_command_that_does_not_exist_is_named(supervisor: Supervisor) -> None:
    """A program that is missing is an error with its name."""
    with pytest.raises(StackError, match="no-such-program"):
        await supervisor.run("a", ["no-such-program"])


async def test_a_one_shot_must_succeed(supervisor: Supervisor) -> None:
    """`run` returns after exit code 0 and raises with the log after any other."""
    await supervisor.run("good", ["sh", "-c", "exit 0"])

    with pytest.raises(StackError, match=r"bad failed with exit code 2(?s:.*)a reason"):
        await supervisor.run("bad", ["sh", "-c", "echo a reason; exit 2"])


async def test_the_environment_is_added_to_ours(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process sees this program's environment and what it is given."""
    monkeypatch.setenv("OURS", "1")

    await supervisor.run("a", ["sh", "-c", "echo $OURS $ITS"], env={"ITS": "2"})

    assert supervisor.log("a").read_text() == "1 2\n"


async def test_processes_are_stopped_in_reverse_order(tmp_path: Path) -> None:
    """The last started is stopped first, by SIGTERM."""
    order = tmp_path / "order"

    async with Supervisor(tmp_path / "stack") as supervisor:
        for name in ("first", "second", "third"):
            log = supervisor.log(name)
            script = f"trap 'echo {name} >> {order}; exit' TERM; echo up; while :; do sleep 0.05; done"

            await supervisor.start(name, ["sh", "-c", script])
            await until(lambda log=log: log.read_text() == "up\n")  # type: ignore[misc]

    assert order.read_text().split() == ["third", "second", "first"]


async def test_a_process_that_ignores_the_stop_signal_is_killed(supervisor: Supervisor) -> None:
    """A process that ignores SIGTERM is killed after the grace, with its children."""

    async def ready() -> bool:
        return "deaf" in supervisor.log("a").read_text()

    await supervisor.start("a", STUBBORN, ready=ready)
    begin = time.monotonic()
    await supervisor.stop("a", grace=0.3)

    assert 0.3 <= time.monotonic() - begin < 10
    assert supervisor.states() == {"a": "stopped"}


async def test_a_process_can_be_killed_frozen_resumed_and_restarted(supervisor: Supervisor) -> None:
    """Each disturbance reaches the process and its descendants, and `restart` brings it back as it was."""
    await supervisor.start("a", ["sh", "-c", "echo $$; setsid sleep 1000 & wait"])
    await until(lambda: supervisor.log("a").read_text() != "")
    leader = psutil.Process(int(supervisor.log("a").read_text()))
    await until(lambda: len(leader.children()) == 1)
    members = [leader, *leader.children()]

    supervisor.freeze("a")
    await until(lambda: {member.status() for member in members} == {psutil.STATUS_STOPPED})
    assert supervisor.states() == {"a": "frozen"}

    supervisor.resume("a")
    await until(lambda: psutil.STATUS_STOPPED not in {member.status() for member in members})
    assert supervisor.states() == {"a": "running"}

    await supervisor.kill("a")
    assert not any(lives(member) for member in members)
    assert supervisor.states() == {"a": "stopped"}

    await supervisor.restart("a")
    assert supervisor.states() == {"a": "running"}
    await until(lambda: len(supervisor.log("a").read_text().split()) == 2)


async def test_a_frozen_process_can_be_stopped(supervisor: Supervisor) -> None:
    """Stopping wakes what is frozen, so that it can end in good order."""
    await supervisor.start("a", FOREVER)
    supervisor.freeze("a")

    await supervisor.stop("a")

    assert supervisor.states() == {"a": "stopped"}


async def test_an_unexpected_death_is_reported(tmp_path: Path) -> None:
    """A process that ends although nobody stopped it is reported once, with its exit code; the others are not."""
    deaths: list[tuple[str, int]] = []
    go = tmp_path / "go"

    async with Supervisor(tmp_path / "stack", lambda name, code: deaths.append((name, code))) as supervisor:
        await supervisor.start("mortal", ["sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done; exit 7"])
        await supervisor.start("other", FOREVER)
        await supervisor.kill("other")
        go.touch()
        await until(lambda: supervisor.states()["mortal"] == "died")

        with pytest.raises(StackError, match="mortal is not running"):
            supervisor.freeze("mortal")

    assert deaths == [("mortal", 7)]


async def test_a_folder_has_one_supervisor(supervisor: Supervisor) -> None:
    """A second supervisor for the same folder is told which process has it."""
    assert holder(supervisor.folder) == os.getpid()

    with pytest.raises(StackError, match=f"in use by process {os.getpid()}"):
        async with Supervisor(supervisor.folder):
            pass


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A state folder that cannot be written is an error that says so."""
    (tmp_path / "file").touch()

    with pytest.raises(StackError, match="file"):
        async with Supervisor(tmp_path / "file" / "stack"):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_nothing_outlives_the_program(tmp_path: Path, sig: signal.Signals) -> None:
    """Whatever signal ends the program, no process of it is left, and the folder is free for the next one."""
    program = await run_program(tmp_path)

    program.send_signal(sig)
    code = await program.wait()

    assert code == (-sig if sig == signal.SIGKILL else 128 + sig)
    await until(lambda: not started_in(tmp_path), 20)
    await until(lambda: holder(tmp_path / "stack") is None, 20)


@pytest.mark.slow
async def test_the_next_supervisor_waits_for_the_end_of_the_last(tmp_path: Path) -> None:
    """After SIGKILL the folder is not given away while a process of the killed program lives."""
    program = await run_program(tmp_path, "trap '' TERM; ")
    left = started_in(tmp_path)
    program.kill()
    await program.wait()

    async with Supervisor(tmp_path / "stack"):
        assert not set(started_in(tmp_path)) & set(left)
