"""Services that never talk to each other arrive at the same ids."""

from datetime import UTC, datetime
from uuid import UUID, uuid5

from backstop_contracts import Channel, Delivery, Folder, Message, MessageReported, ReportedAs
from backstop_contracts.identity import (
    case_id,
    content_key,
    mailbox_block_id,
    message_id_key,
    report_id,
    submission_id,
    tenant_block_id,
)

TENANT = UUID("3f2b6f0e-8c1d-4a57-9e64-2d0b7a95c318")
NOW = datetime(2026, 3, 3, 8, tzinfo=UTC)
PASSED = Delivery(dmarc="pass", header_from="fabrikam.example")
MESSAGE = Message(
    sha256="a" * 64,
    size=1,
    internet_message_id="<1@fabrikam.example>",
    fingerprint="says-this",
    sender="billing@fabrikam.example",
    sender_domain="fabrikam.example",
    delivery=PASSED,
)


def changed(**facts: object) -> Message:
    """Return the message with other facts."""
    return MESSAGE.model_copy(update=facts)


def reported(report: UUID, at: datetime = NOW) -> MessageReported:
    """Return a report of the message."""
    return MessageReported(
        tenant_id=TENANT,
        report_id=report,
        reporter="ann@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.INBOX,
        channel=Channel.API,
        reported_at=at,
        message=MESSAGE,
    )


def test_the_same_person_saying_the_same_of_the_same_delivery_is_one_report() -> None:
    """However the address is written; another word, message or tenant is another report."""
    one = report_id(TENANT, "Ann@contoso.example", MESSAGE, ReportedAs.PHISHING)

    assert one == report_id(TENANT, "ann@CONTOSO.example", MESSAGE, ReportedAs.PHISHING)
    assert one == report_id(
        TENANT, "ann@contoso.example", changed(sender="Billing@Fabrikam.example"), ReportedAs.PHISHING
    )
    others = [
        report_id(TENANT, "bob@contoso.example", MESSAGE, ReportedAs.PHISHING),
        report_id(TENANT, "ann@contoso.example", MESSAGE, ReportedAs.JUNK),
        report_id(UUID(int=1), "ann@contoso.example", MESSAGE, ReportedAs.PHISHING),
        report_id(TENANT, "ann@contoso.example", changed(sha256="b" * 64), ReportedAs.PHISHING),
        report_id(TENANT, "ann@contoso.example", changed(fingerprint="says-that"), ReportedAs.PHISHING),
        report_id(TENANT, "ann@contoso.example", changed(sender="x@fabrikam.example"), ReportedAs.PHISHING),
    ]
    assert len({one, *others}) == len(others) + 1


def test_a_delivery_is_known_by_exchange_s_id_whatever_its_bytes() -> None:
    """An export from the quarantine and a download from the mailbox differ in bytes, and are one delivery."""
    first, second = (changed(network_message_id="n", sha256=letter * 64) for letter in "ab")

    assert report_id(TENANT, "ann@contoso.example", first, ReportedAs.JUNK) == report_id(
        TENANT, "ann@contoso.example", second, ReportedAs.JUNK
    )


def test_a_campaign_is_one_case_and_a_clone_from_elsewhere_is_not() -> None:
    """Copies share the content with a Message-ID each; another sender domain, or no authentication, is another case."""
    assert content_key(changed(internet_message_id="<2@fabrikam.example>", sha256="b" * 64)) == content_key(MESSAGE)
    for other in (
        changed(fingerprint="says-that"),
        changed(sender_domain="phish.example"),
        changed(delivery=Delivery(dmarc="fail", header_from="fabrikam.example")),
    ):
        assert content_key(other) != content_key(MESSAGE)


def test_a_message_that_says_too_little_is_known_by_its_id_subject_and_sender() -> None:
    """The sender chooses the Message-ID, so that alone makes nothing the same."""
    short = changed(fingerprint=None, subject="Hello")

    assert content_key(changed(fingerprint=None, subject="Hello", sha256="b" * 64)) == content_key(short)
    for other in ({"subject": "Bye"}, {"sender": "x@fabrikam.example"}, {"internet_message_id": "<2@x.example>"}):
        assert content_key(short.model_copy(update=other)) != content_key(short)


def test_a_key_is_short_however_long_the_message_id() -> None:
    """It is part of an index row."""
    assert len(message_id_key("<" + "a" * 100_000 + "@x.example>")) == 32


def test_a_case_is_named_after_the_report_that_opens_it() -> None:
    """The same content reported after the case has closed opens another case, with submissions of its own."""
    first = case_id(reported(UUID(int=1)))

    assert first == case_id(reported(UUID(int=1)))
    assert len({first, case_id(reported(UUID(int=2))), case_id(reported(UUID(int=1), datetime.now(UTC)))}) == 3


def test_a_submission_or_block_that_is_asked_for_again_has_an_id_of_its_own() -> None:
    """Submissions and blocks are counted; each channel counts the blocks of a mailbox for itself."""
    case = uuid5(TENANT, "case")

    assert submission_id(case, 1) != submission_id(case, 2)
    assert tenant_block_id(case, "sender", "a@x.example", 1) != tenant_block_id(case, "sender", "a@x.example", 2)
    ids = {
        mailbox_block_id(channel, TENANT, "box", "a@x.example", generation)
        for channel in (Channel.API, Channel.QUARANTINE)
        for generation in (1, 2)
    }
    assert len(ids) == 4
