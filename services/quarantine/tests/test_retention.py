"""Messages are deleted after their retention."""

from typing import Any

from quarantine.retention import purge_due


async def test_messages_are_deleted_a_month_after_they_left_the_quarantine(world: Any) -> None:
    """Their actions go with them. Messages that are held, or were recently, stay."""
    await world.quarantine(world.eml("long over"))
    await world.quarantine(world.eml("held"))
    await world.sync()
    await world.db.pool.execute(
        "UPDATE messages SET status = 'expired', expires_at = now() - interval '31 days',"
        " status_changed_at = now() - interval '31 days' WHERE subject = 'long over'"
    )
    await world.db.pool.execute(
        "INSERT INTO actions (action_id, tenant_id, message_id, kind, generation, requested_by, state)"
        " SELECT gen_random_uuid(), tenant_id, message_id, 'release', 1, '{}', 'succeeded' FROM messages"
    )

    assert await purge_due(world.db) == 1
    assert await purge_due(world.db) == 0
    assert {subject for subject, _ in await world.messages()} == {"held"}
    assert await world.db.pool.fetchval("SELECT count(*) FROM actions") == 1


async def test_a_message_with_a_pending_action_is_not_deleted(world: Any) -> None:
    """Its outcome has not been published yet."""
    await world.quarantine(world.eml("long over"))
    await world.sync()
    await world.db.pool.execute(
        "UPDATE messages SET expires_at = now() - interval '31 days', status_changed_at = now() - interval '31 days'"
    )
    await world.db.pool.execute(
        "INSERT INTO actions (action_id, tenant_id, message_id, kind, generation, requested_by)"
        " SELECT gen_random_uuid(), tenant_id, message_id, 'release', 1, '{}' FROM messages"
    )

    assert await purge_due(world.db) == 0
