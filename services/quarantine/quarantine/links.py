"""Signed links: bound to recipient, mail and action, and good for a time. Pure functions over data."""

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
"""How long a confirming page may stay open."""
SHORTEST_KEY = 32

_LAYOUT = struct.Struct(">BBI4s16s16s")
_VERSION = 1
_MAC_BYTES = 16


class InvalidLinkError(Exception):
    """Nobody signed this link, or not for this."""


class ExpiredError(Exception):
    """The link was good once."""


class LinkAction(IntEnum):
    """What a link is for."""

    VIEW = 1
    RELEASE = 2
    REQUEST = 3
    BLOCK = 4
    REPORT = 5


@dataclass(frozen=True, slots=True)
class Claim:
    """What a link says of itself; `Signer.check` tells whether to believe it."""

    token: str
    action: LinkAction
    expires_at: datetime
    tenant_id: UUID
    message_id: UUID


class Signer:
    """
    Signs with the first of *keys* and believes all of them, so that a new key can be put before the old one.

    Each has at least SHORTEST_KEY characters; raises ValueError otherwise, or when there is none.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys or any(len(key) < SHORTEST_KEY for key in keys):
            raise ValueError(f"link keys: give at least one, each of at least {SHORTEST_KEY} characters")
        self._keys = {_key_id(key): key.encode() for key in reversed(keys)}
        self._newest = _key_id(keys[0])

    def link(
        self, action: LinkAction, *, tenant_id: UUID, message_id: UUID, recipient: str, expires_at: datetime
    ) -> str:
        """Make the token of a link for *recipient*, who gets nothing else done with it."""
        content = _LAYOUT.pack(
            _VERSION, action, int(expires_at.timestamp()), self._newest, tenant_id.bytes, message_id.bytes
        )
        return _written(content + self._mac(self._newest, b"link", content, recipient.lower().encode()))

    def check(self, claim: Claim, recipient: str, now: datetime) -> None:
        """Raise InvalidLinkError unless the link was signed for *recipient*, ExpiredError when its time is over."""
        raw = _read(claim.token)
        content, mac = raw[: _LAYOUT.size], raw[_LAYOUT.size :]
        key_id = _LAYOUT.unpack(content)[3]
        if key_id not in self._keys:
            raise InvalidLinkError
        if not hmac.compare_digest(mac, self._mac(key_id, b"link", content, recipient.lower().encode())):
            raise InvalidLinkError
        if claim.expires_at <= now:
            raise ExpiredError

    def confirmation(self, token: str, who: str, now: datetime) -> str:
        """Make what a confirming page sends back: that page was seen, by *who*, for this link."""
        at = struct.pack(">I", int(now.timestamp()))
        return _written(self._newest + at + self._mac(self._newest, b"confirm", at, token.encode(), who.encode()))

    def is_confirmed(self, confirmation: str, token: str, who: str, now: datetime) -> bool:
        """Tell whether the confirming page of this link was seen by *who* a short time ago."""
        try:
            raw = _read(confirmation)
        except InvalidLinkError:
            return False
        key_id, at, mac = raw[:4], raw[4:8], raw[8:]
        if key_id not in self._keys or len(at) != 4:
            return False
        right = hmac.compare_digest(mac, self._mac(key_id, b"confirm", at, token.encode(), who.encode()))
        age = now - datetime.fromtimestamp(struct.unpack(">I", at)[0], UTC)
        return right and timedelta(minutes=-1) <= age <= CONFIRMED_WITHIN

    def seal(self, purpose: str, content: bytes) -> str:
        """Sign *content*, which whoever holds it can read but not change."""
        return _written(self._newest + content + self._mac(self._newest, b"seal", purpose.encode(), content))

    def unseal(self, purpose: str, sealed: str) -> bytes:
        """Return what was sealed for this purpose. Raises InvalidLinkError."""
        raw = _read(sealed)
        key_id, content, mac = raw[:4], raw[4:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if key_id not in self._keys:
            raise InvalidLinkError
        if not hmac.compare_digest(mac, self._mac(key_id, b"seal", purpose.encode(), content)):
            raise InvalidLinkError
        return content

    def _mac(self, key_id: bytes, purpose: bytes, *parts: bytes) -> bytes:
        content = purpose + b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return hmac.digest(self._keys[key_id], content, hashlib.sha256)[:_MAC_BYTES]


def read(token: str) -> Claim:
    """Read what a link says of itself. Raises InvalidLinkError when it is none."""
    raw = _read(token)
    if len(raw) != _LAYOUT.size + _MAC_BYTES:
        raise InvalidLinkError
    version, action, expires, _, tenant, message = _LAYOUT.unpack(raw[: _LAYOUT.size])
    try:
        known = LinkAction(action)
    except ValueError:
        raise InvalidLinkError from None
    if version != _VERSION:
        raise InvalidLinkError
    return Claim(token, known, datetime.fromtimestamp(expires, UTC), UUID(bytes=tenant), UUID(bytes=message))


def _key_id(key: str) -> bytes:
    return hashlib.sha256(b"key id" + key.encode()).digest()[:4]


def _written(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _read(text: str) -> bytes:
    if len(text) > 8000 or not text.isascii():
        raise InvalidLinkError
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidLinkError from None
    # One spelling for each: what differs in unused bits was not written here.
    if _written(raw) != text:
        raise InvalidLinkError
    return raw
