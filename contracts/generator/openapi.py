"""The OpenAPI document of the gateway, put together from those of the services behind it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from chassis.http import problems
from chassis.problem_details import TYPES
from gateway.routing_table import ROUTES, Route
from generator.introspection import Service, problem_types
from generator.schemas import Json

Document: TypeAlias = Mapping[str, Any]

_SCHEMAS = "#/components/schemas/"


class IncompleteError(ValueError):
    """A service does not describe a route that the gateway offers; the text says which."""


def openapi(services: Sequence[Service], version: str) -> Json:
    """Return the document of the gateway's API."""
    return merge({service.name: service.openapi for service in services}, ROUTES, version)


def merge(documents: Mapping[str, Document], routes: Iterable[Route], version: str) -> Json:
    """
    Describe *routes*, each as the service behind it does (*documents* by name), with the roles that it needs.

    If two services define different components with the same name, the later one is prefixed with its service's name.
    Raises IncompleteError.
    """
    wanted = {route.upstream for route in routes}
    schemas: dict[str, Any] = {}
    renamed = {name: _take(name, document, schemas) for name, document in documents.items() if name in wanted}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        try:
            operation = documents[route.upstream]["paths"][route.path][route.method.lower()]
        except KeyError:
            raise IncompleteError(f"{route.upstream} does not describe {route.method} {route.path}") from None
        paths.setdefault(route.path, {})[route.method.lower()] = _secured(
            _rewritten(operation, renamed[route.upstream]), route
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Backstop",
            "version": version,
            "description": "Report messages that the filter let through, triage them, and read Microsoft's verdict.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas | {"Problem": _problem(paths, problem_types())},
            "securitySchemes": {
                "entra": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "An access token of Microsoft Entra ID for this API.",
                }
            },
        },
    }


def _problem(paths: Json, types: Mapping[str, set[int]]) -> Json:
    """Put references in place of the problem details that each answer describes; return what they refer to."""
    schema: Json = {}
    for operations in paths.values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                if content := answer.get("content", {}).get("application/problem+json"):
                    schema = content["schema"]
                    content["schema"] = {"$ref": f"{_SCHEMAS}Problem"}
    properties: Json = schema.get("properties", {})
    known = {**properties.get("type", {}), "examples": [f"{TYPES}{name}" for name in sorted(types)]}
    return {**schema, "properties": {**properties, "type": known}}


def _secured(operation: dict[str, Any], route: Route) -> dict[str, Any]:
    roles = f"Needs one of the app roles {', '.join(route.roles)}."
    described = "\n\n".join(filter(None, (operation.get("description"), roles)))
    # What the chassis and the gateway may answer on any route.
    statuses = (401, 403, 422, 502, 503, 504, *((400, 408, 413) if route.method in ("POST", "PUT") else ()))
    responses = {str(status): answer for status, answer in problems(*statuses).items()} | operation["responses"]
    ordered = {status: responses[status] for status in sorted(responses)}
    return {**operation, "description": described, "responses": ordered, "security": [{"entra": []}]}


def _take(service: str, document: Document, schemas: dict[str, Any]) -> dict[str, str]:
    """Put the component schemas of *document* into *schemas*; return which got other names (old and new reference)."""
    own: Mapping[str, Any] = document.get("components", {}).get("schemas", {})
    renamed: dict[str, str] = {}
    while True:
        # A schema that refers to a renamed one differs from its namesake too.
        clashes = {
            name
            for name, schema in own.items()
            if name in schemas and _SCHEMAS + name not in renamed and schemas[name] != _rewritten(schema, renamed)
        }
        if not clashes:
            break
        renamed |= {_SCHEMAS + name: f"{_SCHEMAS}{service.capitalize()}{name}" for name in clashes}
    for name, schema in own.items():
        reference = renamed.get(_SCHEMAS + name, _SCHEMAS + name)
        schemas[reference.removeprefix(_SCHEMAS)] = _rewritten(schema, renamed)
    return renamed


def _rewritten(node: Any, renamed: Mapping[str, str]) -> Any:
    """Copy *node* with its references (`$ref`, discriminator mappings) under their new names."""
    match node:
        case dict():
            return {key: _rewritten(value, renamed) for key, value in node.items()}
        case list():
            return [_rewritten(item, renamed) for item in node]
        case str():
            return renamed.get(node, node)
        case _:
            return node
