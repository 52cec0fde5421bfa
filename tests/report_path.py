"""
Measure how much there is to read in order to follow one report from HTTP to verdict.

The steps are those of docs/architecture.md: a file, and the functions at which its step begins. From there every name
that the code uses is followed, by the syntax tree, through services and contracts. A library is counted by the module
of which a step uses a name, and not followed further: it has a README and could be published as it stands.

Not followed: annotations, decorators and `isinstance`, which describe; `raise` and `except`, which are for what fails;
telemetry, which observes; and blocks, which have a path of their own. Not seen: methods of objects that a step is
given, such as the database, the mail store, Graph, or the limits of a request. The map names what is behind them.

What explains a verdict is to become a library of its own. It counts as one cause of CAUSE_LINES: the table of causes,
and the modules of what they read and return, which the poller's worker uses as well.

Run `python tests/report_path.py` to see every file, and how the path gets there.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "docs" / "architecture.md"
MOST_FILES = 24
MOST_LINES = 5000
CAUSE_LINES = 100
CAUSES = tuple(
    f"verdict_poller.{name}"
    for name in (
        "rules",
        "causes",
        "submission_result",
        "findings",
        "recommended_settings",
        "powershell",
        "exchange_settings",
    )
)
"""The explanation of verdicts: the table of causes, what they read, and what they return."""
BLOCKS = ("backstop_contracts.block_schemas", "outcomes", "reporter.mailbox_blocks", "triage.tenant_blocks")
OBSERVING = ("chassis.telemetry",)
FOLLOWED = ("contracts", "services")

_STEP = re.compile(r"^\d+\. \[`[^`]+`\]\(\.\./(?P<file>[^)]+\.py)\)(?P<names>(?:,? `\w+(?:\.\w+)?`)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """A function, class or constant of a module; of a class, one method, as `Worker.submit_due`."""

    module: str
    name: str


@dataclass
class Module:
    """What one file defines and imports."""

    file: Path
    definitions: dict[str, ast.AST] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        """The lines of the file, SQL and comments included."""
        return len(self.file.read_text().splitlines())


@cache
def packages() -> dict[str, Path]:
    """Return the packages of contracts, libraries and services by their names."""
    rooms = [ROOT / "contracts", *(ROOT / "libs").iterdir(), *(ROOT / "services").iterdir()]
    inits = [file for room in rooms for file in room.glob("*/__init__.py") if file.parent.name != "tests"]
    return {file.parent.name: file.parent for file in inits}


@cache
def read(name: str) -> Module | None:
    """Return the module *name*, or None if it is not ours."""
    package, *rest = name.split(".")
    if package not in packages():
        return None
    folder = packages()[package].joinpath(*rest)
    file = folder / "__init__.py" if (folder / "__init__.py").exists() else folder.with_suffix(".py")
    if not file.exists():
        return None
    tree = ast.parse(file.read_text())
    module = Module(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module.imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            module.imports |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Routes are defined inside the function that makes the router.
            module.definitions.setdefault(node.name, node)
        elif isinstance(node, ast.ClassDef):
            module.definitions[node.name] = node
            functions = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            module.definitions |= {f"{node.name}.{one.name}": one for one in functions}
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            module.definitions |= dict.fromkeys(names, statement)
    return module


def followed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below *node*, without those that describe it or are for what fails."""
    if isinstance(node, ast.Raise | ast.ExceptHandler):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or _is_type_test(node):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from followed(child)


def _is_type_test(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"


def used(place: Place) -> Iterator[Place]:
    """Yield what the definition at *place* uses."""
    module = read(place.module)
    assert module
    node = module.definitions[place.name]
    if isinstance(node, ast.ClassDef):
        # Making an object runs its constructor; what else of it is used, is used by name.
        constructors = [f"{place.name}.{name}" for name in ("__init__", "__post_init__")]
        yield from (Place(place.module, name) for name in constructors if name in module.definitions)
        return
    owner = place.name.partition(".")[0] if "." in place.name else None
    for one in followed(node):
        match one:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr) if owner:
                if f"{owner}.{attr}" in module.definitions:
                    yield Place(place.module, f"{owner}.{attr}")
            case ast.Attribute(value=ast.Name(id=alias), attr=attr) if alias in module.imports:
                source, name = module.imports[alias]
                yield Place(f"{source}.{name}" if name else source, attr)
            case ast.Name(id=name) if name in module.imports:
                source, imported = module.imports[name]
                if imported:
                    yield Place(source, imported)
            case ast.Name(id=name) if name in module.definitions and name != place.name:
                yield Place(place.module, name)


def resolve(place: Place) -> Place | None:
    """Return where the thing at *place* is defined: packages pass on what their modules define. None: not ours."""
    while module := read(place.module):
        if place.name in module.definitions:
            return place
        if place.name not in module.imports:
            return None
        source, name = module.imports[place.name]
        if name is None:
            return None
        place = Place(source, name)
    return None


def steps() -> dict[Path, list[str]]:
    """Return the files on the map, each with the functions at which its step begins."""
    found = MAP.read_text()
    return {ROOT / step["file"]: re.findall(r"`([\w.]+)`", step["names"]) for step in _STEP.finditer(found)}


def name_of(file: Path) -> str:
    """Return the name of the module in *file*."""
    package, folder = next((name, folder) for name, folder in packages().items() if file.is_relative_to(folder))
    return ".".join([package, *file.relative_to(folder).with_suffix("").parts])


def follow() -> dict[str, dict[Place, Place | None]]:
    """Return the modules on the path, each with what is used of it and by whom."""
    todo: list[tuple[Place, Place | None]] = [
        (Place(name_of(file), name), None) for file, names in steps().items() for name in names
    ]
    reached: dict[str, dict[Place, Place | None]] = {name_of(file): {} for file in steps()}
    while todo:
        asked, by = todo.pop()
        place = resolve(asked)
        if place is None or place.module.startswith(BLOCKS + OBSERVING):
            continue
        seen = reached.setdefault(place.module, {})
        if place in seen:
            continue
        seen[place] = by
        module = read(place.module)
        assert module
        if module.file.relative_to(ROOT).parts[0] in FOLLOWED and place.module not in CAUSES:
            todo.extend((one, place) for one in used(place))
    return reached


def measure(modules: Iterable[str] | None = None) -> dict[str, int]:
    """Return the lines of each file on the path; *modules*: what `follow` has found, if it was called already."""
    sizes = {}
    for name in follow() if modules is None else modules:
        module = read(name)
        assert module
        if name not in CAUSES:
            sizes[str(module.file.relative_to(ROOT))] = module.lines
    return sizes | {"one cause": CAUSE_LINES}


def main() -> int:
    """Print the path; return 1 if it has become too long."""
    reached = follow()
    for name, places in sorted(reached.items()):
        module = read(name)
        assert module
        example = next(((place, by) for place, by in places.items() if by), None)
        why = f"{example[0].name} for {example[1].module}.{example[1].name}" if example and example[1] else "on the map"
        size = "cause" if name in CAUSES else str(module.lines)
        sys.stdout.write(f"{size:>6}  {module.file.relative_to(ROOT)}  ({why})\n")
    sizes = measure(reached)
    sys.stdout.write(f"{len(sizes)} files, {sum(sizes.values())} lines; at most {MOST_FILES} and {MOST_LINES}\n")
    return int(len(sizes) > MOST_FILES or sum(sizes.values()) > MOST_LINES)


if __name__ == "__main__":
    sys.exit(main())
