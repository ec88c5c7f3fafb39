"""The service as a process, on real Kafka and Postgres: kill -9, a second member, SIGTERM; all is counted."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from services.fusion.model import FusionNetwork, ModelConfig, save
from services.fusion.verify import verify
from shared import codec, db
from shared.kafka import Sink, Source
from shared.messages import Answer, EmbeddingBatch, EmbeddingEntry, Modality, Output, Post
from shared.settings import KafkaSettings, PostgresSettings
from shared.testing import NOON, post

POSTS = 1_200
BATCH = 20
WIDTH = 8
PATIENCE_S = 300.0  # of a machine busy with other things; seconds otherwise


@pytest.fixture
def environment(stack: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Settings of a service with a small untrained model: what is tested is that nothing is lost."""
    folder = tmp_path / "model"
    slots = {modality.name.lower(): WIDTH for modality in Modality}
    save(FusionNetwork(ModelConfig(slots, width=16, layers=1)), folder)
    return stack | {
        "CROWDTONE_FUSION_MODEL": str(folder),
        "CROWDTONE_FUSION_GRACE_S": "1",
        "CROWDTONE_FUSION_MAX_POLL_RECORDS": "2",
        "CROWDTONE_KAFKA_SESSION_TIMEOUT_MS": "6000",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def service(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.fusion"], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def feed(partitions: int) -> tuple[dict[str, Post], list[Output]]:
    """Posts, and the records of their answers: text and image of one post far apart, some twice."""
    random_ = random.Random(7)
    posts: dict[str, Post] = {}
    outputs: list[tuple[float, Output]] = []
    for partition in range(partitions):
        mine = [
            post(
                f"test:{partition}-{number}",
                event_time=NOON + timedelta(seconds=61 * number),
                topics=("lumio",) if number % 3 else ("metro", "solfest"),
                expected=frozenset({Modality.TEXT, Modality.IMAGE} if number % 2 else {Modality.TEXT}),
            )
            for number in range(POSTS // partitions)
        ]
        posts |= {one.post_id: one for one in mine}
        for start in range(0, len(mine), BATCH):
            some = mine[start : start + BATCH]
            for modality in (Modality.TEXT, Modality.IMAGE):
                entries = tuple(
                    EmbeddingEntry(one, answer(one.post_id, modality))
                    for one in some
                    if modality in one.expected
                )
                output = codec.encode_embeddings(
                    EmbeddingBatch.of(modality, "test@1", WIDTH, entries),
                    partition=partition,
                    service="test",
                    id=f"{partition}/{start}/{modality.name}",
                    time=NOON,
                )
                for _ in range(1 + (random_.random() < 0.2)):
                    outputs.append((start + random_.uniform(0, 400), output))
    return posts, [output for _, output in sorted(outputs, key=lambda item: item[0])]


def answer(post_id: str, modality: Modality) -> Answer:
    random_ = np.random.default_rng([*post_id.encode(), modality])
    if random_.random() < 0.1:
        return Answer(None, "broken")
    return Answer(random_.normal(size=WIDTH).astype(np.float16))


def wait_until(engine: sa.Engine, condition: str, *, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.scalar(sa.text(f"SELECT {condition}")):
                return
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


def test_nothing_is_lost_or_counted_twice(
    kafka: KafkaSettings, postgres: PostgresSettings, environment: dict[str, str], tmp_path: Path
) -> None:
    posts, outputs = feed(kafka.partitions)
    engine = db.engine(postgres)
    log = tmp_path / "fusion.log"
    with Sink(kafka) as sink:
        sink.write(outputs[: len(outputs) // 2])
        with service(environment, log) as first:
            wait_until(engine, "count(*) > 100 FROM posts")
            first.send_signal(signal.SIGKILL)
        assert verify(engine).holds
        with service(environment, log) as second, service(environment, log) as third:
            sink.write(outputs[len(outputs) // 2 :])
            wait_until(engine, f"count(*) > {POSTS // 2} FROM posts")
            second.send_signal(signal.SIGKILL)
            assert verify(engine).holds
            all_complete = "expected & ~answered = 0"
            wait_until(engine, f"count(*) FILTER (WHERE {all_complete}) = {POSTS} FROM posts")
            # The ledger follows once all is published.
            wait_until(engine, f"sum(next_offset) = {len(outputs)} FROM offset_ledger")
            third.send_signal(signal.SIGTERM)
            assert third.wait(timeout=PATIENCE_S) == 0, log.read_text()
    report = verify(engine)
    assert (report.holds, report.posts) == (True, POSTS)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT post_id, revision, used, answered FROM posts")).all()
        assert connection.scalar(sa.text("SELECT count(*) FROM partial_posts")) == 0
        counted = connection.scalar(sa.text("SELECT sum(posts) FROM trends WHERE topic = '*' AND grain = 3"))
    assert counted == POSTS
    revisions = {row.post_id: row.revision for row in rows}
    assert revisions.keys() == posts.keys()
    for row in rows:
        expected = posts[row.post_id].expected
        with_vector = {one for one in expected if answer(row.post_id, one).vector is not None}
        assert row.used == sum(1 << one for one in with_vector)
        assert row.answered == sum(1 << one for one in expected)
    assert published(kafka) == revisions
    engine.dispose()


def published(kafka: KafkaSettings) -> dict[str, int]:
    """The last revision of each post in `sentiments`."""
    last: dict[str, int] = {}
    deadline = time.monotonic() + PATIENCE_S
    with Source(kafka, ["sentiments"], "reader") as source:
        quiet = 0
        while quiet < 10:
            assert time.monotonic() < deadline, f"read {len(last)} posts and no end"
            records = source.poll()
            quiet = 0 if records or not last else quiet + 1
            for record in records:
                sentiment = codec.decode_sentiment(record.value)
                last[sentiment.post_id] = sentiment.revision
    return last


def test_without_its_topics_it_says_what_is_missing(
    kafka: KafkaSettings, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "fusion.log"
    elsewhere = environment | {"CROWDTONE_KAFKA_TOPIC_PREFIX": f"{kafka.topic_prefix}none."}
    with service(elsewhere, log) as process:
        assert process.wait(timeout=PATIENCE_S) == 1
    assert "topics of the join are missing" in log.read_text()
