"""What the local stack remembers between commands: ports, secrets and processes, in one folder.

`stack.json` is ours; `stack.env` is what the services' settings read. Both hold secrets and are readable by
their owner only. Knows no server.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.local.process import Process

DATABASE: Final = "crowdtone"
# Below the kernel's ephemeral range (net.ipv4.ip_local_port_range starts at 32768), or an outgoing connection
# of anybody may hold a remembered port when the stack comes back.
FIRST_PORT: Final = 20_000
LAST_PORT: Final = 31_999


class Failed(Exception):
    """A step of the local stack failed; the message tells a person what happened and where to look."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its loopback ports, the first being where clients connect, and the process last started."""

    ports: tuple[int, ...] = ()
    process: Process | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Everything remembered. Secrets are made once, so a restarted stack still opens its own data."""

    postgres_password: str
    redis_password: str
    author_key: str
    servers: Mapping[str, ServerState] = field(default_factory=dict)

    def of(self, server: str) -> ServerState:
        return self.servers.get(server, ServerState())

    def with_server(self, server: str, state: ServerState) -> State:
        return dataclasses.replace(self, servers={**self.servers, server: state})


def new_state() -> State:
    return State(secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_hex(32))


def to_json(state: State) -> str:
    return json.dumps(dataclasses.asdict(state), indent=2) + "\n"


def from_json(text: str) -> State:
    """Raises ValueError, KeyError or TypeError where `text` is not what to_json writes."""
    raw = json.loads(text)
    servers = {
        name: ServerState(
            tuple(server["ports"]), Process(**server["process"]) if server["process"] is not None else None
        )
        for name, server in raw.pop("servers").items()
    }
    return State(**raw, servers=servers)


def load(directory: Path) -> State | None:
    """The remembered state; None where there was never a stack. Raises Failed where the file is damaged."""
    path = directory / "stack.json"
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(f"{path} is damaged ({error}); remove {directory} if its data may go") from error


def save(directory: Path, state: State) -> None:
    write_private(directory / "stack.json", to_json(state))


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only from the first byte."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One `up` or `down` at a time in a folder; a second one waits for the first."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do: a port whose old connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_ports(
    remembered: tuple[int, ...],
    count: int,
    free: Callable[[int], bool] = is_free,
    candidate: Callable[[], int] = lambda: random.randint(FIRST_PORT, LAST_PORT),
    *,
    patience_s: float = 0.0,
) -> tuple[int, ...]:
    """The remembered ports where all of them are still free, else `count` other free ones.

    patience_s: how long to wait for the remembered ones. A killed server's sockets close when its last thread
    has ended, which can be after its process is seen dead.
    Raises Failed when 1,000 candidates bring too few.
    """
    deadline = time.monotonic() + patience_s
    while len(remembered) == count:
        if all(map(free, remembered)):
            return remembered
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    chosen: list[int] = []
    for _ in range(1000):
        port = candidate()
        if port not in chosen and free(port):
            chosen.append(port)
        if len(chosen) == count:
            return tuple(chosen)
    raise Failed(f"no free port between {FIRST_PORT} and {LAST_PORT} on 127.0.0.1")


def addresses(directory: Path, state: State) -> dict[str, str]:
    """How services find this stack: environment variable -> value, for the servers it has."""
    variables = {
        "CROWDTONE_MEDIA_URL": (directory / "media").resolve().as_uri(),
        "CROWDTONE_AUTHOR_KEY": state.author_key,
    }
    if ports := state.of("kafka").ports:
        variables["CROWDTONE_KAFKA_BOOTSTRAP_SERVERS"] = f"127.0.0.1:{ports[0]}"
    if ports := state.of("postgres").ports:
        variables["CROWDTONE_POSTGRES_URL"] = postgres_url(state, DATABASE)
    if ports := state.of("redis").ports:
        variables["CROWDTONE_REDIS_URL"] = f"redis://:{state.redis_password}@127.0.0.1:{ports[0]}/0"
    return variables


def postgres_url(state: State, database: str) -> str:
    return f"postgresql+psycopg2://crowdtone:{state.postgres_password}@127.0.0.1:{state.of('postgres').ports[0]}/{database}"


def env_file(variables: Mapping[str, str]) -> str:
    """Text of stack.env, one KEY=VALUE a line, for dotenv and for a shell (`set -a; . .local/stack.env`)."""
    header = "# Written by `crowdtone stack up`; the environment wins over it. Holds secrets.\n"
    return header + "".join(f"{name}={value}\n" for name, value in sorted(variables.items()))
