"""Ports are free ones, or the ones that were asked for."""

import socket
import subprocess
import sys

import pytest

from local_stack.ports import choose_port
from local_stack.supervisor import StackError


def test_ports_are_free_and_given_once() -> None:
    """No two parts of a stack get the same port, and none that the system hands out for outgoing connections."""
    ports = [choose_port("thing") for _ in range(50)]

    assert len(set(ports)) == 50
    assert max(ports) < 32_768


def test_no_other_program_is_given_the_port() -> None:
    """Between the choice and the moment in which a server listens, and while that server is down."""
    port = choose_port("thing")
    program = f"from local_stack import ports; ports._CHOICE = [{port}]; ports.choose_port('thing')"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603 - this interpreter

    assert "No free port was found" in other.stderr


def test_a_port_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`BACKSTOP_<NAME>_PORT` is taken when it is free."""
    port = choose_port("thing")
    monkeypatch.setenv("BACKSTOP_GATEWAY_PORT", str(port))

    assert choose_port("gateway") == port


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port on which something listens is an error that says which and from where it was asked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("BACKSTOP_KAFKA_PORT", str(port))

        with pytest.raises(StackError, match=rf"Port {port} \(BACKSTOP_KAFKA_PORT\) is taken: stop what listens there"):
            choose_port("kafka")


@pytest.mark.parametrize("asked", ["", "0", "65536", "http", "-1"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """What is not a port is an error that names the variable."""
    monkeypatch.setenv("BACKSTOP_POSTGRES_PORT", asked)

    with pytest.raises(StackError, match=f"BACKSTOP_POSTGRES_PORT={asked} is not a port"):
        choose_port("postgres")
