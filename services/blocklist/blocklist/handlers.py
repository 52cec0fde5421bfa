"""Blocklist's subscribers: store requested blocks, withdraw blocks of clean cases, purge expired cases."""

from collections import defaultdict
from uuid import UUID

from faststream.kafka import KafkaRouter

from backstop_contracts import BlockRequested, CaseExpired, Conclusion, VerdictReady
from blocklist import store
from chassis.subscribing import BATCH, Received, Tx

router = KafkaRouter()


@router.subscriber("block-requested", **BATCH)
async def on_block_requested(requests: list[Received[BlockRequested]], tx: Tx) -> None:
    """Record new requests and make their list entries due; the worker makes the blocks."""
    by_tenant: defaultdict[UUID, list[Received[BlockRequested]]] = defaultdict(list)
    for request in requests:
        by_tenant[request.event.tenant_id].append(request)
    for tenant_id in sorted(by_tenant):
        await store.lock_tenant(tx, tenant_id)
        changed = await store.record(tx, [(request.event, request.traceparent) for request in by_tenant[tenant_id]])
        await store.make_due(tx, changed)


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """
    Withdraw the blocks of clean cases, applied or still pending; the worker removes their list entries.

    Only blocks requested before the verdict are withdrawn: a later request was made with the verdict known.
    """
    by_tenant: defaultdict[UUID, dict[UUID, VerdictReady]] = defaultdict(dict)
    for event in sorted((received.event for received in verdicts), key=lambda event: event.read_at):
        if event.conclusion == Conclusion.CLEAN:
            by_tenant[event.tenant_id][event.case_id] = event
    for tenant_id in sorted(by_tenant):
        clean = list(by_tenant[tenant_id].values())
        await store.lock_tenant(tx, tenant_id)
        await store.record_clean_verdicts(tx, clean)
        await store.make_due(tx, await store.withdraw_blocks(tx, clean))


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Delete the ended blocks of expired cases. A block still in force is deleted once its list entry is removed.

    No request can arrive after this: requests are made weeks before their case expires and have left the topic by then
    (triage refuses a shorter retention). A clean verdict can, because its topic is retained longer. It withdraws what
    is left, and is purged by age.
    """
    by_tenant: defaultdict[UUID, list[UUID]] = defaultdict(list)
    for received in expired:
        by_tenant[received.event.tenant_id].append(received.event.case_id)
    for tenant_id in sorted(by_tenant):
        case_ids = by_tenant[tenant_id]
        await store.lock_tenant(tx, tenant_id)
        await store.purge_ended(tx, await store.set_case_expired(tx, tenant_id, case_ids))
        await store.purge_verdicts(tx, tenant_id, case_ids)
