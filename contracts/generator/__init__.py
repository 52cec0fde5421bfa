"""Writes the files that tell others what the events and the HTTP API are. Not part of the package."""
