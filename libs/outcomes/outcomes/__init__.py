"""What became of reports and of mailbox blocks, as other services' events tell it, in tables of one's own."""

from pathlib import Path

from outcomes.blocks import MailboxBlock, last_block, request_block, settle_blocks
from outcomes.cases import purge_unreported_cases, record_cases, record_verdicts

MIGRATIONS = Path(__file__).parent / "migrations"
"""The tables `cases` and `blocks`."""

__all__ = [
    "MIGRATIONS",
    "MailboxBlock",
    "last_block",
    "purge_unreported_cases",
    "record_cases",
    "record_verdicts",
    "request_block",
    "settle_blocks",
]
