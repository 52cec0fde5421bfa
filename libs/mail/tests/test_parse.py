"""Each fact of a mail, from small mails made by hand."""

import base64
import hashlib
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from mail import MailFacts, normal_url, parse
from mail.wrappers import _REDIRECTORS, _WRAPPERS

HEAD = b"From: Ann <ann@example.com>\nDate: Mon, 2 Nov 2026 10:00:00 +0100\n"


def mail(*fields: str, body: str = "") -> bytes:
    """Return a mail with a sender, a date and *fields*."""
    return HEAD + "".join(f"{field}\n" for field in fields).encode() + b"\n" + body.encode()


def multipart(*parts: str, kind: str = "mixed") -> bytes:
    """Return a mail of *parts*."""
    body = "".join(f"--cut\n{part}\n" for part in parts) + "--cut--\n"
    return mail(f'Content-Type: multipart/{kind}; boundary="cut"', body=body)


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


def test_the_hash_is_that_of_the_raw_bytes() -> None:
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
def test_the_message_id_is_trimmed_and_keeps_its_brackets(field: str, expected: str | None) -> None:
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
def test_the_network_message_id_is_exchange_onlines_own(fields: list[str], expected: str | None) -> None:
    """The organisation's field comes before the correlation id, and only a GUID counts."""
    assert parse(mail(*fields)).network_message_id == expected


def test_the_tenant_that_received_the_mail_is_known() -> None:
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
def test_the_subject_is_decoded(subject: str, expected: str | None) -> None:
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
def test_the_envelope_sender_is_the_return_path_or_what_spf_checked(fields: list[str], expected: str | None) -> None:
    """An empty Return-Path is an answer; only without one is SPF's domain taken."""
    assert parse(mail(*fields)).envelope_sender == expected


def test_recipients_are_the_addresses_of_to_and_cc_once_each() -> None:
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


def test_the_mail_was_received_when_the_last_server_says() -> None:
    """Servers write Received above what is there, so the topmost that has a date counts."""
    facts = parse(
        b"Received: from a by b\n"
        b"Received: from c by d; Mon, 2 Nov 2026 10:00:05 +0000\n"
        b"Received: from e by f; Mon, 2 Nov 2026 09:00:00 +0000\n" + mail()
    )
    assert facts.received_at == datetime(2026, 11, 2, 10, 0, 5, tzinfo=UTC)


def test_urls_come_from_texts_links_images_and_forms() -> None:
    """Everything that a click or a mere look at the mail would open, each once, in the order of the mail."""
    html = (
        '<a href="http://A.example/?a=1&amp;b=2">x</a><a href="http://a.example/?a=1&amp;b=2">again</a>'
        "<img src=//img.example/p.gif><form action='https://form.example/login'><button formaction=http://b.example>"
        '<area href="https:\\\\back.example\\x"><a href="ht\ntps://split.example">x</a><a href="https:single.example">'
        '<meta http-equiv="Refresh" content="0; URL=http://refresh.example/">'
        '<a href="mailto:a@example.com"><a href="javascript:x"><a href="#top"><a href="cid:1"><a href="/relative">'
        "<p>see www.shown.example, or http://text.example/(x)."
    )
    facts = parse(
        multipart(
            "Content-Type: text/plain\n\nFirst <https://plain.example/path>, then http://plain.example:8080/x!",
            f"Content-Type: text/html\n\n{html}",
        )
    )
    assert facts.urls == (
        "https://plain.example/path",
        "http://plain.example:8080/x",
        "http://a.example/?a=1&b=2",
        "http://img.example/p.gif",
        "https://form.example/login",
        "http://b.example",
        "https://back.example/x",
        "https://split.example",
        "https://single.example",
        "http://refresh.example/",
        "http://www.shown.example",
        "http://text.example/(x)",
    )


def test_links_that_only_outlook_shows_are_found() -> None:
    """Outlook renders conditional comments, so a link in one is a link."""
    html = (
        '<!--[if mso]><a href="http://outlook.example">x</a><![endif]-->'
        '<!--[if !mso]><!--><a href="http://others.example">x</a><!--<![endif]--><a href="http://all.example">x</a>'
        '<!-- <a href="http://nobody.example"> -->'
    )
    facts = parse(mail("Content-Type: text/html", body=html))
    assert facts.urls == ("http://outlook.example", "http://others.example", "http://all.example")


@pytest.mark.parametrize(
    ("wrapped", "target"),
    [
        (
            "https://eur01.safelinks.protection.outlook.com/?url=https%3A%2F%2Fevil.example%2Fa%3Fb%3D1&data=05%7Cbob",
            "https://evil.example/a?b=1",
        ),
        ("https://usg01.safelinks.protection.office365.us/?url=https%3A%2F%2Fevil.example%2F", "https://evil.example/"),
        (
            "https://nam02.safelinks.protection.outlook.com/?url="
            + quote("https://eur01.safelinks.protection.outlook.com/?url=https%3A%2F%2Fevil.example%2Fa&data=1"),
            "https://evil.example/a",
        ),
        ("https://urldefense.proofpoint.com/v1/url?u=http%3A%2F%2Fevil.example%2Fa&k=x", "http://evil.example/a"),
        (
            "https://urldefense.proofpoint.com/v2/url?u=https-3A__evil.example_a-3Fb-3D1&d=x",
            "https://evil.example/a?b=1",
        ),
        ("https://urldefense.com/v3/__https://evil.example/a__;!!x", "https://evil.example/a"),
        ("https://urldefense.com/v3/__https:/evil.example/a*b**A__;P8Ok!!x!y$", "https://evil.example/a?b\u00e4"),
        ("https://linkprotect.cudasvc.com/url?a=https%3a%2f%2fevil.example%2fa&c=E,1", "https://evil.example/a"),
        ("https://secure-web.cisco.com/1a-b/https%3A%2F%2Fevil.example%2Fa", "https://evil.example/a"),
        ("https://clicktime.symantec.com/a/1/x?d=y&u=https%3A%2F%2Fevil.example%2Fa", "https://evil.example/a"),
        (
            "https://eu.protection.sophos.com/?d=evil.example&u=aHR0cHM6Ly9ldmlsLmV4YW1wbGUvYQ==",
            "https://evil.example/a",
        ),
        ("https://www.google.com/url?sa=t&q=https://evil.example/a&x=1", "https://evil.example/a"),
        ("https://google.co.uk/url?url=https%3A%2F%2Fevil.example%2Fa", "https://evil.example/a"),
        ("https://www.google.com/amp/s/evil.example/a", "https://evil.example/a"),
        ("https://www.bing.com/ck/a?!&u=a1aHR0cHM6Ly9ldmlsLmV4YW1wbGUvYQ&ntb=1", "https://evil.example/a"),
        ("https://www.google.com/url?q=cats&url=https://evil.example/a", "https://evil.example/a"),
        # What only looks like a wrapper, or does not tell.
        ("https://www.google.com/search?q=https://evil.example/a", None),
        ("https://safelinks.protection.outlook.com.evil.example/?url=https://good.example/", None),
        ("https://url.uk.m.mimecastprotect.com/s/AbC123?domain=evil.example", None),
        ("https://eur01.safelinks.protection.outlook.com/?url=evil", None),
        ("https://urldefense.com/v3/__", None),
        ("https://protection.sophos.com/?u=%FF", None),
    ],
)
def test_wrappers_are_undone(wrapped: str, target: str | None) -> None:
    """What a service rewrote on delivery is the recipient's; the indicator is where it leads."""
    assert normal_url(wrapped) == (target or wrapped)
    assert parse(mail(body=f"Look: {wrapped}\n")).urls == (target or wrapped,)


@pytest.mark.parametrize("host", [*_WRAPPERS, *_REDIRECTORS, "www.google.com"])
def test_a_wrapped_link_of_anything_raises_nothing(host: str) -> None:
    """Else one link would keep a mail from being reported."""
    odd = (
        "[",
        "]",
        "//",
        "//[x",
        "%",
        "%ff",
        "__",
        "@",
        ":",
        "?",
        "#",
        "*",
        "**",
        "**A",
        "=",
        "&",
        ";",
        "\\",
        "https://[",
    )
    rests = [
        f"/{path}{one}{other}"
        for path in ("", "v2/", "v3/__", "url?q=", "?url=", "?u=")
        for one in odd
        for other in odd
    ]
    body = "\n".join(f"https://{host}{rest}" for rest in rests)
    assert parse(mail(body=body)).is_mail
    assert all(normal_url(f"https://{host}{rest}") for rest in rests)


def test_no_link_is_wrapped_without_end() -> None:
    """Each layer is undone by itself, up to a bound; the rest stays as it is."""
    link = "https://evil.example/a"
    for _ in range(30):
        link = f"https://www.google.com/url?q={quote(link, safe='')}"[:8_000]
    assert "google.com" in (normal_url(link) or "")


def test_a_quoted_greater_than_does_not_hide_a_link() -> None:
    """HTML is read as browsers read it, not as text."""
    facts = parse(mail("Content-Type: text/html", body='<img alt=">" src="http://hidden.example/x">'))
    assert facts.urls == ("http://hidden.example/x",)


PDF = b"%PDF-1.7 not really " * 10


def test_attachments_are_known_by_their_decoded_content() -> None:
    """Files, inline images and attached mails are attachments; the texts of the mail are not."""
    inner = "From: carl@example.net\nSubject: inner\n\nhttp://inner.example"
    facts = parse(
        multipart(
            "Content-Type: text/plain\n\nhello",
            "Content-Type: application/pdf; name=old.pdf\nContent-Transfer-Encoding: base64\n"
            f'Content-Disposition: attachment; filename="=?utf-8?q?R=C3=A9sum=C3=A9=2Epdf?="\n\n'
            f"{base64.encodebytes(PDF).decode()}",
            "Content-Type: image/png\nContent-ID: <1@example.com>\n\nPNG",
            f"Content-Type: message/rfc822\n\n{inner}",
            "Content-Type: text/html\nContent-Disposition: attachment;\n filename*0*=utf-8''na%C3%AF;"
            " filename*1=ve.htm\n\n<a href=http://file.example>x</a>",
        )
    )
    listed = [(file.name, file.content_type, file.size, file.inline) for file in facts.attachments]
    assert listed == [
        ("Résumé.pdf", "application/pdf", len(PDF), False),
        (None, "image/png", 3, True),
        (None, "message/rfc822", len(inner), False),
        ("naïve.htm", "text/html", 33, False),
    ]
    assert facts.attachments[0].sha256 == hashlib.sha256(PDF).hexdigest()
    assert facts.attachments[2].sha256 == hashlib.sha256(inner.encode()).hexdigest()
    assert facts.from_address == "ann@example.com"
    assert facts.urls == ("http://file.example",)


@pytest.mark.parametrize(
    ("encoding", "body", "content"),
    [
        ("base64", "aGVs\nbG8=", b"hello"),
        ("BASE64; strange", "aGVsbG8", b"hello"),
        ("base64", "aGVs!bG8x2", b"hello1"),
        ("quoted-printable", "caf=C3=A9=\n!", "café!".encode()),
        ("x-uuencode", "begin 644 x\n#0V%T\n`\nend", b"Cat"),
        ("8-bit plain", "as is", b"as is"),
    ],
)
def test_transfer_encodings_are_undone_even_when_damaged(encoding: str, body: str, content: bytes) -> None:
    """What can be decoded is decoded, as mail programs do."""
    raw = multipart(f"Content-Type: application/x-test\nContent-Transfer-Encoding: {encoding}\n\n{body}")
    assert parse(raw).attachments[0].sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_the_line_break_before_a_boundary_is_not_part_of_the_file(line_end: bytes) -> None:
    """The hash of an attached text does not depend on how the mail ends its lines."""
    raw = multipart("Content-Type: application/x-test\n\nexact").replace(b"\n", line_end)
    assert parse(raw).attachments[0].sha256 == hashlib.sha256(b"exact").hexdigest()


def test_a_boundary_with_spaces_inside_is_that_boundary() -> None:
    """White space in a boundary is part of it, at its end it is not."""
    raw = mail(
        'Content-Type: multipart/mixed; boundary="a  b "', body="--a  b\nContent-Type: image/png\n\nx\n--a  b--\n"
    )
    assert [file.content_type for file in parse(raw).attachments] == ["image/png"]
    assert parse(raw).defects == ()


def test_a_boundary_that_begins_like_another_is_another() -> None:
    """`--cutting` does not end a part of `--cut`."""
    raw = multipart("Content-Type: application/x-test\n\n--cutting\n--cut me", "Content-Type: application/x-two\n\nx")
    assert [(file.content_type, file.size) for file in parse(raw).attachments] == [
        ("application/x-test", 18),
        ("application/x-two", 1),
    ]


TOP = (
    "Authentication-Results: spf=pass (sender IP is 192.0.2.7)\n smtp.mailfrom=Example.com;"
    " dkim=fail (body hash did not verify) header.d=example.com;dmarc=fail action=oreject\n"
    " header.from=example.com;compauth=fail reason=001"
)
FORGED = (
    "Authentication-Results: spf=pass smtp.mailfrom=bank.example; dkim=pass header.d=bank.example;"
    " dmarc=pass action=none header.from=bank.example; compauth=pass reason=100"
)


def test_only_the_topmost_authentication_results_counts() -> None:
    """What stands below came with the mail, and the sender may have written it."""
    facts = parse(f"{TOP}\n".encode() + mail(FORGED))
    found = facts.authentication
    assert (found.spf, found.dkim, found.dmarc, found.dmarc_action) == ("pass", "fail", "fail", "oreject")
    assert (found.compauth, found.compauth_reason, found.header_from) == ("fail", "001", "example.com")
    assert (found.mail_from, facts.sender_ip) == ("example.com", "192.0.2.7")


@pytest.mark.parametrize(
    ("results", "spf", "dkim", "dmarc"),
    [
        ("mx.example.com 1; dkim=fail header.d=a.example; dkim=pass header.d=b.example", None, "pass", None),
        ("spf=fail (dmarc=pass; (x) dkim=pass) smtp.mailfrom=x; dmarc=none", "fail", None, "none"),
        ('spf=fail smtp.mailfrom="; dmarc=pass ;"@example.net; dmarc=fail', "fail", None, "fail"),
        ("spf=fail; spf=pass; dmarc=fail dmarc=pass", "fail", None, "fail"),
        ("none", None, None, None),
        ("; ;=;((((", None, None, None),
        ("spf=fail (x) (" + "y (" * 12 + "; dmarc=pass)" * 13 + "; dmarc=none", "fail", None, "none"),
        (r'spf=fail (a\) "b; dkim=pass) ; dmarc=fail', "fail", None, "fail"),
        ("spf=fail; (x; dmarc=pass", "fail", None, None),
        ('spf=fail; "x (y); dmarc=pass', "fail", None, None),
    ],
)
def test_comments_and_quotes_cannot_forge_a_result(
    results: str, spf: str | None, dkim: str | None, dmarc: str | None
) -> None:
    """Inside of the topmost field, too, senders choose what stands in comments and quoted strings."""
    found = parse(mail(f"Authentication-Results: {results}")).authentication
    assert (found.spf, found.dkim, found.dmarc) == (spf, dkim, dmarc)


REPORT = (
    "X-Forefront-Antispam-Report: CIP:2001:DB8::1;CTRY:US;LANG:en;SCL:1;SRV:BULK;IPV:CAL;SFV:SKN;"
    "H:mail.example.com;PTR:;CAT:NONE;SFTY:9.19;DIR:INB;SFS:(13230040);"
)


def test_the_antispam_report_is_read_in_microsofts_words() -> None:
    """Each value is the topmost report's; an empty one is none."""
    facts = parse(
        mail(REPORT, "X-Forefront-Antispam-Report: SFV:SPM;PTR:forged.example", "X-Microsoft-Antispam: BCL:7;PCL:0;")
    )
    found = facts.antispam
    assert (found.cip, found.ctry, found.lang, found.scl, found.bcl) == ("2001:DB8::1", "US", "en", 1, 7)
    assert (found.srv, found.ipv, found.sfv, found.cat, found.sfty) == ("BULK", "CAL", "SKN", "NONE", "9.19")
    assert (found.helo, found.ptr, found.dir) == ("mail.example.com", None, "INB")
    assert facts.sender_ip == "2001:db8::1"


@pytest.mark.parametrize(
    ("fields", "scl"),
    [
        ([REPORT], 1),
        ([REPORT, "X-MS-Exchange-Organization-SCL: -1"], -1),
        (["X-MS-Exchange-Organization-SCL: \uff19"], None),
        (["X-Forefront-Antispam-Report: SCL:high"], None),
    ],
)
def test_the_scl_that_mail_flow_rules_set_comes_first(fields: list[str], scl: int | None) -> None:
    """The organisation's field is the later decision; what is no number is none."""
    assert parse(mail(*fields)).antispam.scl == scl


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["X-Forefront-Antispam-Report: CIP:255.255.255.255;"], None),
        (["X-Forefront-Antispam-Report: CIP:not an address;"], None),
        (["Received-SPF: Pass (x) client-ip=198.51.100.9; helo=x"], "198.51.100.9"),
        (["X-Originating-IP: 198.51.100.9"], None),
    ],
)
def test_the_connecting_address_is_only_what_the_receiver_wrote(fields: list[str], expected: str | None) -> None:
    """What the sender claims is no connecting address; Exchange Online's placeholder is none either."""
    assert parse(mail(*fields)).sender_ip == expected


@pytest.mark.parametrize(
    ("fields", "folder"),
    [
        (["X-Microsoft-Antispam-Mailbox-Delivery: ucf:0;jmr:0;auth:0;dest:I;ENG:(1)"], "inbox"),
        (["X-Microsoft-Antispam-Mailbox-Delivery: ucf:0; jmr:1; dest:J;\n\tENG:(1)"], "junk"),
        (["X-Microsoft-Antispam-Mailbox-Delivery: dest:I;ENG:(1);RF:JunkEmail;"], "junk"),
        (["X-Microsoft-Antispam-Mailbox-Delivery: dest:C;OFR:CustomRules"], None),
        (["X-Microsoft-Antispam-Mailbox-Delivery: dest:I", "X-MS-Exchange-Organization-SCL: 9"], "inbox"),
        (["X-MS-Exchange-Organization-SCL: 5"], "junk"),
        (["X-MS-Exchange-Organization-SCL: 1"], "inbox"),
        (["X-MS-Exchange-Organization-SCL: -1"], "inbox"),
        (["X-Forefront-Antispam-Report: SCL:6"], "junk"),
        ([], None),
    ],
)
def test_the_mailboxs_own_note_says_where_the_mail_was_delivered(fields: list[str], folder: str | None) -> None:
    """Without the note the SCL tells the default; without both nobody knows."""
    assert parse(mail(*fields)).delivery_folder == folder
