"""The one mapping from a parsed message to the facts that events carry."""

from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import Protocol

from backstop_contracts.events import Attachment, Delivery, Folder, Message

MAX_URLS = 100
MAX_URL_CHARACTERS = 32_768
"""Most links in an event, and their length in all: the facts of a message go through many topics and tables."""
MAX_ATTACHMENTS = 50


class File(Protocol):
    """A parsed attachment."""

    @property
    def name(self) -> str | None: ...
    @property
    def content_type(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class Authentication(Protocol):
    """The results of Authentication-Results."""

    @property
    def spf(self) -> str | None: ...
    @property
    def dkim(self) -> str | None: ...
    @property
    def dmarc(self) -> str | None: ...
    @property
    def dmarc_action(self) -> str | None: ...
    @property
    def compauth(self) -> str | None: ...
    @property
    def compauth_reason(self) -> str | None: ...
    @property
    def header_from(self) -> str | None: ...


class Antispam(Protocol):
    """What Exchange Online's filter wrote into the message."""

    @property
    def scl(self) -> int | None: ...
    @property
    def bcl(self) -> int | None: ...
    @property
    def sfv(self) -> str | None: ...
    @property
    def cat(self) -> str | None: ...
    @property
    def sfty(self) -> str | None: ...
    @property
    def ipv(self) -> str | None: ...


class ParsedMessage(Protocol):
    """What a parser found in a raw message. Texts are valid UTF-8 without NUL."""

    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def internet_message_id(self) -> str | None: ...
    @property
    def network_message_id(self) -> str | None: ...
    @property
    def fingerprint(self) -> str | None: ...
    @property
    def from_address(self) -> str | None: ...
    @property
    def from_domain(self) -> str | None: ...
    @property
    def envelope_sender(self) -> str | None: ...
    @property
    def sender_ip(self) -> str | None: ...
    @property
    def subject(self) -> str | None: ...
    @property
    def received_at(self) -> datetime | None: ...
    @property
    def urls(self) -> Sequence[str]: ...
    @property
    def attachments(self) -> Sequence[File]: ...
    @property
    def delivery_folder(self) -> str | None: ...
    @property
    def authentication(self) -> Authentication: ...
    @property
    def antispam(self) -> Antispam: ...


def message_of(facts: ParsedMessage) -> Message:
    """Return the facts of a message as events carry them. The sender is lower-cased, as it is compared and blocked."""
    authentication, antispam = facts.authentication, facts.antispam
    return Message(
        sha256=facts.sha256,
        size=facts.size,
        internet_message_id=facts.internet_message_id,
        network_message_id=facts.network_message_id,
        fingerprint=facts.fingerprint,
        sender=facts.from_address and facts.from_address.lower(),
        sender_domain=facts.from_domain,
        envelope_sender=facts.envelope_sender,
        sender_ip=facts.sender_ip,
        subject=facts.subject or None,
        received_at=facts.received_at,
        urls=_fitting(facts.urls),
        url_count=len(facts.urls),
        attachments=tuple(
            Attachment(name=file.name, content_type=file.content_type[:255], size=file.size, sha256=file.sha256)
            for file in facts.attachments[:MAX_ATTACHMENTS]
        ),
        attachment_count=len(facts.attachments),
        delivery=Delivery(
            scl=antispam.scl,
            bcl=antispam.bcl,
            sfv=antispam.sfv,
            cat=antispam.cat,
            sfty=antispam.sfty,
            ipv=antispam.ipv,
            spf=authentication.spf,
            dkim=authentication.dkim,
            dmarc=authentication.dmarc,
            dmarc_action=authentication.dmarc_action,
            compauth=authentication.compauth,
            compauth_reason=authentication.compauth_reason,
            header_from=authentication.header_from,
        ),
    )


def folder_of(facts: ParsedMessage) -> Folder:
    """Return the folder into which Exchange Online put the message, as its headers say; the Inbox if they do not."""
    return Folder.JUNK if facts.delivery_folder == "junk" else Folder.INBOX


def _fitting(urls: Sequence[str]) -> tuple[str, ...]:
    """Return as many *urls* as fit, in their order; the short ones first, so that long ones cannot push others out."""
    places = sorted(range(len(urls)), key=lambda place: len(urls[place]))
    lengths = accumulate(len(urls[place]) for place in places)
    kept = [place for place, length in zip(places, lengths, strict=True) if length <= MAX_URL_CHARACTERS]
    return tuple(urls[place] for place in sorted(kept[:MAX_URLS]))
