"""A feed of verdicts as fusion leaves it, sums in Postgres before the record in Kafka; and the service."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from protos.crowdtone.v1 import events_pb2
from services.alerts.store import AlertStore
from services.fusion.trends import Counted, Counts, Key, deltas
from shared import codec, tables, topics
from shared.kafka import Sink, Source
from shared.messages import Label, Output, Post, PostSentiment, Verdict
from shared.settings import KafkaSettings, PostgresSettings

T = TypeVar("T")
MIDNIGHT = datetime(2026, 6, 13, tzinfo=UTC)
SCORE = {Label.NEGATIVE: -1.0, Label.NEUTRAL: 0.0, Label.POSITIVE: 1.0}


@dataclass(frozen=True)
class Sample:
    """One post of a made-up feed."""

    post_id: str
    topic: str
    event_time: datetime
    label: Label

    def counted(self) -> Counted:
        score = int(SCORE[self.label] * tables.MICRO)
        return Counted(self.event_time, (self.topic,), "test", "en", self.label, score)

    def output(self, revision: int) -> Output:
        post = Post(
            post_id=self.post_id,
            platform="test",
            event_time=self.event_time,
            ingest_time=self.event_time,
            language="en",
            text="",
            topics=(self.topic,),
        )
        verdict = Verdict(self.label, (0, 1, 0), SCORE[self.label], (), {}, "test@1")
        (output,) = codec.encode_sentiments([PostSentiment(post, revision, verdict, True, self.event_time)])
        return output


def hour(topic: str, at: int, *, negative: int = 0, neutral: int = 0, positive: int = 0) -> list[Sample]:
    """Posts of the hour that begins `at` hours after MIDNIGHT, a minute apart."""
    labels = [Label.NEGATIVE] * negative + [Label.NEUTRAL] * neutral + [Label.POSITIVE] * positive
    return [
        Sample(f"test:{topic}-{at}-{index}", topic, MIDNIGHT + timedelta(hours=at, minutes=index % 60), label)
        for index, label in enumerate(labels)
    ]


class Feed:
    """Verdicts into Postgres' sums and Kafka, like fusion: the sums first."""

    def __init__(self, kafka: KafkaSettings, postgres: PostgresSettings) -> None:
        self._engine = sa.create_engine(postgres.url.get_secret_value())
        self._sink = Sink(kafka)

    def close(self) -> None:
        self._engine.dispose()
        self._sink.__exit__(None, None, None)

    def track(self, *names: str) -> None:
        with self._engine.begin() as connection:
            for name in names:
                connection.execute(
                    sa.insert(tables.topics).values(name=name, display_name=name, keywords=[name])
                )

    def count(self, added: Sequence[Sample], taken_back: Sequence[Sample] = ()) -> None:
        changes = deltas((each.counted() for each in added), (each.counted() for each in taken_back))
        columns = [*Key._fields, *Counts._fields]
        statement = sa.text(
            f"INSERT INTO trends ({', '.join(columns)}) VALUES ({', '.join(':' + name for name in columns)}) "
            "ON CONFLICT (topic, grain, bucket, platform, language) DO UPDATE SET "
            + ", ".join(f"{name} = trends.{name} + excluded.{name}" for name in Counts._fields)
        )
        with self._engine.begin() as connection:
            rows = [{**key._asdict(), **counts._asdict()} for key, counts in changes.items()]
            connection.execute(statement, rows)

    def publish(self, samples: Sequence[Sample], revision: int = 1) -> None:
        self._sink.write([each.output(revision) for each in samples])

    def send(self, samples: Sequence[Sample]) -> None:
        self.count(samples)
        self.publish(samples)

    def poison(self, value: bytes) -> None:
        self._sink.write([Output(topics.SENTIMENTS.name, b"poison", value)])

    def judged_afresh(self, store: AlertStore) -> dict[tuple[str, str], tuple[object, ...]]:
        """(id, kind) -> content of every alert there would be had these sums never been judged before."""
        standing = self.alerts()
        with self._engine.begin() as connection:
            connection.execute(sa.delete(tables.alerts))
        for topic, starts in store.newest(10_000).items():
            store.judge(topic, starts, datetime.now(UTC))
        fresh = {(row.alert_id, row.kind): content(row) for row in self.alerts()}
        with self._engine.begin() as connection:
            connection.execute(sa.delete(tables.alerts))
            if standing:
                connection.execute(sa.insert(tables.alerts), [row._asdict() for row in standing])
        return fresh

    def alerts(self) -> list[sa.Row[Any]]:
        with self._engine.connect() as connection:
            statement = sa.select(tables.alerts).order_by(tables.alerts.c.alert_id)
            return list(connection.execute(statement).all())

    def settled(self, *, alerts: int, timeout_s: float = 180.0) -> list[sa.Row[Any]]:
        """The alerts once there are so many and all are published."""
        return until(
            self.alerts,
            lambda found: (
                len(found) == alerts and all(row.published_revision == row.revision for row in found)
            ),
            timeout_s,
        )


def content(row: sa.Row[Any]) -> tuple[object, ...]:
    """What an alert says, without how often it was said."""
    return (row.value, row.baseline, row.deviation, row.posts, row.baseline_posts)


def until(look: Callable[[], T], good: Callable[[T], bool], timeout_s: float = 180.0) -> T:
    deadline = time.monotonic() + timeout_s
    while not good(found := look()):
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.1)
    return found


@pytest.fixture
def feed(kafka: KafkaSettings, postgres: PostgresSettings) -> Iterator[Feed]:
    made = Feed(kafka, postgres)
    yield made
    made.close()


@dataclass
class Worker:
    """`python -m services.alerts` as the supervisor runs it."""

    process: subprocess.Popen[bytes]
    log: Path

    def ready(self, timeout_s: float = 180.0) -> None:
        until(lambda: self.log.read_text(), lambda text: "recovered" in text, timeout_s)


@pytest.fixture
def start(stack: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def started(**settings: str) -> Worker:
        log = tmp_path / f"alerts.{len(workers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.alerts"],
                env={**stack, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        workers.append(Worker(process, log))
        return workers[-1]

    yield started
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def published(kafka: KafkaSettings, count: int, timeout_s: float = 30.0) -> list[events_pb2.Alert]:
    """The first `count` records of topic `alerts`, in order."""
    found: list[events_pb2.Alert] = []
    with Source(kafka, [topics.ALERTS.name], "test-alerts") as source:
        deadline = time.monotonic() + timeout_s
        while len(found) < count and time.monotonic() < deadline:
            found += [events_pb2.Alert.FromString(record.value) for record in source.poll()]
    return found
