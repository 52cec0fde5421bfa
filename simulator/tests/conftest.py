"""A running simulator and clients that check every exchange with Graph against the OpenAPI document."""

import base64
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.message import EmailMessage
from importlib.resources import files
from typing import Any

import aiohttp
import orjson
import pytest
from openapi_schema_validator import OAS30Validator, oas30_format_checker

from simulator import DEFAULT_APP, DEFAULT_SECRET, Simulator, serve
from simulator.state import DEFAULT_TENANT
from simulator.tokens import EXCHANGE, GRAPH

EMAIL_THREATS = "/security/threatSubmission/emailThreats"
SCHEMA_PREFIX = "microsoft.graph.security."
ENTITY = f"#/components/schemas/{SCHEMA_PREFIX}emailThreatSubmission"


@dataclass(frozen=True)
class Answer:
    """A status, the headers and the decoded body of an answer."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        """The error code of an OData error."""
        return str(self.body["error"]["code"])

    @property
    def reason(self) -> str:
        """Why Exchange refused."""
        return str(self.body["error"]["innererror"]["internalexception"]["message"])


class Document:
    """The OpenAPI document of the submissions, as a judge of requests and answers."""

    def __init__(self) -> None:
        text = files("simulator").joinpath("threat_submission.openapi.json").read_bytes()
        self.content: dict[str, Any] = orjson.loads(text)
        schemas: dict[str, Any] = self.content["components"]["schemas"]
        self.known_values: dict[str, list[str]] = {
            name.removeprefix(SCHEMA_PREFIX): schema["x-known-values"]
            for name, schema in schemas.items()
            if "x-known-values" in schema
        }
        self.entity_properties = {
            name
            for kind in ("emailUrlThreatSubmission", "emailContentThreatSubmission")
            for name in self._properties(schemas[SCHEMA_PREFIX + kind])
        }

    def _properties(self, schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            return self._properties(self._resolved(schema))
        found = set(schema.get("properties", {}))
        return found.union(*(self._properties(part) for part in schema.get("allOf", [])))

    def _resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            target: Any = self.content
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            node = target
        return node

    def operation(self, method: str, path: str) -> dict[str, Any]:
        """Return the operation that serves *path* below `/beta`."""
        parts = [part for part in path.removeprefix(EMAIL_THREATS).split("/") if part]
        template = EMAIL_THREATS
        if parts == ["$count"]:
            template += "/$count"
        elif parts:
            template = "/".join([EMAIL_THREATS, "{emailThreatSubmission-id}", *parts[1:]])
        operation: dict[str, Any] = self.content["paths"][template][method.lower()]
        return operation

    def check_request(self, operation: dict[str, Any], body: Any, params: dict[str, str]) -> None:
        """Raise for a body or a query option that the document does not know."""
        known = {self._resolved(parameter)["name"] for parameter in operation.get("parameters", [])}
        assert set(params) <= known | {"$skipToken"}
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self._check(self._concrete(schema, body), body)

    def _concrete(self, schema: dict[str, Any], body: Any) -> dict[str, Any]:
        """Choose the schema that the discriminator names."""
        resolved = self._resolved(schema)
        for part in (resolved, *resolved.get("allOf", [])):
            discriminator = part.get("discriminator")
            if discriminator and isinstance(body, dict):
                target = discriminator["mapping"].get(body.get(discriminator["propertyName"]))
                return {"$ref": target} if target else schema
        return schema

    def check_answer(self, operation: dict[str, Any], answer: Answer) -> None:
        """Raise when the status or the body is not one that the document describes."""
        responses = operation["responses"]
        found = responses.get(str(answer.status)) or responses[f"{answer.status // 100}XX"]
        content = self._resolved(found).get("content")
        if content is None:
            assert answer.body is None
            return
        ((media, body),) = content.items()
        assert answer.headers["Content-Type"].startswith(media)
        self._check(body["schema"], answer.body)

    def check_properties(self, answer: Answer) -> None:
        """Raise when an answered submission has a property that the document does not name."""
        if answer.status >= 300 or not isinstance(answer.body, dict):
            return
        for entity in answer.body.get("value", [answer.body]):
            self._check(self._concrete({"$ref": ENTITY}, entity), entity)
            unknown = {name for name in entity if not name.startswith("@odata.")} - self.entity_properties
            assert not unknown, unknown

    def _check(self, schema: dict[str, Any], instance: Any) -> None:
        whole = {**schema, "components": self.content["components"]}
        OAS30Validator(whole, format_checker=oas30_format_checker).validate(instance)


class Client:
    """Speaks to the simulator over TLS."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Send *body* as JSON and decode what comes back."""
        data = orjson.dumps(body) if body is not None else None
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        async with self.session.request(method, self.url + path, data=data, headers=headers, **options) as response:
            raw = await response.read()
            decoded: Any = raw or None
            if response.content_type == "application/json" and raw.strip(b"\0"):
                decoded = orjson.loads(raw)
            elif response.content_type == "text/plain" and response.status == 200:
                decoded = int(raw)
            return Answer(response.status, dict(response.headers), decoded)

    async def token(self, resource: str, tenant: str = DEFAULT_TENANT, **fields: str) -> Answer:
        """Ask Entra ID for a token with the default app's secret, or with *fields*."""
        form = {"grant_type": "client_credentials", "client_id": DEFAULT_APP, "scope": f"{resource}/.default"}
        form |= fields or {"client_secret": DEFAULT_SECRET}
        async with self.session.post(f"{self.url}/{tenant}/oauth2/v2.0/token", data=form) as response:
            return Answer(response.status, dict(response.headers), await response.json())


class Control(Client):
    """The control routes."""

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the body of a successful answer."""
        answer = await self.call(method, f"/simulator{path}", body)
        assert answer.status < 300, answer.body
        return answer.body

    async def settings(self, **changes: Any) -> None:
        """Change settings."""
        await self.ask("PATCH", "/settings", changes)

    async def tenant(self, **changes: Any) -> None:
        """Change the default tenant."""
        await self.ask("PATCH", f"/tenants/{DEFAULT_TENANT}", changes)

    async def advance(self, seconds: float) -> None:
        """Advance the clock."""
        await self.ask("POST", "/clock", {"advance_seconds": seconds})

    async def fault(self, route: str, kind: str, **options: Any) -> None:
        """Order a fault."""
        await self.ask("POST", "/faults", [{"route": route, "kind": kind, **options}])

    async def ledger(self, query: str = "") -> Any:
        """Read the ledger."""
        return await self.ask("GET", f"/ledger{query}")


class Graph(Client):
    """Graph's submissions; every exchange is checked against the OpenAPI document."""

    def __init__(self, session: aiohttp.ClientSession, url: str, document: Document, token: str) -> None:
        super().__init__(session, url)
        self.document = document
        self.bearer = token

    async def threats(
        self,
        method: str,
        rest: str = "",
        body: Any = None,
        *,
        params: dict[str, str] | None = None,
        all_members: bool = True,
        bad_request: bool = False,
        drifted: bool = False,
    ) -> Answer:
        """Call the submissions. *bad_request* is for requests that are wrong on purpose."""
        params = params or {}
        operation = self.document.operation(method, EMAIL_THREATS + rest)
        if not bad_request:
            self.document.check_request(operation, body, params)
        headers = {"Authorization": f"Bearer {self.bearer}"}
        if all_members:
            headers["Prefer"] = "include-unknown-enum-members"
        answer = await self.call(method, f"/beta{EMAIL_THREATS}{rest}", body, params=params, headers=headers)
        self.document.check_answer(operation, answer)
        if not drifted:
            self.document.check_properties(answer)
        return answer

    @staticmethod
    def content_form(raw: bytes, recipient: str = "anna@contoso.example", **changes: Any) -> dict[str, Any]:
        """Write the body of a submission of a mail's content; a change to None leaves the property out."""
        body: dict[str, Any] = {
            "@odata.type": "#microsoft.graph.security.emailContentThreatSubmission",
            "category": "phishing",
            "recipientEmailAddress": recipient,
            "fileContent": base64.b64encode(raw).decode(),
            **changes,
        }
        return {name: value for name, value in body.items() if value is not None}

    @staticmethod
    def link_form(url: str, recipient: str = "anna@contoso.example") -> dict[str, Any]:
        """Write the body of a submission of a mail in a mailbox."""
        return {
            "@odata.type": "#microsoft.graph.security.emailUrlThreatSubmission",
            "category": "phishing",
            "recipientEmailAddress": recipient,
            "messageUrl": url,
        }

    async def submit(self, raw: bytes, recipient: str = "anna@contoso.example", **more: Any) -> Answer:
        """Submit a mail's content."""
        return await self.threats("POST", body=self.content_form(raw, recipient), **more)


class Exchange(Client):
    """Exchange Online's admin API."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        super().__init__(session, url)
        self.bearer = token

    async def invoke(self, cmdlet: str, headers: dict[str, str] | None = None, **parameters: Any) -> Answer:
        """Run a cmdlet."""
        body = {"CmdletInput": {"CmdletName": cmdlet, "Parameters": parameters}}
        path = f"/adminapi/beta/{DEFAULT_TENANT}/InvokeCommand"
        bearer = {"Authorization": f"Bearer {self.bearer}"}
        return await self.call("POST", path, body, headers={**bearer, **(headers or {})})

    async def rows(self, cmdlet: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run a cmdlet that must succeed, and return its rows without type annotations."""
        answer = await self.invoke(cmdlet, **parameters)
        assert answer.status == 200, answer.body
        return [{key: value for key, value in row.items() if "@" not in key} for row in answer.body["value"]]


def write_mail(
    text: str = "Hello, see you at lunch.",
    *,
    sender: str = "Bob <bob@fabrikam.example>",
    message_id: str = "<one@fabrikam.example>",
    report: str = "CIP:203.0.113.7;SFV:NSPM;SCL:1;CAT:NONE",
    headers: dict[str, str] | None = None,
    attachment: tuple[str, bytes] | None = None,
    html: str | None = None,
) -> bytes:
    """Write a delivered mail."""
    mail = EmailMessage()
    mail["Received"] = "from mx.example by mail.example; Mon, 02 Nov 2026 10:00:00 +0000"
    mail["From"] = sender
    mail["To"] = "anna@contoso.example"
    mail["Subject"] = "Lunch"
    mail["Date"] = "Mon, 02 Nov 2026 09:59:00 +0000"
    mail["Message-ID"] = message_id
    mail["X-Forefront-Antispam-Report"] = report
    for name, value in (headers or {}).items():
        mail[name] = value
    mail.set_content(text)
    if html is not None:
        mail.add_alternative(html, subtype="html")
    if attachment is not None:
        name, content = attachment
        mail.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return mail.as_bytes()


@pytest.fixture(scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    """One simulator for all tests."""
    async with serve(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


@pytest.fixture
def sim(running: Simulator) -> Simulator:
    """Provide a simulator that knows nothing yet."""
    running.state.reset()
    return running


@pytest.fixture(scope="session")
async def session(running: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    """Provide an HTTP session that trusts the simulator's CA."""
    context = ssl.create_default_context(cafile=str(running.ca_file))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


@pytest.fixture(scope="session")
def document() -> Document:
    """Read the OpenAPI document."""
    return Document()


@pytest.fixture
def client(sim: Simulator, session: aiohttp.ClientSession) -> Client:
    """Provide a client without a token."""
    return Client(session, sim.url)


@pytest.fixture
def control(sim: Simulator, session: aiohttp.ClientSession) -> Control:
    """Provide the control routes."""
    return Control(session, sim.url)


@pytest.fixture
async def graph(client: Client, document: Document) -> Graph:
    """Graph, with a token of the default app."""
    token = (await client.token(GRAPH)).body["access_token"]
    return Graph(client.session, client.url, document, token)


@pytest.fixture
async def exchange(client: Client) -> Exchange:
    """Exchange Online, with a token of the default app."""
    token = (await client.token(EXCHANGE)).body["access_token"]
    return Exchange(client.session, client.url, token)


@pytest.fixture(scope="session")
def mail() -> Callable[..., bytes]:
    """Write mails."""
    return write_mail
