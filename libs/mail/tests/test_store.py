"""The mail store keeps what it was given, durably, or says that it did not."""

import asyncio
import hashlib
import os
import resource
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import pytest

from mail import MailCorrupt, MailMissing, MailStore, StoreUnavailable

TENANT = UUID("11111111-2222-3333-4444-555555555555")
OTHER = UUID("99999999-2222-3333-4444-555555555555")
RAW = b"From: ann@example.com\nSubject: x\n\nhello\n"
SHA256 = hashlib.sha256(RAW).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name a folder that is not there yet."""
    return tmp_path / "new" / "mails"


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, folder: Path) -> MailStore:
    """Return an empty store of each kind that needs no network."""
    return MailStore("memory:///" if request.param == "memory" else folder.as_uri())


def files_in(folder: Path) -> list[Path]:
    """Return every file below *folder*."""
    return [path for path in folder.rglob("*") if path.is_file()]


def file_of(folder: Path) -> Path:
    """Return where the mail must lie."""
    return folder / str(TENANT) / SHA256[:2] / SHA256


async def test_what_was_put_can_be_got(store: MailStore) -> None:
    """A mail comes back byte for byte under its hash."""
    assert await store.put(TENANT, RAW) == SHA256
    assert await store.get(TENANT, SHA256) == RAW
    assert await store.get(str(TENANT).upper(), SHA256) == RAW


@pytest.mark.parametrize("raw", [b"", b"x" * 300_000, bytes(range(256)) * 50_000], ids=len)
async def test_mails_of_every_size_are_kept(store: MailStore, raw: bytes) -> None:
    """From nothing to many megabytes."""
    assert await store.get(TENANT, await store.put(TENANT, raw)) == raw


async def test_one_mail_is_one_object(folder: Path) -> None:
    """Reports of one mail, also at the same time, store it once, where its hash says."""
    store = MailStore(folder.as_uri())
    assert set(await asyncio.gather(*(store.put(TENANT, RAW) for _ in range(20)))) == {SHA256}
    assert files_in(folder) == [file_of(folder)]


async def test_tenants_do_not_share_mails(store: MailStore) -> None:
    """The hash alone opens nothing in another tenant."""
    await store.put(TENANT, RAW)
    with pytest.raises(MailMissing, match=SHA256):
        await store.get(OTHER, SHA256)


async def test_a_deleted_mail_is_gone(store: MailStore) -> None:
    """Deleting is done once and may be asked twice, and the mail may come back."""
    await store.put(TENANT, RAW)
    await store.delete(TENANT, SHA256)
    await store.delete(TENANT, SHA256)
    with pytest.raises(MailMissing):
        await store.get(TENANT, SHA256)
    assert await store.put(TENANT, RAW) == SHA256
    assert await store.get(TENANT, SHA256) == RAW


async def test_a_damaged_mail_is_not_given_out_and_is_mended_by_the_next_report(folder: Path) -> None:
    """A file that a crash emptied is recognised by its hash, and putting the mail again replaces it."""
    store = MailStore(folder.as_uri())
    await store.put(TENANT, RAW)
    file_of(folder).write_bytes(b"")
    with pytest.raises(MailCorrupt, match="damaged"):
        await store.get(TENANT, SHA256)
    await store.put(TENANT, RAW)
    assert await store.get(TENANT, SHA256) == RAW


@pytest.mark.parametrize("tenant", ["", "..", "../../etc", "contoso.example", f"{TENANT}/..", "1" * 31])
async def test_a_tenant_that_is_no_uuid_gets_nowhere(store: MailStore, tenant: str) -> None:
    """Only a UUID becomes a folder."""
    with pytest.raises(ValueError, match="UUID"):
        await store.put(tenant, RAW)
    with pytest.raises(ValueError, match="UUID"):
        await store.get(tenant, SHA256)


@pytest.mark.parametrize("sha256", ["", "..", SHA256[:-1], SHA256.upper(), f"../{SHA256}", f"{SHA256}\n", "g" * 64])
async def test_a_hash_that_is_none_gets_nowhere(store: MailStore, sha256: str) -> None:
    """Only 64 lower-case hexadecimal digits become a file."""
    with pytest.raises(ValueError, match="SHA-256"):
        await store.get(TENANT, sha256)
    with pytest.raises(ValueError, match="SHA-256"):
        await store.delete(TENANT, sha256)


async def test_a_mail_is_synced_with_its_folders_before_put_returns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the content, the name, and the new folders on the way to it are there."""
    synced: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    store = MailStore(folder.as_uri())
    await store.put(TENANT, RAW)
    file = file_of(folder)
    assert set(synced) == {file, file.parent, file.parent.parent, folder, folder.parent}
    assert synced[0] == file
    synced.clear()
    await store.put(TENANT, RAW)
    assert synced == [file, file.parent]


async def test_a_mail_that_cannot_be_synced_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails late is a store that is away, not a mail that is safe."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    store = MailStore(folder.as_uri())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnavailable, match=r"not kept .* Input/output error"):
            await store.put(TENANT, RAW)
    assert await store.put(TENANT, RAW) == SHA256


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let the kernel refuse files of more than four megabytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
async def test_a_full_disk_is_said_and_leaves_nothing_behind(folder: Path) -> None:
    """When the kernel takes no more bytes, the mail is not kept, and half of it is not there."""
    store = MailStore(folder.as_uri())
    raw = b"x" * 5_000_000
    with pytest.raises(StoreUnavailable, match="not kept") as caught:
        await store.put(TENANT, raw)
    assert "\n" not in str(caught.value)
    with pytest.raises(MailMissing):
        await store.get(TENANT, hashlib.sha256(raw).hexdigest())
    assert files_in(folder) == []


async def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    """A file where the tenant's folder should be stands for every reason that the system may have."""
    store = MailStore(folder.as_uri())
    (folder / str(TENANT)).write_text("in the way")
    with pytest.raises(StoreUnavailable, match=f"{SHA256} was not kept in the mail store file:///"):
        await store.put(TENANT, RAW)


async def test_a_store_whose_folder_is_gone_is_away_and_not_empty(folder: Path) -> None:
    """A disk that is not mounted must not look like mails that were never kept."""
    store = MailStore(folder.as_uri())
    await asyncio.to_thread(folder.rmdir)
    with pytest.raises(StoreUnavailable, match="not read"):
        await store.get(TENANT, SHA256)


@pytest.mark.parametrize("url", ["", "mails", "gopher://example.com/mails", "https//", "ftp://example.com"])
def test_a_url_that_is_no_store_is_refused(url: str) -> None:
    """A mistake in the settings is found at the start."""
    with pytest.raises(ValueError, match="no place for a mail store"):
        MailStore(url)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """The store says which folder."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="file/mails cannot be made"):
        MailStore((tmp_path / "file" / "mails").as_uri())


@pytest.mark.parametrize(
    "url", ["s3://bucket/mails", "az://container/mails", "gs://bucket/mails"], ids=lambda url: url[:2]
)
def test_cloud_stores_are_addressed_by_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is all that a cloud store needs; it is not asked before the first mail."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert MailStore(url)


CRASH = """
import asyncio, os, sys
from mail import MailStore

{patch}
asyncio.run(MailStore(sys.argv[1]).put(sys.argv[2], sys.stdin.buffer.read()))
"""


async def crash(folder: Path, patch: str) -> int:
    """Put the mail in a process that ends on its way."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CRASH.format(patch=patch), folder.as_uri(), str(TENANT)), stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(RAW)
    assert process.returncode is not None
    return process.returncode


async def test_a_crash_between_writing_and_syncing_is_healed_by_the_same_mail(folder: Path) -> None:
    """The process ended when the file had its name and nothing was synced; the power cut then emptied the file."""
    assert await crash(folder, "os.fsync = lambda _: os._exit(9)") == 9
    file_of(folder).write_bytes(RAW[:7])
    store = MailStore(folder.as_uri())
    with pytest.raises(MailCorrupt):
        await store.get(TENANT, SHA256)
    await store.put(TENANT, RAW)
    assert await store.get(TENANT, SHA256) == RAW
    assert files_in(folder) == [file_of(folder)]


async def test_a_crash_before_the_name_was_given_leaves_nothing_for_ever(folder: Path) -> None:
    """What was written aside is no mail, does not stand in the way, and goes when it is surely nobody's any more."""
    file = file_of(folder)
    file.parent.mkdir(parents=True)
    old, young, other = (file.with_name(f"{name}#1") for name in (SHA256, SHA256[:-1] + "0", SHA256[:-1] + "1"))
    for left in (old, young, other):
        left.write_bytes(RAW[:7])
    for left in (old, other):
        os.utime(left, (0, 0))
    store = MailStore(folder.as_uri())
    with pytest.raises(MailMissing):
        await store.get(TENANT, SHA256)
    await store.put(TENANT, RAW)
    assert set(files_in(folder)) == {file, young}
    assert await store.get(TENANT, SHA256) == RAW


async def test_a_disk_with_space_again_takes_the_mail_that_it_refused(folder: Path) -> None:
    """Nothing has to be mended by hand."""
    store, raw = MailStore(folder.as_uri()), b"x" * 5_000_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        with pytest.raises(StoreUnavailable, match="not kept"):
            await store.put(TENANT, raw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await store.get(TENANT, await store.put(TENANT, raw)) == raw


async def test_old_mails_are_listed_and_nothing_else(folder: Path) -> None:
    """By when they were put here; a file of another name is no mail."""
    store = MailStore(folder.as_uri())
    young = await store.put(TENANT, b"young")
    old = await store.put(OTHER, RAW)
    for name in ("notes.txt", f"{OTHER}/{old}", f"contoso.example/{old[:2]}/{old}", f"{OTHER}/ff/{old}"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"no mail")
    for file in files_in(folder):
        if file.name != young:
            os.utime(file, (0, 0))

    assert [place async for page in store.older(timedelta(days=1)) for place in page] == [(OTHER, old)]


async def test_a_cloud_that_is_away_is_given_up_after_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks has a deadline and retries of its own."""
    tries: list[str] = []

    class Away(BaseHTTPRequestHandler):
        """A cloud that is away."""

        def do_GET(self) -> None:
            tries.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Away) as cloud:
        serving = threading.Thread(target=cloud.serve_forever)
        serving.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cloud.server_port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        try:
            with pytest.raises(StoreUnavailable):
                await MailStore("s3://bucket/mails").get(TENANT, SHA256)
        finally:
            cloud.shutdown()
            serving.join()
    assert tries == [f"/bucket/mails/{TENANT}/{SHA256[:2]}/{SHA256}"] * 3
