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
    long = message_of(parse(raw("\n".join(f"https://x.example/{n}{'a' * 1500}" for n in range(60)))))

    assert (len(many.urls), len(many.attachments)) == (MAX_URLS, MAX_ATTACHMENTS)
    assert 0 < sum(map(len, long.urls)) <= MAX_URL_CHARACTERS
