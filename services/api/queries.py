"""The SQL of the API: answers from the tables fusion writes, as protobuf messages. Knows no gRPC call.

Each read is one statement in a transaction of its own, and is repeated once where its pooled connection turns
out to have died: a Postgres that restarted costs a caller nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar, cast

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.exc import DBAPIError

from protos.crowdtone.v1 import api_pb2 as api
from protos.crowdtone.v1 import events_pb2 as events
from services.api import pages
from services.api.requests import AlertQuery, Filter, NewTopic, PostQuery, TrendQuery, fingerprint
from shared import db, tables
from shared.messages import AlertState, Modality
from shared.tables import ALL_POSTS, MICRO

T = TypeVar("T")


class Point(NamedTuple):
    """One bucket of a trend. bucket_s: its start, in seconds since the epoch; score_micro: a sum."""

    bucket_s: int
    posts: int
    negative: int
    neutral: int
    positive: int
    unscored: int
    score_micro: int


Row = tuple[int, int, int, int, int, int, int]
"""A Point as Postgres gives it: the same fields in the same order, without their names."""


def add_points(message: api.QueryTrendsResponse | api.StreamTrendsResponse, points: Iterable[Row]) -> None:
    """Append `points` to a message, field by field: 1.8 us a point; by constructor calls it is 4.5."""
    add = message.points.add
    for bucket_s, posts, negative, neutral, positive, unscored, score_micro in points:
        point = add()
        point.bucket_start.seconds = bucket_s
        point.posts = posts
        point.negative = negative
        point.neutral = neutral
        point.positive = positive
        point.unscored = unscored
        scored = negative + neutral + positive
        if scored:
            point.mean_score = score_micro / (MICRO * scored)


def serialized(points: Sequence[Row]) -> bytes:
    """A QueryTrendsResponse of these points.

    Buckets of the past are the same at every look: of a board's 60 points 59 were there a moment ago.
    """
    if len(points) > BOARD_POINTS:
        answer = api.QueryTrendsResponse()
        add_points(answer, points)
        return answer.SerializeToString()
    # One after another, responses of one point are the response of all: so protobuf repeats a field.
    return b"".join(map(_serialized_point, points))


BOARD_POINTS: Final = 200
"""Longer answers are seldom asked for again, and would push out what is."""


# Some 20 MB. What is shown of an hour, of two days and of 90 days of 50 topics are 10,000 points.
@lru_cache(maxsize=32_768)
def _serialized_point(point: Row) -> bytes:
    answer = api.QueryTrendsResponse()
    add_points(answer, (point,))
    return answer.SerializeToString()


class UnknownTopic(LookupError):
    """Nobody tracks this topic."""


class TooManyPoints(LookupError):
    """The interval has more buckets than one answer may hold."""


COUNTS: Final = Point._fields[1:]


def _trend_statement(*, whole: bool) -> str:
    """The SQL text, compiled once: the driver is given it as it is. whole: of all platforms and languages."""
    trends = (tables.trend_totals if whole else tables.trends).c
    tracked = tables.topics.c
    topic, platform, language = (
        sa.bindparam(name, type_=sa.Text) for name in ("topic", "platform", "language")
    )
    asked = [
        trends.topic == topic,
        trends.grain == sa.bindparam("grain", type_=sa.SmallInteger),
        trends.bucket >= sa.bindparam("start_time", type_=sa.TIMESTAMP(timezone=True)),
        trends.bucket < sa.bindparam("end_time", type_=sa.TIMESTAMP(timezone=True)),
        sa.or_(topic == sa.text(f"'{ALL_POSTS}'"), sa.exists().where(tracked.name == topic)),
    ]
    bucket_s = sa.cast(sa.func.extract("epoch", trends.bucket), sa.BigInteger)
    if whole:
        statement = sa.select(bucket_s, *(trends[name] for name in COUNTS)).where(
            *asked, trends.posts > sa.text("0")
        )
    else:
        sums = (sa.cast(sa.func.sum(trends[name]), sa.BigInteger) for name in COUNTS)
        statement = (
            sa.select(bucket_s, *sums)
            .where(
                *asked,
                # The driver puts the values in, so the planner drops what is constant here.
                sa.or_(platform == sa.text("''"), trends.platform == platform),
                sa.or_(language == sa.text("''"), trends.language == language),
            )
            .group_by(trends.bucket)
            .having(sa.func.sum(trends.posts) > sa.text("0"))
        )
    limited = statement.order_by(trends.bucket).limit(sa.bindparam("limit", type_=sa.Integer))
    return str(limited.compile(dialect=psycopg2.dialect()))  # type: ignore[no-untyped-call]


_TREND: Final = _trend_statement(whole=False)
# Planning it takes Postgres 0.8 ms, more than reading the points of an hour.
_PREPARE_WHOLE_TREND: Final = (
    "PREPARE whole_trend (text, smallint, timestamptz, timestamptz, integer) AS "
    + _trend_statement(whole=True)
    % {"topic": "$1", "grain": "$2", "start_time": "$3", "end_time": "$4", "limit": "$5"}
)
_WHOLE_TREND: Final = "EXECUTE whole_trend (%(topic)s, %(grain)s, %(start_time)s, %(end_time)s, %(limit)s)"


@dataclass(frozen=True)
class Queries:
    """Everything the API asks Postgres. engine: in autocommit mode.

    All methods raise sqlalchemy.exc.DBAPIError as it comes; the caller tells apart what it means.
    """

    engine: sa.Engine
    max_points: int
    max_page_bytes: int

    def trend(self, query: TrendQuery) -> Sequence[Row]:
        """Oldest first, buckets without posts left out. Raises UnknownTopic, TooManyPoints."""
        parameters = {
            "topic": query.filter.topic,
            "grain": int(query.grain),
            "start_time": query.filter.start_time,
            "end_time": query.filter.end_time,
            "platform": query.filter.platform,
            "language": query.filter.language,
            "limit": self.max_points + 1,
        }
        statement, prepare = (
            (_TREND, "")
            if query.filter.platform or query.filter.language
            else (_WHOLE_TREND, _PREPARE_WHOLE_TREND)
        )
        rows = self._read(lambda connection: db.rows(connection, statement, parameters, prepare=prepare))
        if len(rows) > self.max_points:
            raise TooManyPoints
        if not rows:
            self._check_topic(query.filter.topic)
        return cast(Sequence[Row], rows)

    def post(self, post_id: str) -> api.ScoredPost | None:
        """None where there is none, or none with a verdict yet."""
        days, posts = tables.post_days, tables.posts
        statement = (
            sa.select(posts)
            .join(days, sa.and_(days.c.event_time == posts.c.event_time, days.c.post_id == posts.c.post_id))
            .where(days.c.post_id == post_id)
        )
        row = self._read(lambda connection: connection.execute(statement).one_or_none())
        return None if row is None else scored_post(row)

    def posts(self, query: PostQuery) -> tuple[list[api.ScoredPost], str]:
        """A page, newest first, and the token of the next one. Raises UnknownTopic.

        A page ends early, after at least one post, where its texts come to more than `max_page_bytes`.
        """
        newest = _newest(query, query.page_size + 1)
        size = sa.func.octet_length(newest.c.text) + sa.func.octet_length(newest.c.transcript)
        order = (newest.c.event_time.desc(), newest.c.post_id.desc())
        measured = sa.select(
            newest,
            sa.func.count().over().label("found"),
            (sa.func.sum(size).over(order_by=order) - size).label("bytes_before"),
        ).subquery()
        statement = (
            sa.select(measured)
            .where(measured.c.bytes_before < self.max_page_bytes)
            .order_by(measured.c.event_time.desc(), measured.c.post_id.desc())
            .limit(query.page_size)
        )
        rows = self._read(lambda connection: connection.execute(statement).all())
        if not rows:
            self._check_topic(query.filter.topic)
            return [], ""
        token = ""
        if rows[-1].found > len(rows):
            last = pages.Position(rows[-1].event_time, rows[-1].post_id)
            token = pages.encode(last, fingerprint(query))
        return [scored_post(row) for row in rows], token

    def alerts(self, query: AlertQuery) -> tuple[list[events.Alert], str]:
        """A page, newest window first, and the token of the next one. Raises UnknownTopic."""
        alerts = tables.alerts.c
        statement = sa.select(tables.alerts).where(
            alerts.window_start >= query.start_time, alerts.window_start < query.end_time
        )
        if query.topic != ALL_POSTS:
            statement = statement.where(alerts.topic == query.topic)
        if not query.include_withdrawn:
            statement = statement.where(alerts.state == int(AlertState.ACTIVE))
        if query.after is not None:
            statement = statement.where(
                sa.tuple_(alerts.window_start, alerts.alert_id)
                < sa.tuple_(sa.literal(query.after.time), sa.literal(query.after.id))
            )
        statement = statement.order_by(alerts.window_start.desc(), alerts.alert_id.desc())
        rows = self._read(lambda connection: connection.execute(statement.limit(query.page_size + 1)).all())
        if not rows:
            self._check_topic(query.topic)
        page = rows[: query.page_size]
        token = ""
        if len(rows) > len(page):
            last = pages.Position(page[-1].window_start, page[-1].alert_id)
            token = pages.encode(last, fingerprint(query))
        return [_alert(row) for row in page], token

    def topics(self) -> list[api.TrackedTopic]:
        """By name."""
        statement = sa.select(tables.topics).order_by(tables.topics.c.name)
        rows = self._read(lambda connection: connection.execute(statement).all())
        return [_topic(row) for row in rows]

    def create_topic(self, topic: NewTopic) -> api.TrackedTopic | None:
        """The topic as stored; None where its name is taken."""
        statement = (
            postgresql.insert(tables.topics)
            .values(name=topic.name, display_name=topic.display_name, keywords=list(topic.keywords))
            .on_conflict_do_nothing()
            .returning(tables.topics)
        )
        with self.engine.connect() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _topic(row)

    def delete_topic(self, name: str) -> bool:
        """Whether there was one. Its trends and its posts' marks stay: what was counted was counted."""
        with self.engine.connect() as connection:
            return (
                connection.execute(sa.delete(tables.topics).where(tables.topics.c.name == name)).rowcount > 0
            )

    def _check_topic(self, name: str) -> None:
        if name == ALL_POSTS:
            return
        statement = sa.select(tables.topics.c.name).where(tables.topics.c.name == name)
        if self._read(lambda connection: connection.execute(statement).first()) is None:
            raise UnknownTopic(name)

    def _read(self, ask: Callable[[sa.Connection], T]) -> T:
        try:
            with self.engine.connect() as connection:
                return ask(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        self.engine.dispose()  # every connection of the pool may be as old as that one
        with self.engine.connect() as connection:
            return ask(connection)


def ping(engine: sa.Engine) -> None:
    """Raises DBAPIError where Postgres does not answer or has no schema."""
    with engine.connect() as connection:
        connection.execute(sa.select(tables.topics.c.name).limit(1)).all()


def _newest(query: PostQuery, limit: int) -> sa.Subquery:
    posts, found = tables.posts.c, query.filter
    statement = sa.select(tables.posts).where(*_conditions(found))
    if found.topic != ALL_POSTS:
        statement = statement.where(
            posts.topics.contains([found.topic]),
            sa.exists().where(tables.topics.c.name == found.topic),
        )
    if query.label is not None:
        statement = statement.where(posts.label == int(query.label))
    if query.after is not None:
        statement = statement.where(
            # The second half of the row comparison alone would not let the planner leave newer days out.
            posts.event_time <= query.after.time,
            sa.tuple_(posts.event_time, posts.post_id)
            < sa.tuple_(sa.literal(query.after.time), sa.literal(query.after.id)),
        )
    return statement.order_by(posts.event_time.desc(), posts.post_id.desc()).limit(limit).subquery()


def _conditions(found: Filter) -> list[sa.ColumnElement[bool]]:
    posts = tables.posts.c
    conditions = [posts.event_time >= found.start_time, posts.event_time < found.end_time]
    if found.platform:
        conditions.append(posts.platform == found.platform)
    if found.language:
        conditions.append(posts.language == found.language)
    return conditions


def scored_post(row: sa.Row[Any]) -> api.ScoredPost:
    """A row of `posts` as the API shows it."""
    return api.ScoredPost(
        post=events.Post(
            post_id=row.post_id,
            platform=row.platform,
            event_time=_timestamp(row.event_time),
            ingest_time=_timestamp(row.ingest_time),
            language=row.language,
            text=row.text,
            media=[events.Media(**media) for media in row.media],
            topics=row.topics,
            expected=_modalities(row.expected),
            author_hash=row.author_hash,
            url=row.url,
            traceparent=row.traceparent,
        ),
        sentiment=events.PostSentiment(
            post_id=row.post_id,
            revision=row.revision,
            event_time=_timestamp(row.event_time),
            platform=row.platform,
            language=row.language,
            topics=row.topics,
            label=events.Label.ValueType(row.label),
            negative=row.negative,
            neutral=row.neutral,
            positive=row.positive,
            score=row.score_micro / MICRO,
            modalities=[
                events.ModalityWeight(modality=events.Modality.ValueType(Modality[name]), **weight)
                for name, weight in sorted(row.modalities.items(), key=lambda item: Modality[item[0]])
            ],
            emotions=[
                events.Emotion(name=name, probability=probability)
                for name, probability in sorted(row.emotions.items(), key=lambda item: -item[1])
            ],
            model_version=row.model_version,
            complete=row.expected & ~row.answered == 0,
            classified_time=_timestamp(row.classified_time),
            transcript=row.transcript,
        ),
    )


def _modalities(bits: int) -> Sequence[events.Modality.ValueType]:
    return [events.Modality.ValueType(modality) for modality in Modality if bits & (1 << modality)]


def _alert(row: sa.Row[Any]) -> events.Alert:
    return events.Alert(
        alert_id=row.alert_id,
        topic=row.topic,
        window_start=_timestamp(row.window_start),
        window_s=row.window_s,
        kind=row.kind,
        value=row.value,
        baseline=row.baseline,
        state=events.AlertState.ValueType(row.state),
        revision=row.revision,
        deviation=row.deviation,
        posts=row.posts,
        baseline_posts=row.baseline_posts,
        update_time=_timestamp(row.update_time),
    )


def _topic(row: sa.Row[Any]) -> api.TrackedTopic:
    return api.TrackedTopic(
        name=row.name,
        display_name=row.display_name,
        keywords=row.keywords,
        create_time=_timestamp(row.create_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp
