"""The OpenAPI description of uploads: they are read as streams, so FastAPI does not know their schema."""

from typing import Any

from reporter.upload import Attributes


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Replace each `$ref`: a schema inside a request body that FastAPI does not know cannot refer to components."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        return {**_inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions), **beside}
    return {name: _inlined(value, definitions) for name, value in schema.items() if name != "$defs"}


def _request() -> dict[str, Any]:
    schema = Attributes.model_json_schema()
    said = _inlined(schema, schema["$defs"])
    properties: dict[str, Any] = dict(said["properties"])
    place = properties.pop("mailbox_message")["anyOf"][0]
    flat = properties | {f"mailbox_message.{name}": inner for name, inner in place["properties"].items()}
    nested = said["properties"]
    closed = {"type": "object", "additionalProperties": False, "required": ["mail", *said["required"]]}
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": "Only with message/rfc822.",
                "schema": flat[name],
            }
            for name in flat
        ],
        "requestBody": {
            "required": True,
            "content": {
                "message/rfc822": {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {**closed, "properties": {"mail": {"type": "string", "format": "binary"}, **flat}}
                },
                "application/json": {
                    "schema": {
                        **closed,
                        "properties": {"mail": {"type": "string", "contentEncoding": "base64"}, **nested},
                    }
                },
            },
        },
    }


REPORT_REQUEST = _request()
"""The request of POST /v1/reports: the same attributes, three ways to send the mail."""
