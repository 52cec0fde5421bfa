"""Triage: one case per reported message, the policy, admins' decisions."""
