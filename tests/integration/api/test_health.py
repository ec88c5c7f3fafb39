"""Health says what is so: over a Postgres that is stopped and started again, in the process as it is run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import stack as local_stack
from deploy.local.postgres import create_database
from deploy.local.state import load, postgres_url
from deploy.postgres import migrate
from protos.crowdtone.v1 import api_pb2 as pb
from protos.crowdtone.v1 import api_pb2_grpc
from services.api.server import SERVICE, Readiness
from shared.settings import PostgresSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ANY = pb.QueryTrendsRequest(filter=pb.TrendFilter(topic="*"))


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def status(channel: grpc.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)


@pytest.fixture
def own_postgres() -> Iterator[tuple[Path, PostgresSettings]]:
    """A server of this test's own, which it may stop: (its folder, its settings)."""
    # Not in pytest's folder: each new run of pytest closes that to other users, and Postgres is one.
    directory = Path(tempfile.mkdtemp(prefix="crowdtone-test-"))
    directory.chmod(0o755)
    local_stack.up(directory, [local_stack.POSTGRES], dies_with_us=True)
    state = load(directory)
    assert state is not None
    create_database(state.of("postgres").ports[0], state.postgres_password, "t")
    migrate(postgres_url(state, "t"))
    yield directory, PostgresSettings(url=postgres_url(state, "t"))
    local_stack.down(directory)
    shutil.rmtree(directory)


def test_without_postgres_it_is_not_ready_and_with_it_it_is_again(
    own_postgres: tuple[Path, PostgresSettings], serve_over: Any
) -> None:
    directory, settings = own_postgres
    with serve_over(settings, directory / "media", query_timeout_s=2.0) as served:
        wait_until(lambda: status(served.channel) == SERVING)
        assert status(served.channel, SERVICE) == SERVING
        assert list(served.stub.QueryTrends(ANY, timeout=10).points) == []

        local_stack.down(directory)
        wait_until(lambda: status(served.channel) == NOT_SERVING)
        assert status(served.channel, SERVICE) == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            served.stub.QueryTrends(ANY, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "database" in str(caught.value.details())
        assert str(settings.url.get_secret_value()) not in str(caught.value)

        local_stack.up(directory, [local_stack.POSTGRES], dies_with_us=True)
        wait_until(lambda: status(served.channel) == SERVING)
        # Connections from before the stop are still in the pool: no caller may pay for them.
        for _ in range(20):
            assert list(served.stub.QueryTrends(ANY, timeout=10).points) == []


def test_a_postgres_that_accepts_and_never_answers_is_away_too() -> None:
    hangs = threading.Event()
    let_go = threading.Event()

    def ping() -> None:
        if hangs.is_set():
            let_go.wait(30)

    readiness = Readiness(ping, interval_s=0.02, timeout_s=0.2)
    readiness.start()
    wait_until(readiness.ready)
    hangs.set()
    wait_until(lambda: not readiness.ready())
    hangs.clear()
    let_go.set()
    wait_until(readiness.ready)
    readiness.stop()


def test_the_process_serves_drains_and_ends_well(stack: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = stack | {"CROWDTONE_API_ADDRESS": address, "CROWDTONE_WORKER_HEARTBEAT_S": "0.2"}
    log = tmp_path / "api.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "services.api"], env=env, stderr=output)
    try:
        with grpc.insecure_channel(address) as channel:
            stub: Any = api_pb2_grpc.CrowdtoneServiceStub(channel)
            grpc.channel_ready_future(channel).result(timeout=60)
            wait_until(lambda: status(channel) == SERVING)
            wait_until(
                lambda: [s.service for s in stub.ListServices(pb.ListServicesRequest()).services] == ["api"]
            )
            stream = stub.StreamTrends(pb.StreamTrendsRequest(filter=pb.TrendFilter(topic="*")))
            assert list(next(stream).points) == []

            # A second one at the same address is a mistake, and says so.
            second = subprocess.run(
                [sys.executable, "-m", "services.api"], env=env, capture_output=True, timeout=60, text=True
            )
            assert second.returncode != 0
            assert "bind" in second.stderr

            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert process.wait(timeout=30) == 0, log.read_text()
            assert time.monotonic() - began < 8
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert "Traceback" not in log.read_text()
