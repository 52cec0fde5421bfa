"""The committed files say what the code says, and the program that writes them can be trusted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backstop_contracts import EVENTS, schema_of
from generator.generated_files import check, release, write

CONTRACTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    """Make a copy of the files that are generated, and of the examples, for a test to spoil."""
    shutil.copytree(CONTRACTS, tmp_path, ignore=shutil.ignore_patterns("generator", "tests", ".*"), dirs_exist_ok=True)
    return tmp_path


def test_committed_files_are_what_the_code_says() -> None:
    """Whoever changes an event, a subscription or a route commits the generated files with it."""
    assert check() == []


@pytest.mark.slow
def test_the_command_names_what_drifted_and_what_to_run(contracts: Path) -> None:
    """Files that are wrong, missing or left over are named; writing them again mends it."""
    (contracts / "backstop_contracts" / "asyncapi.json").write_text("{}")
    (contracts / "FIELDS.md").write_text("")
    (contracts / "schemas" / "case-updated.v1.json").unlink()
    (contracts / "schemas" / "never-happened.v1.json").write_text("{}")

    assert check(contracts) == [
        "contracts/schemas/case-updated.v1.json is not what the code says",
        "contracts/FIELDS.md is not what the code says",
        "contracts/backstop_contracts/asyncapi.json is not what the code says",
        "contracts/schemas/never-happened.v1.json is not what the code says",
    ]
    write(contracts)
    assert check(contracts) == []


def test_every_event_has_a_schema_that_its_headers_name() -> None:
    """The `ce_dataschema` of an event is the `$id` of a committed JSON Schema 2020-12."""
    for model in EVENTS:
        schema = json.loads((CONTRACTS / "schemas" / f"{model.TOPIC}.v{model.VERSION}.json").read_text())

        assert schema["$id"] == schema_of(model)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert "additionalProperties" not in json.dumps(schema)


@pytest.mark.slow
def test_a_changed_example_reaches_the_asyncapi_document(contracts: Path) -> None:
    """The document shows the very examples that are tested."""
    example = contracts / "examples" / "block-removed.v1.json"
    example.write_text(example.read_text().replace("expired", "verdict-clean"))

    assert check(contracts) == ["contracts/backstop_contracts/asyncapi.json is not what the code says"]


@pytest.mark.slow
def test_the_text_does_not_depend_on_the_run() -> None:
    """Another process, whose sets Python orders otherwise, finds the committed files as they should be."""
    command = [sys.executable, "-m", "generator", "--check"]
    environment = {**os.environ, "PYTHONHASHSEED": "2", "PYTHONPATH": str(CONTRACTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - ours

    assert (done.returncode, done.stderr) == (0, "")


def test_a_release_refuses_to_break_a_promise(contracts: Path) -> None:
    """A schema that breaks readers of the released one is not released; the text says what breaks."""
    assert release(contracts) == []
    released = contracts / "released" / "case-updated.v1.json"
    promise = json.loads(released.read_text())
    promise["properties"]["severity"] = {"type": "string"}
    released.write_text(json.dumps(promise))

    assert release(contracts) == ["case-updated.v1: severity: is removed or renamed"]
    assert json.loads(released.read_text()) == promise


def test_a_release_promises_the_fields_that_were_added(contracts: Path) -> None:
    """From its release on, a new optional field is part of what is promised."""
    release(contracts)
    released = contracts / "released" / "case-updated.v1.json"
    promise = json.loads(released.read_text())
    del promise["properties"]["note"]
    released.write_text(json.dumps(promise))

    assert release(contracts) == []
    assert "note" in json.loads(released.read_text())["properties"]
