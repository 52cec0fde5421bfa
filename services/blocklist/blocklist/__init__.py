"""Blocklist: blocks senders in Exchange Online, once, and lifts the blocks that were wrong."""
