"""
A fingerprint of a message's content that groups the copies of a campaign.

Copies differ in Message-ID, sender, recipient, dates and numbers, but share the words, the hosts that links lead to and
the attached files. Grouping two messages wrongly is worse than not grouping them. That is why hosts are included: a
phishing message that copies the text of a legitimate one links to other hosts.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

MINIMUM_LETTERS = 40
"""Texts with fewer letters are not characteristic enough for a fingerprint."""
MINIMUM_FILE_BYTES = 1_024
"""An attached file of at least this size is characteristic even if the text is shorter."""
LETTERS = 5_000
"""Letters of text that are used. Messages that differ only after them are the same campaign."""
_READ_CHARS = 4 * LETTERS

_REPLY = re.compile(
    r"(?:\s*(?:re|fwd?|aw|wg|sv|vs|vb|rv|tr|antw|ref|odp|rif|res|enc|i)\s*(?:\[\d+\]\s*)?:|\s*\[[^\]]{1,30}\])+",
    re.IGNORECASE,
)
_URL = re.compile(r"(?:https?|ftp)://(?:[^\s/?#@]{0,100}@)?([^\s/?#:<>]+)\S*", re.IGNORECASE)
_ADDRESS = re.compile(r"(?<![^\s@<>()\[\],;:])[^\s@<>()\[\],;:]{1,64}@[^\s@<>()\[\],;:]+")
_WORD = re.compile(r"[^\W\d_]+")
_NO_ASCII_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
# fmt: off
_ROLES = frozenset((
    "abuse", "accounting", "accounts", "admin", "billing", "contact", "finance", "hello", "help", "helpdesk", "info",
    "invoice", "invoices", "it", "mail", "marketing", "news", "noreply", "office", "orders", "payroll", "postmaster",
    "sales", "security", "service", "support", "team", "webmaster",
))
# fmt: on
"""Local parts that are more likely ordinary words of the text than a name."""


def fingerprint(
    subject: str,
    text: str,
    *,
    hosts: Iterable[str],
    recipients: Iterable[tuple[str, str]],
    files: Iterable[tuple[str, int]],
) -> str | None:
    """
    Return the fingerprint of a message: `v1:` and 64 hexadecimal digits.

    Return None if there are fewer than MINIMUM_LETTERS letters of text and no file of MINIMUM_FILE_BYTES, so that empty
    and one-word messages are never grouped. *recipients* are names and addresses, whose words are ignored; *files* are
    the SHA-256 and size of the attached files.
    """
    names, locals_ = _personal(recipients)
    # Cut by letters, because a cut by characters would depend on the length of the recipient's name.
    words = _letters(" ".join(text.split())[:_READ_CHARS], names, locals_)[:LETTERS]
    large = sorted({sha256 for sha256, size in files if size >= MINIMUM_FILE_BYTES})
    if len(words) < MINIMUM_LETTERS and not large:
        return None
    reply = _REPLY.match(subject)
    title = _letters(subject[reply.end() :] if reply else subject, names, locals_)
    places = sorted({"".join(_WORD.findall(host)) or host for host in hosts})
    content = "\n".join((title, words, " ".join(places), " ".join(large)))
    return f"v1:{hashlib.sha256(content.encode()).hexdigest()}"


def _letters(text: str, names: set[str], locals_: set[str]) -> str:
    """Reduce *text* to its letters, without addresses and personal words, and with hosts in place of URLs."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "://" in text:
        text = _URL.sub(r" \1 ", text)
    if "@" in text:
        text = _ADDRESS.sub(" ", text)
    for local in locals_:
        if not local.isalpha():
            text = text.replace(local, " ")
    folded = text.casefold()
    if folded.isascii() and not any(personal in folded for personal in (*names, *locals_)):
        # The path of most messages, twenty times faster than word by word (measured).
        return folded.encode().translate(None, _NO_ASCII_LETTERS).decode()
    words = _WORD.findall(folded)
    if names.isdisjoint(words) and locals_.isdisjoint(words):
        return "".join(words)
    # Names are capitalised: the verb "will" is kept in a message to Will.
    pairs = ((word, word.casefold()) for word in _WORD.findall(text))
    return "".join(
        folded for word, folded in pairs if folded not in locals_ and (word[0].islower() or folded not in names)
    )


def _personal(recipients: Iterable[tuple[str, str]]) -> tuple[set[str], set[str]]:
    """Return the words of the recipients' names, and the local parts of their addresses."""
    names: set[str] = set()
    locals_: set[str] = set()
    for name, address in recipients:
        local = address.rpartition("@")[0].casefold()
        if len(local) > 2 and local not in _ROLES:
            locals_.add(local)
        names.update(_WORD.findall(f"{name} {local}".casefold()))
    return {name for name in names - _ROLES if len(name) > 2}, locals_
