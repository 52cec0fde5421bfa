"""Fetch the jars that Apache Kafka consists of into the local Maven repository, without Maven."""

import asyncio
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import requests
from jgo.maven import Artifact, MavenContext, PythonResolver

from local_stack.supervisor import StackError, explain, say

_CONNECTIONS = 8


def kafka_jars() -> dict[str, str]:
    """Return the jars of Kafka's broker as Maven resolves them: `group:artifact:version` and the SHA-256 of each."""
    lines = files("local_stack").joinpath("kafka-jars.txt").read_text().splitlines()
    return dict(line.split() for line in lines)


async def fetch(jars: Mapping[str, str]) -> list[Path]:
    """
    Return the paths of *jars* in the local Maven repository (`M2_REPO`, else `~/.m2/repository`); download what lacks.

    A file is used only if its SHA-256 is right, also one that was there before. They come from Maven Central, or from
    the mirror that `BACKSTOP_MAVEN_REPOSITORY` names.
    Raises `StackError` when a download is refused, or what comes is not what was expected.
    """
    abandoned = threading.Event()
    try:
        return await asyncio.to_thread(_fetch, jars, abandoned)
    except OSError as error:
        raise StackError(explain(error)) from error
    finally:
        abandoned.set()


def _fetch(jars: Mapping[str, str], abandoned: threading.Event) -> list[Path]:
    mirror = os.environ.get("BACKSTOP_MAVEN_REPOSITORY")
    maven = MavenContext(remote_repos={"mirror": mirror.rstrip("/")} if mirror else None)
    places = {jar: maven.repo_cache / _path_within_repository(maven, jar) for jar in jars}
    missing = [jar for jar, place in places.items() if _sha256(place) != jars[jar]]
    if missing:
        maven.repo_cache.mkdir(parents=True, exist_ok=True)
        # A whole and verified file is moved to its place at once: whoever shares the repository never sees half of one.
        with tempfile.TemporaryDirectory(dir=maven.repo_cache, prefix=".backstop-") as staging:
            staged = MavenContext(
                resolver=PythonResolver(progress_callback=partial(_give_up_when, abandoned)),
                repo_cache=Path(staging),
                remote_repos=maven.remote_repos,
            )
            _download(staged, {jar: jars[jar] for jar in missing}, places, abandoned)
    return list(places.values())


def _download(
    staged: MavenContext, jars: Mapping[str, str], places: Mapping[str, Path], abandoned: threading.Event
) -> None:
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        downloads = [pool.submit(_download_one, staged, jar, sha256, places[jar]) for jar, sha256 in jars.items()]
        try:
            for done, download in enumerate(as_completed(downloads), start=1):
                download.result()
                _show_progress(done, len(downloads))
        except BaseException:
            abandoned.set()
            pool.shutdown(cancel_futures=True)
            raise


def _download_one(staged: MavenContext, jar: str, sha256: str, place: Path) -> None:
    try:
        file = _artifact(staged, jar).resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise StackError(
            f"{jar}, a part of Kafka, could not be downloaded ({_reason(error)}): check the network and HTTPS_PROXY, "
            "or name a mirror of Maven Central in BACKSTOP_MAVEN_REPOSITORY, "
            "or a running Kafka in BACKSTOP_KAFKA_BOOTSTRAP."
        ) from error
    if (found := _sha256(file)) != sha256:
        raise StackError(
            f"{jar}, a part of Kafka, was downloaded with SHA-256 {found} instead of {sha256} and thrown away: "
            "try again; if it stays so, what your network or mirror delivers is not the file that was published."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    file.replace(place)


def _artifact(maven: MavenContext, jar: str) -> Artifact:
    group, name, version = jar.split(":")
    return maven.project(group, name).at_version(version).artifact()


def _path_within_repository(maven: MavenContext, jar: str) -> Path:
    artifact = _artifact(maven, jar)
    return artifact.component.path_prefix / artifact.cached_filename


@contextmanager
def _give_up_when(abandoned: threading.Event, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
    def received(_bytes: int) -> None:
        if abandoned.is_set():
            raise RuntimeError("the download was abandoned")

    yield received


def _show_progress(done: int, total: int) -> None:
    line = f"Kafka: {done} of {total} jars fetched"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}" + ("\n" if done == total else ""))
        sys.stderr.flush()
    elif done == total or done % 10 == 0:
        say(line)


def _reason(error: Exception) -> str:
    match error:
        case requests.Timeout():
            return "no answer in time"
        case requests.exceptions.SSLError():
            return "the server's certificate is not trusted"
        case requests.exceptions.ProxyError():
            return "the proxy refused"
        case requests.ConnectionError():
            return "the connection was refused or broke"
        case _:
            return str(error)


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        return None
