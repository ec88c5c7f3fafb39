"""Apache Kafka as one KRaft node, broker and controller in one JVM, from jars that Maven resolved.

Source: Apache Kafka documentation 4.3, "Broker Configs" and "KRaft". Knows nothing of topics.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from deploy.local.process import tail
from deploy.local.state import Failed, choose_ports
from shared.settings import ModelSettings
from shared.topics import MAX_MESSAGE_BYTES

HOME: Final = Path(__file__).parents[1] / "kafka"
POM: Final = HOME / "pom.xml"
# The serial collector starts half a second faster than G1 and is as good at this heap size on two cores.
JVM: Final = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-Djava.awt.headless=true")


def cache_dir() -> Path:
    """Where the jars lie, for all stacks of this user: beside the converted weights (CROWDTONE_CACHE_DIR)."""
    return ModelSettings().cache_dir.expanduser()


def jars() -> Path:
    """The folder with the broker's jars; resolved by Maven the first time, and again when pom.xml changes.

    Raises Failed when Maven is missing or cannot resolve them.
    """
    version = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / f"kafka-{version}"
    if folder.exists():
        return folder
    if shutil.which("mvn") is None:
        raise Failed("Maven resolves Kafka's jars, and there is no mvn: apt-get install maven")
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        status = subprocess.run(
            [
                *("mvn", "--batch-mode", "--no-transfer-progress", "--file", str(POM)),
                *(
                    "dependency:copy-dependencies",
                    "-DincludeScope=runtime",
                    f"-DoutputDirectory={unfinished}",
                ),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Failed(f"Maven could not resolve Kafka's jars (exit {status}); {log} ends with:\n{tail(log)}")
    # Only a complete folder gets the name that is looked for; of two at once, the first one stays.
    try:
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def properties(data: Path, port: int, controller_port: int) -> dict[str, str]:
    """server.properties for one node on loopback."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        # Topics are created with their partitions, by `shared.topics`, or not at all.
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(MAX_MESSAGE_BYTES),
        "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
        # One node: internal topics have one copy, and few partitions, or the first consumer waits for 50.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        # Nobody else is about to join: a group need not wait 3 s for more members.
        "group.initial.rebalance.delay.ms": "0",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "num.recovery.threads.per.data.dir": "2",
        # Of the heap above, the default would take a quarter.
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
        "log.segment.delete.delay.ms": "1000",
    }


def prepare(directory: Path, ports: tuple[int, ...]) -> None:
    """Write the configuration, and format the data folder the first time (StorageTool).

    Raises Failed when there is no Java or the folder cannot be formatted.
    """
    if shutil.which("java") is None:
        raise Failed("Kafka needs Java 17, and there is no java: apt-get install default-jre-headless")
    folder = directory / "kafka"
    data = folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    config = properties(data.resolve(), *ports)
    (folder / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in config.items()))
    if (data / "meta.properties").exists():
        return
    cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    format_ = subprocess.run(
        [
            *_java(("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")),
            # With "=": one id in 64 starts with a dash and would be taken for an option.
            *("kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}"),
            *("--config", str(folder / "server.properties")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if format_.returncode != 0:
        raise Failed(f"Kafka's StorageTool could not format {data}:\n{format_.stdout}{format_.stderr}")


def command(directory: Path) -> list[str]:
    return [*_java(JVM), "kafka.Kafka", str((directory / "kafka" / "server.properties").resolve())]


def _java(flags: tuple[str, ...]) -> list[str]:
    folder = jars()
    # Sorted, because the class archive is only good for the very class path that it was made with.
    class_path = ":".join(str(jar.resolve()) for jar in sorted(folder.glob("*.jar")))
    logging = f"-Dlog4j2.configurationFile={HOME / 'log4j2.properties'}"
    return ["java", *flags, f"-XX:SharedArchiveFile={_archive(folder)}", logging, "-cp", class_path]


def _archive(folder: Path) -> Path:
    return folder / "classes.jsa"


def archive_classes() -> None:
    """Keep the broker's classes as the JVM has them after loading (class data sharing): it starts faster.

    Measured on 2 cores: 4.0 s and 6.4 CPU seconds to the first answer without, 2.1 s and 3.6 with. Does
    nothing where it was done. The JVM ignores an archive that is missing or of another JVM.
    Raises Failed when a broker cannot run here at all.
    """
    archive = _archive(jars())
    if archive.exists():
        return
    with TemporaryDirectory() as name:
        directory, ports, unfinished = Path(name), choose_ports((), 2), archive.with_suffix(f".{os.getpid()}")
        prepare(directory, ports)
        java, *rest = command(directory)
        rest = [flag for flag in rest if not flag.startswith("-XX:SharedArchiveFile")]
        log = directory / "log"
        with log.open("wb") as output:
            broker = subprocess.Popen(
                [java, f"-XX:ArchiveClassesAtExit={unfinished}", *rest],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 90
            while not _answers(ports[0]):
                if broker.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"Kafka does not start; its log ends with:\n{tail(log)}")
                time.sleep(0.1)
            broker.terminate()
            broker.wait(90)
        finally:
            broker.kill()
            broker.wait()
        if unfinished.exists():
            unfinished.rename(archive)


def answers(port: int, timeout_s: float = 2.0) -> None:
    """Ask the broker which API versions it speaks (Kafka protocol, ApiVersions v0); it answers once it works.

    Raises OSError with the reason when it does not answer as a broker.
    """
    api_versions, version, correlation_id, no_client_id = 18, 0, 7, -1
    request = struct.pack(">hhih", api_versions, version, correlation_id, no_client_id)
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as reader:
            header = reader.read(10)  # int32 size, int32 correlation id, int16 error code
    if len(header) < 10 or struct.unpack(">iih", header)[1:] != (correlation_id, 0):
        raise OSError(f"answered {header!r} to ApiVersions: not a Kafka broker")


def _answers(port: int) -> bool:
    try:
        answers(port)
    except OSError:
        return False
    return True


if __name__ == "__main__":  # what `make setup` calls
    try:
        archive_classes()
    except Failed as error:
        sys.exit(str(error))
