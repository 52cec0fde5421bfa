"""Each fact of a mail, from small mails made by hand."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from mail import MailFacts, parse

Compose = Callable[..., bytes]

HEAD = b"From: Ann <ann@example.com>\nDate: Mon, 2 Nov 2026 10:00:00 +0100\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n\n\n",
        b"%PDF-1.7\nSubject: a paper\n\n",
        b'{\n"from": "ann@example.com",\n"subject": "x"\n}',
        b'{"subject":"x"}',
        b"<!DOCTYPE html>\n<html>\n<body>\nFrom: ann@example.com\n</body></html>",
        b"\xef\xbb\xbf<html>\nSubject: x\n</html>",
        b"just a line of text",
        b"key: value\nother: value\n",
        b"PK\x03\x04" + bytes(range(256)),
        bytes(range(256)) * 8,
    ],
)
def test_what_carries_no_field_of_a_mail_is_no_mail(raw: bytes) -> None:
    """An empty file, a document, a page or noise has a hash and a size, and no other fact."""
    sha256 = hashlib.sha256(raw).hexdigest()
    assert parse(raw) == MailFacts(sha256, len(raw), is_mail=False, defects=("not-a-mail",))


@pytest.mark.parametrize(
    "raw",
    [
        b"Subject: x",
        b"From: ann@example.com",
        b"\n\nSubject: after blank lines\n\nx",
        b"\xef\xbb\xbfSubject: after a byte order mark\n\nx",
        b"From ann@example.com Mon Nov  2 10:00:00 2026\nSubject: in an mbox\n\nx",
        b"this line is broken\nSubject: x\n\nx",
        b"Subject: no blank line\nHello Bob,\nhow are you?\n",
        b"SUBJECT : obsolete\r\n\r\nx",
        b"Received: by example.com\rSubject: carriage returns only\r\rx",
    ],
)
def test_a_broken_mail_is_a_mail(raw: bytes) -> None:
    """One field that only mails have is enough, whatever else is wrong."""
    assert parse(raw).is_mail


def test_a_mail_of_carriage_returns_has_lines() -> None:
    """What an old program saved with carriage returns alone is read line by line."""
    facts = parse(b"From: ann@example.com\rSubject: old\r\rhttp://old.example\r")
    assert (facts.from_address, facts.subject, facts.urls) == ("ann@example.com", "old", ("http://old.example",))


def test_the_hash_is_that_of_the_raw_bytes(mail: Compose) -> None:
    """The hash and the size identify the mail as it came, not as it was understood."""
    raw = mail("Subject: x").replace(b"\n", b"\r\n")
    facts = parse(raw)
    assert (facts.sha256, facts.size) == (hashlib.sha256(raw).hexdigest(), len(raw))


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Message-ID: <a.1@example.com>", "<a.1@example.com>"),
        ("Message-Id:\n  <a.1@example.com>  ", "<a.1@example.com>"),
        ("Message-ID: <a.1\n @example.com>", "<a.1@example.com>"),
        ("Message-ID: a.1@example.com", "a.1@example.com"),
        ("Message-ID: <>", None),
        ("Message-ID: ", None),
        ("X-Other: <a@example.com>", None),
    ],
)
def test_the_message_id_is_trimmed_and_keeps_its_brackets(mail: Compose, field: str, expected: str | None) -> None:
    """Two copies of one mail have one Message-ID, however it was folded."""
    assert parse(mail(field)).internet_message_id == expected


GUID, OTHER_GUID = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([f"X-MS-Exchange-Organization-Network-Message-Id: {GUID.upper()}"], GUID),
        ([f"X-MS-Office365-Filtering-Correlation-Id: {GUID}"], GUID),
        (
            [
                f"X-MS-Office365-Filtering-Correlation-Id: {OTHER_GUID}",
                f"X-MS-Exchange-Organization-Network-Message-Id: {GUID}",
            ],
            GUID,
        ),
        (["X-MS-Exchange-Organization-Network-Message-Id: made up"], None),
        ([], None),
    ],
)
def test_the_network_message_id_is_exchange_onlines_own(mail: Compose, fields: list[str], expected: str | None) -> None:
    """The organisation's field comes before the correlation id, and only a GUID counts."""
    assert parse(mail(*fields)).network_message_id == expected


def test_the_tenant_that_received_the_mail_is_known(mail: Compose) -> None:
    """X-MS-Exchange-CrossTenant-Id names the tenant."""
    assert parse(mail(f"X-MS-Exchange-CrossTenant-Id: {GUID}")).cross_tenant_id == GUID


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("plain", "plain"),
        ("folded\n\tonce", "folded once"),
        ("=?utf-8?q?caf=C3=A9?=", "café"),
        ("=?UTF-8?B?Y2Fmw6k=?= =?utf-8?q?_au_lait?=", "café au lait"),
        ("=?utf-8?b?ww==?=\n =?utf-8?b?qQ==?=", "é"),
        ("Re: =?iso-8859-1*en?q?caf=E9?= today", "Re: café today"),
        ("=?iso-2022-jp?B?GyRCJF4kXyRgJGEkYhsoQg==?=", "まみむめも"),
        ("=?utf-8?q?really??=", "really?"),
        ("=?nonsense?q?abc?=", "abc"),
        ("=?utf-8?b?!!!?=", None),
        ("=?utf-8?q?unclosed", "=?utf-8?q?unclosed"),
        ("=?utf-8?q?a=00b?=", "a b"),
        ("=?utf-7?q?+2AA-?=", "?"),
        ("", None),
    ],
)
def test_the_subject_is_decoded(mail: Compose, subject: str, expected: str | None) -> None:
    """Encoded words become text, words side by side become one, and what cannot be decoded stays."""
    assert parse(mail(f"Subject: {subject}")).subject == expected


@pytest.mark.parametrize(
    ("raw_subject", "expected"),
    [("grün".encode(), "grün"), ("grün".encode("latin-1"), "grün"), (b"price 5\x80", "price 5€")],
)
def test_a_subject_of_raw_bytes_is_read_as_utf8_or_else_as_windows_1252(raw_subject: bytes, expected: str) -> None:
    """One field in another charset does not spoil the other fields."""
    facts = parse(HEAD + b"X-Other: \xe9\nReply-To: " + "Zoë <zoe@example.com>".encode() + b"\nSubject: " + raw_subject)
    assert facts.subject == expected


@pytest.mark.parametrize(
    ("sender", "address", "name"),
    [
        ("ann@example.com", "ann@example.com", None),
        ("Ann <Ann@EXAMPLE.Com>", "Ann@example.com", "Ann"),
        ('"Doe, Ann" <ann@example.com>', "ann@example.com", "Doe, Ann"),
        ("ann@example.com (Ann)", "ann@example.com", "Ann"),
        ("=?utf-8?q?Zo=C3=AB=2C?= <zoe@example.com>", "zoe@example.com", "Zoë,"),
        ("=?utf-8?q?Zo=C3=AB_=3Czoe=40example=2Ecom=3E?=", "zoe@example.com", None),
        ('"boss@example.com" <thief@example.net>', "thief@example.net", "boss@example.com"),
        ("boss@example.com <thief@example.net>", "thief@example.net", "boss@example.com"),
        ("=?utf-8?q?boss=40example=2Ecom?= <thief@example.net>", "thief@example.net", "boss@example.com"),
        ('"only@example.com"', "only@example.com", None),
        ("ann@bücher.example", "ann@xn--bcher-kva.example", None),
        ("ann@BÜCHER。example", "ann@xn--bcher-kva.example", None),
        ("ann@XN--BCHER-KVA.example.", "ann@xn--bcher-kva.example", None),
        ("<@relay.example.net:ann@example.com>", "ann@example.com", None),
        (
            "ann@\U0001d41b\U0001d41a\U0001d427\U0001d424.example",
            "ann@\U0001d41b\U0001d41a\U0001d427\U0001d424.example",
            None,
        ),
        ('"Ann" <"ann@example.com">', "ann@example.com", "Ann"),
        ("ann@here@example.com", "ann@here@example.com", None),
        ("ann@example.com, bob@example.com", "ann@example.com", None),
        ("(((<<<ann@example.com", "ann@example.com", None),
        ("Ann <ann(at (\\(home)@example.com>", "ann(at@example.com", "Ann"),
        (f"{'x' * 300}ann@example.com (Ann)", f"{'x' * 197}ann@example.com", "Ann"),
    ],
)
def test_the_sender_is_the_address_that_mail_programs_answer_to(sender: str, address: str, name: str | None) -> None:
    """The address in angle brackets counts, never one in the display name; the domain is in DNS's form."""
    facts = parse(f"From: {sender}\n\n".encode())
    assert (facts.from_address, facts.from_name) == (address, name)
    assert facts.from_domain == address.rpartition("@")[2]


@pytest.mark.parametrize("sender", ["", "From:\n", "From: nobody\n", "From: <>\n", "From: undisclosed-recipients:;\n"])
def test_a_mail_without_a_sender_says_so(sender: str) -> None:
    """A From without an address is a defect and no fact."""
    facts = parse(f"{sender}Subject: x\n\n".encode())
    assert (facts.from_address, facts.from_domain) == (None, None)
    assert "no-from" in facts.defects


def test_the_topmost_of_several_senders_counts() -> None:
    """A second From is a trick that is named."""
    facts = parse(b"From: ann@example.com\nFrom: bob@example.net\n\n")
    assert facts.from_address == "ann@example.com"
    assert "several-from" in facts.defects


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["Return-Path: <Bounce@EXAMPLE.net>"], "Bounce@example.net"),
        (["Return-Path: <>", "Authentication-Results: spf=pass smtp.mailfrom=example.org"], None),
        (["Authentication-Results: spf=pass smtp.mailfrom=example.org; dkim=none"], "example.org"),
        ([], None),
    ],
)
def test_the_envelope_sender_is_the_return_path_or_what_spf_checked(
    mail: Compose, fields: list[str], expected: str | None
) -> None:
    """An empty Return-Path is an answer; only without one is SPF's domain taken."""
    assert parse(mail(*fields)).envelope_sender == expected


def test_recipients_are_the_addresses_of_to_and_cc_once_each(mail: Compose) -> None:
    """Names, groups, repetitions and separators of Outlook do not matter."""
    facts = parse(
        mail(
            'To: "Bob, B." <bob@example.com>; carl@EXAMPLE.com',
            "Cc: team: dan@example.com, BOB@example.com;, eve@example.com (Eve)",
            "Delivered-To: bob@example.com",
            "Reply-To: Help <help@example.net>",
        )
    )
    assert facts.recipients == ("bob@example.com", "carl@example.com", "dan@example.com", "eve@example.com")
    assert (facts.delivered_to, facts.reply_to) == ("bob@example.com", "help@example.net")


@pytest.mark.parametrize(
    ("date", "expected", "defect"),
    [
        ("Mon, 2 Nov 2026 10:00:00 +0100", datetime(2026, 11, 2, 9, tzinfo=UTC), None),
        ("2 Nov 2026 10:00:00 -0000", datetime(2026, 11, 2, 10, tzinfo=UTC), None),
        ("Mon, 2 Nov 2026 10:00:00 GMT (comment)", datetime(2026, 11, 2, 10, tzinfo=UTC), None),
        ("yesterday", None, "bad-date"),
        ("Mon, 99 Nov 2026 99:00:00 +0100", None, "bad-date"),
        ("Fri, 31 Dec 9999 23:59:59 -1400", None, "bad-date"),
        ("9" * 5000, None, "bad-date"),
        ("", None, "no-date"),
    ],
)
def test_the_date_is_aware_utc_or_a_defect(date: str, expected: datetime | None, defect: str | None) -> None:
    """No date is better than a guessed one."""
    facts = parse(f"From: ann@example.com\nDate: {date}\n\n".encode())
    assert facts.date == expected
    assert set(facts.defects) == ({defect} if defect else set())


def test_the_mail_was_received_when_the_last_server_says(mail: Compose) -> None:
    """Servers write Received above what is there, so the topmost that has a date counts."""
    facts = parse(
        b"Received: from a by b\n"
        b"Received: from c by d; Mon, 2 Nov 2026 10:00:05 +0000\n"
        b"Received: from e by f; Mon, 2 Nov 2026 09:00:00 +0000\n" + mail()
    )
    assert facts.received_at == datetime(2026, 11, 2, 10, 0, 5, tzinfo=UTC)
