"""The stack that stays up while you try things: `python -m local_stack up`, `status`, `logs`, `run`, `down`."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from local_stack.probes import is_ready
from local_stack.supervisor import STATE, StackError, explain, holder, inherited, run, say

FOLDER = STATE / "up"
ADDRESSES = FOLDER / "addresses.json"
OUTPUT = FOLDER / "logs" / "stack.log"
CHECKOUT = Path(__file__).parents[3]
POLICY = Path(
    os.environ.get("BACKSTOP_POLICY_FILE") or CHECKOUT / "services" / "triage" / "policy.example.toml"
).absolute()
MAIL = CHECKOUT / "demo" / "mails" / "08-password-page-that-the-filter-missed.eml"
# The simulator needs no hour to judge: neither need we to ask.
_SETTINGS = {"verdict_poller": {"verdict_poll_intervals": "1,1,1,2,5", "verdict_grid_seconds": 0.5}}
_VERDICT_SECONDS = 2
_UP_SECONDS = 600  # the first start downloads Kafka or container images
_DOWN_SECONDS = 60
_POLL_SECONDS = 0.1
_TAIL_LINES = 20

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


Without = Annotated[str, typer.Option(help="Services that `run` will start, separated by commas.")]


@app.command()
def up(without: Without = "") -> None:
    """Start everything in the background, wait until it is ready, and print where it is."""
    if (pid := holder(FOLDER)) is not None:
        if not ADDRESSES.exists():
            _fail(f"The stack is starting or stopping (process {pid}): wait for it, or run `make down`.")
        say(f"The stack is up already (process {pid}).")
    else:
        _start_in_background(without)
    _show(json.loads(ADDRESSES.read_text()))


@app.command()
def down() -> None:
    """Stop what `up` started, and keep its data for the next `up`."""
    pid = holder(FOLDER)
    if pid is None:
        say("Nothing is up.")
        return
    say(f"Stopping process {pid} and all that it started.")
    _signal(pid, signal.SIGTERM)
    if not _is_down(_DOWN_SECONDS):
        _signal(pid, signal.SIGKILL)  # its watchdog ends the rest
        if not _is_down(_DOWN_SECONDS):
            _fail(f"Process {pid} or something that it started is still alive: its output is in {OUTPUT.parent}.")
    say(
        "Everything is stopped. `make up` goes on with the same data, `make clean` throws them away; what was made on"
        " addresses from the environment is removed."
    )


@app.command()
def logs(
    name: Annotated[
        str | None, typer.Argument(help="A process, such as triage or kafka; all of them if left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show what the processes wrote."""
    files = sorted(OUTPUT.parent.glob("*.log")) if name is None else [OUTPUT.parent / f"{name}.log"]
    if not all(file.exists() for file in files) or not files:
        known = ", ".join(sorted(file.stem for file in OUTPUT.parent.glob("*.log"))) or "none yet: run `make up`"
        _fail(f"There is no such log in {OUTPUT.parent}; there are: {known}.")
    read = dict.fromkeys(files, 0)
    if name is None:
        read = {file: _begin_of_tail(file) for file in files}
    while True:
        for file in files:
            read[file] = _pass_on(file, read[file], typer.echo, "" if name else f"{file.stem}: ")
        if not follow:
            return
        time.sleep(_POLL_SECONDS)


@app.command()
def status() -> None:
    """Say which parts are ready; the exit code is 1 unless all are."""
    if holder(FOLDER) is None or not ADDRESSES.exists():
        _fail("Nothing is up: run `make up`.")
    urls = json.loads(ADDRESSES.read_text())["urls"]
    answers = asyncio.run(_ask(urls))
    for name, ready in answers.items():
        typer.echo(f"{name:16} {urls[name]:28} {'ready' if ready else 'not ready'}")
    if not all(answers.values()):
        raise typer.Exit(1)


@app.command("run")
def run_service(service: Annotated[str, typer.Argument(help="One that `up --without` has left out.")]) -> None:
    """Run one service in the foreground, so that `breakpoint()` stops in it; Ctrl-C ends it."""
    if holder(FOLDER) is None or not ADDRESSES.exists():
        _fail(f"Nothing is up: run `make up WITHOUT={service}`.")
    environments, service = json.loads(ADDRESSES.read_text())["environments"], service.replace("-", "_")
    if service not in environments:
        left_out = ", ".join(sorted(environments)) or "none"
        _fail(f"The stack was not started without {service}, but without {left_out}: `make down`, then choose it anew.")
    os.execve(sys.executable, [sys.executable, "-P", "-m", service], {**inherited(), **environments[service]})  # noqa: S606 - it replaces this process


@app.command(hidden=True)
def serve(without: Without = "") -> None:
    """Be the process that `up` starts in the background."""
    run(_serve([name.strip().replace("-", "_") for name in without.split(",") if name.strip()]))


async def _serve(without: Sequence[str]) -> None:
    from local_stack.stack import SERVICES, Stack  # noqa: PLC0415 - a second that the other commands save

    if unknown := sorted(set(without) - set(SERVICES)):
        raise StackError(f"There is no service {', '.join(unknown)}. Services: {', '.join(SERVICES)}.")
    stack = Stack(
        FOLDER,
        settings={**_SETTINGS, "triage": {"policy_file": POLICY}},
        simulator_options=["--verdict-delay", str(_VERDICT_SECONDS)],
        without=without,
    )
    async with stack:
        written = ADDRESSES.with_suffix(".new")
        written.touch(mode=0o600)  # the DSN holds a password
        written.write_text(json.dumps({**stack.addresses(), "policy_file": str(POLICY)}, indent=2))
        written.replace(ADDRESSES)
        try:
            await asyncio.Event().wait()
        finally:
            ADDRESSES.unlink(missing_ok=True)


async def _ask(urls: dict[str, str]) -> dict[str, bool]:
    return dict(zip(urls, await asyncio.gather(*map(is_ready, urls.values())), strict=True))


def _start_in_background(without: str) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        ADDRESSES.unlink(missing_ok=True)
        with OUTPUT.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - names of services are checked by `serve`
                [sys.executable, "-P", "-m", "local_stack", "serve", "--without", without],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        _fail(explain(error))
    try:
        _relay_until_ready(process)
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _relay_until_ready(process: "subprocess.Popen[bytes]") -> None:
    shown, patience = 0, time.monotonic() + _UP_SECONDS
    while True:
        ended, ready = process.poll() is not None, ADDRESSES.exists()
        shown = _pass_on(OUTPUT, shown, say)
        if ended:
            raise SystemExit(1)
        if ready:
            return
        if time.monotonic() > patience:
            _fail(f"The stack was not ready within {_UP_SECONDS} s: what it wrote is in {OUTPUT.parent}.")
        time.sleep(_POLL_SECONDS)


def _show(addresses: dict[str, Any]) -> None:
    for name, url in addresses["urls"].items():
        typer.echo(f"{name:16} {url}")
    for name in ("simulator_url", "kafka_bootstrap", "postgres_dsn"):
        typer.echo(f"{name.rpartition('_')[0]:16} {addresses[name]}")
    gateway = addresses["urls"]["gateway"]
    typer.echo(f"""
Report a mail, as the user that the token names. The policy in {addresses["policy_file"]}
has it submitted; its verdict follows within seconds:
  TOKEN={_token(addresses, "Reporter", "user@contoso.example")}
  curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: message/rfc822" --data-binary @{MAIL} \\
    "{gateway}/v1/reports?reported_as=phishing&folder=inbox"

See the cases as an admin; `$CASE` below is the `case_id` of one of them:
  ADMIN={_token(addresses, "SecurityAdministrator", "admin@contoso.example")}
  curl -H "Authorization: Bearer $ADMIN" "{gateway}/v1/cases"

Decide on a case that the policy left open (reported as junk, or from the Junk folder):
  curl -H "Authorization: Bearer $ADMIN" -H "Content-Type: application/json" "{gateway}/v1/cases/$CASE/decisions" \\
    -d '{{"action": "submit", "category": "phishing", "blocks": [{{"kind": "sender"}}]}}'

For programs that subscribe:
  export BACKSTOP_KAFKA_BOOTSTRAP={addresses["kafka_bootstrap"]} BACKSTOP_TOPIC_PREFIX={addresses["topic_prefix"]}
For `.venv/bin/backstop dead list`:
  export BACKSTOP_POSTGRES_DSN={addresses["postgres_dsn"]}

`make logs` shows what the processes write, `make down` stops them.""")


def _token(addresses: dict[str, Any], role: str, user: str) -> str:
    """Write the command that has the simulator sign *user* in."""
    order = {
        "tenant": addresses["tenant_id"],
        "audience": addresses["api_audience"],
        "roles": [role],
        "preferred_username": user,
        "scp": "access_as_user",
    }
    read = "import json, sys; print(json.load(sys.stdin)['access_token'])"
    return f"""$(curl -s --cacert {addresses["ca_file"]} {addresses["simulator_url"]}/simulator/tokens \\
    -H "Content-Type: application/json" -d '{json.dumps(order)}' | python3 -c "{read}")"""


def _pass_on(file: Path, begin: int, tell: Callable[[str], None], prefix: str = "") -> int:
    with file.open("rb") as log:
        log.seek(begin)
        # A line that is still being written is left for the next look.
        whole, newline, _ = log.read().rpartition(b"\n")
    for line in whole.decode(errors="replace").split("\n") if newline else []:
        tell(prefix + line)
    return begin + len(whole) + len(newline)


def _begin_of_tail(file: Path) -> int:
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    return len(content) - sum(map(len, lines[-_TAIL_LINES:]))


def _signal(pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def _is_down(seconds: float) -> bool:
    patience = time.monotonic() + seconds
    while holder(FOLDER) is not None:
        if time.monotonic() > patience:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _fail(line: str) -> NoReturn:
    say(line)
    raise SystemExit(1)


if __name__ == "__main__":
    app()
