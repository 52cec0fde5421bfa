"""A parsed message becomes the facts of events in one way."""

from email.message import EmailMessage

from backstop_contracts import message_of
from backstop_contracts.message import MAX_ATTACHMENTS, MAX_URL_CHARACTERS, MAX_URLS
from mail import parse


def raw(text: str = "hello", *, files: int = 0) -> bytes:
    """Write a message with links and files."""
    mail = EmailMessage()
    mail["From"] = "Billing <Billing@Fabrikam.example>"
    mail["Subject"] = "Updated bank details"
    mail["Message-ID"] = "<1@fabrikam.example>"
    mail["Authentication-Results"] = "spf=pass smtp.mailfrom=fabrikam.example; dmarc=pass header.from=fabrikam.example"
    mail.set_content(text)
    for number in range(files):
        mail.add_attachment(f"file {number}".encode(), maintype="application", subtype="pdf", filename=f"{number}.pdf")
    return mail.as_bytes()


def test_the_facts_of_a_message_go_into_the_event() -> None:
    """The sender as it is compared and blocked, the links, the files by hash, and the authentication."""
    message = message_of(parse(raw("Pay at https://pay.fabrikam.example/4471 today", files=1)))

    assert (message.sender, message.sender_domain) == ("billing@fabrikam.example", "fabrikam.example")
    assert (message.subject, message.internet_message_id) == ("Updated bank details", "<1@fabrikam.example>")
    assert message.urls == ("https://pay.fabrikam.example/4471",)
    assert [(file.name, file.content_type, file.size) for file in message.attachments] == [
        ("0.pdf", "application/pdf", 6)
    ]
    assert message.is_authenticated


def test_an_event_stays_small_whatever_the_message_holds() -> None:
    """The facts of a message go through many topics and tables."""
    many = message_of(parse(raw("\n".join(f"https://x.example/{n}" for n in range(200)), files=60)))
    head = "From: a@x.example\nContent-Type: multipart/mixed; boundary=b\n\n"
    odd = message_of(parse(f"{head}--b\nContent-Type: image/{'x' * 20_000}\n\nx\n--b--".encode()))

    assert (len(many.urls), len(many.attachments)) == (MAX_URLS, MAX_ATTACHMENTS)
    assert (many.url_count, many.attachment_count) == (200, 60)
    assert len(odd.attachments[0].content_type) <= 255


def test_long_links_push_no_other_out_of_the_event() -> None:
    """An attacker who fills the room with decoys would keep a subscriber from the one link that matters."""
    decoys = [f"https://decoy.example/{n}{'a' * 1900}" for n in range(40)]
    message = message_of(parse(raw("\n".join([*decoys, "https://phish.example/login"]))))

    assert message.urls[-1] == "https://phish.example/login"
    assert message.urls[0] == decoys[0]
    assert sum(map(len, message.urls)) <= MAX_URL_CHARACTERS
    assert message.url_count == 41 > len(message.urls)
