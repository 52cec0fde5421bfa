"""The guide's two quarantine flows: users hear of held mail, look, block, report and ask; admins decide and submit."""

import asyncio
import html
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import aiohttp

from demo.gateway import Gateway
from local_stack.stack import Stack
from local_stack.supervisor import StackError

SENDER = "notices@contoso.example"
RELEASE_POLICY, ASK_POLICY = "Users may release", "Users may ask"
POLICIES = {RELEASE_POLICY: 1 | 2 | 4 | 16, ASK_POLICY: 1 | 2 | 8 | 16}
"""EndUserQuarantinePermissionsValue: delete 1, preview 2, release 4, request release 8, block sender 16."""
SETTINGS = {"quarantine_sync_interval_seconds": 1, "digest_period_seconds": 2}
"""What the service is told, so that nobody has to wait for four hours."""

USER_STEPS = (
    "a user gets the digest of what is held for them",
    "the user looks at a mail, made safe",
    "the user releases it, where the quarantine policy says release",
    "the user asks for its release, where the policy says ask",
    "the user blocks its sender for their own mailbox",
    "the user submits it to Microsoft",
)
ADMIN_STEPS = (
    "admins see pending release requests first, whether made here or in Defender",
    "an admin looks at a mail, made safe",
    "an admin approves a request",
    "an admin denies a request, and says why",
    "an admin submits a mail, and blocks its sender and a URL meanwhile",
    "the verdict is read",
)
"""Microsoft's guide, "false negatives": quarantined mail, for users and for admins."""

PATIENCE_SECONDS = 90.0

Control = Callable[..., Awaitable[Any]]


async def set_up(control: Control, gateway: Gateway, tenant_id: str, admin: str) -> None:
    """Give a simulated tenant quarantine policies that let users act, and digests, which an admin orders."""
    # Only this needs the simulator's own defaults.
    from simulator.policies import default_rows  # noqa: PLC0415

    rows = [*(default_rows("Get-QuarantinePolicy", ["contoso.example"]) or [])]
    rows += [
        {"Name": name, "Identity": name, "EndUserQuarantinePermissionsValue": value, "ESNEnabled": True}
        for name, value in POLICIES.items()
    ]
    tenant = f"/tenants/{tenant_id}"
    await control("PATCH", tenant, {"cmdlets": {"Get-QuarantinePolicy": rows}})
    await control("PATCH", f"{tenant}/mailboxes/{SENDER}", {})
    settings = {"sender": SENDER, "every": "4h", "organisation": "Contoso IT security"}
    await gateway.write_quarantine_settings(admin, settings)


class QuarantineFlows:
    """
    Walks both flows in a running system and remembers what was done, as the people in it see it.

    *control* calls the simulator's control routes, *admin* is an access token. `reports` are those that were filed.
    """

    def __init__(
        self, stack: Stack, gateway: Gateway, control: Control, admin: str, say: Callable[[str], None]
    ) -> None:
        self._stack = stack
        self._gateway = gateway
        self._control = control
        self._admin = admin
        self._say = say
        self.walked = Counter[str]()
        self.reports: set[UUID] = set()
        self._user: aiohttp.ClientSession

    @property
    def missing(self) -> list[str]:
        """The steps that were not walked."""
        return [f"not walked in quarantine: {step}" for step in (*USER_STEPS, *ADMIN_STEPS) if not self.walked[step]]

    async def walk(self) -> None:
        """Walk both flows. Raises StackError when something does not come about."""
        self.walked.clear()
        async with aiohttp.ClientSession() as self._user:
            await set_up(self._control, self._gateway, self._stack.tenant_id, self._admin)
            await self._users()
            await self._admins()

    async def _hold(self, name: str, who: str, sender: str, text: str, **order: Any) -> Any:
        """Let Defender hold a mail for *who*."""
        await self._control("PATCH", f"/tenants/{self._stack.tenant_id}/mailboxes/{who}", {})
        eml = (
            f"From: {sender}\r\nTo: {who}\r\nSubject: {name}\r\n"
            f"Message-ID: <{time.monotonic_ns()}@{sender.partition('@')[2]}>\r\n"
            f"Date: Tue, 03 Mar 2026 08:02:14 +0000\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{text}\r\n"
        )
        return await self._control("POST", f"/tenants/{self._stack.tenant_id}/quarantine", {"eml": eml, **order})

    async def _users(self) -> None:
        rita, sam, tina = (f"{name}@contoso.example" for name in ("rita", "sam", "tina"))
        await self._hold(
            "Spring catalogue", rita, "news@trey.example", "<p>New this spring</p>", quarantine_policy=RELEASE_POLICY
        )
        await self._hold("Offer 2231", sam, "sales@tailspin.example", "<p>Our offer</p>", quarantine_policy=ASK_POLICY)
        await self._hold(
            "Your mailbox is full",
            tina,
            "support@mailbox-help.example",
            '<p>Sign in at <a href="https://quota.phish.example/in">contoso.example</a> to keep your mail.</p>'
            '<img src="https://pixel.phish.example/1.gif"><script>alert(1)</script>',
            quarantine_policy=ASK_POLICY,
            quarantine_type="Phish",
        )
        digests = {who: await self._digest(who) for who in (rita, sam, tina)}
        self.walked[USER_STEPS[0]] = len(digests)

        await self._look(rita, digests[rita]["View message"], "New this spring")
        await self._confirm(digests[rita]["Release"], "on its way to your mailbox")
        self._did(USER_STEPS[2], f"{rita} releases the catalogue")
        await self._confirm(digests[sam]["Request release"], "has been asked")
        self._did(USER_STEPS[3], f"{sam} asks for the offer")
        await self._look(tina, digests[tina]["View message"], "[https://quota.phish.example/in]")
        await self._confirm(digests[tina]["Block sender"], "is blocked for your mailbox")
        self._did(USER_STEPS[4], f"{tina} blocks the sender of the phishing mail")
        await self._confirm(digests[tina]["Report to Microsoft"], "was reported", reported_as="phishing")
        self._did(USER_STEPS[5], f"{tina} reports the phishing mail")
        await self._remember_reports(tina)

    async def _admins(self) -> None:
        uma, vera = "uma@contoso.example", "vera@contoso.example"
        lure = "https://files.phish.example/invoice"
        asked = await self._hold(
            "Loan approved", uma, "loans@litware.example", "<p>Take it today</p>", quarantine_policy=ASK_POLICY
        )
        await self._hold(
            "Invoice 88", vera, "accounts@malware-shop.example", f'<a href="{lure}">Open</a>', quarantine_type="Malware"
        )
        # Asked in Defender itself, not here.
        path = f"/tenants/{self._stack.tenant_id}/quarantine/{asked['network_message_id']}/requests"
        await self._control("POST", path, {})

        async def pending() -> dict[str, str]:
            first = (await self._gateway.list_quarantine(self._admin, limit="10"))["items"]
            waiting = {one["recipient"]: one["message_id"] for one in first if one["status"] == "requested"}
            subjects = [one["status"] for one in first]
            if subjects != sorted(subjects, key=lambda status: status != "requested"):
                raise StackError("pending release requests do not come first")
            return waiting if {"sam@contoso.example", uma} <= waiting.keys() else {}

        waiting = await self._until(pending, "both release requests are listed")
        self._did(ADMIN_STEPS[0], "the admin sees both requests, one made in Defender itself")
        sam, asker = waiting["sam@contoso.example"], waiting[uma]
        shown = await self._gateway.preview_quarantined(self._admin, sam)
        if "Our offer" not in shown["text"]:
            raise StackError("the preview does not show the mail")
        self._did(ADMIN_STEPS[1], "the admin looks at the offer")
        await self._gateway.act_on_quarantine(
            self._admin, {"action": "approve", "messages": [sam], "reason": "known supplier"}
        )
        self._did(ADMIN_STEPS[2], "the admin approves the offer")
        await self._gateway.act_on_quarantine(
            self._admin, {"action": "deny", "messages": [asker], "reason": "a loan scam"}
        )
        self._did(ADMIN_STEPS[3], "the admin denies the loan")
        await self._submit(vera, lure)

    async def _submit(self, who: str, lure: str) -> None:
        async def held() -> str | None:
            items = (await self._gateway.list_quarantine(self._admin, recipient=who, status="not-released"))["items"]
            return str(items[0]["message_id"]) if items else None

        message_id = await self._until(held, f"the mail for {who} is listed")
        wish = {
            "action": "submit",
            "category": "malware",
            "messages": [message_id],
            "note": "seen in quarantine",
            "blocks": [{"kind": "sender"}, {"kind": "url", "url": lure}],
        }
        answer = await self._gateway.act_on_quarantine(self._admin, wish)
        self.reports.add(UUID(answer["results"][0]["submission"]["report_id"]))
        self._did(ADMIN_STEPS[4], "the admin submits the invoice, and blocks its sender and its link")

        async def judged() -> Any:
            mail = await self._gateway.read_quarantined(self._admin, message_id)
            return next((one["verdict"] for one in mail["submissions"] if one["verdict"]), None)

        verdict = await self._until(judged, "the verdict is there")
        self._did(ADMIN_STEPS[5], f"Microsoft's verdict on the invoice: {verdict['verdict']}")

    async def _digest(self, who: str) -> dict[str, str]:
        """Wait for the digest of *who*; return its links by their text."""

        async def sent() -> Any:
            mails = (await self._control("GET", "/ledger"))["mails"]
            return next((mail for mail in reversed(mails) if who in mail["recipients"]), None)

        entry = await self._until(sent, f"{who} gets a digest")
        mail = await self._control("GET", f"/tenants/{self._stack.tenant_id}/mails/{entry['number']}")
        self._say(f"{who} gets: {mail['subject']}")
        return {link["text"].strip(): link["url"] for link in mail["links"]}

    async def _look(self, who: str, link: str, expected: str) -> None:
        page = await self._open(link)
        (frame,) = re.findall(r'<iframe sandbox src="([^"]+)"', page)
        shown = await self._open(html.unescape(frame))
        if expected not in html.unescape(shown) or "<script" in shown:
            raise StackError(f"the preview for {who} is not what it should be")
        self._did(USER_STEPS[1], f"{who} looks at the mail")

    async def _open(self, link: str) -> str:
        path = link[link.index("/q/") :]
        async with self._user.get(self._stack.urls["quarantine"] + path) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise StackError(f"a link of a digest answers {answer.status}")
            return text

    async def _confirm(self, link: str, expected: str, **fields: str) -> None:
        """Open a link, confirm, and read that it is done, which may take some seconds."""
        path = link[link.index("/q/") :]
        (confirmation,) = re.findall(r'name="confirmation" value="([^"]+)"', await self._open(link))

        async def done() -> bool:
            data = {"confirmation": confirmation, **fields}
            async with self._user.post(self._stack.urls["quarantine"] + path, data=data) as answer:
                text = html.unescape(await answer.text())
                if answer.status not in (200, 202):
                    raise StackError(f"a confirmed link answers {answer.status}")
                return answer.status == 200 and (expected in text or "done before" in text)

        await self._until(done, f"the page says: {expected}")

    async def _remember_reports(self, who: str) -> None:
        for item in (await self._gateway.list_quarantine(self._admin, recipient=who))["items"]:
            mail = await self._gateway.read_quarantined(self._admin, item["message_id"])
            self.reports |= {UUID(one["report_id"]) for one in mail["submissions"]}

    def _did(self, step: str, told: str) -> None:
        self.walked[step] += 1
        self._say(told)

    async def _until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := await condition()):
            if time.monotonic() > deadline:
                raise StackError(f"For {PATIENCE_SECONDS:.0f} s it has not come about that {what}. See the logs.")
            await asyncio.sleep(0.1)
        return found
