"""One OpenAPI document describes every route of the table, and nothing else."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator

from gateway.openapi import IncompleteError, merge
from gateway.routes import ROUTES, Route
from quarantine.app import Settings as QuarantineSettings
from quarantine.app import build as build_quarantine
from reporter.app import Settings as ReporterSettings
from reporter.app import build as build_reporter
from triage.app import Settings as TriageSettings
from triage.app import build as build_triage


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give the documents of the real services."""
    common: dict[str, Any] = {
        "api_audience": str(uuid4()),
        "tenants": frozenset({uuid4()}),
        "postgres_dsn": "postgresql://unused.invalid/backstop",
        "kafka_bootstrap": "unused.invalid:9092",
    }
    store = tmp_path_factory.mktemp("mails").as_uri()
    return {
        "reporter": build_reporter(ReporterSettings(mail_store=store, **common)).api.openapi(),
        "triage": build_triage(TriageSettings(**common)).api.openapi(),
        "quarantine": build_quarantine(
            QuarantineSettings(
                mail_store=store,
                public_url="https://quarantine.contoso.example",
                link_keys=("a-key-of-the-tests-that-is-long-enough-0001",),
                client_id="unused",
                client_secret="unused",  # noqa: S106 - nobody connects
                **common,
            )
        ).api.openapi(),
    }


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


def test_every_route_is_described(documents: dict[str, Any]) -> None:
    """The document of the real services has exactly the table's operations, each with its roles and the token."""
    document = merge(documents, ROUTES)

    check(document)
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert operation["description"].endswith(f"Needs one of the app roles {', '.join(route.roles)}.")
        assert operation["security"] == [{"entra": []}]
    assert document["components"]["securitySchemes"]["entra"]["scheme"] == "bearer"


def test_the_ways_to_send_a_mail_are_described(documents: dict[str, Any]) -> None:
    """Whoever generates a client sees the three types of content and the attributes."""
    operation = merge(documents, ROUTES)["paths"]["/v1/reports"]["post"]
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
    )

    check(document)
    schemas = document["components"]["schemas"]
    assert (answered(document, "/a"), answered(document, "/b")) == ("State", "TriageState")
    assert schemas["State"] == refer("Word")
    assert schemas["TriageState"] == refer("TriageWord")
    assert (schemas["Word"], schemas["TriageWord"]) == (STRING, NUMBER)
    assert set(schemas) == {"State", "Word", "Same", "TriageState", "TriageWord", "Own"}


def test_a_route_that_its_service_does_not_describe_is_an_error() -> None:
    """A document that leaves out a route would be a lie."""
    with pytest.raises(IncompleteError, match="triage does not describe GET /b"):
        merge({"reporter": made_of("S", "/a", S=STRING), "triage": made_of("S", "/c", S=STRING)}, [A, B])


async def test_the_document_is_fetched_in_the_callers_name_and_kept_for_a_minute(
    run_gateway: Any, service: Any, token: Any, documents: dict[str, Any]
) -> None:
    """Two callers in a row cost one fetch from each service."""
    fetched = []

    async def give(request: web.Request) -> web.Response:
        fetched.append(request.headers["Authorization"])
        return web.json_response({"paths": {p: m for d in documents.values() for p, m in d["paths"].items()}})

    service.answer = give
    headers = {"Authorization": f"Bearer {await token()}"}
    async with run_gateway(service.url) as gateway:
        for _ in range(2):
            async with gateway.get("/openapi.json", headers=headers) as answer:
                assert answer.status == 200
                assert set((await answer.json())["paths"]) == {route.path for route in ROUTES}
    assert fetched == [headers["Authorization"]] * len(documents)


async def test_services_of_another_version_are_told_apart(run_gateway: Any, service: Any, token: Any) -> None:
    """While a service does not describe what the gateway offers, there is no document rather than a wrong one."""

    async def give(_request: web.Request) -> web.Response:
        return web.json_response({"paths": {}})

    service.answer = give
    headers = {"Authorization": f"Bearer {await token()}"}
    async with run_gateway(service.url) as gateway, gateway.get("/openapi.json", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (502, "application/problem+json")
