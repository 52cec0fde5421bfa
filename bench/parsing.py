"""Messages parsed per second by Backstop and by other parsers, over a folder of messages and over hostile ones."""

import asyncio
import json
import os
import sys
from base64 import encodebytes
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo
from bench.report import Cell, Chart, Goal, Result, quantile, spread
from local_stack.supervisor import STATE

OURS = "Backstop"
FACTS = ("message id", "from", "subject", "attachments", "links")
RIVALS = ("standard library", "mail-parser", "eml-parser", "parse-emails")
WANTED = 3.0
ROUNDS, QUICK_ROUNDS = 7, 3
PASSES = 3
"""Times that a process parses each message, after one that is not timed."""
BOMB_SECONDS = 120
"""Time limit of a parser for all bombs together."""

_PROGRAM = Path(__file__).parent / "rivals" / "parsers.py"
_LOCK = Path(__file__).parent / "rivals" / "requirements.lock"
_HEAD = b"From: Accounts <accounts@phish.example>\r\nTo: user@contoso.example\r\nSubject: bomb\r\nMIME-Version: 1.0\r\n"


@dataclass
class Parsed:
    """The result of one library for one message: facts and memory of the first run, seconds of all others."""

    facts: Mapping[str, Any]
    error: str | None
    memory: int
    seconds: list[float]


Findings = dict[str, dict[str, Parsed]]
"""Results by library and message."""


async def run(quick: bool, log: Callable[[str], None]) -> Result:
    """Measure over the folder named by the environment variable MAILS, or over the demo's messages."""
    folder = Path(os.environ.get("MAILS") or Path(demo.__file__).parent / "mails")
    pythons = dict.fromkeys((OURS, "standard library"), sys.executable)
    pythons |= dict.fromkeys(RIVALS[1:], await _install(log))
    found = await _compare(pythons, folder, QUICK_ROUNDS if quick else ROUNDS, log)
    bombs = await _explode(pythons, log)
    rates = {name: [1 / quantile(times, 0.5) for times in _rounds(mails)] for name, mails in found.items()}
    fastest = max(RIVALS, key=lambda name: quantile(rates[name], 0.5))
    ratio = quantile(rates[OURS], 0.5) / quantile(rates[fastest], 0.5)
    errors = sum(parsed.error is not None for mails in (found[OURS], bombs[OURS] or {}) for parsed in mails.values())
    differences = {name: _differences(found, name) for name in RIVALS}
    return Result(
        name="parsing",
        title=f"Messages parsed per second: {len(found[OURS])} messages",
        rows=[_row(name, found[name], rates, bombs[name], differences.get(name, {})) for name in (OURS, *RIVALS)],
        goals=[
            Goal(f"messages per second, compared with {fastest}", f"{ratio:.1f} times", "3 times", ratio >= WANTED),
            Goal("exceptions of Backstop", str(errors), "none", errors == 0),
        ],
        details={
            "rates": rates,
            "errors": {
                name: dict(Counter(one.error for one in mails.values() if one.error)) for name, mails in found.items()
            },
            "differences": differences,
            "bombs": {
                name: mails and {mail: (max(one.seconds), one.memory, one.error) for mail, one in mails.items()}
                for name, mails in bombs.items()
            },
        },
        notes=[
            "Messages per second: one divided by the median time of a message, as median (min to max) of the rounds.",
            "Same: share of messages for which a library agrees with Backstop; only eml-parser extracts links.",
            "Memory: increase of the process's peak for the worst message.",
            f"Bombs: the worst of seven hostile messages of up to 35 MB; time limit {BOMB_SECONDS} s for all of them.",
        ],
        picture=[
            Chart("Messages per second", "/s", [(name, quantile(rates[name], 0.5)) for name in (OURS, *RIVALS)], "log")
        ],
    )


async def _install(log: Callable[[str], None]) -> str:
    """Install the other parsers in a virtual environment of their own; return its Python."""
    place = STATE / "bench" / "rivals"
    python, stamp = place / "bin" / "python", place / "lock"
    if not stamp.exists() or stamp.read_bytes() != _LOCK.read_bytes():
        log("installing mail-parser, eml-parser and parse-emails (about half a minute) ...")
        await _call(sys.executable, "-m", "venv", "--clear", str(place))
        await _call(str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(_LOCK))
        stamp.write_bytes(_LOCK.read_bytes())
    return str(python)


async def _compare(pythons: Mapping[str, str], folder: Path, rounds: int, log: Callable[[str], None]) -> Findings:
    found: Findings = {}
    for number in range(rounds):
        for name, python in pythons.items():
            mails = await _parse(python, name, folder)
            known = found.setdefault(name, mails)
            if known is not mails:
                for mail, parsed in mails.items():
                    known[mail].seconds += parsed.seconds
        log(f"round {number + 1} of {rounds}")
    return found


async def _explode(pythons: Mapping[str, str], log: Callable[[str], None]) -> dict[str, dict[str, Parsed] | None]:
    folder = STATE / "bench" / "bombs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, bomb in _bombs().items():
        (folder / name).write_bytes(bomb)
    found: dict[str, dict[str, Parsed] | None] = {}
    for name, python in pythons.items():
        log(f"bombs: {name}")
        try:
            async with asyncio.timeout(BOMB_SECONDS):
                found[name] = await _parse(python, name, folder)
        except TimeoutError:
            found[name] = None
    return found


async def _parse(python: str, name: str, folder: Path) -> dict[str, Parsed]:
    said = await _call(python, str(_PROGRAM), name, str(folder), str(PASSES))
    lines = [json.loads(line) for line in said.splitlines()]
    return {line.pop("name"): Parsed(**line) for line in lines}


async def _call(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return said


def _rounds(mails: Mapping[str, Parsed]) -> list[list[float]]:
    return [list(times) for times in zip(*(parsed.seconds for parsed in mails.values()), strict=True)]


def _row(
    name: str,
    mails: Mapping[str, Parsed],
    rates: Mapping[str, Sequence[float]],
    bombed: Mapping[str, Parsed] | None,
    same: Mapping[str, Mapping[str, Any]],
) -> dict[str, Cell]:
    least, median, most = spread(rates[name])
    times = [1000 * quantile(parsed.seconds, 0.5) for parsed in mails.values()]
    return {
        "library": name,
        "messages/s": f"{median:,.0f} ({least:,.0f} to {most:,.0f})",
        "Backstop is x times as fast": quantile(rates[OURS], 0.5) / median,
        "p99 ms": quantile(times, 0.99),
        "memory MB": max(parsed.memory for parsed in mails.values()) / 1e6,
        "exceptions": sum(parsed.error is not None for parsed in mails.values()),
        **{f"same {fact}": _share(same.get(fact)) for fact in FACTS},
        **_bombed(bombed),
    }


def _bombed(mails: Mapping[str, Parsed] | None) -> dict[str, Cell]:
    if mails is None:
        return {"bombs: s": f"over {BOMB_SECONDS}", "bombs: MB": None, "bombs: exceptions": None}
    return {
        "bombs: s": f"{max(max(one.seconds) for one in mails.values()):.2f}",
        "bombs: MB": max(one.memory for one in mails.values()) / 1e6,
        "bombs: exceptions": sum(one.error is not None for one in mails.values()),
    }


def _differences(found: Findings, name: str) -> dict[str, dict[str, Any]]:
    """Return for each fact in how many messages a library agrees with Backstop, and the first that differ."""
    counts: defaultdict[str, dict[str, Any]] = defaultdict(lambda: {"same": 0, "of": 0, "differ": []})
    for mail, theirs in found[name].items():
        ours = found[OURS][mail].facts
        for fact, value in theirs.facts.items():
            count = counts[fact]
            count["of"] += 1
            if _alike(fact, ours[fact], value):
                count["same"] += 1
            elif len(count["differ"]) < 20:
                count["differ"].append({"mail": Path(mail).name, "ours": ours[fact], "theirs": value})
    return dict(counts)


def _share(count: Mapping[str, Any] | None) -> str | None:
    return f"{count['same'] / count['of']:.0%}" if count else None


def _alike(fact: str, ours: Any, theirs: Any) -> bool:
    match fact, theirs:
        case "attachments", int():
            return len(ours) == theirs
        case "attachments" | "links", _:
            return set(ours) == set(theirs)
        case _:
            return _plain(ours) == _plain(theirs)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split()).strip("<>").lower()


def _bombs() -> dict[str, bytes]:
    """Return messages that are more expensive to parse than their size suggests, by name."""
    boundary = b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n'
    nested = b"".join(boundary % (number, number) for number in range(500))
    part = b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n"
    mail_in_mail = b"Content-Type: message/rfc822\r\n\r\n" + _HEAD
    html = b"Content-Type: text/html; charset=utf-8\r\n\r\n"
    return {
        "a file of 25 MB": _HEAD
        + b"Content-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + encodebytes(bytes(25_000_000)),
        "5,000 parts": _HEAD + b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + part * 5000 + b"--b--\r\n",
        "500 levels": _HEAD + nested + b"Content-Type: text/plain\r\n\r\nx\r\n",
        "200 nested messages": _HEAD + mail_in_mail * 200 + b"\r\nx\r\n",
        "20,000 fields": b"X-Bomb: =?utf-8?q?=C3=A9?= x\r\n" * 20_000 + _HEAD + b"\r\nx\r\n",
        "1 million tags": _HEAD + html + b"<b>" * 1_000_000 + b"x",
        "100,000 links": _HEAD + html + b"".join(b'<a href="https://p%d.example/">x</a>' % n for n in range(100_000)),
    }
