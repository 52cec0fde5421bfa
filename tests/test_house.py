"""The house stays plain: the path of a report is short and on the map, modules are small, nothing is written twice."""

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import report_path
from report_path import ROOT

MOST_LINES_OF_A_MODULE = 400
TABLES = {
    "contracts/backstop_contracts/events.py",  # every event, in the order of the story
    "services/verdict-poller/verdict_poller/causes.py",  # every cause, until each has a file of its own
}
SAME_LINES = 10


def tracked(*folders: str, endings: tuple[str, ...] = (".py",)) -> list[Path]:
    """Return the tracked files below *folders* that end so."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        *(f"{folder}/**{ending}" for folder in folders for ending in endings),
    ]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - git, on this checkout
    return [ROOT / name for name in listed.stdout.split()]


def test_the_path_of_a_report_is_short() -> None:
    """From HTTP to verdict: see `python tests/report_path.py`."""
    sizes = report_path.measure()
    assert len(sizes) <= report_path.MOST_FILES, sorted(sizes)
    assert sum(sizes.values()) <= report_path.MOST_LINES, sizes


def test_every_file_on_the_path_of_a_report_is_on_the_map() -> None:
    """And the map names no file that is not there, and no function that its file does not have."""
    text = report_path.MAP.read_text()
    missing = [name for name in report_path.measure() if f"({Path('..') / name})" not in text and name != "one cause"]
    assert not missing
    for file, names in report_path.steps().items():
        module = report_path.read(report_path.name_of(file))
        assert module is not None, file
        assert set(names) <= module.definitions.keys(), file


def test_what_a_step_uses_is_followed_and_what_describes_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measure itself: calls, methods and constants lead on; annotations, decorators and errors do not."""
    package = tmp_path / "services" / "one" / "one"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "store.py").write_text("def record(): return LIMIT\nLIMIT = 1\n")
    (package / "shapes.py").write_text("class Shape: ...\nclass WrongError(Exception): ...\n")
    (package / "http.py").write_text(
        "from one import store\nfrom one.shapes import Shape, WrongError\n"
        "class Route:\n"
        "    def take(self, shape: Shape) -> None:\n"
        "        try:\n            self._record()\n        except WrongError:\n            raise\n"
        "    def _record(self): store.record()\n"
    )
    (tmp_path / "contracts").mkdir()
    (tmp_path / "libs").mkdir()
    (tmp_path / "map.md").write_text("1. [`http.py`](../services/one/one/http.py) `Route.take`: x\n")
    monkeypatch.setattr(report_path, "ROOT", tmp_path)
    monkeypatch.setattr(report_path, "MAP", tmp_path / "map.md")
    for cached in (report_path.packages, report_path.read):
        cached.cache_clear()
    try:
        reached = {name: {place.name for place in places} for name, places in report_path.follow().items()}
    finally:
        monkeypatch.undo()
        for cached in (report_path.packages, report_path.read):
            cached.cache_clear()
    assert reached == {"one.http": {"Route.take", "Route._record"}, "one.store": {"record", "LIMIT"}}


def test_no_module_is_too_long_to_be_read_at_once() -> None:
    """Tables of data are as long as their data."""
    product = tracked("contracts", "libs", "services", "cli", "simulator", "deploy", "demo", "bench", "tests")
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in product}
    assert {name for name, lines in lengths.items() if lines > MOST_LINES_OF_A_MODULE} <= TABLES


def test_no_two_rooms_hold_the_same_ten_lines() -> None:
    """What two services need is a library or a contract. Imports do not count, nor do blank lines and comments."""
    places: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in tracked("contracts", "libs", "services", "cli", endings=(".py", ".sql")):
        room = "/".join(file.relative_to(ROOT).parts[:2])
        if "tests" in file.relative_to(ROOT).parts:
            continue
        lines = [line.strip() for line in file.read_text().splitlines()]
        lines = [line for line in lines if line and not line.startswith(("import ", "from ", "#", "--"))]
        for start in range(len(lines) - SAME_LINES + 1):
            places[tuple(lines[start : start + SAME_LINES])].add(room)
    twice = {rooms for rooms in map(frozenset, places.values()) if len(rooms) > 1}
    assert not twice
