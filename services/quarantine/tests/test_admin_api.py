"""The admin API: requests wait for their outcome, the simulator's ledger shows what really happened."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from backstop_contracts import CaseStatus, CaseUpdated, Category, Conclusion, MessageReported, VerdictReady
from chassis.testing import deliver
from conftest import JUDGED
from quarantine import handlers

ANNA = "anna@contoso.example"
BEN = "ben@contoso.example"
ACTIONS = "/v1/quarantine/actions"
RELEASE = "exchange.Release-QuarantineMessage"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def admin(token: Any) -> str:
    """Return the token of an admin."""
    return str(token("SecurityAdministrator", preferred_username="admin@contoso.example"))


@pytest.fixture
def reader(token: Any) -> str:
    """Return the token of somebody who may read."""
    return str(token("SecurityReader"))


@pytest.mark.usefixtures("quarantined")
async def test_an_answer_waits_for_the_outcome(world: Any, client: Any, admin: str) -> None:
    """200 when every action is done."""
    message_id = (await world.message_ids())["Parcel", ANNA]
    body = {"action": "approve", "messages": [message_id], "all_recipients": True, "reason": "known supplier"}
    async with world.running_actions():
        status, answer = await client("POST", ACTIONS, admin, json=body)
    assert status == 200
    assert {(one["recipient"], one["action"], one["state"]) for one in answer["results"]} == {
        (ANNA, "release", "succeeded"),
        (BEN, "release", "succeeded"),
    }
    assert sorted(world.done()) == [("release", ANNA), ("release", BEN)]


@pytest.mark.usefixtures("quarantined")
async def test_a_request_that_fails_in_part_has_a_result_for_each_message(world: Any, client: Any, admin: str) -> None:
    """207, never 200: one message is released, and the result of the other has the reason."""
    ids = await world.message_ids()
    body = {"action": "release", "messages": [ids["Parcel", ANNA], ids["Parcel", BEN]]}
    world.fault(RELEASE, "refuse", message="The recipient is on hold.")
    async with world.running_actions():
        status, answer = await client("POST", ACTIONS, admin, json=body)
    assert status == 207
    failed, succeeded = sorted(answer["results"], key=lambda one: one["state"])
    assert (failed["state"], failed["failure"], failed["detail"]) == ("failed", "refused", "The recipient is on hold.")
    assert (succeeded["state"], succeeded["detail"]) == ("succeeded", None)


@pytest.mark.usefixtures("quarantined")
async def test_a_missing_permission_of_the_application_is_502(world: Any, client: Any, admin: str) -> None:
    """It is not the admin's fault."""
    app = world.tenant.settings.apps[0]
    app.security_role = "Security Reader"
    body = {"action": "release", "messages": [(await world.message_ids())["Parcel", ANNA]]}
    async with world.running_actions():
        status, problem = await client("POST", ACTIONS, admin, json=body)
    app.security_role = "Security Administrator"
    assert status == 502
    assert problem["results"][0]["failure"] == "not-allowed"
    assert problem["detail"]


@pytest.mark.usefixtures("quarantined")
async def test_an_action_that_still_runs_is_202_and_can_be_read_later(
    world: Any, impatient_client: Any, admin: str, reader: str
) -> None:
    """No worker runs during the request."""
    body = {"action": "release", "messages": [(await world.message_ids())["Parcel", ANNA]]}
    status, answer = await impatient_client("POST", ACTIONS, admin, json=body)
    assert (status, answer["results"][0]["state"]) == (202, "running")
    await world.run_actions()
    status, state = await impatient_client("GET", f"{ACTIONS}/{answer['results'][0]['action_id']}", reader)
    assert (status, state["state"]) == (200, "succeeded")


async def test_a_denial_must_name_all_recipients_of_a_shared_row(world: Any, client: Any, admin: str) -> None:
    """Defender would deny the release to the others too."""
    await world.quarantine(world.eml("shared", to=f"{ANNA}, {BEN}"), one_row=True)
    await world.sync()
    message_id = (await world.message_ids())["shared", ANNA]
    body = {"action": "deny", "messages": [message_id], "reason": "phishing"}
    status, _ = await client("POST", ACTIONS, admin, json=body)
    assert status == 422
    async with world.running_actions():
        status, _ = await client("POST", ACTIONS, admin, json=body | {"all_recipients": True})
    assert status == 200
    assert await world.statuses() == {("shared", ANNA): "denied", ("shared", BEN): "denied"}


async def test_a_recipient_who_has_the_message_is_not_shown_as_denied(world: Any, client: Any, admin: str) -> None:
    """After a denial of a shared row, each status is what Exchange shows, even if a release was not synced yet."""
    made = await world.quarantine(world.eml("shared", to=f"{ANNA}, {BEN}"), one_row=True)
    await world.sync()
    message_id = (await world.message_ids())["shared", ANNA]
    await world.control("POST", f"/quarantine/{made['network_message_id']}/releases", {"recipients": [ANNA]})
    body = {"action": "deny", "messages": [message_id], "reason": "phishing", "all_recipients": True}
    async with world.running_actions():
        status, answer = await client("POST", ACTIONS, admin, json=body)
    assert status == 207
    assert {one["recipient"]: (one["state"], one["detail"]) for one in answer["results"]} == {
        ANNA: ("failed", "The recipient already has the message. Nothing was denied."),
        BEN: ("succeeded", None),
    }
    await world.sync()
    assert await world.statuses() == {("shared", ANNA): "released", ("shared", BEN): "denied"}


@pytest.mark.usefixtures("quarantined")
async def test_a_submission_becomes_a_report_with_the_admins_decision(
    world: Any, client: Any, admin: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raw message is in the mail store; the answer has the verdict once there is one."""
    monkeypatch.setattr("quarantine.http.MAX_WAIT_FOR_CASES", timedelta(seconds=0.1))
    message_id = (await world.message_ids())["Parcel", ANNA]
    body = {
        "action": "submit",
        "category": "phishing",
        "messages": [message_id],
        "note": "seen twice",
        # Without an expiry: otherwise the same request would be another one after midnight.
        "blocks": [
            {"kind": "sender", "never_expires": True},
            {"kind": "url", "url": "https://phish.example/1", "never_expires": True},
        ],
    }
    async with world.running_actions():
        status, answer = await client("POST", ACTIONS, admin, json=body)
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
    raw = await world.mail_store.get(world.tenant_id, report.message.sha256)
    assert b"Subject: Parcel" in raw
    assert report.message.sender == "parcels@fabrikam.example"

    await resolve_as_threat(world, report)
    status, answer = await client("POST", ACTIONS, admin, json=body)
    submission = answer["results"][0]["submission"]
    assert (status, submission["case_status"], submission["verdict"]["conclusion"]) == (200, "resolved", "threat")
    assert await world.emitted() == []
    _, detail = await client("GET", f"/v1/quarantine/{message_id}", reader)
    assert detail["submissions"] == [submission]
    assert [copy["recipient"] for copy in detail["copies"]] == [BEN]


async def resolve_as_threat(world: Any, report: MessageReported) -> None:
    """Deliver the events that resolve the case of a report as a threat."""
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


async def test_pending_requests_come_first_and_pages_lose_nothing(world: Any, client: Any, reader: str) -> None:
    """The latest messages follow; filters narrow the list."""
    made = [await world.quarantine(world.eml(f"Parcel {number}")) for number in range(5)]
    await world.quarantine(world.eml("Other", sender="news@alpine.example", to=BEN), quarantine_type="Malware")
    await world.control("POST", f"/quarantine/{made[1]['network_message_id']}/requests", {})
    await world.sync()
    seen, cursor = [], None
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


async def test_only_admins_see_the_content_of_a_message_and_a_preview_is_inert(
    world: Any, client: Any, admin: str, reader: str
) -> None:
    """Scripts and links of the message are gone from its preview."""
    body = "Content-Type: text/html\r\n\r\n<script>alert(1)</script><p>Look <a href='https://phish.example/x'>here</a>"
    await world.quarantine(world.eml("Hostile").replace("\r\n\r\nTrack it.\r\n", f"\r\n{body}"))
    await world.sync()
    message_id = (await world.message_ids())["Hostile", ANNA]
    status, shown = await client("GET", f"/v1/quarantine/{message_id}/preview", admin)
    assert (status, shown["from_address"]) == (200, "parcels@fabrikam.example")
    assert "script" not in shown["document"].replace("1 script.", "")
    assert "href" not in shown["document"]
    assert [link["host"] for link in shown["links"]] == ["phish.example"]
    status, headers = await client("GET", f"/v1/quarantine/{message_id}/headers", admin)
    assert (status, headers["headers"].splitlines()[0]) == (200, "From: Parcels <parcels@fabrikam.example>")
    for path in ("preview", "headers", "download", "document"):
        status, _ = await client("GET", f"/v1/quarantine/{message_id}/{path}", reader)
        assert status == 403


@pytest.mark.usefixtures("quarantined")
async def test_a_message_of_another_tenant_does_not_exist(world: Any, client: Any, admin: str, reader: str) -> None:
    """A request that names it is refused as a whole."""
    unknown = str(uuid4())
    status, _ = await client("GET", f"/v1/quarantine/{unknown}", reader)
    assert status == 404
    known = (await world.message_ids())["Parcel", ANNA]
    body = {"action": "release", "messages": [known, unknown]}
    status, _ = await client("POST", ACTIONS, admin, json=body)
    assert status == 404
    assert await world.run_actions() == []
    status, _ = await client("POST", ACTIONS, reader, json=body)
    assert status == 403
