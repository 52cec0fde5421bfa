"""Set-up succeeds on a bare Python, or says in one line what is missing."""

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import sys
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "bootstrap.py"
PROJECT = """
[project]
name = "backstop-contracts"
version = "0.1.0"
dependencies = []
[build-system]
requires = []
build-backend = "build"
backend-path = ["."]
"""
# The smallest backend that can install a folder in place: the test needs no package index for hatchling.
BACKEND = """
import zipfile

INFO = "backstop_contracts-0.1.0.dist-info"

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "backstop_contracts-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\\nName: backstop-contracts\\nVersion: 0.1.0\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{INFO}/WHEEL", tags)
        wheel.writestr(f"{INFO}/RECORD", "")
    return name

def build_wheel(*_, **__):
    raise NotImplementedError
"""


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small checkout: the script, one part, and a lock that names one library, which lies in `wheels`."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "deploy/local").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "deploy/local")
    (root / "contracts").mkdir()
    (root / "contracts/pyproject.toml").write_text(PROJECT)
    (root / "contracts/build.py").write_text(BACKEND)
    (root / "wheels").mkdir()
    with zipfile.ZipFile(root / "wheels/thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "")
        wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        wheel.writestr(
            "thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("thing-1.0.dist-info/RECORD", "")
    return root


def lock(checkout: Path, sha256: str | None = None) -> None:
    """Write a lock that was not seen before, with *sha256* or the right hash of the library."""
    right = hashlib.sha256((checkout / "wheels/thing-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    (checkout / "requirements.lock").write_text(f"# {uuid.uuid4()}\nthing==1.0 --hash=sha256:{sha256 or right}\n")


async def set_up(checkout: Path, **env: str) -> tuple[int, str]:
    """Run the script and return its exit code and what it said."""
    process = await start(checkout, env)
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def start(checkout: Path, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start the script with no package index but the folder `wheels`."""
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "wheels")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(checkout / "deploy/local/bootstrap.py")),
        env={**clean, **pip, **env},
        stderr=asyncio.subprocess.PIPE,
    )


def last_line(said: str) -> str:
    """Return the one line that counts, and see that nothing in it is for programmers."""
    assert "Traceback" not in said
    return said.splitlines()[-1]


async def test_an_interrupted_set_up_is_begun_anew_and_then_instant(checkout: Path) -> None:
    """What was left half done is removed, all is installed, and the next run sees no change and says nothing."""
    lock(checkout)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    (checkout / ".venv/backstop-unfinished").touch()

    code, said = await set_up(checkout)

    assert code == 0, said
    assert "which is unfinished or broken" in said
    assert re.search(r"Set up in \d+ s\.", last_line(said))
    installed = {folder.name for folder in (checkout / ".venv").glob("lib/*/site-packages/*.dist-info")}
    assert {"thing-1.0.dist-info", "backstop_contracts-0.1.0.dist-info"} <= installed
    assert await set_up(checkout) == (0, "")


async def test_a_wrong_hash_is_one_line(checkout: Path) -> None:
    """A library with another content than the lock names is not installed."""
    lock(checkout, sha256="0" * 64)

    code, said = await set_up(checkout, PIP_FORCE_REINSTALL="1")

    assert code == 1
    assert "wrong hash" in last_line(said)


async def test_a_refused_download_is_one_line(checkout: Path) -> None:
    """Without a network the line says what to look at."""
    lock(checkout)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"

        code, said = await set_up(
            checkout, PIP_NO_INDEX="0", PIP_INDEX_URL=index, PIP_FIND_LINKS="", PIP_RETRIES="1", PIP_FORCE_REINSTALL="1"
        )

    assert code == 1
    assert "the download was refused or broke" in last_line(said)


async def test_a_library_that_the_index_lacks_is_named(checkout: Path) -> None:
    """An index without the library is an error that names it."""
    lock(checkout)

    code, said = await set_up(checkout, PIP_FIND_LINKS="", PIP_FORCE_REINSTALL="1")

    assert code == 1
    assert "has no thing==1.0" in last_line(said)


async def test_two_set_ups_at_once_are_one_after_the_other(checkout: Path) -> None:
    """A second set-up of the same checkout waits, and finds the work done."""
    lock(checkout)
    (checkout / ".local").mkdir(exist_ok=True)

    with (checkout / ".local/setup.lock").open("w") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        both = [await start(checkout, {}) for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            assert "waiting for it" in (await process.stderr.readline()).decode()
    said = [(await process.communicate())[1].decode() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sum("Set up in" in one for one in said) == 1


async def test_a_missing_lock_is_one_line(checkout: Path) -> None:
    """Without the lock nothing is installed."""
    (checkout / "requirements.lock").unlink(missing_ok=True)

    code, said = await set_up(checkout)

    assert code == 1
    assert "requirements.lock is missing" in last_line(said)


def test_an_old_python_is_told_what_is_needed(bootstrap: ModuleType) -> None:
    """On Python 3.8 the line names the version that is needed, the one that was found, and a way on."""
    with pytest.raises(
        bootstrap.SetupError, match=r"Python 3\.11 or newer is needed, and .* is Python 3\.8\.18: .*make PYTHON="
    ):
        bootstrap.check_python((3, 8, 18))


def test_a_python_without_venv_is_told_what_to_install(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the distribution has split the module off, the line names the package."""

    class FindsNothing:
        def find_spec(self, *_: object) -> None:
            return None

    monkeypatch.setattr(sys, "meta_path", [FindsNothing()])
    for module in ("venv", "ensurepip"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    with pytest.raises(bootstrap.SetupError, match=r"without the module .*apt install python3\.11-venv"):
        bootstrap.check_python((3, 11, 2))


def test_a_full_disk_is_one_line(bootstrap: ModuleType) -> None:
    """The words of pip for a full disk become ours."""
    said = ["Installing collected packages: thing\n", "ERROR: Could not install: [Errno 28] No space left on device\n"]

    assert bootstrap.reason(said).startswith("the disk is full")


def test_the_lock_is_made_from_what_the_parts_ask_for(bootstrap: ModuleType) -> None:
    """Requirements of all parts are collected once, and our own parts are not looked for anywhere."""
    asked = bootstrap.requirements()

    assert len(set(asked)) == len(asked)
    assert any(line.startswith("aiokafka") for line in asked)
    assert not any(line.startswith("backstop-") for line in asked)
