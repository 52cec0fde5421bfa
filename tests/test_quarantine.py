"""The guide's two quarantine flows, walked by the whole system; the ledger agrees with every claim."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from demo.check import differences
from demo.people import Demo
from demo.quarantine import ADMIN_STEPS, RELEASE_POLICY, USER_STEPS, set_up
from local_stack.stack import Stack


async def test_users_and_admins_work_in_the_quarantine(demo: Demo) -> None:
    """Digest, preview, release, request, block and report; pending first, approve, deny, submit and block, verdict."""
    await demo.sign_in([])
    flows = await demo.walk_quarantine(lambda _told: None)
    assert flows.missing == []
    assert set(flows.walked) == {*USER_STEPS, *ADMIN_STEPS}

    async with asyncio.timeout(120):
        while not demo.accepted <= demo.event_log.case_of.keys():
            await asyncio.sleep(0.05)
        await demo.triage()
        while not demo.event_log.settled(demo.accepted):
            await asyncio.sleep(0.05)
    ledger = await demo.control("GET", "/ledger")
    assert differences(demo.event_log, demo.accepted, ledger, demo.addresses) == []

    done = [(entry["action"], entry["recipient"].partition("@")[0]) for entry in ledger["quarantine_actions"]]
    assert sorted(done) == [("deny", "uma"), ("release", "rita"), ("release", "sam"), ("request", "sam")]
    entries = {(entry["list_type"], entry["value"]) for entry in ledger["tenant_blocks"]}
    assert {("Sender", "accounts@malware-shop.example"), ("Url", "files.phish.example/invoice")} <= entries
    mailbox_blocks = {(entry["mailbox"], entry["value"]) for entry in ledger["mailbox_blocks"]}
    assert ("tina@contoso.example", "support@mailbox-help.example") in mailbox_blocks
    digests = [one for mail in ledger["mails"] for one in mail["recipients"]]
    assert {f"{name}@contoso.example" for name in ("rita", "sam", "tina")} <= set(digests)
    assert len(digests) == len(set(digests))


async def test_a_user_does_not_release_what_is_held_as_high_confidence_phishing(stack: Stack, demo: Demo) -> None:
    """The digest came while it passed for spam; now only its Type says what it is, as Microsoft displays it."""
    xenia, tenant = "xenia@contoso.example", f"/tenants/{stack.tenant_id}"
    await demo.sign_in([])
    await set_up(demo.control, demo._gateway, stack.tenant_id, demo._admin)
    await demo.control("PATCH", f"{tenant}/mailboxes/{xenia}", {})
    eml = f"From: desk@wingtip.example\r\nTo: {xenia}\r\nSubject: Your parcel\r\n\r\nTrack it.\r\n"
    made = await demo.control("POST", f"{tenant}/quarantine", {"eml": eml, "quarantine_policy": RELEASE_POLICY})
    row = {
        "Identity": made["items"][0]["identity"],
        "ReceivedTime": datetime.now(UTC).isoformat(),
        "RecipientAddress": [xenia],
        "ReleaseStatus": "NOTRELEASED",
        "TagName": RELEASE_POLICY,
        "QuarantineTypes": None,
        "Type": "High Confidence Phish",
    }

    async def told() -> Any:
        mails = (await demo.control("GET", "/ledger"))["mails"]
        return next((mail for mail in mails if xenia in mail["recipients"]), None)

    async def only_asked_for() -> bool:
        (mail,) = (await demo._gateway.list_quarantine(demo._admin, recipient=xenia))["items"]
        return "request-release" in mail["user_permissions"]

    digest = await demo.control("GET", f"{tenant}/mails/{(await _until(told))['number']}")
    (link,) = [link["url"] for link in digest["links"] if link["text"].strip() == "Release"]
    url = stack.urls["quarantine"] + link[link.index("/q/") :]
    async with aiohttp.ClientSession() as user:
        async with user.get(url) as page:
            (confirmation,) = re.findall(r'name="confirmation" value="([^"]+)"', await page.text())
        await demo.control("PATCH", tenant, {"cmdlets": {"Get-QuarantineMessage": [row]}})
        try:
            await _until(only_asked_for)
            async with user.post(url, data={"confirmation": confirmation}) as answer:
                assert (answer.status, "not possible" in await answer.text()) == (409, True)
            async with user.get(url) as answer:
                assert (answer.status, "not possible" in await answer.text()) == (409, True)
        finally:
            await demo.control("PATCH", tenant, {"cmdlets": {"Get-QuarantineMessage": None}})
    done = (await demo.control("GET", "/ledger"))["quarantine_actions"]
    assert [entry for entry in done if entry["recipient"] == xenia] == []


async def _until(condition: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(60):
        while not (found := await condition()):
            await asyncio.sleep(0.1)
        return found


async def test_an_admin_downloads_a_mail_as_it_came(stack: Stack, demo: Demo) -> None:
    """Through the gateway, byte for byte, as a file that no browser opens."""
    await demo.sign_in([])
    await demo.control("PATCH", f"/tenants/{stack.tenant_id}/mailboxes/wanda@contoso.example", {})
    eml = "From: a@proseware.example\r\nTo: wanda@contoso.example\r\nSubject: raw\r\n\r\n<script>x()</script>\r\n"
    await demo.control("POST", f"/tenants/{stack.tenant_id}/quarantine", {"eml": eml})
    async with asyncio.timeout(60):
        while not (found := await demo._gateway.list_quarantine(demo._admin, recipient="wanda@contoso.example"))[
            "items"
        ]:
            await asyncio.sleep(0.1)
    message_id, headers = found["items"][0]["message_id"], {"Authorization": f"Bearer {demo._admin}"}
    url = f"{stack.urls['gateway']}/v1/quarantine/{message_id}"
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{url}/download") as answer:
            assert (answer.status, await answer.read()) == (200, eml.encode())
            assert answer.content_type == "message/rfc822"
            assert answer.headers["Content-Disposition"].startswith("attachment")
        async with session.get(f"{url}/document") as answer:
            assert "sandbox" in answer.headers["Content-Security-Policy"]
            assert "<script" not in await answer.text()
