"""Gateway: one address, one routing table, one OpenAPI document for the whole API."""
