"""The generated files: written, compared with what the code says, released."""

import json
import tomllib
from pathlib import Path

from backstop_contracts import EVENTS
from backstop_contracts.compatibility import breaking_changes
from generator.asyncapi import asyncapi
from generator.fields import table
from generator.introspection import services
from generator.openapi import openapi
from generator.schemas import Json, json_schema, versioned

CONTRACTS = Path(__file__).resolve().parent.parent


def files(root: Path = CONTRACTS) -> dict[Path, str]:
    """Return the text of every generated file below *root*, made with the examples that are there."""
    found = services()
    version = tomllib.loads((CONTRACTS / "pyproject.toml").read_text())["project"]["version"]
    return {
        **{root / "schemas" / f"{versioned(model)}.json": _pretty(json_schema(model)) for model in EVENTS},
        root / "FIELDS.md": table(),
        root / "backstop_contracts" / "asyncapi.json": _pretty(asyncapi(found, root / "examples", version)),
        root / "backstop_contracts" / "openapi.json": _pretty(openapi(found, version)),
    }


def write(root: Path = CONTRACTS) -> None:
    """Write the generated files and remove those of events that are no more."""
    texts = files(root)
    for file in _stale(root, texts):
        file.unlink()
    for file, text in texts.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


def check(root: Path = CONTRACTS) -> list[str]:
    """Return the generated files that are not what the code says."""
    texts = files(root)
    drifted = [file for file, text in texts.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    found = [*drifted, *_stale(root, texts)]
    return [f"contracts/{file.relative_to(root)} is not what the code says" for file in found]


def release(root: Path = CONTRACTS) -> list[str]:
    """Promise the present schemas, unless a released one would be broken; return what breaks."""
    released, broken = root / "released", []
    for model in EVENTS:
        file = released / f"{versioned(model)}.json"
        if file.exists():
            changes = breaking_changes(json.loads(file.read_text()), json_schema(model))
            broken += [f"{versioned(model)}: {change}" for change in changes]
    if not broken:
        released.mkdir(exist_ok=True)
        for model in EVENTS:
            (released / f"{versioned(model)}.json").write_text(_pretty(json_schema(model)), encoding="utf-8")
    return broken


def _stale(root: Path, texts: dict[Path, str]) -> list[Path]:
    return [file for file in sorted((root / "schemas").glob("*.json")) if file not in texts]


def _pretty(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
