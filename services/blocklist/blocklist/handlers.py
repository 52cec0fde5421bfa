"""What blocklist does with events: wishes become due entries, clean verdicts withdraw wishes, expired cases go."""

from collections import defaultdict
from uuid import UUID

from faststream.kafka import KafkaRouter

from backstop_contracts import BlockRequested, CaseExpired, Conclusion, VerdictReady
from blocklist import store
from chassis.events import BATCH, Received, Tx

router = KafkaRouter()


@router.subscriber("block-requested", **BATCH)
async def on_block_requested(wishes: list[Received[BlockRequested]], tx: Tx) -> None:
    """Store the wishes that are new; the worker does the rest."""
    by_tenant: defaultdict[UUID, list[Received[BlockRequested]]] = defaultdict(list)
    for received in wishes:
        by_tenant[received.event.tenant_id].append(received)
    for tenant_id in sorted(by_tenant):
        await store.take_turn(tx, tenant_id)
        new = await store.record(tx, [(received.event, received.traceparent) for received in by_tenant[tenant_id]])
        await store.touch(tx, new)


@router.subscriber("verdict-ready", **BATCH)
async def on_verdict_ready(verdicts: list[Received[VerdictReady]], tx: Tx) -> None:
    """
    Withdraw the blocks of cases that turned out clean, made or not, for the worker to lift.

    Only blocks that were asked for before the verdict: whoever blocks a sender in spite of it knows what they do.
    """
    by_tenant: defaultdict[UUID, dict[UUID, VerdictReady]] = defaultdict(dict)
    for event in sorted((received.event for received in verdicts), key=lambda event: event.read_at):
        if event.conclusion == Conclusion.CLEAN:
            by_tenant[event.tenant_id][event.case_id] = event
    for tenant_id in sorted(by_tenant):
        clean = list(by_tenant[tenant_id].values())
        await store.take_turn(tx, tenant_id)
        await store.record_clean(tx, clean)
        await store.touch(tx, await store.withdraw(tx, clean))


@router.subscriber("case-expired", **BATCH)
async def on_case_expired(expired: list[Received[CaseExpired]], tx: Tx) -> None:
    """
    Forget the blocks of cases that have ended. One that stands is forgotten when it has been lifted.

    A block is asked for weeks before its case expires, and then is in no topic any more (triage refuses a shorter
    retention), so none can come after this. A clean verdict can, because its topic is kept for longer: it withdraws
    what there is, and is forgotten by its age.
    """
    by_tenant: defaultdict[UUID, list[UUID]] = defaultdict(list)
    for received in expired:
        by_tenant[received.event.tenant_id].append(received.event.case_id)
    for tenant_id in sorted(by_tenant):
        await store.take_turn(tx, tenant_id)
        await store.forget(tx, await store.mark_expired(tx, tenant_id, by_tenant[tenant_id]))
        await store.forget_verdicts(tx, tenant_id, by_tenant[tenant_id])
