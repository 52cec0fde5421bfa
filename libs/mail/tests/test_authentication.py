"""What the receiver's servers wrote: authentication, the filter's verdict and where the mail was delivered."""

from collections.abc import Callable

import pytest

from mail import parse

Compose = Callable[..., bytes]

HEAD = b"From: Ann <ann@example.com>\nDate: Mon, 2 Nov 2026 10:00:00 +0100\n"


TOP = (
    "Authentication-Results: spf=pass (sender IP is 192.0.2.7)\n smtp.mailfrom=Example.com;"
    " dkim=fail (body hash did not verify) header.d=example.com;dmarc=fail action=oreject\n"
    " header.from=example.com;compauth=fail reason=001"
)


FORGED = (
    "Authentication-Results: spf=pass smtp.mailfrom=bank.example; dkim=pass header.d=bank.example;"
    " dmarc=pass action=none header.from=bank.example; compauth=pass reason=100"
)


def test_only_the_topmost_authentication_results_counts(mail: Compose) -> None:
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
    mail: Compose, results: str, spf: str | None, dkim: str | None, dmarc: str | None
) -> None:
    """Inside of the topmost field, too, senders choose what stands in comments and quoted strings."""
    found = parse(mail(f"Authentication-Results: {results}")).authentication
    assert (found.spf, found.dkim, found.dmarc) == (spf, dkim, dmarc)


REPORT = (
    "X-Forefront-Antispam-Report: CIP:2001:DB8::1;CTRY:US;LANG:en;SCL:1;SRV:BULK;IPV:CAL;SFV:SKN;"
    "H:mail.example.com;PTR:;CAT:NONE;SFTY:9.19;DIR:INB;SFS:(13230040);"
)


def test_the_antispam_report_is_read_in_microsofts_words(mail: Compose) -> None:
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
def test_the_scl_that_mail_flow_rules_set_comes_first(mail: Compose, fields: list[str], scl: int | None) -> None:
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
def test_the_connecting_address_is_only_what_the_receiver_wrote(
    mail: Compose, fields: list[str], expected: str | None
) -> None:
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
def test_the_mailboxs_own_note_says_where_the_mail_was_delivered(
    mail: Compose, fields: list[str], folder: str | None
) -> None:
    """Without the note the SCL tells the default; without both nobody knows."""
    assert parse(mail(*fields)).delivery_folder == folder
