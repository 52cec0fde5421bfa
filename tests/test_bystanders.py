"""Whoever a phish hides behind is not blocked: not by a policy, not by an admin, not by one employee who wants it."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from test_story import case_that, kinds_of, settled, until, write

from demo.people import Demo
from demo.story import Reported
from local_stack.stack import Stack

TWO = ("paul", "petra")
FAILED = "spf=fail smtp.mailfrom=phish.example; dkim=none; dmarc=fail header.from={0}; compauth=fail reason=000"
PASSED = "spf=pass smtp.mailfrom={0}; dkim=pass header.d={0}; dmarc=pass action=none header.from={0}; compauth=pass"


def mail(folder: Path, sender: str, results: str) -> Path:
    """Write a mail of *sender* as Exchange Online delivers it."""
    domain = sender.strip("<>").rpartition("@")[2]
    headers = f"Authentication-Results: {results.format(domain)}\n"
    text = f"Your account {uuid4()} will be closed. Please confirm at https://confirm.phish.example/in today."
    return write(folder, "notice", sender, text, headers=headers)


async def reported(demo: Demo, file: Path, *people: str, until_told: str) -> dict[str, Any]:
    """Have *people* report a mail as phishing; return its case when all is done and its timeline tells *until_told*."""
    users = tuple(f"{name}@contoso.example" for name in people)
    await demo.sign_in(users)
    outcome = await demo.report(Reported(file, users))
    await case_that(demo, outcome.report_ids[0], lambda case: case["status"] == "resolved")
    await settled(demo)
    return await case_that(demo, outcome.report_ids[0], lambda case: until_told in kinds_of(case))


async def tenant_blocks(demo: Demo) -> set[str]:
    """Return the entries of the tenant's list, as the ledger has them."""
    return {entry["value"] for entry in (await demo.control("GET", "/ledger"))["tenant_blocks"]}


async def test_a_partner_whose_name_was_forged_is_not_blocked(demo: Demo, tmp_path: Path) -> None:
    """Two honest people report it, so the policy submits and would block; the admin reads why it did not."""
    case = await reported(demo, mail(tmp_path, "boss@partner-corp.example", FAILED), *TWO, until_told="block.skipped")
    skipped = next(entry for entry in case["timeline"] if entry["kind"] == "block.skipped")

    assert "forged" in skipped["detail"]["why"]
    assert not any("partner-corp.example" in value for value in await tenant_blocks(demo))


async def test_a_sender_that_is_authenticated_is_blocked_by_the_policy(demo: Demo, tmp_path: Path) -> None:
    """The control: the rule works."""
    case = await reported(demo, mail(tmp_path, "boss@real-phish.example", PASSED), *TWO, until_told="block.applied")
    assert [block["entry"] for block in case["blocks"]] == ["boss@real-phish.example"]
    assert "boss@real-phish.example" in await tenant_blocks(demo)


async def test_a_service_that_a_phisher_uses_is_not_blocked(demo: Demo, tmp_path: Path) -> None:
    """Its mail passes DMARC, and millions get theirs from the same address."""
    case = await reported(
        demo, mail(tmp_path, "no-reply@sharepointonline.com", PASSED), *TWO, until_told="block.failed"
    )
    failed = next(entry for entry in case["timeline"] if entry["kind"] == "block.failed")

    assert failed["detail"]["reason"] == "protected-domain"
    assert not any("sharepointonline.com" in value for value in await tenant_blocks(demo))


async def test_one_person_is_no_campaign_however_often_they_report(demo: Demo, tmp_path: Path) -> None:
    """With a forged file that says everything right: the customer's domain is not blocked."""
    eve = "eve@contoso.example"
    await demo.sign_in([eve])
    file = mail(tmp_path, "invoices@our-customer.example", PASSED)
    acts = [Reported(file, (eve,), reported_as=word, folder="inbox") for word in ("phishing", "malware", "junk")]
    reports = [report_id for act in acts for report_id in (await demo.report(act)).report_ids]
    case = await case_that(demo, reports[-1], lambda case: case["report_count"] == len(set(reports)) == 3)

    assert (case["status"], case["blocks"]) == ("open", [])
    await demo._gateway.decide(demo._admin, case["case_id"], {"action": "dismiss"})


async def test_nobody_is_blocked_for_the_name_that_a_mail_pretends(demo: Demo, tmp_path: Path) -> None:
    """Mail programs show the quoted address, Microsoft authenticates the other one; an admin is refused too."""
    file = mail(tmp_path, '"alerts@bank.example", <news@sender.example>', PASSED)
    await reported(demo, file, *TWO, until_told="block.skipped")
    assert not any("bank.example" in value for value in await tenant_blocks(demo))


SAFE_LINKS = "https://nam02.safelinks.protection.outlook.com/?url="
LURES = {
    f"{SAFE_LINKS}https%3A%2F%2Fwrapped.phish.example%2Fa&data=05": "wrapped.phish.example/a",
    "https://www.google.com/url?q=https://searched.phish.example/a": "searched.phish.example/a",
    "http://203.0.113.9/login": "203.0.113.9/login",
    "https://ported.phish.example:8443/login": "ported.phish.example/login",
    "https://login.microsoftonline.com/common/oauth2/v2.0/authorize?client_id=1&scope=Mail.Read": None,
    "https://drive.google.com/uc?id=EVIL": None,
    "https://contoso-my.sharepoint.com/": None,
    "https://forms.office.com": None,
}


async def test_a_link_is_blocked_where_it_leads_and_never_a_site_of_everybody(stack: Stack, demo: Demo) -> None:
    """An admin copies links from a mail in the quarantine; the case shows the entries, or why there is none."""
    await demo.sign_in([])
    await demo.control("PATCH", f"/tenants/{stack.tenant_id}/mailboxes/lina@contoso.example", {})
    eml = "From: a@lures.example\r\nTo: lina@contoso.example\r\nSubject: links\r\n\r\n"
    # A clean verdict would lift the blocks.
    eml += "See https://wrapped.phish.example/a today.\r\n"
    await demo.control("POST", f"/tenants/{stack.tenant_id}/quarantine", {"eml": eml})

    async def listed() -> Any:
        return (await demo._gateway.list_quarantine(demo._admin, recipient="lina@contoso.example"))["items"]

    message_id = (await until(listed))[0]["message_id"]
    wish = {"action": "submit", "category": "phishing", "messages": [message_id]}
    blocks = [{"kind": "url", "url": url} for url in LURES]
    answer = await demo._gateway.act_on_quarantine(demo._admin, {**wish, "blocks": blocks})
    report_id = UUID(answer["results"][0]["submission"]["report_id"])
    demo.quarantine_reports.add(report_id)
    case = await case_that(
        demo,
        report_id,
        lambda case: (
            len(case["blocks"]) == len(LURES)
            and all(block["status"] not in ("requested", "removed") for block in case["blocks"])
        ),
    )
    entered = await tenant_blocks(demo)

    assert {block["value"]: block["entry"] for block in case["blocks"]} == LURES
    assert {entry for entry in LURES.values() if entry} <= entered
    assert not any("microsoftonline" in value or "google" in value or "office.com" in value for value in entered)
    reasons = [entry["detail"]["reason"] for entry in case["timeline"] if entry["kind"] == "block.failed"]
    assert set(reasons) <= {"protected-domain", "own-domain"}
    assert len(reasons) == 4
