"""Delete messages, actions, reports and digests after their retention."""

from datetime import timedelta

from chassis.postgres import Database
from outcomes import purge_unreported_cases
from quarantine import store

RETENTION = timedelta(days=30)
"""How long messages are kept after they left the quarantine: longer than Kafka may redeliver events about them."""
BATCH_SIZE = 500


async def purge_due(db: Database) -> int:
    """Delete what is past its retention; return the number of deleted messages."""
    async with db.transaction() as tx:
        await store.purge_digests(tx, RETENTION)
        await purge_unreported_cases(tx, RETENTION)
        return await store.purge_messages(tx, RETENTION, BATCH_SIZE)
