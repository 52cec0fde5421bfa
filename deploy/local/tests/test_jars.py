"""Kafka's jars are the ones that were published, or there is a clear reason why not."""

import gc
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_stack.jars import fetch, kafka_jars
from local_stack.ports import choose_port
from local_stack.supervisor import StackError

JAR = "com.example:thing:1.0"
PLACE = "com/example/thing/1.0/thing-1.0.jar"
CONTENT = b"what was published"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    """Serve files without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty local Maven repository."""
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    return tmp_path / "m2"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a mirror of Maven Central that has the jar."""
    folder = tmp_path / "mirror"
    (folder / PLACE).parent.mkdir(parents=True)
    (folder / PLACE).write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("BACKSTOP_MAVEN_REPOSITORY", f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


def files_in(folder: Path) -> list[Path]:
    """Return the files in *folder* and below."""
    return [file for file in folder.rglob("*") if file.is_file()]


def test_every_jar_of_kafka_has_a_hash() -> None:
    """The list names each artefact of the broker once, with its SHA-256."""
    jars = kafka_jars()

    assert len(jars) == 46
    assert "org.apache.kafka:kafka_2.13:4.3.1" in jars
    assert {len(sha256) for sha256 in jars.values()} == {64}


@pytest.mark.usefixtures("mirror")
async def test_a_missing_jar_is_downloaded_and_kept(repository: Path) -> None:
    """A jar is put into the local Maven repository, where the next run finds it, and nothing else is left there."""
    assert await fetch({JAR: SHA256}) == [repository / PLACE]

    assert (repository / PLACE).read_bytes() == CONTENT
    assert files_in(repository) == [repository / PLACE]


async def test_a_jar_that_is_there_is_not_downloaded_again(
    repository: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all jars in the local repository, no network is needed."""
    await fetch({JAR: SHA256})
    (mirror / PLACE).unlink()
    monkeypatch.setenv("BACKSTOP_MAVEN_REPOSITORY", f"http://127.0.0.1:{choose_port('closed')}")

    assert await fetch({JAR: SHA256}) == [repository / PLACE]


@pytest.mark.usefixtures("mirror")
async def test_a_broken_jar_is_replaced(repository: Path) -> None:
    """What an interrupted download left in the local repository is not used."""
    (repository / PLACE).parent.mkdir(parents=True)
    (repository / PLACE).write_bytes(CONTENT[:3])

    await fetch({JAR: SHA256})

    assert (repository / PLACE).read_bytes() == CONTENT


async def test_a_wrong_hash_is_refused(repository: Path, mirror: Path) -> None:
    """A download with another content is thrown away, and the error names both hashes and what to do."""
    (mirror / PLACE).write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()

    with pytest.raises(StackError, match=f"{JAR}.*SHA-256 {found} instead of {SHA256}.*thrown away: try again"):
        await fetch({JAR: SHA256})

    assert not (repository / PLACE).exists()


async def test_a_refused_download_is_one_line(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the error says what could not be fetched, and which settings help."""
    monkeypatch.setenv("BACKSTOP_MAVEN_REPOSITORY", f"http://127.0.0.1:{choose_port('closed')}")

    with pytest.raises(
        StackError, match=r"the connection was refused.*HTTPS_PROXY.*BACKSTOP_MAVEN_REPOSITORY"
    ) as raised:
        await fetch({JAR: SHA256})

    assert "\n" not in str(raised.value)
    assert not (repository / PLACE).exists()


@pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")
async def test_a_jar_that_the_mirror_lacks_is_named(repository: Path, mirror: Path) -> None:
    """A mirror that does not have the jar is an error with the jar's name."""
    (mirror / PLACE).unlink()

    with pytest.raises(StackError, match=f"{JAR}.*not found"):
        await fetch({JAR: SHA256})

    assert not (repository / PLACE).exists()
    # jgo 3.2 leaves the connection of a 404 open; it is to be found here, and not in a test that comes later.
    gc.collect()


async def test_a_repository_that_cannot_be_written_is_one_line(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local repository that is no folder is an error that names it."""
    monkeypatch.setenv("M2_REPO", str(mirror / PLACE))

    with pytest.raises(StackError, match=str(tmp_path)):
        await fetch({JAR: SHA256})
