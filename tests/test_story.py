"""Microsoft's guide for false negatives, walked by the whole system: Inbox, Junk, and interruptions."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest

from demo.check import differences
from demo.gateway import RefusedError
from demo.people import Demo
from demo.story import Reported
from local_stack.stack import Stack

SERVICES = ("reporter", "triage", "submitter", "verdict_poller", "blocklist", "quarantine", "gateway")


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    """Wait for *condition* to be true; return what made it so."""
    async with asyncio.timeout(seconds):
        while not (result := await condition()):
            await asyncio.sleep(0.05)
        return result


def write(folder: Path, name: str, sender: str, text: str, *, message_id: str | None = None, headers: str = "") -> Path:
    """Write a mail, of an authenticated sender unless *headers* say otherwise."""
    domain = sender.rpartition("@")[2]
    headers = headers or f"Authentication-Results: dmarc=pass action=none header.from={domain}; compauth=pass\n"
    file = folder / f"{name}.eml"
    file.write_text(
        f"From: {sender}\nTo: user@contoso.example\nSubject: {name}\n"
        f"Message-ID: {message_id or f'<{uuid4()}@mail.example>'}\n{headers}\n{text}\n"
    )
    return file


async def case_that(demo: Demo, report_id: UUID, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait until the case of a report is as *condition* wants it; return it as an admin reads it."""

    async def ready() -> dict[str, Any] | None:
        case_id = demo.event_log.case_of.get(report_id)
        if case_id is None:
            return None
        case = await demo._gateway.read_case(demo._admin, str(case_id))
        return case if condition(case) else None

    case: dict[str, Any] = await until(ready)
    return case


async def case_with(demo: Demo, report_id: UUID, status: str) -> dict[str, Any]:
    """Wait until the case of a report has *status*; return it."""
    return await case_that(demo, report_id, lambda case: case["status"] == status)


def kinds_of(case: dict[str, Any]) -> list[str]:
    """Return what happened to a case, in order."""
    return [entry["kind"] for entry in case["timeline"]]


def blocks_of(case: dict[str, Any]) -> list[str]:
    """Return what became of the blocks of a case."""
    return [block["status"] for block in case["blocks"]]


async def told(demo: Demo, user: str, report_id: UUID, words: str) -> None:
    """Wait until a user reads *words* about a report: reporter hears of a verdict when it does, not when others do."""

    async def heard() -> bool:
        return words in str(await demo._gateway.read_report(demo._tokens[user], str(report_id)))

    await until(heard)


async def settled(demo: Demo) -> dict[str, Any]:
    """Wait until nothing is left to be done; return the ledger, which agrees with every claim."""

    async def quiet() -> bool:
        return demo.event_log.settled(demo.accepted)

    await until(quiet, 120)
    ledger: dict[str, Any] = await demo.control("GET", "/ledger")
    assert differences(demo.event_log, demo.accepted, ledger, demo.addresses) == []
    return ledger


async def test_a_malicious_mail_in_the_inbox(stack: Stack, demo: Demo, tmp_path: Path) -> None:
    """Two users report it, one blocks its sender; it is submitted; the verdict names the setting to change."""
    settings = {
        "cmdlets": {
            "Get-HostedContentFilterPolicy": [{"Name": "Default", "AllowedSenderDomains": ["fabrikam.example"]}]
        }
    }
    await demo.control("PATCH", f"/tenants/{stack.tenant_id}", settings)
    anna, ben = "anna@contoso.example", "ben@contoso.example"
    await demo.sign_in([anna, ben])
    mail = write(
        tmp_path, "invoice", "billing@fabrikam.example", "Pay at https://pay.phish.example/1 today, please do."
    )

    first = await demo.report(Reported(mail, (anna,), block_sender=True))
    again = await demo.report(Reported(mail, (anna,), block_sender=True))
    second = await demo.report(Reported(mail, (ben,)))
    # A verdict may be there before the block that was wanted together with it.
    case = await case_that(
        demo, first.report_ids[0], lambda case: case["status"] == "resolved" and "block.applied" in kinds_of(case)
    )
    ledger = await settled(demo)

    assert again.report_ids == first.report_ids != second.report_ids
    assert case["report_count"] == 2
    assert (case["verdict"]["verdict"], case["verdict"]["detail"]) == (
        "allowedDueToOrganizationOverride",
        "allowedByTenant",
    )
    assert case["verdict"]["causes"][0]["rule"] == "R04"
    assert "AllowedSenderDomains @{Remove='fabrikam.example'}" in str(case["verdict"]["causes"][0]["recommendations"])
    kinds = kinds_of(case)
    assert kinds[:2] == ["message.reported", "message.reported"]
    assert set(kinds[2:]) == {
        "case.submitted", "block.requested", "submission.created", "block.applied", "verdict.ready",
    }  # fmt: skip
    assert kinds.index("submission.created") < kinds.index("verdict.ready")
    (submission,) = [one for one in ledger["submissions"] if one["internet_message_id"] == case["internet_message_id"]]
    assert (submission["category"], submission["form"]) == ("phishing", "content")
    assert [block["value"] for block in ledger["tenant_blocks"]].count("billing@fabrikam.example") == 1
    assert [one["value"] for one in ledger["mailbox_blocks"] if one["mailbox"] == anna] == ["billing@fabrikam.example"]

    await told(demo, anna, first.report_ids[0], "a setting of your organisation or of your mailbox let this mail in")


async def test_a_malicious_mail_in_junk(demo: Demo, tmp_path: Path) -> None:
    """A user reports it from Junk, an admin triages, submits and blocks the domain; the filter missed it."""
    mia = "mia@contoso.example"
    await demo.sign_in([mia])
    headers = "X-Forefront-Antispam-Report: SCL:1;SFV:NSPM;CAT:NONE;\nX-Microsoft-Antispam-Mailbox-Delivery: dest:J;\n"
    text = "Your order failed. Correct your card at https://orders.phish.example/fix before noon, or it is cancelled."
    mail = write(tmp_path, "order", "orders@alpine.example", text, headers=headers)
    decision = {"action": "submit", "category": "phishing", "blocks": [{"kind": "domain"}], "note": "fake shop"}

    outcome = await demo.report(Reported(mail, (mia,), folder="junk", decision=decision))
    waiting = await case_with(demo, outcome.report_ids[0], "open")
    assert kinds_of(waiting) == ["message.reported"]
    await demo.triage()
    case = await case_that(
        demo, outcome.report_ids[0], lambda case: case["status"] == "resolved" and blocks_of(case) == ["applied"]
    )
    ledger = await settled(demo)

    assert case["verdict"]["verdict"] == "threatsFound"
    assert case["verdict"]["detected_urls"] == ["https://orders.phish.example/fix"]
    assert "R17" in {cause["rule"] for cause in case["verdict"]["causes"]}
    decided = next(entry for entry in case["timeline"] if entry["kind"] == "case.submitted")
    assert decided["actor"]["name"] == "admin@contoso.example"
    assert [block["value"] for block in ledger["tenant_blocks"]].count("alpine.example") == 1

    # The same campaign again: the closed case was answered for other mails.
    copy = write(tmp_path, "order", "orders@bellows.example", text)
    another = await demo.report(Reported(copy, (mia,)))
    assert (await case_with(demo, another.report_ids[0], "open"))["case_id"] != case["case_id"]
    await told(demo, mia, another.report_ids[0], "Your security team is looking at the mail.")
    await demo._gateway.decide(demo._admin, str(demo.event_log.case_of[another.report_ids[0]]), {"action": "dismiss"})


LUNCH = "Lunch is at noon on Thursday in the canteen on the ground floor. Please tell us whether you can come."
WIRE = "Please pay the open invoice for the new furniture of the office to this account before Friday: IBAN {}."


@pytest.mark.parametrize(
    ("harmless", "phish", "ending"),
    [
        (
            {"text": LUNCH},
            {"text": "Your mailbox is full. Sign in at https://mailbox.phish.example/in to keep your messages."},
            "submit",
        ),
        ({"text": "Lunch at noon?"}, {"text": "See https://l.phish.example"}, "submit"),
        ({"text": WIRE.format("DE02 1203")}, {"text": WIRE.format("DE02 6666"), "message_id": None}, "dismiss"),
        ({"text": WIRE.format("DE02 1204")}, {"text": WIRE.format("DE02 7777")}, "dismiss"),
    ],
    ids=["another text", "another short text", "another account number", "all the same but the account number"],
)
async def test_a_phish_inherits_nothing_from_the_harmless_mail_that_it_imitates(
    demo: Demo, tmp_path: Path, harmless: dict[str, Any], phish: dict[str, Any], ending: str
) -> None:
    """Its Message-ID or its text is that of a mail which was found clean, or dismissed: somebody looks at it anew."""
    lea, ines, ida = (f"{name}@contoso.example" for name in ("lea", "ines", "ida"))
    await demo.sign_in([lea, ines, ida])
    message_id = f"<{uuid4()}@partner.example>"
    mail = write(tmp_path, "note", "office@partner.example", message_id=message_id, **harmless)
    good = (await demo.report(Reported(mail, (lea,), folder="junk"))).report_ids[0]
    closed = await case_with(demo, good, "open")
    decision = {"action": ending} | ({"category": "phishing"} if ending == "submit" else {})
    await demo._gateway.decide(demo._admin, closed["case_id"], decision)
    await case_with(demo, good, "resolved" if ending == "submit" else "dismissed")
    await told(demo, lea, good, "no threat in it" if ending == "submit" else "nothing malicious")

    copy = write(tmp_path, "note", "office@lookalike.example", **{"message_id": message_id} | phish)
    bad = (await demo.report(Reported(copy, (ines, ida, lea)))).report_ids
    for report_id in bad:
        case = await case_that(demo, report_id, lambda case: case["report_count"] == len(bad))
        assert case["case_id"] != closed["case_id"]
    await case_that(demo, bad[0], lambda case: "verdict.ready" in kinds_of(case))
    ledger = await settled(demo)

    assert (await demo._gateway.read_case(demo._admin, closed["case_id"]))["report_count"] == 1
    items = [one["internet_message_id"] for one in ledger["submissions"]]
    assert items.count(case["internet_message_id"]) == (2 if ending == "submit" else 1)


async def test_two_mails_with_one_message_id_are_judged_apart_at_the_same_time(demo: Demo, tmp_path: Path) -> None:
    """The second comes while Microsoft still looks at the first."""
    ole, oda, message_id = "ole@contoso.example", "oda@contoso.example", f"<{uuid4()}@partner.example>"
    await demo.sign_in([ole, oda])
    texts = LUNCH, "Your parcel waits for you. Pay the customs fee at https://parcel.phish.example/fee until tonight."
    mails = [
        write(tmp_path, f"m{n}", "office@partner.example", text, message_id=message_id) for n, text in enumerate(texts)
    ]
    # Microsoft takes the same Message-ID and recipient once in 15 minutes.
    reporters = (ole, oda), (oda, ole)
    acts = [Reported(mail, people) for mail, people in zip(mails, reporters, strict=True)]
    lunch, parcel = [(await demo.report(act)).report_ids for act in acts]
    first, second = [await case_with(demo, reports[1], "resolved") for reports in (lunch, parcel)]
    await settled(demo)

    assert [case["verdict"]["conclusion"] for case in (first, second)] == ["clean", "threat"]
    assert [case["report_count"] for case in (first, second)] == [2, 2]
    await told(demo, oda, parcel[0], "confirms that this mail is a threat")


async def test_a_block_is_lifted_when_the_verdict_says_clean(demo: Demo, tmp_path: Path) -> None:
    """What was blocked while nobody knew is not blocked for ever."""
    kim = "kim@contoso.example"
    await demo.sign_in([kim])
    mail = write(
        tmp_path, "plan", "plans@margie.example", "Your train leaves at 08:12 from platform 4. Have a good trip."
    )
    outcome = await demo.report(Reported(mail, (kim,)))
    case = await case_with(demo, outcome.report_ids[0], "open")
    await demo._gateway.decide(demo._admin, case["case_id"], {"action": "block", "blocks": [{"kind": "sender"}]})
    await case_that(demo, outcome.report_ids[0], lambda case: blocks_of(case) == ["applied"])

    await demo._gateway.decide(demo._admin, case["case_id"], {"action": "submit", "category": "phishing"})
    await case_that(demo, outcome.report_ids[0], lambda case: blocks_of(case) == ["removed"])
    ledger = await settled(demo)
    lifted = [entry["value"] for entry in ledger["removals"]]
    assert [value for value in lifted if "margie" in value] == ["plans@margie.example"]


async def test_a_closed_case_expires_everywhere_and_an_open_one_of_the_same_age_keeps_everything(
    stack: Stack, demo: Demo, tmp_path: Path
) -> None:
    """Rows, mail and answers are gone; the same mail, reported again, is a new case with its mail."""
    zoe = "zoe@contoso.example"
    await demo.sign_in([zoe])
    decision = {"action": "submit", "category": "phishing", "blocks": [{"kind": "sender"}]}
    closing = write(tmp_path, "menu", "menu@cafe.example", f"Today there is soup, and bread with {uuid4()} on it.")
    waiting = write(tmp_path, "lease", "lease@estate.example", f"Your lease {uuid4()} is ready. See you on Monday.")
    first = await demo.report(Reported(closing, (zoe,), folder="junk", decision=decision))
    await case_with(demo, first.report_ids[0], "open")
    await demo.triage()
    # The verdict is clean: what still comes later would be news, and keep the case.
    closed = await case_that(
        demo, first.report_ids[0], lambda case: case["status"] == "resolved" and blocks_of(case) == ["removed"]
    )
    await settled(demo)
    second = await demo.report(Reported(waiting, (zoe,), folder="junk"))
    standing = await case_with(demo, second.report_ids[0], "open")

    server = await asyncpg.connect(stack.postgres_dsn)
    tables = await server.fetch(
        "SELECT table_schema, table_name FROM information_schema.columns WHERE column_name = 'case_id' ORDER BY 1, 2"
    )

    async def rows(case: dict[str, Any]) -> dict[str, int]:
        counts = {
            f"{schema}.{table}": await server.fetchval(
                f"SELECT count(*) FROM {schema}.{table} WHERE case_id = $1", case["case_id"]
            )
            for schema, table in tables
        }
        return {table: count for table, count in counts.items() if count}

    def mail_of(case: dict[str, Any]) -> Path:
        return stack.folder / "mails" / stack.tenant_id / case["sha256"][:2] / case["sha256"]

    async def schemas(case: dict[str, Any], *names: str) -> dict[str, int] | None:
        found = await rows(case)
        return found if {name.partition(".")[0] for name in found} == set(names) else None

    # Quarantine keeps what became of reports that came through it, and for a while each verdict that it hears of.
    open_in, closed_in = ("reporter", "triage"), ("submitter", "verdict_poller", "blocklist", "quarantine")
    kept = await until(lambda: schemas(standing, *open_in))
    await until(lambda: schemas(closed, *open_in, *closed_in))
    cases = [UUID(case["case_id"]) for case in (closed, standing)]
    past = timedelta(days=31)
    await server.execute("UPDATE triage.timeline SET at = at - $2::interval WHERE case_id = ANY($1)", cases, past)
    await server.execute(
        "UPDATE triage.cases SET quiet_since = quiet_since - $2::interval WHERE case_id = ANY($1)", cases, past
    )
    # The job runs when triage starts, too.
    await stack.supervisor.kill("triage")
    await stack.supervisor.restart("triage")

    async def unknown() -> bool:
        try:
            await demo._gateway.read_case(demo._admin, closed["case_id"])
        except RefusedError as error:
            return error.status == 404
        return False

    async def forgotten() -> bool:
        return not await rows(closed) and not mail_of(closed).exists()

    await until(unknown)
    await until(forgotten)
    with pytest.raises(RefusedError) as refused:
        await demo._gateway.read_report(demo._tokens[zoe], str(first.report_ids[0]))
    assert refused.value.status == 404
    assert demo.event_log.cases[cases[0]].expired
    assert not demo.event_log.cases[cases[1]].expired
    assert await rows(standing) == kept
    assert mail_of(standing).read_bytes() == waiting.read_bytes()
    assert (await demo._gateway.read_case(demo._admin, standing["case_id"]))["status"] == "open"

    again = await demo.report(Reported(closing, (zoe,), folder="junk"))

    async def reopened() -> UUID | None:
        case_id = demo.event_log.case_of.get(again.report_ids[0])
        return case_id if case_id != cases[0] else None

    new = await demo._gateway.read_case(demo._admin, str(await until(reopened)))
    assert again.report_ids == first.report_ids
    assert (new["status"], new["report_count"]) == ("open", 1)
    assert mail_of(new).read_bytes() == closing.read_bytes()
    for case in (standing, new):
        await demo._gateway.decide(demo._admin, case["case_id"], {"action": "dismiss"})
    await settled(demo)
    await server.close()


async def test_an_id_token_gets_nobody_in_anywhere(stack: Stack, demo: Demo) -> None:
    """A user's browser holds one, for the same client and with the same roles: it reports in nobody's name."""
    sue, chief = "sue@contoso.example", f"{uuid4()}@contoso.example"
    await demo.sign_in([])
    mail = b"From: a@proseware.example\r\nSubject: hello\r\n\r\nhello"
    report = {"url": f"/v1/reports?reported_as=phishing&reporter={chief}&block_sender=true", "data": mail}
    token = await demo._token(["Reporter"], sue, id_token=True)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "message/rfc822"}
    paths = {"gateway": "/v1/cases", "reporter": f"/v1/reports/{uuid4()}", "triage": "/v1/cases"}
    for service, path in (paths | {"quarantine": "/v1/quarantine"}).items():
        async with aiohttp.ClientSession(stack.urls[service], headers=headers) as session:
            async with session.get(path) as answer:
                assert (answer.status, service) == (401, service)
            if service in ("gateway", "reporter"):
                async with session.post(**report) as answer:
                    assert answer.status == 401
                    assert "nonce" in (await answer.json())["detail"]

    # The same by her access token is hers to do in her own name alone.
    headers["Authorization"] = f"Bearer {await demo._token(['Reporter'], sue)}"
    async with (
        aiohttp.ClientSession(stack.urls["gateway"], headers=headers) as session,
        session.post(**report) as answer,
    ):
        assert answer.status == 403
    server = await asyncpg.connect(stack.postgres_dsn)
    assert await server.fetchval("SELECT count(*) FROM reporter.reports WHERE reporter = ANY($1)", [sue, chief]) == 0
    await server.close()


@pytest.mark.parametrize("service", SERVICES)
async def test_any_service_can_be_stopped_and_started(stack: Stack, demo: Demo, tmp_path: Path, service: str) -> None:
    """Whoever was away catches up, and nothing is done twice."""
    users = ("anna@contoso.example", "ben@contoso.example")
    await demo.sign_in(users)

    async def report(number: int) -> None:
        text = (
            f"{service} {number}: look at https://number{number}.phish.example and tell {uuid4()} what you see there."
        )
        mail = write(tmp_path, f"{service}-{number}", f"sender{number}@{service.replace('_', '-')}.example", text)
        await demo.report(Reported(mail, users))

    before = len(demo.outcomes)
    await asyncio.gather(*(report(number) for number in range(4)))
    await stack.supervisor.stop(service)
    if service not in ("reporter", "gateway"):
        await asyncio.gather(*(report(number) for number in range(4, 8)))
    await stack.supervisor.restart(service)
    await asyncio.gather(*(report(number) for number in range(8, 12)))
    await settled(demo)

    assert all(len(outcome.report_ids) == len(users) for outcome in demo.outcomes[before:])
