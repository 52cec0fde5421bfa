"""What the services really subscribe to, publish and route, read off the services themselves."""

import ast
import asyncio
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import outcomes
from backstop_contracts import EVENTS, BlockRequested, Event
from chassis.http import FRAMEWORK_PROBLEMS

NAMES = ("reporter", "triage", "submitter", "verdict-poller", "blocklist", "quarantine")
"""The services, in the order of the story."""

_SETTINGS: Mapping[str, Any] = {
    "api_audience": "00000000-0000-0000-0000-000000000000",
    "client_id": "00000000-0000-0000-0000-000000000000",
    "client_secret": "none",
    "kafka_bootstrap": "localhost:9092",
    "link_keys": "k" * 32,
    "mail_store": "memory:///",
    "postgres_dsn": "postgresql://localhost/backstop",
    "public_url": "https://backstop.example",
    "tenants": frozenset({UUID(int=0)}),
}
"""What services must be told before they can be built. They are never started."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service: what it does, which events it takes and sends, and its HTTP API."""

    name: str
    does: str
    subscribes: tuple[type[Event], ...]
    publishes: tuple[type[Event], ...]
    openapi: Mapping[str, Any]

    def group(self, model: type[Event]) -> str:
        """Return the consumer group that reads an event's topic, without the installation's prefix."""
        return f"{self.name}.{model.topic()}"


def services() -> list[Service]:
    """Build every service and return what it says of itself."""
    return [_service(name) for name in NAMES]


def _service(name: str) -> Service:
    module = import_module(f"{name.replace('-', '_')}.app")
    router = import_module(f"{name.replace('-', '_')}.handlers").router
    subscribed = {topic for subscriber in router.subscribers for topic in subscriber.topic_names}
    fields = module.Settings.model_fields
    built = asyncio.run(_built(module, {field: _SETTINGS[field] for field in fields if field in _SETTINGS}))
    published = set(_published(Path(inspect.getfile(module)).parent))
    return Service(
        name=name,
        does=built.api.description,
        subscribes=tuple(model for model in EVENTS if model.topic() in subscribed),
        publishes=tuple(model for model in EVENTS if model.__name__ in published),
        openapi=built.api.openapi(),
    )


async def _built(module: Any, settings: Mapping[str, Any]) -> Any:
    """Build a service, which is then not started: its connections to the outside were never used, and are closed."""
    async with module.build(module.Settings(**settings)) as service:
        return service


def problem_types() -> dict[str, set[int]]:
    """Return the types of problem details that the services and the chassis make, each with its statuses."""
    found: dict[str, set[int]] = {}
    packages = ("chassis", "gateway", *(name.replace("-", "_") for name in NAMES))
    for file in (file for name in packages for file in Path(inspect.getfile(import_module(name))).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Problem"), args=[status, ast.Constant(value=str(name)), *_]):
                    statuses = (part.value for part in ast.walk(status) if isinstance(part, ast.Constant))
                    found.setdefault(name, set()).update(value for value in statuses if isinstance(value, int))
    for code, (framework, _) in FRAMEWORK_PROBLEMS.items():
        found.setdefault(framework, set()).add(code)
    return found


def _published(package: Path) -> Iterator[str]:
    """Yield the name of every call in the package. Constructing an event counts as publishing it."""
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == outcomes.request_block.__name__:
                    yield BlockRequested.__name__
                yield node.func.id
