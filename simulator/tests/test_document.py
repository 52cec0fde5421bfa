"""The OpenAPI document judges: these tests see to it that it can say no."""

import re
from typing import Any

import jsonschema
import pytest


async def answered(graph: Any, mail: Any) -> Any:
    """Get a true answer of Graph."""
    return await graph.submit(mail())


@pytest.mark.parametrize(
    "change",
    [
        {"createdDateTime": "yesterday"},
        {"status": "done"},
        {"result": {"userMailboxSetting": ["none"]}},
    ],
)
async def test_a_false_answer_is_noticed(graph: Any, mail: Any, document: Any, change: dict[str, Any]) -> None:
    """A value of the wrong kind does not pass."""
    answer = await answered(graph, mail)
    answer.body.update(change)

    with pytest.raises(jsonschema.ValidationError):
        document.check_properties(answer)


async def test_an_unknown_property_is_noticed(graph: Any, mail: Any, document: Any) -> None:
    """A misspelled property does not pass."""
    answer = await answered(graph, mail)
    answer.body["recipient"] = "anna@contoso.example"

    with pytest.raises(AssertionError, match="recipient"):
        document.check_properties(answer)


async def test_a_false_request_is_noticed(graph: Any, mail: Any) -> None:
    """The client wrapper does not let a wrong request out unless it is told to."""
    with pytest.raises(jsonschema.ValidationError):
        await graph.threats("POST", body=graph.content_form(mail(), category="notSpam"))


def test_the_document_has_no_prose(document: Any) -> None:
    """Only shapes are kept of Microsoft's descriptions."""

    def keys(node: Any, parent: str = "") -> set[str]:
        if isinstance(node, dict):
            own = set() if parent in ("properties", "schemas") else {k for k, v in node.items() if v}
            return own.union(*(keys(value, key) for key, value in node.items()))
        return set().union(*(keys(item) for item in node)) if isinstance(node, list) else set()

    assert not keys(document.content) & {"description", "summary", "externalDocs", "x-provenance"}


def test_every_reference_leads_somewhere(document: Any) -> None:
    """The document is complete, and has nothing that is not needed."""
    references = set(re.findall(r"#/components/schemas/([\w.]+)", str(document.content)))

    assert references == set(document.content["components"]["schemas"])
