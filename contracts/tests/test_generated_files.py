"""The committed files say what the models say, and the program that writes them can be trusted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backstop_contracts import EVENTS, schema_of

CONTRACTS = Path(__file__).resolve().parents[1]


def generate(folder: Path, *arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run the program of *folder* as one runs it by hand."""
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, folder / "generate.py", *arguments],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    """Make a copy of the folder that a test may spoil."""
    ignore = shutil.ignore_patterns("backstop_contracts", "tests", "*.egg-info", ".*")
    return Path(shutil.copytree(CONTRACTS, tmp_path / "contracts", ignore=ignore))


def test_committed_files_are_what_the_models_say() -> None:
    """Whoever changes a model commits the generated files with it."""
    result = generate(CONTRACTS, "--check")

    assert result.returncode == 0, result.stderr


def test_every_event_has_a_schema_that_its_headers_name() -> None:
    """The `ce_dataschema` of an event is the `$id` of a committed JSON Schema 2020-12."""
    for model in EVENTS:
        schema = json.loads((CONTRACTS / "schemas" / f"{model.TOPIC}.v{model.VERSION}.json").read_text())

        assert schema["$id"] == schema_of(model)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert "additionalProperties" not in json.dumps(schema)


def test_files_that_drifted_are_named_with_the_command_that_mends_them(contracts: Path) -> None:
    """A failing check tells which files are wrong, missing or left over, and what to run, which then helps."""
    (contracts / "asyncapi.json").write_text("{}")
    (contracts / "schemas" / "case-updated.v1.json").unlink()
    (contracts / "schemas" / "never-happened.v1.json").write_text("{}")

    result = generate(contracts, "--check")

    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "contracts/schemas/case-updated.v1.json is not what the models say",
        "contracts/asyncapi.json is not what the models say",
        "contracts/schemas/never-happened.v1.json is not what the models say",
        "Run: python contracts/generate.py",
    ]
    assert generate(contracts).returncode == 0
    assert generate(contracts, "--check").returncode == 0


def test_a_changed_example_reaches_the_asyncapi_document(contracts: Path) -> None:
    """The document shows the very examples that are tested."""
    example = contracts / "examples" / "block-removed.v1.json"
    example.write_text(example.read_text().replace("expired", "verdict-clean"))

    result = generate(contracts, "--check")

    assert "contracts/asyncapi.json is not what the models say" in result.stderr


def test_the_text_does_not_depend_on_the_run(contracts: Path) -> None:
    """Two runs write the same bytes, also when Python orders its sets otherwise."""
    written = []
    for seed in ("1", "2"):
        for file in [*contracts.glob("schemas/*"), contracts / "asyncapi.json"]:
            file.unlink()
        generate(contracts, hash_seed=seed)
        written.append({file.name: file.read_bytes() for file in contracts.rglob("*.json")})

    assert written[0] == written[1]


def test_a_release_refuses_to_break_a_promise(contracts: Path) -> None:
    """A schema that breaks readers of the released one is not released; the text says what breaks and what to do."""
    released = contracts / "released" / "case-updated.v1.json"
    promise = json.loads(released.read_text())
    promise["properties"]["severity"] = {"type": "string"}
    released.write_text(json.dumps(promise))

    result = generate(contracts, "--release")

    assert result.returncode == 1
    assert "case-updated.v1: severity: is removed or renamed" in result.stderr
    assert "Make v2 beside this version" in result.stderr
    assert json.loads(released.read_text()) == promise


def test_a_release_promises_the_fields_that_were_added(contracts: Path) -> None:
    """From its release on, a new optional field is part of what is promised."""
    released = contracts / "released" / "case-updated.v1.json"
    promise = json.loads(released.read_text())
    del promise["properties"]["note"]
    released.write_text(json.dumps(promise))

    result = generate(contracts, "--release")

    assert result.returncode == 0, result.stderr
    assert "note" in json.loads(released.read_text())["properties"]
