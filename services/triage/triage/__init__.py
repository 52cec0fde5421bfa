"""Triage: one case per reported mail, the policy, admins' decisions."""
