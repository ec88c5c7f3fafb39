"""`crowdtone bench backlog`: many posts wait; what a service holds in memory while it works them off.

On servers of its own, started for the run and removed after it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from itertools import cycle, islice
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks import load
from benchmarks.figures import AsJson, show
from benchmarks.system import ROOT, Servers, servers
from benchmarks.usage import MIB, children_bytes, memory_bytes
from deploy.local import stack
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.verify import verify
from shared import codec, db, topics
from shared.kafka import Group, Sink
from shared.media import MediaStore
from shared.messages import (
    Answer,
    EmbeddingBatch,
    EmbeddingEntry,
    Label,
    Modality,
    Output,
    Post,
    PostSentiment,
    Verdict,
)
from shared.settings import KafkaSettings

BATCH_POSTS: Final = 500
DIFFERENT: Final = 2_000
"""Posts that are not the same but for id and time."""


class Service(StrEnum):
    """Those that consume a topic."""

    text_encoder = "text_encoder"
    image_encoder = "image_encoder"
    audio_encoder = "audio_encoder"
    fusion = "fusion"
    alerts = "alerts"

    @property
    def topic(self) -> str:
        """What it consumes."""
        match self:
            case Service.fusion:
                return topics.EMBEDDINGS.name
            case Service.alerts:
                return topics.SENTIMENTS.name
            case _:
                return topics.POSTS.name


def command(
    service: Annotated[Service, typer.Option(help="Which one works it off.")] = Service.fusion,
    posts: Annotated[int, typer.Option(help="Posts that wait before it starts.", min=1)] = 100_000,
    limit_s: Annotated[
        float, typer.Option(help="Watch for so long at most; what is left then is told.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Fill a topic, start one process of a service, and watch its memory until it has drained it.

    An encoder gets a few words, pictures and sounds over and over: most come from the embedding cache,
    so that a CPU drains as many as a GPU would. Fusion gets random vectors, alerts verdicts of every label.
    """
    show("backlog", backlog(service, posts, limit_s), as_json)


def backlog(service: Service, posts: int, limit_s: float) -> dict[str, object]:
    """As `command`, as an object."""
    with servers(stack.KAFKA, stack.POSTGRES, stack.REDIS) as running:
        return _run(running, service, posts, limit_s)


def _run(on: Servers, service: Service, count: int, limit_s: float) -> dict[str, object]:
    kafka = on.kafka
    began = time.monotonic()
    with Sink(kafka) as sink:
        for some in outputs(service, count, on):
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
    children: list[int] = []
    with Group(kafka, service, service.topic) as group:
        total = sum(end for _, end in group.progress().values())
        while True:
            time.sleep(1)
            if process.poll() is not None:
                raise RuntimeError(f"{service} ended with {process.returncode}")
            memory.append(memory_bytes(process.pid, "VmRSS"))
            children.append(children_bytes(process.pid))
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
        "peak_rss_of_children_mib": round(max(children) / MIB),
        "rss_mib_second_half": f"{min(half) // MIB} to {max(half) // MIB}",
    }


def outputs(service: Service, count: int, on: Servers, *, first: int = 0) -> Iterator[list[Output]]:
    """What a service is to work off, posts `first` to `first + count`: records of the topic it consumes."""
    texts = list(load.posts(DIFFERENT))
    match service:
        case Service.image_encoder:
            texts = load.with_media(texts, MediaStore(on.media), [Modality.IMAGE])
        case Service.audio_encoder:
            texts = load.with_media(texts, MediaStore(on.media), [Modality.AUDIO])
    chunks = _chunks(texts, range(first, first + count))
    match service:
        case Service.fusion:
            return _embeddings(chunks, on.kafka.partitions)
        case Service.alerts:
            return _sentiments(chunks)
        case _:
            return ([codec.encode_post(post) for post in chunk] for chunk in chunks)


def _chunks(texts: Sequence[Post], numbers: range) -> Iterator[list[Post]]:
    """Posts in hundreds, from a few thousand texts over and over: making them must not take the longest."""
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


def _sentiments(chunks: Iterable[list[Post]]) -> Iterator[list[Output]]:
    """A verdict a post, every label in turn."""
    verdicts = [
        Verdict(label, probabilities, probabilities[2] - probabilities[0], (), {}, "bench")
        for label, probabilities in (
            (Label.NEGATIVE, (0.8, 0.1, 0.1)),
            (Label.NEUTRAL, (0.1, 0.8, 0.1)),
            (Label.POSITIVE, (0.1, 0.1, 0.8)),
        )
    ]
    for chunk in chunks:
        yield [
            codec.encode_sentiment(PostSentiment(post, 1, verdict, complete=True, classified_time=load.START))
            for post, verdict in zip(chunk, cycle(verdicts), strict=False)
        ]


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
