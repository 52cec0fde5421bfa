"""Safe text for people and for PowerShell. Names and entries can contain what an attacker chose."""

import unicodedata
from typing import NamedTuple, TypeAlias

_SINGLE_QUOTES = str.maketrans({quote: quote * 2 for quote in "'\u2018\u2019\u201a\u201b"})
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_MAX_LENGTH = 200


class Removed(NamedTuple):
    """An entry to remove from a list: `@{Remove='...'}`."""

    entry: str


ParameterValue: TypeAlias = str | bool | int | Removed


def powershell(cmdlet: str, **parameters: ParameterValue) -> str | None:
    """
    Compose a command that can be pasted into PowerShell; None if a value is empty or has invisible characters.

    In a single-quoted string only a closing quote is special to PowerShell, which accepts the typographic quotes
    U+2018 to U+201B as quotes, too (PowerShell's own `EscapeSingleQuotedStringContent`): all of them are doubled.
    """
    tokens = [cmdlet]
    for parameter, value in parameters.items():
        literal = _literal(value)
        if literal is None:
            return None
        tokens += [f"-{parameter}", literal]
    return " ".join(tokens)


def _literal(value: ParameterValue) -> str | None:
    if isinstance(value, Removed):
        entry = _literal(value.entry)
        return entry and f"@{{Remove={entry}}}"
    if isinstance(value, bool):
        return "$true" if value else "$false"
    if isinstance(value, int):
        return str(value)
    if not value or any(map(_is_invisible, value)):
        return None
    return f"'{value.translate(_SINGLE_QUOTES)}'"


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE


def readable(value: object) -> str:
    """Return *value* as one line of text: shortened if it is long, without invisible characters."""
    full = str(value)
    short = full if len(full) <= _MAX_LENGTH else f"{full[: _MAX_LENGTH - 3]}..."
    return "".join("\ufffd" if _is_invisible(character) else character for character in short)
