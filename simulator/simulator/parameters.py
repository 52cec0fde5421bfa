"""What cmdlets have in common: how parameters are passed, and how they select rows and mailboxes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from simulator.calls import Call
from simulator.tenant import Mailbox, Row, Tenant

Parameters = dict[str, Any]

_COMMON = {"Confirm", "WhatIf", "ErrorAction", "WarningAction", "Verbose", "Debug"}
_SWITCHES = {
    "Allow",
    "AllowSender",
    "Block",
    "Force",
    "HardDelete",
    "IncludeMessagesFromBlockedSenderAddress",
    "MyItems",
    "NoExpiration",
    "OutputJson",
    "ReleaseToAll",
    "ReportFalsePositive",
}


class CmdletError(Exception):
    """The cmdlet ran and failed. *status* is the HTTP status that the admin API turns this into."""

    def __init__(self, message: str, status: Literal[400, 404] = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Cmdlet:
    """A cmdlet: what runs, and the parameters it takes beside the common ones."""

    run: Callable[[Call, Tenant, Parameters], list[Row]]
    parameters: frozenset[str]


def checked(given: Parameters, allowed: frozenset[str]) -> Parameters:
    """*given* with each parameter in its own spelling; switches that are false are left out."""
    spelled = {name.lower(): name for name in (*allowed, *_COMMON)}
    parameters: Parameters = {}
    for name, value in given.items():
        if name.lower() not in spelled:
            raise CmdletError(f"A parameter cannot be found that matches parameter name '{name}'.")
        spelling = spelled[name.lower()]
        if value is not None and not (spelling in _SWITCHES and value is False):
            parameters[spelling] = value
    return parameters


def required(parameters: Parameters, name: str) -> Any:
    """Return the parameter *name*; raise CmdletError when it is absent or empty."""
    if parameters.get(name) in (None, "", []):
        raise CmdletError(f"Cannot process command because of one or more missing mandatory parameters: {name}.")
    return parameters[name]


def strings(parameters: Parameters, name: str) -> list[str]:
    """Return the values of the parameter *name*, given as one string or a list of strings."""
    value = parameters.get(name, [])
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item.strip() for item in values):
        raise CmdletError(f"Cannot process argument transformation on parameter '{name}': strings are expected.")
    return [item.strip() for item in values]


def moment(value: Any, name: str) -> datetime:
    """Read a date and time; one without a time zone is UTC."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise CmdletError(f"Cannot process argument transformation on parameter '{name}': not a date.") from error
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def stamp(at: datetime | None) -> str | None:
    """Write a time as the admin API does: UTC, seven digits, Z."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "0Z"


def matched(value: Any, members: Iterable[str]) -> str | None:
    """Match an enumeration by prefix, whatever the case. None for a value that matches nothing."""
    given = str(value).lower()
    names = sorted(members, key=lambda name: name.lower() != given)
    return next((name for name in names if name.lower().startswith(given)), None)


def narrowed(rows: list[Row], parameters: Parameters, columns: tuple[str, ...]) -> list[Row]:
    """Return the rows whose *columns* have the values of the parameters of the same names."""
    wanted = {column: str(parameters[column]) for column in columns if column in parameters}
    return [row for row in rows if all(holds(row, column, value) for column, value in wanted.items())]


def holds(row: Row, column: str, value: str) -> bool:
    """Return True if a column equals *value* or is a list that contains it, ignoring case."""
    cell = row.get(column)
    return value.lower() in {str(item).lower() for item in (cell if isinstance(cell, list) else [cell])}


def find_mailbox(tenant: Tenant, identity: Any) -> Mailbox:
    """Return the mailbox that *identity* names; raise CmdletError when there is none."""
    found = tenant.mailbox(str(identity))
    if found is None:
        message = f"The operation couldn't be performed because object '{identity}' couldn't be found on 'directory'."
        raise CmdletError(message, 404)
    return found
