"""`crowdtone bench backlog`: many posts wait; what a service holds in memory while it works them off.

On servers of its own, started for the run and removed after it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks import load
from benchmarks.figures import AsJson, show
from deploy.local import stack
from deploy.local.postgres import create_database
from deploy.local.state import load as load_state
from deploy.local.state import postgres_url
from deploy.postgres import migrate
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.verify import verify
from shared import codec, db, topics
from shared.kafka import Group, Sink, create_topics
from shared.messages import Answer, EmbeddingBatch, EmbeddingEntry, Output, Post
from shared.settings import KafkaSettings, PostgresSettings

ROOT: Final = Path(__file__).parents[1]
BATCH_POSTS: Final = 500
MIB: Final = 1024 * 1024


class Service(StrEnum):
    fusion = "fusion"
    text_encoder = "text_encoder"


def command(
    service: Annotated[Service, typer.Option(help="Which one works it off.")] = Service.fusion,
    posts: Annotated[int, typer.Option(help="Posts that wait before it starts.", min=1)] = 100_000,
    limit_s: Annotated[
        float, typer.Option(help="Watch for so long at most; what is left then is told.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Fill a topic, start one process of a service, and watch its memory until it has drained it."""
    show("backlog", backlog(service, posts, limit_s), as_json)


def backlog(service: Service, posts: int, limit_s: float) -> dict[str, object]:
    """Fill a topic, start one process of a service, and watch its memory until it has drained it.

    For fusion `embeddings` is filled with random vectors for every answer; for the text encoder `posts`.
    """
    directory = Path(tempfile.mkdtemp(prefix="crowdtone-backlog-"))
    directory.chmod(0o755)
    try:
        stack.up(directory, [stack.KAFKA, stack.POSTGRES, stack.REDIS], dies_with_us=True)
        return _run(directory, service, posts, limit_s)
    finally:
        stack.down(directory)
        shutil.rmtree(directory)


def _run(directory: Path, service: Service, count: int, limit_s: float) -> dict[str, object]:
    state = load_state(directory)
    assert state is not None
    database = f"b{secrets.token_hex(4)}"
    create_database(state.of("postgres").ports[0], state.postgres_password, database)
    postgres = PostgresSettings(url=postgres_url(state, database))
    migrate(postgres.url.get_secret_value())
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{state.of('kafka').ports[0]}")
    create_topics(kafka)
    topic = topics.EMBEDDINGS if service is Service.fusion else topics.POSTS
    began = time.monotonic()
    with Sink(kafka) as sink:
        for outputs in _embeddings(count, kafka.partitions) if service is Service.fusion else _posts(count):
            sink.write(outputs)
    filled_s = time.monotonic() - began
    environment = os.environ | {
        "CROWDTONE_LOCAL_DIR": str(directory),
        "CROWDTONE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "CROWDTONE_POSTGRES_URL": postgres.url.get_secret_value(),
    }
    with (directory / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"], env=environment, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        figures = _watch(process, kafka, service, topic.name, limit_s)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    if service is Service.fusion:
        engine = db.engine(postgres)
        report = verify(engine)
        engine.dispose()
        figures |= {"posts_stored": report.posts, "verify_holds": report.holds}
    return {
        "service": service.value,
        "posts_waiting": count,
        "fill_posts_per_s": round(count / filled_s),
        **figures,
        "exit": process.returncode,
    }


def _watch(
    process: subprocess.Popen[bytes], kafka: KafkaSettings, service: Service, topic: str, limit_s: float
) -> dict[str, object]:
    """Until everything is committed or `limit_s` has passed: seconds, records left, memory over time."""
    began = time.monotonic()
    working_s: float | None = None
    memory: list[int] = []
    with Group(kafka, service, topic) as group:
        total = sum(end for _, end in group.progress().values())
        while True:
            time.sleep(1)
            if process.poll() is not None:
                raise RuntimeError(f"{service} ended with {process.returncode}")
            memory.append(_status(process.pid, "VmRSS"))
            left = sum(end - at for at, end in group.progress().values())
            now = time.monotonic()
            if working_s is None and left < total:
                working_s = now
            if not left or now - began > limit_s:
                break
    half = memory[len(memory) // 2 :]
    return {
        "records_waiting": total,
        "records_left": left,
        "seconds": round(now - began, 1),
        "seconds_after_start_up": round(now - (working_s or now), 1),
        "peak_rss_mib": round(_status(process.pid, "VmHWM") / MIB),
        "rss_mib_second_half": f"{min(half) // MIB} to {max(half) // MIB}",
    }


def _status(pid: int, field: str) -> int:
    """Bytes of a field of /proc/PID/status (proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} of {pid}")


def _chunks(count: int) -> Iterator[list[Post]]:
    """Posts in hundreds, from a few thousand texts over and over: making them must not take the longest."""
    texts = list(load.posts(2_000))
    every = (
        replace(
            texts[number % len(texts)],
            post_id=f"bench:{number}",
            event_time=load.START + timedelta(seconds=number),
        )
        for number in range(count)
    )
    while chunk := list(islice(every, BATCH_POSTS)):
        yield chunk


def _posts(count: int) -> Iterator[list[Output]]:
    for chunk in _chunks(count):
        yield [codec.encode_post(post) for post in chunk]


def _embeddings(count: int, partitions: int) -> Iterator[list[Output]]:
    """Every expected answer, one partition after the other, text before the rest as in life."""
    model = FusionModel.load(SHIPPED_WEIGHTS, "cpu")
    rng = np.random.default_rng(1)
    drawn = {
        modality: rng.normal(size=(BATCH_POSTS, dimension)).astype(np.float16)
        for modality, dimension in model.dimensions.items()
    }
    for number, chunk in enumerate(_chunks(count)):
        outputs = []
        for modality, dimension in model.dimensions.items():
            some = [post for post in chunk if modality in post.expected]
            entries = tuple(
                EmbeddingEntry(post, Answer(vector))
                for post, vector in zip(some, drawn[modality], strict=False)
            )
            batch = EmbeddingBatch(modality, model.encoders.get(modality, ""), dimension, entries)
            outputs.append(
                codec.encode_embeddings(
                    batch,
                    partition=number % partitions,
                    service="bench",
                    id=f"{number}/{modality}",
                    time=load.START,
                )
            )
        yield outputs
