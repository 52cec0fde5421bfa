"""The demo over a folder of mails: nothing in one of them stops the others, and what was found is never lost."""

import asyncio
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from demo.event_log import CaseStory, EventLog
from demo.folder import folder_story
from demo.gateway import Gateway
from demo.people import Demo
from demo.report import Outcome
from demo.run import run_demo
from demo.story import Reported
from local_stack.stack import STATE

pytestmark = pytest.mark.slow

TEXT = "Please confirm your account {} at https://confirm.phish.example/in before tonight, or it will be closed.\n"
HEAD = "From: {0}@phish.example\nMessage-ID: <{0}@phish.example>\nSubject: {0}\n"
MAILS = {
    "plain": HEAD.format("plain") + "\n" + TEXT.format("one"),
    "colons": HEAD.format("colons").replace("\n", ":" * 1_500 + "\n", 1) + "\n" + TEXT.format("two"),
    "nested": HEAD.format("nested") + "Content-Type: message/rfc822\n\n" * 1_000,
    "no-sender": "Message-ID: <n@phish.example>\nSubject: nobody\n\n" + TEXT.format("three"),
    "no-sender-either": "Message-ID: <e@phish.example>\nSubject: nobody else\n\n" + TEXT.format("four"),
    "carrier": HEAD.format("carrier") + f"Content-Type: message/rfc822\n\n{HEAD.format('carried')}\nhello\n",
    "same-id": HEAD.format("plain") + "\n" + "A known Message-ID with another text: your parcel waits for its fee.\n",
    "empty": "",
    "binary": "\x00\x01\x02",
    "encoded": HEAD.format("encoded") + "Subject: =?utf-8?b?a?=\n\n" + TEXT.format("five"),
}


def folder_of(folder: Path, mails: dict[str, str]) -> Path:
    """Write *mails* into a folder."""
    for name, mail in mails.items():
        (folder / f"{name}.eml").write_text(mail)
    return folder


async def test_the_demos_own_story_comes_to_its_end(tmp_path: Path) -> None:
    """Every step of the guide is walked, and every claim agrees with the ledger."""
    report = tmp_path / "out.json"
    assert await run_demo(None, report)
    assert all(file["status"] in ("resolved", "dismissed") for file in json.loads(report.read_text())["files"])


async def test_every_mail_of_a_folder_comes_to_an_end(tmp_path: Path) -> None:
    """Hostile ones, some without a sender to block, two of one Message-ID, and what is refused."""
    report = tmp_path / "out.json"
    assert await run_demo(folder_of(tmp_path, MAILS), report)
    files = {Path(file["file"]).stem: file for file in json.loads(report.read_text())["files"]}

    assert files.keys() == MAILS.keys()
    refused = {name for name, file in files.items() if file["refusal"]}
    assert refused == {"carrier", "nested", "empty", "binary"}
    assert all(file["status"] in ("resolved", "dismissed") for name, file in files.items() if name not in refused)
    assert files["plain"]["case_id"] != files["same-id"]["case_id"]


async def test_a_run_that_is_broken_off_leaves_what_it_has_found(tmp_path: Path) -> None:
    """Ctrl-C in the middle: the file is there and says so."""
    mails = {f"{n:03d}": HEAD.format(f"m{n}") + "\n" + TEXT.format(f"number {n}") for n in range(60)}
    ours, report = {hashlib.sha256(mail.encode()).hexdigest() for mail in mails.values()}, tmp_path / "out.json"
    running = asyncio.create_task(run_demo(folder_of(tmp_path, mails), report))
    while not any(stored.name in ours for stored in STATE.glob("run-*/mails/*/*/*")):
        assert not running.done()
        await asyncio.sleep(0.02)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running

    found = json.loads(report.read_text())
    assert found["files"]
    assert "broken off" in found["claims_that_do_not_hold"][0]


async def test_a_case_that_is_decided_already_is_no_end(tmp_path: Path) -> None:
    """The gateway says 409 to the submission with a block, and to the one without: events tell of it later."""
    case_id, report_id = uuid4(), uuid4()
    asked: list[dict[str, Any]] = []

    async def cases(_request: web.Request) -> web.Response:
        return web.json_response({"items": [{"case_id": str(case_id)}], "next_cursor": None})

    async def decide(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"title": "no", "detail": "the case is submitted"}, status=409)

    app = web.Application()
    app.add_routes([web.get("/v1/cases", cases), web.post("/v1/cases/{id}/decisions", decide)])
    event_log = EventLog("", prefix="", listener=lambda _event, _time: None)
    event_log.cases[case_id] = CaseStory(case_id, reports=[report_id])
    decision = {"action": "submit", "category": "spam", "blocks": [{"kind": "sender"}]}
    async with TestServer(app) as server, Gateway(str(server.make_url("/"))) as gateway:
        nothing = cast("Any", None)
        demo = Demo(nothing, gateway, nothing, event_log, {})
        demo.outcomes = [
            Outcome(Reported(tmp_path / "a.eml", ("ann@contoso.example",), decision=decision), [report_id])
        ]
        assert await demo.triage() == 1

    assert ["blocks" in decision for decision in asked] == [True, False]
    assert case_id in demo.decided


def test_mails_that_share_a_message_id_have_different_reporters(tmp_path: Path) -> None:
    """Microsoft takes an id of one recipient once in 15 minutes, and three times a day."""
    mails = {f"{n:02d}": f"From: a@phish.example\nMessage-Id:\n <same@phish.example>\n\n{n}" for n in range(20)}
    acts = folder_story(folder_of(tmp_path, mails))
    assert len({act.reporters for act in acts}) == 20
