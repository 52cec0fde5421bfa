"""The demo: real mails through both flows, told as it happens, and checked against the ledger."""
