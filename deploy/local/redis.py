"""Redis from Debian's package, memory only: what is lost with it is speed, never data."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from deploy.local.state import Failed, write_private


def configuration(directory: Path, port: int, password: str) -> str:
    """Text of redis.conf."""
    return "".join(
        f"{line}\n"
        for line in (
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f"dir {directory}",
            'save ""',
            "appendonly no",
            "maxmemory 256mb",
            "maxmemory-policy allkeys-lru",
        )
    )


def prepare(directory: Path, port: int, password: str) -> None:
    if shutil.which("redis-server") is None:
        raise Failed("there is no redis-server: apt-get install redis-server")
    folder = (directory / "redis").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / "redis.conf", configuration(folder, port, password))


def command(directory: Path) -> list[str]:
    return ["redis-server", str((directory / "redis" / "redis.conf").resolve())]


def answers(port: int, password: str, timeout_s: float = 2.0) -> None:
    """AUTH and PING (RESP inline commands). Raises OSError with the reason when it does not answer PONG."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        with connection.makefile("rb") as reader:
            replies = [reader.readline().strip(), reader.readline().strip()]
    if replies != [b"+OK", b"+PONG"]:
        raise OSError(f"answered {replies} to AUTH, PING: not our Redis")
