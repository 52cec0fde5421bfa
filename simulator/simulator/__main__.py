"""Run the simulator from the command line until SIGTERM or SIGINT."""

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any

import orjson
import structlog

from simulator.app import serve


def _parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where ca.pem and simulator.json are written")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--verdict-delay", type=float, help="seconds from submission to verdict (60)")
    parser.add_argument("--tenants", type=Path, help="a JSON file with a list of tenant settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting; repeatable")
    return parser.parse_args(arguments)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = dict(item.split("=", 1) for item in options.set)
    if options.verdict_delay is not None:
        settings["verdict_delay_seconds"] = options.verdict_delay
    return settings


async def _run(options: argparse.Namespace, tenants: list[dict[str, Any]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = structlog.get_logger()
    async with serve(
        options.folder, host=options.host, port=options.port, tenants=tenants, **_settings(options)
    ) as simulator:
        log.info("simulator.started", url=simulator.url, ca_file=str(simulator.ca_file))
        await stop.wait()
    log.info("simulator.stopped")


def main() -> None:
    """Parse the command line and run."""
    options = _parsed()
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    tenants = orjson.loads(options.tenants.read_bytes()) if options.tenants else []
    asyncio.run(_run(options, tenants))


if __name__ == "__main__":
    main()
