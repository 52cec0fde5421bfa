"""Submitter: submits messages to Microsoft for analysis, once, within the quota."""
