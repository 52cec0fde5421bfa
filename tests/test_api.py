"""Every route of every OpenAPI document: no text and no request makes it answer 5xx, or what is not described."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import aiohttp
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import gateway.app
import quarantine.app
import reporter.app
import triage.app
from backstop_contracts import Folder, Message, MessageReported, ReportedAs, read_headers
from chassis.service import Service
from chassis.testing import deliver
from conftest import AUDIENCE, running
from local_stack.backing import own_database
from simulator import Simulator
from triage import handlers
from triage.rules import Policy

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12
ROLES = ("Reporter", "SecurityReader", "SecurityAdministrator")
HOSTILE = {
    "SQL": "'; DROP TABLE reports; --",
    "an escaped quote": "\\'; SELECT pg_sleep(60) --",
    "NUL": "a\0b",
    "line breaks": "a\r\nX-Injected: yes\r\n\r\n",
    "a path": "../../../etc/passwd",
    "a coded path": "%2e%2e%2f%00",
    "far too long": "x" * 5000,
    "other scripts": "\u202e\ufeff\U0001d54f\u0301\uffff",
    "a lone surrogate": "\ud800",
    "the first moment": "0001-01-01T00:00:00+23:59",
    "the last moment": "9999-12-31T23:59:59.999999-23:59",
    "the first moment of UTC": "0001-01-01T00:00:00Z",
    "the last moment of UTC": "9999-12-31T23:59:59.999999Z",
    "no time zone": "0001-01-01T00:00:00",
    "a first cursor": base64.urlsafe_b64encode(f"1 0001-01-01T00:00:00+23:59 {UUID(int=0)}".encode()).decode(),
    "a last cursor": base64.urlsafe_b64encode(f"9999-12-31T23:59:59-23:59 {UUID(int=0)}".encode()).decode(),
    "a cursor without a zone": base64.urlsafe_b64encode(f"0 0001-01-01T00:00:00 {UUID(int=0)}".encode()).decode(),
    "a placeholder": "$1 {0} %s ${HOME} {{7*7}}",
    "nothing": "",
}


@dataclass(frozen=True)
class Served:
    """Services, their addresses, and the case that is always there."""

    services: dict[str, Service]
    urls: dict[str, str]
    tenant_id: UUID
    case_id: UUID


@pytest.fixture(scope="module")
async def served(
    postgres_dsn: str, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """Run reporter, triage, quarantine and the gateway before them, over a database of their own; Kafka is away."""
    http: dict[str, Any] = {
        "authority": simulator.url,
        "ca_file": Path(simulator.ca_file),
        "api_audience": AUDIENCE,
        "tenants": frozenset(map(UUID, simulator.state.tenants)),
    }
    mails = tmp_path_factory.mktemp("mails").as_uri()
    microsoft = {"graph_url": simulator.url, "exchange_url": simulator.url, "mail_store": mails}
    links = {"public_url": "https://quarantine.contoso.example", "link_keys": "k" * 32}
    app = simulator.address()
    credential = {name: app[name] for name in ("client_id", "client_secret")}
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(own_database(postgres_dsn, "api"))
        service = http | {"postgres_dsn": dsn, "kafka_bootstrap": "127.0.0.1:1"}
        building = {
            "reporter": reporter.app.build(reporter.app.Settings(mail_store=mails, **service)),
            "triage": triage.app.build(triage.app.Settings(**service)),
            "quarantine": quarantine.app.build(quarantine.app.Settings(**service, **microsoft, **links, **credential)),
        }
        services = {name: await stack.enter_async_context(made) for name, made in building.items()}
        urls = {name: await stack.enter_async_context(running(made.api)) for name, made in services.items()}
        settings = gateway.app.Settings(**{f"{name}_url": url for name, url in urls.items()}, **http)
        front = await stack.enter_async_context(gateway.app.build(settings))
        urls["gateway"] = await stack.enter_async_context(running(front))
        tenant_id = UUID(next(iter(simulator.state.tenants)))
        yield Served(services, urls, tenant_id, await _open_case(services["triage"], tenant_id))


async def _open_case(service: Service, tenant_id: UUID) -> UUID:
    sha256 = uuid4().hex * 2
    report = MessageReported(
        tenant_id=tenant_id,
        report_id=uuid4(),
        reporter="ann@contoso.example",
        reported_as=ReportedAs.PHISHING,
        folder=Folder.INBOX,
        channel="api",
        reported_at=datetime.now(UTC),
        message=Message(sha256=sha256, size=1, sender="a@fabrikam.example", sender_domain="fabrikam.example"),
    )
    return await _take(service, report)


async def _take(triage: Service, report: MessageReported) -> UUID:
    """Have triage handle a report as it comes out of Kafka; return its case."""
    await deliver(handlers.router, triage.db, report, policy=Policy())
    case_id: UUID = await triage.db.pool.fetchval("SELECT case_id FROM reports WHERE report_id = $1", report.report_id)
    return case_id


def _document(served: Served, service: str) -> dict[str, Any]:
    if service == "gateway":
        document: dict[str, Any] = orjson.loads((files("backstop_contracts") / "openapi.json").read_bytes())
        return document
    return served.services[service].api.openapi()


@pytest.mark.parametrize("service", ["reporter", "triage", "quarantine", "gateway"])
@pytest.mark.parametrize("role", [*ROLES, None])
# Hypothesis takes chance that another thread asks for, such as a Kafka client's, for its own strategies'.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_whatever_is_asked_is_answered_as_described(
    served: Served, token: Callable[..., str], service: str, role: str | None
) -> None:
    """Good requests and bad ones, by each role and by nobody: no 5xx, no status or body that is not in the document."""
    url = served.urls[service]
    schema = schemathesis.openapi.from_dict(_document(served, service))
    headers = {"Authorization": f"Bearer {token(role)}"} if role else {}
    await asyncio.to_thread(_try_all, schema, url, headers)


def _try_all(schema: Any, url: str, headers: dict[str, str]) -> None:
    for found in schema.get_all_operations():
        operation = found.ok()
        # A request without parameters cannot be wrong.
        has_input = bool(operation.body or [*operation.iter_parameters()])
        for mode in (GenerationMode.POSITIVE, *[GenerationMode.NEGATIVE] * has_input):

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                case.call_and_validate(base_url=url, headers=headers, checks=CHECKS)

            ask()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("service", ["reporter", "triage", "quarantine", "gateway"])
async def test_no_text_in_any_field_makes_a_service_fail(
    served: Served, token: Callable[..., str], service: str, text: str
) -> None:
    """Every parameter and every field of every body, one at a time, with everything else as it should be."""
    url, admin = served.urls[service], token(*ROLES)
    document = _document(served, service)
    headers = {"Authorization": f"Bearer {admin}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for request in _requests(document, text):
            method, path, more = request
            async with session.request(method, url + path, **more) as answer:
                assert answer.status < 500, f"{method} {path[:100]} {more}: {await answer.text()}"
                if answer.status >= 400:
                    assert answer.content_type == "application/problem+json"
                assert "X-Injected" not in answer.headers
        async with session.get(f"{served.urls['triage']}/v1/cases/{served.case_id}") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "open")


DECISIONS: tuple[dict[str, Any], ...] = (
    {"action": "submit", "category": "phishing", "blocks": [{"kind": "domain"}]},
    {"action": "block", "blocks": [{"kind": "domain"}]},
    {"action": "dismiss"},
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_a_note_is_kept_as_it_is_or_refused(served: Served, token: Callable[..., str], text: str) -> None:
    """What an admin writes is text, whatever it looks like, and stands in the timeline as it was written."""
    headers = {"Authorization": f"Bearer {token('SecurityAdministrator')}"}
    async with aiohttp.ClientSession(served.urls["gateway"], headers=headers) as session:
        for decision in DECISIONS:
            case_id = await _open_case(served.services["triage"], served.tenant_id)
            body = {**decision, "note": text}
            async with session.post(f"/v1/cases/{case_id}/decisions", json=body) as answer:
                kept = not {"\0", "\ud800"} & set(text) and len(text) <= 500
                assert answer.status == (202 if kept else 422), await answer.text()
                if kept:
                    assert text in [entry["detail"].get("note") for entry in (await answer.json())["timeline"]]


FIELDS = (
    *("From", "To", "Subject", "Message-ID", "Return-Path", "Reply-To", "Delivered-To", "Date", "Received"),
    *("Authentication-Results", "X-Forefront-Antispam-Report", "X-Microsoft-Antispam", "Received-SPF"),
    *("X-MS-Exchange-Organization-SCL", "X-MS-Exchange-Organization-Network-Message-Id", "Content-Type"),
)
FORMS = (
    "{}",
    "<{}@fabrikam.example>",
    '"{}" <a@{}.example>',
    "spf=pass smtp.mailfrom={}; dkim={}; dmarc={} action={} header.from={}; compauth={} reason={}",
    "CIP:{};CTRY:{};SCL:1;SFV:{};CAT:{};SFTY:{};IPV:{};DIR:{}",
    "text/{}; charset={}; name={}",
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_a_mail_with_any_text_in_its_header_becomes_a_case(
    served: Served, token: Callable[..., str], text: str
) -> None:
    """From the upload through the event to the case that an admin reads: no field stops it anywhere."""
    reporter, triage = served.services["reporter"], served.services["triage"]
    reporting = {"Authorization": f"Bearer {token('Reporter')}", "Content-Type": "message/rfc822"}
    raw = text.encode(errors="surrogatepass")
    async with aiohttp.ClientSession(served.urls["gateway"]) as session:
        for form in FORMS:
            value = form.encode().replace(b"{}", raw)
            lines = [f"{name}: ".encode() + value for name in FIELDS]
            mail = b"\r\n".join([b"X-Unique: " + uuid4().bytes.hex().encode(), *lines, b"", b"hello"])
            url = "/v1/reports?reported_as=phishing&block_sender=true"
            async with session.post(url, data=mail, headers=reporting) as answer:
                assert answer.status == 202, await answer.text()
                report_id = UUID((await answer.json())["report_id"])
            row = await reporter.db.pool.fetchrow(
                "SELECT headers, payload FROM outbox WHERE topic = 'message-reported' ORDER BY id DESC LIMIT 1"
            )
            report = MessageReported.model_validate_json(row["payload"])
            assert report.report_id == report_id
            envelope = read_headers(
                # The relay says where an event comes from.
                [(n, v.encode()) for n, v in (orjson.loads(row["headers"]) | {"ce_source": "/reporter"}).items()],
                MessageReported,
            )
            assert envelope.traceparent
            case_id = await _take(triage, report)
            headers = {"Authorization": f"Bearer {token('SecurityReader')}"}
            async with session.get(f"/v1/cases/{case_id}", headers=headers) as answer:
                assert answer.status == 200, await answer.text()


def _requests(document: dict[str, Any], text: str) -> list[tuple[str, str, dict[str, Any]]]:
    requests: list[tuple[str, str, dict[str, Any]]] = []
    coded = quote(text, safe="", errors="surrogatepass")
    for path, methods in document["paths"].items():
        plain = re.sub(r"\{\w+_id\}", str(UUID(int=0)), path)
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                where = (
                    path.replace(f"{{{parameter['name']}}}", coded)
                    if parameter["in"] == "path"
                    else f"{plain}?{parameter['name']}={coded}"
                )
                requests.append((method, where, {}))
            for body in _BODIES.get((method, path), ()):
                requests += [(method, plain, {"json": spoiled}) for spoiled in _spoiled(body, text)]
    return requests


_BODIES = {
    ("post", "/v1/cases/{case_id}/decisions"): (
        {"action": "submit", "category": "phishing", "note": "x", "blocks": [{"kind": "sender"}]},
        {"action": "block", "note": "x", "blocks": [{"kind": "url", "url": "x", "expires_at": "2030-01-01T00:00:00Z"}]},
        {"action": "dismiss", "note": "x"},
    ),
    ("post", "/v1/reports"): (
        {
            "mail": "RnJvbTogYUBmYWJyaWthbS5leGFtcGxlCgpoZWxsbwo=",
            "reported_as": "phishing",
            "folder": "inbox",
            "reporter": "ann@contoso.example",
            "mailbox_message": {"user_id": "ann@contoso.example", "message_id": "AAMk"},
        },
    ),
    ("post", "/v1/quarantine/actions"): (
        {
            "action": "submit",
            "messages": [str(UUID(int=0))],
            "category": "phishing",
            "note": "x",
            "blocks": [{"kind": "url", "url": "https://bad.example/x", "expires_at": "2030-01-01T00:00:00Z"}],
        },
        {"action": "deny", "messages": [str(UUID(int=0))], "reason": "x"},
        {"action": "release", "messages": [str(UUID(int=0))], "all_recipients": True, "reason": "x"},
    ),
    ("put", "/v1/quarantine/settings"): (
        {
            "sender": "digest@contoso.example",
            "every": "daily",
            "policies": {"x": "weekly"},
            "language": "en",
            "organisation": "x",
        },
    ),
}


def _spoiled(body: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """Put *text* into each place of *body* in turn, also as the name of a field."""
    copies: list[dict[str, Any]] = [{**body, text: text}]
    for name, value in body.items():
        copies.append({**body, name: text})
        if isinstance(value, dict):
            copies += [{**body, name: inner} for inner in _spoiled(value, text)]
        if isinstance(value, list):
            copies += [{**body, name: [inner]} for one in value for inner in _spoiled_item(one, text)]
    return copies


def _spoiled_item(item: Any, text: str) -> list[Any]:
    return _spoiled(item, text) if isinstance(item, dict) else [text]
