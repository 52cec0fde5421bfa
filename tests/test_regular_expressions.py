"""
No text that a stranger chooses keeps a regular expression busy for more than linear time.

The expressions are found in the source, so a new one is covered without anybody thinking of it. What they are pumped
with is read from their own syntax trees: the way into each repetition, what it repeats, and an end that does not fit.
"""

import ast
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from itertools import chain, islice, permutations, product
from pathlib import Path

# The parser of `re` has no public name; without it, pumps would have to be thought of for every expression.
from re import _constants as op
from re import _parser as parser
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("contracts", "libs", "services", "cli")
    for path in (ROOT / folder).rglob("*.py")
    if "tests" not in path.relative_to(ROOT).parts
)

TURNS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 128)
"""Turns of a repetition: exponential time shows in them before it lasts for ever."""
SMALL, LARGE = 8_192, 65_536
"""Characters. A header field may have the large number."""
GROWTH = 24
"""From an eighth of a text to the whole: linear time grows by 8, quadratic time by 64."""
MEASURABLE = 0.02
"""Seconds of the processor, enough to compare. No honest expression needs them for a kilobyte."""
SUSPICIOUS = 0.0004
"""Seconds for a small text: linear matching takes a tenth of it, quadratic matching ten times it."""
HARMFUL = 1.0
"""Seconds for a large text, however they grow."""

CHARACTERS = "a0 \n.-_!é\\\"'(<"
KILLERS = ('"\\', "(\\", '"\\"\\', "((", "<<", "<!--", "=?a?q?", "&#", "%", ' a="', "a@", "a.", "a=", "\t ", "\0")
"""What other readers of mail, HTML and addresses fell for."""
TAILS = ("", "!", "\0")
EXAMPLES = 8

ANCHORED = frozenset(("match", "fullmatch"))
METHODS = ANCHORED | {"search", "finditer", "findall", "sub", "subn", "split"}


class Expression(NamedTuple):
    """A regular expression of the source, and how the code applies it."""

    where: str
    pattern: re.Pattern[Any]
    methods: frozenset[str]


# Finding the expressions


def expressions(sources: list[Path]) -> Iterator[Expression]:
    """Find every regular expression that is applied by `re`."""
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(node.module == "re" for node in imported if isinstance(node, ast.ImportFrom)), (
            f"{path}: write `import re`, or its regular expressions are not found."
        )
        if any(name.name == "re" for node in imported for name in node.names):
            yield from expressions_of(path, tree)


def expressions_of(path: Path, tree: ast.Module) -> Iterator[Expression]:
    """Find the expressions that a module keeps, and those that it hands to `re` where they are needed."""
    package = next(folder for folder in path.parents if not (folder.parent / "__init__.py").exists())
    module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    values = vars(import_module(module))
    kept = {name: list(patterns_in(value)) for name, value in values.items()}
    methods = methods_of(tree)
    for name, patterns in kept.items():
        for pattern in patterns:
            yield Expression(f"{module}.{name}", pattern, frozenset(methods[name]) or METHODS)
    known = set(chain.from_iterable(kept.values()))
    for statement in tree.body:
        for call in ast.walk(statement):
            function = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if function.removeprefix("re.") not in METHODS | {"compile"} or not function.startswith("re."):
                continue
            arguments = [ast.unparse(argument) for argument in (*call.args, *(word.value for word in call.keywords))]
            flags = next((argument for argument in arguments[1:] if argument.startswith("re.")), "0")
            try:
                pattern = re.compile(*(eval(code, dict(values)) for code in (arguments[0], flags)))  # noqa: S307
            except NameError:
                # Written in a comprehension: then it is in what the module keeps.
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                assert any(kept.get(ast.unparse(target)) for target in targets), (
                    f"{path}:{call.lineno}: keep this regular expression in a constant, or it is not found."
                )
                continue
            if pattern not in known:
                how = frozenset((function.removeprefix("re."),)) & METHODS
                yield Expression(f"{module}:{call.lineno}", pattern, how or METHODS)


def patterns_in(value: object) -> Iterator[re.Pattern[Any]]:
    """Yield a compiled expression, or those that a collection holds."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for item in value.values() if isinstance(value, dict) else value:
            yield from patterns_in(item)


def methods_of(tree: ast.Module) -> dict[str, set[str]]:
    """Return by which methods a module applies what it keeps under a name, or in a collection of that name."""
    methods = defaultdict(set)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            owner = node.value.value if isinstance(node.value, ast.Subscript) else node.value
            methods[ast.unparse(owner)].add(node.attr)
    return methods


# What they are pumped with

REPEATS = {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}
CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}


class Pumps:
    """The texts that could keep one expression busy, each as its head, the piece that is repeated, and its tail."""

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        tree = parser.parse(pattern.pattern, pattern.flags)
        self._named = list(dict.fromkeys(named(tree)))
        self._alphabet = "".join(dict.fromkeys((*CHARACTERS, *self._named)))
        self._turns: dict[str, list[str]] = defaultdict(list)
        self._atoms: dict[str, None] = {}
        self._read(tree, "")

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        # Into a repetition, also behind what keeps a search from beginning at the start of the text.
        for head, turns in (*self._turns.items(), ("!", self._turns.get("", []))):
            for piece in (*turns, *map("".join, permutations(turns[:5], 2))):
                for tail in dict.fromkeys((*TAILS, *self._named[:3])):
                    yield head, piece, tail
        # Beginnings without an end: a search tries each of them.
        atoms = sorted(dict.fromkeys((*self._atoms, *KILLERS)), key=len)
        for pair in (*zip(atoms, strict=True), *permutations(atoms[:12], 2)):
            for tail in ("", *pair):
                yield "", "".join(pair), tail

    def _read(self, sequence: Any, head: str) -> None:
        """Note what a sequence repeats, and in which pieces it can be had, when it begins behind *head*."""
        for kind, value in sequence:
            if kind in REPEATS:
                if value[1] > 1:
                    known = self._turns[head]
                    known += [turn for turn in self._examples(value[2]) if turn and turn not in known]
                self._read(value[2], head)
            elif kind is op.BRANCH:
                for branch in value[1]:
                    self._read(branch, head)
            elif kind in {op.SUBPATTERN, op.ATOMIC_GROUP}:
                self._read(value[3] if kind is op.SUBPATTERN else value, head)
            examples = self._examples_of(kind, value)
            head += examples[0]
            self._atoms |= dict.fromkeys(filter(None, (*examples[:3], head)))

    def _examples(self, sequence: Any) -> list[str]:
        """Return texts that a sequence matches."""
        found = [""]
        for kind, value in sequence:
            found = list(islice(map("".join, product(found, self._examples_of(kind, value))), EXAMPLES))
        return found

    def _examples_of(self, kind: Any, value: Any) -> list[str]:
        """Return texts that one node of the tree matches; of a repetition, one turn or as many as it needs."""
        if kind in {op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN}:
            wanted = chr(value) if kind is op.LITERAL else self._alphabet
            return [char for char in wanted if takes(kind, value, char)][:EXAMPLES] or [""]
        if kind in REPEATS:
            return [turn * max(value[0], 1) for turn in self._examples(value[2])]
        if kind is op.BRANCH:
            return [example for branch in value[1] for example in self._examples(branch)[:2]]
        if kind in {op.SUBPATTERN, op.ATOMIC_GROUP}:
            return self._examples(value[3] if kind is op.SUBPATTERN else value)
        return [""]


def named(tree: Any) -> Iterator[str]:
    """Yield the characters that an expression names."""
    if isinstance(tree, tuple) and len(tree) == 2 and tree[0] in {op.LITERAL, op.NOT_LITERAL, op.RANGE}:
        yield chr(tree[1][0] if tree[0] is op.RANGE else tree[1])
    elif isinstance(tree, tuple | list | parser.SubPattern):
        for part in tree:
            yield from named(part)


def takes(kind: Any, value: Any, char: str) -> bool:
    """Say whether a node for one character takes this one."""
    if kind is op.ANY:
        return char != "\n"
    if kind in {op.LITERAL, op.NOT_LITERAL}:
        return (ord(char) == value) is (kind is op.LITERAL)
    found = negated = False
    for what, of in value:
        negated |= what is op.NEGATE
        found |= (
            (what is op.LITERAL and ord(char) == of)
            or (what is op.RANGE and of[0] <= ord(char) <= of[1])
            or (what is op.CATEGORY and re.fullmatch(CATEGORIES[of], char) is not None)
        )
    return found is not negated


# Pumping


def seconds(pattern: re.Pattern[Any], method: str, text: Any) -> float:
    """Return what it takes of the processor to apply an expression."""
    begin = time.thread_time()
    if method == "finditer":
        for _ in pattern.finditer(text):
            pass
    else:
        getattr(pattern, method)(text)
    return time.thread_time() - begin


def slow(expression: Expression) -> Iterator[str]:
    """Yield what keeps an expression busy for more than linear time."""
    pattern, linear = expression.pattern, 0.0
    # All others go through the text as `finditer` does, and have a result to make besides.
    methods = {method if method in ANCHORED | {"search"} else "finditer" for method in expression.methods}
    methods -= {"search"} if "finditer" in methods else set()
    for (head, piece, tail), method in product(Pumps(pattern), sorted(methods)):

        def pumped(size: int, *, head: str = head, piece: str = piece, tail: str = tail) -> Any:
            text = head + piece * (size // len(piece)) + tail
            return text if isinstance(pattern.pattern, str) else text.encode("latin-1", "replace")

        taken, what = 0.0, f"{expression.where} {method}: {head!r} + n * {piece!r} + {tail!r}"
        for size in (*(turns * len(piece) for turns in TURNS), SMALL // 8, SMALL, LARGE):
            if size == LARGE and taken < max(SUSPICIOUS, 1.5 * linear):
                break
            taken = seconds(pattern, method, pumped(size))
            if taken > MEASURABLE:
                # The least of several, as the collector of garbage may have had its turn.
                taken = min(
                    taken, *(seconds(pattern, method, pumped(size)) for _ in range(2 if taken < HARMFUL else 1))
                )
            if taken > MEASURABLE:
                eighth = min(seconds(pattern, method, pumped(size // 8)) for _ in range(3))
                if size < SMALL or taken > GROWTH * eighth or taken > HARMFUL:
                    yield f"{what} takes {taken:.3f} s for {size} characters, and {eighth:.3f} s for an eighth of them"
                    break
            if size == LARGE:
                linear = max(linear, taken / (LARGE // SMALL))


def test_no_text_keeps_a_regular_expression_busy() -> None:
    """Twice the text takes twice the time, for every expression and whatever a stranger repeats in it."""
    found = {(expression.pattern, expression.methods): expression for expression in expressions(SOURCES)}
    assert len(found) > 50
    lasting = [what for expression in found.values() for what in islice(slow(expression), 1)]
    assert not lasting, "\n".join(lasting)


def test_models_match_in_linear_time() -> None:
    """The patterns of pydantic are matched by an engine that is linear by its nature, unless a model asks for `re`."""
    assert not [path for path in SOURCES if "python-re" in path.read_text(encoding="utf-8")]


LINE = r"(?:\d{1,2}(?:px|pt)?\s+)?(?:solid|none)?(?:\s*(?:#[0-9a-f]{3,8}|[a-z]{3,25}))?"


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("sub", r'"(?:[^"\\]|\\.)*+"|\((?:[^()\\]|\\.)*+\)'),
        ("sub", r"\((?:[^()\\]|\\.)*+\)"),
        ("sub", r"\((?:[^()\\]|\\.)*+(?:\)|\Z)"),
        ("search", r'"(?:[^"\\]|\\.)*+(?:"|\Z)'),
        ("fullmatch", LINE),
        ("search", rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})"),
        ("finditer", r"=\?([^?\s]{1,60})\?([bBqQ])\?((?:[^?]|\?(?!=))*+)\?="),
        ("fullmatch", r"[^@]+@[^@]+\.[^@]+"),
        ("sub", r"^\s+|\s+$"),
        ("sub", r"<[^>]*>"),
        ("search", r"\w+@\w+\.com"),
        ("match", r"(?:a|aa)+b"),
        ("match", r"(\w+\s?)*$"),
        ("match", r"(x+x+)+y"),
    ],
)
def test_an_expression_that_is_slow_is_found(method: str, pattern: str | bytes) -> None:
    """Quadratic and exponential ones, of mails and of the textbook, and some that look mended."""
    assert next(slow(Expression("here", re.compile(pattern), frozenset((method,)))), None)


def test_expressions_are_found_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In constants, in collections, in the midst of a function, put together, and with their flags."""
    source = tmp_path / "written" / "here.py"
    source.parent.mkdir()
    (source.parent / "__init__.py").touch()
    source.write_text(
        "import re\n"
        "ONE = re.compile('a')\n"
        "MANY = {name: re.compile(name) for name in ('b', 'c')}\n"
        "def read(text):\n"
        "    if ONE.match(text) or MANY['b'].fullmatch(text):\n"
        "        return re.sub(rf'{ONE.pattern}d', '', text, flags=re.DOTALL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {(found.where, found.pattern, *found.methods) for found in expressions([source])} == {
        ("written.here.ONE", re.compile("a"), "match"),
        ("written.here.MANY", re.compile("b"), "fullmatch"),
        ("written.here.MANY", re.compile("c"), "fullmatch"),
        ("written.here:6", re.compile("ad", re.DOTALL), "sub"),
    }
    source.write_text("import re\ndef read(text, wanted):\n    return re.match(wanted, text)\n")
    with pytest.raises(AssertionError, match="keep this regular expression in a constant"):
        list(expressions([source]))
