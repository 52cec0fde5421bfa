"""Starting and stopping: in a process of its own, and inside a test."""

import asyncio
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from simulator import Simulator, serve
from simulator.state import DEFAULT_TENANT


async def start(folder: Path, *options: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    """Start the command and wait until it says that it is ready."""
    command = [sys.executable, "-m", "simulator", "--folder", str(folder), *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = orjson.loads(await process.stdout.readline())
    assert line["event"] == "simulator.started"
    return process, orjson.loads((folder / "simulator.json").read_bytes())


async def ask(about: dict[str, Any], method: str, path: str, body: Any = None) -> Any:
    """Call a control route of the process."""
    context = ssl.create_default_context(cafile=about["ca_file"])
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.request(method, about["url"] + path, json=body) as response,
    ):
        return await response.json()


async def test_the_command_says_where_it_listens_and_stops_at_once(tmp_path: Path) -> None:
    """SIGTERM ends it, even while an answer is held."""
    tenants = tmp_path / "tenants.json"
    tenants.write_bytes(orjson.dumps([{"id": "0a1b2c3d-0000-4000-8000-00000000000f", "apps": []}]))
    options = ["--verdict-delay", "3", "--set", "page_size=5", "--tenants", str(tenants)]
    process, about = await start(tmp_path / "run", *options)
    try:
        settings = await ask(about, "GET", "/simulator/settings")
        assert (settings["verdict_delay_seconds"], settings["page_size"]) == (3, 5)
        assert about["tenants"] == ["0a1b2c3d-0000-4000-8000-00000000000f"]
        assert (about["client_id"], about["pid"]) == (None, process.pid)
        await ask(about, "POST", "/simulator/faults", [{"route": "*", "kind": "timeout", "seconds": 600}])
        path = "/beta/security/threatSubmission/emailThreats"
        held = asyncio.create_task(ask(about, "GET", path))
        async with asyncio.timeout(10):
            while not (await ask(about, "GET", "/simulator/ledger"))["requests"]:
                await asyncio.sleep(0)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        with pytest.raises(aiohttp.ClientError):
            await held
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not (tmp_path / "run" / "simulator.json").exists()


async def test_a_simulator_can_run_inside_a_test(tmp_path: Path) -> None:
    """The state is at hand, and options are settings."""
    tenants = [{"id": DEFAULT_TENANT, "accepted_domains": ["fabrikam.example"]}]
    async with serve(tmp_path, tenants=tenants, verdict_delay_seconds=0) as simulator:
        about = orjson.loads((tmp_path / "simulator.json").read_bytes())
        assert about["url"] == simulator.url
        assert simulator.state.settings.verdict_delay_seconds == 0
        listed = await ask(about, "GET", "/simulator/tenants")
        assert listed["tenants"][0]["accepted_domains"] == ["fabrikam.example"]


async def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    """A misspelled option does not pass silently."""
    with pytest.raises(ValueError, match="verdict_delay"):
        async with serve(tmp_path, verdict_delay=1):
            pass


@pytest.mark.slow
async def test_many_clients_are_served_at_once(graph: Any, control: Any, sim: Simulator, mail: Any) -> None:
    """Limits hold exactly when submissions arrive together."""
    mails = [mail(message_id=f"<{number}@fabrikam.example>") for number in range(200)]

    answers = await asyncio.gather(*(graph.submit(raw) for raw in mails))

    statuses = [answer.status for answer in answers]
    assert (statuses.count(201), statuses.count(429)) == (150, 50)
    assert len(sim.state.tenants[DEFAULT_TENANT].submissions.all) == 150
    assert (await control.ledger())["counts"]["submitted_items"] == 150
