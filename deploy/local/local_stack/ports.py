"""Choose the TCP ports of the local processes, so that several stacks run beside each other."""

import os
import random
import socket

from local_stack.supervisor import StackError

# Below the ports that Linux, macOS and Windows hand out for outgoing connections: a client that reconnects to a server
# which is down could otherwise be given the server's own port and keep it.
_CHOICE = range(15_000, 32_000)


def choose_port(name: str) -> int:
    """
    Return the port for *name* on 127.0.0.1: the one in `BACKSTOP_<NAME>_PORT` if set, else a free one.

    A free port that was chosen is not chosen again, by whatever program, as long as this one runs.
    Raises `StackError` when the port from the environment is not a port or is taken.
    """
    variable = f"BACKSTOP_{name.upper()}_PORT"
    asked = os.environ.get(variable)
    if asked is None:
        return _free_port()
    if not asked.isdecimal() or not 0 < int(asked) < 65_536:
        raise StackError(f"{variable}={asked} is not a port: set it to a number from 1 to 65535, or unset it.")
    if not is_free(int(asked)):
        raise StackError(f"Port {asked} ({variable}) is taken: stop what listens there, or choose another port.")
    return int(asked)


def is_free(port: int) -> bool:
    """Tell whether nothing listens on *port* of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    for port in random.sample(_CHOICE, k=min(200, len(_CHOICE))):
        if is_free(port) and _reserve(port):
            return port
    raise StackError("No free port was found between 15000 and 32000 on 127.0.0.1: stop some programs and try again.")


def _reserve(port: int) -> bool:
    """Keep other programs from choosing *port* until this one ends: the UDP port of that number stands for it."""
    with socket.socket(type=socket.SOCK_DGRAM) as reservation:
        try:
            reservation.bind(("127.0.0.1", port))
        except OSError:
            return False
        # Never closed: the system does that when this program ends.
        reservation.detach()
    return True
