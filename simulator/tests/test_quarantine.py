"""The quarantine as Get-QuarantineMessage and its kin show it, and its policies."""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simulator.state import DEFAULT_TENANT

GET, PREVIEW, HEADER = "Get-QuarantineMessage", "Preview-QuarantineMessage", "Get-QuarantineMessageHeader"
EXPORT, POLICIES = "Export-QuarantineMessage", "Get-QuarantinePolicy"
QUARANTINE = f"/tenants/{DEFAULT_TENANT}/quarantine"
DAY = 24 * 60 * 60
BOTH = ["anna@contoso.example", "ben@contoso.example"]


def ago(days: float) -> str:
    """Write a time in the past."""
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


@pytest.fixture
def put(control: Any, mail: Any) -> Any:
    """Quarantine a mail: its number is in the message id, everything else can be ordered."""

    async def quarantine(number: int = 1, **order: Any) -> Any:
        raw = mail(f"Text {number}.", message_id=f"<{number}@evil.example>", sender="Bad <bad@evil.example>")
        return await control.ask("POST", QUARANTINE, {"eml": raw.decode(), **order})

    return quarantine


@pytest.fixture
def numbers(exchange: Any) -> Any:
    """Read the numbers of the mails that Get-QuarantineMessage answers."""

    async def found(**parameters: Any) -> list[int]:
        rows = await exchange.rows(GET, **parameters)
        return [int(row["MessageId"].removeprefix("<").partition("@")[0]) for row in rows]

    return found


async def test_each_recipient_has_a_row_of_their_own(exchange: Any, put: Any) -> None:
    """The rows share the network message id, and differ in the second part of the identity."""
    made = await put(recipients=BOTH, quarantine_type="Phish")

    rows = await exchange.rows(GET)

    assert sorted(row["RecipientAddress"] for row in rows) == [[address] for address in BOTH]
    assert {row["Identity"].partition("\\")[0] for row in rows} == {made["network_message_id"]}
    assert len({row["Identity"] for row in rows}) == 2
    assert {row["RecipientCount"] for row in rows} == {1}


async def test_recipients_may_share_a_row(exchange: Any, put: Any) -> None:
    """A row that several recipients share counts them."""
    await put(recipients=BOTH, one_row=True)

    (row,) = await exchange.rows(GET)

    assert (row["RecipientAddress"], row["RecipientCount"]) == (BOTH, 2)


async def test_a_row_has_the_fields_that_were_measured(exchange: Any, put: Any) -> None:
    """Statuses are in upper case; who waits and who has the mail is said only for an Identity."""
    await put(quarantine_type="HighConfPhish", recipient_tags=["Priority account"])
    answer = await exchange.invoke(GET)
    (row,) = answer.body["value"]

    assert row["ReceivedTime@data.type"] == row["Expires@data.type"] == "System.DateTime"
    assert row["Released@data.type"] == "System.Boolean"
    assert row["RecipientAddress@odata.type"] == "#Collection(String)"
    assert (row["MessageId"], row["SenderAddress"]) == ("<1@evil.example>", "bad@evil.example")
    assert (row["ReleaseStatus"], row["Released"]) == ("NOTRELEASED", False)
    assert (row["QuarantineTypes"], row["Type"]) == ("HighConfPhish", "High Confidence Phish")
    assert (row["PolicyType"], row["TagName"]) == ("HostedContentFilterPolicy", "AdminOnlyAccessPolicy")
    assert (row["Organization"], row["EntityType"], row["Direction"]) == (DEFAULT_TENANT, "Email", "Inbound")
    assert row["QuarantinedUser"] == []
    (detail,) = await exchange.rows(GET, Identity=row["Identity"])
    assert detail["QuarantinedUser"] == ["anna@contoso.example"]


@pytest.mark.parametrize(
    ("kind", "days"), [("Spam", 15), ("HighConfPhish", 15), ("Malware", 30), ("TransportRule", 30)]
)
async def test_a_mail_expires_by_its_policy(exchange: Any, put: Any, control: Any, kind: str, days: int) -> None:
    """15 days for spam and phishing, 30 for what is fixed; afterwards it is gone, and can't be got back."""
    made = await put(quarantine_type=kind)
    identity = made["items"][0]["identity"]
    (row,) = await exchange.rows(GET)
    assert datetime.fromisoformat(row["Expires"]) - datetime.fromisoformat(row["ReceivedTime"]) == timedelta(days=days)

    await control.advance(days * DAY + 1)

    assert await exchange.rows(GET, StartReceivedDate=ago(0)) == []
    for cmdlet in (PREVIEW, HEADER, EXPORT, "Release-QuarantineMessage"):
        refused = await exchange.invoke(cmdlet, Identity=identity)
        assert (refused.status, "expired" in refused.reason) == (400, True)


async def test_pages_have_no_total_and_the_last_is_short(numbers: Any, put: Any, exchange: Any) -> None:
    """Latest received first; a page size of 0 is answered with no rows."""
    for number in range(1, 6):
        await put(number, received=ago(number / 10))

    assert await numbers() == [1, 2, 3, 4, 5]
    assert await numbers(PageSize=2) == [1, 2]
    assert await numbers(PageSize=2, Page=3) == [5]
    assert await numbers(PageSize=2, Page=4) == []
    assert await numbers(PageSize=0) == []
    for wrong in ({"PageSize": "many"}, {"PageSize": 1001}, {"Page": 0}, {"Page": 1001}, {"Pages": 1}):
        assert (await exchange.invoke(GET, **wrong)).status == 400


@pytest.mark.parametrize("identity", ["", None, "000", "unknown\\unknown"])
async def test_an_identity_that_does_not_exist_selects_all_quarantined_mails(
    numbers: Any, put: Any, identity: Any
) -> None:
    """The trap that the cmdlet's page warns of."""
    await put(1)
    await put(2)

    assert sorted(await numbers(Identity=identity)) == [1, 2]


async def test_an_identity_selects_one_quarantined_mail(exchange: Any, put: Any) -> None:
    """Whatever the case, and however long ago it was received."""
    made = await put(1, received=ago(20), expires=ago(-5))
    await put(2)

    (row,) = await exchange.rows(GET, Identity=made["items"][0]["identity"].upper())

    assert row["MessageId"] == "<1@evil.example>"


async def test_every_filter_narrows_the_list_of_quarantined_mails(numbers: Any, put: Any) -> None:
    """Texts match whole, lists match any, enumerations match by prefix."""
    await put(1, recipients=["anna@contoso.example"], quarantine_type="Phish", policy_type="AntiPhishPolicy")
    await put(2, recipients=["ben@contoso.example"], policy_name="Strict", recipient_tags=["VIP"])
    await put(3, recipients=["cleo@contoso.example"], quarantine_type="Malware", direction="Outbound")

    async def found(**parameters: Any) -> list[int]:
        return sorted(await numbers(**parameters))

    assert await found(MessageId="<2@evil.example>") == [2]
    assert await found(RecipientAddress=["Anna@contoso.example", "ben@contoso.example"]) == [1, 2]
    assert await found(SenderAddress="bad@evil.example", Subject="Lunch") == [1, 2, 3]
    assert await found(SenderAddress="other@evil.example") == []
    assert await found(QuarantineTypes=["Phish", "Malware"]) == [1, 3]
    assert await found(Type="Spam") == [2]
    assert await found(PolicyTypes="AntiP") == [1]
    assert await found(PolicyName="strict", RecipientTag="vip") == [2]
    assert await found(Direction="out") == [3]
    assert await found(ReleaseStatus="NotReleased", Reported=False, EntityType="Email") == [1, 2, 3]
    assert await found(ReleaseStatus=["Requested", "Denied"]) == []
    assert await found(Reported=True) == []
    assert await found(MyItems=True) == []


@pytest.mark.parametrize("name", ["Direction", "EntityType", "PolicyTypes", "QuarantineTypes", "ReleaseStatus", "Type"])
async def test_a_wrong_enumeration_value_answers_no_rows(numbers: Any, put: Any, name: str) -> None:
    """It is not refused."""
    await put()

    assert await numbers(**{name: "Nonsense"}) == []


async def test_the_window_is_16_days_and_at_most_30(numbers: Any, put: Any, exchange: Any) -> None:
    """A start of more than 30 days ago is taken for 30 days ago."""
    for number in (1, 15, 17, 29, 31):
        await put(number, received=ago(number), expires=ago(-1))

    assert await numbers() == [1, 15]
    assert await numbers(StartReceivedDate=ago(18)) == [1, 15, 17]
    assert await numbers(StartReceivedDate=ago(60)) == [1, 15, 17, 29]
    assert await numbers(StartReceivedDate=ago(30), EndReceivedDate=ago(16)) == [17, 29]
    assert (await exchange.invoke(GET, StartReceivedDate="yesterday")).status == 400


async def test_mails_are_found_by_when_they_expire(numbers: Any, put: Any) -> None:
    """From, to, or both."""
    for number in (1, 2, 3):
        await put(number, expires=ago(-number))

    assert sorted(await numbers(EndExpiresDate=ago(-2.5))) == [1, 2]
    assert sorted(await numbers(StartExpiresDate=ago(-1.5), EndExpiresDate=ago(-2.5))) == [2]


async def test_rows_of_a_tenant_replace_its_quarantine(exchange: Any, control: Any, put: Any) -> None:
    """As for any other cmdlet that reads; they are narrowed in the same way."""
    await put()
    mails = [
        {"Identity": f"{n}\\1", "MessageId": f"<{n}@evil.example>", "RecipientAddress": ["Anna@contoso.example"]}
        for n in range(3)
    ]
    await control.tenant(cmdlets={GET: mails})

    (row,) = await exchange.rows(GET, MessageId="<1@evil.example>", RecipientAddress="anna@contoso.example")
    assert row["Identity"] == "1\\1"
    assert [row["Identity"] for row in await exchange.rows(GET, Page=2, PageSize=2)] == ["2\\1"]
    await control.tenant(cmdlets={GET: None})
    assert len(await exchange.rows(GET)) == 1


async def test_what_is_new_stays_unseen_for_the_lag(exchange: Any, control: Any, put: Any) -> None:
    """By the simulator's clock; the control routes tell the truth at once."""
    await control.settings(quarantine_lag_seconds=300)
    await put()

    assert await exchange.rows(GET) == []
    assert len((await control.ask("GET", QUARANTINE))["quarantine"]) == 1
    await control.advance(301)
    assert len(await exchange.rows(GET)) == 1


async def test_a_mail_is_previewed_and_exported(exchange: Any, control: Any, mail: Any) -> None:
    """The preview has the HTML if there is any; the export is the mail, byte for byte."""
    plain, rich = mail("Just text."), mail("Text.", html="<p>Rich</p>", message_id="<2@evil.example>")
    identities = []
    for raw in (plain, rich):
        order = {"eml_base64": base64.b64encode(raw).decode()}
        identities.append((await control.ask("POST", QUARANTINE, order))["items"][0]["identity"])

    (first,), (second,) = [await exchange.rows(PREVIEW, Identity=identity) for identity in identities]
    assert (first["Body"].strip(), first["IsHtml"]) == ("Just text.", False)
    assert (second["Body"].strip(), second["IsHtml"]) == ("<p>Rich</p>", True)
    exported = await exchange.rows(EXPORT, Identity="000", Identities=identities)
    assert [row["BodyEncoding"] for row in exported] == ["Base64", "Base64"]
    assert [base64.b64decode(row["Eml"]) for row in exported] == [plain, rich]
    (header,) = await exchange.rows(HEADER, Identity=identities[1])
    assert "Message-ID: <2@evil.example>" in header["Header"]
    assert "Rich" not in header["Header"]
    await control.settings(exported_encoding="7bit")
    (bare,) = await exchange.rows(EXPORT, Identity=identities[0])
    assert (bare["BodyEncoding"], bare["Eml"]) == ("7bit", plain.decode())


@pytest.mark.parametrize("cmdlet", [PREVIEW, HEADER, EXPORT])
async def test_a_mail_that_is_not_there_is_not_read(exchange: Any, cmdlet: str) -> None:
    """Unlike Get-, the others refuse."""
    assert (await exchange.invoke(cmdlet, Identity="unknown\\unknown")).status == 404
    assert (await exchange.invoke(cmdlet, Identity="")).status == 400


async def test_policies_say_what_users_may_do(exchange: Any, control: Any) -> None:
    """The presets and one that lets users block; the global one must be asked for by its type."""
    rows = {row["Name"]: row for row in await exchange.rows(POLICIES)}

    def granted(row: Any) -> set[str]:
        return set(re.findall(r"PermissionTo(\w+): True", row["EndUserQuarantinePermissions"]))

    full = {"AllowSender", "Delete", "Preview", "Release"}
    assert {name: granted(row) for name, row in rows.items()} == {
        "AdminOnlyAccessPolicy": set(),
        "DefaultFullAccessPolicy": full,
        "DefaultFullAccessWithNotificationPolicy": full,
        "RequestAndBlockPolicy": {"BlockSender", "Delete", "Preview", "RequestRelease"},
    }
    assert rows["AdminOnlyAccessPolicy"]["EndUserQuarantinePermissions"] == (
        "[PermissionToBlockSender: False\r\nPermissionToDelete: False\r\nPermissionToDownload: False\r\n"
        "PermissionToPreview: False\r\nPermissionToRelease: False\r\nPermissionToRequestRelease: False\r\n"
        "PermissionToViewHeader: False\r\nPermissionToAllowSender: False]"
    )
    assert [name for name, row in rows.items() if row["ESNEnabled"]] == list(rows)[2:]
    (one,) = await exchange.rows(POLICIES, Identity="adminonlyaccesspolicy")
    assert one["Name"] == "AdminOnlyAccessPolicy"
    assert (await exchange.invoke(POLICIES, Identity="Other")).status == 404
    (notification,) = await exchange.rows(POLICIES, QuarantinePolicyType="GlobalQuarantinePolicy")
    assert notification["EndUserSpamNotificationFrequency"] == "1.00:00:00"
    await control.tenant(cmdlets={POLICIES: [{"Name": "Ours", "EndUserQuarantinePermissionsValue": 236}]})
    assert [row["Name"] for row in await exchange.rows(POLICIES)] == ["Ours"]


@pytest.mark.parametrize(
    ("shape", "ordered", "answered"),
    [
        ("number", {"EndUserQuarantinePermissionsValue": 4}, {"EndUserQuarantinePermissionsValue": 4}),
        ("neither", {"EndUserQuarantinePermissionsValue": 4}, {}),
        ("string", {"EndUserQuarantinePermissions": "odd"}, {"EndUserQuarantinePermissions": "odd"}),
    ],
)
async def test_policies_say_it_in_the_shape_that_is_set(
    exchange: Any, control: Any, shape: str, ordered: dict[str, Any], answered: dict[str, Any]
) -> None:
    """As a number, which one program reads, or not at all; a row that was ordered with the string is left alone."""
    await control.settings(quarantine_permissions=shape)
    await control.tenant(cmdlets={POLICIES: [{"Name": "Ours", **ordered}]})

    (row,) = await exchange.rows(POLICIES)

    assert {name: value for name, value in row.items() if name.startswith("EndUser") and "@" not in name} == answered


async def test_a_row_shows_what_is_ordered(exchange: Any, put: Any) -> None:
    """Types that nobody knows, several in one, or none."""
    await put(columns={"QuarantineTypes": None, "Type": "High Confidence Phish, Something new"})
    (row,) = await exchange.rows(GET)
    assert (row["QuarantineTypes"], row["Type"]) == (None, "High Confidence Phish, Something new")


@pytest.mark.parametrize(
    "order",
    [
        {"eml": "no mail"},
        {"eml": "From: a@evil.example\n\nHello"},
        {"eml": "From: a@evil.example\nTo: anna@contoso.example\n\nHello", "quarantine_type": "Boring"},
        {"eml": "From: a@evil.example\nTo: anna@contoso.example\n\nHello", "received": "2026-01-01T00:00:00"},
        {"eml": "From: a@evil.example\nTo: anna@contoso.example\n\nHello", "network_message_id": "7"},
    ],
)
async def test_a_wrong_order_quarantines_nothing(control: Any, order: dict[str, Any]) -> None:
    """It is answered with the reason."""
    answer = await control.call("POST", f"/simulator{QUARANTINE}", order)

    assert (answer.status, bool(answer.body["error"])) == (400, True)
    assert (await control.ask("GET", QUARANTINE))["quarantine"] == []
