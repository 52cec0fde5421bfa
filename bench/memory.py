"""Resident memory of each service: idle, under load, and when fifty 35 MB messages are posted at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp

from bench.environment import TopicCounter, app_token, resident_mb, run_backstop, start_environment
from bench.http import post, report_request
from bench.messages import address, raw_messages
from bench.report import Cell, Chart, Goal, Result
from local_stack.stack import SERVICES, Stack

MESSAGE_BYTES = 35 << 20
LARGE = 50
QUICK_LARGE = 8
LOADED, QUICK_LOADED = 3_000, 300
_POLL_SECONDS = 0.1
_CHUNK = 256 << 10
_PER_LARGE_MESSAGE = 3.5
"""Memory that one upload may take, in multiples of its size: chunks, whole message, decoded parts."""
_BASE_MB = 60
"""Memory that a service allocates with its first work, whatever it is: plans, pools, caches."""


async def run(quick: bool, log: Callable[[str], None]) -> Result:
    """Measure with the default concurrency of large messages, then with half of it."""
    count = QUICK_LARGE if quick else LARGE
    found = {}
    async with start_environment("memory") as on:
        for at_once in (4,) if quick else (4, 2):
            settings = {
                "reporter": {"max_concurrent_large_messages": at_once},
                "submitter": {"submissions_per_15_minutes": 1_000_000},
            }
            options = ["--set", "submissions_per_window=1000000", "--set", f"max_content_bytes={2 * MESSAGE_BYTES}"]
            async with (
                on.isolated(f"memory{at_once}") as own,
                run_backstop(on, own, SERVICES, settings=settings, simulator_options=options) as stack,
                TopicCounter(own.kafka_bootstrap) as ends,
            ):
                token = await app_token(stack)
                measured = {"idle": _now(stack)}
                log(f"max_concurrent_large_messages={at_once}: idle {measured['idle']}")
                if at_once == 4:
                    async with _peaks(stack) as peaks:
                        await _load(stack, ends, token, QUICK_LOADED if quick else LOADED)
                    measured["load"] = peaks
                    log(f"under load {peaks}")
                async with _peaks(stack) as peaks:
                    await _post_large(stack, token, count)
                    await ends.reach(f"{own.topic_prefix}.submission-created", count)
                measured["large"] = peaks
                log(f"{count} messages of 35 MB at once {peaks}")
                found[at_once] = measured
    return _result(found, count)


def _now(stack: Stack) -> dict[str, float]:
    return {name: round(resident_mb(stack.supervisor.pid(name)), 1) for name in stack.services}


@asynccontextmanager
async def _peaks(stack: Stack) -> AsyncIterator[dict[str, float]]:
    """Record the largest resident size of each service while the block runs."""
    peaks = _now(stack)

    async def watch() -> None:
        while True:
            for name, size in _now(stack).items():
                peaks[name] = max(peaks[name], size)
            await asyncio.sleep(_POLL_SECONDS)

    watching = asyncio.create_task(watch())
    try:
        yield peaks
    finally:
        watching.cancel()


async def _load(stack: Stack, ends: TopicCounter, token: str, count: int) -> None:
    """Report *count* messages as fast as they are accepted, and wait until they are submitted."""
    topic = f"{stack.topic_prefix}.submission-created"
    before = await ends.count(topic)
    url = stack.urls["reporter"]
    await post(url, (report_request(url, token, raw, person) for person, raw in enumerate(raw_messages(1, count))))
    await ends.reach(topic, before + count)


async def _post_large(stack: Stack, token: str, count: int) -> None:
    """Post *count* messages of 35 MB concurrently; retry those answered with 503."""
    line = b"QUJD" * 19 + b"\r\n"
    filling = line * ((MESSAGE_BYTES - 2_000) // len(line))
    trust = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=trust, connector=connector) as session:
        await asyncio.gather(*(_post_one(session, stack, token, number, filling) for number in range(count)))


async def _post_one(session: aiohttp.ClientSession, stack: Stack, token: str, number: int, filling: bytes) -> None:
    (small,) = raw_messages(1_000 + number, 1)
    head = small.partition(b"Content-Type:")[0] + (
        b'Content-Type: multipart/mixed; boundary="L"\r\n\r\n--L\r\nContent-Type: text/plain\r\n\r\nSee the file.\r\n'
        b"--L\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n"
        b'Content-Disposition: attachment; filename="large.bin"\r\n\r\n' + b"%032d" % number * 2 + b"\r\n"
    )

    async def body() -> AsyncIterator[bytes]:
        yield head
        for start in range(0, len(filling), _CHUNK):
            yield filling[start : start + _CHUNK]
        yield b"--L--\r\n"

    query = {"reported_as": "phishing", "folder": "inbox", "reporter": address(number)}
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "message/rfc822",
        "Content-Length": str(len(head) + len(filling) + 7),
    }
    while True:
        try:
            async with session.post(
                f"{stack.urls['reporter']}/v1/reports", params=query, data=body(), headers=headers
            ) as response:
                if response.status == 202:
                    return
                pause = float(response.headers.get("Retry-After", "1"))
        except aiohttp.ClientError:
            # The server may answer 503 and close the connection while the message is still being sent.
            pause = 1.0
        await asyncio.sleep(pause)


def _result(found: Mapping[int, Mapping[str, Mapping[str, float]]], count: int) -> Result:
    rows: list[dict[str, Cell]] = [
        {
            "service": service,
            "idle MB": found[4]["idle"][service],
            "under load MB": found[4]["load"][service],
            f"{count} messages of 35 MB: MB": found[4]["large"][service],
            "the same, max_concurrent_large_messages=2": found[2]["large"][service] if 2 in found else None,
        }
        for service in SERVICES
    ]
    goals = []
    for at_once, measured in found.items():
        grown = measured["large"]["reporter"] - measured["idle"]["reporter"]
        allowed = _BASE_MB + at_once * _PER_LARGE_MESSAGE * MESSAGE_BYTES / 1e6
        goals.append(
            Goal(
                f"reporter, {count} messages of 35 MB, {at_once} of them at once: memory added",
                f"{grown:.0f} MB",
                f"at most {allowed:.0f} MB ({at_once} x {_PER_LARGE_MESSAGE} x 35 MB and {_BASE_MB} MB)",
                grown <= allowed,
            )
        )
    notes = [
        "Reporter holds BACKSTOP_MAX_CONCURRENT_LARGE_MESSAGES (4) messages; the others wait in the sockets.",
        "Submitter holds BACKSTOP_SUBMISSION_BATCH_SIZE (8) messages, each also in base64 and as JSON.",
    ]
    bars = [(service, found[4]["large"][service]) for service in SERVICES]
    return Result(
        "memory",
        "Memory: resident size of each service's process",
        rows,
        goals,
        {str(at_once): measured for at_once, measured in found.items()},
        notes,
        [Chart(f"Largest resident size, {count} messages of 35 MB at once", "MB", bars)],
    )
