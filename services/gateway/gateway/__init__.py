"""Gateway: one address, one table of who may do what, one OpenAPI document."""
