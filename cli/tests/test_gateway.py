"""`backstop report`, `status` and `cases` speak to the gateway, and say in plain words what it answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from backstop.app import app

NOBODY = "http://127.0.0.1:1"
REPORT, CASE = str(uuid4()), str(uuid4())
BLOCK = {
    "scope": "mailbox",
    "kind": "sender",
    "value": "a@fabrikam.example",
    "status": "requested",
    "reason": None,
    "explanation": "The sender is about to be blocked for your mailbox.",
}
ACCEPTED = {"report_id": REPORT, "status_url": f"/v1/reports/{REPORT}", "repeated": False, "block": BLOCK}
STATE = {
    "report_id": REPORT,
    "reporter": "ann@contoso.example",
    "reported_as": "phishing",
    "folder": "inbox",
    "reported_at": "2026-03-03T08:02:14Z",
    "status": "verdict",
    "conclusion": "threat",
    "explanation": "Microsoft found the message malicious.",
    "block": {**BLOCK, "status": "applied", "explanation": None},
}
SUMMARY = {
    "case_id": CASE,
    "status": "open",
    "reported_as": ["phishing"],
    "folders": ["inbox"],
    "report_count": 2,
    "sender": "a@fabrikam.example",
    "subject": "red\x1b[31m",
    "opened_at": "2026-03-03T08:02:14Z",
    "last_reported_at": "2026-03-03T08:02:14Z",
    "conclusion": None,
}
DETAIL = {
    **SUMMARY,
    "sha256": "a" * 64,
    "internet_message_id": "<1@fabrikam.example>",
    "submission_id": None,
    "verdict": {
        "verdict": "threatsFound",
        "causes": [
            {
                "rule": "R03",
                "title": "An entry allowed it",
                "recommendations": [{"action": "Remove it", "cmdlet": "Remove-It"}],
            }
        ],
    },
    "blocks": [{**BLOCK, "scope": "tenant", "status": "failed", "reason": "own-domain"}],
    "timeline": [
        {"at": "2026-03-03T08:02:14Z", "kind": "opened", "actor": None, "detail": {}},
        {"at": "2026-03-03T09:02:14Z", "kind": "submitted", "actor": {"id": "1", "name": "Ada"}, "detail": {}},
    ],
}


class Stub:
    """A gateway that remembers what it was asked and answers what it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answers: list[web.Response] = []

    async def answer(self, request: web.Request) -> web.Response:
        """Give the next answer."""
        self.asked.append(request)
        self.bodies.append(await request.read())
        return self.answers.pop(0)

    async def run(self, *arguments: str, json_answer: Any = None, status: int = 200) -> Result:
        """Run a command; the gateway answers with this JSON."""
        if json_answer is not None:
            self.answers.append(web.json_response(json_answer, status=status))
        env = {"BACKSTOP_GATEWAY_URL": self.url, "BACKSTOP_TOKEN": "token"}
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)


@pytest.fixture
async def gateway() -> AsyncIterator[Stub]:
    """Serve a gateway."""
    stub, served = Stub(), web.Application()
    served.router.add_route("*", "/{anything:.*}", stub.answer)
    runner = web.AppRunner(served)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield stub
    await runner.cleanup()


@pytest.fixture
def message(tmp_path: Path) -> str:
    """Write a message."""
    file = tmp_path / "message.eml"
    file.write_text("From: a@fabrikam.example\n\nHello")
    return str(file)


def failure(result: Result, code: int = 1) -> str:
    """Return what a command that failed has said."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return result.stderr.removesuffix("\n")


async def test_a_report_says_how_to_follow_it_and_what_became_of_the_block(gateway: Stub, message: str) -> None:
    """The command and the address, ready to be used."""
    done = await gateway.run("report", message, "--as", "junk", "--block-sender", json_answer=ACCEPTED, status=202)

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"Reported. Report: {REPORT}",
        "Block of a@fabrikam.example for the mailbox: requested. The sender is about to be blocked for your mailbox.",
        f"Follow it with: backstop status {REPORT}",
        f"Or over HTTP: GET {gateway.url}/v1/reports/{REPORT}",
    ]
    (asked,) = gateway.asked
    assert dict(asked.query) == {"reported_as": "junk", "block_sender": "true"}
    assert asked.headers["Authorization"] == "Bearer token"
    assert (asked.content_type, gateway.bodies) == ("message/rfc822", [b"From: a@fabrikam.example\n\nHello"])


async def test_a_report_that_was_filed_before_says_so(gateway: Stub, message: str) -> None:
    """Nothing comes of the second one."""
    again = await gateway.run("report", message, json_answer={**ACCEPTED, "repeated": True, "block": None}, status=202)
    assert again.stdout.startswith(f"This was reported before, and nothing new was saved. Report: {REPORT}\nFollow it")


async def test_every_error_of_a_refusal_is_printed(gateway: Stub, message: str) -> None:
    """Title, detail, and each of its errors on a line."""
    problem = {
        "type": "urn:backstop:problem:invalid-request",
        "title": "Invalid request",
        "status": 422,
        "detail": "Nothing was saved. See `errors`.",
        "errors": [
            {"where": "query.reporter", "what": "not an address\x1b[31m"},
            {"where": "query.x", "what": "Unknown"},
        ],
    }
    assert failure(await gateway.run("report", message, json_answer=problem, status=422)).splitlines() == [
        "Not reported: Invalid request: Nothing was saved. See `errors`.",
        r"  query.reporter: not an address\x1b[31m",
        "  query.x: Unknown",
    ]


async def test_the_status_of_a_report_is_told(gateway: Stub) -> None:
    """Verdict, explanation and block."""
    done = await gateway.run("status", REPORT, json_answer=STATE)
    assert done.stdout.splitlines() == [
        f"Report {REPORT}: verdict (threat)",
        "  Microsoft found the message malicious.",
        "  Reported 2026-03-03T08:02:14Z by ann@contoso.example as phishing",
        "  Folder: inbox",
        "  Block of a@fabrikam.example for the mailbox: applied",
    ]
    unknown = {"title": "Unknown report", "detail": "There is no such report of yours."}
    said = failure(await gateway.run("status", REPORT, json_answer=unknown, status=404))
    assert said == "The report could not be read: Unknown report: There is no such report of yours."


async def test_json_is_the_gateways_answer(gateway: Stub, message: str) -> None:
    """As it is, for programs."""
    for arguments, answer in (
        (("report", message), ACCEPTED),
        (("status", REPORT), STATE),
        (("cases", "show", CASE), DETAIL),
        (("cases", "decide", CASE, "dismiss"), DETAIL),
    ):
        assert json.loads((await gateway.run(*arguments, "--json", json_answer=answer)).stdout) == answer


async def test_cases_are_listed_over_pages_and_nothing_in_them_acts_on_a_terminal(gateway: Stub) -> None:
    """Until the limit; a subject may hold anything."""
    page = {"items": [SUMMARY], "next_cursor": "more"}
    gateway.answers = [web.json_response(page) for _ in range(2)]
    listed = await gateway.run("cases", "list", "--status", "open", "--limit", "2")

    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["CASE", CASE, CASE]
    assert r"red\x1b[31m" in listed.stdout
    assert [dict(asked.query) for asked in gateway.asked] == [
        {"status": "open", "limit": "2"},
        {"status": "open", "limit": "1", "cursor": "more"},
    ]
    empty = {"items": [], "next_cursor": None}
    assert (await gateway.run("cases", "list", json_answer=empty)).stdout == "No cases.\n"
    assert (await gateway.run("cases", "list", "--json", json_answer=empty)).stdout == ""


async def test_a_case_is_shown_with_its_causes_and_its_timeline(gateway: Stub) -> None:
    """What to change, and who did what."""
    shown = (await gateway.run("cases", "show", CASE, json_answer=DETAIL)).stdout
    assert "sender a@fabrikam.example: failed (own-domain)" in shown
    assert "R03 An entry allowed it\n      -> Remove it\n         Remove-It" in shown
    assert "2026-03-03T09:02:14Z submitted by Ada" in shown


async def test_a_decision_is_sent_as_it_was_given(gateway: Stub) -> None:
    """With its blocks and the note."""
    options = ("--as", "phishing", "--block", "sender", "--block-url", "https://x.phish.example/in", "--never-expires")
    done = await gateway.run(
        "cases", "decide", CASE, "submit", *options, "--note", "seen", json_answer=DETAIL, status=202
    )

    assert done.stdout.startswith("The decision was saved and will be carried out.\n")
    assert gateway.asked[0].path == f"/v1/cases/{CASE}/decisions"
    assert json.loads(gateway.bodies[0]) == {
        "action": "submit",
        "category": "phishing",
        "blocks": [
            {"kind": "sender", "never_expires": True},
            {"kind": "url", "url": "https://x.phish.example/in", "never_expires": True},
        ],
        "note": "seen",
    }


@pytest.mark.parametrize(
    "options", [["submit"], ["block"], ["dismiss", "--block", "sender"], ["block", "--as", "spam"]]
)
async def test_a_decision_that_makes_no_sense_is_not_sent(gateway: Stub, options: list[str]) -> None:
    """The usage is shown instead."""
    assert (await gateway.run("cases", "decide", CASE, *options)).exit_code == 2
    assert gateway.asked == []


async def test_a_gateway_that_is_away_is_one_line(message: str) -> None:
    """Sending a report again is safe, and the line says so."""
    env = {"BACKSTOP_GATEWAY_URL": NOBODY, "BACKSTOP_TOKEN": "token"}
    said = failure(await asyncio.to_thread(CliRunner().invoke, app, ["report", message], env=env))
    assert said == (
        f"Not reported: the gateway at {NOBODY} does not answer (ConnectionRefusedError)."
        " Send it again: the same report counts once."
    )


@pytest.mark.parametrize("url", ["s3cret", "https://[s3cret", "https://user:s3cret@gateway", "https://gateway:s3cret"])
async def test_an_address_that_is_none_is_one_line_without_it(gateway: Stub, message: str, url: str) -> None:
    """It may hold a password."""
    said = failure(await gateway.run("report", message, "--gateway", url), 2)
    assert said.startswith("Not reported: BACKSTOP_GATEWAY_URL: write it as https://host")
    assert "s3cret" not in said


@pytest.mark.parametrize("token", ["s3cret\nx", "s3cr\u00e9t"])
async def test_a_token_that_is_no_line_of_ascii_is_refused(gateway: Stub, message: str, token: str) -> None:
    """It would begin another header, or be sent as something else."""
    said = failure(await gateway.run("report", message, "--token", token), 2)
    assert said == "Not reported: BACKSTOP_TOKEN must be one line of ASCII text."


async def test_what_is_no_gateway_is_said_in_one_line(gateway: Stub, message: str) -> None:
    """Such as a proxy's own page; a redirect is not followed, because the token is for the gateway alone."""
    gateway.answers = [web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")]
    said = failure(await gateway.run("report", message))
    assert said == ("Not reported: 502 Bad Gateway: this is not an answer of Backstop's. Is it the gateway's address?")
    gateway.answers = [web.Response(status=302, headers={"Location": f"{gateway.url}/elsewhere"})]
    assert "302 Found" in failure(await gateway.run("status", REPORT))
    assert len(gateway.asked) == 2
