"""
Parse an uploaded message and its attributes from a request, enforcing limits.

It is sent as message/rfc822 (the attributes in query parameters), as multipart/form-data, or in base64 inside JSON.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from backstop_contracts import Folder, ReportedAs
from chassis.http import Problem
from chassis.request_limits import Body

SMALL_BYTES = 64 << 10
"""Largest upload that needs no slot, and whose message is parsed in the event loop."""
_OVERHEAD_BYTES = 64 << 10
"""What a body may hold besides the message: fields, boundaries, headers of parts."""
_MOST_FIELD_BYTES = 4096
_MOST_FIELDS = 10

Bytes = TypeVar("Bytes", bytes, bytearray)

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
Address = Annotated[
    str, Field(max_length=254, pattern=rf"^[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+$")
]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MailboxPlace(_Said):
    """Where the message is in Exchange Online: lets Microsoft look at the mailbox as well."""

    user_id: Annotated[str, Field(max_length=254, pattern=r"^[A-Za-z0-9.!#$%&'*+=?^_`{|}~@-]+$")]
    """Object id or address of the mailbox's user."""
    message_id: Annotated[str, Field(max_length=512, pattern="^[A-Za-z0-9_=+/-]+$")]
    """Graph's id of the message in that mailbox."""


class Attributes(_Said):
    """What the reporter states about the message."""

    reported_as: ReportedAs
    folder: Literal[Folder.INBOX, Folder.JUNK] | None = None
    """Where the message was. Default: where its headers say that it was delivered, else the Inbox."""
    reporter: Address | None = None
    """The mailbox that received the message. Applications must set it; a signed-in person is the reporter."""
    block_sender: bool = False
    """Block the message's sender for this mailbox."""
    mailbox_message: MailboxPlace | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A message and its attributes."""

    raw: bytes
    said: Attributes


class Uploads:
    """
    Reads uploads, with limits on their size, on their duration, and on the number of large ones.

    An upload that is not accepted raises Problem and leaves nothing behind.
    """

    def __init__(self, *, max_message_bytes: int, large_at_once: int, seconds: float, patience: float = 20) -> None:
        self.max_message_bytes = max_message_bytes
        # In base64, the longest of the three ways.
        self._most_bytes = (max_message_bytes + 2) // 3 * 4 + _OVERHEAD_BYTES
        self._room = asyncio.Semaphore(large_at_once)
        self._seconds = seconds
        self._patience = patience

    def allow(self, request: Request) -> None:
        """Allow *request* a body that can hold the largest message, and the time that an upload may take."""
        body: Body = request.scope[Body.KEY]
        # A little more than `receive` reads, whose refusal can say how large a message may be.
        body.allow(self._most_bytes + (1 << 20), self._seconds)

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """Read *request*. A large message takes a slot until the block ends, and waits for one at most *patience* s."""
        declared = request.headers.get("content-length")
        if declared and int(declared) <= SMALL_BYTES:
            yield await self._read(request)
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._room.acquire()
        except TimeoutError:
            raise Problem(
                503, "too-many-large-messages", "Nothing was saved. Send the request again later.", retry_after=10
            ) from None
        try:
            yield await self._read(request)
        finally:
            self._room.release()

    async def _read(self, request: Request) -> Upload:
        kind, options = parse_options_header(request.headers.get("content-type"))
        readers = {
            b"message/rfc822": self._read_rfc822,
            b"multipart/form-data": self._read_multipart,
            b"application/json": self._read_json,
        }
        if kind not in readers:
            takes = ", ".join(sorted(name.decode() for name in readers))
            raise Problem(415, "unsupported-content-type", f"Send one of {takes}. Nothing was saved.")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "unsupported-content-encoding", "Send the message uncompressed. Nothing was saved.")
        if kind != b"message/rfc822" and request.url.query:
            raise Problem(
                422,
                "unexpected-query-parameters",
                "Query parameters go with message/rfc822 only; put them into the body. Nothing was saved.",
            )
        try:
            return await readers[kind](request, options)
        except ClientDisconnect:
            raise Problem(
                400, "upload-incomplete", "Fewer bytes arrived than were announced. Nothing was saved."
            ) from None

    async def _read_rfc822(self, request: Request, _options: dict[bytes, bytes]) -> Upload:
        said = _attributes(parse_qsl(request.url.query, keep_blank_values=True))
        raw = b"".join([chunk async for chunk in self._chunks(request, self.max_message_bytes)])
        return Upload(self._mail(raw), said)

    async def _read_multipart(self, request: Request, options: dict[bytes, bytes]) -> Upload:
        form = _Form(options.get(b"boundary", b""), self)
        async for chunk in self._chunks(request, self.max_message_bytes + _OVERHEAD_BYTES):
            form.write(chunk)
        raw, fields = form.finish()
        return Upload(self._mail(bytes(raw)), _attributes(fields))

    async def _read_json(self, request: Request, _options: dict[bytes, bytes]) -> Upload:
        body = b"".join([chunk async for chunk in self._chunks(request, self._most_bytes)])
        if len(body) <= SMALL_BYTES:
            return self._from_json(body)
        return await asyncio.to_thread(self._from_json, body)

    def _from_json(self, body: bytes) -> Upload:
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Problem(422, "invalid-json", f"{error}. Nothing was saved.") from None
        if not isinstance(fields, dict):
            raise Problem(422, "invalid-json", "The body must be a JSON object. Nothing was saved.")
        mail = fields.pop("mail", None)
        if not isinstance(mail, str):
            raise _invalid("mail", "the raw mail in base64 is required")
        said = _validated(fields)
        try:
            raw = base64.b64decode(mail, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Problem(
                400,
                "invalid-base64",
                f"{error}: the message was cut off, or is not standard base64 without line breaks. Nothing was saved.",
            ) from None
        return Upload(self._mail(raw), said)

    async def _chunks(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """Yield the body piece by piece; refuse it as soon as it is known to be longer than *most* bytes."""
        taken = int(request.headers.get("content-length", 0))
        if taken > most:
            raise self.too_large()
        taken = 0
        async for chunk in request.stream():
            taken += len(chunk)
            if taken > most:
                raise self.too_large()
            yield chunk

    def _mail(self, raw: bytes) -> bytes:
        if not raw:
            raise Problem(400, "empty-message", "The message is empty. Nothing was saved.")
        if len(raw) > self.max_message_bytes:
            raise self.too_large()
        return raw

    def too_large(self) -> Problem:
        """Return the problem that says how large a message may be."""
        return Problem(
            413, "message-too-large", f"At most {self.max_message_bytes} bytes are accepted. Nothing was saved."
        )


class _Form:
    """The parts of a multipart body: `mail`, and the attributes as fields of text."""

    def __init__(self, boundary: bytes, uploads: Uploads) -> None:
        self._uploads = uploads
        self._mail: bytearray | None = None
        self._fields: list[tuple[str, bytearray]] = []
        self._header = (bytearray(), bytearray())
        self._headers: dict[str, str] = {}
        self._part = bytearray()
        self._most = 0
        self._whole = False
        if not boundary:
            raise Problem(400, "invalid-multipart", "Name the boundary in Content-Type. Nothing was saved.")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_begin": self._begin_header,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_part,
                    "on_part_data": self._extend_part,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _not_multipart(error) from None

    def write(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _not_multipart(error) from None

    def finish(self) -> tuple[bytearray, list[tuple[str, str]]]:
        """Return the message and the fields. Raises Problem if the closing boundary is missing."""
        if not self._whole:
            raise Problem(400, "upload-incomplete", "The closing boundary is missing. Nothing was saved.")
        if self._mail is None:
            raise _invalid("mail", "the raw mail is required, as a file")
        try:
            return self._mail, [(name, value.decode()) for name, value in self._fields]
        except UnicodeDecodeError:
            raise Problem(422, "invalid-request", "A field is not UTF-8. Nothing was saved.") from None

    def _begin_header(self) -> None:
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def _begin_part(self) -> None:
        disposition, options = parse_options_header(self._headers.get("content-disposition"))
        name = options.get(b"name", b"").decode(errors="replace")
        if disposition != b"form-data" or not name:
            raise Problem(400, "invalid-multipart", "A part has no name. Nothing was saved.")
        if self._headers.get("content-transfer-encoding", "binary").lower() not in ("7bit", "8bit", "binary"):
            raise Problem(
                415, "unsupported-content-encoding", "Send the parts of the form unencoded. Nothing was saved."
            )
        self._part = bytearray()
        if name == "mail":
            if self._mail is not None:
                raise _invalid("mail", "one mail at a time")
            self._mail, self._most = self._part, self._uploads.max_message_bytes
        else:
            self._fields.append((name, self._part))
            self._most = _MOST_FIELD_BYTES
        if len(self._fields) > _MOST_FIELDS:
            raise Problem(422, "invalid-request", "There are too many fields. Nothing was saved.")

    def _extend_part(self, data: bytes, start: int, end: int) -> None:
        self._part += data[start:end]
        if len(self._part) > self._most:
            if self._part is self._mail:
                raise self._uploads.too_large()
            raise Problem(422, "invalid-request", "A field is too long. Nothing was saved.")

    def _on_end(self) -> None:
        self._whole = True


def _attributes(fields: Iterable[tuple[str, str]]) -> Attributes:
    """Read attributes that come as text, one name each; those of `mailbox_message` are written with a dot."""
    said: dict[str, Any] = {}
    place: dict[str, str] = {}
    for field, value in fields:
        outer, _, inner = field.rpartition(".")
        into, name = (place, inner) if outer == "mailbox_message" else (said, field)
        if name in into:
            raise _invalid(field, "it is said twice")
        into[name] = value
    return _validated({"mailbox_message": place, **said} if place else said)


def _validated(said: dict[str, Any]) -> Attributes:
    try:
        return Attributes.model_validate(said)
    except ValidationError as error:
        # Names of unknown fields come from the sender: they are not repeated at length.
        errors = [
            {"loc": [str(part)[:100] for part in e["loc"]], "msg": e["msg"]}
            for e in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FIELDS]
        ]
        raise RequestValidationError(errors) from None


def _invalid(where: str, what: str) -> RequestValidationError:
    return RequestValidationError([{"loc": (where,), "msg": what}])


def _not_multipart(error: FormParserError) -> Problem:
    return Problem(400, "invalid-multipart", f"{error}. Nothing was saved.")
