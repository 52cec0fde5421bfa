"""The whole stack starts in order, every process is told the same story, and one failure stops everything."""

import asyncio
import json
import os
import signal
import sys
import textwrap
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from local_stack.backing import Backing
from local_stack.stack import Stack
from local_stack.supervisor import StackError, holder

pytestmark = pytest.mark.slow

# Stand-ins for programs that are not this package's: they answer as those do, with what they were told.
SERVICE = """
    import http.server, json, os

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(dict(os.environ)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    if __name__ == "__main__":
        if os.environ.get("BACKSTOP_BROKEN") or os.environ.get("BROKEN"):
            raise SystemExit(os.environ.get("BACKSTOP_BROKEN") or "a setting is wrong")
        http.server.HTTPServer(("127.0.0.1", int(os.environ["BACKSTOP_HTTP_PORT"])), Answer).serve_forever()
"""
SIMULATOR = """
    import http.server, json, pathlib, sys

    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    folder, port = pathlib.Path(options["--folder"]), int(options["--port"])
    server = http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
    told = {
        "url": f"https://127.0.0.1:{port}", "ca_file": str(folder / "ca.pem"), "tenants": ["tenant-1", "tenant-2"],
        "client_id": "client", "client_secret": "secret", "options": options,
    }
    (folder / "simulator.new").write_text(json.dumps(told))
    (folder / "simulator.new").rename(folder / "simulator.json")
    server.serve_forever()
"""
TOPICS = """
    import os, pathlib, sys
    print("made at", os.environ["BACKSTOP_KAFKA_BOOTSTRAP"], *sys.argv[1:])
"""
SERVICES = ("reporter", "triage", "submitter", "verdict_poller", "blocklist", "quarantine", "gateway")
FOUND = Backing("127.0.0.1:1", "postgresql://127.0.0.1:1/none", "given", "given")


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins before the real programs."""
    sources = dict.fromkeys(SERVICES, SERVICE) | {"simulator": SIMULATOR, "backstop": TOPICS}
    for name, source in sources.items():
        folder = tmp_path / "programs" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(textwrap.dedent(source))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "programs"))


async def told(url: str) -> Mapping[str, str]:
    """Return the environment of the process at *url*."""

    def read() -> Any:
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - an address of ours
            return json.load(answer)

    return await asyncio.to_thread(read)


async def test_every_service_is_told_where_everything_is(tmp_path: Path) -> None:
    """Services find Kafka, PostgreSQL, the simulator, each other and the mail store in their environment."""
    async with Stack(tmp_path / "stack", found=FOUND) as stack:
        states = stack.supervisor.states()
        environments = {name: await told(stack.urls[name]) for name in SERVICES}

    assert list(states) == ["simulator", "topics", *SERVICES]
    assert set(states.values()) == {"running", "stopped"}
    assert states["topics"] == "stopped"
    triage = environments["triage"]
    assert triage["BACKSTOP_KAFKA_BOOTSTRAP"] == FOUND.kafka_bootstrap
    assert triage["BACKSTOP_POSTGRES_DSN"] == FOUND.postgres_dsn
    assert triage["BACKSTOP_EXCHANGE_WRITE_INTERVAL_SECONDS"] == "0"
    assert triage["BACKSTOP_AUTHORITY"] == triage["BACKSTOP_GRAPH_URL"] == stack.simulator_url
    assert triage["BACKSTOP_TENANTS"] == "tenant-1,tenant-2"
    assert triage["BACKSTOP_CLIENT_ID"] == "client"
    assert triage["BACKSTOP_CLIENT_SECRET"] == "secret"  # noqa: S105 - the stand-in's
    assert triage["BACKSTOP_MAIL_STORE"] == (tmp_path / "stack" / "mails").as_uri()
    assert stack.tenant_id == "tenant-1"
    assert {environment["BACKSTOP_TRIAGE_URL"] for environment in environments.values()} == {stack.urls["triage"]}
    assert len({environment["BACKSTOP_HTTP_PORT"] for environment in environments.values()}) == len(SERVICES)
    assert stack.supervisor.log("topics").read_text() == "made at 127.0.0.1:1 topics create\n"


async def test_settings_reach_those_they_are_for(tmp_path: Path) -> None:
    """A setting for one service is seen by that one, a setting for `*` by all, and both win over what is usual."""
    settings = {"*": {"log_level": "DEBUG"}, "triage": {"policy_file": "policy.toml", "mail_store": "file:///else"}}

    async with Stack(
        tmp_path, found=FOUND, services=["triage", "gateway"], settings=settings, simulator_options=["--seed", "7"]
    ) as stack:
        triage, gateway = await told(stack.urls["triage"]), await told(stack.urls["gateway"])
        simulator = json.loads((tmp_path / "simulator" / "simulator.json").read_text())

    assert triage["BACKSTOP_LOG_LEVEL"] == gateway["BACKSTOP_LOG_LEVEL"] == "DEBUG"
    assert triage["BACKSTOP_POLICY_FILE"] == "policy.toml"
    assert triage["BACKSTOP_MAIL_STORE"] == "file:///else"
    assert "BACKSTOP_POLICY_FILE" not in gateway
    assert simulator["options"]["--seed"] == "7"


async def test_an_installation_that_the_environment_describes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has exported the settings of a real tenant starts a stack that knows none of them."""
    installation = {
        "BACKSTOP_TOPIC_PREFIX": "production",
        "BACKSTOP_CLIENT_CERTIFICATE": "production.pem",
        "BACKSTOP_MAIL_STORE": "s3://production",
        "AZURE_FEDERATED_TOKEN_FILE": "production.token",
    }
    for name, value in installation.items():
        monkeypatch.setenv(name, value)

    async with Stack(tmp_path, found=FOUND, services=["submitter"]) as stack:
        submitter = await told(stack.urls["submitter"])

    assert stack.topic_prefix == submitter["BACKSTOP_TOPIC_PREFIX"] == "backstop"
    assert not any("production" in value for value in submitter.values())


async def test_replicas_are_numbered(tmp_path: Path) -> None:
    """Replicas of a service have names, ports and logs of their own, and can be killed one by one."""
    async with Stack(tmp_path, found=FOUND, services=["triage", "gateway"], replicas={"triage": 2}) as stack:
        assert set(stack.urls) == {"triage", "triage-1", "triage-2", "gateway"}
        assert stack.urls["triage"] == stack.urls["triage-1"] != stack.urls["triage-2"]

        await stack.supervisor.kill("triage-1")

        assert (await told(stack.urls["triage-2"]))["BACKSTOP_TRIAGE_URL"] == stack.urls["triage-1"]
        await stack.supervisor.restart("triage-1")
        assert await told(stack.urls["triage-1"])


async def test_a_service_that_is_left_out_has_an_address_and_settings(tmp_path: Path) -> None:
    """Somebody starts it in a debugger, and the others find it there."""
    async with Stack(tmp_path, found=FOUND, services=["triage", "gateway"], without=["triage"]) as stack:
        assert "triage" not in stack.supervisor.states()
        environment = stack.addresses()["environments"]["triage"]
        assert stack.urls["triage"] == f"http://127.0.0.1:{environment['BACKSTOP_HTTP_PORT']}"
        assert stack.environment("gateway")["BACKSTOP_TRIAGE_URL"] == stack.urls["triage"]


async def test_one_service_that_does_not_start_stops_everything(tmp_path: Path) -> None:
    """The error shows the log of the service that failed, and nothing is left running."""
    stack = Stack(tmp_path, found=FOUND, settings={"blocklist": {"broken": "a setting is wrong"}})

    with pytest.raises(StackError, match=r"blocklist ended while it was starting(?s:.*)a setting is wrong"):
        async with stack:
            pass

    assert set(stack.supervisor.states().values()) <= {"stopped", "died"}
    assert holder(tmp_path) is None


async def test_older_data_is_named_with_the_command_that_clears_it(tmp_path: Path) -> None:
    """Nothing is released yet, so nothing carries the tables of another version over."""
    words = "BACKSTOP_POSTGRES_DSN: the schema there is of another version: triage/0002_x.sql was applied to it"
    stack = Stack(tmp_path, found=FOUND, settings={"triage": {"broken": words}})

    with pytest.raises(StackError, match=r"made by another version of Backstop(?s:.*)`make clean` removes it"):
        async with stack:
            pass


async def test_without_a_folder_nothing_is_left_after_a_good_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that the stack made for itself is removed after a good end, and kept and named after a failure."""
    monkeypatch.setattr("local_stack.stack.STATE", tmp_path / "state")

    async with Stack(found=FOUND, services=["triage"]) as stack:
        assert stack.supervisor.log("triage").exists()
    assert not stack.folder.exists()

    stack = Stack(found=FOUND, services=["triage"])
    with pytest.raises(ZeroDivisionError):
        async with stack:
            raise ZeroDivisionError
    assert stack.supervisor.log("triage").exists()
    assert str(stack.folder) in capsys.readouterr().err


async def command(*argv: str) -> tuple[int, str, str]:
    """Run `python -m local_stack` with *argv* and return its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "local_stack", *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    return process.returncode or 0, said.decode(), complained.decode()


@pytest.fixture
def state(tmp_path: Path, kafka_bootstrap: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a state folder for `local_stack`, which finds a running Kafka and PostgreSQL."""
    monkeypatch.setenv("BACKSTOP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BACKSTOP_KAFKA_BOOTSTRAP", kafka_bootstrap)
    monkeypatch.setenv("BACKSTOP_POSTGRES_DSN", postgres_dsn)
    return tmp_path / "state"


async def test_up_stays_up_until_down(state: Path) -> None:
    """`up` returns when all is ready and says where it is, `down` ends all of it, and both can be repeated."""
    code, said, _ = await command("up")
    try:
        assert code == 0
        assert "/simulator/tokens" in said
        addresses = json.loads((state / "up" / "addresses.json").read_text())
        assert (await told(addresses["urls"]["gateway"]))["BACKSTOP_API_AUDIENCE"] == addresses["api_audience"]

        code, again, complained = await command("up")
        assert (code, again) == (0, said)
        assert "up already" in complained

        async with asyncio.timeout(60):
            while (answer := await command("status"))[0]:
                pass
        assert answer[1].count(" ready") == len(SERVICES)

        assert (await command("logs"))[1].count("topics: made at") == 1
    finally:
        code, _, complained = await command("down")

    assert code == 0
    assert "Everything is stopped" in complained
    assert holder(state / "up") is None
    assert (await command("down"))[2] == "Nothing is up.\n"


async def test_up_that_fails_is_down(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a service does not start, `up` says why, exits with 1 and leaves nothing behind."""
    monkeypatch.setenv("BROKEN", "1")

    code, _, complained = await command("up")

    assert code == 1
    assert "a setting is wrong" in complained
    assert "Traceback" not in complained
    assert holder(state / "up") is None


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
async def test_up_that_is_interrupted_is_down(state: Path, sig: signal.Signals) -> None:
    """Ctrl-C while `up` waits ends what it has started."""
    # A shell that starts the tests in the background has SIGINT ignored by all below it.
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "local_stack", "up"), stderr=asyncio.subprocess.DEVNULL
        )
    finally:
        signal.signal(signal.SIGINT, was)
    while holder(state / "up") is None:
        await asyncio.sleep(0.02)

    os.kill(process.pid, sig)

    assert await process.wait() != 0
    assert holder(state / "up") is None
