"""The real system with a cable in our hand before each server: started, harmed, mended, looked into.

The servers are the project's local stack, the services run under its supervisor. Every service reaches Kafka,
Postgres and Redis through a `Proxy`; what is counted afterwards is read past it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg2

from deploy.local import kafka as local_kafka
from deploy.local import stack as local_stack
from deploy.local.process import is_alive, send, wait_gone
from deploy.local.state import choose_ports, load, postgres_url
from tests.faults import models
from tests.faults.clock import WallClock
from tests.faults.feed import TOPICS, WORDS, Feed, Plan, write_media
from tests.faults.proxy import Proxy
from tests.stack import Pipeline, services

SERVICES: Final = ("text_encoder", "image_encoder", "audio_encoder", "fusion", "api", "alerts", "dashboard")
SERVERS: Final = ("kafka", "postgres", "redis")
MEDIA_STORE_BYTES: Final = 48 * 1024 * 1024
SERVER_START_S: Final = 300.0
"""A killed Kafka reads its partitions over again, for 90 s and more where the cores have much else to do."""

IMPATIENT: Final = {
    # Posts are closed without what is late, so that what is late has to correct them.
    "CROWDTONE_FUSION_GRACE_S": "5",
    "CROWDTONE_FUSION_MAX_POLL_RECORDS": "16",
    "CROWDTONE_TEXT_ENCODER_MAX_POLL_RECORDS": "100",
    "CROWDTONE_IMAGE_MAX_POLL_RECORDS": "64",
    "CROWDTONE_AUDIO_MAX_POLL_RECORDS": "8",
    # A dead member is noticed after 3 s, a stuck one after 10.
    "CROWDTONE_KAFKA_SESSION_TIMEOUT_MS": "3000",
    "CROWDTONE_KAFKA_MAX_POLL_INTERVAL_MS": "10000",
    # What stays away for this long makes a service exit, and start again.
    "CROWDTONE_KAFKA_RETRY_S": "25",
    "CROWDTONE_POSTGRES_RETRY_S": "25",
    "CROWDTONE_INGEST_MEDIA_RETRY_S": "3",
    "CROWDTONE_ALERTS_STALL_S": "30",
    "CROWDTONE_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class System:
    """Servers, proxies and services in one folder."""

    def __init__(self, directory: Path, wanted: Sequence[str] = SERVICES) -> None:
        self.directory = directory
        self.media = directory / "feed"
        self.store = directory / "media"
        self.proxies: dict[str, Proxy] = {}
        self.store_is_small = False
        self.clock: WallClock | None = None
        self._wanted = wanted
        self._running = contextlib.ExitStack()
        self._servers = {server.name: server for server in local_stack.SERVERS}
        self._extras = 0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, at)  # so that an error in here hides none of theirs

    def _start(self) -> None:
        self.directory.chmod(0o755)  # as root, Postgres runs as another user
        self._mount_small_store()
        proxy_ports = dict(zip(SERVERS, choose_ports((), len(SERVERS) + 1), strict=False))
        overrides = (
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{proxy_ports['kafka']}",
            "group.min.session.timeout.ms=1000",  # 6 s by itself
        )
        self._servers["kafka"] = dataclasses.replace(
            local_stack.KAFKA,
            command=lambda directory, state: [
                *local_kafka.command(directory),
                *(word for override in overrides for word in ("--override", override)),
            ],
        )
        self._running.callback(local_stack.down, self.directory)
        addresses = local_stack.up(
            self.directory, list(self._servers.values()), dies_with_us=True, start_timeout_s=SERVER_START_S
        )
        local_stack.create_database(self.directory)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("CROWDTONE_")}
        if cache := os.environ.get("CROWDTONE_CACHE_DIR"):
            self.env["CROWDTONE_CACHE_DIR"] = cache
        self.env |= addresses | IMPATIENT | {"CROWDTONE_LOCAL_DIR": str(self.directory)}
        for name, port in proxy_ports.items():
            self.proxies[name] = Proxy(port, self._port(name))
            self._running.callback(self.proxies[name].close)
            variable = (
                "CROWDTONE_KAFKA_BOOTSTRAP_SERVERS" if name == "kafka" else f"CROWDTONE_{name.upper()}_URL"
            )
            self.env[variable] = self.env[variable].replace(
                f"127.0.0.1:{self._port(name)}", f"127.0.0.1:{port}"
            )
        text_version = models.write_text_model(self.directory / "text-model", WORDS)
        models.write_fusion_model(self.directory / "fusion-model", text_version)
        api_port, dashboard_port = choose_ports((), 2)
        self.env |= {
            "CROWDTONE_TEXT_MODEL": str(self.directory / "text-model"),
            "CROWDTONE_TEXT_ADAPTER": "none",
            "CROWDTONE_FUSION_MODEL": str(self.directory / "fusion-model"),
            "CROWDTONE_MEDIA_URL": self.store.as_uri(),
            "CROWDTONE_API_ADDRESS": f"127.0.0.1:{api_port}",
            "CROWDTONE_DASHBOARD_PORT": str(dashboard_port),
        }
        write_media(self.media)
        (self.directory / "inputs").mkdir()
        before = Pipeline(self.env, self.directory, None)  # type: ignore[arg-type]  # commands only, so far
        before.crowdtone("stack", "schema")
        self.run_services()
        for name, keyword in TOPICS.items():
            self.pipeline.crowdtone("topics", "create", name, "--keyword", keyword)

    def _mount_small_store(self) -> None:
        """A media store that can be filled up: a small tmpfs, where we may mount one."""
        self.store.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={MEDIA_STORE_BYTES}", "tmpfs", str(self.store)]
        self.store_is_small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if self.store_is_small:
            self._running.callback(subprocess.run, ["umount", "--lazy", str(self.store)], check=True)

    # The services ------------------------------------------------------------------------------------------

    def run_services(self, **more: str) -> None:
        """Start the services, those that run being stopped first; more: environment for this time."""
        self._services = contextlib.ExitStack()
        env = self.env | more
        log = self.directory / "services.log"
        command = [sys.executable, "-m", "tests.faults.supervise", *self._wanted]
        api = self._services.enter_context(services(command, env, log))
        self._running.push(self._services)
        self.pipeline = Pipeline(env, self.directory, api)

    def stop_services(self) -> None:
        """SIGTERM; raises AssertionError when they do not drain."""
        self._services.close()

    def pid(self, service: str) -> int | None:
        """The process that runs it now, as its supervisor says."""
        log = self.pipeline.log.read_text()
        started = re.findall(
            rf"^{re.escape(service)} (?:started \(pid (\d+)|failed|ended)", log, re.MULTILINE
        )
        return int(started[-1]) if started and started[-1] else None

    def kill(self, service: str, number: signal.Signals = signal.SIGKILL, patience_s: float = 60.0) -> None:
        """Signal a service, once there is one to signal."""
        deadline = time.monotonic() + patience_s
        while (pid := self.pid(service)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{service} was not started again within {patience_s:.0f} s")
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def ended(self, since: int) -> list[str]:
        """How services ended, as their supervisor said after byte `since` of its log: "fusion exit 75"."""
        text = self.pipeline.log.read_text()[since:]
        return [
            f"{name} {how}" for name, how in re.findall(r"^([\w.]+) failed \(([^)]+)\)", text, re.MULTILINE)
        ]

    def log_size(self) -> int:
        return len(self.pipeline.log.read_text())

    @contextlib.contextmanager
    def extra(self, service: str) -> Iterator[str]:
        """One more process of a service, not started again; its name, once it has joined its group."""
        self._extras += 1
        name = f"{service}.{self._extras}"
        log = self.directory / "logs" / f"{name}.log"
        (self.directory / "extra" / name).touch()
        try:
            if not wait_until(lambda: log.exists() and b"rebalanced: " in log.read_bytes(), 120):
                raise TimeoutError(f"{name} did not join: {log.read_text()[-2000:]}")
            yield name
        finally:
            if pid := self.pid(name):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGTERM)
                if not wait_until(lambda: self.pid(name) is None, 60):
                    raise TimeoutError(f"{name} did not drain")

    # The servers -------------------------------------------------------------------------------------------

    def _port(self, server: str) -> int:
        state = load(self.directory)
        assert state is not None
        return state.of(server).ports[0]

    def end_server(self, server: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server; nothing listens where it was."""
        self.proxies[server].refuse()
        state = load(self.directory)
        assert state is not None
        process = state.of(server).process
        assert process is not None
        send(process, number)
        assert wait_gone(process, 60), f"{server} did not end"

    def start_server(self, server: str) -> None:
        """Start it again, on its data."""
        local_stack.up(
            self.directory, [self._servers[server]], dies_with_us=True, start_timeout_s=SERVER_START_S
        )
        assert self._port(server) == self.proxies[server].upstream_port, f"{server} came back elsewhere"
        self.proxies[server].accept()

    def servers_run(self) -> bool:
        state = load(self.directory)
        assert state is not None
        processes = [state.of(name).process for name in SERVERS]
        return all(process is not None and is_alive(process) for process in processes)

    # What is in it -----------------------------------------------------------------------------------------

    @property
    def kafka_address(self) -> str:
        return self.env["CROWDTONE_KAFKA_BOOTSTRAP_SERVERS"]

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask Postgres, past the proxy; what a query changes is committed."""
        state = load(self.directory)
        assert state is not None
        url = postgres_url(state, "crowdtone").replace("+psycopg2", "")
        connection = psycopg2.connect(url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query, values)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def complete(self, plan: Plan, below: int) -> int:
        """How many of the plan's posts with a number below this have their complete verdict."""
        ((count,),) = self.rows(
            """SELECT count(*) FROM posts WHERE event_time >= %s AND event_time < %s
               AND expected & ~answered = 0 AND right(post_id, 7)::int < %s AND post_id LIKE %s""",
            *(plan.starts, plan.ends, below, f"%:{plan.name}-%"),
        )
        return int(count)

    def feed(self, plan: Plan) -> Feed:
        return Feed(self.pipeline.env, self.directory / "inputs", self.media, plan)


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.25) -> bool:
    """Whether it came true in time; a server that is away meanwhile is no answer."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            if condition():
                return True
        time.sleep(every_s)
    return False
