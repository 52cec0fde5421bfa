"""One JSON Schema per event."""

from typing import Any, TypeAlias

from pydantic.json_schema import GenerateJsonSchema

from backstop_contracts import Event, schema_of

Json: TypeAlias = dict[str, Any]


class JsonSchema(GenerateJsonSchema):
    """JSON Schema without a title on every field, which would only repeat the field's name."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Return False."""
        del schema
        return False


def versioned(model: type[Event]) -> str:
    """Return the name of an event with its version, e.g. `verdict-ready.v1`: files are named after it."""
    return f"{model.TOPIC}.v{model.VERSION}"


def json_schema(model: type[Event]) -> Json:
    """Return the JSON Schema of an event as it is published. It is open to fields that a later producer adds."""
    schema = model.model_json_schema(mode="serialization", schema_generator=JsonSchema)
    if parts := schema.pop("$defs", None):
        schema["$defs"] = parts
    return {"$schema": JsonSchema.schema_dialect, "$id": schema_of(model), **schema}
