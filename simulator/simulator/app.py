"""The composition root: build the state and the routes, listen with TLS, say where."""

import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import trustme
from aiohttp import web

from simulator import control, entra, exchange, graph_mail, graph_submissions, quarantine_control
from simulator.settings import Settings
from simulator.state import State
from simulator.tenant import TenantSettings

_LARGEST_BODY = 512 * 1024 * 1024
_STOP_SECONDS = 0.1  # for calls in progress; 0 would wait for them without end


@dataclass(frozen=True)
class Simulator:
    """A running simulator: where it listens, which CA to trust, and its state to look into."""

    url: str
    ca_file: Path
    state: State

    def address(self) -> dict[str, Any]:
        """Return what `simulator.json` says: the address and how to get a token from it."""
        tenant = next(iter(self.state.tenants.values())).settings
        app = tenant.apps[0] if tenant.apps else None
        return {
            "url": self.url,
            "ca_file": str(self.ca_file),
            "tenants": list(self.state.tenants),
            "client_id": app.client_id if app else None,
            "client_secret": app.secrets[0] if app and app.secrets else None,
            "pid": os.getpid(),
        }


def build_app(state: State) -> web.Application:
    """Put Entra ID, Graph, Exchange Online and the control routes on one origin."""
    app = web.Application(client_max_size=_LARGEST_BODY)
    for part in (control, quarantine_control, graph_mail, graph_submissions, exchange, entra):
        part.add_routes(app, state)
    return app


@asynccontextmanager
async def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tenants: Sequence[Mapping[str, Any]] = (),
    **settings: Any,
) -> AsyncIterator[Simulator]:
    """
    Run a simulator for as long as the context lasts.

    Writes `ca.pem` into *folder*, and `simulator.json` once connections are accepted; the latter is removed at the
    end. *tenants* are TenantSettings, *settings* fields of Settings. Port 0 takes a free one. Calls in progress are
    cut off at the end.
    """
    state = State(Settings.model_validate(settings), [TenantSettings.model_validate(tenant) for tenant in tenants])
    ca_file, address_file = folder / "ca.pem", folder / "simulator.json"
    _prepare(folder, address_file)
    runner = web.AppRunner(build_app(state), access_log=None, shutdown_timeout=_STOP_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=_tls(host, ca_file)).start()
        state.url = f"https://{host}:{runner.addresses[0][1]}"
        simulator = Simulator(state.url, ca_file, state)
        _replace(address_file, orjson.dumps(simulator.address()))
        yield simulator
    finally:
        _forget(address_file)
        await runner.cleanup()


def _prepare(folder: Path, address_file: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _forget(address_file)


def _forget(address_file: Path) -> None:
    address_file.unlink(missing_ok=True)


def _tls(host: str, ca_file: Path) -> ssl.SSLContext:
    ca = trustme.CA(organization_name="Backstop simulator")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*dict.fromkeys((host, "127.0.0.1", "localhost"))).configure_cert(context)
    _replace(ca_file, ca.cert_pem.bytes())
    return context


def _replace(file: Path, content: bytes) -> None:
    """Write *file* so that a reader sees all of it or none."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(file)
