"""A Kafka that wants TLS and a password gets both, from services and from the operator's commands."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
import structlog
import trustme
from aiokafka.errors import KafkaError
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from faststream.kafka import KafkaRouter
from pydantic import ValidationError

from backstop.app import app
from backstop_contracts import CaseStatus, CaseUpdated
from chassis import outbox
from chassis.service import Service
from chassis.settings import KafkaSettings, ServiceSettings
from chassis.subscribing import BATCH, Received, Tx
from chassis.topics import create_topics
from local_stack.kafka import start_kafka
from local_stack.ports import choose_port
from local_stack.supervisor import Supervisor

pytestmark = pytest.mark.slow

PASSWORD = "let me in"  # noqa: S105 - the test's own broker


@dataclass
class Broker:
    """A Kafka whose second listener asks for TLS and a password."""

    bootstrap: str
    ca_file: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return what a service is told."""
        told = {
            "BOOTSTRAP": self.bootstrap,
            "SECURITY_PROTOCOL": "SASL_SSL",
            "CA_FILE": str(self.ca_file),
            "SASL_MECHANISM": "PLAIN",
            "USERNAME": "backstop",
            "PASSWORD": PASSWORD,
        }
        return {f"BACKSTOP_KAFKA_{name}": value for name, value in {**told, **more}.items()}


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """Start it, beside the one that all tests share."""
    folder = tmp_path_factory.mktemp("secure")
    ca = trustme.CA()
    ca_file = folder / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    port, secure, controller = (choose_port(name) for name in ("kafka_inside", "kafka_secure", "kafka_quorum"))
    jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    settings = {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(_keystore(ca, folder)),
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{jaas} user_backstop="{PASSWORD}";',
    }
    async with Supervisor(folder / "stack") as supervisor:
        await start_kafka(supervisor, port=port, settings=settings)
        yield Broker(f"127.0.0.1:{secure}", ca_file)


def _keystore(ca: trustme.CA, folder: Path) -> Path:
    """Write key and certificates as Kafka reads them: the key in PKCS #8."""
    issued = ca.issue_cert("127.0.0.1")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    parts = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())]
    parts += [pem.bytes() for pem in (*issued.cert_chain_pems, ca.cert_pem)]
    keystore = folder / "keystore.pem"
    keystore.write_bytes(b"".join(parts))
    return keystore


async def backstop(environment: Mapping[str, str], *arguments: str) -> Result:
    """Run a command."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=dict(environment))


async def test_services_and_commands_reach_a_kafka_that_wants_tls_and_a_password(
    broker: Broker, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Topics are made, an event is relayed, consumed and parked, and an operator lists and drops it."""
    environment = broker.environment() | {"BACKSTOP_TOPIC_PREFIX": "secure", "BACKSTOP_POSTGRES_DSN": database}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = await backstop(environment, "topics", "create", "--partitions", "1")
    assert "secure.case-updated" in made.stdout, made.output

    router = KafkaRouter()

    @router.subscriber("case-updated", **BATCH)
    async def on_case_updated(_updates: list[Received[CaseUpdated]], _tx: Tx) -> None:
        raise ZeroDivisionError

    settings = ServiceSettings(postgres_dsn=database, api_audience="audience", tenants=str(uuid4()))
    service = Service("triage", settings, title="Test", description="Test", migrations=tmp_path)
    service.subscribe(router)
    event = CaseUpdated(
        tenant_id=uuid4(),
        case_id=uuid4(),
        change="opened",
        status=CaseStatus.OPEN,
        report_count=1,
        changed_at=datetime.now(UTC),
    )
    # The service's log would be taken for what the command prints: they share a process.
    with structlog.testing.capture_logs():
        async with service.api.router.lifespan_context(service.api):
            async with service.db.transaction() as tx:
                await outbox.emit(tx, [(event, None)])
            async with asyncio.timeout(60):
                while not (letters := (await backstop(environment, "dead", "list", "--json")).stdout):
                    await asyncio.sleep(0.2)

    assert [orjson.loads(line)["error"] for line in letters.splitlines()] == ["ZeroDivisionError"]
    dropped = await backstop(environment, "dead", "drop", "--service", "triage", "--all", "--yes")
    assert dropped.stdout == "1 dead letter dropped.\n", dropped.output


@pytest.mark.parametrize(
    "wrong", [{"PASSWORD": "guess"}, {"SECURITY_PROTOCOL": "PLAINTEXT"}, {"SECURITY_PROTOCOL": "SASL_PLAINTEXT"}]
)
async def test_nobody_gets_in_in_the_clear_or_with_another_password(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]
) -> None:
    """The broker really asks for both, and a command says in one line that it does not get in."""
    environment = broker.environment(**wrong)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KafkaError):
        await create_topics(
            broker.bootstrap,
            prefix="wrong",
            partitions=1,
            replication=1,
            kafka_options=KafkaSettings().kafka_options(),
        )
    refused = await backstop(environment, "topics", "create")

    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"Kafka at {broker.bootstrap} does not answer (")
    assert refused.stderr.count("\n") == 1


def test_a_password_may_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every secret."""
    (tmp_path / "backstop_kafka_password").write_text("from a file")
    monkeypatch.setenv("BACKSTOP_SECRETS_DIR", str(tmp_path))

    password = KafkaSettings(kafka_security_protocol="SASL_SSL", kafka_username="backstop").kafka_password

    assert password is not None
    assert password.get_secret_value() == "from a file"


async def test_sasl_without_a_password_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service does not start, and a command says which settings are missing."""
    with pytest.raises(ValidationError, match="SASL_SSL needs BACKSTOP_KAFKA_USERNAME and BACKSTOP_KAFKA_PASSWORD"):
        KafkaSettings(kafka_security_protocol="SASL_SSL", kafka_username="backstop")

    monkeypatch.setenv("BACKSTOP_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    refused = await backstop({"BACKSTOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, "topics", "create")

    assert refused.exit_code == 2
    assert "needs BACKSTOP_KAFKA_USERNAME and BACKSTOP_KAFKA_PASSWORD" in refused.stderr
    assert refused.stderr.count("\n") == 1
