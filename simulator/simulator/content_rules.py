"""
Rules for messages that no configuration allowed: what the filter's headers say, and what the content shows.

`simulator.verdicts` lists all rules in order and the condition of each.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from simulator.delivery import Delivery
from simulator.mail import Attachment
from simulator.submissions import Verdict

PHRASES = (
    "verify your account",
    "confirm your identity",
    "confirm your password",
    "password will expire",
    "account will be suspended",
    "unusual sign-in",
    "update your payment",
    "wire transfer",
    "gift card",
    "change of bank details",
    "click the link below",
    "act immediately",
)

RISKY_NAME = re.compile(
    r".*\.(ace|ade|bat|chm|cmd|com|cpl|exe|hta|html?|img|iso|jar|jse?|lnk|msi|one|ps1|scr|shtml|svg|vb[es]|vhd|wsf)",
    re.IGNORECASE,
)


def authentication(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the message fails DMARC."""
    return Verdict("authenticationFailure") if delivery.mail.authenticated("dmarc") == "fail" else None


def impersonation(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the filter detected impersonation but delivered the message."""
    kind = {"UIMP": "user", "DIMP": "domain", "BIMP": "brand"}.get(delivery.mail.antispam("CAT"))
    kind = kind or {"9.20": "user", "9.19": "domain"}.get(delivery.mail.antispam("SFTY"))
    return Verdict(f"{kind}Impersonation", f"{kind}Impersonation") if kind else None


def known_bad(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the message links to a known bad host or carries a known bad file."""
    urls, files = _bad_urls(delivery), _bad_files(delivery)
    return _reclassified(urls, files) if urls or files else None


def phish_delivered(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the filter detected a threat but the policy's action delivered the message."""
    bad = delivery.mail.antispam("CAT") in {"PHSH", "HPHSH", "HPHISH", "MALW"}
    return Verdict("threatsFound", "badReclassifiedAsBad") if bad else None


def bulk(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the message is bulk by the tenant's threshold."""
    thresholds = [
        int(row["BulkThreshold"]) for row in delivery.rows("HostedContentFilterPolicy") if "BulkThreshold" in row
    ]
    level = delivery.mail.level("BCL")
    named = "BULK" in (delivery.mail.antispam("CAT"), delivery.mail.antispam("SRV"))
    above = level is not None and bool(thresholds) and level >= min(thresholds)
    return Verdict("bulk", "goodReclassifiedAsBulk") if named or above else None


def spam(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the filter detected spam but the policy's action delivered the message."""
    scl = delivery.mail.level("SCL")
    named = delivery.mail.antispam("CAT") in {"SPM", "HSPM"} or delivery.mail.antispam("SFV") == "SPM"
    return Verdict("spam") if named or (scl is not None and scl >= 5) else None


def suspicious_link(delivery: Delivery) -> Verdict | None:
    """Return a verdict if a link disguises its target."""
    urls = tuple(link.url for link in delivery.mail.links if _hides(link.url, link.text))
    return _reclassified(tuple(dict.fromkeys(urls))) if urls else None


def suspicious_file(delivery: Delivery) -> Verdict | None:
    """Return a verdict if an attachment is executable or contains scripts."""
    risky = [a for a in delivery.mail.attachments if RISKY_NAME.fullmatch(a.name)]
    return _reclassified(files=tuple(risky)) if risky else None


def suspicious_wording(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the text uses typical phrases of phishing."""
    text = " ".join(f"{delivery.mail.subject} {delivery.mail.text}".lower().split())
    return _reclassified() if sum(phrase in text for phrase in PHRASES) >= 2 else None


def unreadable(delivery: Delivery) -> Verdict | None:
    """Return a verdict if the content is encrypted."""
    return Verdict("unknown", "goodReclassifiedAsCannotMakeDecision") if delivery.mail.encrypted else None


def clean(_delivery: Delivery) -> Verdict:
    """Return the verdict for a message that no other rule applies to."""
    return Verdict("noThreatsFound", "goodReclassifiedAsGood")


def _bad_urls(delivery: Delivery) -> tuple[str, ...]:
    """Return the mail's URLs whose host is known to be bad."""
    hosts = delivery.tenant.settings.known_bad_hosts
    return tuple(
        dict.fromkeys(
            link.url
            for link in delivery.mail.links
            if any(_host(link.url) == host or _host(link.url).endswith("." + host) for host in hosts)
        )
    )


def _bad_files(delivery: Delivery) -> tuple[Attachment, ...]:
    """Return the mail's attachments whose hash is known to be bad."""
    hashes = delivery.tenant.settings.known_bad_hashes
    return tuple(attachment for attachment in delivery.mail.attachments if attachment.sha256 in hashes)


def _reclassified(urls: tuple[str, ...] = (), files: tuple[Attachment, ...] = ()) -> Verdict:
    return Verdict("threatsFound", "goodReclassifiedAsBad", detected_urls=urls, detected_files=files)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".").lower()


def _hides(url: str, text: str) -> bool:
    host = _host(url)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        address = False
    else:
        address = True
    shown = re.match(r"(?:https?://)?((?:[a-z0-9-]+\.)+[a-z]{2,})(?=[/:?#\s]|$)", text.strip().lower())
    other = shown is not None and not _related(shown.group(1), host)
    return address or "@" in urlsplit(url).netloc or "xn--" in host or other


def _related(shown: str, host: str) -> bool:
    """Return True if the hosts are equal or one is a subdomain of the other, ignoring `www.`."""
    shown, host = shown.removeprefix("www."), host.removeprefix("www.")
    return shown == host or shown.endswith("." + host) or host.endswith("." + shown)
