"""Signed links, each for one recipient, message and action until it expires. Pure functions."""

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from uuid import UUID

CONFIRMED_WITHIN = timedelta(hours=1)
"""How long a confirmation page may stay open."""
MIN_KEY_LENGTH = 32

_LINK_LAYOUT = struct.Struct(">BBI4s16s16s")
_LINK_VERSION = 1
_MAC_BYTES = 16


class InvalidLinkError(Exception):
    """The link was not signed by this service, or not for this purpose."""


class ExpiredLinkError(Exception):
    """The link was valid, but has expired."""


class LinkAction(IntEnum):
    """What a link is for."""

    VIEW = 1
    RELEASE = 2
    REQUEST = 3
    BLOCK = 4
    REPORT = 5

    @property
    def text_key(self) -> str:
        """The name of the action in the keys of users' texts."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class LinkClaims:
    """What a link claims. `Signer.check_link` verifies it."""

    token: str
    action: LinkAction
    expires_at: datetime
    tenant_id: UUID
    message_id: UUID


class Signer:
    """
    Signs with the first of *keys* and accepts all of them, so that keys can be rotated.

    Raises ValueError if there is no key, or one with fewer than MIN_KEY_LENGTH characters.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys or any(len(key) < MIN_KEY_LENGTH for key in keys):
            raise ValueError(f"set at least one link key; each needs at least {MIN_KEY_LENGTH} characters")
        self._keys = {_key_id(key): key.encode() for key in reversed(keys)}
        self._newest = _key_id(keys[0])

    def sign_link(
        self, action: LinkAction, *, tenant_id: UUID, message_id: UUID, recipient: str, expires_at: datetime
    ) -> str:
        """Return the token of a link with which *recipient*, and nobody else, can perform *action*."""
        content = _LINK_LAYOUT.pack(
            _LINK_VERSION, action, int(expires_at.timestamp()), self._newest, tenant_id.bytes, message_id.bytes
        )
        return _base64url_encode(content + self._mac(self._newest, b"link", content, recipient.lower().encode()))

    def check_link(self, link: LinkClaims, recipient: str, now: datetime) -> None:
        """Raise InvalidLinkError if the link was not signed for *recipient*, ExpiredLinkError if it has expired."""
        raw = _decode_token(link.token)
        content, mac = raw[: _LINK_LAYOUT.size], raw[_LINK_LAYOUT.size :]
        key_id = _LINK_LAYOUT.unpack(content)[3]
        if key_id not in self._keys:
            raise InvalidLinkError
        if not hmac.compare_digest(mac, self._mac(key_id, b"link", content, recipient.lower().encode())):
            raise InvalidLinkError
        if link.expires_at <= now:
            raise ExpiredLinkError

    def sign_confirmation(self, token: str, user: str, now: datetime) -> str:
        """Return what a confirmation page sends back to prove that *user* saw it for this link."""
        shown_at = struct.pack(">I", int(now.timestamp()))
        mac = self._mac(self._newest, b"confirm", shown_at, token.encode(), user.encode())
        return _base64url_encode(self._newest + shown_at + mac)

    def is_confirmed(self, confirmation: str, token: str, user: str, now: datetime) -> bool:
        """Return True if *user* saw the confirmation page of this link less than CONFIRMED_WITHIN ago."""
        try:
            raw = _decode_token(confirmation)
        except InvalidLinkError:
            return False
        key_id, shown_at, mac = raw[:4], raw[4:8], raw[8:]
        if key_id not in self._keys or len(shown_at) != 4:
            return False
        is_authentic = hmac.compare_digest(mac, self._mac(key_id, b"confirm", shown_at, token.encode(), user.encode()))
        age = now - datetime.fromtimestamp(struct.unpack(">I", shown_at)[0], UTC)
        return is_authentic and timedelta(minutes=-1) <= age <= CONFIRMED_WITHIN

    def seal(self, purpose: str, content: bytes) -> str:
        """Sign *content* for *purpose*. Its holder can read but not change it."""
        return _base64url_encode(self._newest + content + self._mac(self._newest, b"seal", purpose.encode(), content))

    def unseal(self, purpose: str, sealed: str) -> bytes:
        """Return the content that was sealed for *purpose*. Raises InvalidLinkError."""
        raw = _decode_token(sealed)
        key_id, content, mac = raw[:4], raw[4:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if key_id not in self._keys:
            raise InvalidLinkError
        if not hmac.compare_digest(mac, self._mac(key_id, b"seal", purpose.encode(), content)):
            raise InvalidLinkError
        return content

    def _mac(self, key_id: bytes, purpose: bytes, *parts: bytes) -> bytes:
        content = purpose + b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return hmac.digest(self._keys[key_id], content, hashlib.sha256)[:_MAC_BYTES]


def parse_link(token: str) -> LinkClaims:
    """Return what a link claims, before it is verified. Raises InvalidLinkError if it is not a link."""
    raw = _decode_token(token)
    if len(raw) != _LINK_LAYOUT.size + _MAC_BYTES:
        raise InvalidLinkError
    version, action, expires, _, tenant, message = _LINK_LAYOUT.unpack(raw[: _LINK_LAYOUT.size])
    try:
        known = LinkAction(action)
    except ValueError:
        raise InvalidLinkError from None
    if version != _LINK_VERSION:
        raise InvalidLinkError
    return LinkClaims(token, known, datetime.fromtimestamp(expires, UTC), UUID(bytes=tenant), UUID(bytes=message))


def _key_id(key: str) -> bytes:
    return hashlib.sha256(b"key id" + key.encode()).digest()[:4]


def _base64url_encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode_token(text: str) -> bytes:
    if len(text) > 8000 or not text.isascii():
        raise InvalidLinkError
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidLinkError from None
    # Exactly one encoding is valid: a text that differs in unused bits was not made here.
    if _base64url_encode(raw) != text:
        raise InvalidLinkError
    return raw
