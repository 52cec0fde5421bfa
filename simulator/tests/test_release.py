"""Release, denial, request and deletion of quarantined mails: by an app, by users and by admins in Defender."""

from typing import Any

import pytest

from simulator import DEFAULT_APP
from simulator.state import DEFAULT_TENANT
from simulator.tokens import EXCHANGE

GET, RELEASE, DELETE = "Get-QuarantineMessage", "Release-QuarantineMessage", "Delete-QuarantineMessage"
QUARANTINE = f"/tenants/{DEFAULT_TENANT}/quarantine"
NOBODY_NAMED = "You must either release the message to all recipients or to specific ones."
ANNA, BEN = "anna@contoso.example", "ben@contoso.example"


@pytest.fixture
def put(control: Any, mail: Any) -> Any:
    """Quarantine a mail for its recipients and return their identities, and the network message id."""

    async def quarantine(*recipients: str, **order: Any) -> tuple[list[str], str]:
        wanted = {"eml": mail().decode(), "recipients": recipients or [ANNA], **order}
        made = await control.ask("POST", QUARANTINE, wanted)
        return [item["identity"] for item in made["items"]], made["network_message_id"]

    return quarantine


@pytest.fixture
def status(exchange: Any) -> Any:
    """Read the ReleaseStatus of one row."""

    async def read(identity: str) -> str:
        (row,) = await exchange.rows(GET, Identity=identity)
        return str(row["ReleaseStatus"])

    return read


async def test_a_mail_is_released_to_its_recipient(exchange: Any, control: Any, put: Any) -> None:
    """The row says so, and the ledger has one entry per recipient."""
    (identity,), network = await put()

    assert await exchange.rows(RELEASE, Identity=identity, ReleaseToAll=True) == []

    (row,) = await exchange.rows(GET, Identity=identity)
    assert (row["ReleaseStatus"], row["Released"], row["ReleasedCount"]) == ("RELEASED", True, 1)
    assert (row["ReleasedUser"], row["QuarantinedUser"], row["ReleasedBy"]) == ([ANNA], [], [DEFAULT_APP])
    ledger = await control.ledger()
    (entry,) = ledger["quarantine_actions"]
    assert (entry["action"], entry["identity"], entry["recipient"]) == ("release", identity, ANNA)
    assert (entry["network_message_id"], entry["app"]) == (network, DEFAULT_APP)
    assert entry["answer"] == {"status": 200, "outcome": "sent"}
    assert (ledger["counts"]["quarantine_actions"], ledger["counts"]["released_items"]) == (1, 1)


async def test_a_second_release_needs_force(exchange: Any, control: Any, put: Any) -> None:
    """With Force it is delivered once more, which the ledger tells apart."""
    (identity,), _ = await put()
    await exchange.rows(RELEASE, Identity=identity, ReleaseToAll=True)

    refused = await exchange.invoke(RELEASE, Identity=identity, ReleaseToAll=True)

    assert (refused.status, "already released" in refused.reason) == (400, True)
    await exchange.rows(RELEASE, Identity=identity, ReleaseToAll=True, Force=True)
    counts = (await control.ledger())["counts"]
    assert (counts["quarantine_actions"], counts["released_items"]) == (2, 1)


async def test_some_recipients_of_a_shared_row_get_the_mail(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """The row is released when nobody waits any more; who has the mail is skipped."""
    (identity,), _ = await put(ANNA, BEN, one_row=True)

    await exchange.rows(RELEASE, Identity=identity, User=[ANNA.upper()])
    assert await status(identity) == "NOTRELEASED"
    await exchange.rows(RELEASE, Identity=identity, ReleaseToAll=True)

    assert await status(identity) == "RELEASED"
    assert [entry["recipient"] for entry in (await control.ledger())["quarantine_actions"]] == [ANNA, BEN]


async def test_a_request_is_approved_or_denied(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """A user asks in Defender; the status tells an approved request from any other release."""
    (first,), network = await put()
    (second,), other = await put(BEN)
    for asked in (network, other):
        await control.ask("POST", f"{QUARANTINE}/{asked}/requests")
    assert {row["Identity"] for row in await exchange.rows(GET, ReleaseStatus="Requested")} == {first, second}

    await exchange.rows(RELEASE, Identity=first, ActionType="Release", User=[ANNA])
    await exchange.rows(RELEASE, Identity=second, ActionType="Deny", User=[BEN])

    assert (await status(first), await status(second)) == ("APPROVED", "DENIED")
    assert await exchange.rows(GET, ReleaseStatus="Requested") == []
    actions = (await control.ledger())["quarantine_actions"]
    assert [(entry["action"], entry["recipient"]) for entry in actions] == [("release", ANNA), ("deny", BEN)]


@pytest.mark.parametrize("nobody", [{}, {"User": []}, {"ReleaseToAll": False}])
@pytest.mark.parametrize("action", ["Deny", "Release", "Request"])
async def test_an_action_names_its_recipients(
    exchange: Any, control: Any, put: Any, action: str, nobody: dict[str, Any]
) -> None:
    """One that names nobody is refused in Exchange's words, and is nothing to the row."""
    (identity,), _ = await put(ANNA, BEN, one_row=True)

    refused = await exchange.invoke(RELEASE, Identity=identity, ActionType=action, **nobody)

    assert (refused.status, refused.reason) == (400, f"Message '{identity}' could not be released. {NOBODY_NAMED}")
    assert (await control.ledger())["quarantine_actions"] == []
    await exchange.rows(RELEASE, Identity=identity, ActionType=action, ReleaseToAll=True)
    assert [entry["recipient"] for entry in (await control.ledger())["quarantine_actions"]] == [ANNA, BEN]


async def test_a_denial_holds_for_the_whole_row(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """Whichever of its recipients is named; strangers cannot be."""
    (identity,), _ = await put(ANNA, BEN, one_row=True)
    stranger = await exchange.invoke(RELEASE, Identity=identity, ActionType="Deny", User=["cleo@contoso.example"])
    assert (stranger.status, "not a recipient" in stranger.reason) == (400, True)

    await exchange.rows(RELEASE, Identity=identity, ActionType="Deny", User=[ANNA.upper()])

    assert await status(identity) == "DENIED"
    assert [entry["recipient"] for entry in (await control.ledger())["quarantine_actions"]] == [ANNA, BEN]


async def test_what_was_denied_is_not_released_by_accident(exchange: Any, put: Any, status: Any) -> None:
    """Release, Deny and Request are refused; Force releases."""
    (identity,), _ = await put()
    await exchange.rows(RELEASE, Identity=identity, ActionType="Deny", ReleaseToAll=True)

    for action in ("Release", "Deny", "Request"):
        refused = await exchange.invoke(RELEASE, Identity=identity, ActionType=action, User=[ANNA])
        assert (refused.status, "denied" in refused.reason) == (400, True)
    await exchange.rows(RELEASE, Identity=identity, ActionType="Release", User=[ANNA], Force=True)
    assert await status(identity) == "RELEASED"


async def test_what_was_released_is_neither_denied_nor_requested(exchange: Any, put: Any) -> None:
    """It is in the mailbox already."""
    (identity,), _ = await put()
    await exchange.rows(RELEASE, Identity=identity)

    for action in ("Deny", "Request"):
        refused = await exchange.invoke(RELEASE, Identity=identity, ActionType=action, User=[ANNA])
        assert (refused.status, "already released" in refused.reason) == (400, True)


async def test_the_same_release_request_counts_once(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """An app may ask too."""
    (identity,), _ = await put()
    for _ in range(2):
        await exchange.rows(RELEASE, Identity=identity, ActionType="Request", User=[ANNA])

    assert await status(identity) == "REQUESTED"
    assert [entry["action"] for entry in (await control.ledger())["quarantine_actions"]] == ["request"]


async def test_an_admin_acts_in_defender(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """Only the recipients named are concerned, and nothing of it is in the ledger."""
    (first, second), network = await put(ANNA, BEN)
    await control.ask("POST", f"{QUARANTINE}/{network}/releases", {"recipients": [ANNA], "by": "boss@contoso.example"})
    await control.ask("POST", f"{QUARANTINE}/{network}/denials", {"recipients": [BEN]})

    assert (await status(first), await status(second)) == ("RELEASED", "DENIED")
    (row,) = await exchange.rows(GET, Identity=first)
    assert row["ReleasedBy"] == ["boss@contoso.example"]
    again = await control.call("POST", f"/simulator{QUARANTINE}/{network}/releases", {"recipients": [ANNA]})
    assert (again.status, "already released" in again.body["error"]) == (400, True)
    (third,), other = await put()
    await control.ask("POST", f"{QUARANTINE}/{other}/deletions")
    assert third not in {row["Identity"] for row in await exchange.rows(GET)}
    assert (await control.ledger())["quarantine_actions"] == []
    unknown = "0a1b2c3d-0000-4000-8000-00000000ffff"
    assert (await control.call("POST", f"/simulator{QUARANTINE}/{unknown}/releases", {})).status == 404


async def test_users_ask_only_where_the_policy_lets_them(control: Any, put: Any) -> None:
    """High confidence phishing is for administrators only; a policy that grants release makes malware a request."""
    _, network = await put(quarantine_type="HighConfPhish")
    refused = await control.call("POST", f"/simulator{QUARANTINE}/{network}/requests", {})
    assert (refused.status, "AdminOnlyAccessPolicy" in refused.body["error"]) == (400, True)

    _, network = await put(quarantine_type="Malware", quarantine_policy="DefaultFullAccessPolicy")
    await control.ask("POST", f"{QUARANTINE}/{network}/requests", {"recipients": [ANNA]})

    row = {"Name": "Ours", "EndUserQuarantinePermissions": "[PermissionToRequestRelease: True]"}
    await control.tenant(cmdlets={"Get-QuarantinePolicy": [row]})
    _, network = await put(quarantine_policy="Ours")
    await control.ask("POST", f"{QUARANTINE}/{network}/requests", {"recipients": [ANNA]})


async def test_many_are_released_at_once(exchange: Any, put: Any, status: Any) -> None:
    """Identity has to be there, and is ignored."""
    identities, _ = await put(ANNA, BEN)

    assert (await exchange.invoke(RELEASE, Identities=identities, ReleaseToAll=True)).status == 400
    await exchange.rows(RELEASE, Identity="000", Identities=identities, ReleaseToAll=True)

    assert [await status(identity) for identity in identities] == ["RELEASED", "RELEASED"]


@pytest.mark.parametrize(("shape", "expected"), [("warning", 200), ("error", 404)])
async def test_a_release_of_many_may_fail_for_some(
    exchange: Any, control: Any, put: Any, status: Any, shape: str, expected: int
) -> None:
    """The others are released all the same: a client must read the warnings, and look after an error."""
    await control.settings(partly_failed=shape)
    (identity,), _ = await put()
    both = [identity, "unknown\\unknown"]

    answer = await exchange.invoke(RELEASE, Identity="000", Identities=both, ReleaseToAll=True)

    assert answer.status == expected
    if shape == "warning":
        assert [warning.partition(":")[0] for warning in answer.body["@adminapi.warnings"]] == ["unknown\\unknown"]
    assert await status(identity) == "RELEASED"
    assert len((await control.ledger())["quarantine_actions"]) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"User": [ANNA], "ReleaseToAll": True},
        {"User": ["bob@fabrikam.example"]},
        {"User": [7]},
        {"ActionType": "Approve"},
        {"ReportFalsePositive": True},
        {"AllowSender": True},
        {"ReleaseToNobody": True},
    ],
)
async def test_wrong_parameters_release_nothing(exchange: Any, control: Any, put: Any, parameters: Any) -> None:
    """The mail is not spam, so it is no false positive; AllowSender does not work over the admin API."""
    (identity,), _ = await put(quarantine_type="Phish")

    assert (await exchange.invoke(RELEASE, Identity=identity, **parameters)).status == 400
    assert (await control.ledger())["quarantine_actions"] == []


async def test_a_false_positive_is_reported_with_its_release(exchange: Any, control: Any, put: Any) -> None:
    """For spam; and AllowSender where a tenant has it."""
    await control.settings(allow_sender_available=True)
    (identity,), _ = await put()

    await exchange.rows(RELEASE, Identity=identity, User=[ANNA], ReportFalsePositive=True, AllowSender=True)

    (row,) = await exchange.rows(GET, Reported=True)
    assert row["Identity"] == identity
    (entry,) = (await control.ledger())["quarantine_actions"]
    assert (entry["report_false_positive"], entry["allow_sender"], entry["force"]) == (True, True, False)


async def test_an_unknown_mail_is_not_released(exchange: Any) -> None:
    """Here, an identity that does not exist is an error."""
    answer = await exchange.invoke(RELEASE, Identity="unknown\\unknown", ReleaseToAll=True)

    assert (answer.status, answer.code) == (404, "NotFound")


async def test_an_action_stays_unseen_for_the_lag(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """It has happened all the same: who repeats it is told so."""
    (identity,), _ = await put()
    await control.advance(600)
    await control.settings(quarantine_lag_seconds=300)
    await exchange.rows(RELEASE, Identity=identity)

    assert await status(identity) == "NOTRELEASED"
    assert (await exchange.invoke(RELEASE, Identity=identity)).status == 400
    await control.advance(301)
    assert await status(identity) == "RELEASED"


async def test_a_lost_answer_is_in_the_ledger(exchange: Any, control: Any, put: Any, status: Any) -> None:
    """Faults are ordered by the cmdlet's name."""
    (identity,), _ = await put()
    await control.fault(f"exchange.{RELEASE}", "timeout", seconds=0)

    await exchange.invoke(RELEASE, Identity=identity)

    assert await status(identity) == "RELEASED"
    (entry,) = (await control.ledger())["quarantine_actions"]
    assert entry["answer"]["outcome"] == "held"


async def test_a_mail_is_deleted_without_a_prompt_only(exchange: Any, control: Any, put: Any) -> None:
    """For one recipient of several, then for all: then it is gone."""
    (identity,), _ = await put(ANNA, BEN, one_row=True)
    assert (await exchange.invoke(DELETE, Identity=identity)).status == 400

    await exchange.rows(DELETE, Identity=identity, RecipientAddress=ANNA, Confirm=False)
    (row,) = await exchange.rows(GET, Identity=identity)
    assert (row["DeletedForRecipients"], row["QuarantinedUser"]) == ([ANNA], [BEN])
    await exchange.rows(DELETE, Identity=identity, HardDelete=True, Confirm=False)

    assert await exchange.rows(GET) == []
    assert "deleted" in (await exchange.invoke(RELEASE, Identity=identity)).reason
    actions = (await control.ledger())["quarantine_actions"]
    assert [(entry["recipient"], entry["hard"]) for entry in actions] == [(ANNA, False), (BEN, True)]


async def test_a_reader_reads_and_an_administrator_acts(exchange: Any, client: Any, control: Any, put: Any) -> None:
    """A reader may not name an EntityType either; without a role there is nothing to see. The 403 is NUL bytes."""
    (identity,), _ = await put()

    async def become(role: str | None) -> None:
        app = {"client_id": DEFAULT_APP, "secrets": ["s"], "security_role": role}
        await control.tenant(apps=[app])
        granted = await client.token(EXCHANGE, client_secret="s")  # noqa: S106 - opens nothing but the simulator
        exchange.bearer = granted.body["access_token"]

    await become("Security Reader")
    assert len(await exchange.rows(GET)) == 1
    for forbidden in ((RELEASE, {}), (DELETE, {"Confirm": False}), (GET, {"EntityType": "Email"})):
        answer = await exchange.invoke(forbidden[0], Identity=identity, **forbidden[1])
        assert (answer.status, answer.body.strip(b"\0")) == (403, b"")
    await become(None)
    assert (await exchange.invoke(GET)).status == 403
    assert (await exchange.invoke("Get-AcceptedDomain")).status == 200
    await become("Security Administrator")
    assert len(await exchange.rows(GET, EntityType="Email")) == 1
    await exchange.rows(RELEASE, Identity=identity)


async def test_permissions_in_a_row_are_the_callers(exchange: Any, client: Any, control: Any, put: Any) -> None:
    """An administrator may release what users may not; a reader is shown what the policy grants to users."""
    await put(quarantine_type="HighConfPhish")
    await put(quarantine_policy="RequestAndBlockPolicy")

    async def allowed(policy: str) -> set[str]:
        row = next(row for row in await exchange.rows(GET) if row["TagName"] == policy)
        return {name.removeprefix("PermissionTo") for name in row if name.startswith("PermissionTo") and row[name]}

    assert "Release" in await allowed("AdminOnlyAccessPolicy")
    app = {"client_id": DEFAULT_APP, "secrets": ["s"], "security_role": "Security Reader"}
    await control.tenant(apps=[app])
    granted = await client.token(EXCHANGE, client_secret="s")  # noqa: S106 - opens nothing but the simulator
    exchange.bearer = granted.body["access_token"]
    assert await allowed("AdminOnlyAccessPolicy") == set()
    assert await allowed("RequestAndBlockPolicy") == {"BlockSender", "RequestRelease", "Preview", "Delete"}
