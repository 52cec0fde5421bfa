"""Settings of the services and the simulator in a fault run."""

from collections.abc import Mapping

MANY = 1_000_000
"""A limit of Microsoft's that is never reached here; other tests cover those limits."""
VERDICT_SECONDS = 2
POLICY = """
[[rule]]
name = "phishing that two users saw"
when.reported_as = ["phishing", "malware"]
when.folder = ["inbox"]
when.min_reports = 2
then.submit = "as-reported"
then.block = "sender"
"""
DIGEST_SECONDS = 10
"""Replaces the four hours after which users are notified of messages in quarantine."""
LEASES = {
    "submitter": "submission_lease_seconds",
    "blocklist": "block_lease_seconds",
    "verdict_poller": "verdict_lease_seconds",
    "quarantine": "quarantine_lease_seconds",
}
"""The setting for the lease on a claimed row, by service."""
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "submitter": {
        # Longer than a connection to Microsoft ever hangs: a delayed call may still arrive after the lookup.
        "submission_missing_after_seconds": 20,
        "submissions_per_15_minutes": MANY,
        "same_item_per_day": MANY,
    },
    "quarantine": {"quarantine_sync_interval_seconds": 2, "digest_period_seconds": DIGEST_SECONDS},
    "verdict_poller": {
        "verdict_poll_intervals": "1,1,1,2,5",
        "verdict_grid_seconds": 0.5,
        "tenant_settings_ttl_seconds": 5,
    },
}
SIMULATOR = {
    "verdict_delay_seconds": VERDICT_SECONDS,
    "submissions_per_window": MANY,
    # A second submission of the same message must appear in the ledger rather than be refused.
    "same_item_per_window": MANY,
    "same_item_per_day": MANY,
}
