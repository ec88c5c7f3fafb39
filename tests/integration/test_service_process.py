"""A service as a process on a real broker: stuck, told to stop, its broker away, its data bad."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.kafka import Sink, check_answers, read_all
from shared.messages import Output
from shared.settings import KafkaSettings, RedisSettings

SERVICE = """
import hashlib, sys, time
from shared import topics, worker
from shared.messages import Output, Result, TopicPartition
from shared.service import serve

def copy(records, now):
    for record in records:
        kind, _, seconds = record.value.partition(b" ")
        if kind == b"sleep":
            print("sleeping", flush=True)
            time.sleep(float(seconds))
        elif kind == b"compute":
            print("computing", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in which no handler of a signal runs
        elif kind == b"bug":
            raise KeyError("a bug")
    ends = {TopicPartition(r.topic, r.partition): r.offset + 1 for r in records}
    return Result([Output("sentiments", r.key, r.value) for r in records], ends, len(records))

def run():
    serve("copier", topics.POSTS, copy, stopped=worker.on_sigterm(), max_poll_records=10)

worker.main("copier", run)
"""


@contextmanager
def service(
    kafka: KafkaSettings, redis: RedisSettings, tmp_path: Path, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "CROWDTONE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "CROWDTONE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
        "CROWDTONE_REDIS_URL": redis.url.get_secret_value(),
        "CROWDTONE_LOCAL_DIR": str(tmp_path),
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def send(kafka: KafkaSettings, value: bytes) -> None:
    with Sink(kafka) as sink:
        sink.write([Output("posts", None, value, partition=0)])


def until(true: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode().strip()
    except OSError:
        return 0, ""


def test_it_says_how_it_is_and_drains(kafka: KafkaSettings, redis: RedisSettings, tmp_path: Path) -> None:
    """A step of 3 s is under way when SIGTERM comes: it is finished, committed, and the exit status is 0."""
    port = free_port()
    with service(kafka, redis, tmp_path, CROWDTONE_WORKER_METRICS_PORT=str(port)) as process:
        until(lambda: get(port, "/readyz") == (200, "ok"))
        assert get(port, "/livez") == (200, "ok")
        assert "crowdtone_posts_total" in get(port, "/metrics")[1]
        send(kafka, b"sleep 3")
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=50) == 0
        assert 1 < time.monotonic() - began < 45
    assert [record.value for record in read_all(kafka, "sentiments")] == [b"sleep 3"]


@pytest.mark.parametrize(("record", "said"), [(b"sleep 1000", "sleeping\n"), (b"compute", "computing\n")])
def test_a_turn_that_does_not_end_in_time_is_left_undone(
    kafka: KafkaSettings, redis: RedisSettings, tmp_path: Path, record: bytes, said: str
) -> None:
    send(kafka, record)
    with service(kafka, redis, tmp_path, CROWDTONE_WORKER_DRAIN_S="1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == said
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=60) == 75
        assert time.monotonic() - began < 30
        assert "not drained within 1 s" in process.communicate()[1]


def test_a_stuck_loop_is_seen_and_ends_itself(
    kafka: KafkaSettings, redis: RedisSettings, tmp_path: Path
) -> None:
    port = free_port()
    settings = {"CROWDTONE_WORKER_STALL_S": "15", "CROWDTONE_WORKER_METRICS_PORT": str(port)}
    with service(kafka, redis, tmp_path, **settings) as process:
        until(lambda: get(port, "/livez") == (200, "ok"))
        send(kafka, b"sleep 1000")
        assert process.wait(timeout=120) == 1
        told = process.communicate()[1]
        assert "Timeout" in told
        assert "in copy" in told, "where it was stuck"


def test_a_bug_ends_it_with_its_reason(kafka: KafkaSettings, redis: RedisSettings, tmp_path: Path) -> None:
    send(kafka, b"bug")
    with service(kafka, redis, tmp_path) as process:
        assert process.wait(timeout=120) == 1
        assert "KeyError: 'a bug'" in process.communicate()[1]


def test_without_a_broker_it_says_so_and_ends(
    kafka: KafkaSettings, redis: RedisSettings, tmp_path: Path
) -> None:
    away = f"127.0.0.1:{free_port()}"
    settings = {"CROWDTONE_KAFKA_BOOTSTRAP_SERVERS": away, "CROWDTONE_KAFKA_RETRY_S": "2"}
    with service(kafka, redis, tmp_path, **settings) as process:
        assert process.wait(timeout=120) == 75
        assert f"Kafka at {away} stayed away" in process.communicate()[1]


def test_whether_a_broker_answers(kafka: KafkaSettings) -> None:
    check_answers(kafka)
    nobody = f"127.0.0.1:{free_port()}"
    check_answers(kafka.model_copy(update={"bootstrap_servers": f"{nobody},{kafka.bootstrap_servers}"}))
    with pytest.raises(Unavailable, match="refused"):
        check_answers(kafka.model_copy(update={"bootstrap_servers": nobody}))
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        there = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="timed out"):
            check_answers(kafka.model_copy(update={"bootstrap_servers": there}), timeout_s=0.3)
