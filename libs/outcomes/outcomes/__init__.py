"""Tables in a service's own schema that track, from events, the outcomes of reports and mailbox blocks."""

from pathlib import Path

from outcomes.blocks import MailboxBlock, last_block, request_block, settle_blocks
from outcomes.cases import assign_cases, cases_of, purge_unreported_cases, record_cases, record_verdicts

MIGRATIONS = Path(__file__).parent / "migrations"
"""The tables `cases` and `blocks`."""

__all__ = [
    "MIGRATIONS",
    "MailboxBlock",
    "assign_cases",
    "cases_of",
    "last_block",
    "purge_unreported_cases",
    "record_cases",
    "record_verdicts",
    "request_block",
    "settle_blocks",
]
