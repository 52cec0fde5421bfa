"""Which blocks are refused because unrelated people share what they would hit."""

from typing import Any

import pytest

from blocklist.rules import entry_key, list_entry, refusal_for

SHARED = [
    # Public suffixes.
    "co.uk",
    "com.au",
    "github.io",
    "azurewebsites.net",
    # Mail providers.
    "gmail.com",
    "t-online.de",
    "comcast.net",
    "yahoo.co.uk",
    "hotmail.fr",
    "seznam.cz",
    # Services that send on behalf of their users: the domain, its subdomains and its addresses.
    "microsoft.com",
    "amazon.de",
    "google.co.uk",
    "email.teams.microsoft.com",
    "sharepointonline.com",
    "amazonses.com",
    "onmicrosoft.com",
    "docusign.net",
    "no-reply@sharepointonline.com",
    "dse_na4@docusign.net",
    "drive-shares-noreply@google.com",
    "service@PayPal.com",
    "noreply@em1234.sendgrid.net",
]
UNSHARED = [
    "bad@gmail.com",
    "bad@yahoo.co.uk",
    "evil.github.io",
    "evil.co.uk",
    "evil.onmicrosoft.com",
    "bad@evil.onmicrosoft.com",
    "support@evil.zendesk.com",
    "microsoft.com.evil.example",
    "evil-microsoft.com",
    "outlook.support",
    "yahoo.cm",
    "live.ml",
    "news.partner.example.evil.example",
]


def test_a_protected_domain_is_blocked_by_single_addresses_only(make_block: Any) -> None:
    """In upper or lower case; a domain that merely looks like it can be blocked."""
    protected = frozenset({"mail.example"})
    refusal = refusal_for(make_block("Mail.example"), protected)

    assert refusal is not None
    assert refusal.reason == "protected-domain"
    assert refusal_for(make_block("bad@mail.example"), protected) is None
    assert refusal_for(make_block("evil-mail.example"), protected) is None
    assert refusal_for(make_block("news.mail.example"), protected) is not None


@pytest.mark.parametrize(("value", "is_shared"), [*((v, True) for v in SHARED), *((v, False) for v in UNSHARED)])
def test_a_tenant_cannot_block_what_unrelated_people_share(make_block: Any, value: str, is_shared: bool) -> None:
    """Public suffixes, mail providers, and services that send on behalf of their users."""
    refusal = refusal_for(make_block(value))
    assert (refusal is not None) is is_shared
    assert refusal is None or refusal.reason == "protected-domain"


def test_a_user_may_block_the_address_of_a_service_for_their_own_mailbox(make_block: Any) -> None:
    """Nobody else is affected."""
    facts = {"scope": "mailbox", "mailbox": "user@contoso.example"}
    assert refusal_for(make_block("no-reply@sharepointonline.com", **facts)) is None
    assert refusal_for(make_block("gmail.com", **facts)) is not None


@pytest.mark.parametrize(
    ("asked", "entry"),
    [
        ("https://evil.test/a?id=anna", "evil.test/a"),
        ("https://nam02.safelinks.protection.outlook.com/?url=https%3A%2F%2Fevil.test%2Fa", "evil.test/a"),
        ("https://urldefense.proofpoint.com/v2/url?u=https-3A__evil.test_a&d=x", "evil.test/a"),
        ("https://www.google.com/url?q=https://evil.test/a", "evil.test/a"),
        ("http://203.0.113.9/login", "203.0.113.9/login"),
        ("https://evil.test:8443/login", "evil.test/login"),
        ("https://docs.google.com@evil.test/a", "evil.test/a"),
        ("https://evil.test\\@docs.google.com/a", "evil.test/@docs.google.com/a"),
        ("https://EVIL.test./a/", "evil.test/a"),
        ("https://m\u00fcnchen.example/", "xn--mnchen-3ya.example"),
        # One page of a shared site.
        ("https://docs.google.com/forms/d/e/1FAIpQLSc0xYz-9/viewform?usp=pp_url", None),
        ("https://forms.office.com/r/AbCdEfGh", None),
        ("https://evil-my.sharepoint.com/:x:/g/personal/x_evil/EaBcD1234567?e=4", None),
        ("https://bit.ly/evil-3", None),
        ("https://github.com/evil/evil", None),
        ("https://s3.amazonaws.com/evil-bucket/index.html", None),
        # Hosts of a single customer.
        ("https://evil.github.io/", None),
        ("https://evil.web.app/?u=anna", None),
        ("https://evil.blob.core.windows.net/", None),
        ("https://evil.zendesk.com/", None),
        ("https://evil.okta.com/", None),
        ("https://www.dropbox.com/s/abc123xyz456def/invoice.pdf?dl=0", None),
        ("https://www.jotform.com/241234567890", None),
        ("https://sites.google.com/view/evil", None),
        ("https://evil.typeform.com/to/AbCdEf", None),
        ("https://bit.ly/3xYz12#victim@contoso.example", "bit.ly/3xYz12"),
        ("https://t.ly/AbCde?x", None),
        ("https://is.gd/ab", None),
        ("https://forms.office.com/r/AbCdEf?x=1", None),
        ("https://s3.amazonaws.com/evil-bucket/x.html?e=v", None),
        ("https://storage.googleapis.com/evil/index.html#victim", None),
        ("https://evil.my.salesforce.com/", None),
        ("https://outlook.tk/", None),
        ("https:\\\\evil.example\\x", "evil.example/x"),
    ],
)
def test_a_url_is_blocked_by_the_host_and_path_of_its_target(make_block: Any, asked: str, entry: str | None) -> None:
    """Wrappers are undone, and the rest is reduced to host and path."""
    assert refusal_for(make_block(asked, kind="url")) is None
    _, value = entry_key(make_block(asked, kind="url"))
    assert entry is None or value == f"https://{entry}".lower()
    assert f"https://{list_entry(value)}" == value


@pytest.mark.parametrize(
    "value",
    [
        "https://login.microsoftonline.com/common/oauth2/v2.0/authorize?client_id=11111111-aaaa&scope=Mail.Read",
        "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/oauth2",
        "https://accounts.google.com/",
        "https://drive.google.com/uc?id=EVIL",
        "https://docs.google.com/",
        "https://docs.google.com/forms",
        "https://www.google.com/url",
        "https://forms.office.com",
        "https://forms.office.com/Pages/ResponsePage.aspx?id=1FAIpQLSc0xYz",
        "https://evil-my.sharepoint.com/",
        "https://www.paypal.com/signin",
        "https://www.paypal.com/myaccount",
        "https://signin.ebay.com/ws/eBayISAPI.dll",
        "https://na4.docusign.net/Signing/EmailStart.aspx",
        "https://github.com/settings",
        "https://www.linkedin.com/feed",
        "https://www.facebook.com/marketplace",
        "https://www.dropbox.com/scl/fi",
        "https://docs.google.com/accounts",
        "https://www.google.com/maps",
        "https://outlook.office365.com/owa",
        "https://teams.microsoft.com/l/meetup-join",
        "https://portal.azure.com/dashboard",
        "https://forms.office.com/pages/designpagev2.aspx?id=1FAIpQLSc0xYz",
        "https://login.okta.com/",
        "https://app.powerbi.com/view?r=eyJrIjoi",
        "https://docs.google.com/%66orms",
        "https://forms.office.com/abc/..",
        "https://r20.rs6.net/tn.jsp?f=001",
        "https://www.google.co.uk/",
        "https://google.de/search?q=x",
        "https://aka.ms/LearnAboutSenderIdentification",
        "https://www.google.com/url?q=https://evil.test/a&url=https://other.test/b",
        "https://www.microsoft.com/en-us/",
        "https://portal.azure.com/",
        "https://bit.ly/",
        "https://github.io/",
        "https://co.uk/",
        "https://gmail.com/",
        "https://mail.yahoo.co.jp/",
        "https://zendesk.com/",
        "https://www.zendesk.com/",
        "https://url.uk.m.mimecastprotect.com/s/AbC1234567?domain=evil.test",
        "https://nam02.safelinks.protection.outlook.com/",
        "https://nam02.safelinks.protection.outlook.com/?url=https%3A%2F%2Fdocs.google.com%2F",
        "https://docs.google.com./",
        "https://evil.test@docs.google.com/",
        "https:\\\\docs.google.com/",
        "https://\uff47oogle.com/",
    ],
)
def test_a_url_that_unrelated_people_share_is_refused(make_block: Any, value: str) -> None:
    """An entry has no query: what only a query distinguishes would be blocked for everybody."""
    refusal = refusal_for(make_block(value, kind="url"))
    assert refusal is not None
    assert refusal.reason == "protected-domain"


@pytest.mark.parametrize("inside", ["contoso.example", "docs.google.com/", "login.microsoftonline.com/common"])
def test_a_url_wrapped_too_deep_is_refused(make_block: Any, inside: str) -> None:
    """Each pass undoes a limited number of wrappers: refusal and entry must agree on the target."""
    refusal = refusal_for(make_block("https://" + "google.com/amp/s/" * 9 + inside, kind="url"))
    assert refusal is not None
    assert refusal.reason == "invalid"


@pytest.mark.parametrize(
    "value",
    [
        "ftp://phish.example/",
        "phish.example",
        "https://phish.example:99999/",
        "https://phish.example/*",
        "https://phish.example/~a",
        "https://phish.example/a b",
        "https://[2001:db8::1]/",
        "https://192.0.2/",
        "https://192.0.2.999/",
        "https://localhost/",
        "https://[",
        "https://www.google.com/url?q=https://[",
        "https:///",
        "",
        "https://phish.example/" + "a" * 250,
    ],
)
def test_a_url_that_the_list_cannot_hold_is_refused(make_block: Any, value: str) -> None:
    """No error is raised for it."""
    refusal = refusal_for(make_block(value, kind="url"))
    assert refusal is not None
    assert refusal.reason in {"invalid", "protected-domain"}
    assert len(entry_key(make_block(value, kind="url"))[1]) <= 400
