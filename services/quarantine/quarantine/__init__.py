"""Quarantine: what users and admins do with quarantined mail, on Exchange Online's quarantine cmdlets."""
