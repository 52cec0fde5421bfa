"""Mail that is written in a mailbox: drafts, and what was sent."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import format_datetime, formataddr, getaddresses
from typing import Any
from uuid import uuid4

_MOST_HEADERS = 5


class UnsendableError(ValueError):
    """Graph does not take the message. *code* is its error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class OutgoingMail:
    """
    A draft, or a mail that was sent.

    `id` changes when the mail moves from Drafts to Sent Items, `immutable_id` does not. `sent` is None for a draft.
    """

    sender: str
    recipients: tuple[str, ...]
    raw: bytes
    subject: str
    internet_message_id: str
    created: datetime
    properties: dict[str, str] = field(default_factory=dict)
    sent: datetime | None = None
    saved: bool = True
    id: str = field(default_factory=lambda: "AAMk" + uuid4().hex)
    immutable_id: str = field(default_factory=lambda: "AAkA" + uuid4().hex)

    def send(self, now: datetime) -> None:
        """Turn the draft into a sent mail, which has another id; UnsendableError when there is nobody to send to."""
        if not self.recipients:
            raise UnsendableError("ErrorInvalidRecipients", "At least one recipient is needed.")
        self.sent, self.id = now, "AAMk" + uuid4().hex


def written(message: dict[str, Any], mailbox: str, now: datetime, *, keep_id: bool) -> OutgoingMail:
    """
    Write the MIME form of a Graph *message* (JSON) that is sent from *mailbox*.

    `internetMessageId` is kept only with *keep_id*. Raises UnsendableError for what Graph refuses.
    """
    mime = EmailMessage(policy=policy.SMTP)
    try:
        mime["From"] = _sender(message, mailbox)
        mime["Subject"] = str(message.get("subject") or "")
        for name, property_name in (("To", "toRecipients"), ("Cc", "ccRecipients"), ("Reply-To", "replyTo")):
            people = _people(message, property_name)
            if people:
                mime[name] = ", ".join(formataddr(person) for person in people)
        _write_headers(mime, message.get("internetMessageHeaders") or [])
        body = message.get("body") or {}
        subtype = "html" if str(body.get("contentType", "text")).lower() == "html" else "plain"
        mime.set_content(str(body.get("content") or ""), subtype=subtype)
        for attachment in message.get("attachments") or []:
            _attach(mime, attachment)
        return _made(mime, mailbox, now, message, keep_id=keep_id)
    except UnsendableError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsendableError("RequestBodyRead", f"The message can't be read: {error}") from error


def read_mime(content: bytes, mailbox: str, now: datetime, *, keep_id: bool) -> OutgoingMail:
    """Read a mail in MIME, given in base64; Bcc is taken out of it. Raises UnsendableError as `written` does."""
    try:
        raw = base64.b64decode(b"".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        message = "Invalid base64 string for MIME content."
        raise UnsendableError("ErrorMimeContentInvalidBase64String", message) from error
    parsed = message_from_bytes(raw, policy=policy.SMTP)
    if not parsed.keys():
        raise UnsendableError("ErrorMimeContentInvalid", "The MIME content has no headers.")
    _check_own(_addresses(parsed, "From"), mailbox)
    if "From" not in parsed:
        parsed["From"] = mailbox
    made = _made(parsed, mailbox, now, {}, keep_id=keep_id)
    untouched = message_from_bytes(raw, policy=policy.SMTP).items() == parsed.items()
    if untouched:
        made.raw = raw
    return made


def _made(mime: EmailMessage, mailbox: str, now: datetime, message: dict[str, Any], *, keep_id: bool) -> OutgoingMail:
    """Add missing header fields and remove Bcc."""
    hidden = [address for _, address in _people(message, "bccRecipients")]
    recipients = _addresses(mime, "To", "Cc", "Bcc") + [address.lower() for address in hidden]
    del mime["Bcc"]
    chosen = str(message.get("internetMessageId") or mime.get("Message-ID") or "").strip() if keep_id else ""
    internet_message_id = chosen or f"<{uuid4()}@{mailbox.rpartition('@')[2]}>"
    if mime.get("Message-ID") != internet_message_id:
        del mime["Message-ID"]
        mime["Message-ID"] = internet_message_id
    if "Date" not in mime:
        mime["Date"] = format_datetime(now)
    return OutgoingMail(
        sender=mailbox,
        recipients=tuple(dict.fromkeys(recipients)),
        raw=mime.as_bytes(),
        subject=str(mime.get("Subject", "")),
        internet_message_id=internet_message_id,
        created=now,
        properties=extended_properties(message),
    )


def extended_properties(message: dict[str, Any]) -> dict[str, str]:
    """Return the single-value extended properties of a Graph message, by their id."""
    found: dict[str, str] = {}
    for entry in message.get("singleValueExtendedProperties") or []:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("id", "value")):
            raise UnsendableError("RequestBodyRead", "An extended property has an id and a value.")
        found[entry["id"]] = entry["value"]
    return found


def _sender(message: dict[str, Any], mailbox: str) -> str:
    given = message.get("from")
    if given:
        _check_own([str(given["emailAddress"]["address"]).lower()], mailbox)
    return mailbox


def _check_own(addresses: Iterable[str], mailbox: str) -> None:
    if any(address != mailbox for address in addresses):
        message = "The user account which was used to submit this request does not have the right to send mail as this."
        raise UnsendableError("ErrorSendAsDenied", message)


def _people(message: dict[str, Any], name: str) -> list[tuple[str, str]]:
    people = [entry["emailAddress"] for entry in message.get(name) or []]
    found = [(str(person.get("name") or ""), str(person.get("address") or "")) for person in people]
    if any("@" not in address or len(address.split()) != 1 for _, address in found):
        raise UnsendableError("ErrorInvalidRecipients", "At least one recipient is not valid.")
    return found


def _addresses(mime: EmailMessage, *names: str) -> list[str]:
    values = [str(value) for name in names for value in mime.get_all(name, [])]
    return [address.lower() for _, address in getaddresses(values) if "@" in address]


def _write_headers(mime: EmailMessage, headers: list[dict[str, str]]) -> None:
    """Only custom headers can be set, and at most five."""
    if len(headers) > _MOST_HEADERS:
        raise UnsendableError("InvalidInternetMessageHeaderCollection", f"At most {_MOST_HEADERS} headers can be set.")
    for header in headers:
        name = str(header["name"])
        if not name.lower().startswith("x-"):
            message = f"The internet message header name '{name}' should start with 'x-' or 'X-'."
            raise UnsendableError("InvalidInternetMessageHeader", message)
        mime[name] = str(header["value"])


def _attach(mime: EmailMessage, attachment: dict[str, Any]) -> None:
    if attachment.get("@odata.type") != "#microsoft.graph.fileAttachment":
        raise UnsendableError("RequestBodyRead", "The simulator attaches files only.")
    content = base64.b64decode(str(attachment["contentBytes"]), validate=True)
    main, _, sub = str(attachment.get("contentType") or "application/octet-stream").partition("/")
    mime.add_attachment(content, maintype=main, subtype=sub or "octet-stream", filename=str(attachment["name"]))
    inline = attachment.get("contentId")
    if inline:
        list(mime.iter_attachments())[-1]["Content-ID"] = f"<{inline}>"


class Outgoing:
    """All drafts and sent messages of one mailbox."""

    def __init__(self) -> None:
        self._mails: list[OutgoingMail] = []

    def add(self, mail: OutgoingMail) -> None:
        """Store *mail*."""
        self._mails.append(mail)

    def remove(self, mail: OutgoingMail) -> None:
        """Forget *mail*."""
        self._mails.remove(mail)

    def find(self, mail_id: str) -> OutgoingMail | None:
        """Return the mail with this id, the changing one or the immutable one."""
        return next((mail for mail in self._mails if mail.saved and mail_id in {mail.id, mail.immutable_id}), None)

    def folder(self, name: str | None, seen_until: datetime) -> list[OutgoingMail]:
        """
        Return what lies in `drafts`, in `sentitems`, or (None) in both, latest first.

        A sent mail is seen in Sent Items only when it was sent before *seen_until*.
        """
        drafts = [mail for mail in self._mails if mail.sent is None]
        sent = [mail for mail in self._mails if mail.sent is not None and mail.saved and mail.sent <= seen_until]
        found = {"drafts": drafts, "sentitems": sent, None: drafts + sent}[name]
        return sorted(found, key=lambda mail: mail.sent or mail.created, reverse=True)
