"""Parses raw messages, renders safe previews of them and stores them. Independent of the rest of Backstop."""

from mail.exchange_headers import Antispam, Authentication
from mail.link import Link
from mail.link_wrappers import is_wrapper
from mail.parse import Attachment, MailFacts, parse
from mail.preview import Preview, PreviewAttachment, preview
from mail.preview_page import DOCUMENT_HEADERS, document
from mail.preview_words import ENGLISH
from mail.store import MailCorrupt, MailMissing, MailStore, StoreUnavailable
from mail.text import normal_url

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
