"""Which blocks are refused, and how list entries are written and read."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from blocklist.rules import (
    AcceptedDomain,
    TenantListEntry,
    classify_refusal,
    ends_before,
    entry_key,
    entry_notes,
    find_entry,
    is_blocked,
    is_duplicate,
    is_same_end,
    latest_end,
    list_entry,
    own_domain_refusal,
    read_accepted_domains,
    refusal_for,
)

SOME_ID = UUID("99999999-9999-4999-8999-999999999999")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=1)


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
def test_an_address_and_a_domain_can_be_blocked(make_block: Any, value: str) -> None:
    """Any address or domain that DNS allows."""
    assert refusal_for(make_block(value)) is None


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
def test_what_is_neither_an_address_nor_a_domain_is_refused(make_block: Any, value: str, kind: str) -> None:
    """Exchange is not asked about it."""
    refusal = refusal_for(make_block(value, kind=kind))
    assert refusal is not None
    assert refusal.reason == "invalid"


@pytest.mark.parametrize("facts", [{"scope": "group"}, {"kind": "ip"}])
def test_a_block_with_an_unknown_scope_or_kind_is_refused(make_block: Any, facts: dict[str, str]) -> None:
    """It might be taken for a wider one."""
    refusal = refusal_for(make_block("bad@fabrikam.example", **facts))
    assert refusal is not None
    assert (refusal.reason, "not known" in refusal.detail) == ("invalid", True)


@pytest.mark.parametrize(
    "facts",
    [{"scope": "mailbox"}, {"scope": "mailbox", "mailbox": "user@contoso.example", "expires_at": LATER}],
)
def test_a_block_for_a_mailbox_names_it_and_has_no_end(make_block: Any, facts: dict[str, Any]) -> None:
    """Outlook's Blocked Senders list keeps its entries for ever."""
    refusal = refusal_for(make_block("bad@fabrikam.example", **facts))
    assert refusal is not None
    assert refusal.reason == "invalid"


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
def test_the_tenants_own_sites_are_not_blocked(make_block: Any, value: str, own: bool) -> None:
    """Its accepted domains, their parent and subdomains, and its SharePoint."""
    names = ("contoso.example", "contoso-tenant.onmicrosoft.com", "mail.group.example")
    refusal = own_domain_refusal(
        make_block(value, kind="url"), [AcceptedDomain(name, with_subdomains=False) for name in names]
    )
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
    make_block: Any, value: str, own: bool | None, scope: dict[str, str]
) -> None:
    """
    Entries apply to internal senders too: one spoofed colleague would cut off the real one.

    A subdomain that receives no mail (None) still belongs to the tenant; a user may block it for their own mailbox.
    """
    own = scope["scope"] == "tenant" if own is None else own
    accepted = [AcceptedDomain("contoso.example", False), AcceptedDomain("group.example", True)]
    refusal = own_domain_refusal(make_block(value, **scope), accepted)
    assert (refusal.reason if refusal else None) == ("own-domain" if own else None)


def test_accepted_domains_are_read_from_exchanges_rows() -> None:
    """Only a domain with MatchSubDomains covers its subdomains."""
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
    assert list_entry(value) == entry


@pytest.mark.parametrize(
    "listed", ["a+b@fabrikam.example", "A+B@Fabrikam.example", "a%2Bb@fabrikam.example", "a%2bb@fabrikam.example"]
)
def test_an_entry_is_found_however_exchange_spells_it(listed: str) -> None:
    """Encoded or not, in upper or lower case."""
    rows = [
        {"Identity": "other", "Value": "b@fabrikam.example"},
        {"Identity": "it", "Value": listed, "Action": "Block"},
    ]
    found = find_entry(rows, "a+b@fabrikam.example")
    assert found == TenantListEntry(identity="it", is_block=True, expires_at=None, made_for=None)


def test_another_value_is_not_taken_for_the_entry() -> None:
    """The entry of the domain is not that of the address."""
    assert find_entry([{"Identity": "x", "Value": "fabrikam.example"}], "bad@fabrikam.example") is None
    assert find_entry([], "bad@fabrikam.example") is None


def test_an_allow_entry_is_no_block() -> None:
    """Its end is read as for a block entry."""
    rows = [
        {
            "Identity": "x",
            "Value": "fabrikam.example",
            "Action": "Allow",
            "ExpirationDate": "2026-11-01T12:00:00.0000000Z",
        }
    ]
    assert find_entry(rows, "fabrikam.example") == TenantListEntry("x", is_block=False, expires_at=NOW, made_for=None)


@pytest.mark.parametrize("case_id", [None, SOME_ID])
def test_an_entry_is_recognised_by_its_notes(make_block: Any, case_id: UUID | None) -> None:
    """Even if an administrator has added a remark."""
    blocked = make_block("fabrikam.example", case_id=case_id)
    rows = [
        {
            "Identity": "x",
            "Value": "fabrikam.example",
            "Action": "Block",
            "Notes": f"{entry_notes(blocked)} (see ticket)",
        }
    ]
    found = find_entry(rows, "fabrikam.example")
    assert found is not None
    assert found.made_for == blocked.block_id


@pytest.mark.parametrize("notes", [None, "", "phish", "Backstop", f"block {SOME_ID}", f"Backstop block {SOME_ID}0"])
def test_an_entry_with_other_notes_is_somebody_elses(notes: str | None) -> None:
    """Backstop does not remove what it did not make."""
    rows = [{"Identity": "x", "Value": "fabrikam.example", "Action": "Block", "Notes": notes}]
    found = find_entry(rows, "fabrikam.example")
    assert found is not None
    assert found.made_for is None


def test_the_latest_end_is_the_last_one_or_never() -> None:
    """One entry serves all of its blocks."""
    assert latest_end([LATER, NOW]) == LATER
    assert latest_end([LATER, None, NOW]) is None


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
def test_ends_are_compared_with_a_tolerance(
    one: datetime | None,
    other: datetime | None,
    before: bool,
    same: bool,
) -> None:
    """Exchange stores times less precisely than Backstop does."""
    assert ends_before(one, other) is before
    assert is_same_end(one, other) is same


def test_a_mailbox_blocks_the_senders_and_domains_on_its_list() -> None:
    """Domains are listed with or without an @."""
    rows = [{"BlockedSendersAndDomains": ["Bad@fabrikam.example", "@spam.example"]}]

    assert is_blocked(rows, "bad@fabrikam.example")
    assert is_blocked(rows, "spam.example")
    assert not is_blocked(rows, "fabrikam.example")
    assert not is_blocked([{"BlockedSendersAndDomains": None}], "bad@fabrikam.example")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("The limit of 500 Block entries for ListType Sender has been reached.", "limit"),
        ("You have exceeded the maximum number of entries.", "limit"),
        ("Too many entries.", "limit"),
        ("A parameter cannot be found that matches parameter name 'Entry'.", "refused"),
        ("Limited value.", "refused"),
        ("", "refused"),
    ],
)
def test_a_full_list_is_distinguished_from_other_refusals(error: str, reason: str) -> None:
    """An administrator can make room; Microsoft's message is passed on unchanged."""
    assert classify_refusal(error) == (reason, error)


@pytest.mark.parametrize(
    ("error", "duplicate"),
    [
        ("Invalid value to add: bad@fabrikam.example - Duplicate value.", True),
        ("An entry for this value already exists.", True),
        ("The value is not valid.", False),
    ],
)
def test_a_refused_duplicate_is_recognised(error: str, duplicate: bool) -> None:
    """The sender may be blocked already, so the block has not failed."""
    assert is_duplicate(error) is duplicate


def test_blocks_of_the_same_value_share_one_entry(make_block: Any) -> None:
    """Per list: the tenant's and each mailbox's are separate."""
    in_mailbox = {"scope": "mailbox", "mailbox": "User@contoso.example"}

    assert entry_key(make_block("Bad@fabrikam.example")) == entry_key(make_block("bad@fabrikam.example"))
    assert entry_key(make_block("bad@fabrikam.example", **in_mailbox)) == (
        "user@contoso.example",
        "bad@fabrikam.example",
    )


def test_an_entry_key_fits_a_database_index(make_block: Any) -> None:
    """Whatever a forged sender contains."""
    _, value = entry_key(make_block("\x00\ud7ff\n" * 5000 + "@fabrikam.example"))
    assert len(value) <= 400
    assert value.isprintable()
