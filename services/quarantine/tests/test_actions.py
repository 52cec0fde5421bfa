"""What admins want of quarantined mails, carried out against the simulator; its ledger is the witness."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import (
    Actor,
    CaseStatus,
    CaseUpdated,
    Category,
    Conclusion,
    MessageReported,
    ReleaseDecided,
    VerdictReady,
)
from chassis.testing import deliver
from conftest import JUDGED
from quarantine import filing, handlers, store
from quarantine.http import make_router
from quarantine.reading import Reading
from quarantine.rules import Kind

ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
RELEASE = "exchange.Release-QuarantineMessage"
BY = Actor(kind="user", id="admin", name="admin@contoso.example")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def wish(world: Any, kind: Kind, *, subject: str = "Parcel", recipient: str = ANNA) -> UUID:
    """File a wish about one mail."""
    row = (await world.messages())[subject, recipient]
    messages = await store.find_messages(world.db.pool, world.tenant_id, [row["message_id"]])
    async with world.db.transaction() as tx:
        (action_id,) = await filing.file(tx, messages, kind, by=BY, reason="known")
    return action_id


def released(world: Any) -> list[tuple[str, str]]:
    """Return what was really done, and for whom."""
    return [(entry["action"], entry["recipient"]) for entry in world.ledger("quarantine_actions")]


@pytest.fixture
async def quarantined(world: Any) -> Any:
    """Quarantine one mail for two recipients."""
    made = await world.quarantine(world.mail(to=f"{ANNA}, {BEN}"))
    await world.sync()
    return made


async def test_a_release_is_done_once_for_its_recipient_and_told(world: Any, quarantined: Any) -> None:
    """The event says who decided and why; the mirror knows at once."""
    action_id = await wish(world, Kind.RELEASE)
    assert await wish(world, Kind.RELEASE) == action_id
    (event,) = await world.carry()
    assert await wish(world, Kind.RELEASE) == action_id
    assert await world.carry() == []

    assert released(world) == [("release", ANNA)]
    assert isinstance(event, ReleaseDecided)
    assert (event.decision_id, event.decision, event.succeeded, event.already_done) == (
        action_id,
        "release",
        True,
        False,
    )
    assert (event.recipient, event.reason, event.decided_by) == (ANNA, "known", BY)
    assert event.network_message_id == quarantined["network_message_id"]
    assert await world.status() == {("Parcel", ANNA): "released", ("Parcel", BEN): "not-released"}


async def test_a_pending_request_is_approved_by_the_release_or_denied(world: Any, quarantined: Any) -> None:
    """And a request that was denied can be made again."""
    await world.control("POST", f"/quarantine/{quarantined['network_message_id']}/requests", {})
    await world.sync()
    await wish(world, Kind.RELEASE)
    await wish(world, Kind.DENY, recipient=BEN)
    events = await world.carry()

    assert {(event.recipient, event.decision, event.succeeded) for event in events} == {
        (ANNA, "release", True),
        (BEN, "deny", True),
    }
    assert await world.status() == {("Parcel", ANNA): "approved", ("Parcel", BEN): "denied"}
    assert sorted(released(world)) == [("deny", BEN), ("release", ANNA)]


@pytest.mark.parametrize("kind", ["drop_after_effect", "drop_before_effect", "error", "throttle", "timeout"])
@pytest.mark.usefixtures("quarantined")
async def test_a_release_whose_answer_was_lost_is_looked_for(world: Any, kind: str) -> None:
    """It is released once, whatever the first answer was."""
    more = {"timeout": {"seconds": 2}, "throttle": {"retry_after": 1}}.get(kind, {})
    world.fault(RELEASE, kind, **more)
    await wish(world, Kind.RELEASE)
    assert await world.carrier(timeout=0.5 if kind == "timeout" else 10).carry_due() == 1
    assert await world.emitted() == []
    await world.pause_over()
    (event,) = await world.carry()

    assert (event.succeeded, event.already_done) == (True, False)
    assert released(world) == [("release", ANNA)]
    assert world.calls(RELEASE) == (1 if kind in ("drop_after_effect", "timeout") else 2)


@pytest.mark.usefixtures("quarantined")
async def test_a_crash_between_call_and_record_releases_once(world: Any) -> None:
    """Even when Exchange does not show yet what was done."""
    await wish(world, Kind.RELEASE)
    world.state.settings.quarantine_lag_seconds = 600
    async with world.db.transaction() as tx:
        ((action, message),) = await store.claim_actions(tx, timedelta(0), 5)
    await world.exchange().invoke(
        world.tenant_id, "Release-QuarantineMessage", Identity=message.identity, ActionType="Release", User=[ANNA]
    )
    # Killed here.
    assert await world.carry() == []
    assert (await store.find_actions(world.db.pool, world.tenant_id, [action.action_id]))[0].state == "pending"
    world.state.clock.advance(601)
    await world.pause_over()
    (event,) = await world.carry()

    assert (event.succeeded, event.already_done) == (True, False)
    assert released(world) == [("release", ANNA)]


async def test_what_defender_has_done_already_is_a_success(world: Any, quarantined: Any) -> None:
    """The mirror did not know yet."""
    await world.control("POST", f"/quarantine/{quarantined['network_message_id']}/releases", {})
    await wish(world, Kind.RELEASE)
    (event,) = await world.carry()
    assert (event.succeeded, event.already_done) == (True, True)
    assert released(world) == []


@pytest.mark.usefixtures("quarantined")
async def test_a_refusal_is_a_failure_in_microsofts_words_and_can_be_said_again(world: Any) -> None:
    """The second wish is another one."""
    world.fault(RELEASE, "refuse", message="The recipient is on hold.")
    first = await wish(world, Kind.RELEASE)
    (event,) = await world.carry()
    assert (event.succeeded, event.detail) == (False, "The recipient is on hold.")
    assert await world.status() == {("Parcel", ANNA): "not-released", ("Parcel", BEN): "not-released"}

    second = await wish(world, Kind.RELEASE)
    (again,) = await world.carry()
    assert second != first
    assert again.succeeded
    assert released(world) == [("release", ANNA)]


@pytest.mark.usefixtures("quarantined")
async def test_a_mail_that_is_gone_cannot_be_released(world: Any) -> None:
    """Nobody waits an hour for that."""
    world.state.tenants[str(world.tenant_id)].quarantine = type(world.state.tenants[str(world.tenant_id)].quarantine)()
    action_id = await wish(world, Kind.RELEASE)
    (event,) = await world.carry()
    (action,) = await store.find_actions(world.db.pool, world.tenant_id, [action_id])
    assert not event.succeeded
    assert (action.state, action.failure) == ("failed", "gone")
    assert "couldn't be found" in (action.detail or "")


@pytest.mark.usefixtures("quarantined")
async def test_what_is_away_for_too_long_is_given_up(world: Any) -> None:
    """An hour; the reason is told."""
    world.fault(RELEASE, "error", times=None)
    await wish(world, Kind.RELEASE)
    assert await world.carry() == []
    await world.db.pool.execute("UPDATE actions SET requested_at = now() - interval '61 minutes', due_at = now()")
    (event,) = await world.carry()
    assert not event.succeeded
    assert event.detail == "A fault was ordered: error."


# Over HTTP


Client = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
async def client(world: Any, call: Any) -> Client:
    """Serve the admins' routes."""
    reading = Reading(world.exchange())
    return await call(make_router(world.db, reading, patience=world.long))


@pytest.fixture
async def impatient(world: Any, call: Any) -> Client:
    """Serve routes that soon say that something runs."""
    return await call(make_router(world.db, Reading(world.exchange()), patience=world.short))


async def ids(world: Any) -> dict[tuple[str, str], str]:
    """Return the ids of the mails."""
    return {key: str(row["message_id"]) for key, row in (await world.messages()).items()}


@pytest.mark.usefixtures("quarantined")
async def test_an_answer_waits_for_the_outcome(world: Any, client: Client, token: Any) -> None:
    """200 when it is done."""
    message_id = (await ids(world))["Parcel", ANNA]
    body = {"action": "approve", "messages": [message_id], "all_recipients": True, "reason": "known supplier"}
    async with world.working():
        status, answer = await client("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    assert status == 200
    assert {(one["recipient"], one["action"], one["state"]) for one in answer["results"]} == {
        (ANNA, "release", "succeeded"),
        (BEN, "release", "succeeded"),
    }
    assert sorted(released(world)) == [("release", ANNA), ("release", BEN)]


@pytest.mark.usefixtures("quarantined")
async def test_an_action_that_failed_in_part_has_a_result_for_each_message(
    world: Any, client: Client, token: Any
) -> None:
    """207, never 200: what was released is released, and what was not has the reason."""
    known = await ids(world)
    body = {"action": "release", "messages": [known["Parcel", ANNA], known["Parcel", BEN]]}
    world.fault(RELEASE, "refuse", message="The recipient is on hold.")
    async with world.working():
        status, answer = await client("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    assert status == 207
    failed, succeeded = sorted(answer["results"], key=lambda one: one["state"])
    assert (failed["state"], failed["failure"], failed["detail"]) == ("failed", "refused", "The recipient is on hold.")
    assert (succeeded["state"], succeeded["detail"]) == ("succeeded", None)


@pytest.mark.usefixtures("quarantined")
async def test_an_application_that_may_not_release_is_told_so(world: Any, client: Client, token: Any) -> None:
    """502: it is not the admin's fault."""
    app = world.state.tenants[str(world.tenant_id)].settings.apps[0]
    app.security_role = "Security Reader"
    body = {"action": "release", "messages": [(await ids(world))["Parcel", ANNA]]}
    async with world.working():
        status, problem = await client("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    app.security_role = "Security Administrator"
    assert status == 502
    assert problem["results"][0]["failure"] == "not-allowed"
    assert problem["detail"]


@pytest.mark.usefixtures("quarantined")
async def test_what_still_runs_is_202_and_can_be_asked_for(world: Any, impatient: Client, token: Any) -> None:
    """Nobody works here yet."""
    body = {"action": "release", "messages": [(await ids(world))["Parcel", ANNA]]}
    status, answer = await impatient("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    assert (status, answer["results"][0]["state"]) == (202, "running")
    await world.carry()
    status, state = await impatient(
        "GET", f"/v1/quarantine/actions/{answer['results'][0]['action_id']}", token("SecurityReader")
    )
    assert (status, state["state"]) == (200, "succeeded")


async def test_a_denial_names_all_who_share_the_row(world: Any, client: Client, token: Any) -> None:
    """Defender would deny it to the others too."""
    await world.quarantine(world.mail("shared", to=f"{ANNA}, {BEN}"), one_row=True)
    await world.sync()
    known = await ids(world)
    body = {"action": "deny", "messages": [known["shared", ANNA]], "reason": "phishing"}
    status, _ = await client("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    assert status == 422
    async with world.working():
        status, _ = await client(
            "POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body | {"all_recipients": True}
        )
    assert status == 200
    assert await world.status() == {("shared", ANNA): "denied", ("shared", BEN): "denied"}


async def test_who_has_the_message_of_a_shared_row_is_not_said_to_be_denied(
    world: Any, client: Client, token: Any
) -> None:
    """After a denial each recipient's state is what Exchange shows, though nobody here knew of the release yet."""
    made = await world.quarantine(world.mail("shared", to=f"{ANNA}, {BEN}"), one_row=True)
    await world.sync()
    known = await ids(world)
    await world.control("POST", f"/quarantine/{made['network_message_id']}/releases", {"recipients": [ANNA]})
    body = {"action": "deny", "messages": [known["shared", ANNA]], "reason": "phishing", "all_recipients": True}
    async with world.working():
        status, problem = await client("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    assert status == 207
    assert {one["recipient"]: (one["state"], one["detail"]) for one in problem["results"]} == {
        ANNA: ("failed", "its recipient has the message already; nothing was denied"),
        BEN: ("succeeded", None),
    }
    await world.sync()
    assert await world.status() == {("shared", ANNA): "released", ("shared", BEN): "denied"}


@pytest.mark.usefixtures("quarantined")
@pytest.mark.parametrize("kind", [Kind.DENY, Kind.REQUEST, Kind.RELEASE])
async def test_every_action_names_its_recipient(world: Any, kind: Kind) -> None:
    """Exchange refuses one that names nobody."""
    await world.grant(4, "DefaultFullAccessPolicy")
    await world.sync()
    await wish(world, kind, recipient=BEN)
    (event,) = await world.carry()
    assert (event.decision, event.succeeded, event.detail) == (kind, True, None)
    assert released(world) == [(kind, BEN)]


@pytest.mark.usefixtures("quarantined")
async def test_a_submission_becomes_a_report_with_the_admins_decision(
    world: Any, client: Client, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mail lies in the mail store; the verdict stands in the answer when it is there."""
    monkeypatch.setattr("quarantine.http.FOR_THE_CASE", timedelta(seconds=0.1))
    message_id = (await ids(world))["Parcel", ANNA]
    body = {
        "action": "submit",
        "category": "phishing",
        "messages": [message_id],
        "note": "seen twice",
        # Without an end, or the same wish would be another one after midnight.
        "blocks": [
            {"kind": "sender", "never_expires": True},
            {"kind": "url", "url": "https://phish.example/1", "never_expires": True},
        ],
    }
    admin = token("SecurityAdministrator", preferred_username="admin@contoso.example")
    async with world.working():
        status, answer = await client("POST", "/v1/quarantine/actions", admin, json=body)
    assert (status, answer["results"][0]["submission"]["verdict"]) == (200, None)
    (report,) = await world.emitted()
    assert isinstance(report, MessageReported)
    assert (report.channel, report.reporter, report.reported_as) == ("quarantine", ANNA, "phishing")
    assert report.decision
    assert (report.decision.category, report.decision.decided_by.name) == (Category.PHISHING, "admin@contoso.example")
    assert [(block.kind, block.url) for block in report.decision.blocks] == [
        ("sender", None),
        ("url", "https://phish.example/1"),
    ]
    raw = await world.mails.get(world.tenant_id, report.message.sha256)
    assert b"Subject: Parcel" in raw
    assert report.message.sender == "parcels@fabrikam.example"

    await judge(world, report)
    status, answer = await client("POST", "/v1/quarantine/actions", admin, json=body)
    submission = answer["results"][0]["submission"]
    assert (status, submission["case_status"], submission["verdict"]["conclusion"]) == (200, "resolved", "threat")
    assert await world.emitted() == []
    _, detail = await client("GET", f"/v1/quarantine/{message_id}", token("SecurityReader"))
    assert detail["submissions"] == [submission]
    assert [copy["recipient"] for copy in detail["copies"]] == [BEN]


async def judge(world: Any, report: MessageReported) -> None:
    """Let triage and the verdict-poller tell what became of a report."""
    now, case_id = datetime.now(UTC), uuid4()

    updated = CaseUpdated(
        tenant_id=world.tenant_id,
        case_id=case_id,
        change="resolved",
        status=CaseStatus.RESOLVED,
        report_ids=(report.report_id,),
        report_count=1,
        changed_at=now,
    )
    verdict = VerdictReady(
        **JUDGED,
        tenant_id=world.tenant_id,
        submission_id=uuid4(),
        case_id=case_id,
        graph_id="1",
        conclusion=Conclusion.THREAT,
        verdict="threatsFound",
        settings_read=True,
        read_at=now,
    )
    await deliver(handlers.router, world.db, verdict, updated, traceparent=TRACE)


async def test_pending_requests_come_first_and_pages_lose_nothing(world: Any, client: Client, token: Any) -> None:
    """Then the latest; filters narrow the list."""
    made = [await world.quarantine(world.mail(f"Parcel {number}")) for number in range(5)]
    await world.quarantine(world.mail("Other", sender="news@alpine.example", to=BEN), quarantine_type="Malware")
    await world.control("POST", f"/quarantine/{made[1]['network_message_id']}/requests", {})
    await world.sync()
    reader, seen, cursor = token("SecurityReader"), [], None
    while True:
        query = f"?limit=2{f'&cursor={cursor}' if cursor else ''}"
        status, page = await client("GET", f"/v1/quarantine{query}", reader)
        assert status == 200
        seen += [item["subject"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert seen == ["Parcel 1", "Other", "Parcel 4", "Parcel 3", "Parcel 2", "Parcel 0"]
    for query, expected in (
        ("status=requested", ["Parcel 1"]),
        ("sender_domain=ALPINE.example", ["Other"]),
        (f"recipient={BEN}", ["Other"]),
        ("quarantine_type=malware", ["Other"]),
        ("subject=other", ["Other"]),
        ("subject=%25", []),
        (f"network_message_id={made[2]['network_message_id']}", ["Parcel 2"]),
    ):
        _, page = await client("GET", f"/v1/quarantine?{query}", reader)
        assert [item["subject"] for item in page["items"]] == expected, query
    assert page["warning"] is None


async def test_a_mail_can_be_looked_at_safely_read_and_downloaded(world: Any, client: Client, token: Any) -> None:
    """The preview does nothing; the download is the mail, byte for byte."""
    body = "Content-Type: text/html\r\n\r\n<script>alert(1)</script><p>Look <a href='https://phish.example/x'>here</a>"
    eml = world.mail("Hostile").replace("\r\n\r\nTrack it.\r\n", f"\r\n{body}")
    await world.quarantine(eml)
    await world.sync()
    message_id = (await ids(world))["Hostile", ANNA]
    admin = token("SecurityAdministrator")
    status, shown = await client("GET", f"/v1/quarantine/{message_id}/preview", admin)
    assert (status, shown["from_address"]) == (200, "parcels@fabrikam.example")
    assert "script" not in shown["document"].replace("1 script.", "")
    assert "href" not in shown["document"]
    assert [link["host"] for link in shown["links"]] == ["phish.example"]
    status, headers = await client("GET", f"/v1/quarantine/{message_id}/headers", admin)
    assert (status, headers["headers"].splitlines()[0]) == (200, "From: Parcels <parcels@fabrikam.example>")
    for path in ("preview", "headers", "download", "document"):
        status, _ = await client("GET", f"/v1/quarantine/{message_id}/{path}", token("SecurityReader"))
        assert status == 403


@pytest.mark.usefixtures("quarantined")
async def test_another_tenants_mail_does_not_exist(world: Any, client: Client, token: Any) -> None:
    """Nor can it be acted upon."""
    unknown = str(uuid4())
    status, _ = await client("GET", f"/v1/quarantine/{unknown}", token("SecurityReader"))
    assert status == 404
    known = (await ids(world))["Parcel", ANNA]
    body = {"action": "release", "messages": [known, unknown]}
    status, _ = await client("POST", "/v1/quarantine/actions", token("SecurityAdministrator"), json=body)
    assert status == 404
    assert await world.carry() == []
    status, _ = await client("POST", "/v1/quarantine/actions", token("SecurityReader"), json=body)
    assert status == 403
