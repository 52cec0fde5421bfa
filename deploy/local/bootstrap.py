"""
Set this checkout up: `.venv` with the libraries of `requirements.lock` and every part of Backstop in place.

Runs on the system's Python with nothing but its standard library, and does nothing when nothing has changed.
`bootstrap.py requirements` instead prints what `requirements.lock` is made from.
"""

# Written so that Python 3.6 can read it, annotations too: users of an older Python shall hear what they need.
import contextlib
import errno
import hashlib
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLDEST = (3, 11)
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11")
ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ("contracts", "libs/*", "services/*", "cli", "simulator", "deploy/local")
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "backstop-stamp"
UNFINISHED = VENV / "backstop-unfinished"
OUTPUT = ROOT / ".local" / "setup.log"

# What pip says, in the order in which it counts (a refused connection also ends in "no matching distribution").
REASONS = (
    (
        r"No space left on device|Errno 28",
        "the disk is full: free some space (pip's cache is emptied by `pip cache purge`) and run this again",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        (
            "a download has the wrong hash, it is not what requirements.lock names, and was thrown away: run this "
            "again; if it stays so, the package index or proxy you use (`pip config list`) delivers something else"
        ),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "the package index's certificate is not trusted: give pip your company's certificate with PIP_CERT",
    ),
    (
        r"NewConnectionError|ConnectTimeout|ReadTimeout|ConnectionReset|Max retries exceeded|ProxyError|Retrying \(",
        "the download was refused or broke: check the network, HTTPS_PROXY and pip's index (`pip config list`)",
    ),
    (
        r"No matching distribution found for (\S+)",
        (
            "the package index you use (`pip config list`) has no {} for this Python and machine: try another Python "
            "(make PYTHON=python3.12) or another index"
        ),
    ),
    (r"Permission denied|Errno 13", "writing is not allowed: make this folder and pip's cache yours"),
)


class SetupError(Exception):
    """Set-up cannot go on; the message says what happened and what to do."""


def main() -> None:
    """Set up, or say in one line why not."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if sys.argv[1:] == ["requirements"]:
            sys.stdout.write("".join(f"{line}\n" for line in requirements()))
        else:
            set_up()
    except SetupError as error:
        stop(str(error))
    except OSError as error:
        stop(explain(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def set_up() -> None:
    """Make `.venv` what this checkout asks for; a set-up that was interrupted is begun anew."""
    if is_set_up():
        return
    check_python(sys.version_info[:3])
    with only_one():
        if is_set_up():
            return
        begin = time.monotonic()
        prepare_venv()
        total = len(re.findall(r"^[\w.-]+==", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
        say(f"Installing {total} libraries into {VENV}; what is downloaded stays in pip's cache for the next time.")
        pip("--require-hashes", "-r", str(LOCK), total=total)
        parts = [option for member in members() for option in ("-e", str(member))]
        pip("--no-deps", "--no-build-isolation", *parts, total=len(members()))
        STAMP.write_text(fingerprint(), encoding="utf-8")
        say(f"Set up in {time.monotonic() - begin:.0f} s.")


def is_set_up() -> bool:
    """Tell whether `.venv` is whole and was made for this lock and these members."""
    if not LOCK.exists():
        raise SetupError(f"{LOCK} is missing: restore it (git checkout requirements.lock).")
    try:
        return PYTHON.exists() and not UNFINISHED.exists() and STAMP.read_text(encoding="utf-8") == fingerprint()
    except FileNotFoundError:
        return False


def fingerprint() -> str:
    """Return what `.venv` depends on: place, lock and members, as one hash."""
    digest = hashlib.sha256(str(ROOT).encode())
    for file in (LOCK, *(member / "pyproject.toml" for member in members())):
        digest.update(b"\0%s\0%s" % (str(file.relative_to(ROOT)).encode(), file.read_bytes()))
    return digest.hexdigest()


def members() -> "list[Path]":
    """Return the folders of our own distributions."""
    found = (folder for pattern in MEMBERS for folder in ROOT.glob(pattern))
    return sorted(folder for folder in found if (folder / "pyproject.toml").exists())


def requirements() -> "list[str]":
    """Return the libraries that the members and the development group ask for, without the members themselves."""
    import tomllib  # noqa: PLC0415 - an older Python gets as far as being told that it is too old

    asked: set[str] = set()
    for file in (ROOT / "pyproject.toml", *(member / "pyproject.toml" for member in members())):
        stated = tomllib.loads(file.read_text(encoding="utf-8"))
        project = stated["project"]
        asked.update(project.get("dependencies", []), stated.get("build-system", {}).get("requires", []))
        for group in (
            *project.get("optional-dependencies", {}).values(),
            *stated.get("dependency-groups", {}).values(),
        ):
            asked.update(line for line in group if isinstance(line, str))  # not a group that includes another
    ours = {f"backstop-{member.name}" for member in members()}
    return sorted(line for line in asked if re.split(r"[^\w.-]", line, maxsplit=1)[0] not in ours)


def check_python(version: "tuple[int, ...]") -> None:
    """Raise when this Python, of *version*, cannot run Backstop or make virtual environments."""
    if sys.platform == "win32":
        raise SetupError("Backstop's local stack needs Linux or macOS: on Windows, run this inside WSL.")
    if version[:2] < OLDEST:
        found = next((name for name in NEWER if numbers(name, "import sys; print(*sys.version_info[:2])")), None)
        wanted = f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed"
        way = f"run make PYTHON={found}" if found else "install one, then run make PYTHON=/path/to/python3.12"
        raise SetupError(f"{wanted}, and {sys.executable} is Python {'.'.join(map(str, version))}: {way}.")
    lacking = [module for module in ("venv", "ensurepip") if importlib.util.find_spec(module) is None]
    if lacking:
        raise SetupError(
            f"{sys.executable} comes without the module {lacking[0]}: install it (on Debian and Ubuntu: apt install "
            f"python{version[0]}.{version[1]}-venv), or run make PYTHON=/path/to/another/python3."
        )


def numbers(python: str, program: str) -> "tuple[int, ...]":
    """Return the numbers that *program* prints when *python* runs it, and nothing when that fails."""
    command = [python, "-c", program]
    try:
        said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(map(int, said.stdout.split()))


@contextlib.contextmanager
def only_one() -> "Iterator[None]":
    """Keep a second set-up of this checkout waiting until the first has ended."""
    import fcntl  # noqa: PLC0415 - Windows, which has none, is told so before

    OUTPUT.parent.mkdir(exist_ok=True)
    with (OUTPUT.parent / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up of this checkout is running: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        OUTPUT.write_bytes(b"")
        yield


def prepare_venv() -> None:
    """Make `.venv`, unless there is one that works and in which nothing was left half done."""
    if pip_version() and not UNFINISHED.exists():
        return
    if VENV.exists():
        say(f"Removing {VENV}, which is unfinished or broken.")
        shutil.rmtree(VENV)
    say(f"Making {VENV} with {sys.executable}.")
    run([sys.executable, "-m", "venv", str(VENV)], lambda _: None)


def pip_version() -> "tuple[int, ...]":
    """Return the version of pip in `.venv`, and nothing when there is none or its Python is too old."""
    program = f"import pip, sys; assert sys.version_info >= {OLDEST}; print(*pip.__version__.split('.')[:2])"
    return numbers(str(PYTHON), program)


def pip(*what: str, total: int) -> None:
    """Run `pip install` with the user's own configuration, and show how far it is."""
    bar = "raw" if pip_version() >= (24, 1) else "off"  # only newer ones tell a program how far a download is
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", bar]
    progress = Progress(total)

    def show(line: str) -> None:
        if line.startswith("Installing collected packages"):
            # Whoever ends pip from here on leaves libraries half copied.
            UNFINISHED.touch()
            with contextlib.suppress(FileNotFoundError):
                STAMP.unlink()
        progress.show(line)

    run([str(PYTHON), "-m", "pip", "install", *options, *what], show)
    progress.end()
    with contextlib.suppress(FileNotFoundError):
        UNFINISHED.unlink()


class Progress:
    """One line at a terminal that is written over and over; elsewhere, a line for each large download."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._count = 0
        self._doing = ""

    def show(self, line: str) -> None:
        """Tell what pip's *line* means."""
        word, _, rest = line.strip().partition(" ")
        if word in ("Collecting", "Ignoring", "Obtaining") and not rest.startswith("dependency"):
            self._count += 1
            self._doing = rest.split(" (from", 1)[0] if word == "Collecting" else ""
        elif word in ("Downloading", "Installing", "Building"):
            self._doing = line.strip() if word == "Downloading" else f"{word} ..."
            if not sys.stderr.isatty() and (word == "Installing" or line.endswith("MB)\n")):
                say(f"  {self._count} of {self._total}: {self._doing}")
        if sys.stderr.isatty():
            size = re.match(r"Progress (\d+) of (\d+)", line)
            part = f" {100 * int(size[1]) // max(int(size[2]), 1)} %" if size else ""
            text = f"  {self._count} of {self._total}: {self._doing}{part}"
            sys.stderr.write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()

    @staticmethod
    def end() -> None:
        """Clear the line."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")


def run(command: "list[str]", show: "Callable[[str], None]") -> None:
    """Run *command*, give each line of its output to *show*, and raise with the reason when it fails."""
    last: deque[str] = deque(maxlen=200)
    process = subprocess.Popen(  # noqa: S603 - commands of ours
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with process, OUTPUT.open("a", encoding="utf-8") as log:
        try:
            for line in process.stdout or ():
                log.write(line)
                last.append(line)
                show(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        Progress.end()
        raise SetupError(f"Set-up stopped: {reason(list(last))}. All that was said is in {OUTPUT}.")


def reason(said: "list[str]") -> str:
    """Return what the end of a failed command's output means and what to do."""
    for pattern, meaning in REASONS:
        found = re.search(pattern, "".join(said))
        if found:
            return meaning.format(*found.groups())
    for pattern in (r"^\s*(\w+Error: .*)", r"^ERROR: (.*)", r"^(.*\S)"):
        lines = re.findall(pattern, "".join(said), re.MULTILINE)
        if lines:
            return str(lines[-1])
    return "the command said nothing"


def explain(error: OSError) -> str:
    """Return what an *error* of the system means and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full ({error.filename or ROOT}): free some space and run this again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Writing is not allowed ({error.filename}): make {ROOT} yours, or check out a copy of your own."
    return f"{error}: mend that and run this again."


def say(line: str) -> None:
    """Tell the person at the terminal."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def stop(line: str) -> None:
    """Tell why set-up ends here, and end it."""
    say(line)
    sys.exit(1)


if __name__ == "__main__":
    main()
