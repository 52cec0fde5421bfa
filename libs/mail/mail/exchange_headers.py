"""
The headers that Exchange Online adds to a message: authentication results, filter verdicts and delivery folder.

Source: Microsoft Learn, "Anti-spam message headers in cloud organizations". The header of the mailbox delivery is not
documented; `dest:I` (Inbox) and `dest:J` or `RF:JunkEmail` (Junk Email) were observed in delivered messages.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from mail.mime import Headers
from mail.text import mail_domain

_QUOTED_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)|\(')
_PARENTHESIS = re.compile(r"\\.|[()]")
_PAIR = re.compile(r"(?<![\w.-])([\w.-]++)\s*+=\s*+([^\s;]+)", re.ASCII)
_SENDER_IP = re.compile(r"\(sender ip is ([0-9a-f.:]{2,45})\)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d{1,2}", re.ASCII)
_JUNK_FROM_SCL = 5
_VALUE_CHARS = 255


@dataclass(frozen=True, slots=True)
class Authentication:
    """
    The results of the topmost Authentication-Results, in lower case.

    The receiving organisation adds it above everything that came with the message. Any below it may have been forged
    by the sender and are ignored.
    """

    spf: str | None = None
    dkim: str | None = None
    dmarc: str | None = None
    dmarc_action: str | None = None
    compauth: str | None = None
    compauth_reason: str | None = None
    header_from: str | None = None
    mail_from: str | None = None
    sender_ip: str | None = None


@dataclass(frozen=True, slots=True)
class Antispam:
    """
    The topmost X-Forefront-Antispam-Report and X-Microsoft-Antispam, with Microsoft's names and values.

    `scl` is X-MS-Exchange-Organization-SCL if present, since mail flow rules change that one; else the report's.
    """

    cip: str | None = None
    ctry: str | None = None
    lang: str | None = None
    scl: int | None = None
    bcl: int | None = None
    srv: str | None = None
    ipv: str | None = None
    sfv: str | None = None
    helo: str | None = None
    ptr: str | None = None
    cat: str | None = None
    sfty: str | None = None
    dir: str | None = None


NO_AUTHENTICATION = Authentication()
NO_ANTISPAM = Antispam()


def read_authentication(headers: Headers) -> Authentication:
    """Read the topmost Authentication-Results. Of several DKIM results, use one that passed, else the first."""
    field = headers.first("authentication-results")
    if not field:
        return NO_AUTHENTICATION
    results: dict[str, dict[str, str]] = {}
    for clause in _without_comments(field).split(";"):
        pairs = [(name.lower(), value.lower()[:_VALUE_CHARS]) for name, value in _PAIR.findall(clause)]
        if not pairs:
            continue
        method, result = pairs[0]
        if method not in results or (method == "dkim" and result == "pass"):
            # Here too, the first value of a name counts.
            results[method] = dict(reversed(pairs))
    found = _SENDER_IP.search(field)

    def value(method: str, name: str) -> str | None:
        return results.get(method, {}).get(name)

    return Authentication(
        spf=value("spf", "spf"),
        dkim=value("dkim", "dkim"),
        dmarc=value("dmarc", "dmarc"),
        dmarc_action=value("dmarc", "action"),
        compauth=value("compauth", "compauth"),
        compauth_reason=value("compauth", "reason"),
        header_from=mail_domain(value("dmarc", "header.from") or "") or None,
        mail_from=value("spf", "smtp.mailfrom"),
        sender_ip=_ip(found[1]) if found else None,
    )


def _without_comments(field: str) -> str:
    """
    Remove quoted strings and comments, including nested ones, because senders control their content.

    An unclosed one extends to the end of the field.
    """
    kept, at = [], 0
    while found := _QUOTED_OR_COMMENT.search(field, at):
        kept.append(field[at : found.start()])
        at = _end_of_comment(field, found.end()) if found[0] == "(" else found.end()
    return " ".join((*kept, field[at:]))


def _end_of_comment(field: str, at: int) -> int:
    depth = 1
    for found in _PARENTHESIS.finditer(field, at):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return len(field)


def read_antispam(headers: Headers) -> Antispam:
    """Read Microsoft's anti-spam fields, each from its topmost occurrence."""
    report = _colon_pairs(headers.first("x-forefront-antispam-report"))
    scl = _number(headers.first("x-ms-exchange-organization-scl"))
    return Antispam(
        cip=report.get("CIP"),
        ctry=report.get("CTRY"),
        lang=report.get("LANG"),
        scl=_number(report.get("SCL")) if scl is None else scl,
        bcl=_number(_colon_pairs(headers.first("x-microsoft-antispam")).get("BCL")),
        srv=report.get("SRV"),
        ipv=report.get("IPV"),
        sfv=report.get("SFV"),
        helo=report.get("H"),
        ptr=report.get("PTR"),
        cat=report.get("CAT"),
        sfty=report.get("SFTY"),
        dir=report.get("DIR"),
    )


def delivery_folder(headers: Headers, antispam: Antispam) -> Literal["inbox", "junk"] | None:
    """
    Return the folder of delivery; None if it is unknown, or if a rule of the user chose another one.

    The header of the mailbox delivery decides. Without it, the SCL determines the default: 5 and above goes to Junk
    Email (Microsoft Learn, "Spam confidence level").
    """
    note = _colon_pairs(headers.first("x-microsoft-antispam-mailbox-delivery"))
    if note.get("DEST", "").upper() == "J" or note.get("RF", "").lower() == "junkemail":
        return "junk"
    if "DEST" in note:
        return "inbox" if note["DEST"].upper() == "I" else None
    if antispam.scl is None:
        return None
    return "junk" if antispam.scl >= _JUNK_FROM_SCL else "inbox"


def connecting_ip(headers: Headers, antispam: Antispam, authentication: Authentication) -> str | None:
    """
    Return the normalised IP address that connected to Exchange Online.

    255.255.255.255 means that there was no connection from outside: return None.
    """
    received_spf = re.search(r"client-ip=([0-9a-f.:]{2,45})", headers.first("received-spf"), re.IGNORECASE)
    return _ip(antispam.cip or "") or authentication.sender_ip or (_ip(received_spf[1]) if received_spf else None)


def _colon_pairs(field: str) -> dict[str, str]:
    """Parse `NAME:value;NAME:value`. The first value of a name counts; empty values are skipped."""
    pairs: dict[str, str] = {}
    for piece in field.split(";"):
        name, _, value = piece.partition(":")
        if value := value.strip():
            pairs.setdefault(name.strip().upper(), value[:_VALUE_CHARS])
    return pairs


def _number(value: str | None) -> int | None:
    return int(value) if value and _NUMBER.fullmatch(value) else None


def _ip(value: str) -> str | None:
    try:
        address = ipaddress.ip_address(value.strip("[]"))
    except ValueError:
        return None
    return None if str(address) == "255.255.255.255" else str(address)
