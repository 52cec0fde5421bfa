"""Verdict-poller: what Microsoft says about a mail, why it was allowed, what to change."""
