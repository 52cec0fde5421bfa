"""Graph's threat submissions: making, reading, listing and reviewing them."""

import base64
from typing import Any

import pytest

from simulator.state import DEFAULT_TENANT
from simulator.submission_entity import EARLY_CATEGORIES, LATE_DETAILS
from simulator.tokens import EXCHANGE, GRAPH

SHORT = "#microsoft.graph.emailContentThreatSubmission"
LINK = "#microsoft.graph.security.emailUrlThreatSubmission"


async def test_a_submission_of_content_is_answered_with_the_mails_facts(graph: Any, mail: Any) -> None:
    """The answer has the mail's identity and sender, and never its content."""
    answer = await graph.submit(mail(), "Anna@Contoso.example")

    assert answer.status == 201
    body = answer.body
    assert body["@odata.type"] == "#microsoft.graph.security.emailContentThreatSubmission"
    assert (body["internetMessageId"], body["recipientEmailAddress"]) == (
        "<one@fabrikam.example>",
        "anna@contoso.example",
    )
    assert (body["subject"], body["sender"], body["senderIP"]) == ("Lunch", "bob@fabrikam.example", "203.0.113.7")
    assert (body["category"], body["source"], body["status"]) == ("phishing", "administrator", "notStarted")
    assert body["receivedDateTime"].startswith("2026-11-02T10:00:00")
    assert body["tenantId"] == DEFAULT_TENANT
    assert "fileContent" not in body
    assert answer.headers["Location"].endswith(body["id"])


async def test_the_samples_spelling_of_the_type_is_accepted(graph: Any, mail: Any) -> None:
    """The type name without `.security.` is that of Microsoft's samples."""
    body = graph.content_form(mail(), **{"@odata.type": SHORT})

    answer = await graph.threats("POST", body=body)

    assert answer.status == 201
    assert answer.body["@odata.type"] == "#microsoft.graph.security.emailContentThreatSubmission"


async def test_a_submission_by_link_reads_the_mail_in_the_mailbox(graph: Any, control: Any, mail: Any) -> None:
    """The message URL may name the user by id or by address, and Graph's v1.0 or beta."""
    order = {"user": "anna@contoso.example", "eml": mail().decode()}
    put = await control.ask("POST", f"/tenants/{DEFAULT_TENANT}/messages", order)

    answer = await graph.threats("POST", body=graph.link_form(put["message_url"]))

    assert answer.status == 201
    assert (answer.body["@odata.type"], answer.body["messageUrl"]) == (LINK, put["message_url"])
    assert answer.body["internetMessageId"] == "<one@fabrikam.example>"
    url = f"{GRAPH}/v1.0/users/anna@contoso.example/messages/{put['message_id']}"
    again = await graph.threats("POST", body=graph.link_form(url, "ben@contoso.example"))
    assert again.status == 201


async def test_a_link_to_a_mail_that_is_gone_is_not_found(graph: Any, control: Any, mail: Any) -> None:
    """A deleted mail can't be submitted by link."""
    order = {"user": "anna@contoso.example", "eml": mail().decode(), "message_id": "AAMkAG="}
    put = await control.ask("POST", f"/tenants/{DEFAULT_TENANT}/messages", order)
    await control.ask("DELETE", f"/tenants/{DEFAULT_TENANT}/messages/anna@contoso.example/AAMkAG=")

    answer = await graph.threats("POST", body=graph.link_form(put["message_url"]))

    assert (answer.status, answer.code) == (404, "ErrorItemNotFound")
    assert (await control.ledger())["submissions"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"@odata.type": None},
        {"@odata.type": "#microsoft.graph.security.fileContentThreatSubmission"},
        {"category": "notSpam"},
        {"category": None},
        {"recipientEmailAddress": "anna"},
        {"recipientEmailAddress": None},
        {"fileContent": None},
        {"fileContent": "not base64!"},
        {"fileContent": base64.b64encode(b"From: bob@fabrikam.example\r\n\r\nHello").decode() + "\n*"},
        {"fileContent": base64.b64encode(b"no header here").decode()},
        {"fileContent": base64.b64encode(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(64)).decode()},
        {"@odata.type": LINK, "messageUrl": "https://graph.microsoft.com/beta/me/messages/1"},
        {"@odata.type": LINK},
        {"tenantAllowOrBlockListAction": {"action": "quarantine"}},
        {"tenantAllowOrBlockListAction": {"action": "block", "expirationDateTime": "soon"}},
    ],
)
async def test_a_malformed_submission_is_refused(graph: Any, control: Any, mail: Any, changes: dict[str, Any]) -> None:
    """A wrong body is a bad request and has no effect."""
    answer = await graph.threats("POST", body=graph.content_form(mail(), **changes), bad_request=True)

    assert (answer.status, answer.code) == (400, "BadRequest")
    assert (await control.ledger())["counts"]["submissions"] == 0


@pytest.mark.parametrize("data", [b"{", b"[]", b""])
async def test_a_body_that_is_no_object_is_refused(graph: Any, data: bytes) -> None:
    """Only a JSON object is a submission."""
    headers = {"Authorization": f"Bearer {graph.bearer}"}
    url = f"{graph.url}/beta/security/threatSubmission/emailThreats"
    async with graph.session.post(url, data=data, headers=headers) as response:
        assert response.status == 400


async def test_a_mail_over_the_size_limit_is_refused(graph: Any, control: Any, mail: Any) -> None:
    """The limit is on the decoded mail, to the byte."""
    raw = mail()
    await control.settings(max_content_bytes=len(raw) - 1)
    assert (await graph.submit(raw)).status == 413
    await control.settings(max_content_bytes=len(raw))
    assert (await graph.submit(raw)).status == 201


async def test_the_wish_to_block_is_kept_but_makes_no_entry(graph: Any, exchange: Any, mail: Any) -> None:
    """Whether Graph makes the entry is not documented, so the list stays as it is."""
    action = {"action": "block", "expirationDateTime": "2026-12-01T00:00:00Z", "note": "seen"}
    body = graph.content_form(mail(), tenantAllowOrBlockListAction=action)

    answer = await graph.threats("POST", body=body)

    assert answer.body["tenantAllowOrBlockListAction"] == {**action, "results": []}
    assert await exchange.rows("Get-TenantAllowBlockListItems", ListType="Sender") == []


async def test_a_submission_is_analyzed_and_then_has_a_verdict(graph: Any, control: Any, mail: Any) -> None:
    """The status goes from notStarted over running to succeeded; the result follows."""
    made = (await graph.submit(mail(report="SFV:SKN;CIP:203.0.113.7"))).body
    rest = f"/{made['id']}"

    assert (made["status"], made["result"]) == ("notStarted", None)
    await control.advance(7)
    running = (await graph.threats("GET", rest)).body
    assert (running["status"], running["result"]["category"]) == ("running", "beingAnalyzed")
    assert running["result"]["detail"] == "underInvestigation"
    await control.advance(60)
    done = (await graph.threats("GET", rest)).body
    assert done["status"] == "succeeded"
    assert done["result"]["category"] == "allowedDueToOrganizationOverride"
    assert done["result"]["detail"] == "allowedByExchangeTransportRule"


async def test_without_a_delay_the_verdict_is_in_the_first_answer(graph: Any, control: Any, mail: Any) -> None:
    """A delay of zero settles at once."""
    await control.settings(verdict_delay_seconds=0)

    answer = await graph.submit(mail())

    assert (answer.body["status"], answer.body["result"]["category"]) == ("succeeded", "noThreatsFound")


async def test_late_enum_members_are_hidden_unless_asked_for(graph: Any, control: Any, mail: Any) -> None:
    """Without the Prefer header a client sees unknownFutureValue for what was added to the enum later."""
    await control.settings(verdict_delay_seconds=0)
    order = {"category": "phishingSimulation", "detail": "partOfEducationCampaign"}
    await control.tenant(verdicts={"<one@fabrikam.example>": order})
    rest = "/" + (await graph.submit(mail())).body["id"]

    plain = await graph.threats("GET", rest, all_members=False)
    full = await graph.threats("GET", rest)
    (listed,) = (await graph.threats("GET", all_members=False)).body["value"]

    assert (plain.body["result"]["category"], plain.body["result"]["detail"]) == ("unknownFutureValue",) * 2
    assert listed["result"]["category"] == "unknownFutureValue"
    assert "Preference-Applied" not in plain.headers
    assert full.body["result"]["category"] == "phishingSimulation"
    assert full.body["result"]["detail"] == "partOfEducationCampaign"
    assert full.headers["Preference-Applied"] == "include-unknown-enum-members"


async def test_early_enum_members_are_shown_to_everyone(graph: Any, control: Any, mail: Any) -> None:
    """The first members of the enums need no header."""
    await control.settings(verdict_delay_seconds=0)

    answer = await graph.submit(mail(report="SFV:SPM;SCL:5"), all_members=False)

    assert (answer.body["result"]["category"], answer.body["result"]["detail"]) == ("spam", "none")


async def test_every_member_is_either_early_or_late(document: Any) -> None:
    """What needs the Prefer header is what stands behind unknownFutureValue in Microsoft's enums."""
    categories = document.known_values["submissionResultCategory"]
    details = document.known_values["submissionResultDetail"]
    assert set(categories[: categories.index("unknownFutureValue")]) == EARLY_CATEGORIES
    assert set(details[details.index("unknownFutureValue") + 1 :]) == LATE_DETAILS


async def test_the_drifted_shape_is_that_of_microsofts_samples(graph: Any, control: Any, mail: Any) -> None:
    """The samples say emailSubject and createdBy.user where the reference says subject and createdBy."""
    await control.settings(drifted_shape=True)

    body = (await graph.submit(mail(), drifted=True)).body

    assert body["emailSubject"] == "Lunch"
    assert "subject" not in body
    assert set(body["createdBy"]) == {"user"}
    assert body["createdBy"]["user"]["displayName"] == "Backstop"


async def test_user_mailbox_settings_are_one_comma_separated_string(graph: Any, control: Any, mail: Any) -> None:
    """Flags are not an array."""
    await control.settings(verdict_delay_seconds=0)
    path = f"/tenants/{DEFAULT_TENANT}/mailboxes/anna@contoso.example"
    await control.ask("PATCH", path, {"trusted": ["bob@fabrikam.example", "fabrikam.example"]})

    result = (await graph.submit(mail())).body["result"]

    flags = "isFromAddressInAddressSafeList,isFromDomainInDomainSafeList,isJunkMailRuleEnabled"
    assert result["userMailboxSetting"] == flags


async def test_a_simulation_tells_which_one(graph: Any, control: Any, mail: Any) -> None:
    """The attack simulation's facts are filled once the verdict is there."""
    await control.tenant(cmdlets={"Get-ExoPhishSimOverrideRule": [{"Domains": ["fabrikam.example"]}]})
    made = (await graph.submit(mail())).body
    assert made["attackSimulationInfo"] is None
    await control.advance(60)

    body = (await graph.threats("GET", f"/{made['id']}")).body

    assert body["result"]["category"] == "phishingSimulation"
    assert body["attackSimulationInfo"]["attackSimUserId"] == "anna@contoso.example"


async def test_an_unknown_submission_is_not_found(graph: Any) -> None:
    """There is nothing under an id that was never given."""
    answer = await graph.threats("GET", "/nothing")

    assert (answer.status, answer.code) == (404, "ResourceNotFound")


async def test_an_admin_marks_a_users_report(graph: Any, control: Any, mail: Any) -> None:
    """A review is 204, shows in adminReview and stands in the ledger."""
    order = {"user": "anna@contoso.example", "eml": mail().decode(), "category": "spam"}
    reported = await control.ask("POST", f"/tenants/{DEFAULT_TENANT}/user-reports", order)
    rest = f"/{reported['id']}"

    answer = await graph.threats("POST", f"{rest}/review", {"category": "Phishing"})

    assert answer.status == 204
    body = (await graph.threats("GET", rest)).body
    assert body["adminReview"]["reviewResult"] == "phishing"
    (entry,) = (await control.ledger())["reviews"]
    assert (entry["id"], entry["category"]) == (reported["id"], "phishing")


async def test_only_users_reports_can_be_marked(graph: Any, control: Any, mail: Any) -> None:
    """An administrator's own submission is not reviewed, nor is anything marked with a made-up category."""
    made = (await graph.submit(mail())).body
    assert (await graph.threats("POST", f"/{made['id']}/review", {"category": "phishing"})).status == 400
    order = {"user": "anna@contoso.example", "eml": mail().decode()}
    reported = await control.ask("POST", f"/tenants/{DEFAULT_TENANT}/user-reports", order)
    assert (await graph.threats("POST", f"/{reported['id']}/review", {"category": "bad"})).status == 400
    assert (await control.ledger())["counts"]["reviews"] == 0


async def test_the_review_action_may_be_missing(graph: Any, control: Any, mail: Any) -> None:
    """The action is documented but absent from Microsoft's SDK: it can be switched off."""
    order = {"user": "anna@contoso.example", "eml": mail().decode()}
    reported = await control.ask("POST", f"/tenants/{DEFAULT_TENANT}/user-reports", order)
    await control.settings(review_available=False)

    assert (await graph.threats("POST", f"/{reported['id']}/review", {"category": "phishing"})).status == 404


@pytest.mark.parametrize(
    "order",
    [
        {"audience": EXCHANGE, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"]},
        {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"], "expires_in": -1},
        {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"], "foreign_key": True},
        {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"], "kid": "unknown"},
        {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"], "algorithm": "none"},
        {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"], "algorithm": "HS256"},
        {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.ReadWrite.All"], "issuer": "https://a.invalid"},
        {"audience": GRAPH, "scp": "ThreatSubmission.ReadWrite.All", "roles": ["ThreatSubmission.ReadWrite.All"]},
    ],
)
async def test_a_bad_token_is_refused(graph: Any, control: Any, order: dict[str, Any]) -> None:
    """Wrong audience, expired, forged, unsigned, of another issuer, or a user's: 401."""
    graph.bearer = (await control.ask("POST", "/tokens", order))["access_token"]

    answer = await graph.threats("GET")

    assert (answer.status, answer.code) == (401, "InvalidAuthenticationToken")


async def test_an_error_names_the_request(client: Any) -> None:
    """The client's own id comes back in the error, for those who ask Microsoft's support."""
    path, mine = "/beta/security/threatSubmission/emailThreats", {"client-request-id": "mine"}

    answer = await client.call("GET", path, headers=mine)

    assert answer.body["error"]["innerError"]["client-request-id"] == "mine"
    assert answer.body["error"]["innerError"]["request-id"] == answer.headers["request-id"]


async def test_a_call_without_a_token_is_refused(client: Any) -> None:
    """No token, no answer."""
    answer = await client.call("GET", "/beta/security/threatSubmission/emailThreats")

    assert (answer.status, answer.code) == (401, "InvalidAuthenticationToken")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1.0/security/threatSubmission/emailThreats"),
        ("GET", "/beta/security/threatSubmission/urlThreats"),
        ("PATCH", "/beta/security/threatSubmission/emailThreats/1"),
    ],
)
async def test_what_is_not_served_is_refused_as_graph_does(client: Any, method: str, path: str) -> None:
    """The resource is in beta only, and updating it is not documented."""
    answer = await client.call(method, path)

    assert (answer.status, answer.code) == (400, "BadRequest")


async def test_permissions_are_checked_per_call(graph: Any, control: Any, mail: Any) -> None:
    """Reading needs Read.All or ReadWrite.All, submitting needs ReadWrite.All."""
    order = {"audience": GRAPH, "app": True, "roles": ["ThreatSubmission.Read.All"]}
    graph.bearer = (await control.ask("POST", "/tokens", order))["access_token"]
    assert (await graph.threats("GET")).status == 200
    refused = await graph.submit(mail())
    assert (refused.status, refused.code) == (403, "Forbidden")

    graph.bearer = (await control.ask("POST", "/tokens", {**order, "roles": ["Mail.Read"]}))["access_token"]
    assert (await graph.threats("GET")).status == 403


async def test_tenants_do_not_see_each_other(graph: Any, client: Any, control: Any, mail: Any) -> None:
    """The token's tenant decides which submissions exist."""
    other = "0a1b2c3d-0000-4000-8000-000000000002"
    await control.ask("POST", "/tenants", {"id": other, "accepted_domains": ["fabrikam.example"]})
    made = (await graph.submit(mail())).body

    graph.bearer = (await client.token(GRAPH, other)).body["access_token"]

    assert (await graph.threats("GET")).body["value"] == []
    assert (await graph.threats("GET", f"/{made['id']}")).status == 404
