"""The stack: Kafka, Postgres and Redis on this machine's loopback, started, found again and stopped.

`up` may be called at any time: what answers already is left alone. The servers are children that outlive the
command; their identities are in the folder's state, their output in its `logs/`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local import kafka, postgres, redis
from deploy.local.process import Process, is_alive, send, spawn, tail, wait_gone
from deploy.local.state import (
    DATABASE,
    Failed,
    ServerState,
    State,
    addresses,
    choose_ports,
    env_file,
    load,
    locked,
    new_state,
    save,
    write_private,
)

START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 30.0
PORT_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """How one server is run. Each function gets the stack's folder and state.

    prepare: what must exist before it starts; may take seconds, and may raise Failed.
    answers: returns when the server does its work, raises OSError with the reason while it does not.
    """

    name: str
    port_count: int
    prepare: Callable[[Path, State], None]
    command: Callable[[Path, State], list[str]]
    answers: Callable[[State], None]
    stop_signal: signal.Signals


KAFKA: Final = Server(
    "kafka",
    2,  # clients, and its own controller
    lambda directory, state: kafka.prepare(directory, state.of("kafka").ports),
    lambda directory, state: kafka.command(directory),
    lambda state: kafka.answers(state.of("kafka").ports[0]),
    signal.SIGTERM,
)
POSTGRES: Final = Server(
    "postgres",
    1,
    lambda directory, state: postgres.prepare(directory, state.postgres_password),
    lambda directory, state: postgres.command(directory, state.of("postgres").ports[0]),
    lambda state: postgres.answers(state.of("postgres").ports[0], state.postgres_password),
    signal.SIGINT,  # "fast": sessions are ended, not waited for
)
REDIS: Final = Server(
    "redis",
    1,
    lambda directory, state: redis.prepare(directory, state.of("redis").ports[0], state.redis_password),
    lambda directory, state: redis.command(directory),
    lambda state: redis.answers(state.of("redis").ports[0], state.redis_password),
    signal.SIGTERM,
)
SERVERS: Final = (KAFKA, POSTGRES, REDIS)


@dataclass(frozen=True, slots=True)
class Status:
    """One server now. process: None when it does not run. trouble: why it does not answer, or empty."""

    name: str
    address: str
    process: Process | None
    trouble: str
    log: Path

    @property
    def answers(self) -> bool:
        return self.process is not None and not self.trouble


def log_path(directory: Path, name: str) -> Path:
    return directory / "logs" / f"{name}.log"


def _silent(message: str) -> None:
    pass


def up(
    directory: Path,
    servers: Sequence[Server] = SERVERS,
    *,
    say: Callable[[str], None] = _silent,
    dies_with_us: bool = False,
    start_timeout_s: float = START_TIMEOUT_S,
) -> dict[str, str]:
    """Start what does not run, wait until each answers, write `stack.env`. Returns its variables.

    say: called with a line of progress. dies_with_us: the servers end with this thread, for tests.
    Raises Failed, naming the log and showing its end, when one does not come up; the others are left running.
    """
    with locked(directory):
        state = load(directory) or new_state()
        to_start = [server for server in servers if status(directory, state, server).process is None]
        for server in to_start:
            ports = choose_ports(state.of(server.name).ports, server.port_count, patience_s=PORT_TIMEOUT_S)
            state = state.with_server(server.name, ServerState(ports))
        save(directory, state)
        write_private(directory / "stack.env", env_file(addresses(directory, state)))
        with ThreadPoolExecutor() as pool:
            # Formatting and initdb take a second or two each and know nothing of one another.
            for prepared in [pool.submit(server.prepare, directory, state) for server in to_start]:
                prepared.result()
        for server in to_start:
            process = spawn(
                server.command(directory, state), log_path(directory, server.name), dies_with_us=dies_with_us
            )
            state = state.with_server(server.name, ServerState(state.of(server.name).ports, process))
            save(directory, state)
        started = time.monotonic()
        waiting = list(servers)
        while waiting:
            for server in list(waiting):
                trouble = _trouble(server, state)
                address = f"127.0.0.1:{state.of(server.name).ports[0]}"
                if not trouble:
                    waiting.remove(server)
                    how = f"{time.monotonic() - started:.1f} s" if server in to_start else "was up already"
                    say(f"{server.name} answers on {address} ({how})")
                elif time.monotonic() - started > start_timeout_s:
                    raise Failed(_story(directory, server, f"does not answer on {address}: {trouble}"))
                elif not _runs(state, server):
                    raise Failed(_story(directory, server, "ended while starting"))
            if waiting:
                time.sleep(0.02)
        return addresses(directory, state)


def create_database(directory: Path) -> None:
    """The database that `stack.env` names, empty; nothing where it exists."""
    state = load(directory)
    if state is None:
        raise Failed(f"no stack in {directory}: run `crowdtone stack up`")
    postgres.create_database(state.of("postgres").ports[0], state.postgres_password, DATABASE)


def statuses(directory: Path) -> list[Status]:
    """All servers of the stack in this folder, running or not."""
    state = load(directory) or new_state()
    return [status(directory, state, server) for server in SERVERS]


def status(directory: Path, state: State, server: Server) -> Status:
    remembered = state.of(server.name)
    running = remembered.process if remembered.process and is_alive(remembered.process) else None
    return Status(
        server.name,
        f"127.0.0.1:{remembered.ports[0]}" if remembered.ports else "",
        running,
        _trouble(server, state) if running else "not running",
        log_path(directory, server.name),
    )


def down(directory: Path, *, say: Callable[[str], None] = _silent, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop what runs, all at once; a server still there after timeout_s is killed, and that is said."""
    with locked(directory):
        state = load(directory) or new_state()
        stopping = []
        for server in SERVERS:
            process = state.of(server.name).process
            if process is not None and send(process, server.stop_signal):
                stopping.append((server, process))
        deadline = time.monotonic() + timeout_s
        for server, process in stopping:
            if wait_gone(process, max(0.0, deadline - time.monotonic())):
                say(f"{server.name} stopped")
            else:
                send(process, signal.SIGKILL)
                wait_gone(process, 5.0)
                say(f"{server.name} did not stop within {timeout_s:.0f} s and was killed")


def _runs(state: State, server: Server) -> bool:
    process = state.of(server.name).process
    return process is not None and is_alive(process)


def _trouble(server: Server, state: State) -> str:
    """Why it does not answer, in one line; empty when it does."""
    try:
        server.answers(state)
    except OSError as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _story(directory: Path, server: Server, what: str) -> str:
    log = log_path(directory, server.name)
    return f"{server.name} {what}. {log} ends with:\n{tail(log)}"
