"""Submitter: submits mails to Microsoft for analysis, once, within the quota."""
