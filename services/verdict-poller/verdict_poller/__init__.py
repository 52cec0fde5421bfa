"""Verdict-poller: reads Microsoft's verdicts, and explains why a message was allowed and what to change."""
