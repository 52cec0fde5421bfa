"""What may be blocked, and what an entry that is there already means."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from backstop_contracts import Block
from blocklist.rules import (
    AcceptedDomain,
    Found,
    ends_before,
    entry_of,
    is_blocked,
    is_same_end,
    latest,
    notes_of,
    place_of,
    read_accepted_domains,
    read_entry,
    read_refusal,
    refuse,
    refuse_own,
    says_duplicate,
)

SOME_ID = UUID("99999999-9999-4999-8999-999999999999")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=1)


def block(value: str, **facts: Any) -> Block:
    """Make a wish."""
    kind = "sender" if "@" in value else "domain"
    return Block.model_validate({"block_id": uuid4(), "scope": "tenant", "kind": kind, "value": value, **facts})


@pytest.mark.parametrize(
    "value",
    [
        "bad@fabrikam.example",
        "Bad.One+list=7@mail.fabrikam.example",
        "o'neill_&-~%40@fabrikam.example",
        "jörg@xn--mnchen-3ya.example",
        "x" * 64 + "@fabrikam.example",
        "fabrikam.example",
        "a-1.fabrikam.example",
        "123.example",
    ],
)
def test_an_address_and_a_domain_can_be_blocked(value: str) -> None:
    """Whatever a mail may come from, as DNS knows it."""
    assert refuse(block(value)) is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("", "sender"),
        ("bad", "sender"),
        ("@fabrikam.example", "sender"),
        ("bad@", "sender"),
        ("bad@example", "sender"),
        ("a@b@fabrikam.example", "sender"),
        ("bad one@fabrikam.example", "sender"),
        ("bad\u00a0one@fabrikam.example", "sender"),
        ("bad\n@fabrikam.example", "sender"),
        ("bad\x00@fabrikam.example", "sender"),
        ("bad\u200b@fabrikam.example", "sender"),
        ("bad@fabrikam.example\n", "sender"),
        (" bad@fabrikam.example", "sender"),
        ('"bad"@fabrikam.example', "sender"),
        ("<bad@fabrikam.example>", "sender"),
        ("a@fabrikam.example,b@fabrikam.example", "sender"),
        ("x" * 65 + "@fabrikam.example", "sender"),
        ("ö" * 33 + "@fabrikam.example", "sender"),
        ("bad@münchen.example", "sender"),
        ("bad@192.0.2.7", "sender"),
        ("fabrikam.example", "sender"),
        ("", "domain"),
        ("example", "domain"),
        (".example", "domain"),
        ("fabrikam..example", "domain"),
        ("-bad.example", "domain"),
        ("*.fabrikam.example", "domain"),
        ("fabrikam.example/", "domain"),
        ("fabrikam.example\n", "domain"),
        ("192.0.2.7", "domain"),
        ("x" * 64 + ".example", "domain"),
        (".".join(["x" * 60] * 5) + ".example", "domain"),
        ("bad@fabrikam.example", "domain"),
    ],
)
def test_nothing_else_can_be_blocked(value: str, kind: str) -> None:
    """Exchange is not asked about what cannot be an address or a domain."""
    refusal = refuse(block(value, kind=kind))
    assert refusal is not None
    assert refusal.reason == "invalid"


@pytest.mark.parametrize("facts", [{"scope": "group"}, {"kind": "ip"}])
def test_a_block_of_a_later_producer_is_refused(facts: dict[str, str]) -> None:
    """A scope or kind that is not known here blocks nothing: it might be taken for a wider one."""
    refusal = refuse(block("bad@fabrikam.example", **facts))
    assert refusal is not None
    assert (refusal.reason, "not known" in refusal.detail) == ("invalid", True)


@pytest.mark.parametrize(
    "facts",
    [{"scope": "mailbox"}, {"scope": "mailbox", "mailbox": "user@contoso.example", "expires_at": LATER}],
)
def test_a_block_for_a_mailbox_names_it_and_has_no_end(facts: dict[str, Any]) -> None:
    """Outlook's Blocked Senders list keeps its entries for ever."""
    refusal = refuse(block("bad@fabrikam.example", **facts))
    assert refusal is not None
    assert refusal.reason == "invalid"


def test_a_domain_of_many_strangers_is_blocked_by_single_addresses_only() -> None:
    """Whatever its case; a domain that merely looks like it may be blocked."""
    protected = frozenset({"mail.example"})
    refusal = refuse(block("Mail.example"), protected)

    assert refusal is not None
    assert refusal.reason == "protected-domain"
    assert refuse(block("bad@mail.example"), protected) is None
    assert refuse(block("evil-mail.example"), protected) is None
    assert refuse(block("news.mail.example"), protected) is not None


SHARED = [
    # Domains below which strangers have their own.
    "co.uk",
    "com.au",
    "github.io",
    "azurewebsites.net",
    # Providers of mail: everybody's domain.
    "gmail.com",
    "t-online.de",
    "comcast.net",
    "yahoo.co.uk",
    "hotmail.fr",
    "seznam.cz",
    # Services that send for whoever uses them: the domain, those below it, and its addresses.
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
NOT_SHARED = [
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


@pytest.mark.parametrize(("value", "is_shared"), [*((v, True) for v in SHARED), *((v, False) for v in NOT_SHARED)])
def test_a_tenant_blocks_nobody_who_is_shared_by_strangers(value: str, is_shared: bool) -> None:
    """The reason says what to do instead."""
    refusal = refuse(block(value))
    assert (refusal is not None) is is_shared
    assert refusal is None or refusal.reason == "protected-domain"


def test_a_user_may_block_the_address_of_a_service_for_their_own_mailbox() -> None:
    """Nobody else is hit."""
    facts = {"scope": "mailbox", "mailbox": "user@contoso.example"}
    assert refuse(block("no-reply@sharepointonline.com", **facts)) is None
    assert refuse(block("gmail.com", **facts)) is not None


def url(value: str) -> Block:
    """Make a wish to block a URL."""
    return Block(block_id=uuid4(), scope="tenant", kind="url", value=value)


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
        # One thing of strangers that share a site.
        ("https://docs.google.com/forms/d/e/1FAIpQLSc0xYz-9/viewform?usp=pp_url", None),
        ("https://forms.office.com/r/AbCdEfGh", None),
        ("https://evil-my.sharepoint.com/:x:/g/personal/x_evil/EaBcD1234567?e=4", None),
        ("https://bit.ly/evil-3", None),
        ("https://github.com/evil/evil", None),
        ("https://s3.amazonaws.com/evil-bucket/index.html", None),
        # Hosts that are one customer's.
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
def test_a_url_is_blocked_as_the_entry_that_is_really_bad(asked: str, entry: str | None) -> None:
    """Wrappers are undone, and the rest is host and path."""
    assert refuse(url(asked)) is None
    _, place = place_of(url(asked))
    assert entry is None or place == f"https://{entry}".lower()
    assert f"https://{entry_of(place)}" == place


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
def test_a_url_that_strangers_share_is_not_blocked(value: str) -> None:
    """An entry has no query, so what is told apart by it alone would be blocked for everybody."""
    refusal = refuse(url(value))
    assert refusal is not None
    assert refusal.reason == "protected-domain"


@pytest.mark.parametrize("inside", ["contoso.example", "docs.google.com/", "login.microsoftonline.com/common"])
def test_a_url_is_not_blocked_for_what_is_found_in_it_too_late(inside: str) -> None:
    """Each look undoes some layers: the refusals and the entry must see the same URL."""
    refusal = refuse(url("https://" + "google.com/amp/s/" * 9 + inside))
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
def test_what_the_list_cannot_hold_is_no_url(value: str) -> None:
    """Refused, and nothing raises."""
    refusal = refuse(url(value))
    assert refusal is not None
    assert refusal.reason in {"invalid", "protected-domain"}
    assert len(place_of(url(value))[1]) <= 400


@pytest.mark.parametrize(
    ("value", "own"),
    [
        ("https://contoso.example/x", True),
        ("https://intranet.contoso.example/x", True),
        ("https://contoso-tenant.sharepoint.com/sites/EvilSite", True),
        ("https://contoso-tenant-my.sharepoint.com/personal/EvilSite", True),
        ("https://nam02.safelinks.protection.outlook.com/?url=https%3A%2F%2Fcontoso.example%2Fx", True),
        ("https://group.example/", True),
        ("https://evil-tenant.sharepoint.com/sites/EvilSite", False),
        ("https://contoso.example.evil.example/", False),
        ("https://evilcontoso.example/", False),
    ],
)
def test_the_tenants_own_sites_are_not_blocked(value: str, own: bool) -> None:
    """Those of its domains, what covers them, and its SharePoint."""
    names = ("contoso.example", "contoso-tenant.onmicrosoft.com", "mail.group.example")
    refusal = refuse_own(url(value), [AcceptedDomain(name, with_subdomains=False) for name in names])
    assert (refusal.reason if refusal else None) == ("own-domain" if own else None)


@pytest.mark.parametrize(
    ("value", "own"),
    [
        ("contoso.example", True),
        ("CONTOSO.example", True),
        ("ceo@contoso.example", True),
        ("ceo@Contoso.Example", True),
        ("hr.contoso.example", None),
        ("x@hr.contoso.example", None),
        ("group.example", True),
        ("mail.group.example", True),
        ("x@deep.mail.group.example", True),
        ("notgroup.example", False),
        ("contoso.example.evil.example", False),
        ("evilcontoso.example", False),
        ("fabrikam.example", False),
    ],
)
@pytest.mark.parametrize("scope", [{"scope": "tenant"}, {"scope": "mailbox", "mailbox": "user@contoso.example"}])
def test_the_tenants_own_domains_and_addresses_are_not_blocked(
    value: str, own: bool | None, scope: dict[str, str]
) -> None:
    """
    Entries hold for internal senders too: one spoofed colleague would cut the real one off.

    What is below an own domain and receives no mail (None) is the tenant's all the same; a user need not read it.
    """
    own = scope["scope"] == "tenant" if own is None else own
    accepted = [AcceptedDomain("contoso.example", False), AcceptedDomain("group.example", True)]
    refusal = refuse_own(block(value, **scope), accepted)
    assert (refusal.reason if refusal else None) == ("own-domain" if own else None)


def test_accepted_domains_are_read_from_exchanges_rows() -> None:
    """Only a domain that says so covers its subdomains."""
    rows: list[dict[str, Any]] = [
        {"DomainName": "Contoso.example", "DomainType": "Authoritative", "MatchSubDomains": False},
        {"DomainName": "group.example", "DomainType": "InternalRelay", "MatchSubDomains": True},
        {"DomainName": None},
    ]
    assert read_accepted_domains(rows) == (
        AcceptedDomain("contoso.example", with_subdomains=False),
        AcceptedDomain("group.example", with_subdomains=True),
    )


@pytest.mark.parametrize(
    ("value", "entry"),
    [
        ("fabrikam.example", "fabrikam.example"),
        ("first.last_1-x@fabrikam.example", "first.last_1-x@fabrikam.example"),
        ("a+b@fabrikam.example", "a%2Bb@fabrikam.example"),
        ("100%~@fabrikam.example", "100%25%7E@fabrikam.example"),
        ("jörg@fabrikam.example", "j%C3%B6rg@fabrikam.example"),
    ],
)
def test_special_characters_of_an_address_are_percent_encoded(value: str, entry: str) -> None:
    """The Tenant Allow/Block List refuses them otherwise."""
    assert entry_of(value) == entry


@pytest.mark.parametrize(
    "shown", ["a+b@fabrikam.example", "A+B@Fabrikam.example", "a%2Bb@fabrikam.example", "a%2bb@fabrikam.example"]
)
def test_an_entry_is_found_however_exchange_spells_it(shown: str) -> None:
    """Encoded or not, upper or lower case."""
    rows = [{"Identity": "other", "Value": "b@fabrikam.example"}, {"Identity": "it", "Value": shown, "Action": "Block"}]
    found = read_entry(rows, "a+b@fabrikam.example")
    assert found == Found(identity="it", blocks=True, ends=None, maker=None)


def test_another_value_is_not_taken_for_the_entry() -> None:
    """The domain's entry says nothing about the address."""
    assert read_entry([{"Identity": "x", "Value": "fabrikam.example"}], "bad@fabrikam.example") is None
    assert read_entry([], "bad@fabrikam.example") is None


def test_an_allow_entry_does_not_block() -> None:
    """And it ends when it says."""
    rows = [
        {
            "Identity": "x",
            "Value": "fabrikam.example",
            "Action": "Allow",
            "ExpirationDate": "2026-11-01T12:00:00.0000000Z",
        }
    ]
    assert read_entry(rows, "fabrikam.example") == Found("x", blocks=False, ends=NOW, maker=None)


@pytest.mark.parametrize("case_id", [None, SOME_ID])
def test_an_entry_is_known_by_its_notes(case_id: UUID | None) -> None:
    """Also when an administrator has added a remark."""
    wish = block("fabrikam.example", case_id=case_id)
    rows = [
        {"Identity": "x", "Value": "fabrikam.example", "Action": "Block", "Notes": f"{notes_of(wish)} (see ticket)"}
    ]
    found = read_entry(rows, "fabrikam.example")
    assert found is not None
    assert found.maker == wish.block_id


@pytest.mark.parametrize("notes", [None, "", "phish", "Backstop", f"block {SOME_ID}", f"Backstop block {SOME_ID}0"])
def test_any_other_notes_are_somebody_elses(notes: str | None) -> None:
    """What we did not make, we do not remove."""
    rows = [{"Identity": "x", "Value": "fabrikam.example", "Action": "Block", "Notes": notes}]
    found = read_entry(rows, "fabrikam.example")
    assert found is not None
    assert found.maker is None


def test_the_latest_end_counts_and_never_is_the_latest() -> None:
    """One entry serves all who want it."""
    assert latest([LATER, NOW]) == LATER
    assert latest([LATER, None, NOW]) is None


@pytest.mark.parametrize(
    ("one", "other", "before", "same"),
    [
        (NOW, LATER, True, False),
        (LATER, NOW, False, False),
        (NOW, None, True, False),
        (None, NOW, False, False),
        (None, None, False, True),
        (NOW, NOW + timedelta(seconds=59), False, True),
        (NOW + timedelta(seconds=59), NOW, False, True),
    ],
)
def test_ends_are_compared_with_slack(
    one: datetime | None,
    other: datetime | None,
    before: bool,
    same: bool,
) -> None:
    """Exchange keeps times less precisely than we do."""
    assert ends_before(one, other) is before
    assert is_same_end(one, other) is same


def test_a_mailbox_blocks_what_is_on_its_list() -> None:
    """Domains are listed with or without an @."""
    rows = [{"BlockedSendersAndDomains": ["Bad@fabrikam.example", "@spam.example"]}]

    assert is_blocked(rows, "bad@fabrikam.example")
    assert is_blocked(rows, "spam.example")
    assert not is_blocked(rows, "fabrikam.example")
    assert not is_blocked([{"BlockedSendersAndDomains": None}], "bad@fabrikam.example")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("The limit of 500 Block entries for ListType Sender has been reached.", "limit"),
        ("You have exceeded the maximum number of entries.", "limit"),
        ("Too many entries.", "limit"),
        ("A parameter cannot be found that matches parameter name 'Entry'.", "refused"),
        ("Limited value.", "refused"),
        ("", "refused"),
    ],
)
def test_a_full_list_is_told_apart_from_other_refusals(words: str, reason: str) -> None:
    """An administrator can make room; Microsoft's own words are kept."""
    assert read_refusal(words) == (reason, words)


@pytest.mark.parametrize(
    ("words", "duplicate"),
    [
        ("Invalid value to add: bad@fabrikam.example - Duplicate value.", True),
        ("An entry for this value already exists.", True),
        ("The value is not valid.", False),
    ],
)
def test_a_refused_duplicate_is_recognised(words: str, duplicate: bool) -> None:
    """It is no reason to tell anybody that the sender will not be blocked."""
    assert says_duplicate(words) is duplicate


def test_blocks_of_the_same_value_share_one_entry() -> None:
    """In one list; the tenant's list and each mailbox have their own."""
    in_mailbox = {"scope": "mailbox", "mailbox": "User@contoso.example"}

    assert place_of(block("Bad@fabrikam.example")) == place_of(block("bad@fabrikam.example"))
    assert place_of(block("bad@fabrikam.example", **in_mailbox)) == ("user@contoso.example", "bad@fabrikam.example")


def test_an_entrys_name_fits_into_a_database_index() -> None:
    """Whatever a forged sender holds."""
    _, value = place_of(block("\x00\ud7ff\n" * 5000 + "@fabrikam.example"))
    assert len(value) <= 400
    assert value.isprintable()
