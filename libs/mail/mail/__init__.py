"""A raw mail as facts and as a safe preview, and the store for raw mails. Knows nothing of the rest of Backstop."""

from mail.document import DOCUMENT_HEADERS, document
from mail.exchange import Antispam, Authentication
from mail.link import Link
from mail.parse import Attachment, MailFacts, parse
from mail.preview import Preview, PreviewAttachment, preview
from mail.store import MailCorrupt, MailMissing, MailStore, StoreUnavailable
from mail.text import normal_url
from mail.words import ENGLISH
from mail.wrappers import is_wrapper

__all__ = [
    "DOCUMENT_HEADERS",
    "ENGLISH",
    "Antispam",
    "Attachment",
    "Authentication",
    "Link",
    "MailCorrupt",
    "MailFacts",
    "MailMissing",
    "MailStore",
    "Preview",
    "PreviewAttachment",
    "StoreUnavailable",
    "document",
    "is_wrapper",
    "normal_url",
    "parse",
    "preview",
]
