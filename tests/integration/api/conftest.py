"""A served API over a real Postgres and a real socket, and rows to ask for.

The rows are written by hand, and counted here a second time and not by the code under test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from protos.crowdtone.v1 import api_pb2_grpc
from services.api.live import Live
from services.api.queries import Queries, ping
from services.api.recent import Recent
from services.api.server import Readiness, build
from services.api.servicer import Servicer
from services.api.settings import ApiSettings
from shared import db
from shared.errors import Unavailable
from shared.heartbeat import ServiceReport
from shared.media import MediaStore
from shared.messages import Label
from shared.settings import MediaSettings, PostgresSettings
from shared.tables import ALL_POSTS, Grain, alerts, post_days, posts, topics

SCORES = {Label.NEGATIVE: -500_000, Label.NEUTRAL: 0, Label.POSITIVE: 750_000, Label.UNSCORED: 0}


@dataclass(frozen=True)
class Rows:
    """The tables of one test."""

    engine: sa.Engine

    def topic(self, *names: str) -> None:
        with self.engine.begin() as connection:
            for name in names:
                connection.execute(topics.insert().values(name=name, display_name=name, keywords=[name]))

    def post(
        self,
        post_id: str,
        event_time: datetime,
        label: Label = Label.POSITIVE,
        *,
        of: tuple[str, ...] = (),
        platform: str = "test",
        language: str = "en",
        **changes: Any,
    ) -> None:
        """One post, its day's partition where that is missing, and its share in all three grains."""
        values = {
            "post_id": post_id,
            "event_time": event_time,
            "platform": platform,
            "language": language,
            "topics": list(of),
            "text": f"text of {post_id}",
            "media": [],
            "author_hash": "",
            "url": "",
            "ingest_time": event_time + timedelta(seconds=1),
            "traceparent": "",
            "revision": 1,
            "label": int(label),
            "negative": 0.1,
            "neutral": 0.2,
            "positive": 0.7,
            "score_micro": SCORES[label],
            "expected": 0b10,
            "answered": 0b10,
            "used": 0b10,
            "modalities": {"TEXT": {"contribution": 0.5, "absent_reason": ""}},
            "emotions": {},
            "transcript": "",
            "model_version": "test@1",
            "classified_time": event_time + timedelta(seconds=2),
        } | changes
        day = event_time.astimezone(UTC).date()
        with self.engine.begin() as connection:
            connection.execute(
                sa.text(
                    f"CREATE TABLE IF NOT EXISTS posts_{day:%Y%m%d} PARTITION OF posts "
                    f"FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
                )
            )
            connection.execute(post_days.insert().values(post_id=post_id, event_time=event_time))
            connection.execute(posts.insert().values(**values))
            self._count(connection, event_time, label, (*of, ALL_POSTS), platform, language, 1)

    def alert(self, alert_id: str, topic: str, window_start: datetime, **changes: Any) -> None:
        values = {
            "alert_id": alert_id,
            "topic": topic,
            "window_start": window_start,
            "window_s": 3600,
            "kind": "mood_drop",
            "value": -0.5,
            "baseline": 0.25,
            "deviation": -6.5,
            "posts": 40,
            "baseline_posts": 400,
            "state": 1,
            "revision": 1,
            "published_revision": 1,
            "update_time": window_start + timedelta(hours=2),
        } | changes
        with self.engine.begin() as connection:
            connection.execute(alerts.insert().values(**values))

    def retract(self, post_id: str) -> None:
        """Take a post back, as a deletion at the source will."""
        with self.engine.begin() as connection:
            row = connection.execute(
                sa.delete(posts).where(posts.c.post_id == post_id).returning(posts)
            ).one()
            connection.execute(sa.delete(post_days).where(post_days.c.post_id == post_id))
            wanted = (*row.topics, ALL_POSTS)
            self._count(connection, row.event_time, Label(row.label), wanted, row.platform, row.language, -1)

    @staticmethod
    def _count(
        connection: sa.Connection,
        event_time: datetime,
        label: Label,
        names: tuple[str, ...],
        platform: str,
        language: str,
        by: int,
    ) -> None:
        buckets = {
            Grain.MINUTE: event_time.replace(second=0, microsecond=0),
            Grain.HOUR: event_time.replace(minute=0, second=0, microsecond=0),
            Grain.DAY: event_time.replace(hour=0, minute=0, second=0, microsecond=0),
        }
        for name in names:
            for grain, bucket in buckets.items():
                connection.execute(
                    sa.text(
                        "INSERT INTO trends VALUES (:topic, :grain, :bucket, :platform, :language, :by, "
                        ":negative, :neutral, :positive, :unscored, :score) "
                        "ON CONFLICT (topic, grain, bucket, platform, language) DO UPDATE SET "
                        "posts = trends.posts + EXCLUDED.posts, "
                        "negative = trends.negative + EXCLUDED.negative, "
                        "neutral = trends.neutral + EXCLUDED.neutral, "
                        "positive = trends.positive + EXCLUDED.positive, "
                        "unscored = trends.unscored + EXCLUDED.unscored, "
                        "score_micro = trends.score_micro + EXCLUDED.score_micro"
                    ),
                    {
                        "topic": name,
                        "grain": int(grain),
                        "bucket": bucket,
                        "platform": platform,
                        "language": language,
                        "by": by,
                        "negative": by * (label is Label.NEGATIVE),
                        "neutral": by * (label is Label.NEUTRAL),
                        "positive": by * (label is Label.POSITIVE),
                        "unscored": by * (label is Label.UNSCORED),
                        "score": by * SCORES[label],
                    },
                )


@dataclass(frozen=True)
class Served:
    """A running API: where it is, and a client of it."""

    address: str
    stub: Any
    channel: grpc.Channel
    readiness: Readiness
    live: Live
    server: grpc.Server


def no_kafka() -> Any:
    raise Unavailable("this test has no Kafka")


def no_reports() -> list[ServiceReport]:
    return []


@contextmanager
def serve(
    postgres: PostgresSettings,
    media_dir: Path,
    *,
    open_tail: Callable[[], Any] = no_kafka,
    reports: Callable[[], list[ServiceReport]] = no_reports,
    credentials: grpc.ChannelCredentials | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """The server as `__main__` builds it, on a free port of loopback."""
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "threads": 8,
        "ready_interval_s": 0.05,
        "trend_max_age_ms": 0,  # a test that writes a row wants to see it
    }
    chosen = ApiSettings(**(defaults | settings))
    connect = partial(db.engine, postgres, autocommit=True, statement_timeout_s=chosen.query_timeout_s)
    engine, probe = connect(pool_size=2 * chosen.threads), connect(pool_size=1)
    live = Live(open_tail, max_streams=chosen.max_streams)
    readiness = Readiness(
        partial(ping, probe), interval_s=chosen.ready_interval_s, timeout_s=chosen.ready_timeout_s
    )
    servicer = Servicer(
        queries=Queries(engine, chosen.max_points, chosen.max_page_bytes),
        recent=Recent(max_age_s=chosen.trend_max_age_ms / 1000, max_size=chosen.trend_kept_bytes, size=len),
        live=live,
        media=MediaStore(MediaSettings(url=media_dir.as_uri())),
        reports=reports,
        stream_interval_s=chosen.stream_interval_s,
        stream_refresh_s=chosen.stream_refresh_s,
    )
    server, port = build(chosen, servicer, readiness)
    live.start()
    readiness.start()
    server.start()
    address = f"127.0.0.1:{port}" if credentials is None else f"localhost:{port}"
    channel = (
        grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    )
    try:
        stub: Any = api_pb2_grpc.CrowdtoneServiceStub(channel)
        yield Served(address, stub, channel, readiness, live, server)
    finally:
        channel.close()
        readiness.stop()
        drained = server.stop(chosen.drain_s)
        live.stop()
        drained.wait()
        engine.dispose()
        probe.dispose()


@pytest.fixture
def rows(postgres: PostgresSettings) -> Iterator[Rows]:
    """Writes to the tables, as fusion does."""
    engine: sa.Engine = db.engine(postgres)
    yield Rows(engine)
    engine.dispose()


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def serving(postgres: PostgresSettings, tmp_path: Path) -> Serve:
    """`serve` over this test's database and media folder, for tests with settings of their own."""
    return partial(serve, postgres, tmp_path / "media")


@pytest.fixture
def serve_over() -> Callable[..., AbstractContextManager[Served]]:
    """`serve` itself, for a test that brings its own Postgres."""
    return serve


@pytest.fixture
def served(serving: Serve) -> Iterator[Served]:
    with serving() as running:
        yield running


@pytest.fixture
def api(served: Served) -> Any:
    return served.stub
