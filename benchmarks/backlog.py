"""`crowdtone bench backlog`: many posts wait; what a service holds in memory while it works them off.

On servers of its own, started for the run and removed after it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks import load
from benchmarks.figures import AsJson, show
from benchmarks.system import ROOT, Servers, servers
from benchmarks.usage import MIB, memory_bytes
from deploy.local import stack
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.verify import verify
from shared import codec, db, topics
from shared.kafka import Group, Sink
from shared.messages import Answer, EmbeddingBatch, EmbeddingEntry, Output, Post
from shared.settings import KafkaSettings

BATCH_POSTS: Final = 500


class Service(StrEnum):
    fusion = "fusion"
    text_encoder = "text_encoder"

    @property
    def topic(self) -> str:
        """What it consumes."""
        return (topics.EMBEDDINGS if self is Service.fusion else topics.POSTS).name


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
    with servers(stack.KAFKA, stack.POSTGRES, stack.REDIS) as running:
        return _run(running, service, posts, limit_s)


def _run(on: Servers, service: Service, count: int, limit_s: float) -> dict[str, object]:
    kafka = on.kafka
    began = time.monotonic()
    with Sink(kafka) as sink:
        for some in outputs(service, count, kafka.partitions):
            sink.write(some)
    filled_s = time.monotonic() - began
    with (on.directory / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            env=on.environment,
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        figures = _watch(process, kafka, service, limit_s)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    if service is Service.fusion:
        engine = db.engine(on.postgres)
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
    process: subprocess.Popen[bytes], kafka: KafkaSettings, service: Service, limit_s: float
) -> dict[str, object]:
    """Until everything is committed or `limit_s` has passed: seconds, records left, memory over time."""
    began = time.monotonic()
    working_s: float | None = None
    memory: list[int] = []
    with Group(kafka, service, service.topic) as group:
        total = sum(end for _, end in group.progress().values())
        while True:
            time.sleep(1)
            if process.poll() is not None:
                raise RuntimeError(f"{service} ended with {process.returncode}")
            memory.append(memory_bytes(process.pid, "VmRSS"))
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
        "peak_rss_mib": round(memory_bytes(process.pid, "VmHWM") / MIB),
        "rss_mib_second_half": f"{min(half) // MIB} to {max(half) // MIB}",
    }


def outputs(service: Service, count: int, partitions: int, *, first: int = 0) -> Iterator[list[Output]]:
    """What a service is to work off, posts `first` to `first + count`: `embeddings` with every answer, or
    `posts`."""
    chunks = _chunks(range(first, first + count))
    return _embeddings(chunks, partitions) if service is Service.fusion else _posts(chunks)


def _chunks(numbers: range) -> Iterator[list[Post]]:
    """Posts in hundreds, from a few thousand texts over and over: making them must not take the longest."""
    texts = list(load.posts(2_000))
    every = (
        replace(
            texts[number % len(texts)],
            post_id=f"bench:{number}",
            event_time=load.START + timedelta(seconds=number),
        )
        for number in numbers
    )
    while chunk := list(islice(every, BATCH_POSTS)):
        yield chunk


def _posts(chunks: Iterable[list[Post]]) -> Iterator[list[Output]]:
    for chunk in chunks:
        yield [codec.encode_post(post) for post in chunk]


def _embeddings(chunks: Iterable[list[Post]], partitions: int) -> Iterator[list[Output]]:
    """Every expected answer, one partition after the other, text before the rest as in life."""
    model = FusionModel.load(SHIPPED_WEIGHTS, "cpu")
    rng = np.random.default_rng(1)
    drawn = {
        modality: rng.normal(size=(BATCH_POSTS, dimension)).astype(np.float16)
        for modality, dimension in model.dimensions.items()
    }
    for number, chunk in enumerate(chunks):
        written = []
        for modality, dimension in model.dimensions.items():
            some = [post for post in chunk if modality in post.expected]
            entries = tuple(
                EmbeddingEntry(post, Answer(vector))
                for post, vector in zip(some, drawn[modality], strict=False)
            )
            batch = EmbeddingBatch(modality, model.encoders.get(modality, ""), dimension, entries)
            written.append(
                codec.encode_embeddings(
                    batch,
                    partition=number % partitions,
                    service="bench",
                    id=f"{number}/{modality}",
                    time=load.START,
                )
            )
        yield written
