"""
End what a supervisor started once the supervisor is gone, however it went (even by SIGKILL).

Standard input is a pipe. Each process that the supervisor starts writes its own id into it before it becomes what it
is to be, and the supervisor writes the id with a minus when that process is gone. The pipe's end means that nobody is
left who could start or stop anything: whatever is still listed is ended, with all of its descendants.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable

import psutil  # type: ignore[import-untyped]

_GRACE_SECONDS = 3


def main() -> None:
    """Read ids until the pipe ends, then end the processes that are still listed."""
    listed: set[int] = set()
    for line in sys.stdin:
        pid = int(line)
        if pid > 0:
            listed.add(pid)
        else:
            listed.discard(-pid)
    members = family(listed)
    signal_groups(listed, signal.SIGTERM)
    signal_each(members, signal.SIGCONT)
    _, alive = psutil.wait_procs(members, timeout=_GRACE_SECONDS)
    signal_groups(listed, signal.SIGKILL)
    signal_each(alive, signal.SIGKILL)
    # The folder is free for the next supervisor when this process ends.
    psutil.wait_procs(alive, timeout=_GRACE_SECONDS)


def family(pids: Iterable[int]) -> list[psutil.Process]:
    """Return those of the processes *pids* that live, and their descendants, even those in another process group."""
    members = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(pid)
            members.update({process.pid: process for process in (leader, *leader.children(recursive=True))})
    return list(members.values())


def signal_groups(groups: Iterable[int], sig: signal.Signals) -> None:
    """Send *sig* to the process groups that still have a member."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, sig)


def signal_each(members: Iterable[psutil.Process], sig: signal.Signals) -> None:
    """Send *sig* to the processes that still live; an id that was given to another process meanwhile is left alone."""
    for process in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(sig)


if __name__ == "__main__":
    main()
