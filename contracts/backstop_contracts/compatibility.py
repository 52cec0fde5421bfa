"""
Find incompatible changes to an event's JSON Schema.

Two sides have to go on working while services and subscribers are upgraded one by one, in any order:
new readers with old events, which lie in topics and dead letters for weeks, and old readers with new events. So only
two kinds of change are compatible: another optional field, and other wording. A vocabulary that grows is not, because
an old reader refuses the new word; what Microsoft may extend is therefore an open string from the start.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

_WORDING = frozenset({"title", "description", "examples", "deprecated", "$comment", "$id", "$schema", "$defs"})
_COMPARED_APART = frozenset({"type", "properties", "required", "enum", "const", "default", "anyOf", "oneOf"})
_LISTS = frozenset({"allOf", "prefixItems"})
_OLD_READERS = ", which readers of the released schema refuse"


def breaking_changes(released: Schema, current: Schema) -> list[str]:
    """
    Name every change from *released* to *current* that breaks a reader; an empty list means compatible.

    Both are schemas as pydantic makes them: `$ref` into their own `$defs`, objects open to unknown properties.
    A keyword that is not known here counts as breaking when it changes.
    """
    changes = _Comparison(released, current).changes(released, current, "", frozenset())
    return [change.removeprefix(": ") for change in changes]


class _Comparison:
    """The two documents that references point into."""

    def __init__(self, released: Schema, current: Schema) -> None:
        self._released = released
        self._current = current

    def changes(self, old: Schema, new: Schema, at: str, seen: frozenset[tuple[str, str]]) -> Iterator[str]:
        """Compare two schemas at one place; *seen* ends the recursion of a model that contains itself."""
        pair = (old.get("$ref", ""), new.get("$ref", ""))
        if all(pair):
            if pair in seen:
                return
            seen |= {pair}
        old, new = _resolve(old, self._released), _resolve(new, self._current)
        yield from _default(old, new, at)
        olds, news = _alternatives(old), _alternatives(new)
        if olds or news:
            yield from self._several(olds or [old], news or [new], at, seen)
        else:
            yield from self._one(old, new, at, seen)

    def _several(
        self, olds: list[Schema], news: list[Schema], at: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[str]:
        """Match equal alternatives first, then alternatives of the same type. Report the rest as added or removed."""

        def equal(old: Schema, new: Schema) -> bool:
            return not any(self.changes(old, new, at, seen))

        def of_one_type(old: Schema, new: Schema) -> bool:
            return bool(_resolve(old, self._released).get("type") == _resolve(new, self._current).get("type"))

        for alike in (equal, of_one_type):
            for old in list(olds):
                partner = next((new for new in news if alike(old, new)), None)
                if partner is not None:
                    yield from self.changes(old, partner, at, seen)
                    olds.remove(old)
                    news.remove(partner)
        for old in olds:
            yield f"{at}: takes {_kind(_resolve(old, self._released))} no more"
        for new in news:
            yield f"{at}: takes {_kind(_resolve(new, self._current))} as well{_OLD_READERS}"

    def _one(self, old: Schema, new: Schema, at: str, seen: frozenset[tuple[str, str]]) -> Iterator[str]:
        if old.get("type") != new.get("type"):
            yield f"{at}: changes its type from {_kind(old)} to {_kind(new)}"
            return
        yield from self._properties(old, new, at, seen)
        yield from _vocabulary(old, new, at)
        for keyword in sorted((old.keys() | new.keys()) - _COMPARED_APART - _WORDING):
            before, after = old.get(keyword), new.get(keyword)
            if isinstance(before, Mapping) and isinstance(after, Mapping):
                yield from self.changes(before, after, f"{at}[]", seen)
            elif keyword in _LISTS and before and after and len(before) == len(after):
                for number, (was, now) in enumerate(zip(before, after, strict=True)):
                    yield from self.changes(was, now, f"{at}[{number}]", seen)
            elif before != after:
                yield f"{at}: changes its {keyword} from {_shown(old, keyword)} to {_shown(new, keyword)}"

    def _properties(self, old: Schema, new: Schema, at: str, seen: frozenset[tuple[str, str]]) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        insisted, insists = set(old.get("required", ())), set(new.get("required", ()))
        for name in before:
            place = f"{at}.{name}".lstrip(".")
            if name not in after:
                yield f"{place}: is removed or renamed"
                continue
            if name in insists - insisted:
                yield f"{place}: becomes required, but events without it exist"
            if name in insisted - insists:
                yield f"{place}: becomes optional, but readers of the released schema insist on it"
            yield from self.changes(before[name], after[name], place, seen)
        for name in after:
            if name not in before and name in insists:
                yield f"{at}.{name}".lstrip(".") + ": is added as required, but events without it exist"


def _resolve(schema: Schema, document: Schema) -> Schema:
    """Follow `$ref`; what is beside it, such as a description or a default, stays."""
    while "$ref" in schema:
        beside = {keyword: value for keyword, value in schema.items() if keyword != "$ref"}
        schema = {**document["$defs"][schema["$ref"].removeprefix("#/$defs/")], **beside}
    return schema


def _alternatives(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf") or schema.get("oneOf") or ())


def _vocabulary(old: Schema, new: Schema, at: str) -> Iterator[str]:
    before, after = _words(old), _words(new)
    if before is None and after is None:
        return
    if before is None or after is None:
        yield f"{at}: {'becomes' if before is None else 'is no more'} a closed vocabulary"
        return
    for word in before:
        if word not in after:
            yield f"{at}: takes {word!r} no more"
    for word in after:
        if word not in before:
            yield f"{at}: takes {word!r} as well{_OLD_READERS}"


def _words(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _default(old: Schema, new: Schema, at: str) -> Iterator[str]:
    if "default" in old and "default" in new and not _kept(old["default"], new["default"]):
        yield f"{at}: means {new['default']!r} when it is left out, not {old['default']!r} as before"


def _kept(old: Any, new: Any) -> bool:
    """Return True if *new* contains every value of *old*. An object's default may gain optional fields."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _kept(value, new[name]) for name, value in old.items())
    return bool(old == new)


def _kind(schema: Schema) -> str:
    kind = schema.get("type", "anything")
    detail = schema.get("format") or (schema.get("title") if kind == "object" else None)
    return f"{kind} ({detail})" if detail else str(kind)


def _shown(schema: Schema, keyword: str) -> str:
    return repr(schema[keyword]) if keyword in schema else "nothing"
