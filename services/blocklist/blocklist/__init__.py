"""Blocklist: blocks senders and URLs in Exchange Online, and removes blocks that were wrong."""
