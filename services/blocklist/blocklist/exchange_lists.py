"""The Exchange Online cmdlets for the two lists that blocks go to: the tenant's and a mailbox's."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from backstop_contracts import Block
from blocklist import rules
from blocklist.rules import AcceptedDomain, TenantListEntry
from m365 import Exchange, hashtable

ACCEPTED_DOMAINS_TTL = timedelta(minutes=10)


class UnexpectedAnswerError(Exception):
    """Exchange's answers contradict each other; later ones may not."""


class ExchangeLists:
    """
    Reads and changes the Tenant Allow/Block List and the Blocked Senders list of mailboxes.

    Values are those of `rules.entry_key`. Accepted domains are cached, because they rarely change.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.before = exchange.before
        self._accepted: dict[UUID, tuple[Sequence[AcceptedDomain], datetime]] = {}
        self._locks: defaultdict[UUID, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def accepted_domains(self, tenant_id: UUID) -> Sequence[AcceptedDomain]:
        """Return the domains for which the tenant receives mail."""
        async with self._locks[tenant_id]:
            now = datetime.now(UTC)
            if tenant_id not in self._accepted or now - self._accepted[tenant_id][1] > ACCEPTED_DOMAINS_TTL:
                accepted = rules.read_accepted_domains(await self._exchange.invoke(tenant_id, "Get-AcceptedDomain"))
                if not accepted:
                    # Every tenant has one; without knowing it, Backstop might block the tenant's own mail.
                    raise UnexpectedAnswerError("Exchange lists no accepted domain")
                self._accepted[tenant_id] = accepted, now
            return self._accepted[tenant_id][0]

    async def find_entry(self, tenant_id: UUID, value: str) -> TenantListEntry | None:
        """Return the entry for *value* in the Tenant Allow/Block List."""
        rows = await self._exchange.invoke(
            tenant_id,
            "Get-TenantAllowBlockListItems",
            ListType=rules.list_type(value),
            Entry=rules.list_entry(value),
        )
        return rules.find_entry(rows, value)

    async def add_entry(self, tenant_id: UUID, value: str, block: Block, expires_at: datetime | None) -> None:
        """Add a block entry for *value* to the Tenant Allow/Block List, with notes that name *block*."""
        await self._exchange.invoke(
            tenant_id,
            "New-TenantAllowBlockListItems",
            ListType=rules.list_type(value),
            Block=True,
            Entries=[rules.list_entry(value)],
            Notes=rules.entry_notes(block),
            **_expiry(expires_at),
        )

    async def set_end(self, tenant_id: UUID, value: str, identity: str, expires_at: datetime | None) -> None:
        """Change the end of an entry of the Tenant Allow/Block List."""
        await self._exchange.invoke(
            tenant_id,
            "Set-TenantAllowBlockListItems",
            ListType=rules.list_type(value),
            Ids=[identity],
            **_expiry(expires_at),
        )

    async def remove_entry(self, tenant_id: UUID, value: str, identity: str) -> None:
        """Remove an entry from the Tenant Allow/Block List."""
        await self._exchange.invoke(
            tenant_id, "Remove-TenantAllowBlockListItems", ListType=rules.list_type(value), Ids=[identity]
        )

    async def mailbox_blocks(self, tenant_id: UUID, mailbox: str, value: str) -> bool:
        """Return True if the mailbox's Blocked Senders list has *value*."""
        rows = await self._exchange.invoke(tenant_id, "Get-MailboxJunkEmailConfiguration", Identity=mailbox)
        return rules.is_blocked(rows, value)

    async def add_to_mailbox(self, tenant_id: UUID, mailbox: str, value: str) -> None:
        """Add *value* to the mailbox's Blocked Senders list."""
        await self._exchange.invoke(
            tenant_id,
            "Set-MailboxJunkEmailConfiguration",
            Identity=mailbox,
            BlockedSendersAndDomains=hashtable(add=[value]),
        )


def _expiry(expires_at: datetime | None) -> dict[str, Any]:
    return {"ExpirationDate": expires_at} if expires_at else {"NoExpiration": True}
