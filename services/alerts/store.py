"""Exact sums out of `trends`, alerts into `alerts`, and what is still to be published. Knows no Kafka, no
Faust.

What is judged is read and what is found is written in one transaction that holds the topic's lock, so that of
two processes which judge the same window the later one has seen the newer sums, and the alerts end as the
sums say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from services.alerts.detect import Window, detect
from services.alerts.revision import revised
from services.alerts.settings import DetectSettings
from shared import tables
from shared.db import retried
from shared.messages import Alert, AlertState
from shared.tables import Grain

_LOCK: Final = sa.text("SELECT pg_advisory_xact_lock(hashtext('crowdtone alerts'), hashtext(:topic))")
_FIRST: Final = sa.text("SELECT min(bucket) FROM trends WHERE topic = :topic AND grain = :grain")
_LAST: Final = sa.text("SELECT max(bucket) FROM trends WHERE topic = :topic AND grain = :grain")
_WINDOWS: Final = sa.text("""
    SELECT CAST(floor(extract(epoch FROM bucket) / :window_s) * :window_s AS bigint) AS start_s,
           CAST(sum(posts) AS bigint), CAST(sum(negative) AS bigint), CAST(sum(neutral) AS bigint),
           CAST(sum(positive) AS bigint)
    FROM trends WHERE topic = :topic AND grain = :grain AND bucket >= :start AND bucket < :end
    GROUP BY start_s ORDER BY start_s
""")
_UPSERT: Final = sa.text("""
    INSERT INTO alerts (alert_id, topic, window_start, window_s, kind, value, baseline, deviation, posts,
                        baseline_posts, state, revision, published_revision, update_time)
    VALUES (:alert_id, :topic, :window_start, :window_s, :kind, :value, :baseline, :deviation, :posts,
            :baseline_posts, :state, :revision, 0, :update_time)
    ON CONFLICT (alert_id) DO UPDATE SET
        window_s = excluded.window_s, value = excluded.value, baseline = excluded.baseline,
        deviation = excluded.deviation, posts = excluded.posts, baseline_posts = excluded.baseline_posts,
        state = excluded.state, revision = excluded.revision, update_time = excluded.update_time
""")
_PUBLISHED: Final = sa.text("""
    UPDATE alerts SET published_revision = sent.revision
    FROM unnest(CAST(:ids AS text[]), CAST(:revisions AS int[])) AS sent (alert_id, revision)
    WHERE alerts.alert_id = sent.alert_id
""")


class AlertStore:
    """Every method is one transaction for each topic, tried again while Postgres is away.

    Raises Unavailable when it stays away for `retry_s`.
    """

    def __init__(self, engine: sa.Engine, settings: DetectSettings, *, retry_s: float) -> None:
        self._engine = engine
        self._settings = settings
        self._retry_s = retry_s
        # The sums of both grains are of the same transaction, so the wider one is as exact and 60 times
        # shorter.
        self._grain = Grain.HOUR if settings.window_s % 3600 == 0 else Grain.MINUTE

    def judge(self, topic: str, starts_s: Collection[int], now: datetime) -> list[Alert]:
        """Judge the windows that start at `starts_s` by the sums of this moment. Returns what changed."""
        changed: list[Alert] = []
        for starts in _chunks(sorted(starts_s), self._settings.baseline_windows * self._settings.window_s):
            changed += retried(
                lambda starts=starts: self._judge(topic, starts, now),  # type: ignore[misc]
                retry_s=self._retry_s,
                what="judge windows",
            )
        return changed

    def _judge(self, topic: str, starts_s: Sequence[int], now: datetime) -> list[Alert]:
        with self._engine.begin() as connection:
            connection.execute(_LOCK, {"topic": topic})
            series = self._series(connection, topic, starts_s[0], starts_s[-1])
            findings = detect(series, starts_s, self._settings)
            standing = _standing(connection, topic, starts_s)
            changed = revised(topic, self._settings.window_s, findings, standing, now)
            if changed:
                connection.execute(_UPSERT, [_row(alert) for alert in changed])
        return changed

    def _series(self, connection: sa.Connection, topic: str, first_s: int, last_s: int) -> list[Window]:
        """Windows from the beginning of the first one's baseline, or of the topic's posts, to the last."""
        width = self._settings.window_s
        beginning = connection.scalar(_FIRST, {"topic": topic, "grain": self._grain})
        if beginning is None:
            return []
        beginning_s = int(beginning.timestamp()) // width * width
        start_s = max(first_s - self._settings.baseline_windows * width, beginning_s)
        parameters = {
            "topic": topic,
            "grain": self._grain,
            "window_s": width,
            "start": datetime.fromtimestamp(start_s, UTC),
            "end": datetime.fromtimestamp(last_s + width, UTC),
        }
        counted = {row[0]: Window(*row) for row in connection.execute(_WINDOWS, parameters)}
        return [counted.get(each, Window(each)) for each in range(start_s, last_s + width, width)]

    def newest(self, windows: int) -> dict[str, list[int]]:
        """The starts of the newest windows of every tracked topic, counted back from its last post."""
        return retried(lambda: self._newest(windows), retry_s=self._retry_s, what="read topics")

    def _newest(self, windows: int) -> dict[str, list[int]]:
        width = self._settings.window_s
        found = {}
        with self._engine.begin() as connection:
            for topic in connection.scalars(sa.select(tables.topics.c.name)).all():
                last = connection.scalar(_LAST, {"topic": topic, "grain": self._grain})
                first = connection.scalar(_FIRST, {"topic": topic, "grain": self._grain})
                if last is not None and first is not None:
                    last_s = int(last.timestamp()) // width * width
                    first_s = max(int(first.timestamp()) // width * width, last_s - (windows - 1) * width)
                    found[topic] = list(range(first_s, last_s + width, width))
        return found

    def publish(self, write: Callable[[Sequence[Alert]], None]) -> int:
        """Give `write` every revision that was not published yet, topic by topic; how many there were.

        A crash between the write and its commit publishes a revision again, never another under its number:
        the topic's lock is held meanwhile.
        """
        unpublished = tables.alerts.c.published_revision < tables.alerts.c.revision
        waiting = sa.select(tables.alerts.c.topic).where(unpublished).distinct()

        def topics() -> list[str]:
            with self._engine.begin() as connection:
                return list(connection.scalars(waiting))

        published = 0
        for topic in sorted(retried(topics, retry_s=self._retry_s, what="read alerts")):
            published += retried(
                lambda topic=topic: self._publish(topic, write),  # type: ignore[misc]
                retry_s=self._retry_s,
                what="publish alerts",
            )
        return published

    def _publish(self, topic: str, write: Callable[[Sequence[Alert]], None]) -> int:
        with self._engine.begin() as connection:
            connection.execute(_LOCK, {"topic": topic})
            columns = tables.alerts.c
            statement = (
                sa.select(tables.alerts)
                .where(columns.topic == topic, columns.published_revision < columns.revision)
                .order_by(columns.window_start, columns.kind)
            )
            alerts = [_alert(row) for row in connection.execute(statement)]
            if alerts:
                write(alerts)
                sent = {
                    "ids": [alert.alert_id for alert in alerts],
                    "revisions": [alert.revision for alert in alerts],
                }
                connection.execute(_PUBLISHED, sent)
        return len(alerts)


def _chunks(starts_s: Sequence[int], span_s: int) -> Iterator[Sequence[int]]:
    """Runs of windows that may share one read of the sums: no run is longer than three spans."""
    begin = 0
    for index in range(1, len(starts_s) + 1):
        if index == len(starts_s) or (
            starts_s[index] - starts_s[index - 1] > span_s or starts_s[index] - starts_s[begin] > 3 * span_s
        ):
            yield starts_s[begin:index]
            begin = index


def _standing(connection: sa.Connection, topic: str, starts_s: Sequence[int]) -> dict[str, Alert]:
    statement = sa.select(tables.alerts).where(
        tables.alerts.c.topic == topic,
        tables.alerts.c.window_start.in_([datetime.fromtimestamp(each, UTC) for each in starts_s]),
    )
    alerts = (_alert(row) for row in connection.execute(statement))
    return {alert.alert_id: alert for alert in alerts}


def _alert(row: sa.Row[tuple[object, ...]]) -> Alert:
    values = row._mapping
    return Alert(
        topic=values["topic"],
        window_start=values["window_start"].astimezone(UTC),
        window_s=values["window_s"],
        kind=values["kind"],
        value=values["value"],
        baseline=values["baseline"],
        deviation=values["deviation"],
        posts=values["posts"],
        baseline_posts=values["baseline_posts"],
        state=AlertState(values["state"]),
        revision=values["revision"],
        update_time=values["update_time"].astimezone(UTC),
    )


def _row(alert: Alert) -> dict[str, object]:
    return {
        "alert_id": alert.alert_id,
        "topic": alert.topic,
        "window_start": alert.window_start,
        "window_s": alert.window_s,
        "kind": alert.kind,
        "value": alert.value,
        "baseline": alert.baseline,
        "deviation": alert.deviation,
        "posts": alert.posts,
        "baseline_posts": alert.baseline_posts,
        "state": int(alert.state),
        "revision": alert.revision,
        "update_time": alert.update_time,
    }
