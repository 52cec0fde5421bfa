"""One OpenAPI document describes every route of the table, and nothing else."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator

from gateway.routing_table import ROUTES, Route
from generator.introspection import problem_types
from generator.openapi import IncompleteError, merge

DOCUMENT: dict[str, Any] = json.loads((files("backstop_contracts") / "openapi.json").read_text())


def references(node: Any) -> Iterator[str]:
    """List every `$ref` below *node*."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        yield from references(list(node.values()))
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def check(document: dict[str, Any]) -> None:
    """Check that *document* is OpenAPI 3.1 and that every reference leads somewhere."""
    OpenAPI.model_validate(document)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in references(document):
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_every_route_is_described() -> None:
    """The committed document has exactly the gateway's operations, each with its roles and the token."""
    check(DOCUMENT)
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        assert operation["description"].endswith(f"Needs one of the app roles {', '.join(route.roles)}.")
        assert operation["security"] == [{"entra": []}]
    assert DOCUMENT["components"]["securitySchemes"]["entra"]["scheme"] == "bearer"


def test_the_ways_to_send_a_message_are_described() -> None:
    """Whoever generates a client sees the three types of content and the attributes."""
    operation = DOCUMENT["paths"]["/v1/reports"]["post"]
    content = operation["requestBody"]["content"]

    assert set(content) == {"message/rfc822", "multipart/form-data", "application/json"}
    assert content["application/json"]["schema"]["required"] == ["mail", "reported_as"]
    assert content["application/json"]["schema"]["properties"]["reported_as"]["enum"] == [
        "phishing",
        "junk",
        "malware",
        "not-junk",
    ]
    assert "mailbox_message.user_id" in content["multipart/form-data"]["schema"]["properties"]
    assert {parameter["name"] for parameter in operation["parameters"]} >= {"reported_as", "folder", "block_sender"}
    assert {"202", "400", "401", "403", "413", "415", "422", "503"} <= set(operation["responses"])


def test_every_route_says_what_the_gateway_itself_may_answer() -> None:
    """A client that is generated from the document meets no answer that it does not know."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            assert {"401", "403", "422", "502", "503", "504"} <= set(operation["responses"]), (method, path)


def test_a_type_of_problem_has_one_status_and_is_listed() -> None:
    """Programs branch on the type; whoever generates a client finds all of them in the document."""
    types = problem_types()
    listed = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["type"]["examples"]

    assert len(types) > 30
    assert {name: statuses for name, statuses in types.items() if len(statuses) != 1} == {}
    assert listed == [f"urn:backstop:problem:{name}" for name in sorted(types)]


def made_of(name: str, path: str, **schemas: Any) -> dict[str, Any]:
    """Make a document with one operation that answers with the schema *name*."""
    answer = {"description": "", "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "", "version": ""},
        "paths": {path: {"get": {"responses": {"200": answer}}}},
        "components": {"schemas": schemas},
    }


A, B = Route("GET", "/a", ("Reporter",), "reporter"), Route("GET", "/b", ("Reporter",), "triage")
STRING, NUMBER = {"type": "string"}, {"type": "number"}


def refer(name: str) -> dict[str, Any]:
    """Make a schema that refers to another."""
    return {"type": "object", "properties": {"x": {"$ref": f"#/components/schemas/{name}"}}}


def answered(document: dict[str, Any], path: str) -> str:
    """Return the reference of the answer at *path*."""
    schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    return str(schema["$ref"]).rpartition("/")[2]


def test_one_name_for_two_things_becomes_two_names() -> None:
    """Each service's answers keep their own meaning, also where they refer to what has another meaning."""
    document = merge(
        {
            "reporter": made_of("State", "/a", State=refer("Word"), Word=STRING, Same=STRING),
            "triage": made_of("State", "/b", State=refer("Word"), Word=NUMBER, Same=STRING, Own=refer("Same")),
        },
        [A, B],
        "1",
    )

    check(document)
    schemas = document["components"]["schemas"]
    assert (answered(document, "/a"), answered(document, "/b")) == ("State", "TriageState")
    assert schemas["State"] == refer("Word")
    assert schemas["TriageState"] == refer("TriageWord")
    assert (schemas["Word"], schemas["TriageWord"]) == (STRING, NUMBER)
    assert set(schemas) - {"Problem"} == {"State", "Word", "Same", "TriageState", "TriageWord", "Own"}


def test_a_route_that_its_service_does_not_describe_is_an_error() -> None:
    """A document that leaves out a route would be a lie."""
    with pytest.raises(IncompleteError, match="triage does not describe GET /b"):
        merge({"reporter": made_of("S", "/a", S=STRING), "triage": made_of("S", "/c", S=STRING)}, [A, B], "1")
