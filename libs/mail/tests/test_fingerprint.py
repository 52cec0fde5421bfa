"""Which mails are the same campaign, and which are not."""

import pytest

from mail import parse
from mail.fingerprint import MINIMUM_FILE_BYTES, MINIMUM_LETTERS

TEXT = "Your mailbox is almost full. Keep your messages: http://keep.example/?u=4711 before midnight, the IT team"


def fingerprint(
    text: str = TEXT,
    *,
    subject: str = "Mailbox full",
    to: str = "Bob <bob@contoso.example>",
    sender: str = "it@example.com",
    html: bool = False,
    more: str = "",
) -> str | None:
    """Return the fingerprint of a mail that is this one but for the arguments."""
    kind = "html" if html else "plain"
    head = f"From: {sender}\nTo: {to}\nSubject: {subject}\n{more}Content-Type: text/{kind}; charset=utf-8\n\n"
    return parse((head + text).encode()).fingerprint


def with_file(content: str, text: str = "", disposition: str = "attachment") -> str | None:
    """Return the fingerprint of a mail with a file."""
    body = (
        f"--cut\nContent-Type: text/plain\n\n{text}\n"
        f"--cut\nContent-Type: application/pdf\nContent-Disposition: {disposition}\n\n{content}\n--cut--\n"
    )
    return parse(f"From: a@example.com\nContent-Type: multipart/mixed; boundary=cut\n\n{body}".encode()).fingerprint


def test_a_fingerprint_says_its_version() -> None:
    """Fingerprints of another version never match by chance."""
    value = fingerprint()
    assert value is not None
    version, _, digest = value.partition(":")
    assert (version, len(digest)) == ("v1", 64)


@pytest.mark.parametrize(
    "copy",
    [
        {"sender": "other@example.net"},
        {"more": "Message-ID: <2@example.com>\nDate: Mon, 2 Nov 2026 10:00:00 +0000\n"},
        {"subject": "Re: Mailbox full"},
        {"subject": "AW: Fwd: [EXTERNAL] RE[2]: Mailbox full"},
        {"subject": "MAILBOX  full (4711)"},
        {"subject": "Mailbox full, bob@contoso.example"},
        {"text": TEXT.replace("4711", "0815")},
        {"text": TEXT.replace("/?u=4711", "/another/path#x")},
        {"text": TEXT.upper().replace("HTTP://KEEP.EXAMPLE/?U=4711", "HTTP://KEEP.EXAMPLE")},
        {"text": TEXT.replace(" ", "\n\t ")},
        {"text": TEXT.replace("mailbox", "mail\u200bbox")},
        {"text": TEXT.replace("mailbox", "ｍａｉｌｂｏｘ")},  # noqa: RUF001 - full-width letters are the trick
        {"text": f"Bob, {TEXT}"},
        {"text": f"bob@contoso.example: {TEXT}"},
        {"text": f"Dear Ann Example, {TEXT}".replace("Dear ", ""), "to": "Ann Example <ann.example@contoso.example>"},
        {"text": f"ann.example, {TEXT}", "to": "ann.example@contoso.example"},
        {"text": f"<p style='display:none'>x7 filler</p><p>{TEXT}</p><script>x()</script>", "html": True},
        {"text": TEXT.replace("almost", "<b>al</b><i>most</i>"), "html": True},
    ],
)
def test_copies_of_a_campaign_mail_have_one_fingerprint(copy: dict[str, str | bool]) -> None:
    """Sender, recipient, numbers, paths, case, white space, hidden text and markup are what copies differ in."""
    assert fingerprint(**copy) == fingerprint()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"subject": "Mailbox empty"},
        {"text": TEXT.replace("midnight", "noon")},
        {"text": TEXT.replace("keep.example", "lose.example")},
        {"text": f'{TEXT} <a href="http://elsewhere.example">x</a>', "html": True},
    ],
)
def test_other_words_or_other_hosts_are_another_campaign(other: dict[str, str | bool]) -> None:
    """A mail that copies the words of a real one and leads elsewhere is not that mail."""
    assert fingerprint(**other) != fingerprint()  # type: ignore[arg-type]


def test_a_name_is_removed_and_the_word_stays() -> None:
    """Will's name does not count; the will of a sentence does."""
    text = f"{TEXT} and we will delete all of it"
    assert fingerprint(f"Will, {text}", to="Will <w@contoso.example>") == fingerprint(text)


def test_a_long_mail_counts_to_the_same_letter_for_everybody() -> None:
    """Where the reading stops does not depend on the length of the recipient's name."""
    text = " ".join(f"{TEXT} and then {chr(97 + number % 26) * 5}" for number in range(200))
    copies = {fingerprint(f"{name}, {text}", to=f"{name} <u@contoso.example>") for name in ("Eve", "Bartholomew")}
    assert len(copies) == 1
    assert fingerprint(f"other words and {text}") not in copies


def test_links_to_other_addresses_of_the_network_are_another_campaign() -> None:
    """A host that is an IP address counts with its digits."""
    assert fingerprint(f"{TEXT} http://192.0.2.1/") != fingerprint(f"{TEXT} http://192.0.2.2/")


def test_a_mailbox_of_a_role_keeps_the_words_of_the_role() -> None:
    """The word invoice counts in the mail to invoice@ as in all others."""
    text = f"{TEXT}, the invoice is attached. Support"
    assert fingerprint(text, to="invoice@contoso.example") == fingerprint(text)
    assert fingerprint(text, to="Support <u@contoso.example>") == fingerprint(text)


@pytest.mark.parametrize("text", ["", "Hi", "ok, thanks", "1234567890" * 20, "b" * (MINIMUM_LETTERS - 1)])
def test_short_mails_never_join(text: str) -> None:
    """Fewer letters than the minimum say nothing characteristic, however long the subject is."""
    assert fingerprint(text, subject="A subject that is long enough to be characteristic of something") is None


def test_a_mail_with_just_enough_letters_has_a_fingerprint() -> None:
    """The bound is where it is said to be."""
    assert fingerprint("b" * MINIMUM_LETTERS) is not None


def test_a_file_is_characteristic_without_a_text() -> None:
    """The same document in two empty mails is one campaign; another document is another."""
    content = "x" * MINIMUM_FILE_BYTES
    assert with_file(content) is not None
    assert with_file(content) == with_file(content, text="0815")
    assert with_file(content) != with_file(content + "y")


@pytest.mark.parametrize(("size", "disposition"), [(MINIMUM_FILE_BYTES - 1, "attachment"), (9_000, "inline")])
def test_a_pixel_or_a_logo_is_not_characteristic(size: int, disposition: str) -> None:
    """Small files, and images of a signature, stand in mails that have nothing to do with each other."""
    assert with_file("x" * size, disposition=disposition) is None


def test_the_html_counts_where_there_is_html() -> None:
    """The plain alternative is what nobody sees, so noise in it changes nothing."""

    def alternative(plain: str) -> str | None:
        body = f"--c\n\n{plain}\n--c\nContent-Type: text/html\n\n<p>{TEXT}\n--c--\n"
        head = "From: a@example.com\nContent-Type: multipart/alternative; boundary=c\n\n"
        return parse((head + body).encode()).fingerprint

    assert alternative("one") == alternative("something else entirely, and much longer than the other") is not None
