"""Servers and services of a benchmark's own: empty at its start, gone at its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from deploy.local import stack
from deploy.local.cli import modules_of
from deploy.local.process import tail
from deploy.local.state import choose_ports
from deploy.local.state import load as load_state
from deploy.postgres import migrate
from shared import heartbeat
from shared.kafka import create_topics
from shared.settings import KafkaSettings, MediaSettings, PostgresSettings, RedisSettings

ROOT: Final = Path(__file__).parents[1]
CROWDTONE: Final = (sys.executable, "-m", "services.cli")
PARTITIONS: Final = "CROWDTONE_KAFKA_PARTITIONS"
START_S: Final = 600.0
DRAIN_S: Final = 120.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Servers:
    """Those that were asked for. environment: ours, and where they are; for processes of services."""

    directory: Path
    environment: Mapping[str, str]

    @property
    def kafka(self) -> KafkaSettings:
        settings = KafkaSettings(bootstrap_servers=self.environment["CROWDTONE_KAFKA_BOOTSTRAP_SERVERS"])
        partitions = int(self.environment.get(PARTITIONS, settings.partitions))
        return settings.model_copy(update={"partitions": partitions})

    @property
    def postgres(self) -> PostgresSettings:
        """A database at its newest migration, empty but for what was kept."""
        return PostgresSettings(url=self.environment["CROWDTONE_POSTGRES_URL"])

    @property
    def redis(self) -> RedisSettings:
        return RedisSettings(url=self.environment["CROWDTONE_REDIS_URL"])

    @property
    def media(self) -> MediaSettings:
        return MediaSettings(url=self.environment["CROWDTONE_MEDIA_URL"])

    def pid(self, server: str) -> int:
        """Of "kafka", "postgres" or "redis"."""
        state = load_state(self.directory)
        assert state is not None
        process = state.of(server).process
        assert process is not None
        return process.pid


@contextmanager
def servers(
    *wanted: stack.Server, partitions: int | None = None, keep: Path | None = None
) -> Iterator[Servers]:
    """These servers with data of their own: the database migrated, the topics made.

    partitions: of the topics of the join; by default as the settings say. keep: a folder whose data stay for
    the next run; without it they are new and go. The servers end with this thread.
    """
    directory = keep or Path(tempfile.mkdtemp(prefix="crowdtone-bench-"))
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # Postgres runs as another user
    try:
        addresses = stack.up(directory, wanted, dies_with_us=True, start_timeout_s=START_S)
        environment = os.environ | addresses | {"CROWDTONE_LOCAL_DIR": str(directory)}
        if partitions is not None:
            environment[PARTITIONS] = str(partitions)
        running = Servers(directory, environment)
        names = {server.name for server in wanted}
        if stack.POSTGRES.name in names:
            stack.create_database(directory)
            migrate(running.postgres.url.get_secret_value())
        if stack.KAFKA.name in names:
            create_topics(running.kafka)
        yield running
    finally:
        stack.down(directory)
        if keep is None:
            shutil.rmtree(directory)


@dataclass(frozen=True, slots=True)
class Services:
    """What `crowdtone run` runs. ports: of the metrics of each process, by its name ("fusion.2")."""

    process: subprocess.Popen[bytes]
    log: Path
    redis: RedisSettings
    ports: Mapping[str, int]

    def pids(self) -> dict[str, int]:
        """The processes by their names, once each has reported."""

        def reported() -> dict[str, int] | None:
            found: dict[str, int] = {}
            with heartbeat.connect(self.redis) as client:
                for report in heartbeat.reports(client):
                    name, number = report.service, 1
                    while name in found:
                        number += 1
                        name = f"{report.service}.{number}"
                    found[name] = int(report.instance.rpartition(":")[2])
            return found if len(found) == len(self.ports) else None

        return self.wait(reported, "reports of all services", START_S)

    def wait(
        self, condition: Callable[[], T | None], what: str, timeout_s: float, every_s: float = 0.25
    ) -> T:
        """The first answer that is not None. Raises RuntimeError when the services end or time is over."""
        until = time.monotonic() + timeout_s
        while (found := condition()) is None:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no {what}; the services said:\n{tail(self.log, 30)}")
            time.sleep(every_s)
        return found

    def metrics(self, name: str) -> str:
        """The text of a process's /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


@contextmanager
def services(on: Servers, words: Sequence[str], **more: str) -> Iterator[Services]:
    """`crowdtone run WORDS` ("fusion", or "fusion=2") until the end of the `with`; then all must drain.

    more: environment besides that of the servers. Raises RuntimeError when they do not end well.
    """
    names = modules_of(list(words))
    (port,) = choose_ports((), 1)
    log = on.directory / "services.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            # It ends when we do, kill -9 included, and the services with it.
            ["setpriv", "--pdeathsig", "TERM", "--", *CROWDTONE, "run", *words],
            env={**on.environment, "CROWDTONE_WORKER_METRICS_PORT": str(port), **more},
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        yield Services(process, log, on.redis, {name: port + at for at, name in enumerate(names)})
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=DRAIN_S)
    if code:
        raise RuntimeError(f"the services ended with {code}:\n{tail(log, 30)}")
