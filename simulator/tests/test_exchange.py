"""Exchange Online's cmdlets behind InvokeCommand."""

from typing import Any

import pytest

from simulator import DEFAULT_APP
from simulator.cmdlets import CMDLETS
from simulator.policies import default_rows
from simulator.state import DEFAULT_TENANT
from simulator.tokens import EXCHANGE, GRAPH

NEW, GET = "New-TenantAllowBlockListItems", "Get-TenantAllowBlockListItems"
SET, REMOVE = "Set-TenantAllowBlockListItems", "Remove-TenantAllowBlockListItems"
GET_JUNK, SET_JUNK = "Get-MailboxJunkEmailConfiguration", "Set-MailboxJunkEmailConfiguration"
BAD = "bad@evil.example"
TABLE = "#Exchange.GenericHashTable"


async def test_a_next_link_cannot_be_replayed(exchange: Any) -> None:
    """More rows than the page size are announced by a link that answers with an error."""
    await exchange.rows(NEW, ListType="Sender", Block=True, Entries=["a.example", "b.example", "c.example"])
    small = {"Prefer": "odata.maxpagesize=2"}

    answer = await exchange.invoke(GET, headers=small, ListType="Sender")

    assert len(answer.body["value"]) == 2
    link = answer.body["@odata.nextLink"].removeprefix(exchange.url)
    body = {"CmdletInput": {"CmdletName": GET, "Parameters": {"ListType": "Sender"}}}
    again = await exchange.call("POST", link, body, headers={"Authorization": f"Bearer {exchange.bearer}"})
    assert again.status == 400
    assert again.reason == "Expired or Invalid pagination request."


async def test_a_user_blocks_senders_for_a_mailbox(exchange: Any, control: Any) -> None:
    """The hashtable adds and removes; only what changed is in the ledger."""
    identity = "Anna@contoso.example"
    add = {"@odata.type": TABLE, "Add": [BAD, "evil.example"]}
    await exchange.rows(SET_JUNK, Identity=identity, BlockedSendersAndDomains=add)
    await exchange.rows(SET_JUNK, Identity=identity, BlockedSendersAndDomains={"@odata.type": TABLE, "Add": [BAD]})
    change = {"@odata.type": TABLE, "Add": "late@evil.example", "Remove": ["EVIL.example"]}
    await exchange.rows(SET_JUNK, Identity=identity, BlockedSendersAndDomains=change)

    (row,) = await exchange.rows(GET_JUNK, Identity=identity)
    assert row["BlockedSendersAndDomains"] == [BAD, "late@evil.example"]
    ledger = await control.ledger()
    assert [entry["value"] for entry in ledger["mailbox_blocks"]] == [BAD, "evil.example", "late@evil.example"]
    assert {entry["mailbox"] for entry in ledger["mailbox_blocks"]} == {"anna@contoso.example"}
    assert [(entry["scope"], entry["value"]) for entry in ledger["removals"]] == [("mailbox", "evil.example")]


async def test_a_plain_list_replaces(exchange: Any) -> None:
    """Without a hashtable the list is set as a whole; other settings stay."""
    await exchange.rows(SET_JUNK, Identity="anna@contoso.example", BlockedSendersAndDomains=[BAD], Enabled=False)
    await exchange.rows(SET_JUNK, Identity="anna@contoso.example", BlockedSendersAndDomains=["other.example"])

    (row,) = await exchange.rows(GET_JUNK, Identity="anna@contoso.example")
    assert (row["BlockedSendersAndDomains"], row["Enabled"]) == (["other.example"], False)


async def test_blocked_senders_over_the_limit_are_dropped_silently(exchange: Any, control: Any) -> None:
    """As documented, there is no error."""
    await control.settings(blocked_senders_limit=1)

    rows = ["a.example", "b.example"]
    await exchange.rows(SET_JUNK, Identity="anna@contoso.example", BlockedSendersAndDomains=rows)

    (row,) = await exchange.rows(GET_JUNK, Identity="anna@contoso.example")
    assert row["BlockedSendersAndDomains"] == ["a.example"]
    assert (await control.ledger())["counts"]["mailbox_blocks"] == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"BlockedSendersAndDomains": [BAD]},
        {"Identity": "anna@contoso.example", "BlockedSendersAndDomains": {"Add": [BAD]}},
        {"Identity": "anna@contoso.example", "BlockedSendersAndDomains": {"@odata.type": TABLE, "Set": [BAD]}},
        {"Identity": "anna@contoso.example", "BlockedSendersAndDomains": ["not an address"]},
        {"Identity": "anna@contoso.example", "TrustedSendersAndDomains": ["boss@contoso.example"]},
    ],
)
async def test_wrong_junk_settings_are_refused(exchange: Any, control: Any, parameters: dict[str, Any]) -> None:
    """A bad edit changes nothing."""
    assert (await exchange.invoke(SET_JUNK, **parameters)).status == 400
    counts = (await control.ledger())["counts"]
    assert (counts["mailbox_blocks"], counts["changes"]) == (0, 0)


async def test_a_mailbox_must_exist(exchange: Any, control: Any) -> None:
    """Addresses of other domains have no mailbox here, nor has anyone in a tenant that says so."""
    answer = await exchange.invoke(GET_JUNK, Identity="bob@fabrikam.example")
    assert (answer.status, answer.code) == (404, "NotFound")
    assert "couldn't be found" in answer.reason
    await control.tenant(any_mailbox=False)
    assert (await exchange.invoke(GET_JUNK, Identity="anna@contoso.example")).status == 404


@pytest.mark.parametrize("cmdlet", ["Get-AcceptedDomain", "Get-AntiPhishPolicy"])
async def test_configuration_is_read_and_replaceable(exchange: Any, control: Any, cmdlet: str) -> None:
    """A cmdlet answers its default rows until a tenant's own are set, and again when they are taken back."""
    default = default_rows(cmdlet, ["contoso.example"])
    assert await exchange.rows(cmdlet) == default

    await control.tenant(cmdlets={cmdlet: [{"Identity": "Ours", "Enabled": True}]})
    assert await exchange.rows(cmdlet) == [{"Identity": "Ours", "Enabled": True}]

    await control.tenant(cmdlets={cmdlet: None})
    assert await exchange.rows(cmdlet) == default


async def test_identity_picks_one_row(exchange: Any) -> None:
    """An unknown identity is not found; the name of a cmdlet may be in any case."""
    assert len(await exchange.rows("get-antiphishpolicy", identity="office365 antiphish default")) == 1
    assert (await exchange.invoke("Get-AntiPhishPolicy", Identity="Other")).status == 404


async def test_inbox_rules_belong_to_a_mailbox(exchange: Any, control: Any) -> None:
    """Get-InboxRule needs a mailbox and answers its rules only."""
    rules = [{"Identity": f"{user}\\1", "MailboxOwnerId": f"{user}@contoso.example"} for user in ("anna", "ben")]
    await control.tenant(cmdlets={"Get-InboxRule": rules})

    (row,) = await exchange.rows("Get-InboxRule", Mailbox="anna@contoso.example")
    assert row["Identity"] == "anna\\1"
    assert (await exchange.invoke("Get-InboxRule")).status == 400


async def test_the_configuration_analyzer_needs_a_baseline(exchange: Any) -> None:
    """Standard and Strict are the two baselines; the rows have Microsoft's columns."""
    rows = await exchange.rows("Get-ConfigAnalyzerPolicyRecommendation", RecommendedPolicyType="Standard")

    assert {"PolicyGroup", "SettingName", "CurrentConfiguration", "Recommendation", "AppliedTo"} <= set(rows[0])
    for parameters in ({}, {"RecommendedPolicyType": "Loose"}):
        assert (await exchange.invoke("Get-ConfigAnalyzerPolicyRecommendation", **parameters)).status == 400


async def test_rows_are_narrowed_by_the_cmdlets_own_parameters(exchange: Any, control: Any) -> None:
    """Mail flow rules by State, spoof pairs by Action."""
    await control.tenant(
        cmdlets={
            "Get-TransportRule": [{"Name": "a", "State": "Enabled"}, {"Name": "b", "State": "Disabled"}],
            "Get-TenantAllowBlockListSpoofItems": [{"Action": "Allow"}, {"Action": "Block"}],
        }
    )
    assert [row["Name"] for row in await exchange.rows("Get-TransportRule", State="Enabled")] == ["a"]
    spoofs = await exchange.rows("Get-TenantAllowBlockListSpoofItems", Identity="Default", Action="allow")
    assert spoofs == [{"Action": "Allow"}]


async def test_an_unknown_cmdlet_is_forbidden_with_nul_bytes(exchange: Any) -> None:
    """The body of such a 403 is not JSON."""
    answer = await exchange.invoke("Remove-Everything")

    assert answer.status == 403
    assert answer.body
    assert answer.body.strip(b"\0") == b""


async def test_both_grants_are_needed(exchange: Any, client: Any, control: Any) -> None:
    """Without the app role 401, without the directory role 403, with both 200."""

    async def status(**grants: Any) -> int:
        app = {"client_id": DEFAULT_APP, "secrets": ["s"], **grants}
        await control.tenant(apps=[app])
        granted = await client.token(EXCHANGE, client_secret="s")  # noqa: S106 - opens nothing but the simulator
        exchange.bearer = granted.body["access_token"]
        return int((await exchange.invoke("Get-AcceptedDomain")).status)

    assert await status(exchange_roles=[], exchange_role=False) == 401
    assert await status(exchange_role=False) == 403
    assert await status() == 200


async def test_tokens_of_others_are_refused(exchange: Any, client: Any, control: Any) -> None:
    """A token for Graph, or of another tenant, does not open this one; nor does no token."""
    other = "0a1b2c3d-0000-4000-8000-000000000002"
    await control.ask("POST", "/tenants", {"id": other, "accepted_domains": ["fabrikam.example"]})
    for token in (await client.token(GRAPH), await client.token(EXCHANGE, other)):
        exchange.bearer = token.body["access_token"]
        assert (await exchange.invoke("Get-AcceptedDomain")).status == 401
    exchange.bearer = ""
    answer = await exchange.invoke("Get-AcceptedDomain")
    assert (answer.status, answer.body) == (401, None)
    assert "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize(
    "body", [{}, [], {"CmdletInput": {}}, {"CmdletInput": {"CmdletName": GET, "Parameters": ["ListType"]}}]
)
async def test_a_body_without_a_command_is_refused(exchange: Any, body: Any) -> None:
    """There is nothing to run."""
    path = f"/adminapi/beta/{DEFAULT_TENANT}/InvokeCommand"

    answer = await exchange.call("POST", path, body, headers={"Authorization": f"Bearer {exchange.bearer}"})

    assert answer.status in (400, 403)


def test_every_cmdlet_that_writes_is_known() -> None:
    """What changes a tenant is exactly this."""
    reading = ("Get-", "Preview-", "Export-")
    writing = {name for name in CMDLETS if not name.startswith(reading)}
    assert writing == {NEW, SET, REMOVE, SET_JUNK, "Release-QuarantineMessage", "Delete-QuarantineMessage"}
