"""
Stores raw messages by SHA-256 in a local folder, S3, Azure Blob Storage or Google Cloud Storage.

obstore writes a local file under a temporary name and renames it, so that readers never see part of it, but never syncs
it (seen with strace, obstore 0.12): after a power failure the file may be empty or missing. For local folders this
module syncs files, and removes temporary files (`<sha256>#<number>`) left by a crash.
"""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import UUID

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_INLINE_BYTES = 262_144
_LEFT_SECONDS = 3600
"""No write takes this long: older temporary files were left by a crash of some process that uses the folder."""

_RETRIES: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
"""Enough for a brief cloud failure. obstore's default is three minutes, but callers have their own retries."""


class StoreUnavailable(Exception):  # noqa: N818  the name says what is the case
    """The operation failed: disk full, no permission, no network. Nothing was lost; try again later."""


class MailMissing(Exception):  # noqa: N818  the name says what is the case
    """The store has no message with this hash for this tenant."""


class MailCorrupt(Exception):  # noqa: N818  the name says what is the case
    """The stored content does not match its hash."""


class MailStore:
    """
    Stores raw messages by content: all reports of one message share one object `<tenant>/<2 hex>/<sha256>`.

    *url* is `file:///folder` (created if missing), `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`,
    or `memory:///`, which is lost when the process ends. Account, region and credentials come from the cloud's usual
    environment variables (AZURE_STORAGE_ACCOUNT_NAME, AWS_REGION, ...) and files. Raises ValueError for any other URL,
    StoreUnavailable if the folder cannot be created.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        try:
            self._store = (
                LocalStore.from_url(url, mkdir=True) if parts.scheme == "file" else from_url(url, retry_config=_RETRIES)
            )
        except OSError as error:
            raise StoreUnavailable(f"The folder of the mail store {self._place} cannot be made: {error}.") from error
        except (BaseError, ValueError) as error:
            raise ValueError(f"{self._place} is no place for a mail store: {_first_line(error)}") from error
        self._folder = self._store.prefix if isinstance(self._store, LocalStore) else None
        self._synced_folders: set[Path] = set()

    async def put(self, tenant_id: UUID | str, raw: bytes) -> str:
        """
        Store *raw* durably and return its SHA-256. Storing it again changes nothing.

        Raises StoreUnavailable if it could not be stored, ValueError if *tenant_id* is not a UUID.
        """
        sha256 = await _sha256(raw)
        path = _path(tenant_id, sha256)
        try:
            try:
                await obstore.put_async(self._store, path, raw, mode="create")
            except AlreadyExistsError:
                # A crash before the sync may have left a damaged local file; clouds only store complete objects.
                if self._folder and await _sha256(await self._read(path)) != sha256:
                    await obstore.put_async(self._store, path, raw)
            if self._folder:
                await asyncio.to_thread(self._sync, self._folder / path)
        except (BaseError, OSError) as error:
            raise self._unavailable("kept", path, error) from error
        return sha256

    async def get(self, tenant_id: UUID | str, sha256: str) -> bytes:
        """
        Return the message with this hash.

        Raises MailMissing, MailCorrupt, StoreUnavailable; ValueError if an argument is not a UUID or SHA-256.
        """
        path = _path(tenant_id, sha256)
        try:
            raw = await self._read(path)
        except FileNotFoundError as error:
            if self._folder and not await asyncio.to_thread(self._folder.is_dir):
                raise self._unavailable("read", path, error) from error
            raise MailMissing(f"The mail store {self._place} holds no {path}.") from error
        except (BaseError, OSError) as error:
            raise self._unavailable("read", path, error) from error
        if await _sha256(raw) != sha256:
            raise MailCorrupt(
                f"{path} in the mail store {self._place} is damaged: restore it, or report the mail again."
            )
        return raw

    async def delete(self, tenant_id: UUID | str, sha256: str) -> None:
        """
        Delete the message with this hash for this tenant, if it exists.

        Raises StoreUnavailable; ValueError if an argument is not a UUID or SHA-256.
        """
        path = _path(tenant_id, sha256)
        try:
            await obstore.delete_async(self._store, path)
            if self._folder:
                await asyncio.to_thread(_sync_path, (self._folder / path).parent)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise self._unavailable("deleted", path, error) from error

    async def older(self, age: timedelta) -> AsyncIterator[list[tuple[UUID, str]]]:
        """
        Yield pages of tenant and SHA-256 of the messages that were last stored more than *age* ago.

        Objects whose name is not that of a message are skipped. Raises StoreUnavailable.
        """
        before = datetime.now(UTC) - age
        try:
            async for page in obstore.list(self._store, chunk_size=1000):
                yield [place for meta in page if meta["last_modified"] < before and (place := _place(meta["path"]))]
        except (BaseError, OSError) as error:
            raise self._unavailable("listed", "everything", error) from error

    async def _read(self, path: str) -> bytes:
        found = await obstore.get_async(self._store, path)
        return bytes(await found.bytes_async())

    def _sync(self, file: Path) -> None:
        """Make *file* survive a power failure: its content, its name, and the names of new folders."""
        if file.parent not in self._synced_folders:
            _remove_leftovers(file.parent)
        _sync_path(file)
        _sync_path(file.parent)
        for folder in (file.parent, file.parent.parent, file.parent.parent.parent):
            if folder not in self._synced_folders:
                _sync_path(folder.parent)
                self._synced_folders.add(folder)

    def _unavailable(self, done: str, path: str, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"{path} was not {done} in the mail store {self._place}: {_first_line(error)}")


def _path(tenant_id: UUID | str, sha256: str) -> str:
    """Return the path of a message. The arguments are untrusted, so only well-formed ones become part of a path."""
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256[:100]!r} is no SHA-256 in lower-case hexadecimal.")
    return f"{UUID(str(tenant_id))}/{sha256[:2]}/{sha256}"


def _place(path: str) -> tuple[UUID, str] | None:
    """Return tenant and SHA-256 of the message at *path*; None if the path is not that of a message."""
    tenant_id, sha256 = path.partition("/")[0], path.rpartition("/")[2]
    try:
        return (UUID(tenant_id), sha256) if path == _path(tenant_id, sha256) else None
    except ValueError:
        return None


async def _sha256(raw: bytes) -> str:
    if len(raw) <= _HASH_INLINE_BYTES:
        return hashlib.sha256(raw).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, raw)).hexdigest()


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    before = time.time() - _LEFT_SECONDS
    for left in folder.glob("*#*"):
        # Another process may have removed it meanwhile.
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < before:
                left.unlink()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
