"""`backstop explain` prints what a message's own headers say."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backstop.app import app

MESSAGE = """\
Authentication-Results: spf=pass smtp.mailfrom=fabrikam.example; dkim=none; dmarc=fail action=none
 header.from=fabrikam.example; compauth=fail reason=001
X-Forefront-Antispam-Report: CIP:198.51.100.7;SCL:1;SFV:SKN;CAT:NONE
X-Microsoft-Antispam-Mailbox-Delivery: dest:I
From: "Billing \x1b[31m" <billing@fabrikam.example>
To: ann@contoso.example
Subject: Invoice 88
Message-ID: <88@fabrikam.example>
Date: Tue, 03 Mar 2026 08:02:14 +0000
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=x

--x
Content-Type: text/plain

Pay at https://pay.phish.example/88 today.
--x
Content-Type: application/pdf
Content-Disposition: attachment; filename="invoice.pdf"

%PDF
--x--
"""


def explain(tmp_path: Path, text: str, *options: str) -> Result:
    """Run the command over a message."""
    file = tmp_path / "message.eml"
    file.write_text(text)
    return CliRunner().invoke(app, ["explain", str(file), *options])


def test_the_facts_are_printed_and_nothing_in_them_acts_on_a_terminal(tmp_path: Path) -> None:
    """Sender, authentication, filter, folder, links, attachments."""
    said = explain(tmp_path, MESSAGE).stdout
    assert "\x1b" not in said
    facts = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith(("auth", "filter", "folder")))
    assert facts == {
        "authentication": "spf pass, dkim none, dmarc fail, compauth fail",
        "filter": "SCL 1, SFV SKN, CAT NONE",
        "folder": "inbox",
    }
    assert "<billing@fabrikam.example>" in said
    assert "  https://pay.phish.example/88\n" in said
    assert "  invoice.pdf, application/pdf, 4 bytes, SHA-256 " in said


def test_json_has_every_fact(tmp_path: Path) -> None:
    """For programs."""
    facts = json.loads(explain(tmp_path, MESSAGE, "--json").stdout)
    assert facts["authentication"]["dmarc"] == "fail"
    assert facts["antispam"]["scl"] == 1
    assert facts["attachments"][0]["name"] == "invoice.pdf"
    assert facts["date"] == "2026-03-03 08:02:14+00:00"


def test_what_is_no_message_is_refused(tmp_path: Path) -> None:
    """A file without headers."""
    refused = explain(tmp_path, "hello")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "is not a message" in refused.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setitem(sys.modules, "mail", None)
    refused = explain(tmp_path, MESSAGE)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        "`backstop explain` needs an extra that is not installed. Run: pip install 'backstop-cli[explain]'"
    ]
