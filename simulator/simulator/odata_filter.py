"""The `$filter` expressions that Microsoft documents for threat submissions: comparisons joined by `and`."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_STATUSES = {"notStarted", "running", "succeeded", "failed", "skipped", "unknownFutureValue"}
_SOURCES = {"user", "administrator", "unknownFutureValue"}

_OPERATORS = {"source": {"eq"}, "status": {"eq"}, "createdBy/email": {"eq"}, "createdDateTime": {"ge", "lt"}}

_COMPARISON = re.compile(r"\s*([\w/]+)\s+(\w+)\s+('(?:[^']|'')*'|[^\s']+)\s*")
_AND = re.compile(r"and(?=\s)")


class InvalidFilterError(ValueError):
    """The filter is not one that is documented."""


@dataclass(frozen=True)
class Condition:
    """One comparison of a filter."""

    field: str
    operator: str
    value: str

    @property
    def moment(self) -> datetime:
        """The value as a time."""
        return datetime.fromisoformat(self.value).astimezone(UTC)


def parse_filter(text: str) -> list[Condition]:
    """Read *text*; raise InvalidFilterError when a property, an operator or a value is not documented."""
    conditions: list[Condition] = []
    position = 0
    while position < len(text):
        if conditions:
            joint = _AND.match(text, position)
            if joint is None:
                raise InvalidFilterError(f"'and' is expected at position {position}.")
            position = joint.end()
        found = _COMPARISON.match(text, position)
        if found is None:
            raise InvalidFilterError(f"a comparison is expected at position {position}.")
        conditions.append(_condition(*found.groups()))
        position = found.end()
    if text and text.rstrip().endswith(" and"):
        raise InvalidFilterError("a comparison is expected at the end.")
    return conditions


def _condition(field: str, operator: str, literal: str) -> Condition:
    if operator not in _OPERATORS.get(field, ()):
        raise InvalidFilterError(f"'{field} {operator}' is not supported.")
    quoted = literal.startswith("'")
    if quoted is (field == "createdDateTime"):
        raise InvalidFilterError(f"the value of '{field}' is of the wrong type.")
    value = literal[1:-1].replace("''", "'") if quoted else literal
    members = {"source": _SOURCES, "status": _STATUSES}.get(field)
    if members is not None and value not in members:
        raise InvalidFilterError(f"'{value}' is no member of '{field}'.")
    if field == "createdDateTime":
        _check_moment(value)
    return Condition(field, operator, value)


def _check_moment(value: str) -> None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise InvalidFilterError(f"'{value}' is not a date and time.") from error
    if moment.tzinfo is None:
        raise InvalidFilterError(f"'{value}' has no time zone.")
