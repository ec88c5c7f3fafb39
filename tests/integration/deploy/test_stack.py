"""The real stack: up, up again, found again, broken, down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection
from sqlalchemy.engine import make_url

from deploy.local import kafka, postgres, redis, stack
from deploy.local.process import send, wait_gone
from deploy.local.state import Failed, load

CROWDTONE = (sys.executable, "-m", "services.cli")


def _crowdtone(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CROWDTONE, *arguments],
        env={**os.environ, "CROWDTONE_LOCAL_DIR": str(directory), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def _settings(directory: Path) -> dict[str, str]:
    lines = (directory / "stack.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@contextmanager
def _session(settings: dict[str, str]) -> Iterator[connection]:
    url = make_url(settings["CROWDTONE_POSTGRES_URL"])
    session = psycopg2.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database
    )
    try:
        yield session
    finally:
        session.close()


def _databases(settings: dict[str, str]) -> set[str]:
    with _session(settings) as session, session.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        return {name for (name,) in cursor.fetchall()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # pytest's temporary folders are closed to other users, so as root this is also a checkout in /root.
    directory = tmp_path_factory.mktemp("local")
    yield directory
    stack.down(directory)


@pytest.fixture(scope="module")
def first_up(directory: Path) -> subprocess.CompletedProcess[str]:
    return _crowdtone(directory, "stack", "up")


def test_up_makes_a_stack_that_answers(directory: Path, first_up: subprocess.CompletedProcess[str]) -> None:
    assert first_up.returncode == 0, first_up.stderr
    status = _crowdtone(directory, "stack", "status", "--json")
    assert status.returncode == 0
    servers = json.loads(status.stdout)
    assert set(servers) == {"kafka", "postgres", "redis"}
    assert all(
        server["answers"] and server["address"].startswith("127.0.0.1:") for server in servers.values()
    )


def test_settings_are_private_and_work(directory: Path, first_up: subprocess.CompletedProcess[str]) -> None:
    assert stat.S_IMODE((directory / "stack.env").stat().st_mode) == 0o600
    with _session(_settings(directory)) as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('posts') IS NOT NULL, to_regclass('trends') IS NOT NULL")
        assert cursor.fetchone() == (True, True)


def test_nobody_without_the_password_gets_in(
    directory: Path, first_up: subprocess.CompletedProcess[str]
) -> None:
    state = load(directory)
    assert state is not None
    with pytest.raises(OSError, match="password authentication failed"):
        postgres.answers(state.of("postgres").ports[0], "wrong")
    with pytest.raises(OSError, match="WRONGPASS"):
        redis.answers(state.of("redis").ports[0], "wrong")


def test_up_again_changes_nothing(directory: Path, first_up: subprocess.CompletedProcess[str]) -> None:
    before, settings = load(directory), _settings(directory)
    again = _crowdtone(directory, "stack", "up")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("was up already") == 3
    assert (load(directory), _settings(directory)) == (before, settings)


@pytest.mark.parametrize("server", stack.SERVERS, ids=lambda server: server.name)
def test_up_brings_back_what_was_killed_with_its_port_and_data(
    directory: Path, first_up: subprocess.CompletedProcess[str], server: stack.Server
) -> None:
    before = load(directory)
    assert before is not None
    process = before.of(server.name).process
    assert process is not None
    assert send(process, signal.SIGKILL)
    assert wait_gone(process, 30)
    status = _crowdtone(directory, "stack", "status", "--json")
    assert status.returncode == 3
    assert json.loads(status.stdout)[server.name]["trouble"] == "not running"

    progress: list[str] = []
    stack.up(directory, say=progress.append, dies_with_us=True)
    after = load(directory)
    assert after is not None
    assert after.of(server.name).ports == before.of(server.name).ports
    assert after.of(server.name).process != process
    assert sum("was up already" in line for line in progress) == 2


def test_logs_show_the_ends(directory: Path, first_up: subprocess.CompletedProcess[str]) -> None:
    shown = _crowdtone(directory, "stack", "logs", "kafka", "postgres", "--lines", "5")
    assert shown.returncode == 0
    assert str(directory / "logs" / "kafka.log") in shown.stdout
    assert "ready to accept connections" in _crowdtone(directory, "stack", "logs", "-n", "200").stdout
    missing = _crowdtone(directory, "stack", "logs", "nothing")
    assert missing.returncode == 1
    assert "no log" in missing.stderr


def test_down_stops_all_and_up_finds_the_data_again(
    directory: Path, first_up: subprocess.CompletedProcess[str]
) -> None:
    settings = _settings(directory)
    state = load(directory)
    assert state is not None
    postgres.create_database(state.of("postgres").ports[0], state.postgres_password, "kept")
    down = _crowdtone(directory, "stack", "down")
    assert down.returncode == 0
    assert sorted(down.stdout.splitlines()) == ["kafka stopped", "postgres stopped", "redis stopped"]
    assert _crowdtone(directory, "stack", "status").returncode == 3
    assert _crowdtone(directory, "stack", "down").returncode == 0  # nothing left to stop is fine

    assert _crowdtone(directory, "stack", "up").returncode == 0
    assert _settings(directory) == settings
    assert "kept" in _databases(settings)


def test_a_broken_configuration_names_the_log_and_shows_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = kafka.properties

    def broken(data: Path, port: int, controller_port: int) -> dict[str, str]:
        return healthy(data, port, controller_port) | {"num.io.threads": "none"}

    # Formatting would notice as well, and say so without a log: break what is started, not what is formatted.
    stack.up(tmp_path, [stack.KAFKA], dies_with_us=True)
    stack.down(tmp_path)
    monkeypatch.setattr(kafka, "properties", broken)
    with pytest.raises(Failed) as failure:
        stack.up(tmp_path, [stack.KAFKA], dies_with_us=True)
    message = str(failure.value)
    assert "kafka ended while starting" in message
    assert str(tmp_path / "logs" / "kafka.log") in message
    assert "num.io.threads" in message


def test_a_server_that_stays_silent_is_reported_in_time(tmp_path: Path) -> None:
    silent = stack.Server(
        "silent",
        1,
        lambda directory, state: None,
        lambda directory, state: ["sh", "-c", "echo still thinking; exec sleep 60"],
        stack.REDIS.answers,
        signal.SIGTERM,
    )
    stack.up(tmp_path, [stack.REDIS], dies_with_us=True)
    stack.down(tmp_path)
    with pytest.raises(
        Failed, match=r"silent does not answer on 127\.0\.0\.1:\d+: .*refused.*(?s:.*)still thinking"
    ):
        stack.up(tmp_path, [silent], dies_with_us=True, start_timeout_s=0.5)
    state = load(tmp_path)
    assert state is not None
    process = state.of("silent").process
    assert process is not None
    assert send(process, signal.SIGKILL)
    assert wait_gone(process, 10)


def test_the_demo_ends_with_what_kept_the_stack_from_starting(tmp_path: Path) -> None:
    """And so does `crowdtone run --up`, which it runs: without its servers no service is started."""
    without_java = tmp_path / "bin"
    without_java.mkdir()
    for program in ("setpriv", "redis-server"):
        path = shutil.which(program)
        assert path is not None
        (without_java / program).symlink_to(path)
    done = subprocess.run(
        [*CROWDTONE, "demo", "--once", "--local-dir", str(tmp_path / "demo")],
        env=os.environ | {"PATH": str(without_java), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install default-jre-headless" in done.stdout
    assert "the services ended (exit 1)" in done.stdout
    assert "started (pid" not in done.stdout
